"""The contract between commands: a stage is whole, resumable, and never reaches out of its folder."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelsem.errors import OutputError, StageError
from pixelsem.records import AttackRecord, EpochRecord, PixelChange, Prediction, PredictionAfter, SegmentRecord
from pixelsem.stage import MANIFEST_FILE, STAGE_FILE, Stage, StageInfo, digest, open_stage, png_names

each_example = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def info(kind: str = "segment", identity: str = "abcdef123456", **changes: Any) -> StageInfo:
    return StageInfo(kind, "segment images", identity, {"method": "grabcut"}, {"images": "../imgs"}, **changes)


def segment(name: str = "a.png", **changes: Any) -> SegmentRecord:
    return SegmentRecord(
        **{
            "id": name, "image": name, "mask": f"masks/{name}", "kind": "binary", "coverage": 0.25, "flags": [],
            **changes,
        }
    )  # fmt: skip


def attack(**changes: Any) -> AttackRecord:
    before = Prediction("cat", 0.9, [("cat", 0.9), ("dog", 0.1)])
    after = PredictionAfter("dog", 0.6, [("dog", 0.6), ("cat", 0.4)], [("cat", 0.4, 2), ("dog", 0.6, 1)])
    values = {
        "id": "cat/1.png", "outcome": "attacked", "region": "background", "label": "cat", "label_source": "given",
        "target": None, "repeat": 0, "seed": 7, "clean": "clean/cat/1.png", "mask": "masks/background/cat/1.png",
        "adversarial": "images/background/cat/1.png", "history": "history/background/cat/1.npz", "height": 32,
        "width": 32, "region_pixels": 500, "success": True, "queries": 800, "candidates": 900, "generations": 2,
        "before": before, "after": after, "pixels": [],
    }  # fmt: skip
    return AttackRecord(**{**values, **changes})


# Opening and creating


def test_a_new_stage_can_be_opened_and_says_what_was_asked(tmp_path: Path) -> None:
    given_info = info(model={"name": "allconv"}, seed=3, versions={"numpy": "2"}, counts={"images": 2}, wall_time=1.5)
    Stage.create(tmp_path / "run" / "stage", given_info)
    opened = open_stage(str(tmp_path / "run" / "stage"))
    assert opened.info == given_info
    assert list(opened) == []
    assert opened.keys() == set()
    assert sorted(os.listdir(opened.path)) == [MANIFEST_FILE, STAGE_FILE]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "s", info())
    records = [segment(f"{number}.png") for number in (3, 1, 2)]
    stage.append(records[0])
    stage.append(*records[1:])
    stage.append()
    assert list(open_stage(tmp_path / "s")) == records
    assert open_stage(tmp_path / "s").keys() == {("3.png",), ("1.png",), ("2.png",)}


def test_every_kind_of_record_comes_back(tmp_path: Path) -> None:
    searches = [attack(), attack(region="original", mask=None, adversarial=None, success=False), attack(target="dog")]
    stage = Stage.create(tmp_path / "attack", info("attack"))
    stage.append(*searches)
    assert list(stage.attack_records()) == searches
    ran = [("background", ""), ("original", ""), ("background", "dog")]
    assert stage.keys() == {("cat/1.png", region, target, "0") for region, target in ran}
    epochs = [EpochRecord(1, 2.5, 0.1, 0.2, 60.0), EpochRecord(2, 1.5, 0.3, 0.4, 61.0)]
    stage = Stage.create(tmp_path / "train", info("train"))
    stage.append(*epochs)
    assert list(stage.epoch_records()) == epochs


def test_records_of_another_kind_are_refused(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "s", info())
    assert list(stage.segment_records()) == []
    for read in (stage.attack_records, stage.epoch_records):
        with pytest.raises(StageError, match=r"is a stage of 'segment images'; one of kind '(attack|train)' is needed"):
            list(read())


def test_the_manifest_says_class_and_from_as_the_design_does(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "s", info("attack"))
    change = msgspec.convert({"x": 1, "y": 2, "from": [0, 0, 0], "to": [1, 2, 3]}, PixelChange)
    stage.append(attack(pixels=[change]))
    plain = json.loads(stage.manifest.read_text())
    assert plain["before"]["class"] == "cat"
    assert plain["pixels"] == [{"x": 1, "y": 2, "from": [0, 0, 0], "to": [1, 2, 3]}]


def test_the_same_run_is_resumed_and_keeps_its_records(tmp_path: Path) -> None:
    Stage.create(tmp_path / "s", info()).append(segment())
    again = Stage.create(tmp_path / "s", info())
    assert again.keys() == {("a.png",)}
    again.append(segment("b.png"))
    assert open_stage(tmp_path / "s").keys() == {("a.png",), ("b.png",)}


def test_another_run_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    Stage.create(tmp_path / "s", info()).append(segment())
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    with pytest.raises(StageError) as caught:
        Stage.create(tmp_path / "s", info(identity="123456abcdef"))
    assert str(caught.value) == (
        f"{tmp_path / 's'}: holds another run (segment images, abcdef); "
        "choose another folder with -o, or --overwrite to start anew"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before


def test_overwriting_starts_anew(tmp_path: Path) -> None:
    Stage.create(tmp_path / "s", info()).append(segment())
    (tmp_path / "s" / "masks" / "deep").mkdir(parents=True)
    (tmp_path / "s" / "masks" / "deep" / "a.png").touch()
    for identity in ("123456abcdef", "123456abcdef"):
        stage = Stage.create(tmp_path / "s", info(identity=identity), overwrite=True)
        assert list(stage) == []
        assert sorted(os.listdir(stage.path)) == [MANIFEST_FILE, STAGE_FILE]
    assert open_stage(tmp_path / "s").info.identity == "123456abcdef"


def test_overwriting_does_not_follow_links_out_of_the_stage(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    Stage.create(tmp_path / "s", info())
    (tmp_path / "s" / "link").symlink_to(tmp_path / "mine", target_is_directory=True)
    Stage.create(tmp_path / "s", info(), overwrite=True)
    assert (tmp_path / "mine" / "file").exists()


def test_a_folder_that_somebody_put_a_stage_file_in_is_not_emptied(tmp_path: Path) -> None:
    Stage.create(tmp_path / "s", info())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "mine" / STAGE_FILE).write_bytes((tmp_path / "s" / STAGE_FILE).read_bytes())
    with pytest.raises(StageError, match="not a stage, so not overwritten"):
        Stage.create(tmp_path / "mine", info(), overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_refused_and_stays(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StageError, match="exists and is not a stage; choose another folder with -o"):
        Stage.create(tmp_path, info(), overwrite=overwrite)
    with pytest.raises(StageError, match="exists and is not a stage"):
        Stage.create(tmp_path / "thesis.tex", info(), overwrite=overwrite)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert list(Stage.create(tmp_path, info())) == []


def test_what_a_killed_start_leaves_is_taken(tmp_path: Path) -> None:
    """Before ``stage.yaml`` there is an empty manifest, and a temporary file that is to become it."""
    (tmp_path / MANIFEST_FILE).touch()
    (tmp_path / ".0123456789abcdef.tmp").write_bytes(b"kind: seg")
    assert list(Stage.create(tmp_path, info())) == []
    assert open_stage(tmp_path).info == info()


@pytest.mark.parametrize(("name", "content"), [(MANIFEST_FILE, b"{}\n"), ("notes.tmp", b""), (".hidden", b"")])
def test_what_no_start_leaves_is_not_taken(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageError, match="exists and is not a stage"):
        Stage.create(tmp_path, info())
    assert (tmp_path / name).read_bytes() == content


def test_a_full_disk_at_the_start_does_not_block_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        break_call(patch, "fsync", errno.ENOSPC, 0)
        with pytest.raises(OutputError, match="No space left on device"):
            Stage.create(tmp_path / "s", info())
    assert list(Stage.create(tmp_path / "s", info())) == []


def test_an_interrupted_overwriting_can_be_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files were removed before it was killed."""
    unlink, left = Path.unlink, [0]

    def dying(path: Path, *more: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(path, *more)

    for removed in range(3):
        Stage.create(tmp_path / "s", info(), overwrite=True).append(segment())
        (tmp_path / "s" / "file").touch()
        left[0] = removed
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", dying)
            with pytest.raises(KeyboardInterrupt):
                Stage.create(tmp_path / "s", info(identity="123456"), overwrite=True)
        assert list(Stage.create(tmp_path / "s", info(identity="123456"), overwrite=True)) == []
        assert open_stage(tmp_path / "s").info.identity == "123456"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/s: cannot be written: Not a directory; choose another folder with -o"):
        Stage.create(tmp_path / "file" / "s", info())

    def deny(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", deny)
    with pytest.raises(OutputError, match="cannot be written: Read-only file system"):
        Stage.create(tmp_path / "s", info())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "no stage (stage.yaml is missing)"),
        ("", "not a valid stage file: Expected `object`, got `null`"),
        ("- 1", "not a valid stage file: Expected `object`, got `array`"),
        ("kind: segment", "not a valid stage file: Object missing required field `command`"),
        ("kind: segment\ncommand: [", "not valid YAML"),
        ("kind: party\ncommand: x\nidentity: x\noptions: {}\ninputs: {}", "unknown kind of stage 'party'"),
        ("kind: 1\ncommand: x\nidentity: x\noptions: {}\ninputs: {}", "Expected `str`, got `int` - at `$.kind`"),
        ("kind: segment\ncommand: x\nidentity: x\noptions: {}\ninputs: [a]", "Expected `object`, got `array`"),
        ("kind: segment\ncommand: x\nidentity: x\noptions: {}\ninputs: {a: 1}", "Expected `str`, got `int`"),
    ],
)
def test_a_damaged_stage_file_is_one_line(tmp_path: Path, text: str | None, problem: str) -> None:
    if text is not None:
        (tmp_path / STAGE_FILE).write_text(text)
    with pytest.raises(StageError) as caught:
        open_stage(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_stage_file_can_be_rewritten(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "s", info())
    stage.save(counts={"images": 5}, wall_time=2.0)
    assert stage.info.counts == {"images": 5}
    assert open_stage(tmp_path / "s").info == info(counts={"images": 5}, wall_time=2.0)


# Reading the manifest


def good_line(**changes: Any) -> str:
    return json.dumps({**msgspec.to_builtins(segment()), **changes})


def test_a_cut_last_line_is_no_record_and_goes_with_the_next_append(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "s", info())
    stage.append(segment("a.png"), segment("b.png"))
    whole = stage.manifest.read_bytes()
    for size in range(len(whole) // 2 + 1, len(whole)):  # cut anywhere in the second line
        stage.manifest.write_bytes(whole[:size])
        assert [record.key for record in stage] == [("a.png",)]
        assert stage.manifest.read_bytes() == whole[:size]  # reading changes nothing
    resumed = Stage.create(tmp_path / "s", info())
    resumed.append(segment("c.png"))
    assert [record.key for record in resumed] == [("a.png",), ("c.png",)]
    assert resumed.manifest.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("length", [1, 4095, 4096, 4097, 10_000])
def test_a_long_cut_line_goes_too(tmp_path: Path, length: int) -> None:
    stage = Stage.create(tmp_path / "s", info())
    stage.manifest.write_bytes(b"x" * length)
    stage.append(segment("a.png"))
    with stage.manifest.open("ab") as file:
        file.write(b"x" * length)
    stage.append(segment("b.png"))
    assert [record.key for record in stage] == [("a.png",), ("b.png",)]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"region_pixels": 1025}, "`region_pixels` are more than the image has"),
        ({"vulnerable_pixels": 501}, "`vulnerable_pixels` are more than `region_pixels`"),
        ({"height": 0, "region_pixels": 0}, "Expected `int` >= 1 - at `$.height`"),
    ],
)
def test_a_search_that_counts_more_than_there_is_is_refused(
    tmp_path: Path, changes: dict[str, int], problem: str
) -> None:
    stage = Stage.create(tmp_path / "s", info(kind="attack"))
    whole = attack(region_pixels=1024, vulnerable_pixels=1024)
    stage.append(whole)
    with stage.manifest.open("ab") as file:
        file.write(msgspec.json.encode(msgspec.to_builtins(attack()) | changes) + b"\n")
    records = iter(stage)
    assert next(records) == whole
    with pytest.raises(StageError, match=re.escape(f"line 2: {problem}")):
        next(records)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (good_line()[:-5], "Input data was truncated"),
        ("", "Input data was truncated"),
        ("not json", "JSON is malformed"),
        ("[1]", "Expected `object`, got `array`"),
        ("\xff", "JSON is malformed"),
        (json.dumps({"id": "a.png"}), "Object missing required field `image`"),
        (good_line(coverage="much"), "Expected `float`, got `str` - at `$.coverage`"),
        (good_line(coverage=1.5), "Expected `float` <= 1.0 - at `$.coverage`"),
        (good_line(flags=None), "Expected `array`, got `null` - at `$.flags`"),
        (good_line(kind="ternary"), "Invalid enum value 'ternary' - at `$.kind`"),
        (good_line(mask=""), "Expected `str` of length >= 1 - at `$.mask`"),
        (good_line(mask="../masks/a.png"), "the path '../masks/a.png' leaves its folder; refused"),
        (good_line(mask="masks/../../a.png"), "leaves its folder; refused"),
        (good_line(image="/etc/passwd"), "the path '/etc/passwd' leaves its folder; refused"),
        (good_line(id="a\0b"), "has a backslash or NUL in it; refused"),
        (good_line(mask="..\\a.png"), "has a backslash or NUL in it; refused"),
        (good_line(id="..\\a.png"), "has a backslash or NUL in it; refused"),
        (good_line()[:-1] + ', "id": "b.png"}', "the key 'id' is given twice"),
        (good_line()[:-1] + ', "\\u0069d": "b.png"}', "the key 'id' is given twice"),
        (good_line()[:-1] + ', "later": {"x": [{"y": 1, "z": 1, "y": 1}]}}', "the key 'y' is given twice"),
    ],
)
def test_a_line_that_does_not_fit_is_named_with_its_file(tmp_path: Path, line: str, problem: str) -> None:
    stage = Stage.create(tmp_path / "s", info())
    text = "\n".join([good_line(id="first.png"), line, good_line(id="third.png"), ""])
    stage.manifest.write_bytes(text.encode("latin-1"))
    read = []
    with pytest.raises(StageError) as caught:
        for record in stage:
            read.append(record.key)
    message = str(caught.value)
    assert message.startswith(f"{stage.manifest}, line 2: ")
    assert problem in message
    assert "\n" not in message
    assert read == [("first.png",)]
    with pytest.raises(StageError):
        stage.keys()


