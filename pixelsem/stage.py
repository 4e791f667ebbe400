"""Stage folders: what one command leaves behind and the next one takes.

A stage holds ``stage.yaml`` (what was asked), ``manifest.jsonl`` (what is done: one line per finished item,
written only after its files are safely in place) and the files themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import msgspec

from pixelsem.errors import OutputError, PixelsemError, StageError
from pixelsem.files import is_temporary, one_line, path_problem, reason, write_atomically, write_text
from pixelsem.locks import LOCK_FILE, StageLock
from pixelsem.records import PATH_FIELDS, RECORD_TYPES, AttackRecord, DefendRecord, EpochRecord, Record, SegmentRecord

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STAGE_FILE = "stage.yaml"
MANIFEST_FILE = "manifest.jsonl"


def digest(values: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of plain data; equal data in any key order gives the same digest."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class StageInfo:
    """The content of ``stage.yaml``.

    ``kind`` is ``segment``, ``attack`` or ``train``; ``command`` what was called (``attack de``); ``options``
    every resolved option, in the form ``--config`` takes; ``identity`` the digest of what can change the
    results; ``inputs`` the input folders and stages by role, relative to the stage; ``planned`` how many records
    the finished stage holds at most, where that is known.
    """

    kind: str
    command: str
    identity: str
    options: dict[str, Any]
    inputs: dict[str, str]
    model: dict[str, Any] | None = None
    seed: int | None = None
    versions: dict[str, str] | None = None
    counts: dict[str, int] | None = None
    wall_time: float | None = None
    planned: int | None = None

    @property
    def shard(self) -> str | None:
        """The part of the run that the stage holds (``3/16``), None where it holds the whole."""
        shard = self.options.get("shard")
        return None if shard is None else str(shard)

    @property
    def contents(self) -> str:
        """A digest that tells stages apart: the identity; of one that holds only a shard, another one."""
        return self.identity if self.shard is None else digest({"identity": self.identity, "shard": self.shard})


class Stage:
    """An existing stage folder: iterate over it for its records. Make one with :meth:`open` or :meth:`create`.

    :ivar lock: the right to write to it; commands hold it, so that two of them never write to one stage. Records
        are not added or changed once it is lost. None: not looked at.
    """

    def __init__(self, path: Path, info: StageInfo) -> None:
        self.path = path
        self.info = info
        self.lock: StageLock | None = None
        self._decoder = msgspec.json.Decoder(RECORD_TYPES[info.kind])

    @classmethod
    def open(cls, path: Path) -> Stage:
        """Open the stage at ``path``; raises :class:`StageError` where there is none or it is damaged."""
        from pixelsem.yaml_files import read_yaml

        file = path / STAGE_FILE
        try:
            if not file.is_file():
                raise StageError(f"{path}: no stage ({STAGE_FILE} is missing)")
            info = msgspec.convert(read_yaml(file), StageInfo)
        except msgspec.ValidationError as error:
            raise StageError(f"{file}: not a valid stage file: {one_line(error)}") from error
        except OSError as error:
            raise StageError(f"{file}: cannot be read: {reason(error)}") from error
        except PixelsemError as error:
            raise StageError(str(error)) from error
        if info.kind not in RECORD_TYPES:
            raise StageError(f"{file}: unknown kind of stage {info.kind!r}; there are {', '.join(RECORD_TYPES)}")
        return cls(path, info)

    @classmethod
    def create(cls, path: Path, info: StageInfo, *, overwrite: bool = False) -> Stage:
        """Make the stage at ``path``, or resume it where its identity is the same.

        Raises :class:`StageError` where ``path`` holds another identity or files of no stage; with
        ``overwrite`` a stage there is emptied first (never a folder that is no stage). Raises
        :class:`OutputError` where it cannot be written.
        """
        stage = cls(path, info)
        try:
            if (path / STAGE_FILE).exists():
                if not overwrite:
                    stage._check_same_run()
                    return stage
                _empty(path)
            elif not is_free(path):
                raise StageError(f"{path}: exists and is not a stage; choose another folder with -o")
            path.mkdir(parents=True, exist_ok=True)
            stage.manifest.touch()  # first: it tells a stage from a folder that somebody put a stage.yaml in
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {reason(error)}; choose another folder with -o") from error
        stage.save()
        return stage

    def _check_same_run(self) -> None:
        there = Stage.open(self.path).info
        if there.identity != self.info.identity:
            raise StageError(
                f"{self.path}: holds another run ({there.command}, {there.identity[:6]}); "
                f"choose another folder with -o, or --overwrite to start anew"
            )
        if there.shard != self.info.shard:
            held, asked = (f"shard {s}" if s else "the whole run" for s in (there.shard, self.info.shard))
            raise StageError(
                f"{self.path}: holds {held}, not {asked}; choose another folder with -o (`pixelsem stage merge` "
                f"joins shards)"
            )

    def save(self, **changes: Any) -> None:
        """Write ``stage.yaml``, with some fields of :attr:`info` replaced. Raises :class:`OutputError`."""
        from pixelsem.yaml_files import dump_yaml

        self.info = dataclasses.replace(self.info, **changes)
        write_text(self.path / STAGE_FILE, dump_yaml(msgspec.to_builtins(self.info)))

    @property
    def manifest(self) -> Path:
        """The manifest's path."""
        return self.path / MANIFEST_FILE

    def __iter__(self) -> Iterator[Record]:
        """Iterate over :meth:`records`."""
        return self.records()

    def records(self) -> Iterator[Record]:
        """Yield the manifest's records in order, each checked against the stage's schema.

        A last line without its line end is still being written, or was cut by a crash: it is not a record.
        Of records with one key (two processes did the same work, with the same result) the first counts.
        Raises :class:`StageError` naming file and line for anything else that does not fit.
        """
        return (record for _, record in self.placed())

    def placed(self) -> Iterator[tuple[int, Record]]:
        """Yield :meth:`records`, each behind its place in the manifest, from which :meth:`at` reads it again."""
        seen: set[tuple[str, ...]] = set()
        for place, record in self._scan():
            if isinstance(record, StageError):
                raise record
            if record.key not in seen:
                seen.add(record.key)
                yield place, record

    def at(self, place: int) -> Record:
        """Return the record at a place in the manifest; raises :class:`StageError` where none can be read there."""
        try:
            with self.manifest.open("rb") as file:
                file.seek(place)
                return self._decode(file.readline())
        except OSError as error:
            raise StageError(f"{self.manifest}: cannot be read: {reason(error)}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StageError(f"{self.manifest}: was changed meanwhile; try again") from error

    def scan(self) -> Iterator[Record | StageError]:
        """Yield for every line of the manifest its record, or what is wrong with it; all records of one key.

        Raises :class:`StageError` where the manifest cannot be read at all.
        """
        return (record for _, record in self._scan())

    def _scan(self) -> Iterator[tuple[int, Record | StageError]]:
        """Yield what :meth:`scan` does, each behind the bytes of the manifest before it."""
        place = 0
        for number, line in enumerate(self._lines(), 1):
            try:
                yield place, self._decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, StageError) as error:
                yield place, StageError(f"{self.manifest}, line {number}: {one_line(error)}")
            place += len(line)

    def keys(self) -> set[tuple[str, ...]]:
        """Return the keys of all records: what a resumed run skips. Raises as :meth:`records` does."""
        return {record.key for record in self.records()}

    def _lines(self) -> Iterator[bytes]:
        try:
            _refuse_pipe(self.manifest)
            with self.manifest.open("rb") as file:
                yield from (line for line in file if line.endswith(b"\n"))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StageError(f"{self.manifest}: cannot be read: {reason(error)}") from error

    def _decode(self, line: bytes) -> Record:
        """Decode and check one line; raises msgspec's errors and :class:`StageError`."""
        record: Record = self._decoder.decode(line)
        if msgspec.json.encode(record) != line.rstrip(b"\n"):  # what is as we write it needs no closer look
            _refuse_doubled_keys(line)
        for name in PATH_FIELDS[self.info.kind]:
            value = getattr(record, name)
            if value is not None:
                _check_path(value)
        return record

    def attack_records(self) -> Iterator[AttackRecord]:
        """Yield the records of an attack stage; raises :class:`StageError` for a stage of another kind."""
        yield from cast("Iterator[AttackRecord]", self._records_of("attack"))

    def placed_attack_records(self) -> Iterator[tuple[int, AttackRecord]]:
        """Yield :meth:`attack_records`, each behind its place; see :meth:`placed`."""
        self._check_kind("attack")
        yield from cast("Iterator[tuple[int, AttackRecord]]", self.placed())

    def segment_records(self) -> Iterator[SegmentRecord]:
        """Yield the records of a segmentation stage; raises :class:`StageError` for a stage of another kind."""
        yield from cast("Iterator[SegmentRecord]", self._records_of("segment"))

    def defend_records(self) -> Iterator[DefendRecord]:
        """Yield the records of a stage of transformed images; raises :class:`StageError` for another kind."""
        yield from cast("Iterator[DefendRecord]", self._records_of("defend"))

    def epoch_records(self) -> Iterator[EpochRecord]:
        """Yield the records of a training stage; raises :class:`StageError` for a stage of another kind."""
        yield from cast("Iterator[EpochRecord]", self._records_of("train"))

    def _records_of(self, kind: str) -> Iterator[Record]:
        self._check_kind(kind)
        return self.records()

    def _check_kind(self, kind: str) -> None:
        if self.info.kind != kind:
            raise StageError(f"{self.path}: is a stage of {self.info.command!r}; one of kind {kind!r} is needed")

    def append(self, *records: Record) -> None:
        """Add records whose files are in place: all of them, on the disk when this returns, or none.

        Safe beside other processes that append to the same manifest. Raises :class:`OutputError` where it
        cannot be written, :class:`StageError` for a record that could not be read again, or where the stage's
        :attr:`lock` was lost.
        """
        lines = b"".join(self._encode(record) for record in records)
        self._check_lock()
        try:
            with _open_alone(self.manifest) as handle:
                _append_whole(handle, lines)
        except OSError as error:
            raise OutputError(f"{self.manifest}: cannot be written: {reason(error)}; what is done stays") from error

    def replace(self, changes: Sequence[tuple[Record, Record]]) -> None:
        """Put for each (record, its successor) the second in the place of the first: all of them, or none.

        Both have one key. What is there already counts as done, so that an interrupted change can be repeated.
        The manifest is written anew beside the old one and renamed; appending processes wait. Raises
        :class:`StageError` where a record is not there as given, :class:`OutputError` where the manifest
        cannot be written.
        """
        expected = {old.key: (old, new) for old, new in changes}
        self._check_lock()
        try:
            # Where nothing can be locked, an open file may not be replaced either (Windows).
            with _open_alone(self.manifest) if fcntl is not None else nullcontext():
                lines = [self._successor(line, expected) for line in self._lines()]
                if expected:
                    raise StageError(f"{self.manifest}: has no record of {next(iter(expected))[0]!r}")
                with write_atomically(self.manifest) as file:
                    file.writelines(lines)
        except OSError as error:
            raise OutputError(f"{self.manifest}: cannot be written: {reason(error)}; what is done stays") from error

    def _check_lock(self) -> None:
        if self.lock is not None:
            self.lock.check()

    def _successor(self, line: bytes, expected: dict[tuple[str, ...], tuple[Record, Record]]) -> bytes:
        """Return the line that takes the place of ``line``, and take its change out of ``expected``."""
        try:
            record = self._decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, StageError) as error:
            raise StageError(f"{self.manifest}: {one_line(error)}") from error
        if record.key not in expected:  # as it is: it may hold more than this version knows
            return line
        old, new = expected.pop(record.key)
        if record not in (old, new):
            raise StageError(f"{self.manifest}: the record of {record.key[0]!r} was changed meanwhile; try again")
        return self._encode(new)

    def _encode(self, record: Record) -> bytes:
        try:
            line = msgspec.json.encode(record)
            self._decode(line)
        except (msgspec.DecodeError, UnicodeError, StageError) as error:
            raise StageError(f"{self.manifest}: the record of {record.key[0]!r} is not valid: {error}") from error
        return line + b"\n"

    def resolve(self, relative: str, root: str | None = None) -> Path:
        """Return the path that ``relative`` names inside the stage, or inside its input ``root`` (a role).

        Raises :class:`StageError` for an absolute path or one that leaves its root, symbolic links included.
        """
        base = self.path
        if root is not None:
            if root not in self.info.inputs:
                raise StageError(f"{self.path}: names no input {root!r}")
            base = self.path / self.info.inputs[root]
        _check_path(relative)
        try:
            resolved = (base / relative).resolve()
            inside = resolved.is_relative_to(base.resolve())
        except (OSError, RuntimeError, ValueError) as error:  # links that go in circles
            raise StageError(f"{base / relative}: cannot be resolved: {one_line(error)}") from error
        if not inside:
            raise StageError(f"the path {relative!r} leaves {base}; refused")
        return resolved


