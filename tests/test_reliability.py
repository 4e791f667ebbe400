"""Commands that are killed, stopped or out of disk: what they leave is whole, and the same command goes on from it.

The jobs and the comparisons are those of ``benchmarks/reliability.py``.
"""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from attack_stages import info, write_stage
from conftest import ROOT, Finished
from report_runs import search, write_pictures

from pixelsem.images import write_image
from pixelsem.records import SegmentRecord
from pixelsem.report.tables import to_markdown
from pixelsem.stage import MANIFEST_FILE, Stage, StageInfo

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc, and mounts disks")


@pytest.fixture(scope="module")
def harness() -> Iterator[Callable[[str], ModuleType]]:
    """Import a module of the benchmarks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module


@pytest.fixture
def jobs(harness: Callable[[str], ModuleType]) -> ModuleType:
    return harness("jobs")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A finished result: a stage of two masks."""
    stage = Stage.create(tmp_path / "whole" / "stage", StageInfo("segment", "segment images", "abc", {}, {}))
    for number in range(2):
        write_image(stage.path / f"masks/{number}.png", np.full((4, 4), 50 * number, np.uint8))
        stage.append(SegmentRecord(f"{number}.png", f"{number}.png", f"masks/{number}.png", "soft", 0.5, []))
    stage.save(counts={"done": 2, "resumed": 0}, wall_time=3.0)
    return tmp_path / "whole"


@pytest.fixture
def other(whole: Path) -> Path:
    """A copy of it, in which records came in another order and at another time."""
    copy = whole.parent / "other"
    shutil.copytree(whole, copy)
    manifest = copy / "stage" / MANIFEST_FILE
    manifest.write_bytes(b"".join(reversed(manifest.read_bytes().splitlines(keepends=True))))
    Stage.open(copy / "stage").save(counts={"done": 2, "resumed": 1}, wall_time=7.0)
    return copy


def spoil_pixels(stage: Path) -> None:
    write_image(stage / "masks" / "1.png", np.full((4, 4), 51, np.uint8))


def spoil_record(stage: Path) -> None:
    manifest = stage / MANIFEST_FILE
    manifest.write_bytes(manifest.read_bytes().replace(b'"coverage":0.5', b'"coverage":0.25', 1))


def spoil_counts(stage: Path) -> None:
    Stage.open(stage).save(counts={"done": 1, "resumed": 0})


def lose_record(stage: Path) -> None:
    manifest = stage / MANIFEST_FILE
    manifest.write_bytes(manifest.read_bytes().splitlines(keepends=True)[0])


def cut_file(stage: Path) -> None:
    mask = stage / "masks" / "0.png"
    mask.write_bytes(mask.read_bytes()[:20])


def leave_more(stage: Path) -> None:
    (stage / "masks" / "2.png").touch()


def leave_lock(stage: Path) -> None:
    (stage / "stage.lock").touch()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_pixels, ["stage/masks/1.png: differs"]),
        (spoil_record, ["stage/manifest.jsonl: differs"]),
        (spoil_counts, ["stage/stage.yaml: differs"]),
        (lose_record, ["stage/manifest.jsonl: differs"]),
        (cut_file, ["stage/masks/0.png: differs"]),
        (leave_more, ["stage/masks/2.png: not expected"]),
        (leave_lock, ["stage/stage.lock: not expected"]),
        (lambda stage: (stage / "masks" / "1.png").unlink(), ["stage/masks/1.png: missing"]),
    ],
)
def test_only_times_and_order_may_differ(
    jobs: ModuleType, whole: Path, other: Path, spoil: Callable[[Path], None], said: list[str]
) -> None:
    assert jobs.differences(whole, other) == []
    spoil(other / "stage")
    assert jobs.differences(whole, other) == said


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lose_record, []),
        (lambda stage: (stage / "masks" / "1.png").unlink(), []),
        (lambda stage: (stage / "masks" / ".0123456789abcdef.tmp").touch(), []),
        (leave_lock, []),
        (spoil_counts, []),
        (spoil_pixels, ["stage/masks/1.png: differs"]),
        (cut_file, ["stage/masks/0.png: differs"]),
        (spoil_record, ["stage/manifest.jsonl: holds other records"]),
        (leave_more, ["stage/masks/2.png: not expected"]),
    ],
)
def test_what_is_left_of_an_interrupted_run_may_lack_something_but_holds_nothing_wrong(
    jobs: ModuleType, whole: Path, other: Path, spoil: Callable[[Path], None], said: list[str]
) -> None:
    spoil(other / "stage")
    assert jobs.damage(whole, other) == said


def test_networks_are_compared_bit_by_bit_and_not_by_their_times(jobs: ModuleType, tmp_path: Path) -> None:
    import torch

    def save(folder: str, weight: float, seconds: float) -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        state = {"network": {"w": torch.tensor([weight])}, "log": [{"epoch": 1, "seconds": seconds}]}
        torch.save(state, tmp_path / folder / "checkpoint.pt")
        (tmp_path / folder / "net.md").write_text(f"| lr | {weight} |\n\n## Epochs\n\n| 1 | 2.5 | {seconds} |\n")
        return tmp_path / folder

    one = save("one", 0.5, 3.0)
    assert jobs.differences(one, save("two", 0.5, 9.0)) == []
    nearby = float(np.nextafter(np.float32(0.5), np.float32(1)))
    assert jobs.differences(one, save("two", nearby, 3.0)) == ["checkpoint.pt: differs", "net.md: differs"]


