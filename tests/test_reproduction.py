"""The script of the papers' experiments, and the page that tells what came out."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pixelsem.cli.app import app
from pixelsem.metrics.intervals import wilson

DOCS = Path(__file__).parents[1] / "docs"
SCRIPT = DOCS / "reproduction" / "run.sh"
RESULTS = DOCS / "reproduction" / "results"

#: Notes its arguments, and leaves what the script goes on with: a folder, failed images, the weights of a training.
PROGRAM = r"""#!/bin/sh
{ printf '%s\t' "$@"; echo; } >> calls
for last; do :; done
mkdir -p "$last"
case "$*" in
    segment*) exit 1 ;;
    "defend train"*) : > "$last/allconv.safetensors" ;;
esac
"""
PHOTO = "005_n01496331_electric_ray.JPEG"


def rows_of(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    assert rows
    return rows


def rates_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return those rates of a row of results that the page gives."""
    return [
        row[name]
        for name in ("asr", "after", "detected", "untargeted1", "targeted", "untargeted2", "of_attacked")
        if row.get(name)
    ]


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("*.json")), ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_page_tells_what_the_results_say(file: Path) -> None:
    page = " ".join((DOCS / "reproduction.md").read_text().split())
    for rate in (rate for row in rows_of(file) for rate in rates_of(row)):
        assert f"{100 * rate['rate']:.2f} % ({rate['count']}/{rate['n']})" in page


def shown(rate: dict[str, Any]) -> str:
    """Return a rate as the page has it where it gives an interval."""
    bounds = f"[{100 * rate['low']:.2f}, {100 * rate['high']:.2f}]"
    return f"{100 * rate['rate']:.2f} % ({rate['count']}/{rate['n']}) {bounds}"


