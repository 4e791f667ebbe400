"""Files that are written whole or not at all, and YAML that is read with limits."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

import yaml

from pixelsem.errors import OutputError, PixelsemError

#: YAML files larger than this are refused unread.
MAX_YAML_BYTES = 1 << 20


@contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside ``path``; on leaving, flush it to the disk and rename it into place.

    Folders are made where needed. Raises :class:`OutputError` where the folder cannot be written or the
    disk is full. Then, and after any other error in the block, ``path`` is as it was and no temporary
    file is left.
    """
    # A name of its own length: one made from the file's own could become too long for the file system.
    temporary = path.with_name(f".{os.urandom(8).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {reason(error)}; what is done stays") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Where folders cannot be flushed (Windows, some mounts) it is left out."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, atomically. Raises :class:`OutputError`."""
    with write_atomically(path) as file:
        file.write(text.encode())


def read_yaml(path: Path) -> Any:
    """Read one YAML document of plain data (mappings, lists, scalars).

    Aliases, tags, a key given twice and files over :data:`MAX_YAML_BYTES` are refused: the first two can make
    a small file cost any amount of memory or run code, the third hides a mistake. Raises :class:`PixelsemError`,
    one line that names the file and where in it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_YAML_BYTES + 1)
    except OSError as error:
        raise PixelsemError(f"{path}: cannot be read: {reason(error)}") from error
    if len(data) > MAX_YAML_BYTES:
        raise PixelsemError(f"{path}: over {MAX_YAML_BYTES >> 10} KiB; too large for a file of options")
    try:
        return yaml.load(data, _PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise PixelsemError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # bytes that are no text; dates like 2026-13-13
        raise PixelsemError(f"{path}: not valid YAML: {one_line(error)}") from error
    except RecursionError as error:
        raise PixelsemError(f"{path}: not valid YAML: nested too deeply") from error


def dump_yaml(values: Any) -> str:
    """Return plain data as YAML that :func:`read_yaml` takes; the order of keys is kept."""
    return yaml.dump(values, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)


def path_problem(name: str) -> str | None:
    r"""Say why a relative path may leave its root or mean another one elsewhere; None where it may not.

    It may when it is absolute, has ``..``, NUL or ``\`` (which divides folders on some systems) in it, or is
    no Unicode text.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or (os.name == "nt" and ":" in name):
        return "leaves its folder"
    if "\0" in name or "\\" in name:
        return "has a backslash or NUL in it"
    return "is no Unicode text" if any("\ud800" <= character <= "\udfff" for character in name) else None


def reason(error: OSError) -> str:
    """Return the operating system's words for ``error`` without the path, which the caller names."""
    return error.strerror or one_line(error)


def one_line(error: BaseException | str) -> str:
    """Return an error's message with its line breaks folded into spaces."""
    return " ".join(str(error).split())


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not taken; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused by the base class
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # what read_yaml refuses must not be written
        return True
