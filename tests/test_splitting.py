"""Splitting a finished attack's noise: what is kept, where, and what counts as a success."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attack_stages import info, record
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor, nn

from pixelsem.attacks.settings import RegionOptions
from pixelsem.engine.regions import RegionMaker
from pixelsem.engine.splitting import Sides, SplitRun, StageOwnMasks, keep_noise
from pixelsem.errors import PixelsemError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.images import read_image, read_mask, write_image
from pixelsem.metrics.setups import AttackStage, combine
from pixelsem.models import Classifier, Preprocessing
from pixelsem.records import SegmentRecord
from pixelsem.regions.masks import MaskSource
from pixelsem.stage import Stage, StageInfo, open_stage

SIDE = 10
NAMES = ("cat", "dog", "ship")
PREPROCESSING = Preprocessing((SIDE, SIDE), SIDE)

Pixels = NDArray[np.uint8]


class Brightest(nn.Module):
    """The largest value of each channel: exact, whatever the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3)) * 20


def classifier() -> Classifier:
    return Classifier(Brightest(), name="brightest", class_names=NAMES, preprocessing=PREPROCESSING).eval()


def cat(seed: int) -> Pixels:
    """Noise whose brightest value is a red one."""
    pixels = np.random.default_rng(seed).integers(0, 200, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[5, 5] = (210, 0, 0)
    return pixels


def middle() -> Pixels:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[3:7, 3:7] = 255
    return mask


def attacked(clean: Pixels, *changes: tuple[int, int, tuple[int, int, int]]) -> Pixels:
    image = clean.copy()
    for x, y, colour in changes:
        image[y, x] = colour
    return image


DOG, SHIP, DULL = (0, 255, 0), (0, 0, 240), (0, 0, 0)


@pytest.fixture
def source(tmp_path: Path) -> Stage:
    """A stage of attacks on four images: noise that fools inside, outside, on both sides; and none found."""
    stage = Stage.create(tmp_path / "attack", info(region="original"))
    noise = {
        "cat/inside.png": [(4, 4, DOG), (0, 0, DULL)],
        "cat/outside.png": [(4, 4, DULL), (0, 0, DOG)],
        "cat/both.png": [(4, 4, SHIP), (0, 0, DOG)],
        "cat/beside.png": [(9, 9, DOG)],
    }
    for number, (name, changes) in enumerate(noise.items()):
        write_image(stage.path / "clean" / name, cat(number))
        write_image(stage.path / "images/original" / name, attacked(cat(number), *changes))
        stage.append(record(name, to="dog", pixels=[]))
        write_image(tmp_path / "masks" / name, middle())
    stage.append(record("cat/none.png"), record("cat/wrong.png", outcome="misclassified"))
    return stage


def split(source: Stage, keep: Any = "foreground", *, area: Any = "all", masks: Path | None = None, **how: Any) -> Any:
    folder = source.path.parent
    made = Stage.create(folder / f"split-{keep}-{area}", StageInfo("attack", "attack split", "one", {}, {}))
    sides = Sides(MaskSource.open(masks or folder / "masks"), PREPROCESSING, area=area)
    run = SplitRun(source, Evaluator(classifier(), device="cpu", scorer="dense"), made, sides, keep, **how)
    return run.run(), {r.id: r for r in made.attack_records()}, made


def test_only_noise_on_the_kept_side_counts(source: Stage) -> None:
    tally, inner, made = split(source, "foreground")
    _, outer, _ = split(source, "background")
    assert list(inner) == ["cat/inside.png", "cat/outside.png", "cat/both.png", "cat/beside.png"]
    assert [r.success for r in inner.values()] == [True, False, True, False]
    assert [r.success for r in outer.values()] == [False, True, True, True]
    assert inner["cat/both.png"].after is not None
    assert inner["cat/both.png"].after.class_ == "ship"
    assert {r.region for r in inner.values()} == {"foreground"}
    assert {r.region_pixels for r in inner.values()} == {16}
    assert (tally.total, tally.found, tally.without_noise) == (4, 2, 1)
    for name, found in inner.items():
        assert (found.adversarial is not None) == found.success
        assert found.outcome == "attacked"
        assert found.label == "cat"
        if found.adversarial is not None:
            shown = read_image(made.resolve(found.adversarial))
            whole = read_image(source.path / "images/original" / name)
            clean = read_image(made.resolve(found.clean))
            assert np.array_equal(shown[middle() > 0], whole[middle() > 0])
            assert np.array_equal(shown[middle() == 0], clean[middle() == 0])
        assert np.array_equal(read_mask(made.resolve(str(found.mask))), middle())
    kept = read_image(made.resolve(str(inner["cat/outside.png"].attempt)))
    clean, whole = (read_image(source.path / folder / "cat/outside.png") for folder in ("clean", "images/original"))
    assert np.array_equal(kept, np.where(middle()[..., None] > 0, whole, clean))


def test_an_unchanged_image_is_no_success(source: Stage) -> None:
    beside = split(source)[1]["cat/beside.png"]
    assert not beside.success
    assert beside.adversarial is None
    assert beside.pixels == []
    assert beside.after is not None
    assert (beside.after.class_, beside.after.confidence) == (beside.before.class_, beside.before.confidence)


def test_an_unchanged_image_is_none_even_where_the_label_was_wrong(source: Stage) -> None:
    """A label that the model never gave: then the clean image itself looks like a hit."""
    write_image(source.path / "clean/dog/1.png", cat(9))
    write_image(source.path / "images/original/dog/1.png", attacked(cat(9), (0, 0, SHIP)))
    write_image(source.path.parent / "masks/dog/1.png", middle())
    source.append(record("dog/1.png", to="ship", label="dog"))
    assert not split(source)[1]["dog/1.png"].success


def test_targeted_noise_must_still_reach_its_target(source: Stage) -> None:
    for target, hits in (("dog", False), ("ship", True)):
        made = record("cat/both.png", to="dog", target=target, adversarial="images/original/cat/both.png")
        source.append(made)
        stage = split(source)[2]
        found = {r.key: r for r in stage.attack_records()}["cat/both.png", "foreground", target, "0"]
        assert found.success == hits


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.uint8, (4, 5, 3)),
    arrays(np.uint8, (4, 5, 3)),
    arrays(np.bool_, (4, 5)),
)
def test_both_parts_add_up_to_the_whole_noise(clean: Pixels, whole: Pixels, region: NDArray[np.bool_]) -> None:
    inner, outer = (keep_noise(clean, whole, side).astype(int) - clean for side in (region, ~region))
    assert np.array_equal(inner + outer, whole.astype(int) - clean)
    assert not inner[~region].any()
    assert not outer[region].any()


