from __future__ import annotations

import colorsys
import itertools
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from pixelsem.report.figures import (
    REGION_STYLES,
    SEQUENTIAL,
    Series,
    draw_bars,
    draw_heat_map,
    draw_lines,
    draw_scale,
    heat_limits,
    new_figure,
    save_figure,
    show_legend,
    show_percent,
    style,
    styles_for,
)


def luma(colour) -> float:
    return float(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)))


def chart(label: str = "original"):
    with style():
        figure, axes = new_figure(2, 2)
        series = [Series(label, [0, 1, 2], [0.1, 0.4, 0.5], [0, 0.2, 0.3], [0.2, 0.6, 0.7])]
        draw_lines(axes[0, 0], series)
        draw_lines(axes[0, 1], series, steps=True, markers=False)
        draw_bars(axes[1, 0], ["a", "b", "c"], series)
        image = draw_heat_map(axes[1, 1], [[1, np.nan], [0, 4]], ["cat", "dog"], ["cat", "dog"])
        draw_scale(figure, image, [axes[1, 1]], "images")
        show_percent(axes[0, 0])
        show_legend(figure, axes[0, 0])
    return figure, axes


def test_every_format_is_written_and_equal_figures_give_equal_files(tmp_path):
    first = save_figure(chart()[0], tmp_path / "one.x", ["png", "svg", "pdf"])
    second = save_figure(chart()[0], tmp_path / "two", ["png", "svg", "pdf"])
    assert [path.name for path in first] == ["one.x.png", "one.x.svg", "one.x.pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert b"<dc:date>" not in first[1].read_bytes()
    assert save_figure(chart()[0], tmp_path / "three.svg") == [tmp_path / "three.svg"]
    assert (tmp_path / "three.svg").read_bytes() == first[1].read_bytes()
    ElementTree.parse(first[1])


def test_a_png_has_the_size_asked_for(tmp_path):
    with style():
        figure, _ = new_figure(width=2.5, height=1.5)
    (path,) = save_figure(figure, tmp_path / "figure", ["png"])
    assert Image.open(path).size == (400, 240)


def test_unknown_formats_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="not gif"):
        save_figure(chart()[0], tmp_path / "figure", ["png", "gif"])
    assert not list(tmp_path.iterdir())


def test_the_users_settings_neither_matter_nor_change(tmp_path):
    expected = save_figure(chart()[0], tmp_path / "plain.svg")[0].read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "red", "svg.hashsalt": None, "savefig.bbox": "tight"}):
        found = save_figure(chart()[0], tmp_path / "other.svg")[0].read_bytes()
        assert matplotlib.rcParams["axes.facecolor"] == "red"
    assert found == expected


def test_text_is_never_a_formula(tmp_path):
    figure, _ = chart(r"$\frac{1$")
    save_figure(figure, tmp_path / "figure.png")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [r"$\frac{1$"]


def test_regions_look_the_same_everywhere_and_differ_in_grey():
    for names in (["foreground"], ["background", "foreground"], ["x", "foreground", "background", "original"]):
        found = styles_for(names)
        assert {name: found[name] for name in names if name in REGION_STYLES} == {
            name: REGION_STYLES[name] for name in names if name in REGION_STYLES
        }
    for one, two in itertools.combinations(REGION_STYLES.values(), 2):
        assert one.dash != two.dash
        assert one.marker != two.marker
        assert one.hatch != two.hatch
    assert abs(luma(REGION_STYLES["foreground"].colour) - luma(REGION_STYLES["background"].colour)) > 0.25


@pytest.mark.parametrize("names", [list("abcdef"), ["original", "foreground", "background", *"abcd"]])
def test_every_series_has_a_style_of_its_own(names):
    found = styles_for(names)
    for attribute in ("colour", "dash", "marker", "hatch"):
        assert len({str(getattr(one, attribute)) for one in found.values()}) == len(names), attribute


def test_lines_bands_and_steps_show_the_values():
    _, axes = chart()
    (line,) = axes[0, 0].lines
    assert line.get_ydata().tolist() == [0.1, 0.4, 0.5]
    (band,) = axes[0, 0].collections
    low, high = band.get_datalim(axes[0, 0].transData).intervaly
    assert (low, high) == (0, 0.7)
    assert axes[0, 1].lines[0].get_drawstyle() == "steps-post"
    assert all(text.get_text().endswith(" %") for text in axes[0, 0].get_yticklabels())


def test_bars_stand_beside_each_other_with_their_intervals():
    with style():
        _, axes = new_figure()
        both = [Series("one", [0, 2], [0.5, 0.25], [0.4, 0.2], [0.8, 0.3]), Series("two", [1], [0.125])]
        draw_bars(axes[0, 0], ["a", "b", "c"], both)
    one, two = [c for c in axes[0, 0].containers if hasattr(c, "patches") and c.patches]
    assert [bar.get_height() for bar in [*one, *two]] == [0.5, 0.25, 0.125]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in [*one, *two]]
    assert np.allclose(centres, [-0.2, 1.8, 1.2])
    whiskers = [segment[:, 1].tolist() for segment in one.errorbar.lines[2][0].get_segments()]
    assert np.allclose(whiskers, [[0.4, 0.8], [0.2, 0.3]])
    assert axes[0, 0].get_xlim() == (-0.5, 2.5)


def test_a_heat_map_numbers_its_cells_and_leaves_out_what_is_missing():
    _, axes = chart()
    cells = {tuple(map(int, text.get_position())): text for text in axes[1, 1].texts}
    assert {place: text.get_text() for place, text in cells.items()} == {(0, 0): "1", (0, 1): "0", (1, 1): "4"}
    assert luma(cells[1, 1].get_color()) > 0.9 > 0.4 > luma(cells[0, 0].get_color())
    image = axes[1, 1].images[0]
    assert image.get_clim() == (0, 4)
    assert image.get_array().mask.tolist() == [[False, True], [False, False]]


def test_large_heat_maps_have_no_numbers():
    names = [str(number) for number in range(25)]
    with style():
        _, axes = new_figure()
        draw_heat_map(axes[0, 0], np.ones((25, 25)), names, names)
    assert not axes[0, 0].texts


@pytest.mark.parametrize(
    ("maps", "limits"),
    [
        ([[[1, 2]], [[5, np.nan]]], (0, 5)),
        ([[[-1, 2]]], (-1, 2)),
        ([[[0, 0]]], (0, 1)),
        ([[[np.nan]]], (0, 1)),
        ([], (0, 1)),
    ],
)
def test_limits_of_heat_maps(maps, limits):
    assert heat_limits(maps) == limits


def test_the_scale_falls_evenly_in_lightness():
    shades = [luma(SEQUENTIAL(level)) for level in np.linspace(0, 1, 64)]
    assert all(later < earlier for earlier, later in itertools.pairwise(shades))
    assert shades[0] == 1
    assert colorsys.rgb_to_hls(*SEQUENTIAL(1.0)[:3])[1] < 0.2


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    from pixelsem.errors import OutputError

    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_figure(chart()[0], Path(tmp_path, "file", "figure.png"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
