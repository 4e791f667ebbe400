"""The committed completion files are what the program gives, and the Tab key works."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

FILES = {"bash": "pixelsem.bash", "zsh": "_pixelsem", "fish": "pixelsem.fish"}


def complete(python: Callable[..., Any], *words: str) -> list[str]:
    """Return what the program offers for the last of ``words``."""
    asked = {"_PIXELSEM_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = python("-m", "pixelsem", env={**os.environ, **asked})
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout).split()


@pytest.mark.parametrize("shell", FILES)
def test_the_files_are_current(python: Callable[..., Any], shell: str) -> None:
    done = python("-m", "pixelsem", env={**os.environ, "_PIXELSEM_COMPLETE": f"source_{shell}"})
    text = (ROOT / "completions" / FILES[shell]).read_text(encoding="utf-8")
    assert text.split() == done.stdout.split(), "run completions/update"
    assert shell != "zsh" or text.startswith("#compdef pixelsem\n")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pixelsem", "at"], ["attack"]),
        (["pixelsem", "attack", "d"], ["de"]),
        (["pixelsem", "attack", "de", "--no-early"], ["--no-early-stop"]),
        (["pixelsem", "attack", "de", "--strategy", "best2"], ["best2bin", "best2exp"]),
        (["pixelsem", "segment", "--meth"], ["--method"]),
        (["pixelsem", "segment", "--method", "grab"], ["grabcut"]),
        (["pixelsem", "segment", "--method", "grabcut", "--iter"], ["--iterations"]),
        (["pixelsem", "segment", "imgs", "--iter"], ["--iterations"]),
        (["pixelsem", "evaluate", "acc"], ["accuracy"]),
        (["pixelsem", "evaluate", "--confid"], ["--confidence"]),
        (["pixelsem", "attack", "de", "--config", "x"], []),
    ],
)
def test_commands_options_and_values_are_offered(
    python: Callable[..., Any], words: list[str], offered: list[str]
) -> None:
    assert complete(python, *words) == offered


def test_a_group_offers_its_subcommands_and_the_options_of_its_default(python: Callable[..., Any]) -> None:
    assert {"success", "accuracy"} <= set(complete(python, "pixelsem", "evaluate", ""))
    offered = complete(python, "pixelsem", "segment", "--")
    assert {"--method", "--help", "--output"} <= set(offered)
    assert len(offered) == len(set(offered))


def test_no_completion_imports_torch(python: Callable[..., Any]) -> None:
    code = "import sys; from pixelsem.cli.app import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    asked = {"_PIXELSEM_COMPLETE": "complete_bash", "COMP_WORDS": "pixelsem attack de --", "COMP_CWORD": "3"}
    *offered, torch = python("-c", code, env={**os.environ, **asked}).stdout.split()
    assert "--population" in offered
    assert torch == "False"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("typed", "received"),
    [("at\t", "attack"), ("segment --meth\tgrab\t imgs", "segment --method grabcut imgs")],
)
def test_the_tab_key_in_bash(tmp_path: Path, typed: str, received: str) -> None:
    pty = pytest.importorskip("pty")
    shim = tmp_path / "pixelsem"
    python = shlex.quote(sys.executable)
    shim.write_text(
        "#!/bin/sh\n"
        f'if [ -n "$_PIXELSEM_COMPLETE" ]; then exec {python} -m pixelsem "$@"; fi\n'
        f'echo "$*" > {shlex.quote(str(tmp_path / "received"))}\n'
    )
    shim.chmod(0o755)
    master, slave = pty.openpty()
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TERM": "dumb", "INPUTRC": "/dev/null"}
    process = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=env,
        start_new_session=True,
    )
    os.close(slave)
    os.write(master, f"source {shlex.quote(str(ROOT / 'completions' / 'pixelsem.bash'))}\n".encode())
    os.write(master, f"pixelsem {typed}\nexit\n".encode())
    try:
        while os.read(master, 4096):
            pass
    except OSError:  # bash has ended, and its terminal with it
        pass
    os.close(master)
    process.wait(timeout=60)
    assert (tmp_path / "received").read_text() == received + "\n"
