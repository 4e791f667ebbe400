from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from attack_stages import info, record, write_stage
from conftest import problem
from PIL import Image
from typer.testing import CliRunner, Result

from pixelsem.cli import evaluate
from pixelsem.cli.groups import RootGroup
from pixelsem.locks import LOCK_FILE, StageLock
from pixelsem.stage import Stage, StageInfo

REGIONS = ("original", "foreground", "background")

#: Who succeeds where: images 1 to 4 by region, with their generations.
HITS = {"original": {1: 1, 2: 3}, "foreground": {1: 2, 2: 4, 3: 1}, "background": {2: 9}}


def make_app() -> typer.Typer:
    app = typer.Typer(cls=RootGroup, pretty_exceptions_enable=False)
    evaluate.register(app)
    app.command("other")(lambda: None)
    return app


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("PIXELSEM_RUN", raising=False)


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, stdin: str = "") -> Result:
        return CliRunner().invoke(make_app(), ["evaluate", *map(str, arguments)], input=stdin)

    return run


def records_of(region: str) -> list:
    hits = HITS[region]
    made = [
        record(
            f"cat/{n}.png", region, to="dog" if n in hits else None, generations=hits.get(n, 100),
            queries=100 * hits.get(n, 10), candidates=400 * hits.get(n, 100),
        )
        for n in (1, 2, 3, 4)
    ]  # fmt: skip
    return [*made, record("cat/5.png", region, outcome="misclassified")]


@pytest.fixture
def three(tmp_path) -> list[Path]:
    """Return one stage per region."""
    return [
        write_stage(tmp_path / "run" / f"attack-{region}", info(region, counts={"searches": 5}), *records_of(region))
        for region in REGIONS
    ]


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_three_stages_make_one_table(call, three):
    result = call(*three)
    assert result.exit_code == 0, result.stderr
    folder = Path(result.stdout.strip())
    assert folder.parent == three[0].parent
    assert folder.name.startswith("evaluate-success-")
    rates = {
        row["region"]: (row["untargeted1_count"], row["untargeted1_n"], row["untargeted1"])
        for row in rows_of(folder, "success")
    }
    assert rates == {"original": ("2", "4", "0.5"), "foreground": ("3", "4", "0.75"), "background": ("1", "4", "0.25")}
    assert {row["confidence_u"] for row in rows_of(folder, "success")} == {"0.6"}
    assert [row["drawn"] + row["attacked"] + row["misclassified"] for row in rows_of(folder, "images")] == ["541"] * 3
    assert [row["of_all"] for row in rows_of(folder, "images")] == ["0.4", "0.6", "0.2"]
    assert [row["area_mean"] for row in rows_of(folder, "regions")] == ["1.0", "0.4", "0.6"]


def test_generations_queries_and_pairs_by_hand(call, three):
    folder = Path(call(*three).stdout.strip())
    own, common = rows_of(folder, "generations")
    assert [own[region] for region in REGIONS] == ["2.0", repr(7 / 3), "9.0"]
    assert [common[region] for region in REGIONS] == ["3.0", "4.0", "9.0"]
    assert [common[f"{region}_n"] for region in REGIONS] == ["1", "1", "1"]
    costs = {row["region"]: row for row in rows_of(folder, "queries")}
    assert (costs["original"]["queries_mean"], costs["original"]["queries_median"]) == ("200.0", "200.0")
    assert (costs["original"]["queries_all_mean"], costs["original"]["queries_all_median"]) == ("600.0", "650.0")
    assert costs["background"]["candidates_mean"] == "3600.0"
    (pair,) = rows_of(folder, "paired")
    counts = [pair[name] for name in ("n", "both", "only_foreground", "only_background", "neither")]
    assert counts == ["4", "1", "2", "0", "1"]
    assert (pair["difference"], pair["p_value"]) == ("0.5", "0.5")


