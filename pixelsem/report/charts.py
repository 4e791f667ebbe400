"""The figures of attacks: success, wang2021's Figs. 3–6, success within a number of queries, moved borders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pixelsem.metrics.classes import class_names, class_pairs, target_classes
from pixelsem.metrics.effort import Curve, FitnessCurve, success_within
from pixelsem.metrics.intervals import Rate
from pixelsem.metrics.setups import Setup
from pixelsem.metrics.success import GOALS, Goal, sort_regions, success
from pixelsem.report.areas import Border, borders
from pixelsem.report.effort import ends_with_success
from pixelsem.report.figures import (
    FAINT,
    Series,
    draw_bars,
    draw_heat_map,
    draw_lines,
    draw_scale,
    heat_limits,
    new_figure,
    show_counts,
    show_legend,
    show_percent,
    style,
    styles_for,
)

#: A heat map shows so many classes at most; of more, those that occur most often in successes.
MOST_CLASSES = 24

Draw = Callable[[], Figure]


@dataclass(frozen=True)
class FitnessCurves:
    """Best fitness by generation, float [G_i] each, of one setup's searches in one region, and their mean."""

    setup: Setup
    region: str
    curves: Sequence[Curve]
    mean: FitnessCurve


def attack_figures(
    setups: Sequence[Setup], fitness: Sequence[FitnessCurves], *, lines: int = 15, confidence: float = 0.95
) -> dict[str, Draw]:
    """Return by name how to draw each figure that there is something to show in; ``confidence`` is the bands' level.

    ``lines`` is how many searches are drawn one by one among the fitness curves.
    """
    found: dict[str, Draw] = {}
    rates = {goal: _rates(setups, goal, confidence) for goal in GOALS}
    for goal in GOALS:
        if rates[goal]:
            found[f"success-{goal}"] = _bind(_draw_success, setups, rates[goal], goal)
            if any(_hits(setup, region, goal) for setup in setups for region in setup.regions):
                found[f"class-pairs-{goal}"] = _bind(_draw_class_pairs, setups, goal)
    shares = {number: _target_classes(setup, confidence) for number, setup in enumerate(setups)}
    if any(shares.values()):
        found["target-classes"] = _bind(_draw_target_classes, setups, shares)
    for goal in GOALS:
        steps = {number: _within(setup, goal, confidence) for number, setup in enumerate(setups)}
        if any(steps.values()):
            found[f"queries-{goal}"] = _bind(_draw_within, setups, steps, goal)
    if fitness:
        found["fitness"] = _bind(_draw_fitness, fitness, lines)
    if moved := borders(setups, confidence):
        found["borders"] = _bind(_draw_borders, moved)
    return found


def _bind(draw: Callable[..., Figure], *arguments: object) -> Draw:
    def bound() -> Figure:
        with style():
            return draw(*arguments)

    return bound


def setup_names(setups: Sequence[Setup]) -> list[str]:
    """Return what to call each setup in a figure: only what tells it from the others, and the network."""
    parts = [
        (s.network, s.attack, None if s.pixels is None else f"{s.pixels} px", s.constraint, s.variant or None)
        for s in setups
    ]
    differ = [number == 0 or len({part[number] for part in parts}) > 1 for number in range(5)]
    return [" · ".join(part for part, shown in zip(one, differ, strict=True) if shown and part) for one in parts]


def _folded(name: str, length: int) -> str:
    """Break a name into lines of about ``length`` characters, where it has parts."""
    return "\n".join(wrap(name, length, break_long_words=False, break_on_hyphens=False))


def _panels(setups: Sequence[Setup], numbers: Sequence[int], *, width: float = 3.6, height: float = 2.9) -> _Panels:
    return _Panels([setup_names(setups)[number] for number in numbers], width, height)


