"""Masks as regions."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from pixelsem.errors import InputError, PixelsemError, StageError
from pixelsem.images import write_image
from pixelsem.records import SegmentRecord
from pixelsem.regions.masks import Kind, MaskSource, Region, coverage_flags, grow, infer, match_area, region_of
from pixelsem.stage import Stage, StageInfo

settings.register_profile("steady", deadline=None)  # a busy machine is no error
settings.load_profile("steady")

REGIONS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))
MASKS = {
    "binary": arrays(np.int32, (6, 7), elements=st.sampled_from([0, 255])),
    "soft": arrays(np.int32, (6, 7), elements=st.integers(0, 65535)),
    "labels": arrays(np.int32, (6, 7), elements=st.integers(0, 300)),
}


@pytest.mark.parametrize("kind", MASKS)
@given(data=st.data())
def test_background_is_the_complement_of_the_foreground(kind: Kind, data: st.DataObject) -> None:
    mask = data.draw(MASKS[kind])
    foreground = region_of(mask, kind, "foreground")
    assert foreground.dtype == bool
    assert (region_of(mask, kind, "background") == ~foreground).all()
    assert region_of(mask, kind, "original").all()


@pytest.mark.parametrize(
    ("values", "kind", "foreground"),
    [
        ([0, 127, 128, 255], "binary", [0, 0, 1, 1]),
        ([0, 1, 1, 0], "binary", [0, 1, 1, 0]),
        ([0, 0, 0, 0], "binary", [0, 0, 0, 0]),
        ([0, 32767, 32768, 65535], "soft", [0, 0, 1, 1]),
        ([0, 1, 7, 255], "labels", [0, 1, 1, 1]),
    ],
)
def test_foreground_by_kind(values: list[int], kind: Kind, foreground: list[int]) -> None:
    assert region_of(np.array([values]), kind, "foreground").tolist() == [[bool(bit) for bit in foreground]]


def test_label_picks_one_value() -> None:
    mask = np.array([[0, 3], [3, 12]])
    assert region_of(mask, "labels", "label:3").tolist() == [[False, True], [True, False]]
    assert region_of(mask, "labels", "label:12").sum() == 1
    assert not region_of(mask, "labels", "label:7").any()


@pytest.mark.parametrize("region", ["", "Foreground", "label:", "label:-1", "label:x", "all"])
def test_unknown_region(region: str) -> None:
    with pytest.raises(PixelsemError, match="unknown region"):
        region_of(np.zeros((2, 2), int), "binary", region)


def noisy_edges(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(-6, 7, values.shape)
    return np.clip(values.astype(int) + noise, 0, 255).astype(np.uint8)


def disc(side: int = 64) -> Region:
    y, x = np.mgrid[:side, :side]
    return (x - side / 2) ** 2 + (y - side / 2) ** 2 < (side / 3) ** 2


def test_kinds_of_files_without_a_stage() -> None:
    inside = disc()
    steps = np.arange(64 * 64).reshape(64, 64)
    expected: list[tuple[NDArray[Any], Kind]] = [
        (inside.astype(np.uint8), "binary"),
        (inside * np.uint8(255), "binary"),
        (np.zeros((4, 4), np.uint8), "binary"),
        (np.full((4, 4), 255, np.uint8), "binary"),
        (noisy_edges(inside * np.uint8(255)), "binary"),
        (np.where(inside, 7, 0).astype(np.uint8), "labels"),
        (np.where(inside, 15, 0) + np.where(steps < 64, 255, 0) * ~inside, "labels"),  # VOC's void outline
        (steps % 20, "labels"),
        (steps % 400, "labels"),
        (steps * 16, "soft"),
        (steps // 16, "soft"),
    ]
    for number, (values, kind) in enumerate(expected):
        assert infer(values.astype(np.int32))[1] == kind, number


def test_inferred_values_mean_the_same_region_as_drawn() -> None:
    inside = disc()
    for values in (inside.astype(int), inside * 255, noisy_edges(inside * np.uint8(255)).astype(int), inside * 9):
        assert (region_of(*infer(values), "foreground") == inside).all()
    ramp = np.arange(4096).reshape(64, 64) // 16
    assert (region_of(*infer(ramp), "foreground") == (ramp >= 128)).all()


@pytest.mark.parametrize("file", ["cat/a.png", "cat/a.tif", "cat/a.jpg.png"])
def test_mask_folder_matches_by_stem(tmp_path: Path, file: str) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(disc() * np.uint8(255)).save(tmp_path / file)
    source = MaskSource.open(tmp_path)
    entry = source.find("cat/a.jpg")
    assert entry is not None
    assert (entry.path, entry.kind, entry.flags) == (tmp_path / file, "binary", ())
    assert (region_of(entry.values, entry.kind, "foreground") == disc()).all()
    assert "cat/a.jpg" in source
    for other in ("dog/a.jpg", "a.jpg"):
        assert source.find(other) is None
        assert other not in source


def test_mask_folder_tells_equal_stems_apart_by_the_whole_name(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg.png", np.full((2, 2), 255, np.uint8))
    write_image(tmp_path / "a.png.png", np.zeros((2, 2), np.uint8))
    source = MaskSource.open(tmp_path)
    found = [source.find(name) for name in ("a.jpg", "a.png")]
    assert [entry and int(entry.values.max()) for entry in found] == [255, 0]


def test_mask_folder_prefers_png_of_one_stem(tmp_path: Path) -> None:
    for name in ("a.bmp", "a.png", "a.tif"):
        Image.fromarray(disc() * np.uint8(255)).save(tmp_path / name)
    entry = MaskSource.open(tmp_path).find("a.jpg")
    assert entry is not None
    assert entry.path.name == "a.png"


def test_16_bit_and_palette_mask_files(tmp_path: Path) -> None:
    Image.fromarray((disc() * 65535).astype(np.uint16)).save(tmp_path / "soft.png")
    palette = Image.fromarray((disc() * 3).astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 200, 200, 200])
    palette.save(tmp_path / "labels.png")
    source = MaskSource.open(tmp_path)
    for name, kind in (("soft", "soft"), ("labels", "labels")):
        entry = source.find(f"{name}.jpg")
        assert entry is not None
        assert entry.kind == kind
        assert (region_of(entry.values, entry.kind, "foreground") == disc()).all()
    entry = source.find("labels.jpg")
    assert entry is not None
    assert (region_of(entry.values, entry.kind, "label:3") == disc()).all()


def test_stage_of_masks(tmp_path: Path) -> None:
    info = StageInfo(kind="segment", command="segment images", identity="0" * 64, options={}, inputs={"images": ".."})
    stage = Stage.create(tmp_path / "seg", info)
    write_image(stage.path / "masks/a.png", disc() * np.uint8(255))
    stage.append(SegmentRecord("a.jpg", "a.jpg", "masks/a.png", "binary", 0.5, ["degenerate-foreground: x"]))
    source = MaskSource.open(stage.path)
    entry = source.find("a.jpg")
    assert entry is not None
    assert (entry.kind, entry.flags) == ("binary", ("degenerate-foreground: x",))
    assert source.find("b.jpg") is None
    assert "a.jpg" in source
    assert "b.jpg" not in source
    sent = pickle.loads(pickle.dumps(source)).find("a.jpg")  # as to a worker
    assert (sent.path, sent.kind, sent.flags) == (entry.path, entry.kind, entry.flags)
    (stage.path / "masks/a.png").unlink()
    with pytest.raises(InputError, match="no such file"):
        source.find("a.jpg")


def test_masks_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(PixelsemError, match="no such mask folder"):
        MaskSource.open(tmp_path / "gone")
    with pytest.raises(PixelsemError, match="holds no masks"):
        MaskSource.open(tmp_path)
    info = StageInfo(kind="train", command="defend train", identity="0" * 64, options={}, inputs={})
    with pytest.raises(StageError, match="'segment' is needed"):
        MaskSource.open(Stage.create(tmp_path / "train", info).path)


def test_unreadable_mask(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png"):
        MaskSource.open(tmp_path).find("a.jpg")


@given(REGIONS, st.integers(-4, 4), st.integers(0, 3))
def test_growing_is_monotone(region: Region, pixels: int, more: int) -> None:
    assert (grow(region, pixels) <= grow(region, pixels + more)).all()


@given(REGIONS, st.integers(-4, 4))
def test_growing_one_side_shrinks_the_other(region: Region, pixels: int) -> None:
    assert (grow(region, pixels) == ~grow(~region, -pixels)).all()


@given(REGIONS, st.integers(0, 5))
def test_growing_is_exact(region: Region, pixels: int) -> None:
    y, x = np.indices(region.shape)
    expected = np.zeros(region.shape, bool)
    for row, column in zip(*np.nonzero(region), strict=True):
        expected |= (y - row) ** 2 + (x - column) ** 2 <= pixels**2
    assert (grow(region, pixels) == expected).all()


def test_shrinking_leaves_the_edge_of_the_image_alone() -> None:
    assert grow(np.ones((5, 5), bool), -2).all()
    half = np.zeros((5, 6), bool)
    half[:, :3] = True
    assert grow(half, -1).tolist() == [[True, True, False, False, False, False]] * 5


@given(REGIONS, st.integers(0, 2**32))
def test_match_area_keeps_equally_many_of_each(foreground: Region, seed: int) -> None:
    first, second = match_area(foreground, ~foreground, np.random.default_rng(seed))
    assert first.sum() == second.sum() == min(foreground.sum(), (~foreground).sum())
    assert (first <= foreground).all()
    assert (second <= ~foreground).all()
    smaller, kept = (foreground, first) if foreground.sum() <= (~foreground).sum() else (~foreground, second)
    assert (smaller == kept).all()


def test_match_area_is_uniform() -> None:
    foreground = np.zeros((4, 5), bool)
    foreground[0] = True
    kept = sum(match_area(foreground, ~foreground, np.random.default_rng(s))[1].astype(int) for s in range(600))
    assert abs(kept[~foreground] - 200).max() < 58  # five deviations of a binomial(600, 1/3)


def test_flags_say_how_much_is_covered() -> None:
    assert coverage_flags(0.02) == coverage_flags(0.5) == coverage_flags(0.98) == []
    assert coverage_flags(0.0123) == ["degenerate-foreground: 1.23 % of the image, under 2 %"]
    assert coverage_flags(1.0) == ["degenerate-foreground: 100.00 % of the image, over 98 %"]