def test_every_format_is_written_and_tables_are_shown(call, three):
    result = call(*three, "-o", "out")
    assert result.stdout == "out\n"
    names = {
        "success", "table2", "images", "generations", "queries", "paired", "regions", "table3", "su2017", "class-pairs",
        "within", "density",
    }  # fmt: skip
    expected = {f"{name}.{suffix}" for name in names for suffix in ("json", "csv", "md", "tex")}
    assert {file.name for file in Path("out").iterdir()} == expected
    assert "50.00 % (2/4) [15.00, 85.00]" in result.stderr
    assert "Foreground against background" in result.stderr
    assert "more tables are in out: success, queries, regions, table3, su2017, class-pairs, within" in result.stderr
    table = Path("out/table2.md").read_text(encoding="utf-8")
    assert "| Network | Attack | Constraint | Metric | Original, 1 pixel | Foreground, 1 pixel |" in table
    assert "| allconv | de | encode | Untargeted1 | 50.00 % (2/4) [15.00, 85.00] | 75.00 %" in table
    assert r"\toprule" in Path("out/table2.tex").read_text(encoding="utf-8")
    assert json.loads(Path("out/success.json").read_text())["rows"][0]["untargeted1"]["n"] == 4


def test_json_on_stdout_and_nothing_else(call, three):
    result = call(*three, "--json", "--quiet")
    assert result.stderr == ""
    plain = json.loads(result.stdout)
    assert plain["inputs"] == [str(path) for path in three]
    assert plain["tables"]["success"]["rows"][1]["untargeted1"]["count"] == 3
    assert Path(plain["stage"], "success.csv").exists()


def test_again_gives_the_same_files(call, three):
    first = Path(call(*three).stdout.strip())
    before = {file.name: file.read_bytes() for file in first.iterdir()}
    (first / "success.csv").write_text("spoilt")
    assert Path(call(*reversed(three)).stdout.strip()) == first
    assert call(*three).exit_code == 0
    assert {file.name: file.read_bytes() for file in first.iterdir()} == before


def test_the_level_of_the_intervals(call, three):
    call(*three, "--confidence", "0.9", "-o", "out")
    assert "90 % intervals" in Path("out/success.md").read_text()
    assert float(rows_of(Path("out"), "success")[0]["untargeted1_low"]) > 0.15


def test_targeted_attacks(call, tmp_path):
    records = [
        record("cat/1.png", target="dog", to="dog"), record("cat/1.png", target="ship"),
        record("cat/2.png", target="dog"), record("cat/2.png", target="ship"),
    ]  # fmt: skip
    path = write_stage(tmp_path / "s", info(targeted=True, counts={"searches": 4}), *records)
    result = call(path, "-o", "out")
    (row,) = rows_of(Path("out"), "success")
    assert (row["untargeted1"], row["targets"]) == ("", "2")
    assert (row["untargeted2_count"], row["untargeted2_n"]) == ("1", "2")
    assert (row["targeted_count"], row["targeted_n"], row["targeted"]) == ("1", "4", "0.25")
    metrics = [row["metric"] for row in rows_of(Path("out"), "table2")]
    assert metrics == ["Untargeted2", "Targeted", "Confidence_t"]
    assert "effective number of pairs" in result.stderr


def test_numbers_of_pixels_stand_side_by_side(call, tmp_path):
    paths = [write_stage(tmp_path / f"p{p}", info(pixels=p, counts={"searches": 1}), record()) for p in (3, 1)]
    call(*paths, "-o", "out")
    header = Path("out/table2.csv").read_text().splitlines()[0]
    assert header == "network,attack,constraint,variant,metric,original_1,original_3"


def test_constraints_are_compared_on_the_same_images(call, tmp_path):
    encode = [record("1.png", to="dog"), record("2.png", to="dog")]
    revert = [record("1.png", to="dog"), record("2.png")]
    paths = [
        write_stage(tmp_path / name, info(constraint=name, counts={"searches": 2}), *records)
        for name, records in (("encode", encode), ("revert", revert))
    ]
    call(*paths, "-o", "out")
    (row,) = rows_of(Path("out"), "constraints")
    assert (row["n"], row["both"], row["only_encode"], row["only_revert"]) == ("2", "1", "1", "0")


def test_repeats_have_their_own_table(call, tmp_path):
    records = [record("1.png", repeat=n, to="dog" if n == 1 else None) for n in range(4)]
    call(write_stage(tmp_path / "s", info(repeats=4, counts={"searches": 4}), *records), "-o", "out")
    (row,) = rows_of(Path("out"), "repeats")
    assert (row["searches"], row["per_search"], row["any"]) == ("4", "0.25", "1.0")
    assert rows_of(Path("out"), "success")[0]["untargeted1_count"] == "0"


