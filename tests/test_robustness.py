"""Success after defences: the counting, the curves, and the evaluator behind a transform."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import attack_stages
import pytest
import torch
from test_cli_defend_transform import MODEL, picture, run
from torch import nn

from pixelsem.errors import PixelsemError
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.images import write_image
from pixelsem.metrics.robustness import DONG2020, Tried, right_everywhere, survival
from pixelsem.metrics.setups import Setup
from pixelsem.models.classifier import Classifier, Preprocessing
from pixelsem.models.defended import put_behind
from pixelsem.models.options import load
from pixelsem.models.settings import ModelOptions
from pixelsem.report.robustness import RobustnessRow, curves_of, robustness_table
from pixelsem.transforms.layer import apply
from pixelsem.transforms.specs import Defense, parse_defense, parse_defenses


def classifier() -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    preprocessing = Preprocessing((12, 12), 12, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
    made = Classifier(network, name="tiny", class_names=("a", "b", "c"), preprocessing=preprocessing, digest="d" * 64)
    return made.eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def behind(*texts: str) -> Classifier:
    return put_behind(classifier(), [parse_defense(text) for text in texts])


def test_a_classifier_behind_a_defence_sees_the_transformed_image() -> None:
    defenses = [parse_defense("jpeg:q=30"), parse_defense("avg-pool")]
    plain, defended = classifier(), behind("jpeg:q=30", "avg-pool")
    with torch.no_grad():
        assert torch.equal(defended(images() / 255), plain(apply(images(), defenses) / 255))
        assert not torch.equal(defended(images() / 255), plain(images() / 255))


def test_a_defence_is_part_of_the_models_identity() -> None:
    digests = {behind(*texts).digest for texts in ((), ("jpeg:q=30",), ("jpeg:q=31",), ("jpeg:q=30", "median"))}
    assert len(digests) == 4
    assert behind("jpeg:quality=30").digest == behind("jpeg:q=30").digest
    assert behind("jpeg:q=30", "median").digest != behind("median", "jpeg:q=30").digest
    assert behind("jpeg:q=30", "median").name == "tiny+jpeg:quality=30+median:kernel=3"
    assert behind().name == "tiny"


@pytest.mark.parametrize("text", ["jpeg:q=30", "median", "tvm:iterations=20", "max-pool", "resize"])
def test_candidates_of_a_defended_model_are_scored_on_the_transformed_image(text: str) -> None:
    defended = behind(text)
    evaluator = Evaluator(defended, device="cpu", batch_size=4)
    evaluator.attach(images())
    random = torch.Generator().manual_seed(2)
    edits = Edits(
        torch.tensor([0, 1, 2, 0, 1]),
        torch.randint(0, 144, (5, 2), generator=random),
        torch.randint(0, 256, (5, 2, 3), dtype=torch.uint8, generator=random),
    )
    rendered = edits.render(images())
    known = classifier()(apply(rendered, [parse_defense(text)]) / 255)
    assert torch.allclose(evaluator.score(edits), known, atol=1e-5)
    assert torch.allclose(evaluator.confirm(rendered), known, atol=1e-5)
    assert evaluator.way(edits).evaluator == "dense"


def test_a_defended_model_is_never_scored_incrementally() -> None:
    with pytest.raises(PixelsemError, match="scored dense"):
        Evaluator(behind("median"), device="cpu", scorer="incremental")
    with pytest.raises(PixelsemError, match="scored dense"):
        Evaluator(behind("median"), device="cpu").explain(1)


def test_gradients_come_from_the_defended_model() -> None:
    unit = images() / 255

    def gradient_of(model: Classifier, at: torch.Tensor) -> torch.Tensor:
        return Evaluator(model, device="cpu").loss_and_gradient(at, lambda logits, _: logits[:, 0]).gradients

    # Straight through: the plain model's gradient at the transformed image.
    at = apply(images(), [parse_defense("bit-depth:d=2")]) / 255
    assert torch.allclose(gradient_of(behind("bit-depth:d=2"), unit), gradient_of(classifier(), at), atol=1e-6)
    # Its own: averaging spreads it.
    pooled = gradient_of(classifier(), apply(images(), [parse_defense("avg-pool")]) / 255)
    assert not torch.allclose(gradient_of(behind("avg-pool"), unit), pooled, atol=1e-4)


def test_model_options_take_defences() -> None:
    options = ModelOptions(model="allconv", weights="none", defense=("jpeg:q=55", "median:k=3"))
    made = load(options)
    assert made.defense is not None
    assert [each.text for each in made.defense.defenses] == ["jpeg:quality=55", "median:kernel=3"]
    assert ModelOptions.from_dict(options.to_dict()) == options
    with pytest.raises(PixelsemError, match="is no transform"):
        ModelOptions(defense=("gif",))


def tried(name: str, before: bool, right: bool, after: bool) -> Tried:
    return Tried((name, "cat"), before, right, after)


def test_only_images_right_after_the_defence_count() -> None:
    found = survival(
        [
            tried("1", True, True, True),
            tried("2", True, True, False),
            tried("3", False, True, False),
            tried("4", True, False, True),  # wrong by the defence alone: its success says nothing
            tried("5", True, True, True),
        ]
    )
    assert found.right is not None and (found.right.successes, found.right.n) == (4, 5)  # noqa: PT018
    assert found.before is not None and (found.before.successes, found.before.n) == (3, 4)  # noqa: PT018
    assert found.after is not None and (found.after.successes, found.after.n) == (2, 4)  # noqa: PT018
    assert found.survived is not None and (found.survived.successes, found.survived.n) == (2, 3)  # noqa: PT018


def test_no_image_that_counts_is_no_rate() -> None:
    found = survival([tried("1", True, False, True)])
    assert found.right is not None
    assert found.right.value == 0
    assert (found.before, found.after, found.survived) == (None, None, None)


def test_images_right_in_every_row() -> None:
    first = [tried("1", True, True, True), tried("2", True, True, True), tried("3", True, False, True)]
    second = [tried("2", True, True, True), tried("3", True, True, True)]
    assert right_everywhere([first, second]) == {("2", "cat")}
    assert right_everywhere([]) == set()


def row(defense: Defense, attack: str = "i-fgm", delta: int = 4, *, earlier: tuple[str, ...] = ()) -> RobustnessRow:
    setup = Setup("net", attack, {"name": "net"}, {"delta": delta}, None, 0)
    found = survival([tried("1", True, True, True)])
    return RobustnessRow(setup, "original", "untargeted", defense, found, [parse_defense(text) for text in earlier])


def test_curves_are_of_several_strengths_of_one_transform() -> None:
    defenses = [*parse_defenses("jpeg:q=90:10:-40"), *parse_defenses("jpeg:q=50/60,sub=4:4:4"), parse_defense("tvm")]
    curves = curves_of([row(defense) for defense in defenses])
    assert {name: len(own) for name, own in curves.items()} == {"jpeg": 3, "jpeg:subsampling=4:4:4": 2}
    in_a_row = row(parse_defense("tvm:w=0.3"), earlier=("jpeg:q=90",))
    assert "tvm" not in curves_of([*map(row, defenses), in_a_row])


def test_the_papers_numbers_stand_beside_the_same_settings_alone() -> None:
    def published(*rows: RobustnessRow) -> list[object]:
        table = robustness_table(rows, 0.95)
        keys = [column.key for column in table.columns]
        return [cells[keys.index("dong2020")] for cells in table.rows] if "dong2020" in keys else []

    assert published(row(parse_defense("jpeg:q=55")), row(parse_defense("jpeg:q=55"), "sai-fgm")) == [0.684, 0.914]
    assert published(row(parse_defense("jpeg:q=56"))) == []
    assert published(replace(row(parse_defense("jpeg:q=55")), region="foreground")) == []
    assert published(replace(row(parse_defense("jpeg:q=55")), goal="targeted")) == []
    assert published(row(parse_defense("jpeg:q=55"), earlier=("median:k=5",))) == []
    assert published(row(parse_defense("jpeg:q=55,sub=4:4:4"))) == []
    for attack, _, text in DONG2020:  # every one can be met
        assert parse_defense(text).text == text
        assert attack in ("i-fgm", "sai-fgm")


def test_the_figure_has_a_panel_per_transform_and_a_line_per_attack() -> None:
    pytest.importorskip("matplotlib")
    from pixelsem.report.robustness import draw_robustness

    defenses = [*parse_defenses("jpeg:q=90:10:-40"), *parse_defenses("avg-pool:k=3/5")]
    rows = [row(defense, attack) for attack in ("i-fgm", "sai-fgm") for defense in defenses]
    figure = draw_robustness(rows)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["jpeg", "avg-pool"]
    assert [len(axes.lines) for axes in panels] == [2, 2]
    assert sorted(panels[0].lines[0].get_xdata()) == [10, 50, 90]


# --- stages of `pixelsem defend`


def write_attack(path: Path, region: str, *names: str, **options: object) -> Path:
    """Write an attack stage of cats, each taken for a dog: by one pixel ("spot…"), which no median leaves, or all."""
    (path.parent / "model.py").write_text(MODEL)
    info = attack_stages.info(
        region, name="brightest", model=f"{path.parent / 'model.py'}:make", counts={"searches": len(names)}
    )
    records = [attack_stages.record(f"cat/{name}.png", region, to="dog", pixels=[]) for name in names]
    info.options.update(options)
    attack_stages.write_stage(path, info, *records)
    for name, record in zip(names, records, strict=True):
        clean = picture((150, 100, 100))
        write_image(path / record.clean, clean)
        attacked = picture((150, 100, 100), dot=(0, 255, 0)) if name.startswith("spot") else picture((100, 150, 100))
        write_image(path / str(record.adversarial), attacked)
    return path


def defend(stage: Path, name: str = "median", *typed: str) -> Path:
    made = stage.with_name(f"{name}-{stage.name}")
    run("defend", name, stage, *typed, "-q", "-o", made)
    return made


def table_of(*typed: str | Path) -> list[tuple[str, str, tuple[int, int]]]:
    """Return the rows of ``evaluate robustness``: region, defence and success after it, sorted."""
    out = Path(str(typed[0])).parent / "tables"
    done = run("evaluate", "robustness", *typed, "--json", "-q", "--format", "none", "-o", out)
    plain = json.loads(done.stdout)
    assert plain["failures"] == {}
    found = [(row["region"], row["defense"], row["after"]) for row in plain["tables"]["robustness"]["rows"]]
    return sorted((region, defense, (after["count"], after["n"])) for region, defense, after in found)


@pytest.mark.parametrize("first", ["original", "background"])
def test_regions_attacked_one_by_one_and_transformed_are_evaluated_together(tmp_path: Path, first: str) -> None:
    """The stages of one search in several regions are one setup, and a stage holds the images of one of them."""
    one = write_attack(tmp_path / "one", first, "spot1", "all1", "all2")
    two = write_attack(tmp_path / "two", "foreground", "spot1", "spot2", "all1")
    known = sorted([(first, "median:kernel=3", (2, 3)), ("foreground", "median:kernel=3", (1, 3))])
    assert table_of(one, two, "--defense", "median") == known
    assert table_of(defend(one), defend(two)) == known
    # Beside a defence of all, and where only one of the regions was transformed before.
    other = [(region, "median:kernel=5", after) for region, _, after in known]
    assert table_of(tmp_path / "median-one", tmp_path / "median-two", "--defense", "median:k=5") == sorted(
        known + other
    )
    mixed = [*other, (first, "median:kernel=3", (2, 3))]
    assert table_of(tmp_path / "median-one", two, "--defense", "median:k=5") == sorted(mixed)
    done = run("evaluate", "robustness", tmp_path / "median-one", two, code=2)
    assert f"{two}: no defence: give --defense" in done.stderr


def test_stages_of_several_images_are_one_row(tmp_path: Path) -> None:
    one = write_attack(tmp_path / "one", "original", "spot1", "all1", "all2")
    two = write_attack(tmp_path / "two", "original", "spot3", "spot4", "all3", limit=3)
    known = [("original", "median:kernel=3", (3, 6))]
    assert table_of(one, two, "--defense", "median") == known
    assert table_of(defend(one), defend(two)) == known
    # Of a stage without transformed images nothing is said, and that is.
    done = run("evaluate", "robustness", tmp_path / "median-one", two, "--format", "none", "-o", tmp_path / "tables")
    assert f"{two}: no stage of its images after median:kernel=3 was given; not in that row" in done.stderr
    (line,) = json.loads((tmp_path / "tables" / "robustness.json").read_text(encoding="utf-8"))["rows"]
    assert (line["after"]["count"], line["after"]["n"]) == (2, 3)


def test_transforms_in_a_row_are_all_named(tmp_path: Path) -> None:
    attack = write_attack(tmp_path / "one", "original", "spot1", "all1")
    in_a_row = defend(defend(attack), "max-pool")
    # Max pooling alone keeps the pixel that the median takes away.
    expected = [("original", "max-pool:kernel=3", (2, 2)), ("original", "median:kernel=3+max-pool:kernel=3", (1, 2))]
    assert table_of(in_a_row, defend(attack, "max-pool")) == expected
    thrice = defend(in_a_row, "jpeg", "--quality", "90")
    assert table_of(thrice) == [("original", "median:kernel=3+max-pool:kernel=3+jpeg:quality=90", (1, 2))]


def test_stages_of_some_of_the_images_are_of_these_alone(tmp_path: Path) -> None:
    attack = write_attack(tmp_path / "one", "original", "all1", "all2", "spot1", "spot2", "spot3")
    run("defend", "median", attack, "--limit", "3", "-o", tmp_path / "some")
    assert table_of(tmp_path / "some") == [("original", "median:kernel=3", (2, 3))]
    done = run("evaluate", "robustness", tmp_path / "some", "--format", "none", "-o", tmp_path / "tables")
    assert "some: holds 3 of 5 attacked searches of " in done.stderr
    # Where all were asked for, what is missing is a failure: one, not one per image.
    whole = defend(attack)
    manifest = whole / "manifest.jsonl"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:3]))
    done = run("evaluate", "robustness", whole, "--json", "--format", "none", "-o", tmp_path / "tables", code=1)
    failures = json.loads(done.stdout)["failures"]
    assert list(failures) == [str(whole)]
    assert failures[str(whole)].endswith("; run its command again")


def test_all_that_a_model_is_behind_is_tried_by_default(tmp_path: Path) -> None:
    attack = write_attack(tmp_path / "one", "original", "spot1", "all1", defense=["median:k=3", "max-pool:k=3"])
    assert table_of(attack) == [("original", "median:kernel=3+max-pool:kernel=3", (1, 2))]


@pytest.mark.parametrize("option", ["delta: [1]", "delta: x", "delta: .nan", "delta: true", "pixels: 1.5"])
def test_a_damaged_number_of_an_attack_is_one_line(tmp_path: Path, option: str) -> None:
    attack = write_attack(tmp_path / "one", "original", "spot1", delta=4.0)
    file = attack / "stage.yaml"
    name = option.partition(":")[0]
    lines = [f"  {option}" if line.strip().startswith(f"{name}:") else line for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines) + "\n")
    done = run("evaluate", "robustness", attack, "--defense", "median", "-o", tmp_path / "tables", code=2)
    (line,) = done.stderr.strip().splitlines()
    assert f"{file}: `options: {name}` is no number (" in line
    assert line.endswith("; correct it there")
    assert not (tmp_path / "tables").exists()


def test_a_damaged_setting_of_a_transform_is_one_line(tmp_path: Path) -> None:
    made = defend(write_attack(tmp_path / "one", "original", "spot1"))
    file = made / "stage.yaml"
    file.write_text(file.read_text().replace("kernel: 3", "kernel: x"))
    done = run("evaluate", "robustness", made, "-o", tmp_path / "tables", code=2)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"pixelsem: {file}: ")
    assert line.endswith("kernel: int expected, 'x' given; correct it there")
