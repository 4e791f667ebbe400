"""Transforming many images into a stage folder, adversarial ones beside their clean ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from pixelsem.errors import InputError, StageError
from pixelsem.images import iter_chunks, pixel_digest, read_image, write_image
from pixelsem.records import FILE_FIELDS, AttackRecord, DefendRecord
from pixelsem.sources import ImageItem
from pixelsem.stage import Stage, png_names
from pixelsem.transforms.layer import apply
from pixelsem.transforms.specs import Defense

#: Pixels of all images that are transformed together.
_VALUES = 2**22

#: Where attacks put their images.
_FOLDERS = ("clean", "images", "attempts")


@dataclass(frozen=True)
class Job:
    """A record to be, and the files to transform for it: by the record's field, where each is read."""

    record: DefendRecord
    sources: dict[str, Path]

    @property
    def id(self) -> str:
        """The relative path of the source image."""
        return self.record.id

    @property
    def items(self) -> list[ImageItem]:
        """The files by what they become, for :func:`pixelsem.sources.fingerprint`."""
        return [ImageItem(getattr(self.record, name), path, None) for name, path in self.sources.items()]


@dataclass
class DefendSummary:
    """What became of the jobs: how many records the stage holds, by id why some failed."""

    done: int = 0
    adversarial: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers for ``stage.yaml``."""
        return {"done": self.done, "adversarial": self.adversarial, "failed": len(self.failed)}

    def add(self, record: DefendRecord) -> None:
        """Count one finished record."""
        self.done += 1
        self.adversarial += record.adversarial is not None


def plain_jobs(items: Sequence[ImageItem]) -> list[Job]:
    """Return a job for every image; each becomes ``images/…png``."""
    names = png_names(item.id for item in items)
    return [Job(DefendRecord(item.id, f"images/{names[item.id]}"), {"image": item.path}) for item in items]


def attack_jobs(stage: Stage, ids: set[str]) -> list[Job]:
    """Return a job for every search of the images ``ids`` in an attack stage, or in one made of such by a transform.

    The files keep the names they have there. Raises :class:`StageError` for names that no attack gives.
    """
    jobs = []
    for record in stage.records():
        if isinstance(record, AttackRecord):
            made = DefendRecord(
                record.id, record.clean, record.adversarial, record.region, record.target, record.repeat,
                record.label, record.outcome, record.attempt,
            )  # fmt: skip
        elif isinstance(record, DefendRecord):
            made = replace(record, digests={})
        else:
            raise StageError(f"{stage.path}: holds no adversarial images")
        if made.id not in ids:
            continue
        names = {name: value for name in FILE_FIELDS["defend"] if (value := getattr(made, name)) is not None}
        for name in names.values():
            _check_name(stage, name)
        jobs.append(Job(made, {name: stage.resolve(path) for name, path in names.items()}))
    return jobs


def _check_name(stage: Stage, name: str) -> None:
    """Refuse what is no image of an attack: it would be written under the same name."""
    folder = next(iter(PurePosixPath(name).parts), None)  # "" and "." have no parts
    if folder not in _FOLDERS or not name.endswith(".png"):
        expected = ", ".join(f"{each}/….png" for each in _FOLDERS)
        raise StageError(
            f"{stage.manifest}: {name!r} is no image as attacks write them ({expected}); `pixelsem stage verify` says "
            f"what else is wrong"
        )


class DefendRun:
    """Transforms the files of jobs into a stage of kind ``defend``. One image's problem never ends the run."""

    def __init__(self, defense: Defense, stage: Stage, device: torch.device, batch_size: int | None = None) -> None:
        self._defense, self._stage, self._device, self._batch_size = defense, stage, device, batch_size
        self._written: dict[str, str] = {}  # digests of what was transformed, by name: clean images serve many records
        self.summary = DefendSummary()

    def run(self, jobs: Sequence[Job], on_change: Callable[[DefendSummary], None] = lambda _: None) -> DefendSummary:
        """Do every job that the manifest does not hold yet; return the counts of all.

        Raises :class:`pixelsem.errors.OutputError` where the stage cannot be written: what is in the manifest stays
        valid.
        """
        held = {record.key: record for record in self._stage.defend_records()}
        for job in jobs:
            if job.record.key in held:
                self.summary.add(held[job.record.key])
        todo = [job for job in jobs if job.record.key not in held]
        with ThreadPoolExecutor(thread_name_prefix="images") as pool:
            for chunk in iter_chunks(len(todo), self._batch_size or 64):
                self._do(todo[chunk], pool)
                on_change(self.summary)
        return self.summary

    def _do(self, jobs: Sequence[Job], pool: ThreadPoolExecutor) -> None:
        files = {str(getattr(job.record, name)): path for job in jobs for name, path in job.sources.items()}
        files = {name: path for name, path in files.items() if name not in self._written}
        problems: dict[str, str] = {}
        read: dict[str, NDArray[np.uint8]] = {}
        for name, found in zip(files, pool.map(_read, files.values()), strict=True):
            if isinstance(found, InputError):
                problems[name] = str(found)
            else:
                read[name] = found
        for names in self._batches(read):
            batch = torch.from_numpy(np.stack([read[name] for name in names])).permute(0, 3, 1, 2)
            made = apply(batch.contiguous().to(self._device), [self._defense]).permute(0, 2, 3, 1).cpu().numpy()
            self._written |= dict(zip(names, pool.map(self._write, names, made), strict=True))
        done = []
        for job in jobs:
            names_of = {name: str(getattr(job.record, name)) for name in job.sources}
            wrong = [problems[name] for name in names_of.values() if name in problems]
            if wrong:
                self.summary.failed[job.id] = wrong[0]
            else:
                digests = {each: self._written[name] for each, name in names_of.items()}
                done.append(replace(job.record, digests=digests))
        if done:
            self._stage.append(*done)
        for record in done:
            self.summary.add(record)

    def _batches(self, read: dict[str, NDArray[np.uint8]]) -> Iterator[list[str]]:
        """Yield the names of images of one size, as many as are transformed together."""
        by_size: dict[tuple[int, ...], list[str]] = {}
        for name, pixels in read.items():
            by_size.setdefault(pixels.shape, []).append(name)
        for (height, width, *_), names in by_size.items():
            size = self._batch_size or max(1, _VALUES // (height * width))
            yield from (names[chunk] for chunk in iter_chunks(len(names), size))

    def _write(self, name: str, pixels: NDArray[np.uint8]) -> str:
        write_image(self._stage.path / name, pixels)
        return pixel_digest(pixels)


def _read(path: Path) -> NDArray[np.uint8] | InputError:
    try:
        return read_image(path)
    except InputError as error:
        return error