def _refuse_doubled_keys(line: bytes) -> None:
    """Raise :class:`StageError` where an object of a JSON line holds a key twice: which value counts is anyone's guess.

    The decoder takes the last one, also in fields that it does not know.
    """

    def check(pairs: list[tuple[str, Any]]) -> None:
        names = Counter(name for name, _ in pairs)
        twice = next((name for name, count in names.items() if count > 1), None)
        if twice is not None:
            raise StageError(f"the key {twice!r} is given twice")

    try:
        json.loads(line, object_pairs_hook=check, parse_int=str, parse_float=str, strict=False)
    except ValueError as error:
        raise StageError(f"not valid JSON: {one_line(error)}") from error


def count_lines(manifest: Path) -> int:
    """Return how many whole lines a manifest holds, unread; 0 where there is none. Raises :class:`StageError`."""
    try:
        _refuse_pipe(manifest)
        with manifest.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise StageError(f"{manifest}: cannot be read: {reason(error)}") from error


def _refuse_pipe(manifest: Path) -> None:
    """Raise :class:`StageError` for a named pipe or the like: opening it would wait for ever."""
    if manifest.exists() and not (manifest.is_file() or manifest.is_dir()):
        raise StageError(f"{manifest}: not a regular file")


def is_free(path: Path) -> bool:
    """Can a new stage be made at ``path``: is nothing there, an empty folder, or what a stage began with and no more?

    A process that was killed there, or a full disk, leaves that. Raises :class:`OSError`.
    """
    if not path.exists():
        return True
    return path.is_dir() and all(_is_begun(entry) for entry in path.iterdir())


