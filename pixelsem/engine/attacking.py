"""The outer loop of every attack: read, skip, search, write, re-score, record.

Attacks only search (:mod:`pixelsem.attacks.base`). What is a success is decided here, in one place: the
top-1 of the written 8-bit file, read back and scored in fp32.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.attacks.base import Attack, Outcome, Progress, Searches, Vulnerability, is_hit
from pixelsem.attacks.random import generator
from pixelsem.attacks.settings import GoalOptions, RegionOptions
from pixelsem.engine.overlap import Ahead, Behind
from pixelsem.engine.regions import RegionMaker
from pixelsem.errors import InputError, OutputError
from pixelsem.files import write_atomically
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.images import pixel_digest, read_image, write_image
from pixelsem.models.inputs import Resize, fit_image
from pixelsem.models.labels import Labels
from pixelsem.records import AttackRecord, PixelChange, Prediction, PredictionAfter
from pixelsem.records import Outcome as OutcomeName
from pixelsem.sources import ImageItem
from pixelsem.stage import Stage, png_names

_READ_AHEAD = 32  # images
_WRITE_BEHIND = 64  # outcomes

#: Attacks that change more pixels than this do not list them one by one.
MAX_LISTED_PIXELS = 64


#: Makes the fields of :class:`Searches` that guide an attack, by name and per image, from uint8 [N, 3, H, W] images
#: and their labels, int64 [N].
Guide = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


class Picture(Protocol):
    """Draws a map of vulnerable pixels for people."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        region: NDArray[np.bool_],
        danger: NDArray[np.float32],
        vulnerable: NDArray[np.bool_],
    ) -> NDArray[np.uint8]:
        """Return uint8 [h, w, 3] of an image, uint8 [H, W, 3], and what is known of its pixels, [H, W] each.

        ``danger`` is how near each came to what the search is after, in [0, 1].
        """


@runtime_checkable
class GuidesImages(Protocol):
    """A guide that also makes fields of :class:`Searches` image by image, while others are attacked."""

    def of_image(
        self, image_id: str, shape: tuple[int, ...], pixels: NDArray[np.uint8], resize: Resize
    ) -> Mapping[str, NDArray[Any]]:
        """Return the fields of one image; on the reader's thread.

        ``shape`` is that of the source image, ``pixels`` uint8 [H, W, 3] the image at the classifier's resolution,
        which it came to by ``resize``. Raises :class:`InputError` where that one image has a problem.
        """


@dataclass(frozen=True)
class AttackPlan:
    """Everything that says what an attack run does.

    ``settings`` go to ``attack`` as they are; ``seed`` and the clean pixels key every random draw. ``guide`` makes
    what else the attack goes by. ``picture`` draws the maps of attacks that make such.
    """

    attack: Attack
    settings: Any
    region: RegionOptions
    goal: GoalOptions
    labels: Labels
    regions: RegionMaker
    seed: int
    in_flight: int = 64
    guide: Guide | None = None
    picture: Picture | None = None


@dataclass
class Tally:
    """Counts of a run, for progress and summary. ``failures`` maps an image to its one-line problem."""

    total: int = 0
    searched: int = 0
    found: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    queries: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    out_of_time: bool = False
    on_change: Callable[[Tally], None] = lambda _: None


class _Read(NamedTuple):
    """What is read of one image: uint8 [H, W, 3] at the classifier's resolution, regions, the mask's flags, guides."""

    pixels: NDArray[np.uint8]
    regions: Mapping[str, NDArray[np.bool_]]
    flags: tuple[str, ...]
    guides: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class _Image:
    """One clean image, ready to be attacked."""

    item: ImageItem
    pixels: NDArray[np.uint8]  # [H, W, 3] at the classifier's resolution
    label: int
    label_source: str
    logits: Tensor  # float32 [classes] of the clean image, on the CPU
    regions: Mapping[str, NDArray[np.bool_]]
    flags: tuple[str, ...]
    guides: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class _Task:
    """One search: image × region × target × repeat."""

    image: _Image
    region: str
    target: int | None
    repeat: int


