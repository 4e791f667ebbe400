"""The outer loop of every attack, on networks whose answers NumPy can tell."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.de import differential_evolution
from pixelsem.attacks.settings import DESettings, GoalOptions, RegionOptions
from pixelsem.engine import attacking, scoring
from pixelsem.engine.attacking import AttackRun, Tally, changed_pixels
from pixelsem.engine.regions import RegionMaker
from pixelsem.engine.searching import AttackPlan, Searcher
from pixelsem.errors import OutputError, PixelsemError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.images import write_image
from pixelsem.models import Classifier, Preprocessing
from pixelsem.models.labels import RULES, Labels, labels_identity
from pixelsem.records import AttackRecord, SegmentRecord
from pixelsem.regions.masks import MaskSource
from pixelsem.sources import ImageItem, open_images
from pixelsem.stage import Stage, StageInfo, open_stage

SIDE = 8
COLOURS = ("red", "green", "blue", "dark")
SMALL: dict[str, Any] = {"population": 16, "generations": 5}

Pixels = NDArray[np.uint8]


class Brightest(nn.Module):
    """The largest value of each channel, and of the image's darkness: exact, whatever the batch."""

    def forward(self, x: Tensor) -> Tensor:
        top = x.amax((2, 3))
        return torch.cat([top, 1 - top.amax(1, keepdim=True)], 1) * 20


