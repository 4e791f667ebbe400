from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import problem
from PIL import Image
from test_cli_evaluate import call

from pixelsem.metrics.texture import hill_cost, to_grey
from pixelsem.regions.matching import NamedMasks
from pixelsem.stage import Stage, StageInfo

__all__ = ["call"]  # a fixture


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def columns(first: int, last: int) -> np.ndarray:
    """Return an 8×10 mask of the columns from ``first`` up to ``last``."""
    mask = np.zeros((8, 10), np.uint8)
    mask[:, first:last] = 255
    return mask


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path, Path]:
    """Return two mask folders and the truth: IoUs of 1, 1/2, 0 and 1/2, 1/2, 1."""
    spans = {
        "a": [(0, 4), (0, 2), (0, 0)],
        "b": [(0, 2), (2, 6), (5, 10)],
        "truth": [(0, 4), (0, 4), (5, 10)],
    }
    for folder, masks in spans.items():
        for number, span in enumerate(masks, 1):
            write(tmp_path / folder / "cat" / f"{number}.png", columns(*span))
    return tmp_path / "a", tmp_path / "b", tmp_path / "truth"


def rows_of(folder: Path | str, name: str) -> list[dict[str, str]]:
    with (Path(folder) / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_stage(path: Path, masks: dict[str, np.ndarray], *, kind: str = "binary", flags: tuple[str, ...] = ()) -> Path:
    from pixelsem.records import SegmentRecord

    info = StageInfo("segment", "segment", path.name, {"method": "grabcut"}, {"images": "../images"})
    stage = Stage.create(path, info)
    for name, values in masks.items():
        mask = f"masks/{Path(name).with_suffix('.png')}"
        write(path / mask, values)
        stage.append(SegmentRecord(name, name, mask, kind, 0.5, list(flags)))
    return path


def test_tables_go_beside_the_inputs_unless_said_otherwise(call, folders, tmp_path):
    a, b, truth = folders

    def parent(*arguments: object) -> Path:
        return Path(call("masks", *arguments, "-q").stdout.strip()).parent

    assert parent(a, "--truth", truth) == tmp_path
    assert parent("a", "--truth", truth) == Path()
    assert parent(a, "--truth", truth, "--run", "runs") == Path("runs")
    b.rename(tmp_path / "truth" / "b")  # now in two places
    assert parent(a, tmp_path / "truth" / "b") == Path("pixelsem-run")


def test_quality_by_hand(call, folders):
    a, b, truth = folders
    result = call("masks", a, b, "--truth", truth)
    assert result.exit_code == 0, result.stderr
    folder = result.stdout.strip()
    assert Path(folder).parent == a.parent
    first, second = rows_of(folder, "masks")
    assert [row["masks"] for row in (first, second)] == ["a", "b"]
    assert float(first["iou"]) == pytest.approx((1 + 0.5 + 0) / 3)
    assert float(second["iou"]) == pytest.approx((0.5 + 2 / 6 + 1) / 3)
    assert float(first["mae"]) == pytest.approx((0 + 0.2 + 0.5) / 3)
    assert float(first["coverage"]) == pytest.approx((0.4 + 0.2 + 0) / 3)
    # The precisions 1, 1, 0 and recalls 1, 0.5, 0 at every threshold but the lowest, where all is foreground.
    precision, recall = 2 / 3, 0.5
    assert float(first["max_f"]) == pytest.approx(1.3 * precision * recall / (0.3 * precision + recall))
    assert (first["n"], first["flagged_count"], second["flagged_count"]) == ("3", "1", "0")
    assert float(first["iou_low"]) < float(first["iou"]) < float(first["iou_high"])
    (pair,) = rows_of(folder, "agreement")
    assert (pair["first"], pair["second"], pair["n"]) == ("a", "b", "3")
    assert float(pair["iou"]) == pytest.approx((0.5 + 0 + 0) / 3)
    assert float(pair["agreement"]) == pytest.approx((0.8 + 0.4 + 0.5) / 3)
    assert float(pair["gain"]) == pytest.approx(float(second["iou"]) - float(first["iou"]))
    images = rows_of(folder, "images")
    assert [(row["masks"], row["id"]) for row in images] == [(m, f"cat/{i}") for m in "ab" for i in (1, 2, 3)]
    assert [float(row["iou"]) for row in images] == pytest.approx([1, 0.5, 0, 0.5, 1 / 3, 1])
    assert [row["flagged"] for row in images] == ["0", "0", "1", "0", "0", "0"]


def test_without_truth_methods_are_compared(call, folders):
    a, b, _ = folders
    result = call("masks", a, b, "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert {row["iou"] for row in rows_of("out", "masks")} == {""}
    assert rows_of("out", "agreement")[0]["gain"] == ""
    assert "IoU" not in Path("out/masks.md").read_text()
    assert "Gain" not in result.stderr
    for name in ("masks", "agreement"):
        assert {file.suffix for file in Path("out").glob(f"{name}.*")} == {".json", ".csv", ".md", ".tex"}


def test_a_method_with_itself_agrees(call, folders):
    a, _, truth = folders
    (copy := a.parent / "copy").mkdir()
    for file in (a / "cat").iterdir():
        write(copy / "cat" / file.name, np.asarray(Image.open(file)))
    call("masks", a, copy, "--truth", truth, "-o", "out")
    (pair,) = rows_of("out", "agreement")
    assert (pair["iou"], pair["agreement"], pair["gain"]) == ("1.0", "1.0", "0.0")


def test_stage_soft_masks_and_threshold(call, tmp_path, folders):
    _, _, truth = folders
    values = np.zeros((8, 10), np.uint16)
    values[:, :4] = 65535
    values[:, 4:6] = 32767  # just under a half
    stage = write_stage(tmp_path / "soft", {"cat/1.jpg": values}, kind="soft", flags=("rejected by a person",))
    for threshold, expected in (("0.5", 1.0), ("0.4", 4 / 6)):
        result = call("masks", stage, "--truth", truth, "--threshold", threshold, "-o", threshold)
        assert result.exit_code == 0, result.stderr
        (row,) = rows_of(threshold, "masks")
        assert float(row["iou"]) == pytest.approx(expected)
        assert float(row["mae"]) == pytest.approx(0.2 * 32767 / 65535)
        assert row["flagged_count"] == "1"
        assert (row["iou_low"], row["n"]) == ("", "1")
    assert rows_of("0.5", "images")[0]["id"] == "cat/1.jpg"


def test_images_without_truth_are_named_and_rows_share_their_images(call, tmp_path, folders):
    a, b, truth = folders
    (truth / "cat" / "3.png").unlink()
    (b / "cat" / "1.png").unlink()
    result = call("masks", a, b, "--truth", truth, "--json")
    plain = json.loads(result.stdout)
    assert [row["n"] for row in plain["tables"]["masks"]["rows"]] == [1, 1]
    assert any("cat/3" in note and str(truth) in note for note in plain["notes"])
    assert any("1 of 3 masks" in note and str(a) in note for note in plain["notes"])
    assert plain["failures"] == {}


def test_a_list_restricts_the_images(call, tmp_path, folders):
    a, _, truth = folders
    chosen = tmp_path / "held-out.txt"
    chosen.write_text("cat/2.jpg\n\ncat/3\ncat/2\ncat/9.jpg\n")
    result = call("masks", a, "--truth", truth, "--list", chosen, "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert [row["id"] for row in rows_of("out", "images")] == ["cat/2", "cat/3"]
    assert "1 (cat/9.jpg)" in result.stderr
    chosen.write_text("")
    assert "names no image" in problem(call("masks", a, "--list", chosen))
    chosen.write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in problem(call("masks", a, "--list", chosen))
    assert "no such file" in problem(call("masks", a, "--list", tmp_path / "absent")).lower()


def test_a_mask_of_another_size_is_one_line_and_the_rest_counts(call, folders):
    a, b, truth = folders
    write(b / "cat" / "2.png", np.zeros((5, 10), np.uint8))
    result = call("masks", a, b, "--truth", truth, "-o", "out")
    assert result.exit_code == 1
    assert "2.png: is 10×5" in problem(result)
    assert [row["n"] for row in rows_of("out", "masks")] == ["2", "2"]
    (truth / "cat" / "1.png").write_bytes(b"no png")
    result = call("masks", a, "--truth", truth, "-o", "out")
    assert result.exit_code == 1
    assert "truth/cat/1.png" in problem(result)


def test_nothing_usable_writes_nothing(call, folders):
    a, _, truth = folders
    for file in (truth / "cat").iterdir():
        file.write_bytes(b"no png")
    result = call("masks", a, "--truth", truth, "-o", "out")
    assert result.exit_code == 1
    assert not Path("out").exists()
    assert result.stdout == ""
    told = [line for line in result.stderr.splitlines() if line.startswith("pixelsem:")]
    assert [line.split("truth/cat/")[1][:5] for line in told] == ["1.png", "2.png", "3.png"]


def test_no_image_in_common(call, tmp_path, folders):
    a, _, _ = folders
    write(tmp_path / "other" / "dog" / "1.png", columns(0, 3))
    result = call("masks", a, "--truth", tmp_path / "other")
    assert result.exit_code == 2
    assert "no image is in all of them" in problem(result)
    assert "no such" in problem(call("masks", a, "--truth", tmp_path / "absent"))


def test_again_gives_the_same_files(call, folders):
    a, b, truth = folders
    first = Path(call("masks", a, b, "--truth", truth).stdout.strip())
    before = {file.name: file.read_bytes() for file in first.iterdir()}
    assert Path(call("masks", a, b, a, "--truth", truth).stdout.strip()) == first
    assert {file.name: file.read_bytes() for file in first.iterdir()} == before
    assert Path(call("masks", a, b, "--truth", truth, "--threshold", "0.4").stdout.strip()) != first


def test_empty_truths_are_noted(call, folders):
    a, _, truth = folders
    write(truth / "cat" / "1.png", columns(0, 0))
    assert "1 true masks have no foreground" in call("masks", a, "--truth", truth).stderr


def test_names_of_stages_and_folders_meet(tmp_path):
    """Suffixes differ between images and their masks; equal stems keep theirs."""
    mask = columns(0, 5)
    stage = write_stage(tmp_path / "stage", {"a.jpg": mask, "b.v1.jpg": mask, "c.png": mask})
    write(tmp_path / "folder" / "a.png", mask)
    write(tmp_path / "folder" / "b.v1.png", mask)
    write(tmp_path / "folder" / "d.jpg.png", mask)
    write(tmp_path / "folder" / "d.png", mask)
    named, folder = NamedMasks(stage), NamedMasks(tmp_path / "folder")
    assert folder.ids == ["a", "b.v1", "d", "d.jpg"]
    assert [name in named for name in ("a", "a.png", "b.v1", "b", "c", "d")] == [True, True, True, False, True, False]
    assert [name in folder for name in ("a.jpg", "b.v1.jpg", "b.jpg", "d.jpg", "d", "c")] == [
        True, True, False, True, True, False,
    ]  # fmt: skip
    assert named.find("a").path.name == "a.png"
    assert folder.find("d.jpg").path.name == "d.jpg.png"
    assert folder.find("d").path.name == "d.png"
    assert folder.find("e") is None


def test_an_equal_stem_means_no_image(tmp_path):
    named = NamedMasks(write_stage(tmp_path / "stage", {"a.jpg": columns(0, 5), "b/a.png": columns(0, 5)}))
    assert "a" in named
    double = write_stage(tmp_path / "double", {"a.jpg": columns(0, 5), "a.png": columns(0, 5)})
    assert "a" not in NamedMasks(double)
    assert "a.jpg" in NamedMasks(double)


# --- texture


@pytest.fixture
def photos(tmp_path) -> tuple[Path, Path]:
    """Return images with texture on the left and little on the right, and masks of the left; one masks nothing."""
    for number in range(1, 5):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 30, 3), np.uint8)
        pixels[:, 15:] //= 8
        write(tmp_path / "images" / f"{number}.png", pixels)
        mask = np.zeros((24, 30), np.uint8)
        mask[4:20, 2:13] = 255 if number < 4 else 0
        write(tmp_path / "masks" / f"{number}.png", mask)
    return tmp_path / "images", tmp_path / "masks"


def test_texture_of_regions(call, photos):
    images, masks = photos
    result = call("texture", masks, "--images", images, "-o", "out")
    assert result.exit_code == 0, result.stderr
    (row,) = rows_of("out", "texture")
    costs = []
    for number in (1, 2, 3):
        cost = hill_cost(to_grey(np.asarray(Image.open(images / f"{number}.png"))))
        inside = np.asarray(Image.open(masks / f"{number}.png")) > 0
        costs.append((cost[inside].mean(), cost[~inside].mean()))
    foreground, background = np.mean(costs, axis=0)
    assert (row["n"], row["textured_count"]) == ("3", "3")
    assert float(row["foreground"]) == pytest.approx(foreground)
    assert float(row["background"]) == pytest.approx(background)
    assert float(row["difference"]) == pytest.approx(background - foreground)
    assert "1 images are all foreground or all background" in result.stderr


def test_texture_of_a_stage_knows_its_images(call, tmp_path, photos):
    images, masks = photos
    stage = write_stage(tmp_path / "stage", {f"{n}.png": np.asarray(Image.open(masks / f"{n}.png")) for n in (1, 2)})
    call("texture", stage, masks, "--images", images, "-o", "both")
    call("texture", stage, "-o", "own")
    assert Path(call("texture", stage, "-q").stdout.strip()).parent == stage.parent
    assert rows_of("own", "texture") == rows_of("both", "texture")[:1]
    assert [row["n"] for row in rows_of("both", "texture")] == ["2", "3"]
    assert "--images" in problem(call("texture", masks))


def test_wet_cost_and_failures(call, photos):
    images, masks = photos
    flat = np.full((24, 30, 3), 90, np.uint8)
    write(images / "1.png", flat)
    write(masks / "2.png", np.zeros((5, 5), np.uint8))
    result = call("texture", masks, "-i", images, "--wet-cost", "1000", "-o", "out")
    assert result.exit_code == 1
    assert "2.png: is 5×5, its image 30×24" in problem(result)
    (row,) = rows_of("out", "texture")
    assert row["n"] == "2"
    assert float(row["flat_foreground"]) == pytest.approx(0.5)
    assert float(row["foreground"]) == pytest.approx(500, rel=0.01)
    (masks / "1.png").unlink()
    (masks / "3.png").unlink()
    result = call("texture", masks, "-i", images, "-o", "none")
    assert result.exit_code == 1
    assert not Path("none").exists()
