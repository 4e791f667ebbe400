"""``--device A,B``: one process per device, and the same stage, whatever becomes of the processes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from worker_runs import IMAGES, call, command, go_on, make_run, poison, records, same, start

from pixelsem.attacks.base import Outcome
from pixelsem.attacks.settings import DESettings, EvaluatorOptions, GoalOptions, RegionOptions
from pixelsem.cli.app import app
from pixelsem.engine.attacking import AttackRun, Tally
from pixelsem.engine.groups import TRIES, Group, group_items
from pixelsem.engine.processes import ProcessEngine
from pixelsem.engine.searching import AttackJob, CleanImage, Scored, Searched, Task, light
from pixelsem.errors import PixelsemError
from pixelsem.fitness.evaluator import pick_devices
from pixelsem.models.options import load
from pixelsem.models.settings import ModelOptions
from pixelsem.sources import ImageItem, open_images
from pixelsem.stage import Stage, StageInfo


def items(count: int) -> list[ImageItem]:
    return [ImageItem(f"{number}.png", Path(f"{number}.png"), None) for number in range(count)]


def test_all_devices_are_the_cuda_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert pick_devices("all") == ["cuda:0", "cuda:1", "cuda:2"]
    assert pick_devices("cuda:2, cpu,cuda:0") == ["cuda:2", "cpu", "cuda:0"]
    with pytest.raises(PixelsemError, match="cuda:3 is not there; 3 CUDA devices found"):
        pick_devices("cuda:0,cuda:3")


@pytest.mark.parametrize("names", ["all", "cpu,", "cpu,toaster", "cpu;cpu", "all,cpu"])
def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(PixelsemError, match=r"^--device"):
        pick_devices(names)
    assert pick_devices("cpu,cpu") == ["cpu", "cpu"]


@pytest.mark.parametrize(("count", "most", "workers"), [(0, 8, 2), (1, 8, 2), (20, 64, 2), (100, 8, 3), (7, 1, 4)])
def test_groups_hold_every_image_once_in_order_and_leave_no_worker_alone(count: int, most: int, workers: int) -> None:
    done = {("3.png", "original", "", "0"), ("3.png", "background", "", "0"), ("99.png", "original", "", "0")}
    groups = list(group_items(items(count), done, 3, most, workers))
    assert [item for group in groups for item in group.items] == items(count)
    assert all(1 <= len(group.items) <= most for group in groups)
    assert len(groups) >= min(count, 2 * workers)
    for group in groups:
        assert group.searches == 3
        assert group.done == {key for key in done if key[0] in {item.id for item in group.items}}


def test_a_group_whose_workers_die_is_divided_then_given_up() -> None:
    group = Group(items(3), 2, {("1.png", "original", "", "0")})
    assert group.after_death("first") == ([group], [])
    single, lost = group.after_death("second")
    assert lost == []
    assert [each.items for each in single] == [[item] for item in items(3)]
    assert [len(each.done) for each in single] == [0, 1, 0]
    again, lost = single[1].after_death("third")
    assert again == []
    assert [(each.id, each.problem) for each in lost] == [
        ("1.png", f"1.png: {TRIES} workers died on it, the last one third")
    ]


def test_what_was_done_before_a_worker_died_is_neither_done_again_nor_given_up() -> None:
    group = Group(items(2), 1, {("0.png", "original", "", "0")})
    assert group.after_death("first")[0][0].items == items(2)[1:]
    group.done.add(("1.png", "original", "", "0"))
    assert group.after_death("second") == ([], [])
    assert group.after_death("third") == ([], [])


def test_what_is_sent_is_all_that_is_written_and_little_more() -> None:
    """An outcome's image is often part of the tensor of all candidates, which pickle would take along."""
    pixels = np.zeros((224, 224, 3), np.uint8)
    regions = {name: np.ones((224, 224), np.bool_) for name in ("original", "foreground", "background")}
    image = CleanImage("1.png", pixels, 0, "given", torch.zeros(10), regions, (), {"superpixels": np.zeros((224, 224))})
    many = torch.zeros(100, 3, 224, 224, dtype=torch.uint8)
    outcome = Outcome(0, many[7], queries=5, candidates=6, generations=2, history={"best": np.arange(3.0)})
    key = ("1.png", "foreground", "", "0")
    event = Searched(Task(image, "foreground", None, 0, key), outcome, Scored(pixels, torch.ones(10), True))
    sent = pickle.dumps(light(event))
    assert len(sent) < 2 * pixels.nbytes + regions["foreground"].nbytes + 20_000
    got = pickle.loads(sent)
    assert (got.task.key, got.outcome.queries, got.outcome.candidates, got.scored.success) == (key, 5, 6, True)
    assert np.array_equal(got.outcome.history["best"], np.arange(3.0))
    assert np.array_equal(got.task.image.regions["foreground"], regions["foreground"])


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of images; the folder above holds model.py and is entered."""
    monkeypatch.chdir(tmp_path)
    return make_run(tmp_path)


def job() -> AttackJob:
    model, settings = ModelOptions(model="model.py:make"), DESettings(population=16, generations=4)
    return AttackJob(
        "de", settings, RegionOptions(), GoalOptions(labels="predicted"), model,
        EvaluatorOptions(device="cpu", evaluator="dense", batch_size=16, in_flight=2), None, 0, load(model).digest,
    )  # fmt: skip


def attack(stage: str, photos: Path, watch: Callable[[ProcessEngine, Tally], None]) -> Tally:
    """Attack ``photos`` in two processes; ``watch`` is called after every change."""
    made = Stage.create(Path(stage), StageInfo("attack", "attack de", "0" * 64, {}, {}))
    engine = ProcessEngine(job(), ("red", "green", "blue"), ["cpu", "cpu"])
    run = AttackRun(engine.plan, engine, made, open_images(photos).items)
    tally = run.run(lambda tally: watch(engine, tally))
    assert engine.pids == [], "the workers ended with the run"
    return tally


def alone(stage: str, photos: Path) -> None:
    """Attack ``photos`` in this process."""
    searcher = job().open()
    made = Stage.create(Path(stage), StageInfo("attack", "attack de", "0" * 64, {}, {}))
    AttackRun(searcher.plan, searcher, made, open_images(photos).items).run()
    assert len(records(stage)) == IMAGES


@pytest.mark.slow
def test_two_processes_make_the_stage_of_one_and_have_few_groups_at_a_time(photos: Path) -> None:
    alone("one", photos)
    waiting: list[int] = []

    def watch(engine: ProcessEngine, tally: Tally) -> None:
        waiting.extend(len(worker.groups) for worker in engine._workers)

    tally = attack("two", photos, watch)
    assert same("two", "one")
    assert tally.searched == IMAGES
    assert tally.queries == sum(record.queries for record in records("one").values())
    assert max(waiting) == 2


@pytest.mark.slow
@pytest.mark.parametrize("when", [0, 3])
def test_a_killed_process_changes_nothing(photos: Path, when: int) -> None:
    """Whether it is killed at its first sign of life or after some results."""
    alone("one", photos)
    killed: list[int] = []

    def watch(engine: ProcessEngine, tally: Tally) -> None:
        if not killed and tally.searched >= when:
            killed.append(engine.pids[0])
            os.kill(engine.pids[0], signal.SIGKILL)

    tally = attack("two", photos, watch)
    assert killed
    assert tally.failures == {}
    assert same("two", "one")


@pytest.mark.slow
def test_an_image_that_kills_its_process_is_reported_and_the_rest_is_done(photos: Path) -> None:
    call("--device", "cpu", "-o", "one")
    poison(photos, 4)
    # The parent process scores no image, so that it outlives this one.
    said = call("--device", "cpu,cpu", "-o", "two", "--quiet", code=1, POISON="1").stderr.splitlines()
    assert f"4.png: {TRIES} workers died on it" in said[-1]
    assert said[-1].endswith("ended with exit code 9")
    assert all("a worker died" in line for line in said[:-1])
    expected = {key: record for key, record in records("one").items() if record.id != "4.png"}
    assert records("two") == expected


@pytest.mark.slow
def test_the_devices_are_no_part_of_the_run_and_where_all_is_done_no_process_is_started(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call("--device", "cpu").stdout
    monkeypatch.setattr(ProcessEngine, "_start", lambda *_: pytest.fail("a process was started"))
    again = CliRunner().invoke(app, command("--device", "cpu,cpu", "--json")[3:], prog_name="pixelsem")
    assert again.exit_code == 0, again.output
    assert f'"stage": "{first.strip()}"' in again.stdout
    assert f'"resumed": {IMAGES}' in again.stdout
    assert f"{IMAGES} searches, {IMAGES} of them done before, at most 0 queries" in again.stderr


@pytest.mark.slow
def test_that_auto_is_measured_is_said_once(photos: Path) -> None:
    said = call("--device", "cpu,cpu", "--evaluator", "auto", "--pixels", "2").stderr
    assert said.count("measuring how this model is scored fastest") == 1


@pytest.mark.slow
def test_a_quiet_run_says_nothing_whatever_its_workers_leave(photos: Path) -> None:
    assert call("--device", "cpu,cpu", "--evaluator", "incremental", "--quiet", "-o", "two").stderr == ""


@pytest.mark.slow
def test_a_model_that_no_process_can_load_is_one_line(photos: Path) -> None:
    """It is loaded in the parent process first, for its identity."""
    words = "import os, runpy, sys; os.environ['PARENT'] = str(os.getpid()); from pixelsem.cli.app import main; main()"
    arguments = command("--device", "cpu,cpu", "-o", "two", "--quiet")[3:]
    done = subprocess.run([sys.executable, "-c", words, *arguments], capture_output=True, text=True, timeout=400)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "no room here" in done.stderr


def nobody_is_left(group: int) -> bool:
    """Say whether all processes of a group end soon: one that watches over the others ends a little later."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_all_processes_and_keep_what_is_done(photos: Path, number: signal.Signals, code: int) -> None:
    call("--device", "cpu", "-o", "one")
    process = start("--device", "cpu,cpu", stage="two")
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)  # as a terminal does
    _, said = process.communicate(timeout=200)
    assert process.returncode == code, said
    assert "what is done stays done" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert nobody_is_left(process.pid)
    assert 0 < len(records("two")) < IMAGES
    assert records("two").items() <= records("one").items()
    go_on()
    call("--device", "cpu,cpu", "-o", "two")
    assert same("two", "one")
