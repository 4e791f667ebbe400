"""``pixelsem stage …`` and ``--shard``: the parts of a run are the run, and damage is found."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_stages import attack, by_key, call, contents, easy_words, make_easy_images, problem

from pixelsem.engine.shards import Shard
from pixelsem.images import read_image, write_image
from pixelsem.locks import LOCK_FILE
from pixelsem.stage import MANIFEST_FILE, Stage

Change = Callable[[Path, dict[str, Any]], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images, an attack on them in ``whole``, and the same in four shards, by default names."""
    folder = tmp_path_factory.mktemp("made")
    make_easy_images(folder)
    attack(folder, "-o", folder / "whole")
    for index in range(1, 5):
        attack(folder, "--shard", f"{index}/4")
    return folder


@pytest.fixture
def parts(made: Path, tmp_path: Path) -> list[Path]:
    """Return copies of the four shards, beside a copy of the images."""
    shutil.copytree(made, tmp_path / "made")
    return shards(tmp_path / "made")


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "run").glob("attack-de-all-*-shard*of4"))


def test_every_shard_has_a_folder_of_its_own_and_the_runs_identity(made: Path) -> None:
    whole = Stage.open(made / "whole").info
    assert [path.name for path in shards(made)] == [
        f"attack-de-all-{whole.identity[:6]}-shard{index}of4" for index in range(1, 5)
    ]
    for index, path in enumerate(shards(made), 1):
        info = Stage.open(path).info
        assert (info.identity, info.options["shard"]) == (whole.identity, f"{index}/4")
        ids = {record.id for record in Stage.open(path).records()}
        assert all(Shard(index, 4).holds(image) for image in ids)


@pytest.mark.parametrize("link", [False, True])
def test_four_shards_joined_are_the_run(made: Path, tmp_path: Path, link: bool) -> None:
    out = made / "run" / f"joined-{link}"
    result = call("stage", "merge", out, *shards(made), "--json", *(["--link"] if link else []))
    assert json.loads(result.stdout)["records"] == 27
    assert by_key(out) == by_key(made / "whole")
    assert contents(out) == contents(made / "whole")
    merged, whole = Stage.open(out).info, Stage.open(made / "whole").info
    assert merged.counts == whole.counts
    assert (merged.shard, merged.planned) == (None, 27)
    one = next(path for path in out.rglob("*.png"))
    assert (one.stat().st_nlink > 1) is link
    # The run's own command finds nothing left to do.
    before = (out / MANIFEST_FILE).read_bytes()
    attack(made, "-o", out)
    assert (out / MANIFEST_FILE).read_bytes() == before


