from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from attack_stages import info, record, write_stage

from pixelsem.images import write_image

SIZE = 12


@pytest.fixture
def call(evaluate_in):
    return evaluate_in("distortion")


def make_stage(path: Path, levels: dict[str, int | None], *, tries: bool = False, **options) -> Path:
    """Write a stage whose images had the value 100: one row of a success was raised by its level; None is a failure."""
    records = []
    for image, level in levels.items():
        tried = [{"x": 3, "y": 4, "from": [100] * 3, "to": [103, 100, 104]}] if tries and level is None else []
        to = None if level is None else "dog"
        records.append(record(image, to=to, height=SIZE, width=SIZE, **({"pixels": tried} if to is None else {})))
    write_stage(path, info(**options), *records)
    for one, level in zip(records, levels.values(), strict=True):
        clean = np.full((SIZE, SIZE, 3), 100, np.uint8)
        write_image(path / one.clean, clean)
        if level is not None:
            clean[2] += level
            write_image(path / one.adversarial, clean)
    return path


def rows_of(folder: Path, name: str = "distortion") -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_norms_are_means_over_successes_and_the_rate_is_over_all_attacked(call, tmp_path):
    stage = make_stage(tmp_path / "a", {"cat/1.png": 10, "cat/2.png": 30, "cat/3.png": None})
    assert call(stage, "-o", tmp_path / "out").exit_code == 0
    (row,) = rows_of(tmp_path / "out")
    values = 3 * SIZE
    assert (row["asr_count"], row["asr_n"], row["images"], row["over"]) == ("2", "3", "2", "successes")
    assert float(row["l0_pixels"]) == SIZE
    assert float(row["l0_values"]) == values
    assert float(row["l1_0_to_255"]) == 20 * values
    assert float(row["l1_0_to_1"]) == pytest.approx(20 * values / 255)
    assert float(row["l2_0_to_255"]) == pytest.approx(20 * math.sqrt(values))
    assert float(row["linf_0_to_1"]) == pytest.approx(20 / 255)
    assert 0 < float(row["ssim"]) < 1
    medians = {row["measure"]: float(row["median"]) for row in rows_of(tmp_path / "out", "norms")}
    assert medians["linf_0_to_255"] == 20


def test_failed_tries_count_where_their_pixels_are_known(call, tmp_path):
    stage = make_stage(tmp_path / "a", {"cat/1.png": 10, "cat/2.png": None}, tries=True)
    assert call(stage, "-o", tmp_path / "out").exit_code == 0
    successes, every = rows_of(tmp_path / "out")
    assert (successes["over"], every["over"]) == ("successes", "all tries")
    assert float(successes["l0_pixels"]) == SIZE
    assert float(every["l0_pixels"]) == (SIZE + 1) / 2
    assert float(every["l1_0_to_255"]) == (10 * 3 * SIZE + 7) / 2
    assert float(every["l2_0_to_255"]) == pytest.approx((10 * math.sqrt(3 * SIZE) + 5) / 2)


def test_targets_of_one_image_are_one_image(call, tmp_path):
    levels = {"cat/1.png": 10, "cat/2.png": 30}
    once = make_stage(tmp_path / "once", levels)
    tried = [(image, target) for image in levels for target in ("dog", "ship")]
    records = [record(image, to="dog", height=SIZE, width=SIZE, target=target) for image, target in tried]
    more = write_stage(tmp_path / "more", info(targeted=True), *records)
    for folder in ("clean", "images"):
        shutil.copytree(once / folder, more / folder)
    found = []
    for stage in (once, more):
        assert call(stage, "-o", tmp_path / "out").exit_code == 0
        (row,) = rows_of(tmp_path / "out")
        norms = rows_of(tmp_path / "out", "norms")
        found.append((row["images"], [[one[key] for key in ("mean", "mean_low", "mean_high", "n")] for one in norms]))
    assert found[0] == found[1]
    assert found[0][0] == "2"


def test_a_constraint_that_is_not_the_usual_one_is_told(call, tmp_path):
    stages = [make_stage(tmp_path / one, {"cat/1.png": 10}, constraint=one) for one in ("encode", "revert")]
    assert call(*stages, "-o", tmp_path / "out").exit_code == 0
    assert [row["variant"] for row in rows_of(tmp_path / "out")] == ["", "constraint=revert"]


def test_common_counts_images_that_every_stage_attacked(call, tmp_path):
    first = make_stage(tmp_path / "a", {"cat/1.png": 10, "cat/2.png": 50})
    second = make_stage(tmp_path / "b", {"cat/2.png": 20, "cat/3.png": 20}, name="nin")
    result = call(first, second, "--common", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert [(r["network"], r["asr_n"], float(r["linf_0_to_255"])) for r in rows_of(tmp_path / "out")] == [
        ("allconv", "1", 50), ("nin", "1", 20),
    ]  # fmt: skip
    assert "1 images were attacked in every row" in result.stderr


def test_without_common_images_it_says_so(call, tmp_path):
    first, second = (
        make_stage(tmp_path / "a", {"cat/1.png": 1}),
        make_stage(tmp_path / "b", {"cat/2.png": 1}, name="nin"),
    )
    result = call(first, second, "--common")
    assert result.exit_code == 2
    assert "no image was attacked in every row" in result.stderr


def test_what_was_misclassified_is_no_trial(call, tmp_path):
    stage = make_stage(tmp_path / "a", {"cat/1.png": 10})
    from pixelsem.stage import Stage

    Stage.open(stage).append(record("cat/9.png", outcome="misclassified", height=SIZE, width=SIZE))
    assert call(stage, "-o", tmp_path / "out").exit_code == 0
    assert rows_of(tmp_path / "out")[0]["asr_n"] == "1"


def test_a_missing_image_is_named_and_the_others_count(call, tmp_path):
    stage = make_stage(tmp_path / "a", {"cat/1.png": 10, "cat/2.png": 30})
    (stage / "images" / "original" / "cat" / "2.png").unlink()
    result = call(stage, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert "2.png" in result.stderr
    assert "Traceback" not in result.stderr
    (row,) = json.loads(result.stdout)["tables"]["distortion"]["rows"]
    assert (row["images"], row["asr"]["n"], row["linf_0_to_255"]) == (1, 2, 10)


def test_an_image_of_another_size_is_refused(call, tmp_path):
    stage = make_stage(tmp_path / "a", {"cat/1.png": 10})
    write_image(stage / "images" / "original" / "cat" / "1.png", np.zeros((9, 9, 3), np.uint8))
    result = call(stage, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "is 9×9; the manifest says 12×12" in result.stderr


def test_no_attack_stage_is_one_line(call, tmp_path):
    result = call(tmp_path)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "no stage" in result.stderr
