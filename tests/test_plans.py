"""``pixelsem run``: plans are checked whole, stand for plain commands, and one branch's failure is its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from shard_stages import by_key, call, make_images, problem

from pixelsem.engine.plans import MAX_STEPS, Plan, Step
from pixelsem.engine.running import Ended, PlanRun
from pixelsem.stage import Stage

PLAN = """
images: my photos
run: results
options: {device: cpu, seed: 3}
segment:
  grabcut: {rect: [1, 2, 3, 4]}
  gradcam: {}
models:
  allconv: {}
  other: {model: nin, weights: nin.safetensors}
regions: [original, foreground]
attacks:
  few:
    attack: de
    matrix: {pixels: [1, 3]}
    targeted: true
    early_stop: false
    segment: grabcut
  pgd: {models: allconv, regions: "label:2", segment: gradcam}
then:
  tables: {command: evaluate, confidence: 0.9}
  noise: {command: attack split, of: pgd, keep: background}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


def script(path: Path, *more: str) -> list[list[str]]:
    """Return the commands of a plan's script, each as its words."""
    text = call("run", path, "--dry-run", *more).stdout
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -e\n" in text
    return [shlex.split(found) for found in re.findall(r"^stage_\d+=\$\((.*)\)$", text, re.MULTILINE)]


def test_a_plan_stands_for_plain_commands(tmp_path: Path) -> None:
    commands = script(write(tmp_path, PLAN))
    segmented, attacked = commands[:3], commands[3:-2]
    assert segmented[0][:2] == ["pixelsem", "segment"]
    assert "--rect" in segmented[0]
    assert segmented[0][segmented[0].index("--rect") + 1] == "1,2,3,4"
    assert segmented[0][-1] == "my photos"
    assert ["--device" in words for words in segmented] == [False, True, True]  # a method's own options only
    # Grad-CAM looks at a model, GrabCut at none.
    assert ["--model" in words or "-m" in words for words in segmented] == [False, True, True]
    assert "nin.safetensors" in segmented[2]
    # 2 numbers of pixels × 2 models × 2 regions, and one attack of one model on one region.
    assert len(attacked) == 9
    few = [words for words in attacked if words[1:3] == ["attack", "de"]]
    assert all("--targeted" in words and "--no-early-stop" in words for words in few)
    assert {(words[words.index("--pixels") + 1], words[words.index("--region") + 1]) for words in few} == {
        (pixels, region) for pixels in "13" for region in ("original", "foreground")
    }
    assert all(words[-1] == ("my photos" if "original" in words else "$stage_1") for words in few)
    assert attacked[-1][-1] == "$stage_2"  # the CAM of the same model
    assert commands[-2] == ["pixelsem", "evaluate", "--run", "results", "--confidence", "0.9",
                            *(f"$stage_{number}" for number in range(4, 13))]  # fmt: skip
    assert commands[-1][-1] == "$stage_12"
    for words in commands[:-2]:
        assert words[words.index("--seed") + 1] == "3"
    assert all("--seed" in words for words in script(write(tmp_path, PLAN), "--run", "else")[:-2])


