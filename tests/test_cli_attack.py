"""``pixelsem attack de`` as it is typed, with a model of the user's own."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from pixelsem.attacks.registry import ATTACKS
from pixelsem.cli import attack as command
from pixelsem.cli import attack_run
from pixelsem.cli.app import app
from pixelsem.engine import attacking
from pixelsem.errors import PixelsemError
from pixelsem.images import write_image
from pixelsem.records import AttackRecord, SegmentRecord
from pixelsem.stage import Stage, StageInfo, open_stage

SIDE = 24

#: What a user might write: which colour is the brightest? Exact arithmetic, so that nothing depends on batches.
MODEL = """
import os
import time

import torch
from torch import nn

from pixelsem.models import Classifier, Preprocessing


class Brightest(nn.Module):
    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        time.sleep(float(os.environ.get("SLOW", "0")))
        return x.amax((2, 3)) * self.sharpness


def make():
    names = ("red", "green", "blue")
    return Classifier(Brightest(), name="brightest", class_names=names, preprocessing=Preprocessing((24, 24), 24))


def number():
    return 42
"""

QUICK = ["-m", "model.py:make", "--population", "16", "--generations", "4"]


def disc() -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.asarray((columns - 12) ** 2 + (rows - 11) ** 2 < 49)


def scene(seed: int, level: int = 252) -> NDArray[np.uint8]:
    """Return a red disc on green; its brightest value is the red of one pixel in the disc."""
    noise = np.random.default_rng(seed).normal(0, 8, (SIDE, SIDE, 3))
    pixels = np.clip(np.where(disc()[..., None], (190, 40, 60), (50, 150, 40)) + noise, 0, 230).astype(np.uint8)
    pixels[11, 12, 0] = level
    return pixels


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of six images, one of them in the wrong class; the folder above holds model.py and is entered."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    for number in range(5):
        write_image(tmp_path / f"photos/red/{number}.png", scene(number))
        write_image(tmp_path / f"masks/red/{number}.png", disc())
    write_image(tmp_path / "photos/blue/0.png", scene(5))
    write_image(tmp_path / "masks/blue/0.png", disc())
    return tmp_path / "photos"


def call(*arguments: str | Path, code: int = 0, options: list[str] = QUICK) -> Any:
    result = CliRunner().invoke(app, ["attack", "de", *options, *map(str, arguments)], prog_name="pixelsem")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def refused(*arguments: str | Path, options: list[str] = QUICK) -> str:
    """Return the one line that a command ends with that cannot even start; nothing was written."""
    before = sorted(Path().rglob("*"))
    stderr: str = call(*arguments, code=2, options=options).stderr
    lines = [line for line in stderr.splitlines() if not line.startswith("Try ")]
    assert len(lines) == 1, stderr
    assert sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts) == before
    return lines[0]


def records(stage: str | Path) -> dict[tuple[str, ...], AttackRecord]:
    return {record.key: record for record in open_stage(stage).attack_records()}


def files(stage: str | Path) -> dict[str, bytes]:
    found = (path for path in Path(stage).rglob("*") if path.suffix in (".png", ".npz"))
    return {path.relative_to(stage).as_posix(): path.read_bytes() for path in found}


def brightest(path: Path) -> str:
    with Image.open(path) as image:
        top = np.asarray(image).reshape(-1, 3).max(0)
    return ("red", "green", "blue")[int(top.argmax())]


def write_segment_stage(path: Path, flags: dict[str, list[str]] | None = None) -> Path:
    """Write the stage that ``pixelsem segment photos`` would leave, with the discs as masks."""
    info = StageInfo("segment", "segment images", "abc", {}, {"images": os.path.relpath("photos", path)})
    stage = Stage.create(path, info)
    shutil.copytree("masks", path / "masks")
    for file in sorted(Path("masks").rglob("*.png")):
        name = file.relative_to("masks").as_posix()
        stage.append(SegmentRecord(name, name, f"masks/{name}", "binary", 0.25, (flags or {}).get(name, [])))
    return path


# What it leaves


def test_leaves_a_stage_that_says_what_happened(photos: Path) -> None:
    result = call("photos", "--region", "background", "--masks", "masks")
    stage = Path(result.stdout.strip())
    assert result.stdout == f"{stage}\n"
    assert re.fullmatch(r"pixelsem-run/attack-de-background-[0-9a-f]{6}", stage.as_posix())
    found = records(stage)
    assert len(found) == 6
    assert {record.outcome for record in found.values()} == {"attacked", "misclassified"}
    successes = [record for record in found.values() if record.success]
    assert 0 < len(successes) < 5
    for record in successes:
        assert brightest(stage / str(record.adversarial)) != "red"
        assert [bool(disc()[pixel.y, pixel.x]) for pixel in record.pixels] == [False]
    info = open_stage(stage).info
    assert info.identity.startswith(stage.name[-6:])
    assert (info.kind, info.command, info.seed) == ("attack", "attack de", 0)
    assert info.inputs == {"images": "../../photos", "masks": "../../masks"}
    assert info.model is not None
    assert len(info.model["digest"]) == 64
    assert info.options["population"] == 16
    assert info.options["constraint"] == "encode"
    assert info.options["images"] == ["../../photos"]
    assert {"pixelsem", "python", "numpy", "torch"} <= set(info.versions or {})
    assert info.counts == {
        "images": 6, "searches": 6, "searched": 5, "successes": len(successes), "resumed": 0, "failed": 0,
        "misclassified": 1,
    }  # fmt: skip
    assert (info.wall_time or 0) > 0
    assert "6 images, 6 searches, at most 384 queries: " in result.stderr
    assert f"{len(successes)} of 5 searches succeeded" in result.stderr
    assert "1 searches skipped: the model is wrong on the clean image" in result.stderr
    # Doing it again finds it done, and does not forget what was there.
    again = call("photos", "--region", "background", "--masks", "masks")
    assert again.stdout == result.stdout
    assert "6 searches were done before" in again.stderr
    assert records(stage) == found
    assert open_stage(stage).info.counts == {**info.counts, "resumed": 6}


def test_json_and_quiet(photos: Path) -> None:
    result = call("photos", "--json", "--quiet")
    assert result.stderr == ""
    summary = json.loads(result.stdout)
    assert summary["counts"]["searches"] == 6
    assert summary["failures"] == {}
    assert len(records(summary["stage"])) == 6
    assert call("photos", "-q").stderr == ""
    assert json.loads(call("photos", "--json").stdout)["counts"]["resumed"] == 6


def test_identity_is_what_can_change_results(photos: Path) -> None:
    first = call("photos").stdout
    for same in (
        ["--batch-size", "3"], ["--in-flight", "2"], ["--device", "cpu"], ["--time-limit", "1000"], ["--quiet"],
        ["--constraint", "encode"], ["--mutation", "0.5,1"], ["--labels", "auto"], ["--config", "empty.yaml"],
    ):  # fmt: skip
        Path("empty.yaml").write_text("")
        assert call("photos", *same).stdout == first, same
    shutil.copytree("photos", "elsewhere/photos")
    assert call("elsewhere/photos").stdout == first
    seen = {first}
    for other in (
        ["--seed", "1"], ["--pixels", "3"], ["--precision", "bf16"], ["--limit", "4"], ["--constraint", "revert"],
        ["--region", "all", "--masks", "masks"], ["--target", "blue"], ["--repeats", "2"], ["--scale", "0.9"],
        ["--labels", "predicted"], ["--region", "foreground", "--masks", "masks"], ["--no-early-stop"],
        ["--region", "foreground", "--masks", "masks", "--grow", "1"], ["--resize", "squash"],
    ):  # fmt: skip
        stdout = call("photos", *other).stdout
        assert stdout not in seen, other
        seen.add(stdout)
    write_image(Path("masks/red/0.png"), np.random.default_rng(0).random((SIDE, SIDE)) > 0.5)
    assert call("photos", "--region", "foreground", "--masks", "masks").stdout not in seen
    Path("model.py").write_text(MODEL.replace("tensor(20.0)", "tensor(21.0)"))
    assert call("photos").stdout not in seen


def test_batches_change_nothing(photos: Path) -> None:
    call("photos", "-o", "one", "--batch-size", "1", "--in-flight", "1")
    call("photos", "-o", "many")
    assert records("one") == records("many")
    assert files("one") == files("many")


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("colours", [True, False])
def test_colours_unless_they_are_unwanted(photos: Path, colours: bool) -> None:
    environment = os.environ | {"TERM": "xterm-256color", "NO_COLOR": "1"}
    if colours:
        del environment["NO_COLOR"]
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "pixelsem", "attack", "de", "gone"]
    done = subprocess.run(command, stderr=theirs, stdout=subprocess.PIPE, env=environment, timeout=120)
    os.close(theirs)
    said = os.read(ours, 10000).decode()
    os.close(ours)
    assert (done.returncode, done.stdout) == (2, b"")
    assert "pixelsem: gone: no such file or folder" in said
    assert ("\x1b[33m" in said) == colours


# Inputs


def test_the_newest_segmentation_is_the_input(photos: Path) -> None:
    write_segment_stage(Path("pixelsem-run/segment-grabcut-111111"))
    result = call("--region", "foreground")
    assert "segment-grabcut-111111" in result.stderr
    stage = Path(result.stdout.strip())
    assert {record.mask for record in records(stage).values()} == {
        *(f"masks/foreground/red/{number}.png" for number in range(5)),
        "masks/foreground/blue/0.png",
    }
    assert open_stage(stage).info.inputs == {"images": "../../photos", "masks": "../segment-grabcut-111111"}
    # Named or not, and with the images named, it is the same run.
    for arguments in (
        ["pixelsem-run/segment-grabcut-111111"],
        ["photos"],
        ["photos", "--masks", "pixelsem-run/segment-grabcut-111111"],
    ):
        assert call("--region", "foreground", *arguments).stdout == result.stdout
    # A newer one, in another run folder.
    write_segment_stage(Path("other/segment-grabcut-222222"), {"red/1.png": ["degenerate-foreground: odd"]})
    result = call("--region", "foreground", "--run", "other")
    assert result.stdout.startswith("other/attack-de-foreground-")
    assert "1 searches skipped: the mask is flagged" in result.stderr
    assert records(result.stdout.strip())["red/1.png", "foreground", "", "0"].outcome == "flagged-mask"


def test_segmentations_of_other_images_are_no_masks_for_these(photos: Path) -> None:
    write_segment_stage(Path("pixelsem-run/segment-grabcut-111111"))
    shutil.copytree("photos", "others")
    assert "--region foreground needs masks" in refused("others", "--region", "foreground")


def test_a_stage_can_be_attacked_again(photos: Path) -> None:
    first = call("photos", "-o", "first").stdout.strip()
    again = call(first, "-o", "again").stdout.strip()
    assert {key: (r.pixels, r.label) for key, r in records(again).items()} == {
        key: (r.pixels, r.label) for key, r in records(first).items()
    }


def test_pipe_from_photos_to_the_table(photos: Path) -> None:
    pixelsem = f"{sys.executable} -m pixelsem"
    line = (
        f"{pixelsem} segment --method grabcut photos --upscale 0 --iterations 1"
        f" | {pixelsem} attack de --region all {' '.join(QUICK)} | {pixelsem} evaluate --json"
    )
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (stage,) = Path("pixelsem-run").glob("attack-de-all-*")
    found = records(stage)
    assert len(found) == 18
    mask = stage / str(found["red/1.png", "foreground", "", "0"].mask)
    with Image.open(mask) as image:
        inside = np.asarray(image) > 0
    assert (inside & disc()).sum() / (inside | disc()).sum() > 0.9
    rates = json.dumps(json.loads(done.stdout))
    for region in ("original", "foreground", "background"):
        assert region in rates
    assert "\x1b" not in done.stderr


def test_two_inputs_are_refused(photos: Path) -> None:
    assert "2 inputs given; an attack takes one" in refused("photos", "masks")


@pytest.mark.parametrize("name", ["gone", "empty", "notes.txt"])
def test_no_images(photos: Path, name: str) -> None:
    Path("empty").mkdir()
    Path("notes.txt").write_text("hello")
    assert name in refused(name)


def test_no_input_at_all(photos: Path) -> None:
    line = refused()
    assert "no input: name a folder; pixelsem-run holds no stage of kind segment" in line


def test_some_images_cannot_be_used(photos: Path) -> None:
    write_image(photos / "red/other.png", scene(7))
    write_image(photos / "red/wide.png", scene(8))
    write_image(Path("masks/red/wide.png"), np.zeros((SIDE, SIDE + 2), np.uint8))
    (photos / "red/broken.png").write_text("no image")
    shutil.copy("masks/red/0.png", "masks/red/broken.png")
    result = call("photos", "--region", "foreground", "--masks", "masks", "--json", code=1)
    summary = json.loads(result.stdout)
    assert sorted(summary["failures"]) == ["red/broken.png", "red/other.png", "red/wide.png"]
    assert summary["counts"]["failed"] == 3
    assert len(records(summary["stage"])) == 6
    problems = [line for line in result.stderr.splitlines() if line.startswith("pixelsem: ")]
    assert len(problems) == 3
    for text in ("red/broken.png: not an image", "red/other.png: has no mask in masks", "is 26×24, its image 24×24"):
        assert sum(text in line for line in problems) == 1


# Options


def test_preset_is_its_options_by_hand(photos: Path) -> None:
    by_hand = ["--strategy", "rand1bin", "--mutation", "0.5,1", "--crossover", "0.7", "--init", "lhs",
               "--constraint", "revert", "--stop", "hit"]  # fmt: skip
    masks = ["--region", "foreground", "--masks", "masks"]
    call("photos", "-o", "preset", "--preset", "wang2021", *masks)
    call("photos", "-o", "hand", *by_hand, *masks)
    call("photos", "-o", "neither", *masks)
    assert records("preset") == records("hand") != records("neither")
    assert open_stage("preset").info.identity == open_stage("hand").info.identity
    options = open_stage("preset").info.options
    assert (options["preset"], options["constraint"], options["mutation"]) == ("wang2021", "revert", [0.5, 1.0])
    # Without the quick options the paper's own are there; what is typed wins over it, wherever it stands.
    settings = ["--limit", "1", "--target", "blue", "--labels", "predicted"]
    for order in (["--population", "8", "--preset", "su2017"], ["--preset", "su2017", "--population", "8"]):
        stage = call("photos", *order, *settings, options=QUICK[:2]).stdout.strip()
        options = open_stage(stage).info.options
        assert (options["population"], options["generations"], options["init"]) == (8, 100, "su")


def test_file_beats_preset_and_line_beats_file(photos: Path) -> None:
    Path("mine.yaml").write_text("preset: su2017\ncrossover: 0.3\npopulation: 10\nmutation: [0.4, 0.6]\n")
    model = QUICK[:2]
    stage = call("photos", "--config", "mine.yaml", "--population", "12", "--generations", "2", options=model)
    options = open_stage(stage.stdout.strip()).info.options
    assert (options["population"], options["crossover"], options["mutation"]) == (12, 0.3, [0.4, 0.6])
    assert (options["init"], options["preset"], options["generations"]) == ("su", "su2017", 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "su2019"], "--preset: 'su2019' is none of wang2021, su2017"),
        (["--region", "foreground"], "--region foreground needs masks: give --masks DIR, or run `pixelsem segment`"),
        (["--region", "all"], "--region all needs masks"),
        (["--region", "sky"], "--region: 'sky' is none of original, foreground, background, all, label:N"),
        (["--region", "foreground", "--masks", "gone"], "gone: no such mask folder or stage"),
        (["--region", "foreground", "--masks", "empty"], "empty: holds no"),
        (["--match-area"], "--match-area goes with --region foreground, background or all"),
        (["--target", "mauve"], "--target: 'mauve' is none of the model's 3 classes (red, green, blue)"),
        (["--target", "3"], "--target: '3' is none of the model's 3 classes"),
        (["--labels", "gone.csv"], "--labels: gone.csv cannot be read"),
        (["--labels", "mauve.csv"], "mauve.csv, line 2: 'mauve' is none of the model's 3 classes"),
        (["--mutation", "1,0.5"], "--mutation: 1.0 is above 0.5"),
        (["--mutation", "0.5"], "--mutation"),
        (["--population", "5"], "--population"),
        (["--pixels", "0"], "--pixels"),
        (["--strategy", "rand9bin"], "--strategy"),
        (["--device", "abacus"], "--device: 'abacus' is none of"),
        (["-m", "alconv"], "alconv: no such model; did you mean allconv?"),
        (["-m", "gone.py:make"], "gone.py: no such file"),
        (["-m", "model.py:nothing"], "model.py: has no function 'nothing'"),
        (["-m", "model.py:number"], "model.py:number: returned int"),
        (["-m", "notes.pt"], "notes.pt: not a checkpoint"),
        (["-m", "photos/red/0.png"], "photos/red/0.png: not a model file"),
        (["--config", "unknown.yaml"], "unknown.yaml: unknown key 'populatoin'"),
        (["--config", "gone.yaml"], "gone.yaml"),
        (["--generation", "3"], "No such option"),
    ],
)
def test_what_cannot_be_done_is_one_line(photos: Path, arguments: list[str], message: str) -> None:
    Path("empty").mkdir()
    Path("mauve.csv").write_text("red/0.png,red\nred/1.png,mauve\n")
    Path("notes.pt").write_text("hello")
    Path("unknown.yaml").write_text("population: 10\npopulatoin: 10\n")
    assert message in refused("photos", *arguments)


def test_labels_from_a_table(photos: Path) -> None:
    Path("labels.csv").write_text("id,class\n" + "".join(f"red/{n}.png,red\n" for n in range(5)) + "blue/0.png,0\n")
    stage = Path(call("photos", "--labels", "labels.csv").stdout.strip())
    assert {(r.label, r.label_source, r.outcome) for r in records(stage).values()} == {("red", "given", "attacked")}
    Path("elsewhere").mkdir()
    Path("labels.csv").rename("elsewhere/same.csv")
    assert call("photos", "--labels", "elsewhere/same.csv").stdout.strip() == str(stage)
    with Path("elsewhere/same.csv").open("a") as table:
        table.write("red/9.png,blue\n")
    assert call("photos", "--labels", "elsewhere/same.csv").stdout.strip() != str(stage)


def test_targets(photos: Path) -> None:
    stage = Path(call("photos", "--targeted", "--generations", "12").stdout.strip())
    found = records(stage)
    assert len(found) == 12
    assert {record.target for record in found.values() if record.id == "red/0.png"} == {"green", "blue"}
    successes = [record for record in found.values() if record.success]
    assert successes
    for record in successes:
        assert brightest(stage / str(record.adversarial)) == record.target


@pytest.mark.parametrize(
    "options",
    [
        ["--region", "background", "--masks", "masks", "--seed", "5", "--sample", "3", "--pixels", "2"],
        ["--preset", "wang2021", "--labels", "labels.csv", "--repeats", "2"],
        ["--targeted", "--mutation", "0.3,0.9", "--strategy", "currenttobest1exp", "--mean", "0,0,0"],
    ],
)
def test_stage_file_repeats_the_run(photos: Path, options: list[str]) -> None:
    Path("labels.csv").write_text("".join(f"{p.relative_to(photos).as_posix()},red\n" for p in photos.rglob("*.png")))
    call("photos", "-o", "runs/first", *options)
    call("--config", "runs/first/stage.yaml", "-o", "again", options=[])
    first, again = open_stage("runs/first").info, open_stage("again").info
    assert first.identity == again.identity
    assert first.options.keys() == again.options.keys()
    assert records("again") == records("runs/first")
    assert files("again") == files("runs/first")


def test_stage_file_works_from_another_folder(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("photos", "-o", "first", "--region", "foreground", "--masks", "masks")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    call("--config", "../first/stage.yaml", "-m", "../model.py:make", "-o", "again", options=[])
    assert open_stage("again").info.identity == open_stage("../first").info.identity
    assert records("again") == records("../first")


# What can break on the way


@pytest.fixture
def reference(photos: Path) -> Path:
    """Return the stage of a run of 18 searches that nothing disturbed."""
    call("photos", "-o", "reference", *ALL)
    return Path("reference")


ALL = ["--region", "all", "--masks", "masks", "--in-flight", "4"]


def test_another_run_there_is_refused(photos: Path) -> None:
    call("photos", "-o", "out")
    before = records("out")
    assert "out: holds another run" in refused("photos", "-o", "out", "--seed", "1")
    assert records("out") == before
    call("photos", "-o", "out", "--seed", "1", "--overwrite")
    assert records("out").keys() == before.keys()
    assert records("out") != before


def test_output_that_cannot_be_written(photos: Path) -> None:
    Path("file").write_text("mine")
    assert "file: exists and is not a stage" in refused("photos", "-o", "file")
    result = call("photos", "-o", "file/inside", code=1)
    assert result.stderr.count("\n") == 1
    assert "file/inside: cannot be written" in result.stderr
    assert Path("file").read_text() == "mine"
    # A file where a folder of the stage should be.
    call("photos", "-o", "out", "--limit", "1")
    shutil.rmtree("out/clean")
    Path("out/clean").write_text("mine")
    Path("out/manifest.jsonl").write_text("")
    result = call("photos", "-o", "out", "--limit", "1", code=1)
    assert "out/clean" in result.stderr
    assert "cannot be written" in result.stderr


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is read-only for root")
def test_folder_that_is_read_only(photos: Path) -> None:
    Path("closed").mkdir(mode=0o500)
    result = call("photos", "-o", "closed/out", code=1)
    assert "closed/out: cannot be written: Permission denied" in result.stderr


def test_full_disk_keeps_what_is_done(photos: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        result = call("photos", "-o", "out", *ALL, code=1)
    assert "No space left on device; what is done stays" in result.stderr.splitlines()[-1]
    done = records("out")
    assert 0 < len(done) < 18
    assert done.items() <= records(reference).items()
    assert not list(Path("out").rglob("*.tmp"))
    result = call("photos", "-o", "out", *ALL)
    assert f"{len(done)} searches were done before" in result.stderr
    assert records("out") == records(reference)
    assert files("out") == files(reference)


def test_a_damaged_line_is_named_and_an_unfinished_one_done_again(photos: Path, reference: Path) -> None:
    manifest = reference / "manifest.jsonl"
    whole = records(reference)
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:4]) + lines[4][:40] + b"\n" + b"".join(lines[5:]))
    damaged = manifest.read_bytes()
    result = call("photos", "-o", "reference", *ALL, code=2)
    assert f"{manifest}, line 5: " in result.stderr
    assert result.stderr.count("pixelsem: ") == 1
    assert manifest.read_bytes() == damaged
    manifest.write_bytes(b"".join(lines[:4]) + lines[4][:40])
    assert "4 searches were done before" in call("photos", "-o", "reference", *ALL).stderr
    assert records(reference) == whole
    assert manifest.read_bytes().splitlines(keepends=True)[:4] == lines[:4]


def test_time_limit(photos: Path, reference: Path) -> None:
    result = call("photos", "-o", "out", *ALL, "--time-limit", "0", code=1)
    assert "pixelsem: the time limit ended the run; the same command goes on from there" in result.stderr
    assert {record.outcome for record in records("out").values()} <= {"misclassified"}
    result = call("photos", "-o", "out", *ALL)
    assert "time limit" not in result.stderr
    assert records("out") == records(reference)


def test_interrupted_is_130_and_goes_on(photos: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = attacking.write_image, []

    def press(path: Path, pixels: Any) -> None:
        written.append(path)
        if len(written) == 8:
            raise KeyboardInterrupt
        write(path, pixels)

    with monkeypatch.context() as patched:
        patched.setattr(attacking, "write_image", press)
        result = call("photos", "-o", "out", *ALL, code=130)
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("pixelsem: interrupted; what is done stays done")
    assert 0 < len(records("out")) < 18
    call("photos", "-o", "out", *ALL)
    assert records("out") == records(reference)
    assert files("out") == files(reference)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a run that takes its time, in a process of its own."""
    command = [sys.executable, "-m", "pixelsem", "attack", "de", *QUICK, *ALL, "--batch-size", "4", *arguments]
    return subprocess.Popen(
        command,
        env=os.environ | {"SLOW": "0.01"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


def lines_of(manifest: Path) -> int:
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_killed_and_resumed_is_as_never_killed(photos: Path, reference: Path) -> None:
    """Three times, further on each time; then it is left to come to its end."""
    manifest, held = Path("out/manifest.jsonl"), 0
    for more in (1, 5, 4):
        process = start("photos", "-o", "out")
        wait_for(process, lambda wanted=held + more: lines_of(manifest) >= wanted)  # type: ignore[misc]
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        done = records("out")
        assert held < len(done) < 18
        assert done.items() <= records(reference).items()
        held = len(done)
    process = start("photos", "-o", "out")
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert stdout == "out\n"
    assert f"{held} searches were done before" in stderr
    assert records("out") == records(reference)
    assert lines_of(manifest) == 18
    assert {name: data for name, data in files("out").items() if "/." not in name} == files(reference)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_leaves_what_is_done(photos: Path, reference: Path) -> None:
    process = start("photos", "-o", "out")
    wait_for(process, lambda: lines_of(Path("out/manifest.jsonl")) >= 3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.splitlines()[-1].startswith("pixelsem: interrupted; what is done stays done")
    assert "Traceback" not in stderr
    done = records("out")
    assert 3 <= len(done) < 18
    assert not list(Path("out").rglob("*.tmp"))
    call("photos", "-o", "out", *ALL)
    assert records("out") == records(reference)
    assert files("out") == files(reference)


def test_options_of_a_stage_hold_no_path_of_this_machine(photos: Path) -> None:
    stage = Path(call("photos", "--region", "foreground", "--masks", "masks").stdout.strip())
    assert str(photos.parent) not in str(yaml.safe_load((stage / "stage.yaml").read_text()))
    assert str(photos.parent) not in (stage / "manifest.jsonl").read_text()


def test_an_image_of_the_target_class_is_counted_as_skipped(photos: Path) -> None:
    result = call("photos", "-o", "out", "--target", "red")
    assert "the image is of the target's class already" in result.stderr


def test_dash_without_any_line_is_an_error(photos: Path) -> None:
    result = call("-", code=2)
    assert result.stderr == "pixelsem: -: nothing came from stdin; did the command before the pipe fail?\n"


def test_explain_shows_the_plan_and_attacks_nothing(tmp_path: Path) -> None:
    result = call(
        "--explain", "--json", "--pixels", "3", "--evaluator", "incremental", "--batch-size", "64", options=[]
    )
    plan = json.loads(result.stdout)
    assert plan["way"] | {"evaluator": "incremental", "batch_size": 64} == plan["way"]
    rows = plan["nodes"]["rows"]
    convolutions = [row for row in rows if row["operation"] == "Conv2d"]
    assert len(convolutions) == 9
    assert [row["computed"] for row in convolutions[:3]] == ["windows"] * 3
    assert convolutions[0]["window"] == "3×3"
    total = rows[-1]
    # 3×3 convolutions of 3 → 96 → 96 channels on 32×32, and so on: 281 million in all.
    assert total["dense_macs"] == 281_174_016 == sum(row["dense_macs"] for row in rows[:-1])
    assert total["macs"] < total["dense_macs"] / 1.5
    assert "whole maps cost" in result.stderr
    assert not (tmp_path / "pixelsem-run").exists()


def test_explain_says_what_auto_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELSEM_CACHE", str(tmp_path / "cache"))
    first = call("--explain", "--json", options=[])
    assert "measuring how this model is scored fastest" in first.stderr
    plan = json.loads(first.stdout)
    assert plan["way"]["evaluator"] in ("dense", "incremental")
    assert plan["way"]["rate"] > 0
    again = call("--explain", options=[]).stderr
    assert again.count("of each clean image") == 1
    assert "measuring" not in again


@pytest.mark.parametrize("wanted", [["--targeted"], ["--target", "green"]])
def test_an_attack_without_a_targeted_form_says_so_before_any_work(
    photos: Path, monkeypatch: pytest.MonkeyPatch, wanted: list[str]
) -> None:
    info = dataclasses.replace(ATTACKS["de"], targeted=False)
    monkeypatch.setattr(attack_run, "load", lambda options: pytest.fail("the model was loaded"))
    app = typer.Typer()
    app.command("de")(command._command(info))
    app.command("other")(lambda: None)
    result = CliRunner().invoke(app, ["de", str(photos), *wanted])
    assert isinstance(result.exception, PixelsemError)
    assert str(result.exception) == f"{wanted[0]}: `attack de` has no targeted form; leave it out"
    assert not Path("pixelsem-run").exists()


def test_list_names_every_attack() -> None:
    listed = CliRunner().invoke(app, ["attack", "list", "--json"])
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert list(rows) == list(ATTACKS)
    assert rows["de"] | {"norm": "L0", "access": "black", "targeted": True, "budget": "1 pixel"} == rows["de"]
    assert rows["pgd"]["access"] == "white"
    head, *lines = CliRunner().invoke(app, ["attack", "list"]).stdout.splitlines()
    assert head == "name\tnorm\tbudget\taccess\tpaper\tsummary"
    assert [dict(zip(head.split("\t"), line.split("\t"), strict=True))["name"] for line in lines] == list(ATTACKS)


def test_list_is_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelsem.cli.attack.data_stream", lambda: SimpleNamespace(isatty=lambda: True))
    shown = CliRunner().invoke(app, ["attack", "list"])
    assert shown.stdout == ""
    assert all(f"\n {name} " in shown.stderr or f"\n{name} " in shown.stderr for name in ATTACKS)