@pytest.mark.parametrize("name", ["id", "clean", "mask", "adversarial", "history"])
def test_every_path_of_an_attack_is_checked(tmp_path: Path, name: str) -> None:
    stage = Stage.create(tmp_path / "s", info("attack"))
    plain = msgspec.to_builtins(attack())
    stage.manifest.write_text(json.dumps(plain) + "\n")
    assert len(list(stage)) == 1
    for path in ("../x.png", "/x.png", "a\\b.png", "a\0.png"):
        stage.manifest.write_text(json.dumps({**plain, name: path}) + "\n")
        with pytest.raises(StageError, match=r"manifest\.jsonl, line 1: the path .*; refused"):
            list(stage)


def test_of_two_records_with_one_key_the_first_counts(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "s", info())
    stage.append(segment(coverage=0.1), segment("b.png"), segment(coverage=0.9))
    assert [(record.id, record.coverage) for record in stage.segment_records()] == [("a.png", 0.1), ("b.png", 0.25)]


def test_a_manifest_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "s", info())
    stage.manifest.unlink()
    assert list(stage) == []
    stage.manifest.mkdir()
    with pytest.raises(StageError, match=r"manifest\.jsonl: cannot be read: Is a directory"):
        list(stage)


# Appending


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "s", info())
    for wrong in (segment(coverage=float("nan")), segment("../a.png"), segment("a\udcff.png"), attack()):
        with pytest.raises(StageError, match=r"the record of .* is not valid: ") as caught:
            stage.append(segment("good.png"), wrong)
        assert "\n" not in str(caught.value)
    assert stage.manifest.read_bytes() == b""


