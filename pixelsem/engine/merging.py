"""Joining the parts of one run, shards above all, into one stage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixelsem.engine.shards import Shard
from pixelsem.errors import OutputError, StageError
from pixelsem.files import reason, temporary_beside, write_atomically
from pixelsem.records import FILE_FIELDS, AttackRecord, Record, SegmentRecord
from pixelsem.stage import STAGE_FILE, Stage, StageInfo

#: Records whose files are put in place before they are noted together.
_BATCH = 64


@dataclass
class MergeSummary:
    """What a merge did: ``records`` the stage holds now, of which ``held`` were there before; ``doubled`` were in
    several parts, alike; ``missing`` says what is still to be done, one line each.
    """

    records: int = 0
    held: int = 0
    doubled: int = 0
    missing: tuple[str, ...] = ()


def open_parts(out: Path, paths: Sequence[Path]) -> list[Stage]:
    """Open the parts of one run, each folder once, and check that they belong together.

    Raises :class:`StageError`, one line, for a part that is foreign (its identity is another one), that is ``out``
    itself, that is of a kind without files of its own, or of another number of shards than the others.
    """
    parts = {path.resolve(): Stage.open(path) for path in paths}
    if out.resolve() in parts:
        raise StageError(f"{out}: cannot be a part and the whole; name another folder first")
    first, *others = parts.values()
    if not FILE_FIELDS.get(first.info.kind):
        raise StageError(f"{first.path}: a stage of {first.info.command!r} has no parts to be joined")
    for part in others:
        if part.info.identity != first.info.identity:
            raise StageError(
                f"{part.path}: is of another run ({part.info.command}, {part.info.identity[:6]}) than {first.path} "
                f"({first.info.command}, {first.info.identity[:6]}); `evaluate` takes several runs side by side"
            )
    counts = {shard.count: part for part in parts.values() if (shard := _shard(part)) is not None}
    if len(counts) > 1:
        one, two = list(counts.values())[:2]
        raise StageError(
            f"{two.path}: shard {two.info.shard} is of another division than {one.info.shard} of {one.path}"
        )
    return [first, *others]


def _shard(part: Stage) -> Shard | None:
    return Shard.parse(part.info.shard, f"{part.path / STAGE_FILE}: shard")


def missing(parts: Iterable[Stage]) -> list[str]:
    """Say in one line each which shards are not among the parts, and which parts were not finished."""
    parts = list(parts)
    shards = [_shard(part) for part in parts]
    given = {shard.index for shard in shards if shard is not None}
    count = next((shard.count for shard in shards if shard is not None), 0)
    absent = [] if None in shards else [str(Shard(index, count)) for index in range(1, count + 1) if index not in given]
    lines = []
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        lines.append(f"no part holds shard {', '.join(absent[:5])}{more}")
    lines += [f"{part.path}: was not finished; run its command again" for part in parts if part.info.counts is None]
    return lines


class Merge:
    """Joins parts into one stage. Make it, then :meth:`check`, then :meth:`run`."""

    def __init__(self, out: Path, parts: Sequence[Stage], *, link: bool = False) -> None:
        self.out, self.parts, self.link = out, parts, link
        self._doubled: set[tuple[str, ...]] = set()

    def check(self) -> int:
        """Look at every record of the parts (and of ``out``, where it is there already); return how many there are.

        Raises :class:`StageError` where two parts hold different records of one search or image, where two records
        name one file, or where a file is missing.
        """
        stages = list(self.parts)
        if (self.out / STAGE_FILE).exists():
            there = Stage.open(self.out)
            # Another run there is refused when the stage is made.
            stages[:0] = [there] if there.info.identity == stages[0].info.identity else []
        seen: dict[tuple[str, ...], tuple[Stage, Record]] = {}
        owners: dict[str, str] = {}
        for stage in stages:
            for record in stage.records():
                first, known = seen.setdefault(record.key, (stage, record))
                if known != record:
                    raise StageError(
                        f"{record.key[0]!r} came out differently in {first.manifest} and in {stage.manifest}; "
                        "leave one of the parts out"
                    )
                if first is not stage and first.path != self.out:
                    self._doubled.add(record.key)
                self._check_files(stage, record, owners)
        return len(seen)

    def _check_files(self, stage: Stage, record: Record, owners: dict[str, str]) -> None:
        image = record.key[0]
        for name in files_of(stage, record):
            if owners.setdefault(name, image) != image:
                raise StageError(f"{stage.manifest}: {name} is of {owners[name]!r} and of {image!r}")
            if not stage.resolve(name).is_file():
                raise StageError(f"{stage.path / name}: is missing; `pixelsem stage verify` says what else is")

    def info(self) -> StageInfo:
        """Return what ``stage.yaml`` of the whole says: as the parts', with paths as seen from ``out``."""
        info = self.parts[0].info
        options = {name: value for name, value in info.options.items() if name != "shard"}
        old = self.parts[0].path
        return replace(
            info,
            options={name: _moved(value, old, self.out) for name, value in options.items()},
            inputs={role: _moved(value, old, self.out) for role, value in info.inputs.items()},
            counts=None,
            wall_time=None,
            planned=_together([{"planned": part.info.planned or 0} for part in self._distinct()])["planned"] or None,
        )

    def run(self, whole: Stage, progress: Callable[[int], None] = lambda _: None) -> MergeSummary:
        """Put files and records of the parts into ``whole``, made with :meth:`info`.

        A record is noted after its files are in place, so that an interrupted merge goes on where it was. Raises
        :class:`OutputError` where something cannot be written.
        """
        held = whole.keys()
        summary = MergeSummary(held=len(held), doubled=len(self._doubled))
        placed: set[str] = set()
        done = 0
        for part in self.parts:
            for batch in _batches(record for record in part.records() if record.key not in held):
                for record in batch:
                    for name in files_of(part, record):
                        if name not in placed:
                            self._place(part.resolve(name), whole.path / name)
                            placed.add(name)
                whole.append(*batch)
                held |= {record.key for record in batch}
                done += len(batch)
                progress(done)
        summary.records = len(held)
        summary.missing = tuple(missing(self.parts))
        if not summary.missing:
            taken = sum(part.info.wall_time or 0.0 for part in self._distinct())
            whole.save(counts=self._counts(whole), wall_time=round(taken, 3))
        return summary

    def _distinct(self) -> list[Stage]:
        """Return the parts whose numbers add up to the whole's: each shard once, or one that holds everything."""
        whole = [part for part in self.parts if part.info.shard is None]
        return whole[:1] or list({part.info.shard: part for part in self.parts}.values())

    def _counts(self, whole: Stage) -> dict[str, int]:
        """Add up the parts' counts, and count anew what records tell; nothing of a merged stage was resumed."""
        counts = _together([part.info.counts or {} for part in self._distinct()])
        counted = {name: number for name, number in _recount(whole).items() if name in counts}
        return counts | counted | ({"resumed": 0} if "resumed" in counts else {})

    def _place(self, source: Path, target: Path) -> None:
        if self.link and _linked(source, target):
            return
        try:
            with source.open("rb") as content, write_atomically(target) as file:
                shutil.copyfileobj(content, file, 1 << 20)
        except OSError as error:
            raise OutputError(f"{source}: cannot be copied: {reason(error)}; what is done stays") from error


