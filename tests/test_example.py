"""The example: its script, and the page that shows what came out."""

import re
import subprocess
from pathlib import Path

import pytest
import typer

from pixelsem.cli.app import app

EXAMPLE = Path(__file__).parents[1] / "docs" / "example"
PAGE = (EXAMPLE / "README.md").read_text(encoding="utf-8")

#: Notes its arguments, and leaves an evaluation's result for the script to move.
PROGRAM = r"""#!/bin/sh
{ printf '%s\t' "$@"; echo; } >> calls
for last; do :; done
case $last in */part-*) mkdir -p "$last" ;; esac
"""


def calls_of(folder: Path, *arguments: str) -> list[list[str]]:
    """Return what the script calls pixelsem with, run in a folder with one photo."""
    for name, text in (("bin/pixelsem", PROGRAM), ("photos/005_n01496331_electric_ray.JPEG", "")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "bin/pixelsem").chmod(0o755)
    (folder / "calls").unlink(missing_ok=True)
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin"}
    given = ["bash", EXAMPLE / "run.sh", "--cifar", "cifar", "--photos", "photos", *arguments]
    subprocess.run(given, cwd=folder, check=True, capture_output=True, env=environment)
    return [line.split("\t")[:-1] for line in (folder / "calls").read_text().splitlines()]


def test_the_script_makes_every_evaluation_that_there_is(tmp_path: Path) -> None:
    made = {call[1] for call in calls_of(tmp_path) if call[0] == "evaluate"}
    group = typer.main.get_command(app).get_command(None, "evaluate")  # type: ignore[attr-defined, arg-type]
    assert made == set(group.commands)
    assert (tmp_path / "example" / "labels.csv").read_text() == "005_n01496331_electric_ray.JPEG,5\n"


def test_what_was_evaluated_is_kept(tmp_path: Path) -> None:
    first = calls_of(tmp_path)
    again = calls_of(tmp_path)
    assert [call for call in again if call[0] != "evaluate"] == [call for call in first if call[0] != "evaluate"]
    assert [call[1] for call in again if call[0] == "evaluate"] == ["diff"]


def test_several_networks_are_compared(tmp_path: Path) -> None:
    calls = calls_of(tmp_path, "--models", "allconv,nin")
    (success,) = [call for call in calls if call[:2] == ["evaluate", "success"] and call[-1].endswith("part-success")]
    stages = [f"example/{model}-de-{pixels}" for model in ("allconv", "nin") for pixels in (1, 3)]
    assert success[2:6] == stages
    assert (tmp_path / "example" / "models.yaml").read_text().splitlines()[2] == "nin: {model: nin}"


def test_every_command_of_the_script_is_one_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Called where nothing is, each finds its options right and its input missing."""
    calls = calls_of(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    command = typer.main.get_command(app)
    for call in calls:
        with pytest.raises(SystemExit) as ended:
            command.main(call)
        said = capsys.readouterr().err.strip().removeprefix("pixelsem: ")
        assert ended.value.code == 2, (call, said)
        assert any(said.startswith(f"{argument}: ") for argument in call), (call, said)


@pytest.mark.parametrize("arguments", [[], ["--wrong"], ["--cifar"], ["--models", "nin"]])
def test_the_script_says_how_it_is_used(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(["bash", EXAMPLE / "run.sh", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr[:13]) == (2, "usage: run.sh")
    assert not list(tmp_path.iterdir())


def test_the_page_shows_every_result_and_no_other() -> None:
    shown = set(re.findall(r"\]\((results/[^)]+)\)", PAGE))
    kept = {str(file.relative_to(EXAMPLE)) for file in EXAMPLE.glob("results/**/*") if file.is_file()}
    assert shown <= kept
    assert {name for name in kept if not name.endswith(".json")} <= shown
    assert sum((EXAMPLE / name).stat().st_size for name in kept) < 3.5e6