@pytest.mark.parametrize(
    ("losses", "accepted", "same"),
    [
        ([20.0, 0.5, np.nan], 2, True),
        ([np.nextafter(np.float32(20), np.float32(21)), 0.5, np.nan], 2, True),
        ([20.0 + 1e-4, 0.5 - 4e-6, np.nan], 2, True),
        ([20.0 + 1e-3, 0.5, np.nan], 2, False),
        ([20.0, 0.5 + 1e-5, np.nan], 2, False),
        ([20.0, np.nan, np.nan], 2, False),
        ([20.0, 0.5], 2, False),
        ([20.0, 0.5, np.nan], 3, False),
    ],
)
def test_histories_are_the_same_up_to_the_rounding_of_sums(
    jobs: ModuleType, tmp_path: Path, losses: list[float], accepted: int, same: bool
) -> None:
    for folder, values, count in (("one", [20.0, 0.5, np.nan], 2), ("two", losses, accepted)):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "0.npz", loss=np.array(values, np.float32), accepted=np.array([count]))
    assert jobs.differences(tmp_path / "one", tmp_path / "two") == ([] if same else ["0.npz: differs"])


@pytest.fixture
def lab(harness: Callable[[str], ModuleType], tmp_path: Path) -> Iterator[Any]:
    """A laboratory with few images."""
    with harness("reliability").laboratory(tmp_path, 7, images=30, photos=20, train=160, test=40) as made:
        yield made


def prepare(harness: Callable[[str], ModuleType], lab: Any, *names: str) -> list[Any]:
    """Do the jobs of these names once; return them."""
    jobs: list[Any] = lab.prepare(harness("jobs").make_jobs(images=6), names)
    return jobs


@pytest.mark.slow
@linux
@pytest.mark.parametrize("names", [("segment", "defend"), ("train",), ("attack-de", "attack-pgd", "tables", "report")])
def test_killed_and_resumed_is_as_undisturbed(
    harness: Callable[[str], ModuleType], lab: Any, names: tuple[str, ...]
) -> None:
    for job in prepare(harness, lab, *names):
        row = harness("reliability").stop_at_random(lab, job, signal.SIGKILL, 2)
        assert (row["said"], row["same"]) == ([], 2)


@pytest.mark.slow
@linux
def test_a_signal_ends_a_command_as_documented(harness: Callable[[str], ModuleType], lab: Any) -> None:
    for job in prepare(harness, lab, "segment", "attack-pgd", "train"):
        for number in (signal.SIGINT, signal.SIGTERM):
            assert harness("reliability").stop_at_random(lab, job, number, 1)["said"] == []


@pytest.mark.slow
@linux
def test_a_full_and_a_closed_disk(harness: Callable[[str], ModuleType], lab: Any) -> None:
    disks, reliability = harness("disks"), harness("reliability")
    if not disks.can_mount():
        pytest.skip("may not mount a disk")
    for job in prepare(harness, lab, "segment", "attack-pgd", "train"):
        for share in reliability.SHARES:
            with disks.small_disk(lab.place(f"{job.name}-{share}")) as disk:
                assert reliability.fill(lab, job, disk, share) == []
        with disks.small_disk(lab.place(f"{job.name}-closed")) as disk:
            assert reliability.close(lab, job, disk) == []


@pytest.mark.slow
@linux
def test_memory_does_not_grow_with_the_images(harness: Callable[[str], ModuleType], tmp_path: Path) -> None:
    reliability = harness("reliability")
    lab = reliability.Lab(tmp_path, Random(0))
    reliability.make_images(lab.inputs / "many", 1000, 32, 4)
    words = reliability.MEMORY["segment --method grabcut"]
    few, many = (
        reliability.peak_memory([reliability.filled(word, images) for word in words], images, lab)
        for images in (100, 1000)
    )
    assert many < 1.1 * few
    assert len(list(Stage.open(lab.inputs / "memory/1000/segment"))) == 1000


@pytest.mark.slow
@linux
@pytest.mark.parametrize("command", ["evaluate success", "evaluate report"])
def test_memory_of_what_reads_records_hardly_grows(
    command: str, harness: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    reliability = harness("reliability")
    lab, peaks = reliability.Lab(tmp_path, Random(0)), []
    for count in (100, 3000):
        found = [search(n, "original", hit=n % 3 == 0, side=32) for n in range(1, count + 1)]
        about = info("original", counts={"searches": count})
        stage = write_stage(lab.inputs / f"memory/{count}/small", about, *found)
        for n, one in enumerate(found, 1):
            write_pictures(stage, one, n)
        words = [reliability.filled(word, count) for word in reliability.MEMORY[command]]
        peaks.append(reliability.peak_memory(words, count, lab))
    assert peaks[1] < 1.1 * peaks[0]


def test_kills_are_shared_out_among_the_jobs_of_a_command(harness: Callable[[str], ModuleType]) -> None:
    reliability, jobs = harness("reliability"), harness("jobs")
    shares = [(job.group, times) for job, times in reliability.share_out(jobs.make_jobs(), 10)]
    totals = {group: sum(times for other, times in shares if other == group) for group, _ in shares}
    assert totals == dict.fromkeys(("segment", "attack", "evaluate", "defend", "train"), 10)
    assert [times for group, times in shares if group == "attack"] == [4, 3, 3]


def test_wrong_options_are_one_clear_line(python: Callable[..., Finished]) -> None:
    done = python(ROOT / "benchmarks" / "reliability.py", "--parts", "kills,fire")
    assert done.returncode == 2
    assert "no part 'fire'; there are kills, signals, disks, memory" in done.stderr.splitlines()[-1]


def test_committed_results_are_those_of_the_page(harness: Callable[[str], ModuleType]) -> None:
    reliability = harness("reliability")
    rows = json.loads((ROOT / "benchmarks" / "results" / "reliability-2-cores.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for table in (reliability.make_table(rows), reliability.make_memory_table(rows)):
        assert to_markdown(table).strip() in page
