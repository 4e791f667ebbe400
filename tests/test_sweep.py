from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attack_stages import info, record, write_stage

from pixelsem.errors import PixelsemError
from pixelsem.images import write_image
from pixelsem.metrics.intervals import rate
from pixelsem.metrics.setups import AttackStage, combine
from pixelsem.metrics.sweeps import differing, in_order, place
from pixelsem.report.sweeps import SweepRow, draw_heat_maps, draw_lines_of

SIZE = 12


def setups(*options: dict):
    stages = [AttackStage(str(number), info(**each), [record()]) for number, each in enumerate(options)]
    return combine(stages)[0]


@pytest.fixture
def call(evaluate_in):
    return evaluate_in("sweep")


def make_stage(path: Path, hits: int, level: int = 10, **options) -> Path:
    """Write a stage of four images of the value 100, ``hits`` of which were raised by ``level`` throughout."""
    records = [record(f"cat/{n}.png", to="dog" if n < hits else None, height=SIZE, width=SIZE) for n in range(4)]
    write_stage(path, info(**options), *records)
    for one in records:
        clean = np.full((SIZE, SIZE, 3), 100, np.uint8)
        write_image(path / one.clean, clean)
        if one.adversarial:
            write_image(path / one.adversarial, clean + np.uint8(level))
    return path


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestAxes:
    def test_are_what_differs(self):
        made = setups({"tau": 0.1, "steps": 20}, {"tau": 0.5, "steps": 20})
        points, x, y = place(made)
        assert (x, y) == ("tau", None)
        assert [(point.x, point.rest) for point in points] == [(0.1, ""), (0.5, "")]

    def test_are_not_what_only_tells_networks_apart(self):
        made = setups({"tau": 0.1, "name": "nin", "steps": 5}, {"tau": 0.1, "steps": 9}, {"tau": 0.2, "steps": 9})
        assert differing(made) == ["tau"]

    def test_one_that_is_given_leaves_the_others_to_tell_lines_apart(self):
        made = setups({"tau": 0.1, "steps": 5, "beta": 1}, {"tau": 0.2, "steps": 9, "beta": 2})
        points, _, _ = place(made, "tau")
        assert [point.rest for point in points] == ["beta=1.0, steps=5.0", "beta=2.0, steps=9.0"]

    def test_seeds_are_told_apart(self):
        points, _, _ = place(setups({"tau": 0.1, "seed": 1}, {"tau": 0.2, "seed": 2}))
        assert [point.rest for point in points] == ["seed=1", "seed=2"]

    def test_networks_of_one_name_are_told_apart(self):
        stages = [
            AttackStage(f"{digest}{tau}", replace(made, model={"name": "allconv", "digest": digest * 32}), [record()])
            for digest, file in (("ab", None), ("cd", "a.pt"))
            for tau in (0.1, 0.2)
            for made in (info(tau=tau, weights=file, early_stop=tau > 0.1),)
        ]
        points, x, _ = place(combine(stages)[0], "tau", "early_stop")
        assert x == "tau"
        assert [point.rest for point in points] == ["weights=default"] * 2 + ["weights=a.pt"] * 2

    @pytest.mark.parametrize(
        ("options", "axes", "said"),
        [
            ([{"tau": 1}], {}, "differ in no option"),
            ([{"a": 1, "b": 1, "c": 1}, {"a": 2, "b": 2, "c": 2}], {}, "differ in a, b, c; say which"),
            ([{"tau": 1}, {"tau": 2}], {"x": "size"}, "--x size: de has no such option"),
            ([{"tau": 1}, {"tau": 2}], {"x": "tau", "y": "size"}, "--y size: de has no such option"),
        ],
    )
    def test_that_cannot_be_are_one_line(self, options, axes, said):
        with pytest.raises(PixelsemError, match=said):
            place(setups(*options), **axes)

    def test_values_are_in_order(self):
        assert in_order([10.0, "default", 2.0, 10.0, "a"]) == [2.0, 10.0, "a", "default"]


