"""``pixelsem defend jpeg`` and its like, and ``evaluate robustness``, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attack_stages
import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from pixelsem.cli.app import app
from pixelsem.images import jpeg_round_trip, read_image, write_image
from pixelsem.sources import open_images
from pixelsem.stage import Stage

#: The class is the colour of the brightest value anywhere: cat is red, dog green, ship blue.
MODEL = """
from torch import nn
from pixelsem.models import Classifier, Preprocessing

class Brightest(nn.Module):
    def forward(self, x):
        return x.amax((2, 3)) * 20

def make():
    names = ("cat", "dog", "ship")
    return Classifier(Brightest(), name="brightest", class_names=names, preprocessing=Preprocessing((10, 10), 10))
"""


def run(*arguments: str | Path, code: int = 0) -> Any:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done


def picture(colour: tuple[int, int, int], **pixel: tuple[int, int, int]) -> np.ndarray:
    pixels = np.full((10, 10, 3), colour, np.uint8)
    for number, value in enumerate(pixel.values()):
        pixels[4 + number, 5] = value
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, colour in enumerate([(200, 10, 40), (30, 180, 90)]):
        write_image(tmp_path / "imgs" / "sub" / f"{number}.png", picture(colour, dot=(0, 0, 255)))
    return tmp_path / "imgs"


@pytest.fixture
def attacked(tmp_path: Path) -> Path:
    """An attack stage of three cats: a plain one, one by a single red pixel, and one that the attack left alone."""
    (tmp_path / "model.py").write_text(MODEL)
    clean = {
        "plain": picture((150, 100, 100)),
        "fragile": picture((100, 120, 100), dot=(255, 0, 0)),
        "firm": picture((250, 0, 0)),
    }
    made = {
        "plain": picture((150, 100, 100), dot=(0, 255, 0)),
        "fragile": picture((100, 120, 100), dot=(200, 0, 0), other=(0, 255, 0)),
    }
    stage = tmp_path / "attack"
    info = attack_stages.info(name="brightest", counts={"searches": 3}, model=f"{tmp_path / 'model.py'}:make")
    records = [attack_stages.record(f"cat/{name}.png", to="dog" if name in made else None, pixels=[]) for name in clean]
    attack_stages.write_stage(stage, info, *records)
    for record in records:
        name = Path(record.id).stem
        write_image(stage / record.clean, clean[name])
        if record.adversarial:
            write_image(stage / record.adversarial, made[name])
    return stage


def rates(done: Any) -> dict[str, dict[str, tuple[int, int] | None]]:
    """Return (count, n) of every rate, by defence."""
    rows = json.loads(done.stdout)["tables"]["robustness"]["rows"]
    names = ("right", "before", "after", "survived")
    return {
        row["defense"]: {name: (row[name]["count"], row[name]["n"]) if row.get(name) else None for name in names}
        for row in rows
    }


def test_a_folder_becomes_a_stage_that_others_take(folder: Path, tmp_path: Path) -> None:
    done = run("defend", "jpeg", folder, "--quality", 30, "--run", tmp_path / "run")
    stage = Stage.open(Path(done.stdout.strip()))
    assert stage.info.kind == "defend"
    records = {record.id: record for record in stage.defend_records()}
    assert set(records) == {"sub/0.png", "sub/1.png"}
    for name, record in records.items():
        assert np.array_equal(read_image(stage.resolve(record.image)), jpeg_round_trip(read_image(folder / name), 30))
    assert [item.id for item in open_images(stage.path).items] == sorted(records)
    again = run("defend", "median", stage.path, "--run", tmp_path / "run")  # a row of transforms
    assert {record.id for record in Stage.open(Path(again.stdout.strip())).defend_records()} == set(records)


def test_a_sweep_makes_one_stage_per_value_and_resumes(folder: Path, tmp_path: Path) -> None:
    typed = ("defend", "jpeg", folder, "--sweep", "q=90:10:-40", "--run", tmp_path / "run")
    paths = run(*typed).stdout.split()
    assert [Stage.open(Path(path)).info.options["quality"] for path in paths] == [90, 50, 10]
    files = sorted((tmp_path / "run").rglob("*.png"))
    times = [file.stat().st_mtime_ns for file in files]
    assert run(*typed).stdout.split() == paths
    assert [file.stat().st_mtime_ns for file in files] == times
    # The stage of one value is that of the command without the sweep.
    assert run("defend", "jpeg", folder, "--quality", 50, "--run", tmp_path / "run").stdout.split() == [paths[1]]
    assert "leave -o out" in run(*typed, "-o", tmp_path / "x", code=2).output


def pixels_of(stage: Path) -> dict[str, bytes]:
    return {record.id: read_image(stage / record.image).tobytes() for record in Stage.open(stage).defend_records()}


def test_a_value_that_is_swept_twice_has_one_stage(folder: Path, tmp_path: Path) -> None:
    done = run("defend", "resize", folder, "--sweep", "gamma=2/1.5/2.0", "--run", tmp_path / "run")
    assert [Path(line).name.rpartition("-")[0] for line in done.stdout.split()] == [
        "defend-resize-2",
        "defend-resize-1.5",
    ]


def test_overwriting_spares_what_is_read(attacked: Path) -> None:
    before = {path: path.read_bytes() for path in attacked.rglob("*") if path.is_file()}
    done = run("defend", "jpeg", attacked, "-o", attacked, "--overwrite", code=2)
    assert done.stderr == (
        f"pixelsem: {attacked}: --overwrite would delete {attacked}, which the command reads; "
        "choose another folder with -o\n"
    )
    assert {path: path.read_bytes() for path in attacked.rglob("*") if path.is_file()} == before


def test_a_setting_is_given_or_swept(folder: Path, tmp_path: Path) -> None:
    sweep = ("defend", "jpeg", folder, "--sweep", "q=90/80", "--run", tmp_path / "run")
    done = run(*sweep, "--quality", "75", code=2)
    assert done.stderr == "pixelsem: --quality is swept by --sweep q=90/80; leave one of them out\n"
    assert not (tmp_path / "run").exists()
    run(*sweep, "--subsampling", "4:4:4")


@pytest.mark.parametrize("sweep", ["seed=0/1", "se=3", "seed=0:4:2"])
def test_a_seed_is_not_swept(folder: Path, tmp_path: Path, sweep: str) -> None:
    done = run("defend", "tvm", folder, "--sweep", sweep, "--run", tmp_path / "run", code=2)
    assert done.stderr.splitlines() == [
        "pixelsem: --sweep: seed cannot be swept, as --seed also draws --sample; run once per --seed"
    ]
    assert not (tmp_path / "run").exists()


def test_a_stage_of_another_seed_is_repeated_by_its_own_options(folder: Path, tmp_path: Path) -> None:
    typed = ("defend", "tvm", folder, "--run", tmp_path / "run", "--seed")
    first, second = (Path(run(*typed, seed).stdout.strip()) for seed in (0, 1))
    assert [Stage.open(path).info.options["seed"] for path in (first, second)] == [0, 1]
    run("defend", "tvm", "--config", second / "stage.yaml", "-o", tmp_path / "again")
    assert pixels_of(tmp_path / "again") == pixels_of(second) != pixels_of(first)


def test_images_of_several_sizes_and_a_damaged_one(folder: Path, tmp_path: Path) -> None:
    write_image(folder / "large.png", np.zeros((33, 18, 3), np.uint8))
    (folder / "broken.png").write_bytes(b"no image")
    done = run("defend", "avg-pool", folder, "-o", tmp_path / "out", code=1)
    assert "broken.png" in done.stderr
    stage = Stage.open(tmp_path / "out")
    assert {record.id for record in stage.defend_records()} == {"sub/0.png", "sub/1.png", "large.png"}
    assert read_image(tmp_path / "out" / "images" / "large.png").shape == (33, 18, 3)


@pytest.mark.parametrize("typed", [("--kernel", "4"), ("--sweep", "k=3/4"), ("--sweep", "size=3"), ("--sweep", "3")])
def test_what_is_wrong_is_one_line(folder: Path, tmp_path: Path, typed: tuple[str, str]) -> None:
    done = run("defend", "median", folder, *typed, "--run", tmp_path / "run", code=2)
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_attack_stage_keeps_its_pairs(attacked: Path, tmp_path: Path) -> None:
    run("defend", "median", attacked, "-o", tmp_path / "out")
    stage = Stage.open(tmp_path / "out")
    sources = {record.key: record for record in Stage.open(attacked).attack_records()}
    records = {record.id: record for record in stage.defend_records()}
    assert len(records) == 3
    assert records["cat/firm.png"].adversarial is None
    for record in records.values():
        source = next(each for each in sources.values() if each.id == record.id)
        assert (record.label, record.region, record.outcome) == (source.label, source.region, source.outcome)
    plain = records["cat/plain.png"]
    # The median takes single pixels away, from both.
    for name in (plain.image, plain.adversarial):
        assert np.array_equal(read_image(stage.resolve(str(name))), picture((150, 100, 100)))


def test_attacks_that_found_nothing_on_the_same_images_do_not_share_a_stage(attacked: Path, tmp_path: Path) -> None:
    """All that they differ in are their searches: the files to transform are the same."""
    sources = {}
    for number, target in enumerate((None, None, "dog")):
        info = attack_stages.info(name="brightest", pixels=number + 1)
        record = attack_stages.record("cat/firm.png", target=target)
        stage = attack_stages.write_stage(tmp_path / f"nothing-{number}", info, record)
        write_image(stage / record.clean, read_image(attacked / record.clean))
        sources[stage] = record
    made = {stage: run("defend", "jpeg", stage, "--run", tmp_path / "run").stdout.strip() for stage in sources}
    assert len(set(made.values())) == 3
    for source, record in sources.items():
        stage = Stage.open(Path(made[source]))
        assert (stage.path / stage.info.inputs["attack"]).resolve() == source.resolve()
        assert [each.key for each in stage.defend_records()] == [record.key]
        # The same command goes on with its own, wherever the attack lies by then.
        moved = source.rename(source.with_name(f"moved-{source.name}"))
        manifest = stage.manifest.read_bytes()
        assert run("defend", "jpeg", moved, "--run", tmp_path / "run").stdout.strip() == made[source]
        assert stage.manifest.read_bytes() == manifest
    # So do transforms of transformed stages.
    twice = {run("defend", "median", stage, "--run", tmp_path / "run").stdout for stage in made.values()}
    assert len(twice) == 3


@pytest.mark.parametrize(
    "names",
    [{"adversarial": ""}, {"clean": "."}, {"adversarial": "./"}, {"attempt": "images"}, {"clean": "other/plain.png"}],
)
def test_a_name_that_no_attack_gives_is_one_line(attacked: Path, tmp_path: Path, names: dict[str, str]) -> None:
    lines = [json.loads(line) for line in (attacked / "manifest.jsonl").read_text().splitlines()]
    lines[0] |= names
    (attacked / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run("defend", "jpeg", attacked, "--run", tmp_path / "run", code=2)
    (name,) = names.values()
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"pixelsem: {attacked / 'manifest.jsonl'}: {name!r} is no image as attacks write them")
    assert "pixelsem stage verify" in line
    assert not (tmp_path / "run").exists()


def test_success_after_defences(attacked: Path, tmp_path: Path) -> None:
    found = rates(
        run(
            "evaluate", "robustness", attacked, "--defense", "median:k=3/5", "--defense", "max-pool",
            "--json", "-q", "-o", tmp_path / "tables", "--format", "none",
        )
    )  # fmt: skip
    # The median makes a dog of the fragile cat, and takes the pixel of the attack from the plain one.
    for kernel in (3, 5):
        assert found[f"median:kernel={kernel}"] == {
            "right": (2, 3), "before": (1, 2), "after": (0, 2), "survived": (0, 1),
        }  # fmt: skip
    assert found["max-pool:kernel=3"] == {"right": (3, 3), "before": (2, 3), "after": (2, 3), "survived": (2, 2)}


def test_common_images_are_right_after_every_defence(attacked: Path, tmp_path: Path) -> None:
    typed = ("evaluate", "robustness", attacked, "--defense", "median", "--defense", "max-pool", "--common")
    found = rates(run(*typed, "--json", "-q", "-o", tmp_path / "tables"))
    assert found["max-pool:kernel=3"]["after"] == (1, 2)
    assert found["median:kernel=3"]["after"] == (0, 2)


def test_transformed_stages_give_the_same_as_a_transform_on_the_way(attacked: Path, tmp_path: Path) -> None:
    run("defend", "median", attacked, "--sweep", "k=3/5", "--run", tmp_path / "run")
    stages = sorted((tmp_path / "run").iterdir())
    after = rates(run("evaluate", "robustness", *stages, "--json", "-q", "-o", tmp_path / "one", "--format", "none"))
    typed = ("evaluate", "robustness", attacked, "--defense", "median:k=3/5", "--format", "none")
    assert after == rates(run(*typed, "--json", "-q", "-o", tmp_path / "two"))


def test_a_failed_attempt_counts_after_the_defence(attacked: Path, tmp_path: Path) -> None:
    """It did not fool the model, but its median does; on the way and transformed before."""
    stage = Stage.open(attacked)
    (firm,) = [record for record in stage.attack_records() if record.id == "cat/firm.png"]
    write_image(attacked / "attempts/original/cat/firm.png", picture((100, 120, 100), dot=(255, 0, 0)))
    stage.replace([(firm, msgspec.structs.replace(firm, attempt="attempts/original/cat/firm.png"))])
    typed = ("evaluate", "robustness", attacked, "--defense", "median", "--json", "-q", "--format", "none")
    found = rates(run(*typed, "-o", tmp_path / "one"))["median:kernel=3"]
    assert (found["before"], found["after"], found["survived"]) == ((1, 2), (1, 2), (0, 1))
    run("defend", "median", attacked, "-o", tmp_path / "out")
    (made,) = [record for record in Stage.open(tmp_path / "out").defend_records() if record.id == "cat/firm.png"]
    assert np.array_equal(read_image(tmp_path / "out" / str(made.attempt)), picture((100, 120, 100)))
    typed = ("evaluate", "robustness", tmp_path / "out", "--json", "-q", "--format", "none")
    assert rates(run(*typed, "-o", tmp_path / "two"))["median:kernel=3"] == found


def test_a_defence_must_come_from_somewhere(attacked: Path, tmp_path: Path) -> None:
    done = run("evaluate", "robustness", attacked, "-o", tmp_path / "tables", code=2)
    assert "no defence: give --defense" in done.stderr
    assert not (tmp_path / "tables").exists()


@pytest.mark.slow
def test_an_attack_on_a_defended_model_knows_of_the_defence(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    typed = ("attack", "de", folder, "-m", f"{tmp_path / 'model.py'}:make", "--labels", "predicted", "--seed", 1)
    small = ("--population", 30, "--generations", 2, "-q", "--run", tmp_path / "run")
    plain = Stage.open(Path(run(*typed, *small).stdout.strip()))
    defended = Stage.open(Path(run(*typed, *small, "--defense", "median").stdout.strip()))
    assert defended.info.identity != plain.info.identity
    assert str((defended.info.model or {})["name"]).endswith("+median:kernel=3")
    assert not any(record.success for record in defended.attack_records())  # no single pixel passes a median
    found = rates(run("evaluate", "robustness", defended.path, "--json", "-q", "-o", tmp_path / "tables"))
    assert found["median:kernel=3"]["right"] == (2, 2)