def _is_begun(entry: Path) -> bool:
    """Is a folder's entry one that :meth:`Stage.create` makes before ``stage.yaml``?"""
    empty_manifest = entry.name == MANIFEST_FILE and entry.is_file() and entry.stat().st_size == 0
    return empty_manifest or entry.name == LOCK_FILE or is_temporary(entry.name)


def _empty(path: Path) -> None:
    """Remove what a stage folder holds; the folder stays, and the lock of the process that does it."""
    entries = [entry for entry in path.iterdir() if entry.name != LOCK_FILE]
    if len(entries) > 1 and not (path / MANIFEST_FILE).exists():
        raise StageError(f"{path}: holds other things beside {STAGE_FILE}; not a stage, so not overwritten")
    # The marks of a stage go last, so that an interrupted removal can be taken up again.
    for entry in sorted(entries, key=lambda entry: (entry.name == STAGE_FILE, entry.name == MANIFEST_FILE)):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextmanager
def _locked(handle: int) -> Iterator[None]:
    """Keep other processes from appending; where files cannot be locked (some cluster mounts), go on without."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)  # given up with the handle
    yield


@contextmanager
def _open_alone(path: Path) -> Iterator[int]:
    """Open a manifest to append to, locked; while waiting for the lock it may be replaced, then anew."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with _locked(handle):
                if _is_at(handle, path):
                    yield handle
                    return
        finally:
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _append_whole(handle: int, data: bytes) -> None:
    """Append ``data`` or, where that fails, leave the file's whole lines as they were."""
    size = _end_of_lines(handle)
    try:
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    except OSError:
        with suppress(OSError):
            os.ftruncate(handle, size)
        raise