def every_rate(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every rate within a JSON value."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict) and {"rate", "count", "n", "low", "high"} <= value.keys():
        yield value
    for part in parts:
        yield from every_rate(part)


@pytest.mark.parametrize("page", ["reproduction.md", "one-pixel-cifar10/README.md"])
def test_rates_and_intervals_are_those_of_their_counts(page: str) -> None:
    """Wilson's, or where images are counted several times those of the results."""
    text = " ".join((DOCS / page).read_text().split())
    known = {shown(rate) for file in DOCS.rglob("*.json") for rate in every_rate(json.loads(file.read_text()))}
    found = list(re.finditer(r"([\d.]+) % \((\d+)/(\d+)\)( \[([\d.]+), ([\d.]+)\])?", text))
    assert len(found) >= 10
    for match in found:
        share, count, n = float(match[1]), int(match[2]), int(match[3])
        assert f"{share:.2f}" == f"{100 * count / n:.2f}", match[0]
        assert match[4], f"{match[0]}: without an interval"
        if match[0] not in known:
            low, high = wilson(count, n)
            assert [f"{100 * low:.2f}", f"{100 * high:.2f}"] == [match[5], match[6]], match[0]


def test_results_are_where_the_script_makes_them() -> None:
    made = set(re.findall(r"^ *result (\S+)", SCRIPT.read_text(), re.MULTILINE))
    names = {name.replace("$set", which) for name in made for which in ("cifar", "nin", "photos")}
    assert {folder.name for folder in RESULTS.iterdir()} - {"masks"} <= names


def test_the_page_tells_how_good_masks_are() -> None:
    page = (DOCS / "reproduction.md").read_text()
    for row in rows_of(RESULTS / "masks" / "masks.json"):
        assert f"{row['iou']:.3f} [{row['iou_low']:.3f}, {row['iou_high']:.3f}] | {row['max_f']:.3f}" in page


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["--wrong"], ["--cifar"], ["--cifar", ".", "nothing"], ["--cifar", ".", "hardened"],
        ["--cifar", ".", "detection"], ["--photos", ".", "few-pixel"],
    ],
)  # fmt: skip
def test_the_script_says_how_it_is_used(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(["bash", SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: run.sh")
    assert not list(tmp_path.iterdir())


def calls_of(folder: Path, *arguments: str) -> list[list[str]]:
    """Return what the script calls pixelsem with, run in a folder with two photos and a file of weights."""
    program = folder / "bin" / "pixelsem"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    for name in (f"photos/{PHOTO}", "more/1.jpg", "fast.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin"}
    subprocess.run(
        ["bash", SCRIPT, "--quick", *arguments], cwd=folder, check=True, capture_output=True, env=environment
    )
    return [line.split("\t")[:-1] for line in (folder / "calls").read_text().splitlines()]


def all_parts() -> list[str]:
    found = re.search(r"^known='(.*)'$", SCRIPT.read_text(), re.MULTILINE)
    assert found is not None
    return found[1].split()


def test_the_script_resumes_and_goes_on_after_images_that_failed(tmp_path: Path) -> None:
    calls = calls_of(tmp_path, "--photos", "photos", "masks", "defences")
    assert calls[0][:2] == ["segment", "--method"]
    assert calls[-1][:2] == ["evaluate", "robustness"]
    assert len({call[-1] for call in calls}) == len(calls)
    assert (tmp_path / "reproduction" / "labels.csv").read_text() == f"{PHOTO},5\n"


def test_detectors_are_made_of_the_photos_of_both_folders(tmp_path: Path) -> None:
    calls = calls_of(tmp_path, "--photos", "photos", "--more-photos", "more", "detection")
    assert {path.name for path in (tmp_path / "reproduction" / "detection-photos").iterdir()} == {PHOTO, "1.jpg"}
    trained = [call for call in calls if call[:3] == ["defend", "detect", "train"]]
    attacked = {call[-1] for call in calls if call[0] == "attack"}
    assert len(attacked) == 7 + 2 + 3 * 5
    assert {call[3] for call in trained} == attacked
    assert [call[1] for call in calls if call[0] == "evaluate"] == ["detection"] * 3


def test_every_attack_is_of_the_images_that_its_name_says(tmp_path: Path) -> None:
    given = ["--cifar", "cifar", "--photos", "photos", "--hardened", "train"]
    attacks = {Path(call[-1]).name: call for call in calls_of(tmp_path, *given, *all_parts()) if call[0] == "attack"}
    sources = {"photos": "photos", "detection": "reproduction/detection-photos", "cifar": "cifar/test"}
    split = {name for name, call in attacks.items() if call[1] == "split"}
    named = {name: call for name, call in attacks.items() if name.split("-")[0] in sources and name not in split}
    assert len(named) > 100
    for name, call in named.items():
        taken = [argument for argument in call[:-1] if argument in sources.values() or argument.endswith("-u2netp")]
        masked = name == "photos-de-1"
        assert taken == ["reproduction/photos-u2netp" if masked else sources[name.split("-")[0]]], call


def test_the_classes_of_photos_are_given_wherever_they_count(tmp_path: Path) -> None:
    calls = calls_of(tmp_path, "--photos", "photos", "imagenet", "dong2020", "qian2021", "defences")
    counting = [call for call in calls if call[0] != "evaluate" or call[1] == "occlusion"]
    counting = [call for call in counting if call[1] != "split" and "u2netp" not in call]
    assert {call[1] for call in counting} >= {"--method", "de", "sai-fgm", "cfr", "occlusion"}
    for call in counting:
        assert call[call.index("--labels") + 1] == "reproduction/labels.csv", call


def test_results_are_made_of_stages_that_were_made_before_and_are_of_the_right_kind(tmp_path: Path) -> None:
    given = ["--cifar", "cifar", "--photos", "photos", "--hardened", "train"]
    kinds = {"masks": "segment", "occlusion": "segment", "detection": "defend"}
    made: dict[str, str] = {}
    for call in calls_of(tmp_path, *given, *all_parts()):
        if call[0] != "evaluate":
            made[call[-1]] = call[0]
        if call[:2] == ["evaluate", "accuracy"] or call[0] != "evaluate":
            continue
        taken = [argument for argument in call[2:-1] if argument.startswith("reproduction/")]
        stages = [path for path in taken if path != "reproduction/labels.csv"]
        assert {made[stage] for stage in stages} == {kinds.get(call[1], "attack")}, call


@pytest.mark.parametrize("given", ["fast=fast.safetensors,pgd=fast.safetensors", "train"])
def test_hardened_networks_are_attacked_beside_one_that_is_not(given: str, tmp_path: Path) -> None:
    calls = calls_of(tmp_path, "--cifar", "cifar", "--hardened", given, "hardened")
    assert [call[:6] for call in calls if call[0] == "defend"] == [
        ["defend", "train", "--data", "cifar", "--model", "allconv"] for _ in range(2 * (given == "train"))
    ]
    attacks = [call for call in calls if call[0] == "attack"]
    weights = [call[call.index("--weights") + 1] if "--weights" in call else None for call in attacks]
    assert weights == [
        *[None] * 4, *["reproduction/weights/fast.safetensors"] * 4, *["reproduction/weights/pgd.safetensors"] * 4,
    ]  # fmt: skip
    assert [call[1] for call in attacks] == ["pgd", "cw", "cfr", "de"] * 3
    for call in calls[-2:]:
        assert [argument for argument in call if argument in {attack[-1] for attack in attacks}] == [
            attack[-1] for attack in attacks
        ]


def test_every_command_of_the_script_is_one_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Called where nothing is, each finds its options right and its input missing."""
    given = ["--cifar", "cifar", "--photos", "photos", "--more-photos", "more", "--hardened", "train"]
    calls = calls_of(tmp_path, *given, *all_parts())
    assert len(calls) > 100
    # One call of several that differ in names and numbers alone is enough.
    distinct = {tuple(re.sub(r"reproduction/\S*|\d+", "", argument) for argument in call): call for call in calls}
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    command = typer.main.get_command(app)
    for call in distinct.values():
        with pytest.raises(SystemExit) as ended:
            command.main(call)
        said = capsys.readouterr().err.strip().removeprefix("pixelsem: ")
        assert ended.value.code == 2, (call, said)
        paths = [argument for argument in call if not argument.startswith("-")]
        assert any(said.startswith(f"{path}: ") for path in paths), (call, said)