def break_call(monkeypatch: pytest.MonkeyPatch, name: str, code: int, after: int = 0) -> None:
    """Let ``os.NAME`` fail with ``code``; a write lets ``after`` bytes through first."""
    write, left = os.write, [after]

    def fail(handle: int, data: bytes = b"") -> int:
        if left[0] > 0:
            part = write(handle, data[: left[0]])
            left[0] -= part
            return part
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize(
    ("call", "code", "after"), [("write", errno.ENOSPC, 0), ("write", errno.ENOSPC, 150), ("fsync", errno.EIO, 0)]
)
def test_a_full_disk_adds_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, after: int
) -> None:
    stage = Stage.create(tmp_path / "s", info())
    stage.append(segment("a.png"))
    before = stage.manifest.read_bytes()
    with monkeypatch.context() as patch:
        break_call(patch, call, code, after)
        with pytest.raises(OutputError) as caught:
            stage.append(segment("b.png"), segment("c.png"))
    assert str(caught.value) == f"{stage.manifest}: cannot be written: {os.strerror(code)}; what is done stays"
    assert stage.manifest.read_bytes() == before
    stage.append(segment("b.png"))
    assert [record.key for record in stage] == [("a.png",), ("b.png",)]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage.create(tmp_path / "s", info())
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    stage.append(segment("a.png"), segment("b.png"))
    assert [record.key for record in stage] == [("a.png",), ("b.png",)]


