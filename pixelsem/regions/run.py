"""Segmenting many images into a stage folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pixelsem.errors import InputError
from pixelsem.images import read_image, write_image
from pixelsem.records import SegmentRecord
from pixelsem.regions.masks import coverage_flags, region_of
from pixelsem.regions.registry import Segmenter
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
) -> SegmentSummary:
    """Write a mask for every image of ``items`` into ``stage`` (of kind ``segment``), on a pool of threads.

    ``root`` is the folder that the stage names as its input ``images``; every item's file lies in it. Images
    that the manifest holds already are skipped. One that cannot be read or segmented is noted in the summary,
    and the run goes on. ``progress`` is called with the summary so far. Masks do not depend on ``workers``
    (default: the processor cores that may be used); records come in the order of completion.

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
    names = png_names(item.id for item in items)
    workers = workers or usable_cores()

    def one(item: ImageItem) -> SegmentRecord:
        return _segment(item, segmenter, stage, item.path.relative_to(root).as_posix(), f"masks/{names[item.id]}")

    pool = ThreadPoolExecutor(workers, thread_name_prefix="segment")
    try:
        todo = iter([item for item in items if item.id not in held])
        for finished in _completed(pool, one, todo, workers * _AHEAD):
            _collect(finished, stage, summary)
            if progress is not None:
                progress(summary)
    finally:
        pool.shutdown(cancel_futures=True)
    return summary


def _segment(item: ImageItem, segmenter: Segmenter, stage: Stage, image: str, mask: str) -> SegmentRecord:
    values = segmenter(read_image(item.path), item.id)
    coverage = float(region_of(values, segmenter.kind, "foreground").mean())
    write_image(stage.path / mask, values)
    return SegmentRecord(item.id, image, mask, segmenter.kind, coverage, coverage_flags(coverage))


Running = dict[Future[SegmentRecord], ImageItem]


def _completed(
    pool: ThreadPoolExecutor, work: Callable[[ImageItem], SegmentRecord], todo: Iterator[ImageItem], most: int
) -> Iterator[Running]:
    """Keep ``most`` images in work; yield the finished ones, at least one at a time."""
    running: Running = {pool.submit(work, item): item for item in islice(todo, most)}
    while running:
        ready = wait(running, return_when=FIRST_COMPLETED).done
        yield {future: running.pop(future) for future in ready}
        running |= {pool.submit(work, item): item for item in islice(todo, most - len(running))}


def _collect(finished: Running, stage: Stage, summary: SegmentSummary) -> None:
    """Add finished images to manifest and summary; raise the first error that is not one image's own."""
    records, fatal = [], None
    for future, item in finished.items():
        try:
            records.append(future.result())
        except InputError as error:
            summary.failed[item.id] = str(error)
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
