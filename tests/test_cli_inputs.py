"""Where inputs come from: arguments, a pipe, or the newest stage; with real processes and real pipes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pixelsem.cli.inputs import newest_stage, resolve_inputs
from pixelsem.errors import PixelsemError
from pixelsem.stage import MANIFEST_FILE, STAGE_FILE, Stage, StageInfo

#: Prints what resolve_inputs finds for the paths it is given: JSON on stdout, notes and problems on stderr.
SCRIPT = """
import json, sys
from pathlib import Path
from pixelsem.cli.inputs import resolve_inputs
from pixelsem.errors import PixelsemError
try:
    given = [Path(item) for item in sys.argv[1:]]
    paths = resolve_inputs(given, Path("run"), ("segment",), note=lambda text: print(text, file=sys.stderr))
    print(json.dumps([str(path) for path in paths]))
except PixelsemError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def make_stage(path: Path, kind: str = "segment", time: int = 0) -> Path:
    stage = Stage.create(path, StageInfo(kind, f"{kind} x", "id", {}, {}))
    for name in (STAGE_FILE, MANIFEST_FILE):
        os.utime(stage.path / name, (time, time))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two inputs, ``imgs`` and ``a b``, and an empty run folder, as the current one."""
    for name in ("imgs", "a b", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(line: str) -> tuple[int, str, str]:
    """Run a line of shell in which ``RESOLVE`` is the script; return exit code, stdout and stderr."""
    command = f"{shlex.quote(sys.executable)} script.py"
    done = subprocess.run(
        ["bash", "-c", line.replace("RESOLVE", command)],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


NOTHING = "no input: name a folder; run holds no stage of kind segment"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("RESOLVE imgs", '["imgs"]'),
        ("echo 'a b' | RESOLVE imgs", '["imgs"]'),
        ("echo imgs | RESOLVE", '["imgs"]'),
        ("printf 'imgs\\na b\\n' | RESOLVE", '["imgs", "a b"]'),
        ("printf 'imgs\\r\\n\\n  \\na b' | RESOLVE", '["imgs", "a b"]'),
        ("echo 'a b' | RESOLVE -", '["a b"]'),
        ("echo 'a b' | RESOLVE imgs - imgs", '["imgs", "a b", "imgs"]'),
        ("echo 'a b' > list; RESOLVE - < list", '["a b"]'),
        ("(sleep 0.3; echo imgs) | RESOLVE", '["imgs"]'),
    ],
)
def test_arguments_and_pipes(here: Path, line: str, expected: str) -> None:
    make_stage(here / "run" / "s")
    assert shell(line) == (0, expected, "")


@pytest.mark.parametrize("line", ["RESOLVE - < /dev/null", ": | RESOLVE -", "RESOLVE - <&-"])
def test_a_dash_that_brings_nothing_is_an_error(here: Path, line: str) -> None:
    make_stage(here / "run" / "s")
    assert shell(line) == (2, "", "-: nothing came from stdin; did the command before the pipe fail?")


@pytest.mark.parametrize(
    "line",
    [
        "RESOLVE < /dev/null",
        ": | RESOLVE",
        "printf '\\n \\n' | RESOLVE",
        "RESOLVE <&-",
        "echo imgs > list; RESOLVE < list",  # a file is read only where - asks for it
    ],
)
def test_without_any_input_the_newest_stage_counts(here: Path, line: str) -> None:
    assert shell(line) == (2, "", NOTHING)
    make_stage(here / "run" / "s")
    assert shell(line) == (0, '["run/s"]', "input: run/s (the newest in run)")


def test_a_terminal_is_not_read(here: Path) -> None:
    pty = pytest.importorskip("pty")
    make_stage(here / "run" / "s")
    master, slave = pty.openpty()
    done = subprocess.run([sys.executable, "script.py"], stdin=slave, capture_output=True, text=True, timeout=60)
    os.close(master)
    os.close(slave)
    assert done.stdout.strip() == '["run/s"]'


@pytest.mark.parametrize("line", ["RESOLVE imgs none", "echo none | RESOLVE", "echo none | RESOLVE imgs -"])
def test_what_does_not_exist_is_one_line(here: Path, line: str) -> None:
    assert shell(line) == (2, "", "none: no such file or folder")


def test_a_name_that_is_no_text_comes_through_a_pipe(here: Path) -> None:
    try:
        os.mkdir(b"odd\xff")
    except OSError:
        pytest.skip("this file system has no such names")
    script = "import sys; from pixelsem.cli.groups import run; import typer\n" + (
        "app = typer.Typer(rich_markup_mode=None)\n"
        "@app.command()\n"
        "def show() -> None:\n"
        "    from pathlib import Path\n"
        "    from pixelsem.cli.console import Console\n"
        "    from pixelsem.cli.inputs import resolve_inputs\n"
        "    Console().result(resolve_inputs(None, Path('run'), ())[0], {})\n"
        "run(app)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=b"odd\xff\n", capture_output=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"odd\xff\n", b"")


def test_the_newest_is_the_one_written_to_last(tmp_path: Path) -> None:
    for name, kind, time in (("a", "segment", 30), ("b", "segment", 10), ("c", "attack", 40), ("d", "segment", 20)):
        make_stage(tmp_path / name, kind, time)
    assert newest_stage(tmp_path, ("segment",)) == tmp_path / "a"
    assert newest_stage(tmp_path, ("attack", "segment")) == tmp_path / "c"
    assert newest_stage(tmp_path, ("train",)) is None
    os.utime(tmp_path / "b" / MANIFEST_FILE, (35, 35))
    assert newest_stage(tmp_path, ("segment",)) == tmp_path / "b"
    assert newest_stage(tmp_path / "none", ("segment",)) is None


def test_what_is_no_stage_is_passed_over(tmp_path: Path) -> None:
    make_stage(tmp_path / "good", time=10)
    make_stage(tmp_path / "broken", time=20)
    (tmp_path / "broken" / STAGE_FILE).write_text("kind: [")
    make_stage(tmp_path / "from-the-future", time=30)
    text = (tmp_path / "from-the-future" / STAGE_FILE).read_text()
    (tmp_path / "from-the-future" / STAGE_FILE).write_text(text.replace("kind: segment", "kind: dream"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert newest_stage(tmp_path, ("segment",)) == tmp_path / "good"


def test_a_path_that_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PixelsemError) as caught:
        resolve_inputs([Path("x" * 5000)], tmp_path, ("segment",))
    assert str(caught.value).endswith((": no such file or folder", ": cannot be read: File name too long"))
