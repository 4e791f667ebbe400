from __future__ import annotations

import os
from pathlib import Path

import dying
import numpy as np
import pytest
import torch
from detection_stages import make_stage, smooth_image
from hypothesis import given
from hypothesis import strategies as st

from pixelsem.defenses import features as features_module
from pixelsem.defenses.detecting import Measured, Scorer, draw, held_out, measure, open_samples, train_detector
from pixelsem.defenses.features import Extractor, FeatureType
from pixelsem.defenses.rich_models import rich_model, rich_models
from pixelsem.defenses.settings_detection import EnsembleSettings, FeatureSettings
from pixelsem.defenses.spam import spam
from pixelsem.errors import InputError, PixelsemError, WorkerError
from pixelsem.images import pixel_digest, write_image
from pixelsem.metrics.texture import to_grey

SETTINGS = EnsembleSettings(learners=11, subspace=40)


@pytest.fixture
def extractor(tmp_path: Path) -> Extractor:
    return Extractor(FeatureType("spam", "mean"), folder=tmp_path / "cache")


def measured(stage: Path, extractor: Extractor) -> Measured:
    found = Measured()
    for chunk in measure(open_samples(stage).items, extractor):
        found.samples += chunk.samples
        found.rows += chunk.rows
        found.digests += chunk.digests
        found.failures |= chunk.failures
    return found


names = st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=40).filter(lambda drawn: len(set(drawn)) > 1)


@given(names, st.floats(0.05, 0.95), st.integers(0, 5))
def test_a_split_never_separates_equal_images(digests: list[str], share: float, seed: int) -> None:
    test = held_out(digests, share, seed)
    sides = [{name for name, held in zip(digests, test, strict=True) if held is np.bool_(side)} for side in (0, 1)]
    assert not sides[0] & sides[1]
    assert sides[0]
    assert sides[1]
    distinct = len(set(digests))
    assert len(sides[1]) == min(max(1, round(share * distinct)), distinct - 1)


@given(names, st.integers(0, 5), st.randoms())
def test_a_split_does_not_depend_on_the_order(digests: list[str], seed: int, random) -> None:
    before = dict(zip(digests, held_out(digests, 0.5, seed).tolist(), strict=True))
    shuffled = random.sample(digests, len(digests))
    assert before == dict(zip(shuffled, held_out(shuffled, 0.5, seed).tolist(), strict=True))


def test_other_seeds_split_otherwise() -> None:
    digests = [str(number) for number in range(40)]
    assert held_out(digests, 0.5, 0).tolist() != held_out(digests, 0.5, 1).tolist()


@pytest.mark.parametrize(("channels", "size"), [("separate", 2058), ("mean", 686), ("luma", 686)])
def test_channels_are_combined_as_said(tmp_path: Path, channels, size: int) -> None:
    images = [smooth_image(0), smooth_image(1)[:9], smooth_image(2)]
    found = Extractor(FeatureType("spam", channels), folder=tmp_path).measure(images)
    assert found.shape == (3, size) == (3, FeatureType("spam", channels).size)
    for image, row in zip(images, found, strict=True):
        planes = to_grey(image)[None] if channels == "luma" else np.ascontiguousarray(np.moveaxis(image, 2, 0))
        rows = spam(torch.from_numpy(planes)).numpy()
        np.testing.assert_array_equal(row, rows.ravel() if channels == "separate" else rows.mean(0))


def test_each_kind_has_its_own_channels_by_default() -> None:
    assert FeatureSettings().combination == "separate"
    assert FeatureSettings(features="srm").combination == "luma"
    assert FeatureSettings(features="srm", channels="mean").combination == "mean"


def test_features_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [smooth_image(0), smooth_image(1)]
    first = Extractor(FeatureType("spam", "separate"), folder=tmp_path).measure(images)

    def refuse(planes: torch.Tensor) -> torch.Tensor:
        raise AssertionError("computed again")

    monkeypatch.setattr(features_module, "spam", refuse)
    np.testing.assert_array_equal(Extractor(FeatureType("spam", "separate"), folder=tmp_path).measure(images), first)
    Extractor(FeatureType("spam", "mean"), folder=tmp_path).measure(images)  # of the same planes
    with pytest.raises(AssertionError, match="again"):
        Extractor(FeatureType("spam", "luma"), folder=tmp_path).measure(images)
    with pytest.raises(AssertionError, match="again"):
        Extractor(FeatureType("spam", "mean"), folder=tmp_path).measure([smooth_image(2)])


