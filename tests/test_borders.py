"""Vulnerable pixels by their distance from the border of a region."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pixelsem.metrics.borders import BANDS, by_distance, distances
from pixelsem.report.borders import borders_table, draw_borders


@given(arrays(np.bool_, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_distances_are_to_the_nearest_pixel_outside(region):
    outside = np.argwhere(~region)
    found = distances(region)
    for place in np.ndindex(region.shape):
        nearest = min((float(np.hypot(*(np.array(place) - other))) for other in outside), default=inf)
        assert found[place] == pytest.approx(nearest if region[place] else 0)


def disc(side, radius):
    y, x = np.ogrid[:side, :side]
    return (y - side // 2) ** 2 + (x - side // 2) ** 2 <= radius**2


def test_bands_hold_every_pixel_of_the_region_once():
    region = disc(41, 15)
    bands = by_distance([(("a", ""), region, np.zeros_like(region))])
    assert [(band.low, band.high) for band in bands] == list(BANDS)
    assert sum(band.pixels for band in bands) == region.sum()
    assert {band.share.value for band in bands} == {0}


def test_shares_are_means_over_the_images_that_have_such_pixels():
    """A ring of vulnerable pixels: found in its band alone; images without such pixels do not count."""
    region, ring = disc(41, 15), (distances(disc(41, 15)) > 2) & (distances(disc(41, 15)) <= 4)
    small = disc(41, 1)
    maps = [(("a", ""), region, ring), (("b", ""), region, ring & False), (("c", ""), small, small)]
    shares = {(band.low, band.high): band.share for band in by_distance(maps)}
    assert shares[2, 4].value == pytest.approx(1 / 2)
    assert shares[2, 4].n == 2
    assert shares[0, 1].value == pytest.approx(1 / 3)
    assert shares[0, 1].n == 3
    assert shares[4, 8].value == shares[8, inf].value == 0
    # Targets of one image are no images of their own.
    assert by_distance(maps + maps)[0].share.n == 3


def test_a_region_without_border_does_not_count():
    whole, none = np.ones((5, 5), np.bool_), np.zeros((5, 5), np.bool_)
    assert by_distance([(("a", ""), whole, whole), (("b", ""), none, none)]) == []


def test_the_curve_has_a_panel_per_network():
    bands = by_distance([(("a", ""), disc(41, 15), disc(41, 3)), (("b", ""), disc(41, 9), disc(41, 3))])
    rows = [
        ([name, "corners", None, region, "untargeted"], bands) for name in "xy" for region in ("foreground", "label:2")
    ]
    figure = draw_borders(rows)
    assert [axes.get_title() for axes in figure.axes] == ["x, corners, untargeted", "y, corners, untargeted"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert lines["foreground"].get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert lines["foreground"].get_ydata().tolist() == [band.share.value for band in bands]
    table = borders_table(rows, 0.95)
    assert [row[5] for row in table.rows[:5]] == ["1", "1 to 2", "2 to 4", "4 to 8", "more than 8"]
    assert len(table.rows) == 4 * len(bands)
