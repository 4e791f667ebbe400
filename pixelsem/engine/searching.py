"""The search side of an attack run: reads images, skips, searches and scores; writes nothing.

The seam between the outer loop (:mod:`pixelsem.engine.attacking`), the only writer of files and manifest, and the
places where searches run: it takes events from any :class:`Engine`. :class:`Searcher` is the engine of this process,
and what a worker elsewhere runs on each group of images; it is opened from an :class:`AttackJob`, plain data that can
be pickled, as events can be (:func:`light`).

Attacks only search (:mod:`pixelsem.attacks.base`). What they come to is scored here (:mod:`pixelsem.engine.scoring`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.attacks.base import Attack, Outcome, Progress, Searches
from pixelsem.attacks.random import generator
from pixelsem.attacks.registry import ATTACKS
from pixelsem.attacks.settings import AttackSettings, DeviceOptions, EvaluatorOptions, GoalOptions, RegionOptions
from pixelsem.engine.groups import Key, undone
from pixelsem.engine.overlap import Ahead
from pixelsem.engine.regions import RegionMaker
from pixelsem.engine.scoring import fp32_logits, is_success
from pixelsem.errors import InputError, ModelError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.images import read_image
from pixelsem.models.inputs import Resize, fit_image
from pixelsem.models.labels import Labels
from pixelsem.models.options import load
from pixelsem.models.settings import ModelOptions
from pixelsem.records import Outcome as OutcomeName
from pixelsem.regions.masks import MaskSource
from pixelsem.regions.run import usable_cores
from pixelsem.sources import ImageItem

if TYPE_CHECKING:
    from pixelsem.models import Classifier

_READ_AHEAD = 32  # images
_READERS = 4  # threads at most, where no other number is asked for

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
        """Return the fields of one image; on a reader's thread.

        ``shape`` is that of the source image, ``pixels`` uint8 [H, W, 3] the image at the classifier's resolution,
        which it came to by ``resize``. Raises :class:`InputError` where that one image has a problem.
        """


@dataclass(frozen=True)
class AttackPlan:
    """Everything that says what an attack run does.

    ``settings`` go to ``attack`` as they are; ``seed`` and the clean pixels key every random draw. ``guide`` makes
    what else the attack goes by; it may be None where searches run elsewhere. ``picture`` draws the maps of attacks
    that make such.
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

    def targets(self, label: int, classes: int) -> list[int | None]:
        """Return the classes that an image of class ``label`` is attacked towards; None stands for any other."""
        if self.goal.target is not None:
            return [self.labels.index(self.goal.target, "--target")]
        return [c for c in range(classes) if c != label] if self.goal.targeted else [None]

    def searches_per_image(self, classes: int) -> int:
        """Return how many searches each attacked image stands for."""
        return len(self.region.regions) * len(self.targets(0, classes)) * self.goal.repeats


@dataclass(frozen=True)
class AttackJob:
    """What an attack run does, in settings alone: it goes to other processes, where the model is loaded anew.

    ``attack`` is a name of :data:`pixelsem.attacks.registry.ATTACKS`; ``digest`` is that of the model which the run
    began with.
    """

    attack: str
    settings: AttackSettings
    region: RegionOptions
    goal: GoalOptions
    model: ModelOptions
    evaluator: DeviceOptions
    masks: Path | None
    seed: int
    digest: str

    def on(self, device: str) -> AttackJob:
        """Return the same on another device."""
        return replace(self, evaluator=replace(self.evaluator, device=device))

    def plan(self, class_names: tuple[str, ...]) -> AttackPlan:
        """Make the plan, but for its guide; raises :class:`PixelsemError` where labels or masks cannot be used."""
        return AttackPlan(
            attack=ATTACKS[self.attack].load(),
            settings=self.settings,
            region=self.region,
            goal=self.goal,
            labels=Labels(self.goal.labels, class_names),
            regions=RegionMaker(self.region, MaskSource.open(self.masks) if self.masks else None, self.seed),
            seed=self.seed,
            in_flight=self.evaluator.in_flight,
        )

    def open(self, classifier: Classifier | None = None) -> Searcher:
        """Return the searcher on the job's device; the model is loaded where ``classifier`` is None.

        Raises :class:`PixelsemError`, :class:`ModelError` where the model is another one by now.
        """
        classifier = classifier or load(self.model)
        if classifier.digest != self.digest:
            raise ModelError(f"{self.model.model}: is another model than the run was started with")
        plan = replace(self.plan(classifier.class_names), guide=self._guide(classifier))
        readers = self.evaluator.workers or min(_READERS, usable_cores())
        return Searcher(plan, open_evaluator(classifier, self.evaluator), readers)

    def _guide(self, classifier: Classifier) -> Guide | None:
        if not (factory := ATTACKS[self.attack].guide):
            return None
        module, name = factory.split(":")
        make = getattr(import_module(f"pixelsem.engine.{module}"), name)
        return cast("Guide", make(self.settings, classifier, self.evaluator.device))