def _end_of_lines(handle: int) -> int:
    """Cut off a last line that a crash left without its end; return the file's size."""
    size = os.fstat(handle).st_size
    end = size
    while end > 0:
        start = max(0, end - 4096)
        os.lseek(handle, start, os.SEEK_SET)
        found = os.read(handle, end - start).rfind(b"\n")
        end = start + found + 1
        if found >= 0:
            break
    if end != size:
        os.ftruncate(handle, end)
    return end


def _check_path(name: str) -> None:
    problem = path_problem(name)
    if problem is not None:
        raise StageError(f"the path {name!r} {problem}; refused")


def open_stage(path: Path | str) -> Stage:
    """Open a stage folder; iterate over it for its records. Raises :class:`StageError`."""
    return Stage.open(Path(path))


def png_names(ids: Iterable[str]) -> dict[str, str]:
    """Name a PNG after each image id (relative path), in their order: the same folder and stem.

    In a folder where two images differ only by suffix or by upper and lower case, all keep the suffix
    (``a.jpg.png``), so that no two share a file (case is ignored because some file systems ignore it).
    """
    stems = {image_id: PurePosixPath(image_id).with_suffix("") for image_id in ids}
    uses = Counter(str(stem).casefold() for stem in stems.values())
    shared = {_folder(stem) for stem in stems.values() if uses[str(stem).casefold()] > 1}
    return {
        image_id: f"{image_id}.png" if _folder(stem) in shared else f"{stem}.png" for image_id, stem in stems.items()
    }


def _folder(path: PurePosixPath) -> str:
    return str(path.parent).casefold()
