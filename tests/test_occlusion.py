from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from attack_stages import CLASSES
from conftest import problem
from test_transfer import CODE

from pixelsem.images import write_image
from pixelsem.metrics.occlusion import Seen, fill, occlusion
from pixelsem.records import SegmentRecord
from pixelsem.stage import Stage, StageInfo

SIZE = 8


@pytest.fixture
def call(evaluate_in):
    return evaluate_in("occlusion")


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path, Path]:
    """Return images, masks and a model file: red squares (cats) on a blue ground, the mask on the square or beside it.

    The network answers with the channel of the highest mean: red a cat, blue a ship.
    """
    (tmp_path / "nets.py").write_text(CODE)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    models = tmp_path / "models.yaml"
    net = {"model": "nets.py:brightest", "input-size": SIZE, "classes": "classes.txt"}
    models.write_text(json.dumps({"brightest": net}))
    for number, (red, beside) in enumerate([(255, False), (255, True), (60, False)], 1):
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        image[:, :, 2] = 40
        image[:4, :4] = (red, 0, 0)
        mask = np.zeros((SIZE, SIZE), np.uint16)
        mask[:4, 4:] = 65535 if beside else 5000
        mask[:4, :4] = 0 if beside else 65535
        write_image(tmp_path / "images" / "cat" / f"{number}.png", image)
        write_image(tmp_path / "masks" / "cat" / f"{number}.png", mask)
    return tmp_path / "images", tmp_path / "masks", models


def row_of(folder: Path) -> dict[str, str]:
    with (folder / "occlusion.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return row


def test_filled_images_add_up_to_the_image():
    rng = np.random.default_rng(0)
    image, region = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8), rng.random((5, 6)) < 0.5
    without, alone = fill(image, region)
    assert np.array_equal(without + alone, image)
    assert not without[region].any()
    assert not alone[~region].any()
    assert (fill(image, region, (1, 2, 3))[0][region] == (1, 2, 3)).all()


def test_counting_by_hand():
    seen = [Seen(True, False, True, 0.5), Seen(True, True, True, 0.0), Seen(False, True, False, 0.1)]
    found = occlusion(seen)
    rates = (found.clean, found.without, found.alone)
    assert [(rate.successes, rate.n) for rate in rates] == [(2, 3), (2, 3), (2, 3)]
    assert found.drop_without.difference == 0
    assert (found.drop_without.only_first, found.drop_without.only_second) == (1, 1)
    assert (found.area, found.empty) == (pytest.approx(0.2), 1)
    assert occlusion([]) is None


def test_accuracies_are_those_that_the_regions_leave(call, tmp_path, folders):
    images, masks, models = folders
    # Clean: 255·16 red against 40·48 blue is a cat; the third, 60·16 = 960 against 1920, is a ship.
    # Without the square only blue is left; without the place beside it the cat stays. Alone it is the other way round.
    result = call(masks, "-i", images, "--models", models, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    row = row_of(tmp_path / "out")
    assert (row["clean_count"], row["without_count"], row["alone_count"], row["clean_n"]) == ("2", "1", "2", "3")
    assert float(row["change_without"]) == pytest.approx(-1 / 3)
    assert float(row["change_without_low"]) < -1 / 3 < float(row["change_without_high"])
    assert float(row["area"]) == pytest.approx(0.25)
    assert (tmp_path / "out" / "occlusion.png").is_file()


def test_tau_moves_the_region(call, tmp_path, folders):
    images, masks, models = folders
    for tau, area in ((0.05, (0.5 + 0.25 + 0.5) / 3), (0.2, 0.25)):
        done = call(masks, "-i", images, "--models", models, "--tau", tau, "--json", "--format", "none")
        (row,) = json.loads(done.stdout)["tables"]["occlusion"]["rows"]
        assert (row["tau"], row["area"]) == (tau, pytest.approx(area))


def test_predicted_labels_are_told(call, tmp_path, folders):
    images, masks, models = folders
    result = call(masks, "-i", images, "--models", models, "--labels", "predicted", "-o", tmp_path / "out")
    assert row_of(tmp_path / "out")["clean_count"] == "3"
    assert "the label of 3 images is the model's own clean prediction" in result.stderr


def test_a_mask_folder_needs_its_images(call, folders):
    result = call(folders[1], "--models", folders[2])
    assert result.exit_code == 2
    assert "give them with --images" in result.stderr


def test_a_mask_of_another_size_is_named_and_the_others_count(call, tmp_path, folders):
    images, masks, models = folders
    write_image(masks / "cat" / "2.png", np.full((3, 3), 65535, np.uint16))
    result = call(masks, "-i", images, "--models", models, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "the mask is 3×3, its image 8×8" in result.stderr
    assert row_of(tmp_path / "out")["clean_n"] == "2"


def test_images_without_a_mask_are_left_out(call, tmp_path, folders):
    images, masks, models = folders
    (masks / "cat" / "3.png").unlink()
    result = call(masks, "-i", images, "--models", models, "-o", tmp_path / "out")
    assert "1 images have no mask" in result.stderr
    assert row_of(tmp_path / "out")["clean_n"] == "2"


def test_a_damaged_way_to_resize_in_the_stage_is_one_line(call, tmp_path, folders):
    _, masks, models = folders
    stage = tmp_path / "stage"
    about = StageInfo("segment", "segment images", "ab", {"resize": "squish"}, {"images": "../images"})
    made = Stage.create(stage, about)
    shutil.copytree(masks, stage / "masks")
    made.append(*(SegmentRecord(n, n, f"masks/{n}", "soft", 0.25, []) for n in ("cat/1.png", "cat/2.png", "cat/3.png")))
    result = call(stage, "--models", models, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{stage / 'stage.yaml'}: `options: resize` is none of crop, squash (squish)" in problem(result)
    assert call(stage, "--models", models, "-o", tmp_path / "out", "--resize", "crop").exit_code == 0
    assert row_of(tmp_path / "out")["clean_n"] == "3"
