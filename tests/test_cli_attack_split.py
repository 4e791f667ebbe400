"""``pixelsem attack split`` as it is typed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_cli_vulnerability import MODEL, SIDE, brightest, call, middle, scene

from pixelsem.images import read_image, write_image
from pixelsem.records import AttackRecord, SegmentRecord
from pixelsem.stage import Stage, StageInfo, open_stage


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished attack with three pixels on four images; the folder with photos, masks and model is entered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    Path("model.py").write_text(MODEL)
    for number in range(4):
        write_image(tmp_path / f"photos/red/{number}.png", scene(number, 230))
        write_image(tmp_path / f"masks/red/{number}.png", middle())
    return attack("--seed", "3")


def attack(*options: str) -> Path:
    how = ["--pixels", "3", "--population", "40", "--generations", "3", "--evaluator", "dense", "--batch-size", "64"]
    done = call("attack", "de", "photos", "-m", "model.py:make", *how, *options)
    return Path(done.stdout.strip())


def split(*arguments: str | Path, code: int = 0) -> Any:
    return call("attack", "split", *arguments, code=code)


def segmentation(*flagged: int) -> Path:
    """Make a segmentation stage of the masks, those of some images flagged."""
    path = Path("pixelsem-run/segment-a")
    info = StageInfo("segment", "segment images", "abc", {}, {"images": os.path.relpath("photos", path)})
    made = Stage.create(path, info)
    shutil.copytree("masks", path / "masks")
    for number in range(4):
        name = f"red/{number}.png"
        flags = ["degenerate-foreground"] if number in flagged else []
        made.append(SegmentRecord(name, name, f"masks/{name}", "binary", 0.25, flags))
    return path


def records(stage: str | Path) -> dict[str, AttackRecord]:
    return {record.id: record for record in open_stage(stage).attack_records()}


def noise(folder: Path, record: AttackRecord) -> NDArray[np.int64]:
    """Return what was changed in an attacked image, from the pixels that its record lists."""
    changed = np.zeros((SIDE, SIDE, 3), np.int64)
    for pixel in record.pixels:
        changed[pixel.y, pixel.x] = np.subtract(pixel.to, pixel.from_)
    return changed


def test_both_parts_add_up_and_are_scored_by_the_same_model(stage: Path) -> None:
    parts = {}
    for keep in ("foreground", "background"):
        done = split(stage, "--keep", keep, "--masks", "masks")
        parts[keep] = Path(done.stdout.strip())
        assert parts[keep].name.startswith(f"attack-split-{keep}-")
        hits = sum(record.success for record in records(parts[keep]).values())
        assert f"{hits} of 4 split images (the successes of {stage}) still fool the model" in done.stderr
    whole = records(stage)
    inner, outer = records(parts["foreground"]), records(parts["background"])
    assert set(inner) == set(outer) == {name for name, record in whole.items() if record.success}
    assert len(inner) == 4
    for name, record in whole.items():
        found = noise(parts["foreground"], inner[name]) + noise(parts["background"], outer[name])
        assert np.array_equal(found, noise(stage, record))
        for keep, made in (("foreground", inner[name]), ("background", outer[name])):
            clean = read_image(parts[keep] / made.clean).astype(int)
            kept = (clean + noise(parts[keep], made)).astype(np.uint8)
            assert made.success == (brightest(kept) != 0)
            assert made.label == "red"
            if made.adversarial is not None:
                assert np.array_equal(read_image(parts[keep] / made.adversarial), kept)
    about = open_stage(parts["background"]).info
    assert about.model == open_stage(stage).info.model
    assert (parts["background"] / about.inputs["attack"]).resolve() == stage.resolve()
    assert about.counts is not None
    assert (about.counts["searched"], about.counts["successes"]) == (4, sum(r.success for r in outer.values()))


def test_evaluate_takes_what_comes_out(stage: Path) -> None:
    parts = [split(stage, "--keep", keep, "--masks", "masks").stdout.strip() for keep in ("foreground", "background")]
    made = json.loads(call("evaluate", *parts, "--json").stdout)
    rows = {row["region"]: row for row in made["tables"]["success"]["rows"]}
    for part, region in zip(parts, ("foreground", "background"), strict=True):
        assert rows[region]["untargeted1"]["count"] == sum(record.success for record in records(part).values())
        assert rows[region]["untargeted1"]["n"] == 4
    (paired,) = made["tables"]["paired"]["rows"]
    assert paired["n"] == 4
    assert rows["foreground"]["attack"] == "split"


def test_equal_areas_are_equal(stage: Path) -> None:
    for keep in ("foreground", "background"):
        made = records(split(stage, "--keep", keep, "--equal-area", "--masks", "masks").stdout.strip())
        assert {record.region_pixels for record in made.values()} == {16}


def test_the_newest_masks_of_the_same_images_are_taken(stage: Path) -> None:
    assert "holds no masks; give --masks" in split(stage, code=2).stderr
    path = segmentation()
    done = split(stage)
    assert f"masks: {path}" in done.stderr
    assert {record.region_pixels for record in records(done.stdout.strip()).values()} == {16}


def test_the_stages_own_masks_come_first(stage: Path) -> None:
    both = attack("--region", "all", "--masks", "masks")
    done = split(both)
    assert {record.region_pixels for record in records(done.stdout.strip()).values()} == {16}
    assert "masks" not in open_stage(done.stdout.strip()).info.inputs


def test_masks_that_were_flagged_stay_so_in_the_attack(stage: Path) -> None:
    masks = segmentation(2)
    both = attack("--region", "all", "--masks", str(masks))
    for own in ((), ("--masks", masks)):
        made = records(split(both, *own).stdout.strip())
        assert {name: record.outcome for name, record in made.items()} == {
            f"red/{number}.png": "flagged-mask" if number == 2 else "attacked" for number in range(4)
        }
    used = split(both, "--flagged", "use").stdout.strip()
    assert {record.outcome for record in records(used).values()} == {"attacked"}


def test_its_own_stage_file_repeats_it(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Path(split(stage, "--keep", "background", "--masks", "masks").stdout.strip())
    again = Path(split("--config", first / "stage.yaml", "-o", "again").stdout.strip())
    assert records(again) == records(first)
    before = first.stat().st_mtime_ns, (first / "manifest.jsonl").read_bytes()
    done = split(stage, "--keep", "background", "--masks", "masks")
    assert Path(done.stdout.strip()) == first
    assert "4 images were split before" in done.stderr
    assert (first / "manifest.jsonl").read_bytes() == before[1]


def test_another_model_is_refused_and_a_moved_one_found(stage: Path) -> None:
    shutil.move("model.py", "moved.py")
    assert "model.py" in split(stage, "--masks", "masks", code=2).stderr
    assert len(records(split(stage, "--masks", "masks", "-m", "moved.py:make").stdout.strip())) == 4
    Path("moved.py").write_text(MODEL.replace("20.0", "21.0"))
    assert "is not the model that" in split(stage, "--masks", "masks", "-m", "moved.py:make", code=2).stderr


def test_what_cannot_be_split_is_told(stage: Path) -> None:
    part = attack("--region", "foreground", "--masks", "masks")
    assert "no attack on whole images" in split(part, "--masks", "masks", code=2).stderr
    assert "exclude each other" in split(stage, "--equal-area", "--halves", code=2).stderr
    assert "--halves takes attention maps" in split(stage, "--halves", "--masks", "masks", code=2).stderr
    assert "one at a time" in split(stage, part, code=2).stderr
    (Path("masks/red/2.png")).unlink()
    done = split(stage, "--masks", "masks", code=1)
    assert "red/2.png: has no mask in masks" in done.stderr
    assert len(records(done.stdout.strip())) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resize": "squish"}, "`options: resize` is none of crop, squash (squish); correct it there"),
        ({"resize": ["crop"]}, "`options: resize` is none of crop, squash (['crop']); correct it there"),
        ({"scale": "much"}, "--scale: float expected"),
        ({"arch": 3}, "--arch: str expected"),
    ],
)
def test_damaged_options_of_the_attack_are_one_line_that_names_the_file(
    stage: Path, change: dict[str, Any], said: str
) -> None:
    opened = open_stage(stage)
    opened.save(options=opened.info.options | change)
    (line,) = split(stage, "--masks", "masks", code=2).stderr.splitlines()[-1:]
    assert f"{stage / 'stage.yaml'}: {said}" in line
    assert not list(Path("pixelsem-run").glob("attack-split*"))