def test_equal_areas_are_those_of_match_area(source: Stage, tmp_path: Path) -> None:
    sides = Sides(MaskSource.open(tmp_path / "masks"), PREPROCESSING, area="equal", seed=7)
    regions, _ = sides.of("cat/both.png", cat(2))
    assert regions["foreground"].sum() == regions["background"].sum() == 16
    assert not (regions["foreground"] & regions["background"]).any()
    assert np.array_equal(regions["foreground"], middle() > 0)
    options = RegionOptions(region="all", match_area=True)
    maker = RegionMaker(options, MaskSource.open(tmp_path / "masks"), 7)
    attacked_there, _ = maker.of("cat/both.png", (SIDE, SIDE, 3), cat(2), PREPROCESSING)
    assert np.array_equal(attacked_there["background"], regions["background"])
    other, _ = Sides(MaskSource.open(tmp_path / "masks"), PREPROCESSING, area="equal", seed=8).of(
        "cat/both.png", cat(2)
    )
    assert not np.array_equal(other["background"], regions["background"])


def attention(path: Path, values: NDArray[np.uint16], name: str = "cat/both.png") -> MaskSource:
    """Write a stage with one soft mask."""
    stage = Stage.create(path, StageInfo("segment", "segment gradcam", "abc", {}, {"images": "../photos"}))
    write_image(path / "masks" / name, values)
    stage.append(SegmentRecord(name, name, f"masks/{name}", "soft", 0.3, []))
    return MaskSource.open(path)


def test_halves_are_cut_at_the_median_of_the_attention(tmp_path: Path) -> None:
    values = np.random.default_rng(0).permutation(SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16) * 600
    regions, _ = Sides(attention(tmp_path / "a", values), PREPROCESSING, area="halves").of("cat/both.png", cat(2))
    assert np.array_equal(regions["foreground"], values > np.median(values))
    assert np.array_equal(regions["background"], ~regions["foreground"])


def test_what_ties_at_the_median_is_drawn(tmp_path: Path) -> None:
    values = np.zeros((SIDE, SIDE), np.uint16)
    values[:2] = 65535
    drawn = []
    for seed in (0, 0, 1):
        sides = Sides(attention(tmp_path / f"{len(drawn)}", values), PREPROCESSING, area="halves", seed=seed)
        drawn.append(sides.of("cat/both.png", cat(2))[0]["foreground"])
        assert drawn[-1].sum() == SIDE * SIDE // 2
        assert drawn[-1][:2].all()
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_halves_of_a_plain_mask_are_refused(source: Stage) -> None:
    with pytest.raises(PixelsemError, match="no soft mask; --halves takes attention maps"):
        split(source, area="halves")


