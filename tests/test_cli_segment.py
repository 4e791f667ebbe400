"""``pixelsem segment`` as it is typed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from pixelsem.cli import segment
from pixelsem.cli.groups import RootGroup
from pixelsem.errors import InputError
from pixelsem.images import read_mask, write_image
from pixelsem.records import SegmentRecord
from pixelsem.regions import run
from pixelsem.regions.registry import METHODS, Method
from pixelsem.regions.run import segment_images
from pixelsem.settings import Settings, option
from pixelsem.sources import ImageItem, open_images
from pixelsem.stage import Stage, StageInfo, open_stage

QUICK = ["--upscale", "0", "--iterations", "1"]


@dataclass(frozen=True)
class FakeSettings(Settings):
    tiles: int = option(2, "Tiles.")
    iterations: int = option(5, "Rounds.", low=1)


def make_app() -> typer.Typer:
    app = typer.Typer(cls=RootGroup, pretty_exceptions_enable=False, rich_markup_mode=None)
    segment.register(app)
    app.command("other")(lambda: None)
    return app


def call(*arguments: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(make_app(), ["segment", *map(str, arguments)], prog_name="pixelsem")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def disc(x: int = 30, y: int = 22) -> np.ndarray[Any, np.dtype[np.bool_]]:
    rows, columns = np.mgrid[:44, :60]
    return (columns - x) ** 2 + (rows - y) ** 2 < 144


def scene(seed: int, x: int = 30) -> np.ndarray[Any, np.dtype[np.uint8]]:
    image = np.where(disc(x)[..., None], (200, 30, 40), (40, 160, 60))
    return np.clip(image + np.random.default_rng(seed).normal(0, 8, image.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of five images with the same stems in different places; the folder above is entered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIXELSEM_RUN", raising=False)
    for number, name in enumerate(("a.png", "cat/1.png", "cat/2.png", "cat/deep/1.png", "dog/1.png")):
        write_image(tmp_path / "photos" / name, scene(number, 20 + 4 * number))
    return tmp_path / "photos"


def records(stage: Path) -> dict[str, SegmentRecord]:
    return {record.id: record for record in open_stage(stage).segment_records()}


def masks(stage: Path) -> dict[str, Any]:
    return {image_id: read_mask(stage / record.mask) for image_id, record in records(stage).items()}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def test_leaves_a_stage_with_a_mask_for_every_image(photos: Path) -> None:
    result = call("--method", "grabcut", "photos", *QUICK)
    stage = Path(result.stdout.strip())
    assert stage.parent == Path("pixelsem-run")
    assert stage.name.startswith("segment-grabcut-")
    found = records(stage)
    assert sorted(found) == ["a.png", "cat/1.png", "cat/2.png", "cat/deep/1.png", "dog/1.png"]
    for number, name in enumerate(sorted(found)):
        record = found[name]
        inside = read_mask(stage / record.mask) == 255
        truth = disc(20 + 4 * number)
        assert (inside & truth).sum() / (inside | truth).sum() > 0.95
        assert record.mask == f"masks/{name}"
        assert record.image == name
        assert record.coverage == inside.mean()
        assert (record.kind, record.flags) == ("binary", [])
    info = open_stage(stage).info
    assert (info.kind, info.command, info.inputs) == ("segment", "segment images", {"images": "../../photos"})
    assert info.counts == {"done": 5, "flagged": 0, "failed": 0}
    assert set(info.versions or {}) == {"pixelsem", "python", "numpy", "opencv"}
    assert info.wall_time is not None
    assert info.options["upscale"] == 0
    assert info.options["images"] == ["../../photos"]
    assert "5 of 5 images have a mask" in result.stderr


def test_says_nothing_but_the_summary_with_json(photos: Path) -> None:
    result = call("photos", "--json", "-q", *QUICK)
    summary = json.loads(result.stdout)
    assert summary["counts"] == {"done": 5, "flagged": 0, "failed": 0}
    assert (summary["flagged"], summary["failures"]) == ({}, {})
    assert Path(summary["stage"]).is_dir()
    assert result.stderr == ""


def test_masks_do_not_depend_on_workers(photos: Path) -> None:
    call("photos", "-o", "one", "--workers", "1", *QUICK)
    call("photos", "-o", "four", "--workers", "4", *QUICK)
    assert same(masks(Path("one")), masks(Path("four")))
    assert open_stage("one").info.identity == open_stage("four").info.identity


def test_resumes_what_is_missing(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("photos", "-o", "out", *QUICK)
    before = masks(Path("out"))
    manifest = Path("out/manifest.jsonl")
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # a crash in the middle of a line
    read: list[Path] = []
    original = run.read_image
    monkeypatch.setattr(run, "read_image", lambda path: (read.append(path), original(path))[1])
    call("photos", "-o", "out", *QUICK)
    assert len(read) == 2
    assert same(before, masks(Path("out")))
    assert (open_stage("out").info.counts or {})["done"] == 5
    read.clear()
    call("photos", "-o", "out", *QUICK)
    assert read == []


def test_a_moved_folder_still_resumes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = call("photos", *QUICK).stdout
    photos.rename("moved")
    monkeypatch.setattr(run, "read_image", None)
    assert call("moved", *QUICK).stdout == first
    assert open_stage(first.strip()).info.inputs == {"images": "../../moved"}


def test_settings_and_images_make_another_stage_but_workers_do_not(photos: Path) -> None:
    first = call("photos", *QUICK).stdout
    assert call("photos", "--workers", "2", *QUICK).stdout == first
    assert call("photos", "--upscale", "0", "--iterations", "2").stdout != first
    assert call("photos", "--limit", "4", *QUICK).stdout != first
    assert len(list(Path("pixelsem-run").iterdir())) == 3


def test_another_run_there_is_refused(photos: Path) -> None:
    call("photos", "-o", "out", *QUICK)
    result = call("photos", "-o", "out", "--limit", "2", *QUICK, code=2)
    assert "holds another run" in result.stderr
    assert len(records(Path("out"))) == 5
    call("photos", "-o", "out", "--limit", "2", *QUICK, "--overwrite")
    assert sorted(records(Path("out"))) == ["a.png", "cat/1.png"]


def test_equal_stems_keep_their_own_masks(photos: Path) -> None:
    Image.fromarray(scene(9, 40)).save(photos / "cat/1.bmp")
    call("photos", "-o", "out", *QUICK)
    found = records(Path("out"))
    assert found["cat/1.bmp"].mask == "masks/cat/1.bmp.png"
    assert found["cat/1.png"].mask == "masks/cat/1.png.png"
    assert len({record.mask for record in found.values()}) == 6


def test_photo_lying_on_its_side_gets_an_upright_mask(photos: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    Image.fromarray(np.rot90(scene(0, 15))).save(photos / "side.jpg", exif=exif, quality=95, subsampling=0)
    call("photos", "-o", "out", *QUICK)
    inside = masks(Path("out"))["side.jpg"] == 255
    assert inside.shape == (44, 60)
    assert (inside & disc(15)).sum() / (inside | disc(15)).sum() > 0.9


def test_degenerate_masks_are_flagged_and_reported(photos: Path) -> None:
    for number in range(12):
        write_image(photos / f"flat/{number}.png", np.full((20, 20, 3), number, np.uint8))
    hints = np.zeros((20, 20), np.uint8)
    for number in range(12):
        write_image(Path(f"hints/flat/{number}.png"), hints)
    result = call("photos", "-o", "out", "--hints", "hints", *QUICK)
    found = records(Path("out"))
    assert found["flat/3.png"].flags == ["degenerate-foreground: 0.00 % of the image, under 2 %"]
    assert found["a.png"].flags == []
    assert result.stderr.count("degenerate-foreground") == 10
    assert "and 2 more" in result.stderr
    assert "17 of 17 images have a mask, 12 flagged" in result.stderr


def test_unreadable_images_are_named_and_the_rest_is_done(photos: Path) -> None:
    (photos / "cat/broken.png").write_bytes(b"no image")
    whole = (photos / "cat/1.png").read_bytes()
    (photos / "cat/half.png").write_bytes(whole[: len(whole) // 2])
    result = call("photos", "-o", "out", "--json", *QUICK, code=1)
    assert len(records(Path("out"))) == 5
    problems = [line for line in result.stderr.splitlines() if line.startswith("pixelsem: ")]
    assert len(problems) == 2
    assert any("cat/broken.png" in line for line in problems)
    assert any("cat/half.png" in line for line in problems)
    summary = json.loads(result.stdout)
    assert summary["counts"] == {"done": 5, "flagged": 0, "failed": 2}
    assert sorted(summary["failures"]) == ["cat/broken.png", "cat/half.png"]


@pytest.mark.parametrize("name", ["gone", "empty", "notes.txt"])
def test_no_images_is_one_line(photos: Path, name: str) -> None:
    Path("empty").mkdir()
    Path("notes.txt").write_text("hello")
    result = call(name, code=2)
    assert result.stderr.count("\n") == 1
    assert name in result.stderr
    assert not Path("pixelsem-run").exists()


def test_output_that_cannot_be_written(photos: Path) -> None:
    Path("file").write_text("mine")
    assert "exists and is not a stage" in call("photos", "-o", "file", code=2).stderr
    result = call("photos", "-o", "file/inside", code=1)
    assert result.stderr.count("\n") == 1
    assert "cannot be written" in result.stderr
    assert Path("file").read_text() == "mine"


def test_full_disk_keeps_what_is_done(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync, write, written = os.fsync, run.write_image, []

    def full(handle: int) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    def count(path: Path, pixels: Any) -> None:
        write(path, pixels)
        written.append(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        patched.setattr(run, "write_image", count)
        result = call("photos", "-o", "out", "--workers", "1", *QUICK, code=1)
    assert "No space left on device" in result.stderr
    done = records(Path("out"))
    assert 1 <= len(done) <= 2
    assert not list(Path("out").rglob("*.tmp"))
    call("photos", "-o", "out", *QUICK)
    assert len(records(Path("out"))) == 5


def test_config_with_an_unknown_key(photos: Path) -> None:
    Path("options.yaml").write_text("iterations: 1\niteratoins: 2\n")
    result = call("photos", "--config", "options.yaml", code=2)
    assert "iteratoins" in result.stderr
    Path("options.yaml").write_text("iterations: 1\nupscale: 0\nrect: [5, 5, 50, 35]\n")
    stage = Path(call("photos", "--config", "options.yaml").stdout.strip())
    assert open_stage(stage).info.options["rect"] == [5, 5, 50, 35]


def test_stage_file_repeats_the_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in photos.rglob("*.png"):
        write_image("hints" / path.relative_to(photos), np.full((44, 60), 128, np.uint8))
    call("photos", "-o", "first", "--sample", "3", "--seed", "5", "--hints", "hints", "--margin", "0.1", *QUICK)
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    call("--config", "../first/stage.yaml", "-o", "again")
    first, again = open_stage("../first").info, open_stage("again").info
    assert first.identity == again.identity
    assert again.inputs == {"images": "../../photos"}
    assert same(masks(Path("../first")), masks(Path("again")))
    plain = yaml.safe_load(Path("../first/stage.yaml").read_text())
    assert str(photos.parent) not in str(plain)


def test_takes_images_from_a_stage_and_from_the_newest(photos: Path) -> None:
    first = call("photos", "--limit", "3", *QUICK).stdout.strip()
    second = call(first, "--upscale", "0", "--iterations", "2").stdout.strip()
    assert sorted(records(Path(second))) == sorted(records(Path(first)))
    result = call("--upscale", "0", "--iterations", "3")
    assert "input: " in result.stderr
    assert open_stage(result.stdout.strip()).info.inputs == {"images": "../../photos"}


def test_one_image_file(photos: Path) -> None:
    call("photos/cat/2.png", "-o", "out", *QUICK)
    assert list(records(Path("out"))) == ["2.png"]


def test_two_inputs_are_refused(photos: Path) -> None:
    assert "one folder" in call("photos", "photos", code=2).stderr


def test_folder_from_a_pipe(photos: Path) -> None:
    command = [sys.executable, "-m", "pixelsem", "segment", *QUICK]
    environment = os.environ | {"PYTHONPATH": str(Path(segment.__file__).parents[2])}
    for arguments in ([], ["-"]):
        done = subprocess.run(command + arguments, input="photos\n", capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert len(records(Path(done.stdout.strip()))) == 5
    none = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=photos, env=environment
    )
    assert none.returncode == 2
    assert "no input: name a folder" in none.stderr


def segment_stage(path: Path) -> Stage:
    info = StageInfo(kind="segment", command="test", identity="0" * 64, options={}, inputs={"images": "../photos"})
    return Stage.create(path, info)


class Everything:
    kind: Literal["binary"] = "binary"
    identity: ClassVar[dict[str, object]] = {}
    batch = 1
    whole = False

    def __call__(self, images: Any, ids: Any) -> Any:
        if "cat/2.png" in ids:
            raise InputError("cat/2.png: is odd")
        return [np.full(image.shape[:2], 255, np.uint8) for image in images]


def test_from_python(photos: Path) -> None:
    source = open_images(photos)
    seen: list[int] = []
    summary = segment_images(
        source.items, Everything(), segment_stage(Path("out")), source.root,
        workers=2, progress=lambda summary: seen.append(summary.done + len(summary.failed)),
    )  # fmt: skip
    assert summary.counts == {"done": 4, "flagged": 4, "failed": 1}
    assert summary.failed == {"cat/2.png": "cat/2.png: is odd"}
    assert seen[-1] == 5
    assert seen == sorted(seen)


def test_one_image_of_a_batch_that_fails_does_not_fail_the_others(photos: Path) -> None:
    class Together(Everything):
        batch = 3
        whole = True  # nothing is flagged then

    source = open_images(photos)
    summary = segment_images(source.items, Together(), segment_stage(Path("out")), source.root, workers=2)
    assert summary.counts == {"done": 4, "flagged": 0, "failed": 1}
    assert summary.failed == {"cat/2.png": "cat/2.png: is odd"}
    assert set(masks(Path("out"))) == {"a.png", "cat/1.png", "cat/deep/1.png", "dog/1.png"}


def test_images_wait_for_their_turn(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def many() -> Iterator[list[ImageItem]]:
        for number in range(40):
            drawn.append(number)
            yield [ImageItem("a.png", photos / "a.png", None)]

    finished = 0
    with ThreadPoolExecutor(2) as pool:
        for ready in run._completed(pool, lambda items: [], many(), 4):  # type: ignore[arg-type]
            finished += len(ready)
            assert len(drawn) <= finished + 4
    assert finished == 40


def test_an_error_of_the_program_is_not_hidden(photos: Path) -> None:
    class Broken(Everything):
        def __call__(self, images: Any, ids: Any) -> Any:
            if "cat/1.png" in ids:
                raise ZeroDivisionError
            return super().__call__(images, ids)

    source = open_images(photos)
    with pytest.raises(ZeroDivisionError):
        segment_images(source.items, Broken(), segment_stage(Path("out")), source.root, workers=1)


def test_an_option_of_another_method_is_an_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "fake", Method(FakeSettings, "grabcut:GrabCut", ("numpy",)))
    assert "--tiles is no option of --method grabcut" in call("photos", "--tiles", "3", code=2).stderr
    assert "--margin is no option of --method fake" in call(
        "photos", "--method", "fake", "--margin", "0.1", code=2
    ).stderr  # fmt: skip
    shown = call("images", "--help").stdout
    assert "--tiles" in shown
    assert ": )" not in shown  # a method's default that is nothing
