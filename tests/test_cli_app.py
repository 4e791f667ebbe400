"""How commands end: one line, the documented exit code, and no traceback; with real processes and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from pixelsem.cli.app import app, make_app
from pixelsem.cli.console import Console
from pixelsem.stage import open_stage

#: A command line like the real one, with commands that do what the tests need.
SCRIPT = """
import os, sys, time
from pathlib import Path
from typing import Annotated
import typer
from pixelsem.cli.console import Console
from pixelsem.cli.groups import RootGroup, run
from pixelsem.errors import InputError, ModelError, OutputError, PixelsemError, StageError
from pixelsem.records import SegmentRecord
from pixelsem.stage import Stage, StageInfo

app = typer.Typer(cls=RootGroup, pretty_exceptions_enable=False, rich_markup_mode=None)

@app.command()
def fail(kind: str, text: str):
    raise getattr(sys.modules[__name__], kind)(text)

@app.command()
def work(folder: Path, items: Annotated[int, typer.Option(min=1)] = 1000):
    stage = Stage.create(folder, StageInfo("segment", "work", "id", {}, {}))
    for number in range(len(stage.keys()), items):
        stage.append(SegmentRecord(f"{number}.png", "a.png", "m.png", "binary", 0.5, []))
        print("one", flush=True)
        time.sleep(0.05)

@app.command()
def talk(lines: int):
    for number in range(lines):
        Console().data("word " * 100)
    print("done", file=sys.stderr)

@app.command()
def tell(lines: int):
    for number in range(lines):
        Console().problem("not well")
        Console().table("a table")
    Console().data("done")

@app.command()
def talk_plainly(lines: int):
    for number in range(lines):
        print("word " * 100)

run(app)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize(
    ("kind", "code"),
    [("PixelsemError", 2), ("StageError", 2), ("ModelError", 2), ("InputError", 1), ("OutputError", 1)],
)
def test_every_error_is_one_line_and_its_exit_code(
    script: Path, python: Callable[..., Any], kind: str, code: int
) -> None:
    done = python(script, "fail", kind, "imgs/a\nb.png: \x1b[31mis\tbroken")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "pixelsem: imgs/a b.png: \\x1b[31mis broken\n"


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["nothing"], ["pixelsem: No such command 'nothing'.", "Try 'pixelsem --help'."]),
        (["tlak"], ["pixelsem: No such command 'tlak'. Did you mean 'talk'?", "Try 'pixelsem --help'."]),
        (["work"], ["pixelsem: Missing argument 'folder'.", "Try 'pixelsem work --help'."]),
        (["work", "a", "b"], ["pixelsem: Got unexpected extra argument(s) (b)", "Try 'pixelsem work --help'."]),
        (["--nothing"], ["pixelsem: No such option: --nothing", "Try 'pixelsem --help'."]),
    ],
)
def test_usage_errors_are_one_line_and_a_hint(
    script: Path, python: Callable[..., Any], arguments: list[str], lines: list[str]
) -> None:
    done = python(script, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == lines


def _heed_signals() -> None:
    """A child started in the background may have been told to ignore them, and would pass that on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(script: Path, *arguments: str | Path, module: str | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start a script with arguments; ``module`` is the name to start it by, as ``python -m`` does."""
    words = [str(script)] if module is None else ["-m", module]
    command = [sys.executable, *words, *map(str, arguments)]
    options = {"preexec_fn": _heed_signals, **options}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 143, "terminated"),
    ],
)
def test_a_signal_ends_the_run_and_the_stage_goes_on_later(
    script: Path, tmp_path: Path, python: Callable[..., Any], number: int, code: int, word: str
) -> None:
    process = start(script, "work", tmp_path / "s")
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "one\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == f"pixelsem: {word}; what is done stays done, the same command goes on from there\n"
    done = len(open_stage(tmp_path / "s").keys())
    assert done >= 3
    again = python(script, "work", tmp_path / "s", "--items", str(done + 2))
    assert (again.returncode, again.stdout) == (0, "one\none\n")
    assert len(open_stage(tmp_path / "s").keys()) == done + 2


