from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from attack_stages import info, record, write_stage
from conftest import problem
from matplotlib.figure import Figure
from typer.testing import CliRunner, Result

from pixelsem.cli import evaluate
from pixelsem.cli.groups import RootGroup
from pixelsem.metrics.effort import mean_fitness
from pixelsem.metrics.setups import AttackStage, combine
from pixelsem.report.charts import FitnessCurves, attack_figures, setup_names

REGIONS = ("original", "foreground", "background")


def make_app() -> typer.Typer:
    app = typer.Typer(cls=RootGroup, pretty_exceptions_enable=False)
    evaluate.register(app)
    app.command("other")(lambda: None)
    return app


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIXELSEM_RUN", raising=False)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(make_app(), ["evaluate", "figures", *map(str, arguments)])

    return run


def curve(number: int) -> np.ndarray:
    return np.linspace(0.9, 0.5 + 0.1 * number, 3 + number, dtype=np.float32)


@pytest.fixture
def stage(tmp_path) -> Path:
    """Return a stage of four images and three regions, with histories; 1 and 2 succeed, in the background only 2."""
    path = tmp_path / "run" / "attack"
    made = []
    for region in REGIONS:
        for n in (1, 2, 3, 4):
            to = "dog" if n <= 2 and (region, n) != ("background", 1) else None
            name = f"history/{region}/{n}.npz"
            made.append(record(f"{n}.png", region, to=to, history=name, queries=100 * n))
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            np.savez(path / name, best=curve(n))
    for n in (1, 2):
        made += [record(f"{n}.png", target=t, to=t if t == "dog" else None) for t in ("dog", "ship")]
    folder = path / "history"
    kept = path.with_name("kept")
    folder.rename(kept)
    write_stage(path, info("all", counts={"searches": len(made)}), *made)
    kept.rename(folder)
    return path


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_figure_has_its_numbers_beside_it(call, stage):
    result = call(stage, "-o", "out", "--format", "svg,png", "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    figures = {Path(name).stem for name in summary["figures"]}
    assert figures == {
        "success-untargeted", "success-targeted", "class-pairs-untargeted", "class-pairs-targeted", "target-classes",
        "queries-untargeted", "queries-targeted", "fitness",
    }  # fmt: skip
    assert {Path(name).suffix for name in summary["figures"]} == {".svg", ".png"}
    assert all(Path(name).stat().st_size > 1000 for name in summary["figures"])
    assert summary["tables"] == ["success", "target-classes", "class-pairs", "within", "fitness"]
    fitness = [row for row in rows_of(Path("out"), "fitness") if row["region"] == "original"]
    expected = mean_fitness([curve(n) for n in (1, 2, 3, 4)])
    assert [float(row["fitness"]) for row in fitness] == pytest.approx(expected.mean.tolist())
    assert {row["n"] for row in fitness} == {"4"}
    pairs = {(row["region"], row["goal"], row["target"]): row["count"] for row in rows_of(Path("out"), "class-pairs")}
    assert pairs["foreground", "untargeted", "dog"] == "2"
    assert pairs["original", "targeted", "dog"] == "2"


@pytest.mark.parametrize(("curves", "n"), [("all", [4, 4, 4]), ("success", [2, 2, 1]), ("common", [1, 1, 1])])
def test_which_searches_the_fitness_curves_are_of(call, stage, monkeypatch, curves, n):
    monkeypatch.setattr("pixelsem.report.charts.attack_figures", lambda *a, **k: {"none": Figure})
    result = call(stage, "--curves", curves, "--format", "svg")
    folder = Path(result.stdout.strip())
    assert folder.parent == stage.parent
    counts = {row["region"]: int(row["n"]) for row in rows_of(folder, "fitness")}
    assert [counts[region] for region in REGIONS] == n


def test_a_history_that_cannot_be_read_is_named_and_the_rest_is_drawn(call, stage, monkeypatch):
    monkeypatch.setattr("pixelsem.report.charts.attack_figures", lambda *a, **k: {"none": Figure})
    (stage / "history/original/3.npz").write_bytes(b"no archive")
    np.savez(stage / "history/foreground/4.npz", best=np.zeros((2, 2)))
    result = call(stage, "-o", "out", "--format", "svg")
    assert result.exit_code == 1
    assert "3.npz: not a history that can be read" in result.stderr
    assert "`best` is float64 [2, 2], not one fitness per generation" in result.stderr
    counts = {row["region"]: row["n"] for row in rows_of(Path("out"), "fitness")}
    assert counts == {"original": "3", "foreground": "3", "background": "4"}


def test_stages_that_say_nothing(call, tmp_path):
    empty = write_stage(tmp_path / "empty", info())
    assert "nothing attacked yet" in problem(call(empty))
    wrong = write_stage(tmp_path / "wrong", info(), record(outcome="misclassified"))
    assert "no image was attacked" in problem(call(wrong))
    assert call(wrong).exit_code == 2


def test_formats_are_checked(call, stage):
    assert "'gif' is none of png, svg, pdf" in problem(call(stage, "--format", "gif"))
    assert "name png, svg or pdf" in problem(call(stage, "--format", "none"))


def test_without_matplotlib(call, stage, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = call(stage)
    assert result.exit_code == 2
    assert "pip install 'pixelsem[report]'" in problem(result)


class TestCharts:
    @pytest.fixture
    def setups(self):
        hits = {"original": "12", "foreground": "1", "background": ""}
        records = [record(n, region, to="dog" if n in hits[region] else None) for region in REGIONS for n in "1234"]
        return combine([AttackStage("s", info("all"), records)])[0]

    def test_success_is_drawn_as_it_is(self, setups):
        figure = attack_figures(setups, [])["success-untargeted"]()
        heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in figure.axes[0].containers[1::2]}
        assert heights == {"original": [0.5], "foreground": [0.25], "background": [0]}

    def test_class_pairs_side_by_side_on_one_scale(self, setups):
        figure = attack_figures(setups, [])["class-pairs-untargeted"]()
        maps = [axes.images[0] for axes in figure.axes if axes.images]
        assert [axes.get_title() for axes in figure.axes[:3]] == list(REGIONS)
        assert [image.get_array()[0, 1] for image in maps] == [2, 1, 0]
        assert {image.get_clim() for image in maps} == {(0, 2)}

    def test_success_by_queries_ends_at_the_share_that_succeeds(self, setups):
        figure = attack_figures(setups, [])["queries-untargeted"]()
        ends = {line.get_label(): line.get_ydata()[-1] for line in figure.axes[0].lines}
        assert ends == {"original": 0.5, "foreground": 0.25, "background": 0}

    def test_no_chart_cuts_what_another_one_shows(self, setups):
        rare = [record(f"cat/{n}.png", to="dog" if n == 1 else None) for n in range(1, 100)]
        often = [record(f"cat/{n}.png", to="dog") for n in range(1, 10)]
        stages = [AttackStage(str(n), info(population=n), records) for n, records in ((100, rare), (200, often))]
        figure = attack_figures(combine(stages)[0], [])["queries-untargeted"]()
        assert [axes.get_ylim()[0] for axes in figure.axes] == [0, 0]
        assert all(axes.get_ylim()[1] >= 1 for axes in figure.axes)

    def test_fitness_shows_some_searches_and_the_mean_of_all(self, setups):
        curves = [np.linspace(0.9, 0.9 - 0.01 * n, 4) for n in range(30)]
        given = [FitnessCurves(setups[0], region, curves, mean_fitness(curves)) for region in REGIONS[:2]]
        figure = attack_figures(setups, given, lines=5)["fitness"]()
        first, _, last = figure.axes
        assert all(float(tick).is_integer() for axes in figure.axes for tick in axes.get_xticks())
        assert len(first.lines) == 2 * 5 + 1
        assert first.lines[-1].get_ydata() == pytest.approx(np.mean(curves, 0))
        assert [line.get_label() for line in last.lines] == ["original", "foreground"]

    def test_borders(self):
        options = {"match_area": False, "shrink": 0, "flagged": "skip"}
        stages = [
            AttackStage(str(grow), info("foreground", grow=grow, **options), [record("1", "foreground", to="dog")])
            for grow in (0, 1, 2)
        ]
        figure = attack_figures(combine(stages)[0], [])["borders"]()
        (line,) = [line for line in figure.axes[0].lines if line.get_label() == "foreground"]
        assert line.get_xdata() == pytest.approx([0, 1, 2])
        assert line.get_ydata() == pytest.approx([1, 1, 1])

    def test_names_say_what_differs(self):
        stages = [AttackStage(str(n), info(pixels=n), [record()]) for n in (1, 3)]
        assert setup_names(combine(stages)[0]) == ["allconv · 1 px", "allconv · 3 px"]
        assert setup_names(combine(stages[:1])[0]) == ["allconv"]