def test_the_program_knows_the_commands_of_a_plan_as_they_are_here(tmp_path: Path, python: Any) -> None:
    """A process reads only the command that it was called with."""
    path = write(tmp_path, PLAN.replace("pixels: [1, 3]", "crossover: [1/2, 1/3]"))
    done = python("-m", "pixelsem", "run", path, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == call("run", path, "--dry-run").stdout
    assert "--crossover 1/3" in done.stdout


SMALL = "images: p\nattacks: {de: {}}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "the plan is a mapping of images, "),
        ("images: p", "needs `images` (a folder) and `attacks`"),
        (SMALL + "attack: {}", "attack: unknown key; the plan has images, "),
        (SMALL + "attacks: {}", "'attacks' is given twice"),
        ("images: 3\nattacks: {de: {}}", "images: text expected, 3 given"),
        ("images: p\nattacks: {dee: {}}", "attacks.dee: 'attack dee' is no command"),
        ("images: p\nattacks: {de: {pixel: 1}}", "attacks.de: unknown key 'pixel'; `attack de` has "),
        ("images: p\nattacks: {de: {pixels: 0}}", "attacks.de: Invalid value for '--pixels'"),
        ("images: p\nattacks: {de: {pixels: true}}", "attacks.de: pixels: a value that is not true or false"),
        ("images: p\nattacks: {de: {targeted: 1}}", "attacks.de: targeted: true or false expected, 1 given"),
        ("images: p\nattacks: {de: {output: x}}", "attacks.de: unknown key 'output'"),
        ("images: p\nattacks: {de: {crossover: 3/2}}", "attacks.de: Invalid value for '--crossover': 1.5 is not"),
        (SMALL + "then: {x: {command: defend jpeg, sweep: q=9/8}}", "then.x: unknown key 'sweep'; `defend jpeg` has"),
        ("images: p\nattacks: {de: {matrix: {pixels: 3}}}", "attacks.de.matrix.pixels: a list of values expected"),
        ("images: p\nattacks: {de: {models: vgg}}", "attacks.de.models: 'vgg' is none of allconv"),
        ("images: p\nattacks: {de: {regions: foreground}}", "attacks.de.regions: foreground needs masks"),
        (SMALL + "segment: {x: {method: y}}", "segment.x.method: 'y' is none of grabcut, "),
        (SMALL + "segment: {slic: {iterations: 3, rect: [1, 2, 3, 4]}}", "segment.slic: unknown key 'rect'"),
        (SMALL + "options: {nothing: 1}", "options.nothing: is an option of none of the plan's commands"),
        (SMALL + "then: {x: {command: rm -rf}}", "then.x.command: 'rm -rf' is no attack, defend, evaluate or stage"),
        (SMALL + "then: {x: {command: evaluate, of: y}}", "then.x.of: 'y' is none of de"),
        (SMALL + "then: {x: {command: evaluate, of: x}}", "then.x.of: 'x' is none of de"),
        (SMALL + "then: {'a b': {command: evaluate}}", "then.a b: a name is made of"),
        (SMALL + "then: {x: *y}", "aliases (*name) are not taken"),
        (
            "images: p\nattacks: {de: {matrix: {pixels: [1, 2, 3], seed: ["
            + ", ".join(map(str, range(MAX_STEPS))) + "]}}}",
            f"attacks.de.matrix: 3,000 combinations; at most {MAX_STEPS}",
        ),
        (
            "images: p\nregions: [original]\nmodels: [a, b, c]\nattacks: {de: {matrix: {seed: ["
            + ", ".join(map(str, range(400))) + "]}}}",
            f"attacks.de: makes more than {MAX_STEPS} commands",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_plan_is_one_line_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    line = problem("run", path, "--dry-run")
    assert str(path) in line
    assert said in line


#: In place of pixelsem: makes a folder named after its words, fails where it is told to, notes when it ran.
FAKE = """
import sys, time
from pathlib import Path
words = sys.argv[1:]
name = words[0]
start = time.monotonic()
time.sleep(float(words[1]))
if "-wait" in name: time.sleep(600)
if "-meets" in name:
    Path(name + ".here").touch()
    while len(list(Path().glob("*-meets.here"))) < 2 and time.monotonic() < start + 120: time.sleep(0.01)
print("about", name, file=sys.stderr)
if name.startswith("broken"): sys.exit(2)
Path(name).mkdir(exist_ok=True)
(Path(name) / "words").write_text(" ".join(words[2:]))
(Path(name) / "times").write_text(f"{start} {time.monotonic()}")
print("chatter")
print(name)
sys.exit(1 if name.startswith("partly") else 0)
"""


def fake(folder: Path, *steps: tuple[str, float, tuple[str, ...]], jobs: int = 1) -> PlanRun:
    made = tuple(Step(name, (name, str(seconds)), after) for name, seconds, after in steps)
    return PlanRun(Plan(folder / "plan.yaml", "run", made), [sys.executable, "-c", FAKE], jobs)


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failure_leaves_out_what_depends_on_it_and_nothing_else(tmp_path: Path, jobs: int) -> None:
    run = fake(
        tmp_path, ("good", 0, ()), ("broken", 0, ()), ("partly", 0, ("good",)), ("lost", 0, ("broken",)),
        ("lost-too", 0, ("lost",)), ("after", 0, ("partly",)), ("all", 0, ("broken", "good", "after")), jobs=jobs,
    )  # fmt: skip
    ended = {result.step.name: result for result in run.run()}
    exits = {name: result.exit for name, result in ended.items()}
    assert exits == {"good": 0, "broken": 2, "partly": 1, "lost": None, "lost-too": None, "after": 0, "all": 0}
    assert (tmp_path / "all" / "words").read_text() == "good after"
    assert (tmp_path / "after" / "words").read_text() == "partly"
    assert {name for name, result in ended.items() if result.stage} == {"good", "partly", "after", "all"}
    if jobs > 1:
        assert (tmp_path / "run" / "logs" / "broken.log").read_text() == "about broken\n"


def test_jobs_run_side_by_side_and_steps_wait_for_what_they_go_by(tmp_path: Path) -> None:
    names = ("a-meets", "b-meets")
    steps: list[tuple[str, float, tuple[str, ...]]] = [("a-meets", 0, ()), ("b-meets", 0, ()), ("c", 0, names)]
    assert [result.exit for result in fake(tmp_path, *steps, jobs=2).run()] == [0, 0, 0]
    a, b, c = ([float(t) for t in (tmp_path / name / "times").read_text().split()] for name in (*names, "c"))
    assert max(a[0], b[0]) < min(a[1], b[1])
    assert c[0] >= max(a[1], b[1])


def test_leaving_early_ends_what_is_running(tmp_path: Path) -> None:
    started = time.monotonic()
    running = fake(tmp_path, ("quick", 0, ()), ("x-wait", 0, ()), ("y", 0, ("x-wait",)), jobs=2).run()
    first: Ended = next(iter(running))
    assert first.step.name == "quick"
    running.close()
    assert time.monotonic() - started < 300
    assert not (tmp_path / "x-wait").exists()
    assert not (tmp_path / "y").exists()


TINY = """
images: photos
run: results
options: {device: cpu, batch_size: 64, evaluator: dense}
segment: {slic: {}}
attacks:
  few: {attack: de, regions: [original], matrix: {pixels: [1, 2]}, population: 12, generations: 2}
then:
  tables: {command: evaluate}
"""


@pytest.mark.slow
def test_a_plan_runs_goes_on_and_does_what_its_script_does(tmp_path: Path) -> None:
    make_images(tmp_path)
    path = write(tmp_path, TINY)
    done = json.loads(call("run", path, "--jobs", "2", "--json", "-q").stdout)
    assert [(step["name"], step["exit"]) for step in done["steps"]] == [
        ("segment-slic", 0), ("attack-few-pixels1-allconv-original", 0),
        ("attack-few-pixels2-allconv-original", 0), ("tables", 0),
    ]  # fmt: skip
    stages = [tmp_path / step["stage"] for step in done["steps"][1:3]]
    assert [Stage.open(stage).info.options["pixels"] for stage in stages] == [1, 2]
    before = [(stage / "manifest.jsonl").read_bytes() for stage in stages]
    assert len(before[0].splitlines()) == 9
    text = call("run", path, "--dry-run").stdout
    subprocess.run(["sh"], input=text, text=True, check=True, env=with_pixelsem(tmp_path), timeout=500)
    assert [(stage / "manifest.jsonl").read_bytes() for stage in stages] == before


def with_pixelsem(folder: Path) -> dict[str, str]:
    """Return an environment in which ``pixelsem`` is this checkout's."""
    shim = folder / "bin" / "pixelsem"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pixelsem "$@"\n')
    shim.chmod(0o755)
    return {**os.environ, "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.slow
def test_the_shell_script_of_the_docs_divides_joins_and_evaluates(tmp_path: Path) -> None:
    make_images(tmp_path)
    env = with_pixelsem(tmp_path) | {"IMAGES": "photos", "N": "2", "RUN": "results"}
    words = [ROOT / "docs" / "batch" / "shards.sh", "--population", "12", "--generations", "2", "--batch-size", "64"]
    for _ in range(2):  # again: everything is there
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=550)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / done.stdout.strip()).is_dir()
        assert len(by_key(tmp_path / "results" / "attack-joined")) == 27


def test_the_slurm_script_takes_the_shard_of_its_task(tmp_path: Path) -> None:
    (tmp_path / "pixelsem").write_text('#!/bin/sh\necho "$*"\n')
    (tmp_path / "pixelsem").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "MASKS": "a stage", "SLURM_ARRAY_TASK_ID": "3"}
    words = ["bash", ROOT / "docs" / "batch" / "slurm-array.sh", "--pixels", "3"]
    said = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    assert said == ("attack de --run pixelsem-run --region all --device auto --shard 3/16 --pixels 3 a stage\n")
    outside = {name: value for name, value in env.items() if name != "SLURM_ARRAY_TASK_ID"}
    assert subprocess.run(words, env=outside, capture_output=True).returncode != 0


def test_the_plan_of_the_docs_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "batch.md").read_text(encoding="utf-8"), re.DOTALL)
    # 3 numbers of pixels and PGD, of 2 models; DE in 3 regions; 2 splits, masks and tables.
    assert len(script(write(tmp_path, text))) == 1 + 3 * 2 * 3 + 2 + 1 + 2


@pytest.mark.slow
def test_a_terminated_plan_ends_its_commands(tmp_path: Path) -> None:
    make_images(tmp_path)
    path = write(tmp_path, TINY.replace("generations: 2", "generations: 100000, early_stop: false"))
    process = subprocess.Popen([sys.executable, "-m", "pixelsem", "run", path], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob("results/attack-*/stage.lock")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the attack did not start"
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 143, said
    assert "terminated" in said
    assert list(tmp_path.glob("results/attack-*/stage.lock")) == []