class AttackRun:
    """Runs a plan over images into a stage. One image's problem never ends the run."""

    def __init__(
        self,
        plan: AttackPlan,
        evaluator: Evaluator,
        stage: Stage,
        items: list[ImageItem],
        names: Mapping[str, str] | None = None,
    ) -> None:
        """``names`` are the files by id (default: :func:`png_names` of ``items``), for items that are only a part."""
        self.plan = plan
        self.evaluator = evaluator
        self.classifier = evaluator.classifier
        self.names = self.classifier.class_names
        self.stage = stage
        self.items = items
        self.files = names or png_names(item.id for item in items)
        self.slugs = _slugs(self.names)
        self.tally = Tally()
        self._reader, self._writer = Ahead(_READ_AHEAD), Behind(_WRITE_BEHIND)

    def searches_per_image(self) -> int:
        """Return how many searches each attacked image stands for."""
        return len(self.plan.region.regions) * len(self._targets(0)) * self.plan.goal.repeats

    def total(self) -> int:
        """Return how many searches the whole run stands for, those that are skipped or done before included."""
        return len(self.items) * self.searches_per_image()

    def run(self, on_change: Callable[[Tally], None] = lambda _: None) -> Tally:
        """Attack everything the manifest does not hold yet; return the counts.

        Raises :class:`pixelsem.errors.OutputError` where the stage cannot be written: what is in the manifest
        stays valid.
        """
        self.tally.on_change = on_change
        self.tally.total = self.total()
        limit = self.plan.goal.time_limit
        deadline = None if limit is None else time.monotonic() + limit
        with self._reader, self._writer:
            for group in self._groups(self._tasks(self.stage.keys())):
                if deadline is not None and time.monotonic() > deadline:
                    self.tally.out_of_time = True
                    break
                self._search(group, deadline)
        return self.tally

    def measure_rate(self, access: Literal["white", "black"], pixels: int) -> float:
        """Return the queries per second of the evaluator, tried on grey images."""
        searches = max(1, min(self.plan.in_flight, self.total()))
        if access == "white":
            return self.evaluator.measure_gradient_rate(searches)
        self.evaluator.attach_grey()
        return self.evaluator.measure_rate(searches * getattr(self.plan.settings, "population", 1), pixels)

    def _groups(self, tasks: Iterable[_Task]) -> Iterator[list[_Task]]:
        group: list[_Task] = []
        for task in tasks:
            group.append(task)
            if len(group) == self.plan.in_flight:
                yield group
                group = []
        if group:
            yield group

    def _tasks(self, done: set[tuple[str, ...]]) -> Iterator[_Task]:
        """Yield what is left to search; record what is skipped."""
        per_image = Counter(key[0] for key in done)
        left = [item for item in self.items if per_image[item.id] < self.searches_per_image()]
        self.tally.resumed += (len(self.items) - len(left)) * self.searches_per_image()
        for item, read in self._reader.map(self._read, left):
            try:
                image = self._prepare(item, read())
            except InputError as error:
                self.tally.failures[item.id] = str(error)
                continue
            for task in self._tasks_of(image):
                if self._key(task) in done:
                    self.tally.resumed += 1
                elif (reason := self._reason_to_skip(task)) is not None:
                    self._skip(task, reason)
                else:
                    yield task

    def _read(self, item: ImageItem) -> _Read:
        """Read an image and its regions; on the reader's thread."""
        preprocessing, how = self.classifier.preprocessing, self.plan.region.resize
        full = read_image(item.path)
        pixels = np.ascontiguousarray(fit_image(full, preprocessing, how))
        regions, flags = self.plan.regions.of(item.id, full.shape, pixels, preprocessing)
        guide = self.plan.guide
        if not isinstance(guide, GuidesImages):
            return _Read(pixels, regions, flags, {})
        return _Read(pixels, regions, flags, guide.of_image(item.id, full.shape, pixels, how))

    def _prepare(self, item: ImageItem, read: _Read) -> _Image:
        logits = self._logits(read.pixels)
        label, source = self.plan.labels.of(item.id, int(logits.argmax()))
        return _Image(item, read.pixels, label, source, logits, read.regions, read.flags, read.guides)

    def _logits(self, pixels: NDArray[np.uint8]) -> Tensor:
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        return self.evaluator.confirm(image)[0].cpu()

    def _targets(self, label: int) -> list[int | None]:
        goal = self.plan.goal
        if goal.target is not None:
            target = self.plan.labels.index(goal.target, "--target")
            return [target]
        return [c for c in range(len(self.names)) if c != label] if goal.targeted else [None]

    def _tasks_of(self, image: _Image) -> Iterator[_Task]:
        for region in self.plan.region.regions:
            for target in self._targets(image.label):
                if target == image.label:
                    self._count_skipped("is-target", self.plan.goal.repeats)
                    continue
                for repeat in range(self.plan.goal.repeats):
                    yield _Task(image, region, target, repeat)

    def _reason_to_skip(self, task: _Task) -> OutcomeName | None:
        if int(task.image.logits.argmax()) != task.image.label:
            return "misclassified"
        if task.image.flags and task.region != "original" and self.plan.region.flagged == "skip":
            return "flagged-mask"
        if not task.image.regions[task.region].any():
            return "empty-region"
        return None

    def _skip(self, task: _Task, reason: OutcomeName) -> None:
        self._writer.submit(lambda: self.stage.append(self._record(task, reason, None, None, None)))
        self._count_skipped(reason)

    def _count_skipped(self, reason: str, count: int = 1) -> None:
        self.tally.skipped[reason] = self.tally.skipped.get(reason, 0) + count
        self.tally.on_change(self.tally)

    def _search(self, tasks: list[_Task], deadline: float | None) -> None:
        before = self.tally.queries
        start = self.evaluator.queries

        def changed(progress: Progress) -> None:
            self.tally.queries = before + progress.queries - start
            self.tally.on_change(self.tally)

        progress = Progress(on_change=changed, should_stop=lambda: deadline is not None and time.monotonic() > deadline)
        left = len(tasks)
        for outcome in self.plan.attack(self._searches(tasks), self.evaluator, self.plan.settings, progress):
            self._finish(tasks[outcome.search], outcome)
            left -= 1
        self.tally.out_of_time = left > 0
        self.tally.queries = before + self.evaluator.queries - start

    def _searches(self, tasks: list[_Task]) -> Searches:
        images: dict[str, _Image] = {task.image.item.id: task.image for task in tasks}
        order = {image_id: number for number, image_id in enumerate(images)}
        pixels = torch.from_numpy(np.stack([image.pixels for image in images.values()])).permute(0, 3, 1, 2)
        labels = torch.tensor([image.label for image in images.values()])
        guides = {} if self.plan.guide is None else dict(self.plan.guide(pixels, labels))
        for name in next(iter(images.values())).guides:
            guides[name] = torch.from_numpy(np.stack([image.guides[name] for image in images.values()]))
        image = torch.tensor([order[task.image.item.id] for task in tasks])
        return Searches(
            images=pixels.contiguous(),
            image=image,
            labels=labels[image],
            targets=torch.tensor([-1 if task.target is None else task.target for task in tasks]),
            regions=torch.from_numpy(np.stack([task.image.regions[task.region] for task in tasks])),
            generators=[self._generator(task) for task in tasks],
            **{name: guide[image] for name, guide in guides.items()},
        )

    def _generator(self, task: _Task) -> np.random.Generator:
        return generator(self.plan.seed, task.repeat, task.image.pixels, task.region, task.target)

    def _finish(self, task: _Task, outcome: Outcome) -> None:
        """Decide an outcome's success in fp32 and have it written; the search goes on meanwhile."""
        pixels = np.ascontiguousarray(outcome.adversarial.permute(1, 2, 0).numpy())
        logits = self._logits(pixels)
        adversarial = self._file("images", task) if self._hits(task, logits) else None
        self._writer.submit(lambda: self._write(task, outcome, logits, adversarial, pixels))
        self.tally.searched += 1
        self.tally.found += adversarial is not None
        self.tally.on_change(self.tally)

    def _write(
        self, task: _Task, outcome: Outcome, logits: Tensor, adversarial: str | None, pixels: NDArray[np.uint8]
    ) -> None:
        """Write one outcome's files, then its record; on the writer's thread.

        What was scored is what can be read back: that is looked at, pixel by pixel.
        """
        if adversarial is not None:
            path = self.stage.path / adversarial
            write_image(path, pixels)
            if not np.array_equal(read_image(path), pixels):
                path.unlink()
                raise OutputError(f"{path}: reads back as other pixels than were written; is the disk sound?")
        self._write_history(task, outcome)
        if outcome.vulnerability is not None:
            self._write_map(task, outcome.vulnerability)
        self.stage.append(self._record(task, "attacked", outcome, logits, adversarial, pixels))

    def _hits(self, task: _Task, logits: Tensor) -> bool:
        target = torch.tensor([-1 if task.target is None else task.target])
        return bool(is_hit(logits[None], torch.tensor([task.image.label]), target)[0])

    def _write_history(self, task: _Task, outcome: Outcome) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **outcome.history)  # type: ignore[arg-type]
        with write_atomically(self.stage.path / self._file("history", task)) as file:
            file.write(buffer.getvalue())

    def _write_map(self, task: _Task, found: Vulnerability) -> None:
        write_image(self.stage.path / self._file("maps", task), np.rint(found.level * 65535).astype(np.uint16))
        if self.plan.picture is not None:
            region = task.image.regions[task.region]
            danger = found.level if task.target is not None else 1 - found.level
            shown = self.plan.picture(task.image.pixels, region, danger, found.vulnerable)
            write_image(self.stage.path / self._file("overlays", task), shown)

    def _map_fields(self, task: _Task, found: Vulnerability) -> dict[str, Any]:
        """Return what the record says of a map of pixels."""
        by_class = zip(self.names, found.pixels_by_class(len(self.names)), strict=True)
        return {
            "vulnerable_pixels": int(found.vulnerable.sum()),
            "reachable": {name: count for name, count in by_class if count},
            "map": self._file("maps", task),
            "overlay": None if self.plan.picture is None else self._file("overlays", task),
        }

    def _file(self, folder: str, task: _Task) -> str:
        """Return the stage path of a search's file: FOLDER/REGION/…, with target and repeat where there are any."""
        name = PurePosixPath(folder, _folder_name(task.region), self.files[task.image.item.id])
        parts = [name.stem]
        if task.target is not None:
            parts.append("to-" + self.slugs[task.target])
        if self.plan.goal.repeats > 1:
            parts.append(f"repeat-{task.repeat}")
        suffix = ".npz" if folder == "history" else ".png"
        return str(name.with_name("--".join(parts) + suffix))

    def _write_clean(self, task: _Task) -> tuple[str, str | None]:
        """Write the clean image and the region's mask once; return their stage paths."""
        name = self.files[task.image.item.id]
        clean = str(PurePosixPath("clean", name))
        if not (self.stage.path / clean).exists():
            write_image(self.stage.path / clean, task.image.pixels)
        if task.region == "original":
            return clean, None
        mask = str(PurePosixPath("masks", _folder_name(task.region), name))
        if not (self.stage.path / mask).exists():
            write_image(self.stage.path / mask, task.image.regions[task.region].astype(np.uint8) * 255)
        return clean, mask

    def _digests(self, task: _Task, adversarial: NDArray[np.uint8] | None) -> dict[str, str]:
        made: dict[str, NDArray[Any] | None] = {
            "clean": task.image.pixels,
            "mask": None if task.region == "original" else task.image.regions[task.region],
            "adversarial": adversarial,
        }
        return {name: pixel_digest(pixels) for name, pixels in made.items() if pixels is not None}

    def _key(self, task: _Task) -> tuple[str, ...]:
        target = "" if task.target is None else self.names[task.target]
        return (task.image.item.id, task.region, target, str(task.repeat))

    def _record(
        self,
        task: _Task,
        name: OutcomeName,
        outcome: Outcome | None,
        after: Tensor | None,
        adversarial: str | None,
        pixels: NDArray[np.uint8] | None = None,
    ) -> AttackRecord:
        image = task.image
        clean, mask = self._write_clean(task)
        height, width = image.pixels.shape[:2]
        return AttackRecord(
            id=image.item.id,
            outcome=name,
            region=task.region,
            label=self.names[image.label],
            label_source=image.label_source,  # type: ignore[arg-type]
            target=None if task.target is None else self.names[task.target],
            repeat=task.repeat,
            seed=self.plan.seed,
            clean=clean,
            mask=mask,
            adversarial=adversarial,
            history=None if outcome is None else self._file("history", task),
            height=height,
            width=width,
            region_pixels=int(image.regions[task.region].sum()),
            success=adversarial is not None,
            queries=outcome.queries if outcome else 0,
            candidates=outcome.candidates if outcome else 0,
            generations=outcome.generations if outcome else 0,
            before=describe(image.logits, self.names),
            after=None if after is None else describe_after(after, image.logits, self.names),
            pixels=[] if pixels is None else changed_pixels(image.pixels, pixels),
            digests=self._digests(task, pixels if adversarial is not None else None),
            **(self._map_fields(task, outcome.vulnerability) if outcome and outcome.vulnerability else {}),
        )