@pytest.mark.parametrize("damage", [b"", b"x" * 99, np.full((3, 686), np.nan).tobytes()])
def test_a_damaged_memory_is_passed_over(tmp_path: Path, damage: bytes) -> None:
    extractor = Extractor(FeatureType("spam", "separate"), folder=tmp_path)
    first = extractor.measure([smooth_image(0)])
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    file.write_bytes(damage)
    np.testing.assert_array_equal(extractor.measure([smooth_image(0)]), first)
    assert file.read_bytes() != damage


def test_a_memory_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    made = Extractor(FeatureType("spam", "luma"), folder=tmp_path / "file")
    assert made.measure([smooth_image(0)]).shape == (1, 686)


def test_an_image_that_is_too_small_is_told(extractor: Extractor) -> None:
    with pytest.raises(InputError, match="3×9 is too small for spam; 4×4"):
        extractor.measure([np.zeros((9, 3, 3), np.uint8)])
    extractor.check(np.zeros((4, 4, 3), np.uint8), "x.png")


@pytest.mark.parametrize("kind", ["srm", "srmq1"])
@pytest.mark.parametrize(("height", "width"), [(7, 40), (40, 7), (4, 4)])
def test_rich_models_need_larger_images(kind, height: int, width: int) -> None:
    extractor = Extractor(FeatureType(kind, "luma"))
    with pytest.raises(InputError, match=f"x.png: {width}×{height} is too small for {kind}; 8×8 pixels are needed"):
        extractor.check(np.zeros((height, width, 3), np.uint8), "x.png")
    extractor.check(np.zeros((8, 8, 3), np.uint8), "x.png")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["srm", "srmq1"])
def test_the_least_side_is_that_of_sealwatch(kind) -> None:
    pytest.importorskip("sealwatch")
    plane = to_grey(smooth_image(0))
    assert np.isfinite(rich_model(plane[:8, :8].copy(), kind)).all()
    with pytest.warns(RuntimeWarning, match="invalid value"):
        assert np.isnan(rich_model(plane[:7, :8].copy(), kind)).any()


def test_an_image_whose_features_are_not_finite_is_a_failure(
    tmp_path: Path, extractor: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write_image(tmp_path / "photos" / f"{number}.png", smooth_image(number))
    worse = torch.from_numpy(smooth_image(1)[:, :, 0].copy())

    def sometimes(planes: torch.Tensor) -> torch.Tensor:
        rows = spam(planes)
        rows[(planes == worse).all(2).all(1), 5] = torch.nan
        return rows

    monkeypatch.setattr(features_module, "spam", sometimes)
    found = measured(tmp_path / "photos", extractor)
    assert found.failures == {"1.png": f"{tmp_path / 'photos/1.png'}: its spam features are not finite; leave it out"}
    assert [sample.image for sample in found.samples] == ["0.png", "2.png"]
    images = [smooth_image(0), smooth_image(2)]
    assert found.digests == [pixel_digest(image) for image in images]
    np.testing.assert_array_equal(found.rows, extractor.measure(images))


@pytest.mark.parametrize("kind", ["srm", "srmq1"])
def test_rich_models_are_the_same_in_every_process(kind, python) -> None:
    """However texts are hashed there, which is drawn anew in each."""
    pytest.importorskip("sealwatch")
    code = f"""
import hashlib
import numpy as np
from pixelsem.defenses.rich_models import rich_model
plane = np.random.default_rng(0).integers(0, 256, (12, 12), np.uint8)
print(hashlib.sha256(rich_model(plane, {kind!r})).hexdigest())
"""
    told = [python("-c", code, env=os.environ | {"PYTHONHASHSEED": str(seed)}).stdout for seed in (0, 1, 2)]
    assert len(set(told)) == 1
    assert len(told[0].strip()) == 64


def test_a_process_that_dies_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr("pixelsem.defenses.rich_models.rich_model", dying.die)
    with pytest.raises(WorkerError, match=r"a process that computes srm died, .*--workers"):
        list(rich_models([np.zeros((8, 8), np.uint8)] * 2, "srm", 2))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [("srm", 34671), ("srmq1", 12753)])
def test_rich_models_are_those_of_the_luma(tmp_path: Path, kind, size: int) -> None:
    pytest.importorskip("sealwatch")
    image = smooth_image(0)
    rows = Extractor(FeatureType(kind, "luma"), workers=2, folder=tmp_path).measure([image, smooth_image(1)])
    assert rows.shape == (2, size)
    np.testing.assert_array_equal(rows[0], rich_model(to_grey(image), kind))
    assert (rows[0] != rich_model(np.ascontiguousarray(image[:, :, 0]), kind)).mean() > 0.3
    assert not np.array_equal(rows[0], rows[1])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shapes"), [("srm", [(24, 20)]), ("srmq1", [(24, 20), (16, 24), (20, 20)])])