_HIT_THE_LIMIT = """
import resource, sys
from pathlib import Path
from pixelsem.errors import OutputError
from pixelsem.records import SegmentRecord
from pixelsem.stage import Stage
stage = Stage.open(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
written = 0
try:
    while True:
        stage.append(SegmentRecord(f"{written}.png", "a.png", "m.png", "binary", 0.5, []))
        written += 1
except OutputError as error:
    print(written, error)
"""


def test_a_limit_of_the_system_leaves_whole_lines(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "s", info())
    done = subprocess.run([sys.executable, "-c", _HIT_THE_LIMIT, stage.path], capture_output=True, text=True)
    written, _, message = done.stdout.partition(" ")
    assert message == f"{stage.manifest}: cannot be written: File too large; what is done stays\n", done.stderr
    assert int(written) >= 5
    assert len(list(stage)) == int(written)
    assert stage.manifest.read_bytes().endswith(b"\n")


_APPEND_MANY = """
import sys
from pathlib import Path
from pixelsem.records import SegmentRecord
from pixelsem.stage import Stage
stage = Stage.open(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(60):
    name = f"{sys.argv[2]}-{number}" + "x" * 5000  # longer than one page
    stage.append(SegmentRecord(name, "a.png", "m.png", "binary", 0.5, []))
"""