def open_evaluator(classifier: Classifier, options: DeviceOptions) -> Evaluator:
    """Return the evaluator that candidates are scored by."""
    return Evaluator(
        classifier,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
        scorer=options.evaluator if isinstance(options, EvaluatorOptions) else "dense",
    )


@dataclass(frozen=True)
class CleanImage:
    """One clean image, ready to be attacked.

    :ivar pixels: uint8 [H, W, 3] at the classifier's resolution.
    :ivar logits: float32 [classes] of these, on the CPU.
    :ivar regions: bool [H, W] by name.
    :ivar flags: those of its mask.
    :ivar guides: the fields of :class:`Searches` that were made of this image alone.
    """

    id: str
    pixels: NDArray[np.uint8]
    label: int
    label_source: str
    logits: Tensor
    regions: Mapping[str, NDArray[np.bool_]]
    flags: tuple[str, ...]
    guides: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Task:
    """One search: image × region × target × repeat, and the ``key`` of its record."""

    image: CleanImage
    region: str
    target: int | None
    repeat: int
    key: Key


class Scored(NamedTuple):
    """What a search came to: uint8 [H, W, 3], its fp32 logits [classes] on the CPU, and whether they are a success."""

    pixels: NDArray[np.uint8]
    logits: Tensor
    success: bool


@dataclass(frozen=True)
class Failed:
    """An image that has a ``problem``, in one line."""

    id: str
    problem: str


@dataclass(frozen=True)
class Skipped:
    """A search that is not done, and why."""

    task: Task
    reason: OutcomeName | Literal["is-target"]


@dataclass(frozen=True)
class Searched:
    """A search that is done."""

    task: Task
    outcome: Outcome
    scored: Scored


@dataclass(frozen=True)
class OutOfTime:
    """The run was asked to stop before everything was done."""


Event = Failed | Skipped | Searched | OutOfTime


def light(event: Event) -> Event:
    """Return an event without what only searches need, to be sent to another process.

    The adversarial image of an outcome stays behind: it is in ``scored``, and its tensor may be part of a large one.
    """
    if not isinstance(event, Searched | Skipped):
        return event
    image = event.task.image
    regions = {event.task.region: image.regions[event.task.region]}
    task = replace(event.task, image=replace(image, guides={}, regions=regions))
    if isinstance(event, Skipped):
        return replace(event, task=task)
    nothing = torch.empty(0, dtype=torch.uint8)
    return replace(event, task=task, outcome=replace(event.outcome, adversarial=nothing))


class Engine(Protocol):
    """How searches are spread: in this process, or over others."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classifier's classes, in the order of its logits."""

    def events(
        self,
        items: Sequence[ImageItem],
        done: AbstractSet[Key],
        should_stop: Callable[[], bool],
        on_queries: Callable[[int], None],
    ) -> Iterator[Event]:
        """Do every search of ``items`` whose key is not in ``done``; yield what became of each, in any order.

        ``on_queries`` is told the queries so far, now and then and at the end. Closing the iterator ends all work.
        """


class _Read(NamedTuple):
    """What is read of one image: uint8 [H, W, 3] at the classifier's resolution, regions, the mask's flags, guides."""

    pixels: NDArray[np.uint8]
    regions: Mapping[str, NDArray[np.bool_]]
    flags: tuple[str, ...]
    guides: Mapping[str, NDArray[Any]]