def test_rich_models_are_exactly_those_of_sealwatch(tmp_path: Path, kind, shapes: list[tuple[int, int]]) -> None:
    """Submodel after submodel by their names, channel after channel."""
    extract = getattr(pytest.importorskip("sealwatch"), kind).extract
    images = [smooth_image(number)[:height, :width] for number, (height, width) in enumerate(shapes)]

    def expected(plane: np.ndarray) -> np.ndarray:
        return np.concatenate([submodel.ravel() for _, submodel in sorted(extract(plane).items())])

    colours = [np.stack([expected(image[:, :, channel].copy()) for channel in range(3)]) for image in images]
    wanted = {
        "separate": np.stack([np.concatenate(list(each)) for each in colours]),
        "mean": np.stack([each.mean(0) for each in colours]),
        "luma": np.stack([expected(to_grey(image)) for image in images]),
    }
    for channels, rows in wanted.items():
        found = Extractor(FeatureType(kind, channels), workers=1, folder=tmp_path).measure(images)
        np.testing.assert_array_equal(found, rows)


def test_samples_of_an_attack_are_pairs_of_its_successes(tmp_path: Path) -> None:
    samples = open_samples(make_stage(tmp_path / "stage", 3, failures=2)).items
    assert [(sample.kind, sample.id) for sample in samples] == [
        *(("clean", f"cat/{n}.png") for n in range(3)),
        *(("adversarial", f"cat/{n}.png") for n in range(3)),
    ]
    assert samples[0].path == tmp_path / "stage" / "clean" / "cat" / "0.png"
    assert samples[3].path == tmp_path / "stage" / "images" / "original" / "cat" / "0.png"


def test_failures_are_samples_where_they_are_wanted_and_were_kept(tmp_path: Path) -> None:
    stage = make_stage(tmp_path / "stage", 2, failures=3)
    samples = open_samples(stage, attempts=True).items
    assert [sample.image for sample in samples] == [
        *(f"clean/cat/{n}.png" for n in range(4)),
        *(f"images/original/cat/{n}.png" for n in range(2)),
        *(f"attempts/original/cat/{n}.png" for n in (2, 3)),
    ]
    assert [sample.kind for sample in samples] == ["clean"] * 4 + ["adversarial"] * 4
    assert len(open_samples(make_stage(tmp_path / "none", 0, failures=2), attempts=True).items) == 2


def test_some_of_the_images_are_drawn_with_all_that_was_made_of_them(tmp_path: Path) -> None:
    some, more = (open_samples(make_stage(tmp_path / str(count), count)) for count in (20, 40))
    first = {sample.id for sample in draw(some, 8, 0).items}
    assert len(first) == 8
    assert sorted(sample.id for sample in draw(some, 8, 0).items) == sorted([*first, *first])  # clean and adversarial
    assert first != {sample.id for sample in draw(some, 8, 1).items}
    # An attack that succeeded on more images draws the same where these are not among them.
    wider = {sample.id for sample in draw(more, 16, 0).items}
    assert wider & {sample.id for sample in some.items} <= {sample.id for sample in draw(some, 16, 0).items}
    assert draw(some, 30, 0) == some


def test_samples_of_a_folder_are_unknown(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "x.png", smooth_image(0))
    (sample,) = open_samples(tmp_path).items
    assert (sample.kind, sample.id, sample.image) == ("unknown", "a/x.png", "a/x.png")
    with pytest.raises(PixelsemError, match="no attack stage"):
        open_samples(tmp_path, "foreground")


def test_a_region_that_is_not_there_is_told(tmp_path: Path) -> None:
    stage = make_stage(tmp_path / "stage", 2)
    with pytest.raises(PixelsemError, match=r"of region 'foreground' \(it has original\)"):
        open_samples(stage, "foreground")
    with pytest.raises(PixelsemError, match="holds no adversarial images"):
        open_samples(make_stage(tmp_path / "none", 0, failures=2))


