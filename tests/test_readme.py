"""The README's two lines are what they claim to be, and CI runs them from there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from conftest import ROOT

from pixelsem.cli.app import app

README = ROOT / "README.md"


def line_of(name: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([folder / ".ci" / "readme-line", name], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", ["try", "test"])
def test_each_line_is_one_line_in_a_fence_of_its_own(name: str) -> None:
    text = README.read_text(encoding="utf-8")
    found = re.findall(rf"^<!-- line: {name} -->\n```sh\n(.+)\n```$", text, re.MULTILINE)
    assert len(found) == 1
    assert line_of(name).stdout == found[0] + "\n"


def test_the_lines_do_their_own_set_up() -> None:
    for name in ("try", "test"):
        line = line_of(name).stdout
        assert "venv" in line
        assert "pip install" in line
        subprocess.run(["bash", "-n", "-c", line], check=True)
    assert "pytest" in line_of("test").stdout
    assert "sample_images" in line_of("try").stdout


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- line: test -->\n",
        "<!-- line: test -->\n\n```sh\npytest\n```\n",
        "<!-- line: test -->\n```sh\none\ntwo\n```\n",
        "<!-- line: test -->\n```sh\n\n```\n",
        "<!-- line: other -->\n```sh\npytest\n```\n",
    ],
)
def test_a_readme_without_the_line_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "readme-line").write_bytes((ROOT / ".ci" / "readme-line").read_bytes())
    (tmp_path / ".ci" / "readme-line").chmod(0o755)
    (tmp_path / "README.md").write_text(text)
    done = line_of("test", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "README.md: no one-line command below <!-- line: test -->\n"


def test_ci_says_where_it_failed(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    for name in ("run", "readme-line"):
        (tmp_path / ".ci" / name).write_bytes((ROOT / ".ci" / name).read_bytes())
        (tmp_path / ".ci" / name).chmod(0o755)
    make = "mkdir -p .venv/bin && for tool in pytest ruff mypy; do {} > .venv/bin/$tool; chmod +x .venv/bin/$tool; done"
    for tools, code, end in (
        ("printf '#!/bin/sh\\necho ran $0 $*\\n'", 0, ".ci/run: passed\n"),
        ("printf '#!/bin/sh\\ntest $1 != format\\n'", 1, ".ci/run: FAILED: ruff format\n"),
    ):
        line = make.format(tools) + " && echo 7 passed"
        (tmp_path / "README.md").write_text(f"<!-- line: test -->\n```sh\n{line}\n```\n")
        done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True, timeout=60)
        assert done.returncode == code
        assert (done.stderr or done.stdout).endswith(end)
        assert "7 passed" in done.stdout
    (tmp_path / "README.md").write_text("<!-- line: test -->\n```sh\nfalse\n```\n")
    done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == ".ci/run: FAILED: the README's test line: false\n"


def test_the_source_archive_holds_what_the_repository_does() -> None:
    """Else the test line fails in it."""
    if not (ROOT / ".git").exists():
        pytest.skip("no repository")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    held = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    tracked = {f"/{name.split('/')[0]}" for name in listed.stdout.splitlines()}
    assert set(held) == tracked - {"/pyproject.toml", "/.gitignore"}  # which are always in it


def test_every_command_is_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    root = typer.main.get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        assert f"pixelsem {name}" in text
        for below in getattr(command, "commands", {}):
            # A group's default subcommand goes without its name.
            assert f"{name} {below}" in text or below in ("images", "success"), f"pixelsem {name} {below}"


@pytest.mark.slow
def test_the_python_example_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    searching, reading = code.split("for record in pixelsem.open_stage(")
    assert ".records()" in reading
    done = subprocess.run([sys.executable, "-c", searching], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip(), "the example prints what it found"