class TestCommand:
    def test_rows_hold_rates_and_means_by_the_option_in_order(self, call, tmp_path):
        stages = [
            make_stage(tmp_path / str(tau), hits, level, tau=tau) for tau, hits, level in ((0.5, 1, 30), (0.1, 3, 10))
        ]
        result = call(*stages, "-o", tmp_path / "out", "--format", "png,svg")
        assert result.exit_code == 0, result.stderr
        rows = rows_of(tmp_path / "out")
        assert [(row["x"], row["asr_count"], row["asr_n"]) for row in rows] == [("0.1", "3", "4"), ("0.5", "1", "4")]
        length = (3 * SIZE * SIZE) ** 0.5 / 255
        assert [float(row["l2_0_to_1"]) for row in rows] == pytest.approx([10 * length, 30 * length])
        assert float(rows[0]["l0_pixels"]) == SIZE * SIZE
        assert float(rows[0]["ssim"]) > float(rows[1]["ssim"])
        assert (tmp_path / "out" / "sweep.png").stat().st_size > 5000
        assert (tmp_path / "out" / "sweep.svg").read_text().startswith("<?xml")

    def test_two_options_can_be_a_heat_map(self, call, tmp_path):
        stages = [
            make_stage(tmp_path / f"{tau}-{steps}", hits, tau=tau, steps=steps)
            for tau, steps, hits in ((1, 5, 0), (1, 9, 1), (2, 5, 2), (2, 9, 4))
        ]
        done = call(*stages, "--heat-map", "--x", "tau", "--json", "-o", tmp_path / "out")
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["x"], found["y"]) == ("tau", "steps")
        assert [Path(path).name for path in found["figures"]] == ["sweep.png", "sweep.svg"]

    def test_a_heat_map_of_one_option_is_refused(self, call, tmp_path):
        stages = [make_stage(tmp_path / str(tau), 1, tau=tau) for tau in (1, 2)]
        result = call(*stages, "--heat-map")
        assert result.exit_code == 2
        assert "--heat-map: needs two options" in result.stderr

    def test_without_matplotlib_the_table_is_there_all_the_same(self, call, tmp_path, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        stages = [make_stage(tmp_path / str(tau), 1, tau=tau) for tau in (1, 2)]
        result = call(*stages, "-o", tmp_path / "out")
        assert result.exit_code == 0
        assert "pip install 'pixelsem[report]'" in result.stderr
        assert len(rows_of(tmp_path / "out")) == 2


def row(x, y=None, hits=1, attack="cfr") -> SweepRow:
    return SweepRow(["allconv", attack, "original", "untargeted", None], x, y, rate(hits, 4), None)


class TestDrawing:
    def test_lines_are_at_the_options_values(self):
        figure = draw_lines_of([row(0.2, hits=3), row(0.1), row(0.1, attack="pgd")], "tau", None)
        lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
        assert list(lines["cfr"].get_xdata()) == [0.1, 0.2]
        assert list(lines["cfr"].get_ydata()) == [0.25, 0.75]
        assert list(lines["pgd"].get_xdata()) == [0.1]
        assert figure.axes[2].get_xlabel() == "tau"

    def test_numbers_over_decades_are_on_a_logarithmic_axis_and_texts_in_places(self):
        wide = draw_lines_of([row(0.01), row(0.1), row(10.0)], "temperature", None)
        assert wide.axes[2].get_xscale() == "log"
        named = draw_lines_of([row("sum"), row("max")], "mask_norm", None)
        assert [tick.get_text() for tick in named.axes[2].get_xticklabels()] == ["max", "sum"]

    def test_heat_map_holds_percentages(self):
        figure = draw_heat_maps([row(1.0, 5.0, 0), row(2.0, 5.0, 2), row(1.0, 9.0, 4)], "tau", "steps")
        values = figure.axes[0].get_images()[0].get_array()
        assert values[:, 0].tolist() == [0, 100]
        assert values[0, 1] == 50
        assert values.mask[1, 1]