def test_noise_is_detected_in_images_that_were_held_out(tmp_path: Path, extractor: Extractor) -> None:
    found = measured(make_stage(tmp_path / "stage", 24), extractor)
    detector, records = train_detector(found, extractor, SETTINGS, 0.5, ("noise", "abc"))
    test = [record for record in records if record.split == "test"]
    assert len(test) == len(records) / 2 == 24
    assert all(record.detected == (record.kind == "adversarial") for record in test)
    splits: dict[str, set[str]] = {}
    for record in records:
        splits.setdefault(record.id, set()).add(record.split)
    assert all(len(sides) == 1 for sides in splits.values())
    digests = {d for d, s in zip(found.digests, found.samples, strict=True) if s.kind == "clean"}
    assert detector.seen < digests
    assert len(detector.seen) == 12
    together = list(zip(found.samples, found.digests, strict=True))
    learnt = {record.key for record in records if record.split == "train"}
    assert detector.made == {d for s, d in together if s.kind == "adversarial" and s.key in learnt}
    assert len(detector.made) == 12


def test_copies_of_an_image_are_on_one_side(tmp_path: Path, extractor: Extractor) -> None:
    stage = make_stage(tmp_path / "stage", 20)
    for number in range(10):
        write_image(stage / "clean" / "cat" / f"{number}.png", smooth_image(10 + number))
    detector, records = train_detector(measured(stage, extractor), extractor, SETTINGS, 0.5, ("noise", "abc"))
    by_id = {record.id: record.split for record in records}
    assert all(by_id[f"cat/{number}.png"] == by_id[f"cat/{number + 10}.png"] for number in range(10))
    assert len(detector.seen) == 5


def test_a_scorer_knows_what_was_trained_on(tmp_path: Path, extractor: Extractor) -> None:
    stage = make_stage(tmp_path / "stage", 12)
    found = measured(stage, extractor)
    detector, records = train_detector(found, extractor, SETTINGS, 0.5, ("noise", "abc"))
    splits = {record.key: record.split for record in records}
    # Another attack on the same photos, under names of their own.
    other = make_stage(tmp_path / "other", 14, strength=3)
    scored = Scorer(detector, extractor.type).score(measured(other, extractor))
    seen = [record for record in scored if record.split == "train"]
    assert {record.key for record in seen} == {key for key, split in splits.items() if split == "train"}
    assert len(seen) == 12
    # Adversarial images whose clean ones were scored before.
    late = measured(other, extractor)
    keep = [n for n, sample in enumerate(late.samples) if sample.kind == "adversarial"]
    rest = Measured([late.samples[n] for n in keep], [late.rows[n] for n in keep], [late.digests[n] for n in keep])
    known = [record for record in scored if record.kind == "clean"]
    assert Scorer(detector, extractor.type, known).score(rest) == [r for r in scored if r.kind == "adversarial"]


def test_a_scorer_knows_what_was_trained_on_wherever_it_lies(tmp_path: Path, extractor: Extractor) -> None:
    """Adversarial images in a folder, and beside clean ones that were not trained on."""
    stage = make_stage(tmp_path / "stage", 12)
    detector, records = train_detector(measured(stage, extractor), extractor, SETTINGS, 0.5, ("noise", "abc"))
    learnt = {record.image for record in records if record.split == "train"}
    scored = Scorer(detector, extractor.type).score(measured(stage / "images", extractor))
    assert {f"images/{record.image}" for record in scored if record.split == "train"} == {
        name for name in learnt if name.startswith("images/")
    }
    assert len(scored) == 12
    for number in range(12):
        write_image(stage / "clean" / "cat" / f"{number}.png", smooth_image(50 + number))
    scored = Scorer(detector, extractor.type).score(measured(stage, extractor))
    found = {record.image for record in scored if record.split == "train"}
    assert found == {name for name in learnt if name.startswith("images/")}


def test_what_cannot_be_read_is_a_failure_and_its_pair_is_left_out(tmp_path: Path, extractor: Extractor) -> None:
    stage = make_stage(tmp_path / "stage", 12)
    (stage / "clean" / "cat" / "3.png").write_bytes(b"")
    found = measured(stage, extractor)
    assert list(found.failures) == ["clean/cat/3.png"]
    _, records = train_detector(found, extractor, SETTINGS, 0.5, ("noise", "abc"))
    assert sum(record.kind == "clean" for record in records) == 11


def test_too_few_images_are_told(tmp_path: Path, extractor: Extractor) -> None:
    found = measured(make_stage(tmp_path / "stage", 5), extractor)
    with pytest.raises(PixelsemError, match="5 images with an adversarial version leave 3 to train on"):
        train_detector(found, extractor, SETTINGS, 0.5, ("noise", "abc"))