@pytest.mark.slow
def test_joined_elsewhere_the_inputs_are_still_found(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "some" / "where" / "joined"
    call("stage", "merge", out, *shards(made))
    info = Stage.open(out).info
    assert (out / info.inputs["images"]).resolve() == (made / "photos").resolve()
    assert (out / info.options["images"][0]).resolve() == (made / "photos").resolve()
    repeated = call("attack", "de", "--config", out / "stage.yaml", "-o", out, "-q", "--json")
    assert json.loads(repeated.stdout)["counts"]["resumed"] == 27


@pytest.mark.slow
def test_a_missing_shard_is_refused_or_left_for_the_runs_own_command(parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no part holds shard 2/4" in problem("stage", "merge", out, parts[0], parts[2], parts[3])
    assert not out.exists()
    call("stage", "merge", out, parts[0], parts[2], parts[3], "--partial", "-q")
    assert Stage.open(out).info.counts is None
    attack(tmp_path / "made", "-o", out)
    assert by_key(out) == by_key(tmp_path / "made" / "whole")


def test_a_shard_that_was_not_finished_is_refused(parts: list[Path], tmp_path: Path) -> None:
    stage = Stage.open(parts[1])
    stage.save(counts=None)
    assert f"{parts[1]}: was not finished" in problem("stage", "merge", tmp_path / "out", *parts)


def test_what_is_there_twice_and_alike_is_counted(parts: list[Path], tmp_path: Path) -> None:
    shutil.copytree(parts[0], tmp_path / "again")
    result = call("stage", "merge", tmp_path / "out", *parts, parts[0], tmp_path / "again", "--json")
    assert json.loads(result.stdout)["doubled"] == len(by_key(parts[0]))
    whole = Stage.open(tmp_path / "made" / "whole")
    assert by_key(tmp_path / "out") == by_key(whole.path)
    assert Stage.open(tmp_path / "out").info.counts == whole.info.counts


def test_what_came_out_differently_is_refused_naming_image_and_files(parts: list[Path], tmp_path: Path) -> None:
    shutil.copytree(parts[0], tmp_path / "again")
    image = alter(tmp_path / "again", lambda folder, record: record.update(queries=record["queries"] + 1))["id"]
    said = problem("stage", "merge", tmp_path / "out", *parts, tmp_path / "again")
    assert image in said
    assert str(parts[0] / MANIFEST_FILE) in said
    assert str(tmp_path / "again" / MANIFEST_FILE) in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_part_of_another_run_is_refused(parts: list[Path], tmp_path: Path) -> None:
    other = attack(tmp_path / "made", "--shard", "1/4", "--seed", "1")
    assert f"{other}: is of another run" in problem("stage", "merge", tmp_path / "out", *parts[1:], other)
    assert "cannot be a part and the whole" in problem("stage", "merge", parts[0], *parts)
    half = attack(tmp_path / "made", "--shard", "1/2")
    assert "shard 1/2 is of another division" in problem("stage", "merge", tmp_path / "out", *parts, half)


def test_a_lost_file_is_found_before_anything_is_written(parts: list[Path], tmp_path: Path) -> None:
    lost = next((parts[3] / "clean").rglob("*.png"))
    lost.unlink()
    assert f"{lost}: is missing" in problem("stage", "merge", tmp_path / "out", *parts)
    assert not (tmp_path / "out").exists()


def test_another_shard_does_not_go_into_the_same_folder(parts: list[Path], tmp_path: Path) -> None:
    words = easy_words(tmp_path / "made")
    assert "holds shard 1/4, not shard 2/4" in problem(*words, "--shard", "2/4", "-o", parts[0])
    assert "holds shard 1/4, not the whole run" in problem(*words, "-o", parts[0])


KILLED = """
import os, signal, sys
from pixelsem.engine import merging
place, left = merging.Merge._place, [int(sys.argv[1])]
def dying(*arguments):
    place(*arguments)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
merging.Merge._place = dying
merging._BATCH = 4
from pixelsem.cli.app import main
sys.argv = ["pixelsem", *sys.argv[2:]]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 30])
def test_a_merge_that_was_killed_goes_on(made: Path, tmp_path: Path, files: int) -> None:
    out = tmp_path / "out"
    words = ["stage", "merge", str(out), *map(str, shards(made))]
    done = subprocess.run([sys.executable, "-c", KILLED, str(files), *words], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL
    before = len(by_key(out))
    assert before < 27
    assert (out / LOCK_FILE).exists()
    result = call(*words, "--json")
    assert json.loads(result.stdout)["held"] == before
    assert "which is gone, was taken over" in result.stderr
    assert contents(out) == contents(made / "whole")


def test_a_segmentation_in_shards_is_the_segmentation(made: Path, tmp_path: Path) -> None:
    quick = ["segment", "--method", "slic", made / "photos", "--run", tmp_path, "-q"]
    whole = Path(call(*quick, "-o", tmp_path / "whole").stdout.strip())
    found = [call(*quick, "--shard", f"{index}/3").stdout.strip() for index in (1, 2, 3)]
    call("stage", "merge", tmp_path / "out", *found)
    assert contents(tmp_path / "out") == contents(whole)
    assert Stage.open(tmp_path / "out").info.counts == Stage.open(whole).info.counts
    # What is not named is not taken: the newest whole stage, not the newest part.
    assert json.loads(call("stage", "verify", "--run", tmp_path, "--json").stdout)["stages"][0]["stage"] == str(
        tmp_path / "out"
    )


def test_images_that_differ_by_suffix_keep_their_files_apart_in_shards(made: Path, tmp_path: Path) -> None:
    photo = next((made / "photos").rglob("*.png"))
    for suffix in ("png", "bmp", "gif", "webp"):  # some of which are in different parts
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copyfile(photo, tmp_path / "photos" / f"a.{suffix}")
    quick = ["segment", "--method", "slic", tmp_path / "photos", "--run", tmp_path / "run", "-q"]
    found = [call(*quick, "--shard", f"{index}/2").stdout.strip() for index in (1, 2)]
    assert all(by_key(Path(part)) for part in found)
    call("stage", "merge", tmp_path / "out", *found)
    assert len({record.mask for record in by_key(tmp_path / "out").values()}) == 4


# Damage


def alter(stage: Path, change: Change, *, success: bool | None = None) -> dict[str, Any]:
    """Apply ``change`` to the first record (of a success, or not) of a manifest; return that record."""
    lines = [json.loads(line) for line in (stage / MANIFEST_FILE).read_text().splitlines()]
    fits = (line["mask"] is not None if success is None else line["success"] == success for line in lines)
    record = lines[list(fits).index(True)]
    before = dict(record)
    change(stage, record)
    (stage / MANIFEST_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return before


def flip(field: str) -> Change:
    def change(stage: Path, record: dict[str, Any]) -> None:
        pixels = read_image(stage / record[field])
        pixels[3, 4, 1] ^= 1  # the smallest change there is
        write_image(stage / record[field], pixels)

    return change


def truncate(field: str) -> Change:
    def change(stage: Path, record: dict[str, Any]) -> None:
        path = stage / record[field]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


def swap(stage: Path, record: dict[str, Any]) -> None:
    others = (path for path in (stage / "clean").rglob("*.png") if path != stage / record["clean"])
    shutil.copyfile(next(others), stage / record["clean"])


def forget_digests(change: Change) -> Change:
    """Damage a record as older versions wrote it."""

    def both(stage: Path, record: dict[str, Any]) -> None:
        change(stage, record)
        record.pop("digests")

    return both


def claim_success(stage: Path, record: dict[str, Any]) -> None:
    shutil.copyfile(stage / record["clean"], stage / "made-up.png")
    record.update(adversarial="made-up.png", success=True, pixels=[])


def leave_the_region(stage: Path, record: dict[str, Any]) -> None:
    write_image(stage / record["mask"], np.zeros((32, 32), np.bool_))
    record["region_pixels"] = 0


DAMAGE: dict[str, tuple[Change, bool | None, str]] = {
    "deleted": (lambda stage, record: (stage / record["clean"]).unlink(), None, r"clean/.*: is missing"),
    "truncated image": (truncate("clean"), None, r"clean/.*damaged or truncated"),
    "truncated history": (truncate("history"), None, r"history/.*: damaged"),
    "swapped": (swap, None, r"clean/.*other pixels than were written"),
    "swapped, no digest": (forget_digests(swap), None, r"clean/.*(is seen as|has confidence)"),
    "flipped pixel": (flip("clean"), None, r"clean/.*other pixels than were written"),
    "flipped adversarial pixel, no digest": (forget_digests(flip("clean")), True, r"in other pixels than the record"),
    "altered confidence": (
        lambda stage, record: record["before"].update(confidence=record["before"]["confidence"] / 2), None,
        r"has confidence 0\.\d+, the record says",
    ),
    "altered success": (lambda stage, record: record.update(success=False), True, r"success is false, but there is an"),
    "made-up success": (claim_success, False, r"success is false when scored again, true noted"),
    "flipped pixel of a failure, no digest": (
        forget_digests(flip("attempt")), False, r"attempts/.*in other pixels than the record",
    ),
    "success and failure": (
        lambda stage, record: record.update(attempt=record["adversarial"]), True, r"failure, but the search succeeded",
    ),
    "altered region": (leave_the_region, None, r"masks/.*other pixels than were written"),
    "altered line": (lambda stage, record: record.update(queries=-1), None, r"manifest\.jsonl, line \d+: "),
    "escape": (lambda stage, record: record.update(clean="../../outside.png"), None, r"leaves its folder; refused"),
}  # fmt: skip


@pytest.fixture(scope="module")
def small(made: Path) -> Path:
    """Return the smallest of the shards with two images, a success and a failure: quick to verify."""
    found = {path: list(by_key(path).values()) for path in shards(made)}
    fit = [
        path for path, records in found.items()
        if len({record.id for record in records}) > 1
        and {True, False} <= {record.success for record in records if record.outcome == "attacked"}
    ]  # fmt: skip
    assert fit, "the tiny attack found too little; choose other images"
    return min(fit, key=lambda path: len(found[path]))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(small: Path, tmp_path: Path, name: str) -> None:
    change, success, expected = DAMAGE[name]
    shutil.copytree(small, tmp_path / "stage")
    alter(tmp_path / "stage", change, success=success)
    done = call("stage", "verify", tmp_path / "stage", "--json", "-q", code=1)
    assert re.search(expected, done.stderr), done.stderr
    told = json.loads(done.stdout)["stages"][0]
    assert [f"pixelsem: {line}" for line in told["problems"]] == done.stderr.splitlines()


def test_the_paths_of_damaged_stages_do_not_go_on(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "stage")
    alter(tmp_path / "stage", DAMAGE["deleted"][0])
    done = call("stage", "verify", tmp_path / "stage", small, "--no-score", "-q", code=1)
    assert done.stdout.splitlines() == [str(small)]


def test_a_link_out_of_the_stage_is_found(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "whole", tmp_path / "stage")
    inside = next((tmp_path / "stage" / "clean").rglob("*.png"))
    inside.rename(tmp_path / "outside.png")
    inside.symlink_to(tmp_path / "outside.png")
    assert "leaves" in call("stage", "verify", tmp_path / "stage", code=1).stderr


def test_sound_stages_pass_and_their_paths_go_on(made: Path) -> None:
    done = call("stage", "verify", made / "whole", *shards(made), "--no-score")
    assert done.stdout.splitlines() == [str(path) for path in (made / "whole", *shards(made))]
    told = json.loads(call("stage", "verify", made / "whole", "--json").stdout)["stages"][0]
    assert (told["records"], told["scored"], told["problems"]) == (27, True, [])


def test_another_model_is_a_problem_unless_nothing_is_scored(made: Path) -> None:
    assert "cannot be scored again" in call("stage", "verify", made / "whole", "--model", "nin", code=1).stderr
    call("stage", "verify", made / "whole", "--model", "nin", "--no-score")


# How far


def test_status_tells_finished_stopped_and_running_apart(parts: list[Path], tmp_path: Path) -> None:
    stage = Stage.open(parts[0])
    lines = stage.manifest.read_bytes().splitlines(keepends=True)
    stage.manifest.write_bytes(b"".join(lines[:-1]))
    stage.save(counts=None)
    states = json.loads(call("stage", "status", *parts, "--json").stdout)["stages"]
    assert [(state["state"], state["left"]) for state in states] == [("stopped", 1)] + [("finished", 0)] * 3
    assert sum(state["done"] for state in states) == 26
    from pixelsem.locks import StageLock

    lock = StageLock.acquire(parts[0], "attack de", len(lines) - 3)
    (state,) = json.loads(call("stage", "status", parts[0], "--json").stdout)["stages"]
    lock.release()
    assert (state["state"], state["done"], state["left"]) == ("running", len(lines) - 1, 1)
    assert f"process {os.getpid()}" in state["writer"]
    assert state["per_second"] > 0
    assert state["seconds_left"] == pytest.approx(1 / state["per_second"], rel=0.2, abs=0.2)


def test_a_second_command_on_a_stage_that_is_written_is_refused(made: Path, tmp_path: Path) -> None:
    from pixelsem.locks import StageLock

    lock = StageLock.acquire(tmp_path / "stage", "attack de")
    said = problem(*easy_words(made), "-o", tmp_path / "stage")
    lock.release()
    assert f"is being written by `pixelsem attack de`, process {os.getpid()}" in said
    assert list((tmp_path / "stage").iterdir()) == []
