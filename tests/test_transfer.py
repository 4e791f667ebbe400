"""Transfer between networks whose answer can be seen: the brightest channel, or the darkest."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from attack_stages import CLASSES, info, record, write_stage

from pixelsem.errors import PixelsemError
from pixelsem.images import write_image
from pixelsem.metrics.predictions import Predictor
from pixelsem.metrics.transfer import Look, transfer
from pixelsem.models import Classifier, load_classifier
from pixelsem.models.classifier import Preprocessing
from pixelsem.models.options import parse_models
from pixelsem.report.transfer import TransferRow, draw_transfer

SIZE = 8

#: Brightest: the class is the channel with the highest mean. Red is a cat, green a dog, blue a ship.
CODE = """
import torch
class Means(torch.nn.Module):
    def __init__(self, sign):
        super().__init__()
        self.sign = torch.nn.Parameter(torch.tensor(float(sign)))
    def forward(self, x):
        return 10 * self.sign * x.mean((2, 3))
def brightest():
    return Means(1)
def darkest():
    return Means(-1)
"""


def image(red: int, green: int, blue: int, size: int = SIZE) -> np.ndarray:
    return np.broadcast_to(np.array([red, green, blue], np.uint8), (size, size, 3)).copy()


#: Clean and attacked image of each search; None where it found nothing.
PAIRS: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
    "cat/1.png": (image(200, 100, 50), image(90, 100, 50)),  # brightest: cat, then dog; darkest: ship, ship
    "cat/2.png": (image(200, 100, 250), None),  # brightest: ship, so wrong; darkest: dog
    "cat/3.png": (image(40, 30, 20), image(20, 30, 40)),  # brightest: cat, then ship; darkest: ship, then cat
    "cat/4.png": (image(99, 30, 20), None),  # brightest: cat
    "cat/5.png": (image(10, 30, 20), image(35, 30, 20)),  # brightest: dog, then cat; darkest: cat, then ship
}


@pytest.fixture
def models(tmp_path) -> Path:
    (tmp_path / "nets.py").write_text(CODE)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    options = {"input-size": SIZE, "classes": "classes.txt"}
    file = tmp_path / "models.yaml"
    nets = {name: {"model": f"nets.py:{name}", **options} for name in ("brightest", "darkest")}
    file.write_text(json.dumps(nets))
    return file


@pytest.fixture
def call(evaluate_in):
    return evaluate_in("transfer")


def make_stage(path: Path, pairs=PAIRS, size: int = SIZE, **options) -> Path:
    records = [
        record(
            name, to=None if attacked is None else "dog", height=size, width=size, region_pixels=size * size, pixels=[]
        )
        for name, (_, attacked) in pairs.items()
    ]
    write_stage(path, info(**options), *records)
    for one in records:
        clean, attacked = pairs[one.id]
        write_image(path / one.clean, clean)
        if attacked is not None:
            write_image(path / one.adversarial, attacked)
    return path


def keep_attempts(stage: Path, images: dict[str, np.ndarray]) -> None:
    """Give the failed searches of a stage the images that they came to."""
    from pixelsem.stage import Stage

    opened = Stage.open(stage)
    changes = []
    for one in list(opened.attack_records()):
        if one.id in images:
            name = f"attempts/original/{one.id}"
            write_image(stage / name, images[one.id])
            changes.append((one, msgspec.structs.replace(one, attempt=name)))
    opened.replace(changes)


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "transfer.csv").open(newline="", encoding="utf-8") as file:
        return {row["target"]: row for row in csv.DictReader(file)}


def counts(row: dict[str, str], name: str) -> tuple[str, str]:
    return row[f"{name}_count"], row[f"{name}_n"]


class TestCounting:
    def test_by_hand(self):
        looks = [
            Look(("a", "cat"), True, True, True, False),
            Look(("b", "cat"), True, True, False, True),
            Look(("c", "cat"), True, False, None, None),
            Look(("d", "cat"), False, True, True, False),
            Look(("e", "cat"), True, False, True, False),  # failed on the substitute, and fools the target model
        ]
        found = transfer(looks)
        rates = (found.natural, found.success, found.accuracy, found.of_attacked, found.accuracy_of_attacked)
        assert [(rate.successes, rate.n) for rate in rates] == [(4, 5), (1, 2), (1, 2), (2, 4), (2, 4)]
        assert found.not_kept == 1

    def test_targets_of_one_image_are_no_independent_trials(self):
        looks = [Look((name, "cat"), True, True, name == "a", False) for name in "abcd" for _ in range(5)]
        rate = transfer(looks).success
        assert (rate.successes, rate.n) == (5, 20)
        assert rate.effective_n < 10
        assert transfer(looks).natural.n == 4

    def test_nothing_written_has_no_rate(self):
        found = transfer([Look(("a", "cat"), True, False, None, None)])
        assert found.success is None
        assert found.accuracy is None
        assert (found.of_attacked.successes, found.of_attacked.n) == (0, 1)


class TestCommand:
    def test_counts_images_that_the_target_gets_right(self, call, tmp_path, models):
        stage = make_stage(tmp_path / "a")
        result = call(stage, "--models", models, "-o", tmp_path / "out", "--format", "svg")
        assert result.exit_code == 0, result.stderr
        rows = rows_of(tmp_path / "out")
        assert counts(rows["brightest"], "natural") == ("3", "5")
        assert counts(rows["brightest"], "success") == ("2", "2")
        assert counts(rows["brightest"], "of_attacked") == ("2", "3")
        assert counts(rows["darkest"], "natural") == ("1", "5")
        assert counts(rows["darkest"], "success") == ("1", "1")
        assert {row["box"] for row in rows.values()} == {"black"}
        svg = (tmp_path / "out" / "transfer-accuracy.svg").read_text()
        assert svg.startswith("<?xml")
        assert (tmp_path / "out" / "transfer-success.svg").is_file()

    def test_the_matrix_is_over_what_is_asked(self, call, tmp_path, models):
        stage = make_stage(tmp_path / "a")
        for over, shown in (("written", "100.00"), ("attacked", "66.67")):
            done = call(stage, "--models", models, "--over", over, "--json", "--format", "none")
            (row,) = json.loads(done.stdout)["tables"]["matrix"]["rows"]
            assert (row["target_1"], row["target_2"]) == (shown, "100.00")

    def test_failures_that_were_kept_count_on_the_target_models(self, call, tmp_path, models):
        """The fourth search left brightest a cat and darkest a ship; what was not kept is said."""
        stage = make_stage(tmp_path / "a")
        bound = "success of all attacked is a lower bound"
        typed = ("--models", models, "--format", "none", "--json", "--over", "attacked")
        before = call(stage, *typed)
        kept = {name: clean for name, (clean, attacked) in PAIRS.items() if attacked is None}
        keep_attempts(stage, {**kept, "cat/4.png": image(20, 99, 30)})
        after = call(stage, *typed)
        tables = [json.loads(done.stdout)["tables"] for done in (before, after)]
        assert [bound in str(table["matrix"]["notes"]) for table in tables] == [True, False]
        assert [table["matrix"]["rows"][0]["target_1"] for table in tables] == ["66.67", "100.00"]
        rates = [row["of_attacked"] for row in tables[1]["transfer"]["rows"]]
        assert [(rate["count"], rate["n"]) for rate in rates] == [(3, 3), (1, 1)]
        assert [row["success"]["n"] for row in tables[1]["transfer"]["rows"]] == [2, 1]

    def test_without_models_the_substitutes_are_the_targets(self, call, tmp_path, models):
        own = {"model": "nets.py:brightest", "classes": "../classes.txt", "input_size": SIZE, "arch": None}
        stage = make_stage(tmp_path / "a", **own)
        from pixelsem.stage import Stage

        digest = load_classifier(tmp_path / "nets.py:brightest", class_names=CLASSES, input_size=SIZE).digest
        Stage.open(stage).save(model={"name": "brightest", "digest": digest})
        result = call(stage, "-o", tmp_path / "out", "--format", "none")
        assert result.exit_code == 0, result.stderr
        (row,) = rows_of(tmp_path / "out").values()
        assert row["box"] == "white"

    def test_another_model_in_the_substitutes_place_is_refused(self, call, tmp_path, models):
        own = {"model": "nets.py:darkest", "classes": "../classes.txt", "input_size": SIZE}
        stage = make_stage(tmp_path / "a", **own)
        result = call(stage, "-o", tmp_path / "out")
        assert result.exit_code == 1
        assert "is not the model that was attacked" in result.stderr
        assert not (tmp_path / "out").exists()

    def test_a_model_of_other_classes_is_left_out(self, call, tmp_path, models):
        stage = make_stage(tmp_path / "a")
        (tmp_path / "other.txt").write_text("a\nb\nc\n")
        values = json.loads(models.read_text())
        values["darkest"]["classes"] = "other.txt"
        models.write_text(json.dumps(values))
        result = call(stage, "--models", models, "-o", tmp_path / "out", "--format", "none")
        assert result.exit_code == 1
        assert "darkest: " in result.stderr
        assert "'cat' is none of the model's 3 classes" in result.stderr
        assert list(rows_of(tmp_path / "out")) == ["brightest"]

    def test_a_model_left_out_has_no_rows_at_all(self, call, tmp_path, models):
        """It knows the classes of the first attack, and not those of the second."""
        first = make_stage(tmp_path / "a")
        second = make_stage(tmp_path / "b", population=100)
        manifest = second / "manifest.jsonl"
        manifest.write_text(manifest.read_text().replace('"label":"cat"', '"label":"ship"'))
        (tmp_path / "other.txt").write_text("cat\ndog\nboat\n")
        values = json.loads(models.read_text())
        values["darkest"]["classes"] = "other.txt"
        models.write_text(json.dumps(values))
        result = call(first, second, "--models", models, "-o", tmp_path / "out", "--format", "none", "--json")
        assert result.exit_code == 1
        summary = json.loads(result.stdout)
        assert "left out" in summary["failures"]["darkest"]
        assert list(summary["models"]) == ["brightest"]
        assert {row["target"] for row in summary["tables"]["transfer"]["rows"]} == {"brightest"}

    def test_images_of_another_size_are_resized(self, call, tmp_path, models):
        pairs = {"cat/1.png": (image(200, 1, 1, 12), image(1, 200, 1, 12))}
        stage = make_stage(tmp_path / "a", pairs, 12)
        result = call(stage, "--models", models, "-o", tmp_path / "out", "--format", "none")
        assert "brightest: images of 12×12 were resized to 8×8" in result.stderr
        assert counts(rows_of(tmp_path / "out")["brightest"], "success") == ("1", "1")

    @pytest.mark.parametrize(("text", "said"), [("jpeg", "'jpeg' is none of"), ("png,none", "'none' is none of")])
    def test_an_unknown_format_is_one_line(self, call, tmp_path, text, said):
        result = call(make_stage(tmp_path / "a"), "--format", text)
        assert (result.exit_code, said in result.stderr) == (2, True)


class TestDrawing:
    @pytest.mark.parametrize("accuracy", [False, True])
    def test_only_the_white_box_of_two_networks_of_one_name_is_framed(self, accuracy):
        found = transfer([Look(("a", "cat"), True, True, True, False)])
        rows = [
            TransferRow(["net", attack, None, f"weights={own}", "original", "untargeted"], target, own == target, found)
            for own in "ab"
            for attack in ("fgm", "pgd")
            for target in "ab"
        ]
        place = draw_transfer(rows, accuracy=accuracy).axes[0]
        frames = [patch for patch in place.patches if not patch.get_fill()]
        boxes = [(frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) for frame in frames]
        assert boxes == [(-0.5 + accuracy, -0.5, 2, 1), (1.5 + accuracy, 0.5, 2, 1)]


class TestModels:
    def test_items_are_names_and_weights(self, tmp_path):
        found = parse_models(["allconv", "nin=w.safetensors"])
        assert list(found) == ["allconv", "nin=w.safetensors"]
        assert (found["nin=w.safetensors"].model, found["nin=w.safetensors"].weights) == ("nin", Path("w.safetensors"))

    def test_paths_in_a_file_are_relative_to_it(self, models):
        found = parse_models([str(models)])
        assert found["darkest"].model == str(models.parent / "nets.py:darkest")
        assert found["darkest"].classes == models.parent / "classes.txt"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("- a\n- b\n", "expected a mapping"),
            ("a: allconv\n", "expected a mapping"),
            ("a: {modle: allconv}\n", "a: unknown setting 'modle'"),
            ("a: {scale: much}\n", "a: --scale: float expected"),
        ],
    )
    def test_a_wrong_file_is_one_line(self, tmp_path, text, said):
        file = tmp_path / "m.yaml"
        file.write_text(text)
        with pytest.raises(PixelsemError, match=said) as error:
            parse_models([str(file)])
        assert str(error.value).startswith(str(file))

    @pytest.mark.parametrize("texts", [["allconv", "allconv"], ["=w.pt"], [""]])
    def test_wrong_lists_are_refused(self, texts):
        with pytest.raises(PixelsemError, match="--models"):
            parse_models(texts)


def test_near_ties_are_decided_as_if_alone():
    class Counting(torch.nn.Module):
        """Two logits that differ by 1e-4, the second ahead only in batches of more than one."""

        def forward(self, x):
            ahead = torch.full((len(x),), 1e-4 if len(x) > 1 else -1e-4)
            return torch.stack([torch.zeros(len(x)), ahead], 1)

    classifier = Classifier(
        Counting(), name="c", class_names=("a", "b"), preprocessing=Preprocessing((SIZE, SIZE), SIZE), digest="d"
    )
    found = Predictor(classifier, device="cpu").predict([image(n, 0, 0) for n in range(5)])
    assert found.tolist() == [0] * 5