def test_masks_of_the_source_images_size_are_fitted(tmp_path: Path) -> None:
    large = middle().repeat(4, axis=0).repeat(4, axis=1)
    write_image(tmp_path / "large/cat/1.png", large)
    regions, _ = Sides(MaskSource.open(tmp_path / "large"), PREPROCESSING).of("cat/1.png", cat(0))
    assert np.array_equal(regions["foreground"], middle() > 0)


def test_a_repeated_split_goes_on_where_it_was(source: Stage) -> None:
    before = split(source)[1]
    manifest = source.path.parent / "split-foreground-all/manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:2]))
    tally, after, _ = split(source)
    assert after == before
    assert (tally.resumed, tally.done) == (2, 4)


def test_one_images_problem_does_not_end_the_run(source: Stage, tmp_path: Path) -> None:
    (tmp_path / "masks/cat/inside.png").unlink()
    write_image(source.path / "images/original/cat/outside.png", np.zeros((4, 4, 3), np.uint8))
    tally, found, _ = split(source)
    assert list(found) == ["cat/both.png", "cat/beside.png"]
    assert "has no mask in" in tally.failures["cat/inside.png"]
    assert "is 4×4, not the model's 10×10" in tally.failures["cat/outside.png"]


def test_sides_without_a_pixel_and_flagged_masks_are_skipped(source: Stage, tmp_path: Path) -> None:
    write_image(tmp_path / "masks/cat/both.png", np.full((SIDE, SIDE), 255, np.uint8))
    assert split(source, "background")[1]["cat/both.png"].outcome == "empty-region"
    stage = Stage.create(tmp_path / "flagged", StageInfo("segment", "segment x", "abc", {}, {"images": "../photos"}))
    for name in ("inside", "outside", "both", "beside"):
        write_image(stage.path / f"masks/cat/{name}.png", middle())
        stage.append(SegmentRecord(f"cat/{name}.png", name, f"masks/cat/{name}.png", "binary", 0.2, ["odd"]))
    tally, found, _ = split(source, masks=stage.path)
    assert {r.outcome for r in found.values()} == {"flagged-mask"}
    assert tally.skipped == {"flagged-mask": 4}
    assert not any(r.success or r.queries for r in found.values())


def test_flagged_masks_are_used_when_asked(source: Stage, tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "flagged", StageInfo("segment", "segment x", "abc", {}, {"images": "../photos"}))
    for name in ("inside", "outside", "both", "beside"):
        write_image(stage.path / f"masks/cat/{name}.png", middle())
        stage.append(SegmentRecord(f"cat/{name}.png", name, f"masks/cat/{name}.png", "binary", 0.2, ["odd"]))
    found = split(source, masks=stage.path, use_flagged=True)[1]
    assert [r.success for r in found.values()] == [True, False, True, False]


def test_attacks_on_a_part_of_the_image_are_refused(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "attack", info(region="foreground"))
    stage.append(record("cat/1.png", "foreground", to="dog"))
    write_image(tmp_path / "masks/cat/1.png", middle())
    with pytest.raises(PixelsemError, match="holds no attack on whole images"):
        split(stage)


def test_the_stages_own_masks_are_its_foregrounds(source: Stage) -> None:
    with pytest.raises(PixelsemError, match="holds no masks; give --masks"):
        StageOwnMasks(source)
    write_image(source.path / "masks/foreground/cat/both.png", middle())
    source.append(record("cat/both.png", "foreground", mask="masks/foreground/cat/both.png"))
    masks = StageOwnMasks(open_stage(source.path))
    entry = masks.find("cat/both.png")
    assert entry is not None
    assert np.array_equal(entry.region("foreground"), middle() > 0)
    assert masks.find("cat/inside.png") is None


def test_both_sides_of_one_split_are_one_setup(source: Stage) -> None:
    stages = []
    for keep in ("foreground", "background"):
        records = list(split(source, keep)[1].values())
        options = {"stage": ["../attack"], "keep": keep, "equal_area": False, "halves": False, "seed": 0}
        about = StageInfo("attack", "attack split", keep, options, {}, model={"name": "brightest", "digest": "ab"})
        stages.append(AttackStage(keep, about, records))
    setups, _ = combine(stages)
    assert [(setup.attack, setup.regions) for setup in setups] == [("split", ["foreground", "background"])]
    of_another = replace(stages[0].info, options={"stage": ["../other"], "keep": "foreground"})
    assert len(combine([*stages, AttackStage("other", of_another, stages[0].records)])[0]) == 2