def files_of(stage: Stage, record: Record) -> list[str]:
    """Return the stage paths of a record's own files."""
    values = (getattr(record, name) for name in FILE_FIELDS[stage.info.kind])
    return [value for value in values if value is not None]


def _linked(source: Path, target: Path) -> bool:
    """Give a file a second name, atomically; False where the file system cannot (another disk, no links)."""
    temporary = temporary_beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, temporary)
        temporary.replace(target)
        return True
    except OSError:
        return False
    finally:
        # Renaming one name of a file to another name of it leaves both.
        with suppress(OSError):
            temporary.unlink()


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    for record in records:
        batch.append(record)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _moved(value: Any, old: Path, new: Path) -> Any:
    """Return an option as seen from another folder. What is noted relative to a stage and lies outside begins so."""
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    if isinstance(value, str) and (value == ".." or value.startswith("../")):
        return Path(os.path.relpath((old / value).resolve(), new.resolve())).as_posix()
    return value


def _together(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in counts:
        for name, number in part.items():
            total[name] = total.get(name, 0) + number
    return total


def _recount(stage: Stage) -> dict[str, int]:
    """Count what a stage's records tell, by the names that commands note."""
    counts: dict[str, int] = {}

    def add(name: str, number: int = 1) -> None:
        counts[name] = counts.get(name, 0) + number

    for record in stage.records():
        if isinstance(record, SegmentRecord):
            add("done")
            add("flagged", int(bool(record.flags)))
        elif isinstance(record, AttackRecord):
            add("searched" if record.outcome == "attacked" else record.outcome.replace("-", "_"))
            add("successes", int(record.success))
    return counts