def describe(logits: Tensor, names: tuple[str, ...]) -> Prediction:
    """Name the top-1 and the best five of float32 [classes] ``logits``, with their confidences."""
    confidences = logits.double().softmax(0).tolist()
    top = [(names[c], confidences[c]) for c in _ranked(logits)[:5]]
    return Prediction(*top[0], top)


def describe_after(after: Tensor, before: Tensor, names: tuple[str, ...]) -> PredictionAfter:
    """As :func:`describe` of ``after``, and what became of the five that were best before (rank 1 = top)."""
    new = describe(after, names)
    confidences, order = after.double().softmax(0).tolist(), _ranked(after)
    old = [(names[c], confidences[c], order.index(c) + 1) for c in _ranked(before)[:5]]
    return PredictionAfter(new.class_, new.confidence, new.top5, old)


def _ranked(logits: Tensor) -> list[int]:
    order: list[int] = logits.argsort(descending=True, stable=True).tolist()
    return order


def changed_pixels(clean: NDArray[np.uint8], adversarial: NDArray[np.uint8]) -> list[PixelChange]:
    """List the pixels in which uint8 [H, W, 3] images differ, row by row; none where they are too many to list."""
    rows, columns = np.nonzero((clean != adversarial).any(axis=2))
    if len(rows) > MAX_LISTED_PIXELS:
        return []
    return [
        PixelChange(x, y, tuple(clean[y, x].tolist()), tuple(adversarial[y, x].tolist()))
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
    ]


def _folder_name(region: str) -> str:
    return region.replace(":", "-")


def _slugs(names: tuple[str, ...]) -> list[str]:
    """Make class names fit for file names; with their numbers where two would be the same."""
    slugs = ["".join(c if c.isalnum() or c in "-_." else "-" for c in name) for name in names]
    alike = len({slug.casefold() for slug in slugs}) < len(slugs)
    return [f"{slug}-{number}" if alike else slug for number, slug in enumerate(slugs)]