@pytest.mark.parametrize("twist", ["raise KeyboardInterrupt from None", "raise", "signal.raise_signal(15)"])
@pytest.mark.parametrize(("number", "code", "word"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_the_exit_code_is_that_of_the_signal_whatever_a_library_makes_of_it(
    tmp_path: Path, number: int, code: int, word: str, twist: str
) -> None:
    """Another interrupt in its place, as Ray raises; one that came by the exec() of a text; a second signal."""
    if number == signal.SIGINT and twist.startswith("signal"):
        code, word = 143, "terminated"
    (tmp_path / "late.py").write_text(
        f"""
import atexit, signal, typer
from pixelsem.cli.groups import RootGroup, run
app = typer.Typer(cls=RootGroup)

@app.callback()
def root():
    pass

@app.command()
def work():
    try:
        exec("signal.raise_signal({number})")
    except KeyboardInterrupt:
        atexit.register(lambda: {number} == signal.SIGTERM and signal.raise_signal({number}))
        {twist}

run(app)
"""
    )
    process = start(tmp_path, "work", cwd=tmp_path, module="late")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, "")
    assert errors == f"pixelsem: {word}; what is done stays done, the same command goes on from there\n"


@pytest.mark.parametrize(("number", "code", "word"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_a_signal_before_the_command_is_found_is_told_too(
    tmp_path: Path, python: Callable[..., Any], number: int, code: int, word: str
) -> None:
    script = tmp_path / "early.py"
    script.write_text(
        f"""
import signal, typer
from pixelsem.cli.groups import RootGroup, run
app = typer.Typer(cls=RootGroup)

@app.callback()
def root(early: bool = typer.Option(False, "--early", callback=lambda early: early and signal.raise_signal({number}))):
    pass

@app.command()
def talk():
    print("done")

run(app)
"""
    )
    assert python(script, "talk").stdout == "done\n"
    process = start(script, "--early", "talk")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, "")
    assert errors == f"pixelsem: {word}; what is done stays done, the same command goes on from there\n"


def test_what_is_ignored_stays_ignored_as_nohup_wants(script: Path, tmp_path: Path) -> None:
    process = start(
        script, "work", tmp_path / "s", "--items", "10", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("command", ["talk", "talk-plainly"])
@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_reader_that_leaves_is_no_error_to_print(script: Path, command: str, lines: int) -> None:
    process = start(script, command, str(lines))
    assert process.stdout is not None
    process.stdout.close()
    errors = process.stderr.read() if process.stderr else ""
    process.wait(timeout=60)
    if command == "talk":
        assert (process.returncode, errors) == (0, "done\n")
    else:
        assert (process.returncode, errors) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_results_that_cannot_be_told_are_one_line(script: Path) -> None:
    done = subprocess.run(f"'{sys.executable}' {script} talk 5 > /dev/full", shell=True, stderr=PIPE, timeout=60)
    said = b"pixelsem: standard output: cannot be written: No space left on device; what is done stays\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_log_does_not_stop_the_work(script: Path) -> None:
    done = subprocess.run(f"'{sys.executable}' {script} tell 5 2> /dev/full", shell=True, stdout=PIPE, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"done\n")


def test_a_pipe_into_head(python: Callable[..., Any]) -> None:
    line = f"'{sys.executable}' -m pixelsem --help | head -n 0; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout in ("0\n", "1\n")


def test_as_a_module_and_as_a_command_it_is_the_same(python: Callable[..., Any]) -> None:
    module = python("-m", "pixelsem", "--help")
    command = python(
        "-c", "import sys; sys.argv[0] = '/some/bin/pixelsem.exe'; from pixelsem.cli.app import main; main()", "--help"
    )
    assert module.returncode == command.returncode == 0
    assert module.stdout == command.stdout
    assert module.stdout.startswith("Usage: pixelsem [OPTIONS] COMMAND")


def test_without_a_command_the_help_is_shown_as_an_error(python: Callable[..., Any]) -> None:
    done = python("-m", "pixelsem")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: pixelsem [OPTIONS] COMMAND")


# What it costs to ask for help


def test_help_imports_nothing_heavy(python: Callable[..., Any]) -> None:
    code = """
import sys
from pixelsem.cli.app import main
sys.argv = ["pixelsem", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"torch", "torchvision", "cv2", "numpy", "scipy", "PIL", "rich", "safetensors", "yaml"}
    print(*sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    for arguments in (
        ["--help"],
        *([name, "--help"] for name in ("segment", "attack", "evaluate", "defend", "models")),
    ):
        done = python("-c", code, *arguments)
        assert done.returncode == 0
        assert done.stdout.startswith("Usage: pixelsem")
        assert done.stderr == "\n", f"{arguments} imports {done.stderr}"


def test_commands_that_were_not_read_are_named_as_they_name_themselves() -> None:
    whole, names = (typer.main.get_command(made) for made in (make_app(), make_app(())))
    assert list(names.commands) == list(whole.commands)
    for name, command in whole.commands.items():
        assert names.commands[name].help == (command.help or "").split("\n\n")[0].replace("\n", " ")
        assert getattr(names.commands[name], "commands", None) in (None, {})


@pytest.mark.parametrize("words", [["attack", "de", "--help"], ["models", "--help"], ["nothing"], ["--version"]])
def test_the_program_answers_as_the_whole_does(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "pixelsem", *words], capture_output=True, text=True)
    whole = CliRunner().invoke(app, words, prog_name="pixelsem")
    told, expected = (
        [part.split() for part in out] for out in ((done.stdout, done.stderr), (whole.stdout, whole.stderr))
    )
    assert (done.returncode, told) == (whole.exit_code, expected)  # but for the width of the terminal


def test_help_is_instant() -> None:
    """Under 0.3 s. Where other work keeps the processors busy, the time that it computes itself counts."""
    busy = os.getloadavg()[0] > (os.cpu_count() or 1) / 2
    least = min(_time_of_help(busy) for _ in range(7))
    assert least < 0.3, f"{least:.2f} s"


def _time_of_help(busy: bool) -> float:
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "pixelsem", "--help"], check=True, stdout=subprocess.DEVNULL)
    elapsed, after = time.perf_counter() - started, os.times()
    computed = after.children_user + after.children_system - before.children_user - before.children_system
    return computed if busy else elapsed


# The real commands


def commands(command: Any = None, names: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    """Return every command and group of the app with its name as typed."""
    command = command or typer.main.get_command(app)
    below = getattr(command, "commands", {})
    return [(" ".join(names), command)] + [
        pair for name, child in below.items() for pair in commands(child, (*names, name))
    ]


ALL = commands()


def test_the_commands_of_the_design_are_there() -> None:
    assert {"segment", "attack de", "evaluate", "defend train", "models"} <= {name for name, _ in ALL}


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name or "pixelsem" for name, _ in ALL])
def test_every_command_and_every_parameter_is_explained(name: str, command: Any) -> None:
    assert (command.help or "").strip(), f"`pixelsem {name}` has no help"
    for parameter in command.params:
        text = (getattr(parameter, "help", None) or "").strip()
        assert len(text) > 3, f"`pixelsem {name}`: {parameter.name} has no help"
    result = CliRunner().invoke(app, [*name.split(), "--help"])
    assert result.exit_code == 0
    shown = result.stdout
    for parameter in command.params:
        for spelling in [] if getattr(parameter, "hidden", False) else [*parameter.opts, *parameter.secondary_opts]:
            assert spelling in shown or not spelling.startswith("-")


@pytest.mark.parametrize("name", ["segment", "attack de", "evaluate"])
def test_stage_commands_share_their_options(name: str) -> None:
    command = dict(ALL)[name]
    command = getattr(command, "commands", {}).get({"segment": "images", "evaluate": "success"}.get(name), command)
    spellings = {spelling for parameter in command.params for spelling in parameter.opts}
    assert {"--output", "-o", "--run", "--json", "--quiet", "-q", "--config"} <= spellings


# Groups with a default subcommand


def test_a_group_shows_the_options_of_its_default() -> None:
    shown = CliRunner().invoke(app, ["segment", "--help"]).stdout
    assert "--method" in shown
    assert "Commands:" in shown


def test_a_group_runs_its_default(tmp_path: Path) -> None:
    for arguments in (["segment"], ["segment", "images"]):
        result = CliRunner().invoke(app, [*arguments, str(tmp_path / "none")])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"pixelsem: {tmp_path / 'none'}: no such file or folder\n"


# The list of models


def test_models_are_listed_for_programs() -> None:
    rows = [line.split("\t") for line in CliRunner().invoke(app, ["models"]).stdout.splitlines()]
    assert rows[0] == ["name", "input", "classes", "parameters", "weights", "source"]
    listed = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert len(listed) == len(rows) - 1
    assert listed["allconv"]["input"] == "32x32"
    assert listed["allconv"]["classes"] == "10"
    assert listed["vgg16"]["parameters"] == "14724042"
    assert listed["torchvision:alexnet"]["parameters"] == "61100840"
    assert {row["weights"] for row in listed.values()} <= {"bundled", "cached", "download", "none"}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("vgg16", ["vgg16", "torchvision:vgg16", "torchvision:vgg16_bn"]),
        ("VGG1[13]", ["vgg11", "vgg13", "torchvision:vgg11", "torchvision:vgg13"]),
        ("torchvision:alex*", ["torchvision:alexnet"]),
    ],
)
def test_models_can_be_looked_up(pattern: str, names: list[str]) -> None:
    listed = json.loads(CliRunner().invoke(app, ["models", pattern, "--json"]).stdout)
    assert [model["name"] for model in listed] == names
    assert all(len(model["input_size"]) == 2 and model["parameters"] > 0 for model in listed)


def test_a_pattern_without_a_model_is_one_line() -> None:
    result = CliRunner().invoke(app, ["models", "nothing"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "pixelsem: no model matches 'nothing'; `pixelsem models` lists all\n"


@pytest.mark.slow
def test_models_are_a_table_on_a_terminal() -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pixelsem", "models", "vgg16"],
        stdout=slave,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "100"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # the terminal's end
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "14.72 M" in text
    assert "138 M" in text
    assert "\t" not in text


# What people see


def test_notes_are_dropped_when_quiet_and_problems_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.note("note")
    console.problem("problem [red]with[/red] brackets :smile:")
    console.data("data")
    captured = capsys.readouterr()
    assert captured.err == "pixelsem: problem [red]with[/red] brackets :smile:\n"
    assert captured.out == "data\n"


def test_the_result_is_the_path_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    Console().result(Path("run/s"), {"counts": {"images": 1}})
    Console(as_json=True).result(Path("run/s"), {"counts": {"images": 1}, "name": "λ"})
    first, second = capsys.readouterr().out.splitlines()
    assert first == "run/s"
    assert json.loads(second) == {"stage": "run/s", "counts": {"images": 1}, "name": "λ"}


def test_progress_is_for_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("work", 10) as bar:
        bar.update(5, "half")
    captured = capsys.readouterr()
    assert (captured.out, captured.err.strip()) == ("", "")