class _Panels:
    """Axes for one chart per setup, three beside each other, with a legend below."""

    def __init__(self, names: Sequence[str], width: float, height: float) -> None:
        columns = self.columns = min(3, len(names))
        rows = ceil(len(names) / columns)
        size = {"width": max(5.0, width * columns), "height": height * rows + 0.5}
        self.figure, axes = new_figure(rows, columns, sharex=True, sharey=True, **size)
        self.axes: list[Axes] = axes.ravel().tolist()[: len(names)]
        for spare in axes.ravel().tolist()[len(names) :]:
            spare.remove()
        for each, name in zip(self.axes, names, strict=True):
            each.set_title(_folded(name, 38), loc="left", fontsize=9)

    def finish(self, x: str, y: str) -> Figure:
        """Name the axes, add the legend of all series, and return the figure."""
        self.axes[0].set_ylim(bottom=0)  # only now: limits that are set do not grow with what another chart shows
        # Not the figure's own label, which a legend below would cover.
        for axes in self.axes[-self.columns :]:
            axes.set_xlabel(x)
            axes.tick_params(axis="x", labelbottom=True)
        self.figure.supylabel(y, fontsize=9)
        fullest = max(self.axes, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
        if len(fullest.get_legend_handles_labels()[1]) > 1:
            show_legend(self.figure, fullest)
        return self.figure


def _series(label: str, x: Sequence[float], shares: Sequence[Rate | None]) -> Series:
    values = [[np.nan] * 3 if share is None else [share.value, share.low, share.high] for share in shares]
    y, low, high = np.array(values, float).reshape(-1, 3).T
    return Series(label, list(x), y, low, high)


def _rates(setups: Sequence[Setup], goal: Goal, confidence: float) -> dict[tuple[int, str], Rate]:
    """Return the success of each setup (by number) and region: untargeted, or at least one target."""
    found = {}
    for number, setup in enumerate(setups):
        for region in setup.regions:
            cell = success(setup.records, region, confidence)
            share = cell.untargeted1 if goal == "untargeted" else cell.untargeted2
            if share is not None:
                found[number, region] = share
    return found


def _draw_success(setups: Sequence[Setup], rates: Mapping[tuple[int, str], Rate], goal: Goal) -> Figure:
    numbers = sorted({number for number, _ in rates})
    names = setup_names(setups)
    regions = sort_regions(region for _, region in rates)
    figure, axes = new_figure(width=max(4.0, 1.2 + 1.1 * len(numbers)), height=3.4)
    places = range(len(numbers))
    series = [_series(region, places, [rates.get((number, region)) for number in numbers]) for region in regions]
    draw_bars(axes[0, 0], [_folded(names[number], 14) for number in numbers], series, styles_for(regions))
    show_percent(axes[0, 0])
    axes[0, 0].set_ylabel("attacked images that succeed" if goal == "untargeted" else "images with a target reached")
    show_legend(figure, axes[0, 0])
    return figure


def _target_classes(setup: Setup, confidence: float) -> dict[str, list[Rate]]:
    found = {region: target_classes(setup.records, region, confidence) for region in setup.regions}
    return {region: shares for region, shares in found.items() if shares}


def _draw_target_classes(setups: Sequence[Setup], shares: Mapping[int, Mapping[str, list[Rate]]]) -> Figure:
    """Draw wang2021's Fig. 3: a chart per setup, a bar per region and number of target classes."""
    numbers = [number for number in shares if shares[number]]
    panels = _panels(setups, numbers)
    reached = [n for number in numbers for one in shares[number].values() for n, share in enumerate(one) if share.value]
    most = min(max([3, *reached]), max(len(one) for number in numbers for one in shares[number].values()) - 1)
    styles = styles_for(sort_regions(region for number in numbers for region in shares[number]))
    for axes, number in zip(panels.axes, numbers, strict=True):
        series = [
            _series(region, range(len(one[: most + 1])), one[: most + 1]) for region, one in shares[number].items()
        ]
        draw_bars(axes, [str(n) for n in range(most + 1)], series, styles)
        show_percent(axes)
    return panels.finish("target classes reached", "attacked images")


def _hits(setup: Setup, region: str, goal: Goal) -> int:
    return sum(class_pairs(setup.records, region, goal).hits.values())


def _draw_class_pairs(setups: Sequence[Setup], goal: Goal) -> Figure:
    """Draw wang2021's Fig. 4 (untargeted) or 5 (targeted): setups below each other, regions side by side."""
    shown = [setup for setup in setups if any(_hits(setup, region, goal) for region in setup.regions)]
    regions = sort_regions(region for setup in shown for region in setup.regions)
    chosen = [r for setup in shown for r in setup.records if (r.target is not None) == (goal == "targeted")]
    classes = class_names(chosen, MOST_CLASSES)
    maps = {
        (row, column): _pair_map(setup, region, goal, classes)
        for row, setup in enumerate(shown)
        for column, region in enumerate(regions)
        if region in setup.regions
    }
    side = max(2.4, 0.24 * len(classes))
    size = {"width": 1.6 + side * len(regions), "height": 0.9 + side * len(shown)}
    figure, axes = new_figure(len(shown), len(regions), sharex=True, sharey=True, **size)
    limits, names = heat_limits(maps.values()), setup_names(shown)
    for (row, column), values in maps.items():
        image = draw_heat_map(axes[row, column], values, classes, classes, limits=limits)
    for row, line in enumerate(axes.tolist()):
        for column, each in enumerate(line):
            each.set_title(regions[column] if row == 0 else "")
            if (row, column) not in maps:
                each.axis("off")
        line[0].set_ylabel(_folded(names[row], 30) if len(shown) > 1 else "")
    figure.supylabel("original class", fontsize=9)
    figure.supxlabel("target class" if goal == "targeted" else "class it was taken for", fontsize=9)
    draw_scale(figure, image, axes.ravel(), "successes", whole=True)
    return figure


def _pair_map(setup: Setup, region: str, goal: Goal, classes: Sequence[str]) -> NDArray[np.float64]:
    """Return the successes by original and target class; nothing on the diagonal."""
    found = class_pairs(setup.records, region, goal)
    values = np.array([[found.hits.get((old, new), 0) for new in classes] for old in classes], np.float64)
    np.fill_diagonal(values, np.nan)
    return values


Steps = dict[str, list[tuple[int, Rate]]]


def _within(setup: Setup, goal: Goal, confidence: float) -> Steps:
    if not ends_with_success(setup):
        return {}
    found = {region: success_within(setup.records, region, goal, confidence) for region in setup.regions}
    return {region: steps for region, steps in found.items() if steps}


def _draw_within(setups: Sequence[Setup], steps: Mapping[int, Steps], goal: Goal) -> Figure:
    numbers = [number for number in steps if steps[number]]
    panels = _panels(setups, numbers)
    styles = styles_for(sort_regions(region for number in numbers for region in steps[number]))
    for axes, number in zip(panels.axes, numbers, strict=True):
        # A little beyond the end, or the last step would have no width.
        ended = {
            region: [*curve, (round(1.03 * curve[-1][0]), curve[-1][1])] for region, curve in steps[number].items()
        }
        series = [_series(region, *zip(*curve, strict=True)) for region, curve in ended.items()]
        draw_lines(axes, series, styles, steps=True, markers=False)
        axes.margins(x=0)
        show_percent(axes)
    return panels.finish("queries", "searches that succeeded" if goal == "targeted" else "images that succeeded")


def _draw_fitness(fitness: Sequence[FitnessCurves], lines: int) -> Figure:
    """Draw wang2021's Fig. 6: per setup each region's searches in grey with their mean, then the means together."""
    setups = list({id(one.setup): one.setup for one in fitness}.values())
    regions = sort_regions(one.region for one in fitness)
    size = {"width": 2.5 * (len(regions) + 1) + 0.6, "height": 2.4 * len(setups) + 0.9}
    # Other searches may minimise other things, of other sizes.
    figure, axes = new_figure(len(setups), len(regions) + 1, sharex="row", sharey="row", **size)
    styles, names = styles_for(regions), setup_names(setups)
    for row, setup in enumerate(setups):
        own = {one.region: one for one in fitness if one.setup is setup}
        for column, region in enumerate(regions):
            axes[row, column].set_title(region if row == 0 else "")
            if region in own:
                _draw_searches(axes[row, column], own[region].curves, lines)
                draw_lines(axes[row, column], [_mean_series(own[region])], styles, markers=False)
        last = axes[row, len(regions)]
        draw_lines(last, [_mean_series(one) for one in own.values()], styles, markers=False)
        last.set_title("means" if row == 0 else "")
        axes[row, 0].set_ylabel(_folded(names[row], 30) if len(setups) > 1 else "")
        show_counts(axes[row, 0], "x")
    for each in axes[-1]:
        each.set_xlabel("generation")
    figure.supylabel("best fitness", fontsize=9)
    show_legend(figure, max((row[-1] for row in axes), key=lambda one: len(one.lines)))
    return figure


def _draw_searches(axes: Axes, curves: Sequence[Curve], lines: int) -> None:
    """Draw up to ``lines`` searches in grey, evenly chosen from all."""
    for place in np.unique(np.linspace(0, len(curves) - 1, min(lines, len(curves))).round().astype(int)).tolist():
        generations = np.arange(1, len(curves[place]) + 1)
        axes.plot(generations, curves[place], color="#B4B4B4", linewidth=0.7, zorder=1)
        axes.plot(generations[-1:], curves[place][-1:], ".", color="#9A9A9A", markersize=2.5, zorder=1)


def _mean_series(one: FitnessCurves) -> Series:
    mean = one.mean
    return Series(one.region, np.arange(1, len(mean.mean) + 1), mean.mean, mean.low, mean.high)


def _draw_borders(found: Sequence[Border]) -> Figure:
    """Draw success by how far the border was moved: a chart per search and goal, a line per region."""
    groups: dict[tuple[int, Goal], list[Border]] = {}
    for one in found:
        groups.setdefault((id(one.setup), one.goal), []).append(one)
    setups = [group[0].setup for group in groups.values()]
    named = zip(setup_names(setups), groups, strict=True)
    panels = _Panels([f"{name}, {goal}" for name, (_, goal) in named], 3.6, 2.9)
    styles = styles_for(sort_regions(one.region for one in found))
    for axes, group in zip(panels.axes, groups.values(), strict=True):
        draw_lines(axes, list(_border_series(group)), styles)
        axes.axvline(0, color=FAINT, zorder=0)
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        show_percent(axes)
    return panels.finish("pixels that the foreground's border was moved outwards", "attacked images that succeed")


def _border_series(group: Sequence[Border]) -> Iterator[Series]:
    for region in sort_regions(one.region for one in group):
        own = [one for one in group if one.region == region]
        yield _series(region, [one.offset for one in own], [one.success for one in own])
