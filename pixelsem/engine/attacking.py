"""The outer loop of every attack: what is done already, what becomes of the rest, files, records, counts.

Attacks only search (:mod:`pixelsem.attacks.base`), wherever that is done (:mod:`pixelsem.engine.searching`). Here, in
one place, their images are written: what was scored is what can be read back.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.attacks.base import Outcome, Vulnerability
from pixelsem.engine.overlap import Behind
from pixelsem.engine.scoring import write_scored
from pixelsem.engine.searching import AttackPlan, Engine, Event, Failed, Scored, Searched, Skipped, Task
from pixelsem.files import write_atomically
from pixelsem.images import pixel_digest, write_image
from pixelsem.records import AttackRecord, PixelChange, Prediction, PredictionAfter
from pixelsem.records import Outcome as OutcomeName
from pixelsem.sources import ImageItem
from pixelsem.stage import Stage, png_names

_WRITE_BEHIND = 64  # outcomes

#: Attacks that change more pixels than this do not list them one by one.
MAX_LISTED_PIXELS = 64


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


class AttackRun:
    """Runs a plan over images into a stage. One image's problem never ends the run."""

    def __init__(
        self,
        plan: AttackPlan,
        engine: Engine,
        stage: Stage,
        items: list[ImageItem],
        names: Mapping[str, str] | None = None,
    ) -> None:
        """``names`` are the files by id (default: :func:`png_names` of ``items``), for items that are only a part.

        Raises :class:`pixelsem.errors.StageError` where the stage's manifest cannot be read.
        """
        self.plan = plan
        self.engine = engine
        self.names = engine.class_names
        self.stage = stage
        self.items = items
        self.files = names or png_names(item.id for item in items)
        self.slugs = _slugs(self.names)
        self._done = stage.keys()
        per_image = Counter(key[0] for key in self._done)
        self.tally = Tally(total=self.total(), resumed=sum(per_image[item.id] for item in items))
        self._writer = Behind(_WRITE_BEHIND)

    def total(self) -> int:
        """Return how many searches the whole run stands for, those that are skipped or done before included."""
        return len(self.items) * self.plan.searches_per_image(len(self.names))

    def left(self) -> int:
        """Return how many searches the manifest did not hold yet."""
        return self.tally.total - self.tally.resumed

    def run(self, on_change: Callable[[Tally], None] = lambda _: None) -> Tally:
        """Attack everything the manifest did not hold yet; return the counts.

        Raises :class:`pixelsem.errors.OutputError` where the stage cannot be written: what is in the manifest
        stays valid.
        """
        self.tally.on_change = on_change
        events = self.engine.events(self.items, self._done, self._stopper(), self._queried)
        with self._writer, closing(events):  # type: ignore[type-var]
            for event in events:
                self._take(event)
                self.tally.on_change(self.tally)
        return self.tally

    def _stopper(self) -> Callable[[], bool]:
        limit = self.plan.goal.time_limit
        deadline = None if limit is None else time.monotonic() + limit
        return lambda: deadline is not None and time.monotonic() > deadline

    def _queried(self, queries: int) -> None:
        self.tally.queries = queries
        self.tally.on_change(self.tally)

    def _take(self, event: Event) -> None:
        """Count an event and have it written; the searches go on meanwhile."""
        if isinstance(event, Searched):
            self._writer.submit(lambda: self._write(event))
            self.tally.searched += 1
            self.tally.found += event.scored.success
        elif isinstance(event, Skipped):
            self._skip(event)
        elif isinstance(event, Failed):
            self.tally.failures[event.id] = event.problem
        else:
            self.tally.out_of_time = True

    def _skip(self, event: Skipped) -> None:
        task, reason = event.task, event.reason
        if reason != "is-target":
            self._writer.submit(lambda: self.stage.append(self._record(task, reason)))
        self.tally.skipped[reason] = self.tally.skipped.get(reason, 0) + 1

    def _write(self, found: Searched) -> None:
        """Write one search's files, then its record; on the writer's thread."""
        task, outcome, scored = found.task, found.outcome, found.scored
        for name in self._image_files(task, scored).values():
            write_scored(self.stage.path / name, scored.pixels)
        self._write_history(task, outcome)
        if outcome.vulnerability is not None:
            self._write_map(task, outcome.vulnerability)
        self.stage.append(self._record(task, "attacked", outcome, scored))

    def _image_files(self, task: Task, scored: Scored) -> dict[str, str]:
        """Return the stage path of a search's image by the record's field; nothing where it is not kept."""
        if scored.success:
            return {"adversarial": self._file("images", task)}
        return {"attempt": self._file("attempts", task)} if self.plan.goal.attempts else {}

    def _write_history(self, task: Task, outcome: Outcome) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **outcome.history)  # type: ignore[arg-type]
        with write_atomically(self.stage.path / self._file("history", task)) as file:
            file.write(buffer.getvalue())

    def _write_map(self, task: Task, found: Vulnerability) -> None:
        write_image(self.stage.path / self._file("maps", task), np.rint(found.level * 65535).astype(np.uint16))
        if self.plan.picture is not None:
            region = task.image.regions[task.region]
            danger = found.level if task.target is not None else 1 - found.level
            shown = self.plan.picture(task.image.pixels, region, danger, found.vulnerable)
            write_image(self.stage.path / self._file("overlays", task), shown)

    def _map_fields(self, task: Task, found: Vulnerability) -> dict[str, Any]:
        """Return what the record says of a map of pixels."""
        by_class = zip(self.names, found.pixels_by_class(len(self.names)), strict=True)
        return {
            "vulnerable_pixels": int(found.vulnerable.sum()),
            "reachable": {name: count for name, count in by_class if count},
            "map": self._file("maps", task),
            "overlay": None if self.plan.picture is None else self._file("overlays", task),
        }

    def _file(self, folder: str, task: Task) -> str:
        """Return the stage path of a search's file: FOLDER/REGION/…, with target and repeat where there are any."""
        name = PurePosixPath(folder, _folder_name(task.region), self.files[task.image.id])
        parts = [name.stem]
        if task.target is not None:
            parts.append("to-" + self.slugs[task.target])
        if self.plan.goal.repeats > 1:
            parts.append(f"repeat-{task.repeat}")
        suffix = ".npz" if folder == "history" else ".png"
        return str(name.with_name("--".join(parts) + suffix))

    def _write_clean(self, task: Task) -> tuple[str, str | None]:
        """Write the clean image and the region's mask once; return their stage paths."""
        name = self.files[task.image.id]
        clean = str(PurePosixPath("clean", name))
        if not (self.stage.path / clean).exists():
            write_image(self.stage.path / clean, task.image.pixels)
        if task.region == "original":
            return clean, None
        mask = str(PurePosixPath("masks", _folder_name(task.region), name))
        if not (self.stage.path / mask).exists():
            write_image(self.stage.path / mask, task.image.regions[task.region].astype(np.uint8) * 255)
        return clean, mask

    def _digests(self, task: Task, images: Mapping[str, NDArray[np.uint8]]) -> dict[str, str]:
        mask = {} if task.region == "original" else {"mask": task.image.regions[task.region]}
        made: dict[str, NDArray[Any]] = {"clean": task.image.pixels, **mask, **images}
        return {name: pixel_digest(pixels) for name, pixels in made.items()}

    def _record(
        self, task: Task, name: OutcomeName, outcome: Outcome | None = None, scored: Scored | None = None
    ) -> AttackRecord:
        image = task.image
        files = {} if scored is None else self._image_files(task, scored)
        clean, mask = self._write_clean(task)
        height, width = image.pixels.shape[:2]
        return AttackRecord(
            id=image.id,
            outcome=name,
            region=task.region,
            label=self.names[image.label],
            label_source=image.label_source,  # type: ignore[arg-type]
            target=None if task.target is None else self.names[task.target],
            repeat=task.repeat,
            seed=self.plan.seed,
            clean=clean,
            mask=mask,
            adversarial=files.get("adversarial"),
            attempt=files.get("attempt"),
            history=None if outcome is None else self._file("history", task),
            height=height,
            width=width,
            region_pixels=int(image.regions[task.region].sum()),
            success=scored is not None and scored.success,
            queries=outcome.queries if outcome else 0,
            candidates=outcome.candidates if outcome else 0,
            generations=outcome.generations if outcome else 0,
            before=describe(image.logits, self.names),
            after=None if scored is None else describe_after(scored.logits, image.logits, self.names),
            pixels=[] if scored is None else changed_pixels(image.pixels, scored.pixels),
            digests=self._digests(task, {} if scored is None else dict.fromkeys(files, scored.pixels)),
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