# --- where the stages come from


def test_the_newest_stage_of_the_run_folder(call, three):
    result = call("--run", "run")
    assert result.exit_code == 0, result.stderr
    assert [row["region"] for row in rows_of(Path(result.stdout.strip()), "success")] == ["background"]
    assert Path(result.stdout.strip()).parent == Path("run")


def test_stages_from_a_dash(call, three):
    result = call("-", "--json", stdin="".join(f"{path}\n" for path in three))
    assert len(json.loads(result.stdout)["tables"]["success"]["rows"]) == 3


def test_stages_from_a_pipe(three, tmp_path):
    code = "import test_cli_evaluate as t; t.make_app()(['evaluate'])"
    lines = "".join(f"{path}\n" for path in three)
    result = subprocess.run(
        [sys.executable, "-c", code], input=lines, capture_output=True, text=True, cwd=tmp_path, check=False,
        env={"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}", "PATH": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(rows_of(tmp_path / result.stdout.strip(), "success")) == 3


def test_help_imports_nothing_heavy():
    code = "import sys; from pixelsem.cli import evaluate; assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- what is missing, twice or foreign


def test_the_same_stage_twice_counts_once(call, three):
    result = call(three[0], three[0])
    assert "given twice; counted once" in result.stderr
    assert rows_of(Path(result.stdout.strip()), "success")[0]["untargeted1_n"] == "4"


def test_the_same_record_twice_counts_once(call, tmp_path):
    path = write_stage(tmp_path / "s", info(counts={"searches": 1}), record(), record())
    result = call(path)
    assert rows_of(Path(result.stdout.strip()), "success")[0]["untargeted1_n"] == "1"


def test_unfinished_stages_are_named(call, tmp_path):
    short = write_stage(tmp_path / "short", info(counts={"searches": 9}), record())
    open_ = write_stage(tmp_path / "open", info("foreground"), record(region="foreground"))
    empty = write_stage(tmp_path / "empty", info("background"))
    result = call(short, open_, empty)
    assert result.exit_code == 0
    assert f"note: {short}: holds 1 of 9 searches" in result.stderr
    assert f"note: {open_}: was not finished" in result.stderr
    assert f"note: {empty}: holds no records yet" in result.stderr


def test_nothing_attacked_yet(call, tmp_path):
    result = call(write_stage(tmp_path / "s", info()))
    assert result.exit_code == 2
    assert "nothing attacked yet" in problem(result)


def test_nothing_but_misclassified_images(call, tmp_path):
    path = write_stage(tmp_path / "s", info(counts={"searches": 1}), record(outcome="misclassified"))
    result = call(path, "-o", "out")
    assert result.exit_code == 0
    assert rows_of(Path("out"), "images")[0]["misclassified"] == "1"


def test_a_stage_of_another_kind(call, tmp_path):
    other = StageInfo(kind="segment", command="segment", identity="0" * 64, options={}, inputs={})
    result = call(write_stage(tmp_path / "masks", other))
    assert result.exit_code == 2
    assert "masks: is a stage of 'segment'" in problem(result)


def test_foreign_and_damaged_stages_are_named_and_the_others_computed(call, three, tmp_path):
    foreign = write_stage(tmp_path / "masks", StageInfo("segment", "segment", "0" * 64, {}, {}))
    (tmp_path / "plain").mkdir()
    spoil(three[1], b"not json\n")
    result = call(foreign, three[0], three[1], tmp_path / "plain", three[2])
    assert result.exit_code == 1
    problems = [line for line in result.stderr.splitlines() if line.startswith("pixelsem:")]
    assert [line.endswith("; left out") for line in problems] == [True] * 3
    assert "masks: is a stage of 'segment'" in problems[0]
    assert "manifest.jsonl, line 1:" in problems[1]
    assert "plain: no stage (stage.yaml is missing)" in problems[2]
    assert [row["region"] for row in rows_of(Path(result.stdout.strip()), "success")] == ["original", "background"]


@pytest.mark.parametrize(("name", "value"), [("pixels", "x"), ("pixels", [1]), ("grow", "x"), ("shrink", [2])])
def test_a_stage_with_a_damaged_number_is_named_and_the_others_computed(call, three, name, value):
    stage = Stage.open(three[1])
    stage.save(options=stage.info.options | {name: value})
    said = f"{three[1] / 'stage.yaml'}: `options: {name}` is no number ({value!r})"
    assert said in problem(call(three[1]))
    result = call(*three)
    assert result.exit_code == 1
    assert said in problem(result)
    assert [row["region"] for row in rows_of(Path(result.stdout.strip()), "success")] == ["original", "background"]


def test_only_foreign_stages(call, tmp_path):
    paths = [write_stage(tmp_path / n, StageInfo("segment", "segment", n * 64, {}, {})) for n in ("1", "2")]
    result = call(*paths)
    assert result.exit_code == 2
    assert "1: is a stage of 'segment'" in problem(result)


def test_many_stages_leave_the_answer_in_sight(call, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    paths = [
        write_stage(
            tmp_path / f"{n:02}", info("foreground", population=100 + n), record("cat/1.png", "foreground", to="dog")
        )
        for n in range(30)
    ]
    result = call(*paths, "-o", "out")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert len(lines) < 160
    assert "20 more rows are in out/table2.md" in result.stderr  # two metrics of 30 searches, 40 of them shown
    assert any(line.startswith("more tables are in out: success, generations, density") for line in lines)
    assert lines[-1] == "note: … and 18 more (--json has all)"
    assert len(json.loads(Path("out/table2.json").read_text())["rows"]) == 60


def test_a_folder_that_is_no_stage(call, tmp_path):
    (tmp_path / "plain").mkdir()
    result = call(tmp_path / "plain")
    assert result.exit_code == 2
    assert "no stage (stage.yaml is missing)" in problem(result)


def test_a_missing_folder(call):
    result = call("nowhere")
    assert result.exit_code == 2
    assert "nowhere: no such file or folder" in problem(result)


def test_no_input_at_all(call):
    result = call()
    assert result.exit_code == 2
    assert "no input" in problem(result)


def spoil(path: Path, text: bytes) -> bytes:
    manifest = path / "manifest.jsonl"
    manifest.write_bytes(text)
    return text


def test_a_line_cut_in_half(call, three):
    whole = (three[0] / "manifest.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    text = spoil(three[0], lines[0] + lines[1][:50] + b"\n" + lines[2])
    result = call(three[0], "-o", "out")
    assert result.exit_code == 2
    assert "manifest.jsonl, line 2:" in problem(result)
    assert (three[0] / "manifest.jsonl").read_bytes() == text
    assert not Path("out").exists()


def test_a_last_line_cut_by_a_crash_is_not_a_record(call, three):
    whole = (three[0] / "manifest.jsonl").read_bytes()
    spoil(three[0], whole[:-20])
    result = call(three[0])
    assert result.exit_code == 0
    assert "holds 4 of 5 searches" in result.stderr


def test_a_path_out_of_the_stage(call, three):
    whole = (three[0] / "manifest.jsonl").read_bytes()
    spoil(three[0], whole.replace(b'"clean/cat/1.png"', b'"../../secret.png"'))
    result = call(three[0])
    assert result.exit_code == 2
    assert "line 1: the path '../../secret.png' leaves its folder; refused" in problem(result)


def test_two_commands_do_not_write_to_one_folder(call, three, tmp_path):
    lock = StageLock.acquire(tmp_path / "tables", "evaluate figures")
    try:
        result = call(*three, "-o", "tables")
        assert result.exit_code == 2
        assert f"`pixelsem evaluate figures`, process {os.getpid()}" in problem(result)
        assert os.listdir("tables") == [LOCK_FILE]
    finally:
        lock.release()
    assert call(*three, "-o", "tables").exit_code == 0
    assert LOCK_FILE not in os.listdir("tables")


def test_what_a_killed_command_left_is_removed(call, three, tmp_path):
    killed = (
        "import os, sys; from pixelsem.locks import *; StageLock.acquire(Path(sys.argv[1]), 'evaluate'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", killed, "tables"], check=False)
    left, of_another = (Path("tables", name, ".0123456789abcdef.tmp") for name in (".", "stage"))
    for path in (left, of_another):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    result = call(*three, "-o", "tables")
    assert result.exit_code == 0
    assert "which is gone, was taken over" in problem(result)
    assert not left.exists()
    assert of_another.exists()
    assert LOCK_FILE not in os.listdir("tables")


def test_output_that_is_a_file(call, three, tmp_path):
    (tmp_path / "out").write_text("mine")
    result = call(*three, "-o", "out")
    assert result.exit_code == 1
    assert "cannot be written" in problem(result)
    assert (tmp_path / "out").read_text() == "mine"


# --- diff


def write_history(stage: Path, name: str, accepted: list[list[int]], close: list[list[int]]) -> None:
    file = stage / name
    file.parent.mkdir(parents=True, exist_ok=True)
    packed = [np.packbits(np.array(bits, bool), axis=1) for bits in (accepted, close)]
    np.savez(file, accepted=packed[0], close=packed[1], best=np.zeros(3, np.float32))


@pytest.fixture
def twins(tmp_path):
    """Return two runs: an identical search, one parted by a tie, and one image in each run alone."""
    paths = tmp_path / "a", tmp_path / "b"
    for path, only, tied in zip(paths, ("8", "9"), ([[1, 0], [0, 0]], [[1, 0], [0, 1]]), strict=True):
        same, differing = record("1.png"), record("2.png", queries=len(only) + tied[1][1], history="history/2.npz")
        write_stage(path, info(), *sorted([same, differing, record(f"{only}.png")], key=lambda r: hash((r.id, only))))
        write_history(path, "history/2.npz", tied, [[0, 0], [0, 1]])
    return paths


def test_diff_traces_a_tie(call, twins):
    result = call("diff", *twins)
    assert result.exit_code == 0
    assert result.stdout == "identical 1, float ties 1, unexplained 0, only in a 1, only in b 1\n"
    assert "trial and parent tie" in result.stderr


def test_diff_fails_for_what_no_tie_explains(call, twins):
    write_history(twins[1], "history/2.npz", [[0, 0], [0, 1]], [[0, 0], [0, 1]])
    result = call("diff", *twins, "--json")
    assert result.exit_code == 1
    plain = json.loads(result.stdout)
    assert plain["counts"]["unexplained"] == 1
    assert plain["differences"][0]["generation"] == 2
    assert plain["differences"][0]["key"] == ["2.png", "original", "", "0"]
    assert plain["only_in_b"] == [["9.png", "original", "", "0"]]


def test_diff_of_a_stage_with_itself(call, three):
    result = call("diff", three[0], three[0])
    assert result.stdout == "identical 5, float ties 0, unexplained 0, only in a 0, only in b 0\n"


def test_diff_of_runs_with_nothing_in_common(call, three):
    result = call("diff", three[0], three[1])
    assert result.exit_code == 2
    assert "no search is in both" in problem(result)


def test_diff_with_a_damaged_history(call, twins):
    for text in (b"", b"no zip", b"PK\x03\x04"):
        (twins[1] / "history/2.npz").write_bytes(text)
        result = call("diff", *twins)
        assert result.exit_code == 2
        assert "not a history that can be read" in problem(result)
    (twins[1] / "history/2.npz").unlink()
    assert "2.npz" in problem(call("diff", *twins))


@pytest.mark.parametrize("place", ["stream", "compression", "password"])
def test_diff_with_a_damaged_stream_in_a_history(call, twins, place):
    file = twins[1] / "history/2.npz"
    np.savez_compressed(file, accepted=np.zeros((2, 1), np.uint8), close=np.zeros((2, 1), np.uint8))
    data = bytearray(file.read_bytes())
    entry = data.index(b"PK\x01\x02")
    if place == "stream":
        data[(start := data.index(b".npy") + 24) : start + 20] = b"\xff" * 20
    elif place == "compression":
        data[entry + 10] = 99
    else:
        data[entry + 8] |= 1
        data[6] |= 1
    file.write_bytes(data)
    result = call("diff", *twins)
    assert result.exit_code == 2
    assert f"{file}: not a history that can be read: " in problem(result)


def test_diff_with_a_history_of_other_arrays(call, twins):
    file = twins[1] / "history/2.npz"
    for wrong, found in ((np.zeros((1, 1)), "float64 [1, 1]"), (np.zeros(2, np.uint8), "uint8 [2]")):
        np.savez(file, accepted=wrong, close=np.zeros((1, 1), np.uint8))
        result = call("diff", *twins)
        assert result.exit_code == 2
        assert f"{file}: `accepted` is {found}, not the bits of every generation" in problem(result)


def test_diff_tells_images_apart_that_the_model_does_not(call, tmp_path):
    """A gradient attack's record lists no pixels: its image's digest alone says which it is."""
    for name, clean, made in (("a", "ab", "ab"), ("b", "ab", "cd"), ("c", "cd", "ab")):
        digests = {"clean": clean * 16, "adversarial": made * 16}
        write_stage(tmp_path / name, info(), record(to="dog", pixels=[], digests=digests), record("2.png"))
    for other, reason in (("b", "the images that were made differ"), ("c", "the clean images differ")):
        result = call("diff", tmp_path / "a", tmp_path / other, "--json")
        assert result.exit_code == 1
        plain = json.loads(result.stdout)
        assert (plain["counts"]["identical"], plain["counts"]["unexplained"]) == (1, 1)
        assert plain["differences"][0]["reason"].startswith(reason)
    write_stage(tmp_path / "old", info(), record(to="dog", pixels=[]), record("2.png"))
    assert call("diff", tmp_path / "a", tmp_path / "old").stdout.startswith("identical 2, ")


def test_diff_refuses_a_history_that_is_a_link_out_of_the_stage(call, twins, tmp_path):
    (tmp_path / "secret.npz").write_bytes(b"")
    (twins[1] / "history/2.npz").unlink()
    (twins[1] / "history/2.npz").symlink_to(tmp_path / "secret.npz")
    result = call("diff", *twins)
    assert result.exit_code == 2
    assert "refused" in problem(result)


def test_diff_of_segmentations(call, tmp_path, three):
    other = StageInfo(kind="segment", command="segment", identity="0" * 64, options={}, inputs={})
    result = call("diff", write_stage(tmp_path / "masks", other), three[0])
    assert result.exit_code == 2
    assert "is a stage of 'segment'" in problem(result)


# --- accuracy

FACTORY = """
import torch
from torch import nn

class Brightest(nn.Module):
    '''The class is the brightest channel.'''
    def forward(self, x):
        return x.mean((2, 3))

def brightest():
    return Brightest()
"""


@pytest.fixture
def colours(tmp_path):
    """Return the options for a model that names the brightest channel, and images of it: one is labelled wrongly."""
    (tmp_path / "model.py").write_text(FACTORY)
    (tmp_path / "names.txt").write_text("red\ngreen\n\nblue\n")
    shown = {"red/1.png": (255, 0, 0), "red/2.jpg": (200, 10, 10), "green/1.png": (0, 255, 0), "blue/1.png": (9, 8, 0)}
    for name, colour in shown.items():
        file = tmp_path / "data" / "test" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12) if name == "red/2.jpg" else (8, 8), colour).save(file)
    model = f"{tmp_path}/model.py:brightest"
    return ["accuracy", "--model", model, "--input-size", "8", "--classes", tmp_path / "names.txt", "--device", "cpu"]


def test_accuracy_by_hand(call, colours):
    result = call(*colours, "--data", "data", "-o", "out", "--batch-size", "3")
    assert result.exit_code == 0, result.stderr
    (row,) = rows_of(Path("out"), "accuracy")
    assert (row["top1"], row["top1_count"], row["top1_n"], row["top5"]) == ("0.75", "3", "4", "1.0")
    found = {row["class"]: row["accuracy"] for row in rows_of(Path("out"), "classes")}
    assert found == {"red": "1.0", "green": "1.0", "blue": "0.0"}


def test_accuracy_of_a_split_of_a_part_and_as_json(call, colours):
    plain = json.loads(call(*colours, "--data", "data/test", "--limit", "2", "--json").stdout)
    assert plain["tables"]["accuracy"]["rows"][0]["top1"]["n"] == 2
    assert next(iter(plain["models"])).endswith("model.py:brightest")


def test_accuracy_by_numbered_classes(call, colours, tmp_path):
    for number, name in enumerate(("red", "green", "blue")):
        (tmp_path / "data/test" / name).rename(tmp_path / "data/test" / str(number))
    result = call(*colours, "--data", "data", "--json")
    assert json.loads(result.stdout)["tables"]["accuracy"]["rows"][0]["top1"]["count"] == 3


def test_accuracy_leaves_folders_out_that_are_no_class(call, colours, tmp_path):
    (tmp_path / "data/test/violet").mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"data/test/violet/{number}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "data/test/loose.png")
    result = call(*colours, "--data", "data", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert "2 images in violet/ left out: no class of" in result.stderr
    assert "1 images in no folder left out" in result.stderr
    assert rows_of(Path("out"), "accuracy")[0]["top1_n"] == "4"


def test_accuracy_of_several_models(call, colours, tmp_path):
    """The second sees what is darkest, and knows blue by another name; the third cannot be tested."""
    with (tmp_path / "model.py").open("a") as code:
        code.write("class Darkest(Brightest):\n    def forward(self, x):\n        return -super().forward(x)\n")
    (tmp_path / "other.txt").write_text("red\ngreen\nnavy\n")
    (tmp_path / "none.txt").write_text("a\nb\nc\n")
    models = {
        "bright": {"model": "model.py:brightest", "classes": "names.txt", "input-size": 8},
        "dark": {"model": "model.py:Darkest", "classes": "other.txt", "input-size": 8},
        "alien": {"model": "model.py:brightest", "classes": "none.txt", "input-size": 8},
    }
    Path("models.yaml").write_text(json.dumps(models))
    result = call("accuracy", "--models", "models.yaml", "--data", "data", "-o", "out", "--device", "cpu")
    assert result.exit_code == 1
    assert "alien: " in problem(result)
    assert "1 images in blue/ left out: no class of dark" in result.stderr
    rows = rows_of(Path("out"), "accuracy")
    assert [(row["network"], row["top1_count"], row["top1_n"]) for row in rows] == [
        ("bright", "3", "4"),
        ("dark", "0", "3"),
    ]
    found = {row["class"]: (row["accuracy_1"], row["accuracy_2"]) for row in rows_of(Path("out"), "classes")}
    assert found == {"red": ("1.0", "0.0"), "green": ("1.0", "0.0"), "blue": ("0.0", "")}
    assert (Path("out") / "accuracy.tex").is_file()
    both = call(*colours, "--models", "models.yaml", "--data", "data")
    assert both.exit_code == 2
    assert "--models names the models; leave --model out" in problem(both)


def test_accuracy_goes_on_without_images_it_cannot_read(call, colours, tmp_path):
    (tmp_path / "data/test/red/3.png").write_bytes(b"no image")
    result = call(*colours, "--data", "data", "-o", "out")
    assert result.exit_code == 1
    assert "3.png" in problem(result)
    assert rows_of(Path("out"), "accuracy")[0]["top1_n"] == "4"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "give --data"),
        ("nowhere", "no such folder"),
        ("data/test/red", "in no class folder"),
        ("empty", "holds no image"),
        ("purple", "'violet' is none of the model's 3 classes"),
    ],
)
def test_accuracy_of_what_is_no_labelled_folder(call, colours, tmp_path, data, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "purple/violet").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "purple/violet/1.png")
    result = call(*colours, *(["--data", data] if data else []))
    assert result.exit_code == 2
    assert message in problem(result)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no class names"),
        ("a\nb\n", "2 class names"),
        (None, "cannot be read"),
    ],
)
def test_class_names_that_do_not_fit(call, colours, tmp_path, text, message):
    file = tmp_path / "names.txt"
    file.unlink()
    if text is not None:
        file.write_text(text)
    result = call(*colours, "--data", "data")
    assert result.exit_code == 2
    assert message in problem(result)


def test_stages_stay_as_they_were(call, three):
    before = {file: file.read_bytes() for path in three for file in path.rglob("*") if file.is_file()}
    call(*three)
    call("diff", three[0], three[0])
    assert before == {file: file.read_bytes() for path in three for file in path.rglob("*") if file.is_file()}
    assert len(list(Stage.open(three[0]).attack_records())) == 5
