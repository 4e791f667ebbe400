"""The benchmarks: they run, count what was really asked of the model, and mean what their keys say."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Finished
from torch.utils.flop_counter import FlopCounterMode

from pixelsem.images import write_image
from pixelsem.models import load_classifier

SIDE_KEYS = ("dense", "incremental")
TINY = ["--models", "allconv", "--images", "2", "--candidates", "8", "--batch-size", "8"]
TINY += ["--seconds", "0", "--repeats", "2", "--json", "-"]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        write_image(folder / f"{number}.png", noise)
    return folder


def close(value: float, expected: float) -> bool:
    return value == pytest.approx(expected, rel=1e-9)


def test_evaluator_runs_as_a_script_and_prints_only_data_on_stdout(python: Callable[..., Finished]) -> None:
    finished = python(ROOT / "benchmarks" / "evaluator.py", *TINY, "--pixels", "1,3", "--threads", "1", cwd=ROOT.parent)
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(finished.stdout)
    assert [(row["model"], row["size"], row["pixels"], row["precision"]) for row in rows] == [
        ("allconv", [32, 32], 1, "fp32"),
        ("allconv", [32, 32], 3, "fp32"),
    ]
    assert "Dense against incremental" in finished.stderr
    classifier = load_classifier("allconv")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        classifier(torch.zeros(1, 3, 32, 32))
    for row in rows:
        check_row(row)
        assert row["macs_dense"] == counter.get_total_flops() // 2
        assert row["machine"]["threads"] == 1
    assert rows[0]["macs_incremental"] < rows[1]["macs_incremental"] < rows[0]["macs_dense"]


def check_row(row: dict[str, Any]) -> None:
    """Everything that must hold of any result of evaluator.py in fp32."""
    assert close(row["ratio"], row["incremental_qps"] / row["dense_qps"])
    assert close(row["mac_ratio"], row["macs_dense"] / row["macs_incremental"])
    for side in SIDE_KEYS:
        operations = 2 * row[f"macs_{side}"] * row[f"{side}_qps"]
        assert close(row[f"{side}_utilisation"], operations / row["peak_gemm_flops"])
        assert 0 < row["spread"][f"{side}_qps"][0] <= row[f"{side}_qps"] <= row["spread"][f"{side}_qps"][1]
        assert row[f"batch_{side}"] == 8
    assert close(row["relative_diff"], row["max_abs_diff"] / row["max_abs_change"])
    assert row["max_abs_change"] > 1e-2, "the edits must move the logits, else equality says nothing"
    assert row["relative_diff"] < 1e-3
    # At least the clean image itself is kept for each of the two, at most every map of the network.
    assert 2 * 3 * 32 * 32 * 4 <= row["cache_bytes"] <= 2 * 96 * 32 * 32 * 4 * 10
    assert row["repeats"] == 2


def test_the_difference_is_told_where_scoring_is_wrong(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluator = module("evaluator")
    score = evaluator.Evaluator.score

    def wrong(self: Any, edits: Any) -> torch.Tensor:
        logits: torch.Tensor = score(self, edits)
        return logits + 0.5 * self.scorer_is_incremental

    def make(*given: Any, scorer: str, **more: Any) -> Any:
        made = evaluator_class(*given, scorer=scorer, **more)
        made.scorer_is_incremental = scorer == "incremental"
        return made

    evaluator_class = type("Wrong", (evaluator.Evaluator,), {"score": wrong})
    monkeypatch.setattr(evaluator, "Evaluator", make)
    evaluator.main([*TINY, "--pixels", "1"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["max_abs_diff"] == pytest.approx(0.5, abs=1e-3)


def test_rates_are_what_a_clock_says(module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = module("evaluator")
    now = [0.0]
    monkeypatch.setattr(evaluator.time, "perf_counter", lambda: now[0])
    done = []

    def work() -> None:
        done.append(1)
        now[0] += 0.25

    assert evaluator.per_second(work, 2.0, torch.device("cpu")) == 4.0
    assert len(done) == 1 + 8, "one to learn how long it takes, then as many as fit"
    assert evaluator.per_second(work, 0.0, torch.device("cpu")) == 4.0
    assert len(done) == 1 + 8 + 1


def test_batches_come_image_by_image_and_never_wrap(module: Callable[[str], ModuleType]) -> None:
    evaluator = module("evaluator")
    setup = evaluator.Setup(torch.device("cpu"), 3, 5, 4, False, 0.0, 1, 0)
    classifier = load_classifier("allconv")
    side = evaluator.Side("dense", classifier, "fp32", setup)
    images = evaluator.random_images(3, (32, 32), 0)
    side.attach(images, evaluator.random_edits(images, 5, 2, 0))
    seen: list[list[int]] = []
    side.evaluator.score = lambda edits: seen.append(edits.image.tolist())
    for _ in range(4):
        side.rate(0.0)
    assert seen == [[0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 2, 2], [0, 0, 0, 0]]


def test_candidates_are_random_and_the_same_each_time(module: Callable[[str], ModuleType]) -> None:
    evaluator = module("evaluator")
    images = evaluator.random_images(2, (32, 32), 7)
    one, two, other = (evaluator.random_edits(images, 500, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(one.position, two.position)
    assert torch.equal(one.colour, two.colour)
    assert not torch.equal(one.position, other.position)
    assert one.position.unique().numel() > 900  # of 1024 places, in 3000 draws
    assert one.colour.unique().numel() == 256


def test_edits_move_the_logits_of_random_weights(module: Callable[[str], ModuleType]) -> None:
    evaluator = module("evaluator")
    classifier = evaluator.load_model("nin")
    images = evaluator.random_images(4, (32, 32), 1)
    edits = evaluator.random_edits(images, 4, 1, 0)
    with torch.inference_mode():
        logits = classifier(images.float() / 255)
        change = classifier(edits.render(images).float() / 255) - logits[edits.image]
    assert (change.abs().amax(1) > 1e-3 * logits.std()).all()


@pytest.mark.parametrize(
    ("name", "library"),
    [("pixelsem-dense", None), ("pixelsem-incremental", None), ("scipy", None), ("scipy-plain", None),
     ("torchattacks", "torchattacks")],
)  # fmt: skip
def test_queries_are_counted_at_the_model_and_are_the_whole_budget(
    name: str, library: str | None, module: Callable[[str], ModuleType], images: Path, tmp_path: Path
) -> None:
    if library:
        pytest.importorskip(library)
    row = run_peers(module("peers"), name, images, tmp_path, population=10)
    assert row["candidates"] == 10 * 3 * 2
    # Colours repeat seldom; clean images count once more where their activations are computed.
    clean = 2 if name == "pixelsem-incremental" else 0
    assert row["candidates"] - 3 <= row["queries"] <= row["candidates"] + clean
    if not name.startswith("pixelsem"):
        assert row["queries"] == row["candidates"]
    assert row["checks"] > 0


@pytest.mark.slow
def test_art_searches_once_per_image_with_its_own_population(
    module: Callable[[str], ModuleType], images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("art")
    row = run_peers(module("peers"), "art", images, tmp_path, population=10)
    assert row["population"] == 400
    assert row["queries"] == row["candidates"] == 400 * 3 * 2
    assert row["checks"] == 2 * (2 + 1)  # after each generation but the first, and at the end


def run_peers(peers: ModuleType, name: str, images: Path, tmp_path: Path, population: int) -> dict[str, Any]:
    """Let one attack two images for three generations, twice; return its result."""
    target = tmp_path / "peers.json"
    peers.main(
        ["--contestants", name, "--images", str(images), "--limit", "2", "--population", str(population),
         "--generations", "3", "--repeats", "2", "--batches", "64", "--json", str(target)]
    )  # fmt: skip
    (row,) = json.loads(target.read_text(encoding="utf-8"))
    assert row["contestant"] == name
    low, high = row["spread"]["queries_per_second"]
    assert 0 < low <= row["queries_per_second"] <= high
    # Two runs of the same number of queries: the medians of both figures are means of the same two times.
    mean_seconds = row["seconds_per_image"] * row["images"]
    assert row["queries"] / high <= mean_seconds <= row["queries"] / low
    result: dict[str, Any] = row
    return result


def test_a_peer_that_is_not_installed_is_left_out(
    module: Callable[[str], ModuleType], images: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "torchattacks", None)
    peers = module("peers")
    peers.main(
        ["--contestants", "torchattacks,scipy", "--images", str(images), "--limit", "1", "--population", "10",
         "--generations", "1", "--repeats", "1", "--batches", "64", "--json", "-"]
    )  # fmt: skip
    printed = capsys.readouterr()
    assert [row["contestant"] for row in json.loads(printed.out)] == ["scipy"]
    assert "torchattacks: left out" in printed.err


def test_checks_are_told_from_queries_in_copies_too(module: Callable[[str], ModuleType]) -> None:
    import copy

    tally = module("peers").Tally()
    network = tally.watch(torch.nn.Flatten())
    copied = copy.deepcopy(network)
    network(torch.zeros(5, 3))
    copied(torch.zeros(7, 3))
    with tally.checking():
        copied(torch.zeros(2, 3))
    assert (tally.queries, tally.checks) == (12, 2)


@pytest.mark.parametrize("script", ["evaluator", "peers"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--device", "tpu"], "--device: 'tpu'"), (["--pixels", "0"], "--pixels"), (["--nonsense"], "--nonsense")],
)
def test_wrong_options_are_one_clear_line(
    script: str, arguments: list[str], message: str, module: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        module(script).main(arguments)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert not any("Traceback" in line for line in lines)


def make_results(folder: Path) -> None:
    machine = {
        "cpu": "Test CPU", "cores": 2, "abilities": ["avx2"], "ram_gib": 4.0, "gpu": None, "threads": 2, "load": 0.1,
        "torch": "2.15.0",
    }  # fmt: skip
    spread = {"ratio": [3.5, 4.5], "queries_per_second": [1000.0, 1500.0], "seconds_per_image": [1.0, 2.0]}
    scored = {
        "model": "torchvision:vgg16", "size": [224, 224], "pixels": 1, "precision": "fp32", "dense_qps": 10.0,
        "incremental_qps": 41.25, "ratio": 4.125, "mac_ratio": 5.5, "batch_dense": 16, "batch_incremental": 64,
        "dense_utilisation": 0.5, "incremental_utilisation": 0.375, "relative_diff": 2e-6, "cache_bytes": 2**20,
        "spread": spread, "repeats": 5, "machine": machine,
    }  # fmt: skip
    attacked = {
        "contestant": "scipy", "version": "1.17", "model": "allconv", "images": 2, "pixels": 1, "generations": 3,
        "precision": "fp32", "device": "cpu", "batch": 128, "candidates": 60, "queries": 60, "checks": 2, "fallen": 1,
        "queries_per_second": 1234.5, "seconds_per_image": 1.75, "spread": spread, "repeats": 3, "machine": machine,
    }  # fmt: skip
    folder.mkdir()
    (folder / "evaluator-test.json").write_text(json.dumps([scored, {**scored, "pixels": 3, "ratio": 2.0}]))
    (folder / "peers-test.json").write_text(json.dumps([attacked, {**attacked, "contestant": "pixelsem-dense"}]))
    (folder / "other.json").write_text("{}")


def test_the_page_says_what_the_results_say_and_is_the_same_each_time(
    module: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    make_results(tmp_path / "results")
    written = []
    for name in ("one", "two"):
        module("plot").main(["--results", str(tmp_path / "results"), "-o", str(tmp_path / name)])
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert sorted(written[0]) == ["benchmarks-evaluator-test.svg", "benchmarks-peers-test.svg", "benchmarks.md"]
    page = written[0]["benchmarks.md"].decode()
    assert "| torchvision:vgg16 | 224 | 1 | fp32 | 10.0 | 41.2 | 4.12 |" in page
    assert "| scipy | 1.17 | fp32 | 128 | 60 | 60 | 2 | 1 | 1234.5 | 1.75 |" in page
    assert "Test CPU, 2 of 2 cores · avx2 · 4 GiB" in page
    for name in written[0]:
        assert name.endswith(".md") or f"]({name})" in page


def test_a_bar_is_as_long_as_its_ratio(module: Callable[[str], ModuleType], tmp_path: Path) -> None:
    make_results(tmp_path / "results")
    rows = module("common").read_rows(tmp_path / "results" / "evaluator-test.json")
    (axis,) = module("plot").plot_evaluator(rows).axes
    assert [bar.get_width() for bar in axis.patches] == [4.125, 2.0]


def test_no_results_is_one_clear_line(
    module: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        module("plot").main(["--results", str(tmp_path), "-o", str(tmp_path / "docs")])
    assert ended.value.code == 2
    assert "no results; make one of evaluator*.json, peers*.json" in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()


def test_regions_counts_the_images_that_are_segmented(
    module: Callable[[str], ModuleType], images: Path, tmp_path: Path
) -> None:
    target = tmp_path / "regions.json"
    arguments = ["--images", str(images), "--all", str(images), "--methods", "slic,gradcam"]
    module("regions").main([*arguments, "--seconds", "0", "--repeats", "2", "--workers", "1", "--json", str(target)])
    rows = json.loads(target.read_text(encoding="utf-8"))
    assert [row["method"] for row in rows] == ["slic", "gradcam", "slic", "lsc", "seeds"]
    assert [row["images"] for row in rows] == [1, 3, 3, 3, 3]  # a batch at least; --all is all
    for row in rows:
        low, high = row["spread"]
        assert 0 < low <= row["images_per_second"] <= high
        assert row["size"] == [32, 32]
        assert (row["alone"] is None) == (row["repeats"] == 1)


def test_regions_knows_every_method_but_those_that_want_files(module: Callable[[str], ModuleType]) -> None:
    from pixelsem.regions.registry import METHODS

    assert {case.method for case in module("regions").CASES.values()} == set(METHODS) - {"rembg"}


@pytest.mark.slow
def test_memory_is_that_of_the_process_alone(module: Callable[[str], ModuleType]) -> None:
    memory = module("memory")
    printed, small = memory.run(["attack", "list", "--json"])
    assert {info["name"] for info in json.loads(printed)} >= set(memory.CUTS)
    code = "import numpy as np; size = 300 * 2**20; print(np.ones(size, np.uint8)[::4096].sum())"
    _, large = memory.run_process([sys.executable, "-c", code])
    _, again = memory.run(["attack", "list"])
    assert large >= 300 * 2**20
    assert max(small, again) < 250 * 2**20  # the largest child before does not count


def test_memory_says_what_was_cut(module: Callable[[str], ModuleType]) -> None:
    from pixelsem.attacks.registry import ATTACKS

    memory = module("memory")
    assert set(memory.CUTS) | set(memory.ON_LARGE) <= set(ATTACKS)
    assert memory.cut_of("de", memory.MODEL) == "--generations 2"
    assert memory.cut_of("pgd", memory.MODEL) == ""
    assert memory.cut_of("exhaustive", memory.LARGE_MODEL).startswith("6×6 pixels")


def test_a_measurement_that_was_interrupted_goes_on(
    module: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, target = module("memory"), tmp_path / "memory.json"
    asked: list[str] = []

    def measure(attack: str, model: str, options: Any) -> dict[str, Any]:
        asked.append(attack)
        if len(asked) == 2:
            raise KeyboardInterrupt
        about = {"images": 10, "trained": True, "cut": "", "peak_bytes": 3 * 2**29, "seconds": 1.0, "machine": {}}
        return {"attack": attack, "model": model} | about

    monkeypatch.setattr(memory, "measure", measure)
    arguments = ["--images", str(tmp_path), "--attacks", "cw,pgd", "--large", "", "--json", str(target)]
    with pytest.raises(KeyboardInterrupt):
        memory.main(arguments)
    memory.main(arguments)
    assert asked == ["cw", "pgd", "pgd"]
    rows = module("common").read_rows(target)
    assert [row["attack"] for row in rows] == ["cw", "pgd"]
    assert memory.make_table(rows).texts()[0][3] == "1.50"
