"""The script of the papers' experiments, and the page that tells what came out."""

import json
import subprocess
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SCRIPT = DOCS / "reproduction" / "run.sh"
RESULTS = DOCS / "reproduction" / "results"
RATES = sorted(file for file in RESULTS.glob("*.json") if file.stem != "masks")


@pytest.mark.parametrize("file", RATES, ids=lambda file: file.stem)
def test_the_page_tells_what_the_results_say(file: Path) -> None:
    page = (DOCS / "reproduction.md").read_text()
    rates = [row["asr"] for row in json.loads(file.read_text())["rows"]]
    assert rates
    for rate in rates:
        assert f"{100 * rate['rate']:.2f} % ({rate['count']}/{rate['n']})" in page


def test_the_page_tells_how_good_masks_are() -> None:
    page = (DOCS / "reproduction.md").read_text()
    for row in json.loads((RESULTS / "masks.json").read_text())["rows"]:
        assert f"{row['iou']:.3f} [{row['iou_low']:.3f}, {row['iou_high']:.3f}] | {row['max_f']:.3f}" in page


@pytest.mark.parametrize("arguments", [[], ["--wrong"], ["--cifar"], ["--cifar", ".", "nothing"]])
def test_the_script_says_how_it_is_used(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(["bash", SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: run.sh")


def test_the_script_resumes_and_goes_on_after_images_that_failed(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "pixelsem"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" >> calls\n[ "$1" = segment ] && exit 1\nexit 0\n')
    program.chmod(0o755)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "005_n01496331_electric_ray.JPEG").touch()
    command = ["bash", SCRIPT, "--quick", "--photos", "photos", "masks", "defences"]
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=environment)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[:2] for call in calls] == [
        ["segment", "--method"], ["evaluate", "robustness"],
        *[["defend", "detect"]] * 3, ["evaluate", "detection"],
    ]  # fmt: skip
    assert (tmp_path / "reproduction" / "labels.csv").read_text() == "005_n01496331_electric_ray.JPEG,5\n"