def test_two_processes_append_side_by_side(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "s", info())
    command = [sys.executable, "-c", _APPEND_MANY, str(stage.path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, name], **pipes) for name in ("one", "two")]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[1] for process in processes] == [None, None]
    assert [process.returncode for process in processes] == [0, 0]
    names = [record.key[0].rstrip("x") for record in stage]
    assert sorted(names) == sorted(f"{name}-{number}" for name in ("one", "two") for number in range(60))


def test_an_append_waits_for_another_that_is_under_way(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    stage = Stage.create(tmp_path / "s", info())
    with stage.manifest.open("ab", buffering=0) as other, ThreadPoolExecutor(1) as pool:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"half a li")
        appended = pool.submit(stage.append, segment("b.png"))
        with pytest.raises(TimeoutError):
            appended.result(timeout=0.3)
        other.truncate(0)
        other.write(msgspec.json.encode(segment("a.png")) + b"\n")
        fcntl.flock(other, fcntl.LOCK_UN)
        appended.result(timeout=60)
    assert [record.key for record in stage] == [("a.png",), ("b.png",)]


_WORK_UNTIL_KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from pixelsem.images import write_image
from pixelsem.records import SegmentRecord
from pixelsem.stage import Stage, StageInfo
stage = Stage.create(Path(sys.argv[1]), StageInfo("segment", "segment", "x", {}, {}))
done = stage.keys()
for number in range(6):
    name = f"{number}.png"
    if (name,) in done:
        continue
    write_image(stage.path / "masks" / name, np.full((4, 4), number, np.uint8))
    if number == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    stage.append(SegmentRecord(name, name, f"masks/{name}", "binary", 0.5, []))
