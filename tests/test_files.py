from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pixelsem.errors import OutputError, PixelsemError
from pixelsem.files import (
    is_temporary,
    one_line,
    path_problem,
    reason,
    remove_temporaries,
    write_atomically,
    write_text,
)
from pixelsem.yaml_files import MAX_YAML_BYTES, dump_yaml, read_yaml


def test_a_written_file_holds_the_bytes_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "file"
    with write_atomically(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["file"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), write_atomically(path) as file:
        file.write(b"half of the new")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["pathlib.Path.mkdir", "pathlib.Path.open", "os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OutputError) as caught:
        patch.setattr(call, fail)
        write_text(path, "new")
    assert str(caught.value) == f"{path}: cannot be written: No space left on device; what is done stays"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


_WRITE_OVER_THE_LIMIT = """
import resource, sys
from pathlib import Path
from pixelsem.errors import OutputError
from pixelsem.files import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(Path(sys.argv[1]), "x" * 100_000)
except OutputError as error:
    print(error)
"""


def test_a_write_that_the_system_cuts_short_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", _WRITE_OVER_THE_LIMIT, path], capture_output=True, text=True)
    assert done.stdout == f"{path}: cannot be written: File too large; what is done stays\n", done.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_where_a_folder_is_needed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OutputError, match=r"below: cannot be written: (Not a directory|File exists)"):
        write_text(tmp_path / "file" / "below", "new")
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(OutputError, match="cannot be written: Permission denied"):
        write_text(folder / "file", "new")
    assert not any(folder.iterdir())


def test_a_name_as_long_as_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_text(path, "text")
    assert path.read_text() == "text"


def test_text_is_written_as_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "λ ×\n")
    assert (tmp_path / "file").read_bytes() == "λ ×\n".encode()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: [0.5, 1.0]\nc: {d: null}", {"a": 1, "b": [0.5, 1.0], "c": {"d": None}}),
        ("", None),
        ("name: 'λ'", {"name": "λ"}),
        ("run: 2026-11-22\nat: 2026-13-45", {"run": "2026-11-22", "at": "2026-13-45"}),
    ],
)
def test_plain_yaml_is_read(tmp_path: Path, text: str, value: object) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    assert read_yaml(path) == value


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: &x 1\nb: *x", 2, "aliases"),
        ("a: &x [1]\nb: &y [*x, *x]\nc: [*y, *y]", 2, "aliases"),
        ("a: !!python/object/apply:os.system ['touch pwned']", 1, "could not determine a constructor for the tag"),
        ("a: !!python/name:os.system ''", 1, "could not determine a constructor for the tag"),
        ("a: 1\nb: 2\na: 3", 3, "'a' is given twice"),
        ("x:\n  a: 1\n  a: 1", 3, "'a' is given twice"),
        ("a: [1, 2", 1, "expected ',' or ']'"),
        ("a: 1\n---\nb: 2", 2, "but found another document"),
        ("? [1]\n: 2", 1, "found unhashable key"),
        ("a: \x07", None, "special characters are not allowed"),
        ("[" * 5000, None, "nested too deeply"),
        ("a: 0x_", None, "invalid literal for int"),
        ("a: !!timestamp 2026-11-22", 1, "could not determine"),
    ],
)
def test_other_yaml_is_refused_in_one_line(tmp_path: Path, text: str, line: int | None, problem: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(PixelsemError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}: not valid YAML: " if line else f"{path}: not valid YAML: ")
    assert problem in message
    assert "\n" not in message
    assert not (tmp_path / "pwned").exists()


def test_large_and_binary_and_missing_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    with pytest.raises(PixelsemError, match="cannot be read: No such file"):
        read_yaml(path)
    with pytest.raises(PixelsemError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)
    path.write_bytes(b"a: \xff\xfe\x00")
    with pytest.raises(PixelsemError, match=r"file\.yaml: not valid YAML") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
    path.write_text("a: " + "x" * MAX_YAML_BYTES)
    with pytest.raises(PixelsemError, match="over 1024 KiB"):
        read_yaml(path)


def test_what_is_dumped_can_be_read(tmp_path: Path) -> None:
    shared = [1, 2]
    values = {"z": shared, "a": shared, "text": "no", "tiny": 1e-05, "name": "λ\ud8ff: - #", "none": None}
    path = tmp_path / "file.yaml"
    path.write_text(dump_yaml(values), encoding="utf-8")
    assert read_yaml(path) == values
    assert list(read_yaml(path)) == list(values)


@pytest.mark.parametrize("name", ["a.png", "a b/ü\n.png", "-x", "a/./b", "..a/b..", "...", "a:b"])
def test_paths_inside(name: str) -> None:
    assert path_problem(name) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("/etc/passwd", "leaves its folder"),
        ("..", "leaves its folder"),
        ("a/../b", "leaves its folder"),
        ("a\\..\\b", "has a backslash or NUL in it"),
        ("a\0b", "has a backslash or NUL in it"),
        ("a\udcff", "is no Unicode text"),
    ],
)
def test_paths_that_are_refused(name: str, problem: str) -> None:
    assert path_problem(name) == problem


def test_reasons_are_one_line_without_the_path() -> None:
    assert (
        reason(FileNotFoundError(errno.ENOENT, "No such file or directory", "/secret")) == "No such file or directory"
    )
    assert reason(OSError("decoder\n  says no")) == "decoder says no"
    assert one_line(ValueError("a\n\tb  c")) == "a b c"


_KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from pixelsem.files import write_atomically
with write_atomically(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_leaves_is_told_from_results_and_removed(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.png"
    done = subprocess.run([sys.executable, "-c", _KILLED_WHILE_WRITING, str(target)], timeout=60)
    assert done.returncode < 0
    (left,) = os.listdir(target.parent)
    assert is_temporary(left)
    results = ["a.png", "a.tmp", ".0123456789abcdeg.tmp", "x.0123456789abcdef.tmp"]
    for name in results:
        assert not is_temporary(name)
        (tmp_path / name).touch()
    remove_temporaries(tmp_path, below=False)
    assert os.listdir(target.parent) == [left]
    remove_temporaries(tmp_path)
    assert os.listdir(target.parent) == []
    assert sorted(os.listdir(tmp_path)) == sorted([*results, "deep"])