class Searcher:
    """The engine of this process: groups of searches in lock-step on one evaluator, images read ahead."""

    def __init__(self, plan: AttackPlan, evaluator: Evaluator, readers: int = 1) -> None:
        """``readers`` is the number of threads that read images."""
        self.plan = plan
        self.evaluator = evaluator
        self.classifier = evaluator.classifier
        self.readers = readers

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classifier's classes, in the order of its logits."""
        return self.classifier.class_names

    def events(
        self,
        items: Sequence[ImageItem],
        done: AbstractSet[Key],
        should_stop: Callable[[], bool] = lambda: False,
        on_queries: Callable[[int], None] = lambda _: None,
    ) -> Iterator[Event]:
        """See :class:`Engine`."""
        start = self.evaluator.queries
        progress = Progress(on_change=lambda made: on_queries(made.queries - start), should_stop=should_stop)
        with Ahead(_READ_AHEAD, self.readers) as reader:
            for each in self._grouped(self._tasks(items, done, reader)):
                if not isinstance(each, list):
                    yield each
                elif should_stop():
                    yield OutOfTime()
                    return
                else:
                    yield from self._search(each, progress)
                    on_queries(self.evaluator.queries - start)

    def measure_rate(self, access: Literal["white", "black"], pixels: int, searches: int) -> float:
        """Return the queries per second of the evaluator, tried on grey images in so many searches at most."""
        searches = max(1, min(self.plan.in_flight, searches))
        if access == "white":
            return self.evaluator.measure_gradient_rate(searches)
        self.evaluator.attach_grey()
        return self.evaluator.measure_rate(searches * getattr(self.plan.settings, "population", 1), pixels)

    def _grouped(self, tasks: Iterable[Task | Event]) -> Iterator[Event | list[Task]]:
        """Yield events as they come, and tasks in groups that are searched together."""
        group: list[Task] = []
        for task in tasks:
            if not isinstance(task, Task):
                yield task
                continue
            group.append(task)
            if len(group) == self.plan.in_flight:
                yield group
                group = []
        if group:
            yield group

    def _tasks(self, items: Sequence[ImageItem], done: AbstractSet[Key], reader: Ahead) -> Iterator[Task | Event]:
        """Yield what is left to search, and what is skipped."""
        left = undone(items, done, self.plan.searches_per_image(len(self.class_names)))
        for item, read in reader.map(self._read, left):
            try:
                image = self._prepare(item, read())
            except InputError as error:
                yield Failed(item.id, str(error))
                continue
            for task in self._tasks_of(image):
                if task.key not in done:
                    reason = self._reason_to_skip(task)
                    yield task if reason is None else Skipped(task, reason)

    def _read(self, item: ImageItem) -> _Read:
        """Read an image and its regions; on a reader's thread."""
        preprocessing, how = self.classifier.preprocessing, self.plan.region.resize
        full = read_image(item.path)
        pixels = np.ascontiguousarray(fit_image(full, preprocessing, how))
        regions, flags = self.plan.regions.of(item.id, full.shape, pixels, preprocessing)
        guide = self.plan.guide
        if not isinstance(guide, GuidesImages):
            return _Read(pixels, regions, flags, {})
        return _Read(pixels, regions, flags, guide.of_image(item.id, full.shape, pixels, how))

    def _prepare(self, item: ImageItem, read: _Read) -> CleanImage:
        logits = fp32_logits(self.evaluator, read.pixels)
        label, source = self.plan.labels.of(item.id, int(logits.argmax()))
        return CleanImage(item.id, read.pixels, label, source, logits, read.regions, read.flags, read.guides)

    def _tasks_of(self, image: CleanImage) -> Iterator[Task]:
        for region in self.plan.region.regions:
            for target in self.plan.targets(image.label, len(self.class_names)):
                named = "" if target is None else self.class_names[target]
                for repeat in range(self.plan.goal.repeats):
                    yield Task(image, region, target, repeat, (image.id, region, named, str(repeat)))

    def _reason_to_skip(self, task: Task) -> OutcomeName | Literal["is-target"] | None:
        if task.target == task.image.label:
            return "is-target"
        if int(task.image.logits.argmax()) != task.image.label:
            return "misclassified"
        if task.image.flags and task.region != "original" and self.plan.region.flagged == "skip":
            return "flagged-mask"
        if not task.image.regions[task.region].any():
            return "empty-region"
        return None

    def _search(self, tasks: list[Task], progress: Progress) -> Iterator[Event]:
        left = len(tasks)
        for outcome in self.plan.attack(self._searches(tasks), self.evaluator, self.plan.settings, progress):
            yield Searched(tasks[outcome.search], outcome, self._scored(tasks[outcome.search], outcome))
            left -= 1
        if left > 0:
            yield OutOfTime()

    def _searches(self, tasks: list[Task]) -> Searches:
        images: dict[str, CleanImage] = {task.image.id: task.image for task in tasks}
        order = {image_id: number for number, image_id in enumerate(images)}
        pixels = torch.from_numpy(np.stack([image.pixels for image in images.values()])).permute(0, 3, 1, 2)
        labels = torch.tensor([image.label for image in images.values()])
        guides = {} if self.plan.guide is None else dict(self.plan.guide(pixels, labels))
        for name in next(iter(images.values())).guides:
            guides[name] = torch.from_numpy(np.stack([image.guides[name] for image in images.values()]))
        image = torch.tensor([order[task.image.id] for task in tasks])
        return Searches(
            images=pixels.contiguous(),
            image=image,
            labels=labels[image],
            targets=torch.tensor([-1 if task.target is None else task.target for task in tasks]),
            regions=torch.from_numpy(np.stack([task.image.regions[task.region] for task in tasks])),
            generators=[self._generator(task) for task in tasks],
            **{name: guide[image] for name, guide in guides.items()},
        )

    def _generator(self, task: Task) -> np.random.Generator:
        return generator(self.plan.seed, task.repeat, task.image.pixels, task.region, task.target)

    def _scored(self, task: Task, outcome: Outcome) -> Scored:
        """Decide an outcome's success in fp32."""
        pixels = np.ascontiguousarray(outcome.adversarial.permute(1, 2, 0).numpy())
        logits = fp32_logits(self.evaluator, pixels)
        return Scored(pixels, logits, is_success(logits, task.image.label, task.target))