"""


def test_a_kill_between_file_and_record_leaves_a_stage_to_resume(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for kill_at, done in ((2, ["0", "1"]), (4, ["0", "1", "2", "3"]), (-1, list("012345"))):
        finished = subprocess.run([sys.executable, "-c", _WORK_UNTIL_KILLED, path, str(kill_at)], check=False)
        assert finished.returncode == (0 if kill_at < 0 else -9)
        assert [record.id for record in open_stage(path).segment_records()] == [f"{name}.png" for name in done]
    assert sorted(os.listdir(path / "masks")) == [f"{number}.png" for number in range(6)]


# Paths


def test_paths_inside_are_resolved(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "run" / "s", info())
    (tmp_path / "run" / "imgs").mkdir()
    assert stage.resolve("masks/a b.png") == (tmp_path / "run" / "s" / "masks" / "a b.png").resolve()
    assert stage.resolve("cat/1.jpg", "images") == (tmp_path / "run" / "imgs" / "cat" / "1.jpg").resolve()
    with pytest.raises(StageError, match="names no input 'masks'"):
        stage.resolve("a.png", "masks")


def test_links_that_lead_out_or_in_circles_are_refused(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "s", info())
    (tmp_path / "secret").mkdir()
    (stage.path / "out").symlink_to(tmp_path / "secret", target_is_directory=True)
    (stage.path / "loop").symlink_to("loop")
    (stage.path / "in").symlink_to("masks", target_is_directory=True)
    for name in ("out/a.png", "out"):
        with pytest.raises(StageError, match=r"leaves .*; refused"):
            stage.resolve(name)
    with pytest.raises(StageError, match="cannot be resolved"):
        stage.resolve("loop/a.png")
    assert stage.resolve("in/a.png") == (stage.path / "masks" / "a.png").resolve()


segments = st.sampled_from(["..", ".", "", "a", "out", "in", "loop", "up", "a b", "-x", "ü"]) | st.text(max_size=4)


@each_example
@given(parts=st.lists(segments, max_size=6), slash=st.booleans())
def test_nothing_resolves_to_a_place_outside(tmp_path: Path, parts: list[str], slash: bool) -> None:
    stage = Stage.create(tmp_path / "s", info())
    if not (stage.path / "out").is_symlink():
        (stage.path / "a").mkdir()
        (stage.path / "out").symlink_to(tmp_path, target_is_directory=True)
        (stage.path / "up").symlink_to("../..", target_is_directory=True)
        (stage.path / "in").symlink_to("a", target_is_directory=True)
        (stage.path / "loop").symlink_to("loop")
    name = "/" * slash + "/".join(parts)
    try:
        resolved = stage.resolve(name)
    except StageError:
        return
    assert resolved.is_relative_to(stage.path.resolve())
    assert resolved == Path(os.path.realpath(stage.path / name))


# Names and digests


file_names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=6)
ids = st.builds(
    lambda folders, stem, suffix: "/".join([*folders, stem + suffix]),
    st.lists(st.sampled_from(["A", "a", "b.jpg", "c"]), max_size=2),
    st.sampled_from(["x", "X", "x.png", "x.jpg", ".x", "y"]) | file_names.filter(lambda name: name not in (".", "..")),
    st.sampled_from([".png", ".jpg", ".PNG", ".jpeg", ".tif"]),
)


@each_example
@given(st.lists(ids, unique_by=str.casefold, max_size=12))
def test_no_two_images_share_a_file(names: list[str]) -> None:
    files = png_names(names)
    assert list(files) == names
    assert len({file.casefold() for file in files.values()}) == len(names)
    for name, file in files.items():
        assert file.endswith(".png")
        assert file.rpartition("/")[0] == name.rpartition("/")[0]


def test_names_stay_short_where_they_can() -> None:
    assert png_names(["a/x.jpg", "a/y.JPEG", "b/x.png", "z.w.tif"]) == {
        "a/x.jpg": "a/x.png", "a/y.JPEG": "a/y.png", "b/x.png": "b/x.png", "z.w.tif": "z.w.png"
    }  # fmt: skip
    assert png_names(["a/x.jpg", "a/X.png", "a/y.jpg", "b/x.jpg"]) == {
        "a/x.jpg": "a/x.jpg.png", "a/X.png": "a/X.png.png", "a/y.jpg": "a/y.jpg.png", "b/x.jpg": "b/x.png"
    }  # fmt: skip
    assert png_names([]) == {}


def test_a_digest_depends_on_what_is_said_and_not_on_its_order() -> None:
    one = digest({"a": 1, "b": [1.5, None, "λ"], "c": {"x": True}})
    assert one == digest({"c": {"x": True}, "b": (1.5, None, "λ"), "a": 1})
    assert len(one) == 64
    others = [
        {"a": 2, "b": [1.5, None, "λ"], "c": {"x": True}},
        {"a": 1},
        {"a": 1, "b": [None, 1.5, "λ"], "c": {"x": True}},
    ]
    assert len({one, *map(digest, others)}) == 4


def test_the_digest_stays_the_same_over_versions() -> None:
    assert digest({"command": "attack de", "seed": 0}) == digest(json.loads('{"seed": 0, "command": "attack de"}'))
    assert digest({"command": "attack de", "seed": 0})[:6] == "998525"