class Weighted(nn.Module):
    """Eight weighted sums of 8-bit values in integer arithmetic: exact, whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(WEIGHTS).float())

    def forward(self, x: Tensor) -> Tensor:
        return (x * 255).round().flatten(1) @ self.weight.T / 512


def balanced() -> NDArray[np.int64]:
    """Return weights that add up to nothing for every class."""
    half = np.random.default_rng(5).integers(-8, 9, (8, 3 * SIDE * SIDE // 2))
    return np.concatenate([half, -half], 1)


WEIGHTS = balanced()


def classifier(network: nn.Module | None = None, names: tuple[str, ...] = COLOURS) -> Classifier:
    preprocessing = Preprocessing((SIDE, SIDE), SIDE)
    return Classifier(network or Brightest(), name="tiny", class_names=names, preprocessing=preprocessing).eval()


def weighted() -> Classifier:
    return classifier(Weighted(), tuple("abcdefgh"))


def colour_of(pixels: Pixels) -> str:
    """Return the class that :class:`Brightest` sees, without torch."""
    top = pixels.reshape(-1, 3).max(0).astype(int)
    return COLOURS[int(np.argmax([*top, 255 - top.max()]))]


def resembling(number: int) -> Pixels:
    """Return noise with the pattern of one class in it: the higher ``number``, the harder to break."""
    noise = np.random.default_rng(number).normal(120, 6, (SIDE, SIDE, 3))
    pattern = WEIGHTS[number].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
    return np.clip(noise + (0.2 + 0.15 * number) * pattern, 0, 255).astype(np.uint8)


def open_png(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        return np.asarray(image)


def reddish(seed: int, level: int = 254, spots: int = 1) -> Pixels:
    """Return noise whose brightest value is the red of ``spots`` pixels, all of them inside :func:`middle`."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 200, (SIDE, SIDE, 3), np.uint8)
    inner = rng.permutation(16)[:spots]
    pixels[2 + inner // 4, 2 + inner % 4, 0] = level
    return pixels


def middle() -> Pixels:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[2:6, 2:6] = 255
    return mask


def run(stage: Path, images: Path | list[ImageItem], **options: Any) -> Tally:
    """Attack images into a stage; what is not given is small."""
    items = images if isinstance(images, list) else open_images(images).items
    return prepare(stage, items, **options).run()


def prepare(
    stage: Path,
    items: list[ImageItem],
    *,
    settings: dict[str, Any] | None = None,
    region: dict[str, Any] | None = None,
    goal: dict[str, Any] | None = None,
    masks: Path | None = None,
    model: Classifier | None = None,
    seed: int = 0,
    batch_size: int = 16,
    in_flight: int = 64,
    attack: Any = differential_evolution,
) -> AttackRun:
    model = model or classifier()
    where, aim = RegionOptions(**region or {}), GoalOptions(**goal or {})
    plan = AttackPlan(
        attack=attack,
        settings=DESettings(**SMALL | (settings or {})),
        region=where,
        goal=aim,
        labels=Labels(aim.labels, model.class_names),
        regions=RegionMaker(where, None if masks is None else MaskSource.open(masks), seed),
        seed=seed,
        in_flight=in_flight,
    )
    evaluator = Evaluator(model, device="cpu", batch_size=batch_size)
    made = Stage.create(stage, StageInfo("attack", "attack de", "one", {}, {}))
    return AttackRun(plan, Searcher(plan, evaluator), made, items)


def records(stage: Path) -> dict[tuple[str, ...], AttackRecord]:
    return {record.key: record for record in open_stage(stage).attack_records()}


def files(stage: Path) -> dict[str, bytes]:
    found = (path for path in stage.rglob("*") if path.is_file() and path.suffix in (".png", ".npz"))
    return {path.relative_to(stage).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: no test here pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder: six breakable red images, an unbreakable, a misclassified and an unlabelled one."""
    for number in range(6):
        write_image(tmp_path / f"photos/red/{number}.png", reddish(number))
    write_image(tmp_path / "photos/red/solid.png", reddish(6, 255, 9))
    write_image(tmp_path / "photos/green/wrong.png", reddish(7))
    write_image(tmp_path / "photos/other/plain.png", reddish(8))
    return tmp_path / "photos"


@pytest.fixture
def masks(photos: Path) -> Path:
    """Return a folder with the middle of every image as its mask."""
    for item in open_images(photos).items:
        write_image(photos.parent / "masks" / item.id, middle())
    return photos.parent / "masks"


# What is a success


@pytest.mark.parametrize("pixels", [1, 3])
@pytest.mark.parametrize("constraint", ["encode", "revert"])
def test_success_is_what_the_written_file_says(
    photos: Path, masks: Path, tmp_path: Path, pixels: int, constraint: str
) -> None:
    settings = {"pixels": pixels, "constraint": constraint}
    tally = run(tmp_path / "out", photos, region={"region": "foreground"}, masks=masks, settings=settings)
    found = records(tmp_path / "out")
    attacked = [record for record in found.values() if record.outcome == "attacked"]
    assert len(attacked) == tally.searched == 8
    assert 0 < tally.found == sum(record.success for record in attacked) < 8
    for record in attacked:
        stage = tmp_path / "out"
        clean, mask = open_png(stage / record.clean), open_png(stage / str(record.mask))
        assert (clean == open_png(photos / record.id)).all()
        assert (mask == middle()).all()
        assert record.region_pixels == 16
        assert (record.adversarial is not None) == record.success
        if record.adversarial is None:
            assert not (stage / "images/foreground" / record.id).exists()
            continue
        written = open_png(stage / record.adversarial)
        assert written.dtype == np.uint8
        assert colour_of(clean) == record.label == record.before.class_ == "red"
        assert colour_of(written) == record.after.class_ != "red"  # type: ignore[union-attr]
        rows, columns = np.nonzero((written != clean).any(2))
        assert 1 <= len(rows) <= pixels
        assert mask[rows, columns].all()
        assert [(p.x, p.y) for p in record.pixels] == list(zip(columns.tolist(), rows.tolist(), strict=True))
        assert [p.from_ for p in record.pixels] == [tuple(c) for c in clean[rows, columns].tolist()]
        assert [p.to for p in record.pixels] == [tuple(c) for c in written[rows, columns].tolist()]
    assert not found["red/solid.png", "foreground", "", "0"].success
    images = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out/images").rglob("*.*")}
    assert images == {record.adversarial for record in attacked if record.success}


def test_a_region_without_the_one_pixel_that_matters_cannot_succeed(photos: Path, masks: Path, tmp_path: Path) -> None:
    """Red reaches 255, so that no other channel gets above it: only its own pixel, in the middle, breaks it."""
    write_image(tmp_path / "one/red/1.png", reddish(1, 255))
    settings = {"population": 200, "generations": 4}
    run(tmp_path / "out", tmp_path / "one", region={"region": "all"}, masks=masks, settings=settings)
    success = {record.region: record.success for record in records(tmp_path / "out").values()}
    assert success == {"original": True, "foreground": True, "background": False}


def test_what_is_written_decides_not_what_was_found(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that gives back the clean image ends the run: nothing it says is recorded as a success."""

    def forget(path: Path, pixels: Pixels) -> None:
        relative = path.relative_to(tmp_path / "out").parts
        write_image(path, open_png(photos.joinpath(*relative[2:])) if relative[0] == "images" else pixels)

    monkeypatch.setattr(scoring, "write_image", forget)
    with pytest.raises(OutputError, match=r"images/.*\.png: reads back as other pixels"):
        run(tmp_path / "out", photos)
    assert not any(record.success for record in records(tmp_path / "out").values())
    assert not list((tmp_path / "out/images").rglob("*.*"))


def constant(change: Callable[[Pixels], None]) -> Any:
    """Return an attack that makes the same change to every image and claims nothing."""

    def attack(searches: Searches, evaluator: Evaluator, settings: Any, progress: Progress) -> Iterator[Outcome]:
        for index, image in enumerate(searches.image.tolist()):
            pixels = searches.images[image].permute(1, 2, 0).contiguous().numpy().copy()
            change(pixels)
            yield Outcome(index, torch.from_numpy(pixels).permute(2, 0, 1), 7, 9, 2)

    return attack


def test_an_attack_that_changes_nothing_has_failed(photos: Path, tmp_path: Path) -> None:
    tally = run(tmp_path / "out", photos, attack=constant(lambda pixels: None))
    assert (tally.searched, tally.found) == (8, 0)
    record = records(tmp_path / "out")["red/0.png", "original", "", "0"]
    assert (record.success, record.pixels, record.queries, record.candidates, record.generations) == (
        False, [], 7, 9, 2,
    )  # fmt: skip
    assert record.after is not None
    assert record.after.confidence == record.before.confidence


def test_failures_are_kept_as_they_were_scored(photos: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", photos)
    run(tmp_path / "bare", photos, goal={"attempts": False})
    found, bare = records(tmp_path / "out"), records(tmp_path / "bare")
    failed = [record for record in found.values() if record.outcome == "attacked" and not record.success]
    assert failed
    for record in failed:
        assert record.attempt == f"attempts/original/{record.id}"
        tried, clean = open_png(tmp_path / "out" / record.attempt), open_png(photos / record.id)
        assert record.after is not None
        assert colour_of(tried) == record.after.class_ == "red"
        rows, columns = np.nonzero((tried != clean).any(2))
        assert [(p.x, p.y) for p in record.pixels] == list(zip(columns.tolist(), rows.tolist(), strict=True))
    kept = {record.attempt for record in found.values()} - {None}
    assert kept == {record.attempt for record in failed}
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out/attempts").rglob("*.*")} == kept
    assert not (tmp_path / "bare/attempts").exists()
    assert {key: outcome(record) for key, record in bare.items()} == {
        key: outcome(record) | {"digests": bare[key].digests} for key, record in found.items()
    }


def test_many_changed_pixels_are_not_listed(photos: Path, tmp_path: Path) -> None:
    def darken(pixels: Pixels) -> None:
        pixels[:] = 0

    run(tmp_path / "out", photos, attack=constant(darken))
    record = records(tmp_path / "out")["red/solid.png", "original", "", "0"]
    assert record.success
    assert record.after is not None
    assert record.after.class_ == "dark"
    assert len(record.pixels) == SIDE * SIDE  # as many as are listed at most
    clean = np.zeros((9, 8, 3), np.uint8)
    assert changed_pixels(clean, clean + 1) == []
    assert len(changed_pixels(clean[:8], clean[:8] + 1)) == 64


def test_the_tally_is_what_the_manifest_says(photos: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = prepare(tmp_path / "out", open_images(photos).items)
    tally = made.run(lambda tally: seen.append((tally.searched, tally.queries)))
    found = [record for record in records(tmp_path / "out").values() if record.outcome == "attacked"]
    assert tally.total == 9
    assert tally.queries == sum(record.queries for record in found)
    assert tally.queries > 0
    assert seen == sorted(seen)
    assert seen[-1] == (8, tally.queries)
    for record in found:
        assert record.queries <= record.candidates == record.generations * SMALL["population"]
        with np.load(tmp_path / "out" / str(record.history)) as history:
            assert len(history["best"]) == record.generations
        if not record.success:
            assert record.generations == SMALL["generations"]


# What is not attacked


def test_misclassified_images_are_recorded_and_counted_apart(photos: Path, tmp_path: Path) -> None:
    tally = run(tmp_path / "out", photos)
    assert tally.skipped == {"misclassified": 1}
    record = records(tmp_path / "out")["green/wrong.png", "original", "", "0"]
    assert record.outcome == "misclassified"
    assert (record.label, record.label_source, record.before.class_) == ("green", "given", "red")
    assert (record.success, record.adversarial, record.after, record.history) == (False, None, None, None)
    assert (record.queries, record.candidates, record.generations, record.pixels) == (0, 0, 0, [])
    assert (open_png(tmp_path / "out" / record.clean) == open_png(photos / record.id)).all()
    again = run(tmp_path / "out", photos)
    assert (again.resumed, again.searched, again.skipped) == (9, 0, {})


def flagged_stage(path: Path, photos: Path, masks: Path) -> Path:
    stage = Stage.create(path, StageInfo("segment", "segment images", "two", {}, {"images": "../photos"}))
    for item in open_images(photos).items:
        shutil.copytree(masks, path / "masks", dirs_exist_ok=True)
        flags = ["degenerate-foreground: odd"] if item.id == "red/2.png" else []
        stage.append(SegmentRecord(item.id, item.id, f"masks/{item.id}", "binary", 0.25, flags))
    return path


@pytest.mark.parametrize("flagged", ["skip", "use"])
def test_flagged_masks(photos: Path, masks: Path, tmp_path: Path, flagged: str) -> None:
    stage = flagged_stage(tmp_path / "segmented", photos, masks)
    tally = run(tmp_path / "out", photos, region={"region": "all", "flagged": flagged}, masks=stage)
    outcome = {key[:2]: record.outcome for key, record in records(tmp_path / "out").items()}
    expected = "attacked" if flagged == "use" else "flagged-mask"
    assert outcome["red/2.png", "original"] == "attacked"  # which needs no mask
    assert outcome["red/2.png", "foreground"] == outcome["red/2.png", "background"] == expected
    assert outcome["red/1.png", "foreground"] == "attacked"
    assert tally.skipped.get("flagged-mask", 0) == (0 if flagged == "use" else 2)


def test_an_empty_region_is_recorded(photos: Path, masks: Path, tmp_path: Path) -> None:
    write_image(masks / "red/3.png", np.zeros((SIDE, SIDE), np.uint8))
    write_image(masks / "red/4.png", np.full((SIDE, SIDE), 255, np.uint8))
    tally = run(tmp_path / "out", photos, region={"region": "all"}, masks=masks)
    found = {key[:2]: (record.outcome, record.region_pixels) for key, record in records(tmp_path / "out").items()}
    assert found["red/3.png", "foreground"] == ("empty-region", 0)
    assert found["red/3.png", "background"] == ("attacked", 64)
    assert found["red/4.png", "foreground"] == ("attacked", 64)
    assert found["red/4.png", "background"] == ("empty-region", 0)
    assert tally.skipped == {"misclassified": 3, "empty-region": 2}
    assert tally.searched + sum(tally.skipped.values()) == tally.total == 27


def test_a_failing_image_does_not_end_the_run(photos: Path, masks: Path, tmp_path: Path) -> None:
    whole = (photos / "red/0.png").read_bytes()
    (photos / "red/0.png").write_bytes(whole[: len(whole) // 2])
    (photos / "red/1.png").write_text("no image")
    (masks / "red/2.png").unlink()
    write_image(masks / "red/3.png", np.zeros((SIDE, SIDE + 1), np.uint8))
    (masks / "red/4.png").write_bytes(b"")
    tally = run(tmp_path / "out", photos, region={"region": "foreground"}, masks=masks)
    assert sorted(tally.failures) == [f"red/{number}.png" for number in range(5)]
    assert tally.failures["red/2.png"] == f"red/2.png: has no mask in {masks}"
    assert "is 9×8, its image 8×8" in tally.failures["red/3.png"]
    for number, name in ((0, photos), (1, photos), (3, masks), (4, masks)):
        assert str(name / f"red/{number}.png") in tally.failures[f"red/{number}.png"]
    done = {record.id for record in records(tmp_path / "out").values()}
    assert done == {"red/5.png", "red/solid.png", "green/wrong.png", "other/plain.png"}
    # Repaired, only these are left to do.
    for number in range(5):
        write_image(photos / f"red/{number}.png", reddish(number))
        write_image(masks / f"red/{number}.png", middle())
    again = run(tmp_path / "out", photos, region={"region": "foreground"}, masks=masks)
    assert (again.searched, again.resumed, again.failures) == (5, 4, {})


# Goals


class Recorder:
    """An attack that notes what it was asked and fails."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.draws: list[float] = []
        self.seen: list[tuple[Pixels, NDArray[np.bool_]]] = []

    def __call__(
        self, searches: Searches, evaluator: Evaluator, settings: Any, progress: Progress
    ) -> Iterator[Outcome]:
        self.asked += zip(searches.labels.tolist(), searches.targets.tolist(), strict=True)
        self.draws += [float(rng.random()) for rng in searches.generators]
        for index, image in enumerate(searches.image.tolist()):
            self.seen.append((searches.images[image].permute(1, 2, 0).numpy(), searches.regions[index].numpy()))
            yield Outcome(index, searches.images[image], 0, 0, 1)


def test_every_other_class_is_a_target(photos: Path, tmp_path: Path) -> None:
    settings = {"population": 60, "generations": 6}
    tally = run(tmp_path / "out", photos, goal={"targeted": True}, settings=settings)
    found = records(tmp_path / "out")
    assert tally.total == len(found) == 27
    for item in open_images(photos).items:
        own = [record for record in found.values() if record.id == item.id]
        label = "green" if item.id == "green/wrong.png" else "red"
        assert {record.label for record in own} == {label}
        assert {record.target for record in own} == set(COLOURS) - {label}
    for record in found.values():
        if record.adversarial is not None:
            assert colour_of(open_png(tmp_path / "out" / record.adversarial)) == record.target
            assert record.adversarial == f"images/original/{record.id[:-4]}--to-{record.target}.png"
    success = {record.target for record in found.values() if record.success}
    assert success == {"green", "blue"}  # one pixel cannot make an image dark


def test_searches_draw_numbers_of_their_own(photos: Path, masks: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    goal = {"targeted": True, "repeats": 2}
    run(tmp_path / "out", photos, region={"region": "all"}, masks=masks, goal=goal, attack=recorder)
    assert len(recorder.draws) == len(set(recorder.draws)) == 8 * 3 * 3 * 2
    for seed, same in ((0, True), (1, False)):
        again = Recorder()
        items = open_images(photos).items[::-1]
        options = {"region": {"region": "all"}, "masks": masks, "goal": goal, "attack": again}
        run(tmp_path / str(seed), items, **options, in_flight=5, seed=seed)
        assert (set(again.draws) == set(recorder.draws)) == same
        assert same or not set(again.draws) & set(recorder.draws)


def test_one_target(photos: Path, tmp_path: Path) -> None:
    for target in ("blue", "2"):
        recorder = Recorder()
        run(tmp_path / target, photos, goal={"target": target}, attack=recorder)
        assert recorder.asked == [(0, 2)] * 8
        found = records(tmp_path / target)
        assert {record.target for record in found.values()} == {"blue"}
        assert len(found) == 9
    # An image of the target's own class has nowhere to go.
    write_image(photos / "blue/1.png", reddish(1)[:, :, ::-1].copy())
    run(tmp_path / "more", photos, goal={"target": "blue"})
    assert all(record.id != "blue/1.png" for record in records(tmp_path / "more").values())
    with pytest.raises(PixelsemError, match="--target: 'mauve' is none of the model's 4 classes \\(red, green"):
        run(tmp_path / "none", photos, goal={"target": "mauve"})


def test_repeats_are_different_searches(photos: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", photos, goal={"repeats": 3})
    found = records(tmp_path / "out")
    assert len(found) == 27
    for number in range(6):
        own = [found[f"red/{number}.png", "original", "", str(repeat)] for repeat in range(3)]
        histories = []
        for repeat, record in enumerate(own):
            assert record.history == f"history/original/red/{number}--repeat-{repeat}.npz"
            with np.load(tmp_path / "out" / record.history) as history:
                histories.append(history["mean"][0])
        assert len(set(histories)) == 3
    run(tmp_path / "once", photos)
    for key, record in records(tmp_path / "once").items():  # the first repeat is what one search alone is
        assert outcome(record) == outcome(found[key])


def test_targets_with_names_that_look_alike_keep_their_own_files(photos: Path, tmp_path: Path) -> None:
    model = classifier(names=("red", "a b", "a/b", "a-b"))
    run(tmp_path / "out", photos / "red", goal={"targeted": True}, model=model)
    found = records(tmp_path / "out").values()
    names = [record.history for record in found]
    assert len(names) == 21
    assert len(set(names)) == 21
    assert all((tmp_path / "out" / str(name)).is_file() for name in names)


# Regions


def test_one_label_of_a_map(photos: Path, tmp_path: Path) -> None:
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[:, 2:5], labels[:3, 5:] = 1, 2
    for item in open_images(photos).items:
        write_image(tmp_path / "labels" / item.id, labels)
    recorder = Recorder()
    run(tmp_path / "out", photos, region={"region": "label:2"}, masks=tmp_path / "labels", attack=recorder)
    for _, region in recorder.seen:
        assert (region == (labels == 2)).all()
    record = records(tmp_path / "out")["red/1.png", "label:2", "", "0"]
    assert (record.region_pixels, record.mask) == (9, "masks/label-2/red/1.png")
    assert (open_png(tmp_path / "out" / str(record.mask)) == 255 * (labels == 2)).all()
    tally = run(tmp_path / "none", photos, region={"region": "label:7"}, masks=tmp_path / "labels")
    assert tally.skipped == {"misclassified": 1, "empty-region": 8}


def test_matched_areas_are_equal_and_drawn_by_the_seed(photos: Path, masks: Path, tmp_path: Path) -> None:
    def drawn(name: str, region: str, seed: int) -> dict[tuple[str, str], NDArray[Any]]:
        options = {"region": region, "match_area": True}
        run(tmp_path / name, photos, region=options, masks=masks, seed=seed, attack=Recorder())
        found = [record for record in records(tmp_path / name).values() if record.mask]
        assert all(record.region_pixels == 16 for record in found)
        return {(record.id, record.region): open_png(tmp_path / name / str(record.mask)) > 0 for record in found}

    first = drawn("all", "all", 3)
    for (_, region), mask in first.items():
        assert mask.sum() == 16
        assert (mask <= ((middle() > 0) == (region == "foreground"))).all()
    assert (first["red/1.png", "background"] != first["red/2.png", "background"]).any()
    alone = drawn("background", "background", 3)
    assert len(alone) == 9
    assert all((mask == first[key]).all() for key, mask in alone.items())
    other = drawn("other", "background", 4)
    assert all((mask != first[key]).any() for key, mask in other.items())


@pytest.mark.parametrize(
    ("option", "foreground"), [({}, 16), ({"grow": 1}, 32), ({"shrink": 1}, 4), ({"shrink": 2}, 0)]
)
def test_the_border_moves(photos: Path, masks: Path, tmp_path: Path, option: dict[str, int], foreground: int) -> None:
    run(tmp_path / "out", photos, region={"region": "all", **option}, masks=masks, attack=Recorder())
    found = records(tmp_path / "out")
    area = {record.region: record.region_pixels for key, record in found.items() if key[0] == "red/1.png"}
    assert area == {"original": 64, "foreground": foreground, "background": 64 - foreground}
    inside = open_png(tmp_path / "out/masks/foreground/red/1.png") > 0
    outside = open_png(tmp_path / "out/masks/background/red/1.png") > 0
    assert (inside != outside).all()
    assert inside[3, 3] == (foreground > 0)
    assert inside[1, 3] == (foreground == 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "sky"}, "--region: 'sky' is none of"),
        ({"region": "label:x"}, "--region: 'label:x' is none of"),
        ({"region": "foreground", "grow": 1, "shrink": 1}, "--grow and --shrink exclude each other"),
        ({"region": "original", "match_area": True}, "--match-area"),
        ({"region": "label:1", "match_area": True}, "--match-area"),
        ({"region": "original", "grow": 1}, "--grow"),
        ({"region": "original", "shrink": 1}, "--shrink"),
    ],
)
def test_regions_that_contradict_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PixelsemError, match=message):
        RegionOptions(**options)


def test_regions_need_masks() -> None:
    with pytest.raises(PixelsemError, match=r"--region foreground needs masks: .*pixelsem segment"):
        RegionMaker(RegionOptions(region="foreground"), None, 0)
    RegionMaker(RegionOptions(), None, 0)


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_masks_go_the_way_of_their_images(tmp_path: Path, resize: str) -> None:
    """The mask is drawn into the image, so that both must still agree after resizing."""
    mask = np.zeros((24, 40), np.uint8)
    mask[6:18, 10:30] = 255
    rng = np.random.default_rng(0)
    image = np.where(mask[..., None] > 0, 220, 20) + rng.integers(0, 20, (24, 40, 3))
    image[:, :, 1:] //= 2
    write_image(tmp_path / "photos/a.png", image.astype(np.uint8))
    write_image(tmp_path / "masks/a.png", mask)
    recorder = Recorder()
    region = {"region": "foreground", "resize": resize}
    run(tmp_path / "out", tmp_path / "photos", region=region, masks=tmp_path / "masks", attack=recorder)
    pixels, inside = recorder.seen[0]
    assert inside.sum() == (28 if resize == "crop" else 16)
    assert ((pixels[:, :, 0] > 120) == inside).all()
    record = records(tmp_path / "out")["a.png", "foreground", "", "0"]
    assert (open_png(tmp_path / "out" / record.clean) == pixels).all()
    assert (record.height, record.width) == (SIDE, SIDE)


def test_masks_of_the_models_size_are_taken_as_they_are(tmp_path: Path) -> None:
    write_image(tmp_path / "photos/a.png", np.full((24, 24, 3), (200, 10, 10), np.uint8))
    write_image(tmp_path / "masks/a.png", middle())
    recorder = Recorder()
    run(
        tmp_path / "out",
        tmp_path / "photos",
        region={"region": "background"},
        masks=tmp_path / "masks",
        attack=recorder,
    )
    assert (recorder.seen[0][1] == (middle() == 0)).all()


def test_equal_stems_keep_their_own_files(tmp_path: Path) -> None:
    for number, name in enumerate(("a/1.png", "b/1.png", "1.png", "c/1.png", "c/1.bmp")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(reddish(number, 200)).save(path)
    run(tmp_path / "out", tmp_path / "photos")
    found = list(records(tmp_path / "out").values())
    for field in ("clean", "adversarial", "history"):
        assert len({getattr(record, field) for record in found}) == 5
    for record in found:
        assert (open_png(tmp_path / "out" / record.clean) == open_png(tmp_path / "photos" / record.id)).all()


# Labels


def labels_of(stage: Path) -> dict[str, tuple[str, str]]:
    return {record.id: (record.label, record.label_source) for record in records(stage).values()}


def test_labels_from_folders_else_from_the_model(photos: Path, tmp_path: Path) -> None:
    write_image(photos / "deep/red/inner/1.png", reddish(9))
    write_image(photos / "green/red/1.png", reddish(10))  # the nearest folder counts
    run(tmp_path / "auto", photos, attack=Recorder())
    found = labels_of(tmp_path / "auto")
    assert found["red/0.png"] == found["deep/red/inner/1.png"] == found["green/red/1.png"] == ("red", "given")
    assert found["green/wrong.png"] == ("green", "given")
    assert found["other/plain.png"] == ("red", "predicted")


def test_labels_must_be_there_when_given(photos: Path, tmp_path: Path) -> None:
    tally = run(tmp_path / "out", photos, goal={"labels": "given"}, attack=Recorder())
    assert list(tally.failures) == ["other/plain.png"]
    assert "--labels predicted" in tally.failures["other/plain.png"]
    assert set(labels_of(tmp_path / "out").values()) == {("red", "given"), ("green", "given")}


def test_labels_as_the_model_sees_them(photos: Path, tmp_path: Path) -> None:
    tally = run(tmp_path / "out", photos, goal={"labels": "predicted"}, attack=Recorder())
    assert tally.skipped == {}
    assert set(labels_of(tmp_path / "out").values()) == {("red", "predicted")}


@pytest.mark.parametrize("start", ["", "id,class\n", "\ufeffid,class\r\n", "\n"])
def test_labels_from_a_table(photos: Path, tmp_path: Path, start: str) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(start + 'red/0.png,red\n"red/1.png",0\n\ngreen/wrong.png,red\nred/2.png,blue\n', encoding="utf-8")
    items = [item for item in open_images(photos).items if item.id != "other/plain.png"]
    tally = run(tmp_path / "out", items, goal={"labels": str(table)}, attack=Recorder())
    found = labels_of(tmp_path / "out")
    assert found == {
        "red/0.png": ("red", "given"),
        "red/1.png": ("red", "given"),
        "green/wrong.png": ("red", "given"),
        "red/2.png": ("blue", "given"),
    }
    assert tally.skipped == {"misclassified": 1}
    assert sorted(tally.failures) == ["red/3.png", "red/4.png", "red/5.png", "red/solid.png"]
    assert "has no line for 'red/3.png'" in tally.failures["red/3.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,class\n\na.png,red\nb.png,mauve\n", r"labels\.csv, line 4: 'mauve' is none of the model's 4 classes"),
        ("a.png,4\n", r"labels\.csv, line 1: '4' is none of"),
        ("a.png,red,1\n", r"labels\.csv, line 1: two columns expected \(id,class\), 3 found"),
        ("id,class\n", "holds no labels"),
        ("", "holds no labels"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(PixelsemError, match=message):
        Labels(str(tmp_path / "labels.csv"), COLOURS)


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("gone.csv", "."):
        with pytest.raises(PixelsemError, match=r"--labels: .*cannot be read.*given, predicted or a CSV"):
            Labels(str(tmp_path / name), COLOURS)
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe\xe4.png,red\n")
    with pytest.raises(PixelsemError, match="cannot be read"):
        Labels(str(tmp_path / "latin.csv"), COLOURS)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_no_file_of_that_name(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / rule).write_text("a.png,red\n")
    assert labels_identity(rule) == rule
    assert labels_identity(f"./{rule}") not in (rule, f"./{rule}")


def test_a_model_of_many_classes_names_the_first() -> None:
    labels = Labels("auto", tuple(f"class {number}" for number in range(1000)))
    assert labels.index("class 7", "--target") == labels.index("7", "--target") == 7
    with pytest.raises(PixelsemError, match=r"1000 classes \(class 0, .*class 9, …\)"):
        labels.index("dog", "--target")


# What a record says


def softmax_of(pixels: Pixels) -> NDArray[np.float64]:
    logits = WEIGHTS @ pixels.transpose(2, 0, 1).reshape(-1).astype(np.int64) / 512
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


def test_the_best_five_and_what_became_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        write_image(tmp_path / f"photos/{number}.png", rng.integers(60, 180, (SIDE, SIDE, 3), np.uint8))
    run(tmp_path / "out", tmp_path / "photos", model=weighted(), settings={"generations": 2})
    found = list(records(tmp_path / "out").values())
    assert 0 < sum(record.success for record in found) < 12
    for record in found:
        clean = open_png(tmp_path / "out" / record.clean)
        after = clean.copy()
        for pixel in record.pixels:
            after[pixel.y, pixel.x] = pixel.to
        if record.adversarial is not None:
            assert (after == open_png(tmp_path / "out" / record.adversarial)).all()
        old, new = softmax_of(clean), softmax_of(after)
        best_old, best_new = np.argsort(-old)[:5], np.argsort(-new)[:5]
        assert record.after is not None
        for said, best, true in ((record.before, best_old, old), (record.after, best_new, new)):
            assert [name for name, _ in said.top5] == ["abcdefgh"[c] for c in best]
            assert [share for _, share in said.top5] == pytest.approx(true[best], abs=1e-6)
            assert (said.class_, said.confidence) == said.top5[0]
        assert [name for name, _, _ in record.after.of_before_top5] == ["abcdefgh"[c] for c in best_old]
        assert [share for _, share, _ in record.after.of_before_top5] == pytest.approx(new[best_old], abs=1e-6)
        assert [rank for _, _, rank in record.after.of_before_top5] == [int((new > new[c]).sum()) + 1 for c in best_old]
    assert any(record.after.of_before_top5[0][2] > 2 for record in found if record.after)


def test_fewer_than_five_classes(photos: Path, tmp_path: Path) -> None:
    run(tmp_path / "out", photos)
    record = records(tmp_path / "out")["red/1.png", "original", "", "0"]
    assert len(record.before.top5) == 4
    assert record.after is not None
    assert sorted(rank for _, _, rank in record.after.of_before_top5) == [1, 2, 3, 4]


# The same seed, the same records


def outcome(record: AttackRecord) -> dict[str, Any]:
    """Return what a search found, without where it is kept."""
    plain: dict[str, Any] = msgspec.to_builtins(record)
    files = ("clean", "mask", "adversarial", "attempt", "history")
    return {name: plain[name] for name in plain if name not in ("id", *files)}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return folders of six images and their masks for :class:`Weighted`."""
    root = tmp_path_factory.mktemp("many")
    for number in range(6):
        write_image(root / f"photos/{number % 2}/{number}.png", resembling(number))
        write_image(root / f"masks/{number % 2}/{number}.png", middle())
    return root / "photos", root / "masks"


def repeat_of(many: tuple[Path, Path], stage: Path, items: list[ImageItem] | None = None, **options: Any) -> Tally:
    images = open_images(many[0]).items if items is None else items
    settings = {"population": 10, "generations": 4, "pixels": 2}
    region = {"region": "all"}
    return run(stage, images, region=region, masks=many[1], model=weighted(), settings=settings, **options)


@pytest.fixture(scope="module")
def reference(many: tuple[Path, Path]) -> Path:
    """Return the stage that one run without any interruption leaves."""
    stage = many[0].parent / "reference"
    tally = repeat_of(many, stage)
    assert tally.searched == 18
    assert 0 < tally.found < 18
    assert {record.generations for record in records(stage).values()} > {1, 4}
    return stage


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("in_flight", [1, 3, 64])
def test_batches_change_nothing(
    many: tuple[Path, Path], reference: Path, tmp_path: Path, batch_size: int, in_flight: int
) -> None:
    repeat_of(many, tmp_path / "again", batch_size=batch_size, in_flight=in_flight)
    assert records(tmp_path / "again") == records(reference)
    assert files(tmp_path / "again") == files(reference)


def test_another_seed_changes_the_searches(many: tuple[Path, Path], reference: Path, tmp_path: Path) -> None:
    repeat_of(many, tmp_path / "other", seed=1)
    first, other = records(reference), records(tmp_path / "other")
    assert first.keys() == other.keys()
    assert all(first[key].pixels != other[key].pixels for key in first)


def test_half_of_the_images_and_their_order_change_nothing(
    many: tuple[Path, Path], reference: Path, tmp_path: Path
) -> None:
    items = open_images(many[0]).items
    repeat_of(many, tmp_path / "back", items[::-1])
    assert records(tmp_path / "back") == records(reference)
    assert list(records(tmp_path / "back")) != list(records(reference))
    repeat_of(many, tmp_path / "half", items[1::2])
    chosen = {item.id for item in items[1::2]}
    assert records(tmp_path / "half") == {key: r for key, r in records(reference).items() if key[0] in chosen}


@pytest.mark.parametrize("kept", [0, 1, 7, 17, 18])
@pytest.mark.parametrize("lost", ["lines", "lines and files", "lines and half of one"])
def test_resumed_is_as_never_interrupted(
    many: tuple[Path, Path], reference: Path, tmp_path: Path, kept: int, lost: str
) -> None:
    stage = tmp_path / "again"
    shutil.copytree(reference, stage)
    lines = (stage / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    rest = lines[kept][: len(lines[kept]) // 2] if lost == "lines and half of one" and kept < 18 else b""
    (stage / "manifest.jsonl").write_bytes(b"".join(lines[:kept]) + rest)
    if lost == "lines and files":
        for line in lines[kept:]:
            record = json.loads(line)
            for name in ("history", "adversarial", "mask", "clean"):
                if record[name] is not None:
                    (stage / record[name]).unlink(missing_ok=True)
        for line in lines[:kept]:  # of these nothing may be lost
            record = json.loads(line)
            for name in ("mask", "clean"):
                if record[name] is not None:
                    shutil.copy(reference / record[name], stage / record[name])
    tally = repeat_of(many, stage, in_flight=4)
    assert (tally.resumed, tally.searched) == (kept, 18 - kept)
    assert records(stage) == records(reference)
    assert files(stage) == files(reference)
    assert len((stage / "manifest.jsonl").read_bytes().splitlines()) == 18


def test_the_same_picture_under_two_names(many: tuple[Path, Path], tmp_path: Path) -> None:
    own = tmp_path / "photos", tmp_path / "masks"
    for source, folder in zip(many, own, strict=True):
        shutil.copytree(source, folder)
        shutil.copy(folder / "0/4.png", folder / "1/copy.png")
    repeat_of(own, tmp_path / "out")
    found = records(tmp_path / "out")
    for region in ("original", "foreground", "background"):
        first, copy = found["0/4.png", region, "", "0"], found["1/copy.png", region, "", "0"]
        assert outcome(first) == outcome(copy)
        assert first.clean != copy.clean


@pytest.mark.parametrize("ticks", [0, 3, 7, 10])
def test_time_limit_stops_cleanly(
    many: tuple[Path, Path], reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ticks: int
) -> None:
    """The clock moves by one second whenever somebody looks at it."""
    clock = iter(range(10**6))
    with monkeypatch.context() as patched:
        patched.setattr(attacking, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        tally = repeat_of(many, tmp_path / "out", goal={"time_limit": ticks}, in_flight=6)
    assert tally.out_of_time
    done = records(tmp_path / "out")
    assert len(done) == tally.searched < 18
    assert (tally.searched > 0) == (ticks > 0)
    assert done.items() <= records(reference).items()
    again = repeat_of(many, tmp_path / "out", in_flight=6)
    assert not again.out_of_time
    assert again.resumed == tally.searched
    assert records(tmp_path / "out") == records(reference)
    assert files(tmp_path / "out") == files(reference)


def test_time_limit_that_ends_the_only_group(
    many: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(attacking, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    tally = repeat_of(many, tmp_path / "out", goal={"time_limit": 3})
    assert tally.out_of_time
    assert tally.searched < 18


def test_a_full_disk_ends_the_run_and_keeps_what_is_done(
    many: tuple[Path, Path], reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def fill(path: Path, pixels: Pixels) -> None:
        if len(written) == 9:
            raise OutputError(f"{path}: cannot be written: No space left on device")
        write_image(path, pixels)
        written.append(path)

    with monkeypatch.context() as patched:
        patched.setattr(attacking, "write_image", fill)
        with pytest.raises(OutputError, match="No space left"):
            repeat_of(many, tmp_path / "out", in_flight=3)
    done = records(tmp_path / "out")
    assert 0 < len(done) < 18
    assert done.items() <= records(reference).items()
    repeat_of(many, tmp_path / "out")
    assert records(tmp_path / "out") == records(reference)
    assert files(tmp_path / "out") == files(reference)
