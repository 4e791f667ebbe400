"""Segmenting many images into a stage folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixelsem.errors import InputError
from pixelsem.images import iter_chunks, pixel_digest, read_image, write_image
from pixelsem.records import SegmentRecord
from pixelsem.regions.masks import coverage_flags, region_of
from pixelsem.regions.registry import CutsSoftMasks, Segmenter, ShowsClass
from pixelsem.sources import ImageItem
from pixelsem.stage import Stage, png_names

#: Images in work per thread: enough that none waits, few enough that memory stays flat.
_AHEAD = 2


@dataclass
class SegmentSummary:
    """What became of the images: how many masks the stage holds, and by id why some are flagged or failed."""

    done: int = 0
    flagged: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers for ``stage.yaml``."""
        return {"done": self.done, "flagged": len(self.flagged), "failed": len(self.failed)}

    def add(self, record: SegmentRecord) -> None:
        """Count one finished image."""
        self.done += 1
        if record.flags:
            self.flagged[record.id] = "; ".join(record.flags)


def segment_images(
    items: Sequence[ImageItem],
    segmenter: Segmenter,
    stage: Stage,
    root: Path,
    *,
    workers: int | None = None,
    progress: Callable[[SegmentSummary], None] | None = None,
    names: Mapping[str, str] | None = None,
) -> SegmentSummary:
    """Write a mask for every image of ``items`` into ``stage`` (of kind ``segment``), on a pool of threads.

    ``root`` is the folder that the stage names as its input ``images``; every item's file lies in it. Images
    that the manifest holds already are skipped. One that cannot be read or segmented is noted in the summary,
    and the run goes on. ``progress`` is called with the summary so far. Masks do not depend on ``workers``
    (default: the processor cores that may be used); records come in the order of completion. ``names`` are the
    masks' files by id (default: :func:`pixelsem.stage.png_names` of the items), for items that are only a part.

    >>> source = open_images(Path("photos"))
    >>> segmenter = open_segmenter("grabcut", GrabCutSettings(), [item.id for item in source.items])
    >>> segment_images(source.items, segmenter, stage, source.root).flagged

    Raises :class:`pixelsem.errors.OutputError` where a mask cannot be written; what is in the manifest stays.
    """
    summary = SegmentSummary()
    wanted = {item.id for item in items}
    held = set()
    for record in stage.segment_records():
        held.add(record.id)
        if record.id in wanted:
            summary.add(record)
    todo = [item for item in items if item.id not in held]
    work = _Work(segmenter, stage, root, names or png_names(item.id for item in items))
    workers = workers or usable_cores()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="segment")
    try:
        chunks = (todo[chunk] for chunk in iter_chunks(len(todo), segmenter.batch))
        for finished in _completed(pool, work, chunks, workers * _AHEAD):
            _collect(finished, stage, summary)
            if progress is not None:
                progress(summary)
    finally:
        pool.shutdown(cancel_futures=True)
    return summary


Done = list[tuple[ImageItem, "SegmentRecord | InputError"]]
Running = Future[Done]


class _Work:
    """What is done to some images on one of the threads: read, segment, write."""

    def __init__(self, segmenter: Segmenter, stage: Stage, root: Path, names: Mapping[str, str]) -> None:
        self._segmenter, self._stage, self._root, self._names = segmenter, stage, root, names

    def __call__(self, items: list[ImageItem]) -> Done:
        """Return a record, or what is wrong, for every image; its mask is written."""
        read: list[tuple[ImageItem, NDArray[np.uint8]]] = []
        done: Done = []
        for item in items:
            try:
                read.append((item, read_image(item.path)))
            except InputError as error:
                done.append((item, error))
        return done + (self._segmented(read) if read else [])

    def _segmented(self, read: list[tuple[ImageItem, NDArray[np.uint8]]]) -> Done:
        try:
            masks = self._segmenter([image for _, image in read], [item.id for item, _ in read])
        except InputError as error:
            if len(read) == 1:
                return [(read[0][0], error)]
            return [one for each in read for one in self._segmented([each])]  # to tell which of them it is
        return [(item, self._written(item, mask)) for (item, _), mask in zip(read, masks, strict=True)]

    def _written(self, item: ImageItem, values: NDArray[np.integer]) -> SegmentRecord:
        kind, mask = self._segmenter.kind, f"masks/{self._names[item.id]}"
        threshold = self._segmenter.threshold if isinstance(self._segmenter, CutsSoftMasks) else 0.5
        coverage = float(region_of(values, kind, "foreground", threshold).mean())
        flags = [] if self._segmenter.whole else coverage_flags(coverage)
        write_image(self._stage.path / mask, values)
        image = item.path.relative_to(self._root).as_posix()
        digests = {"mask": pixel_digest(values)}
        shown = self._segmenter.shown(item.id) if isinstance(self._segmenter, ShowsClass) else None
        return SegmentRecord(
            item.id, image, mask, kind, coverage, flags, threshold=threshold, class_=shown, digests=digests
        )


def _completed(
    pool: ThreadPoolExecutor, work: _Work, todo: Iterator[list[ImageItem]], most: int
) -> Iterator[set[Running]]:
    """Keep ``most`` chunks in work; yield the finished ones, at least one at a time."""
    running = {pool.submit(work, items) for items in islice(todo, most)}
    while running:
        ready, running = wait(running, return_when=FIRST_COMPLETED)
        yield ready
        running |= {pool.submit(work, items) for items in islice(todo, most - len(running))}


def _collect(finished: set[Running], stage: Stage, summary: SegmentSummary) -> None:
    """Add finished images to manifest and summary; raise the first error that is not one image's own."""
    records: list[SegmentRecord] = []
    fatal = None
    for future in finished:
        try:
            for item, result in future.result():
                if isinstance(result, InputError):
                    summary.failed[item.id] = str(result)
                else:
                    records.append(result)
        except Exception as error:  # raised below, after what is done is noted
            fatal = error
    if records:
        stage.append(*records)
    for record in records:
        summary.add(record)
    if fatal is not None:
        raise fatal


def usable_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
