"""Where images come from, and which part of them is taken."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelsem.errors import PixelsemError, StageError
from pixelsem.images import write_image
from pixelsem.records import AttackRecord, Prediction, SegmentRecord
from pixelsem.sources import ImageItem, fingerprint, open_images, select
from pixelsem.stage import Stage, StageInfo

settings.register_profile("steady", deadline=None)  # a busy machine is no error
settings.load_profile("steady")

GREY = np.full((4, 5, 3), 128, np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat/1.png", "cat/deep/2.png", "dog/1.png"):
        write_image(tmp_path / "photos" / name, GREY)
    return tmp_path / "photos"


def info(kind: str, inputs: dict[str, str]) -> StageInfo:
    return StageInfo(kind=kind, command=kind, identity="0" * 64, options={}, inputs=inputs)


def items(count: int) -> list[ImageItem]:
    return [ImageItem(f"c/{number:04}.png", Path(f"c/{number:04}.png"), "c") for number in range(count)]


def test_folder_keeps_sub_folders_and_names_the_class(photos: Path) -> None:
    source = open_images(photos)
    assert [item.id for item in source.items] == ["cat/1.png", "cat/deep/2.png", "dog/1.png"]
    assert [item.folder for item in source.items] == ["cat", "cat", "dog"]
    assert source.root == photos
    assert source.stage is None


def test_flat_folder_and_single_file_have_no_class(photos: Path) -> None:
    assert open_images(photos / "dog").items[0] == ImageItem("1.png", photos / "dog/1.png", None)
    single = open_images(photos / "dog/1.png")
    assert (single.root, [item.id for item in single.items]) == (photos / "dog", ["1.png"])


def test_links_to_folders_in_circles_are_left_alone_and_links_to_files_followed(photos: Path) -> None:
    os.symlink(photos, photos / "cat/again")
    os.symlink(photos / "dog/1.png", photos / "cat/linked.png")
    assert [item.id for item in open_images(photos).items] == [
        "cat/1.png", "cat/deep/2.png", "cat/linked.png", "dog/1.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "holds no image"),
        (lambda path: path.write_text("hello"), "not an image"),
    ],
)
def test_what_holds_no_image_is_one_line(tmp_path: Path, make, says: str) -> None:
    make(tmp_path / "thing")
    with pytest.raises(PixelsemError, match=says) as caught:
        open_images(tmp_path / "thing")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_segment_stage_gives_its_source_images(photos: Path, tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "run/seg", info("segment", {"images": "../../photos"}))
    for image in ("dog/1.png", "cat/1.png"):
        stage.append(SegmentRecord(image, image, f"masks/{image}", "binary", 0.5, []))
    source = open_images(stage.path)
    assert [item.id for item in source.items] == ["cat/1.png", "dog/1.png"]
    assert all(item.path.is_file() for item in source.items)
    assert source.root.resolve() == photos
    assert source.stage is not None


def test_segment_stage_whose_images_are_links_out_of_their_folder(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "chosen").mkdir()
    os.symlink(photos / "dog/1.png", tmp_path / "chosen/a.png")
    stage = Stage.create(tmp_path / "seg", info("segment", {"images": "../chosen"}))
    stage.append(SegmentRecord("a.png", "a.png", "masks/a.png", "binary", 0.5, []))
    assert open_images(stage.path).items[0].path.is_file()


def test_segment_stage_without_its_images_says_where_it_looked(photos: Path, tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "seg", info("segment", {"images": "../gone"}))
    stage.append(SegmentRecord("a.png", "a.png", "masks/a.png", "binary", 0.5, []))
    with pytest.raises(StageError, match=str(tmp_path / "gone")):
        open_images(stage.path)
    with pytest.raises(StageError, match="names no input 'images'"):
        open_images(Stage.create(tmp_path / "seg2", info("segment", {})).path)


def test_attack_stage_gives_its_clean_images_once_each(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "attack", info("attack", {}))
    write_image(stage.path / "clean/cat/1.png", GREY)
    for region in ("foreground", "background"):
        stage.append(attack_record("cat/1.jpg", "clean/cat/1.png", region))
    source = open_images(stage.path)
    assert source.items == [ImageItem("cat/1.jpg", stage.path / "clean/cat/1.png", "cat")]


def attack_record(image_id: str, clean: str, region: str) -> AttackRecord:
    before = Prediction("cat", 0.9, [("cat", 0.9)])
    return AttackRecord(
        id=image_id, outcome="attacked", region=region, label="cat", label_source="given", target=None, repeat=0,
        seed=0, clean=clean, mask=None, adversarial=None, history=None, height=4, width=5, region_pixels=20,
        success=False, queries=1, candidates=1, generations=1, before=before, after=None, pixels=[],
    )  # fmt: skip


def test_training_stage_holds_no_images(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="holds no images"):
        open_images(Stage.create(tmp_path / "train", info("train", {})).path)


@given(st.integers(0, 40), st.none() | st.integers(1, 50), st.none() | st.integers(1, 50), st.integers(0, 5))
def test_selection_is_an_ordered_part_of_the_right_size(
    count: int, limit: int | None, sample: int | None, seed: int
) -> None:
    everything = items(count)
    chosen = select(everything, limit, sample, seed)
    assert len(chosen) == min([count, *[number for number in (limit, sample) if number is not None]])
    assert chosen == [item for item in everything if item in chosen]
    assert chosen == select(everything, limit, sample, seed)
    if limit is not None:
        assert set(chosen) <= set(everything[:limit])


def test_sample_depends_on_seed_and_ids_alone() -> None:
    everything = items(200)
    chosen = select(everything, sample=50, seed=3)
    assert chosen != select(everything, sample=50, seed=4)
    # Half of the folder gone: those drawn from the rest still are.
    rest = everything[::2]
    again = select(rest, sample=len([item for item in chosen if item in rest]), seed=3)
    assert again == [item for item in chosen if item in rest]


def test_sample_is_uniform() -> None:
    drawn = np.zeros(20)
    for seed in range(400):
        for item in select(items(20), sample=5, seed=seed):
            drawn[int(item.id[2:6])] += 1
    assert drawn.sum() == 2000
    assert abs(drawn - 100).max() < 45  # five deviations of a binomial(400, 1/4)


def test_fingerprint_survives_a_move_and_sees_a_change(photos: Path, tmp_path: Path) -> None:
    before = fingerprint(open_images(photos).items)
    photos.rename(tmp_path / "elsewhere")
    moved = open_images(tmp_path / "elsewhere").items
    assert fingerprint(moved) == before
    assert fingerprint(moved[1:]) != before
    write_image(moved[0].path, np.zeros((9, 9, 3), np.uint8))
    assert fingerprint(moved) != before
    moved[0].path.unlink()
    assert len(fingerprint(moved)) == 64
