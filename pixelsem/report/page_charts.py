"""Small charts drawn as SVG inside a page: they take the page's colours, light or dark, by their classes.

Every chart has a text that says what it shows; names of regions, classes and setups are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pixelsem.metrics.intervals import Rate

#: The class of a series by region: the page's style gives it a colour; others take turns.
_REGIONS = {"original": "whole", "foreground": "front", "background": "back"}
_OTHERS = ("other1", "other2", "other3")

#: A series has a line of its own too, so that it is told apart in grey.
_DASHES = {"whole": "", "front": "", "back": "7 4", "other1": "2 3", "other2": "9 3 2 3", "other3": "4 2"}

_WIDTH = 640


@dataclass(frozen=True)
class Bar:
    """One rate with its interval: ``label`` stands before it, ``region`` gives its colour."""

    label: str
    region: str
    rate: Rate


def rate_chart(groups: Mapping[str, Sequence[Bar]]) -> str:
    """Return marks with intervals on a common scale from 0, one row per bar, below the name of its group."""
    top = _round_up(max(bar.rate.high for bars in groups.values() for bar in bars))
    others = sorted({bar.region for bars in groups.values() for bar in bars} - set(_REGIONS))
    left, right, row = 150, _WIDTH - 84, 32

    def at(share: float) -> float:
        return left + (right - left) * share / top

    parts: list[str] = []
    y = 8
    for name, bars in groups.items():
        if name:
            y += 26
            parts.append(f'<text class="group" x="0" y="{y - 6}">{escape(_shortened(name, 80))}</text>')
        for bar in bars:
            y += row
            rate, kind, middle = bar.rate, _class(bar.region, others), y - 14
            text = f"{100 * rate.value:.1f} %"
            title = f"{bar.label}: {text} ({rate.successes} of {rate.n}), {100 * rate.low:.1f} to {100 * rate.high:.1f}"
            ends = f'x1="{at(rate.low):.1f}" x2="{at(rate.high):.1f}" y1="{middle}" y2="{middle}"'
            parts.append(
                f'<g class="{kind}"><title>{escape(title)}</title>'
                f'<text x="{left - 16}" y="{middle + 4}" text-anchor="end">{escape(_shortened(bar.label, 20))}</text>'
                f'<line class="interval" {ends}/>{_mark(kind, at(rate.value), middle)}'
                f'<text class="value" x="{right + 14}" y="{middle + 5}">{text}</text></g>'
            )
    axis = "".join(
        f'<line class="grid" x1="{at(top * i / 4):.1f}" x2="{at(top * i / 4):.1f}" y1="8" y2="{y + 4}"/>'
        f'<text class="tick" x="{at(top * i / 4):.1f}" y="{y + 20}" text-anchor="middle">{_percent(top * i / 4)}</text>'
        for i in range(5)
    )
    return _svg("Share of attacked images that the attack succeeded on, with intervals", y + 26, axis + "".join(parts))


def _class(region: str, others: Sequence[str]) -> str:
    """Return the class that colours ``region``; regions beside the three take turns in the order of ``others``."""
    return _REGIONS[region] if region in _REGIONS else _OTHERS[others.index(region) % len(_OTHERS)]


def _mark(kind: str, x: float, y: float) -> str:
    """Return the mark of a series, with a shape of its own: square, diamond or disc."""
    if kind == "front":
        return f'<rect class="dot" x="{x - 5:.1f}" y="{y - 5}" width="10" height="10" rx="1.5"/>'
    if kind == "back":
        return f'<path class="dot" d="M{x:.1f} {y - 7}l7 7l-7 7l-7-7z"/>'
    return f'<circle class="dot" cx="{x:.1f}" cy="{y}" r="5.5"/>'


def query_chart(series: Mapping[str, tuple[Sequence[int], int]]) -> str:
    """Return the share of searches that had succeeded within so many queries, one step line per region.

    ``series`` holds by region the queries of its successes, and how many searches there were (at least 1).
    """
    most = max([query for hits, _ in series.values() for query in hits], default=1)
    top = _round_up(max(len(hits) / searches for hits, searches in series.values()))
    left, right, upper, lower = 52, _WIDTH - 110, 14, 226
    others = sorted(set(series) - set(_REGIONS))

    def x(query: float) -> float:
        return left + (right - left) * query / most

    def y(share: float) -> float:
        return lower - (lower - upper) * share / top

    parts = [
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y(top * i / 4):.1f}" y2="{y(top * i / 4):.1f}"/>'
        f'<text class="tick" x="{left - 8}" y="{y(top * i / 4) + 4:.1f}" text-anchor="end">'
        f"{_percent(top * i / 4)}</text>"
        for i in range(5)
    ]
    parts += [
        f'<text class="tick" x="{x(most * i / 4):.1f}" y="{lower + 18}" text-anchor="middle">{most * i / 4:,.0f}</text>'
        for i in range(5)
    ]
    parts.append(f'<text class="tick" x="{(left + right) / 2}" y="{lower + 36}" text-anchor="middle">queries</text>')
    ends = _spread({region: y(len(hits) / searches) for region, (hits, searches) in series.items()}, 15)
    for region, (hits, searches) in series.items():
        kind = _class(region, others)
        steps = "".join(f"H{x(q):.1f}V{y(n / searches):.1f}" for n, q in enumerate(sorted(hits), 1))
        parts.append(
            f'<g class="{kind}">'
            f'<path class="line" stroke-dasharray="{_DASHES[kind]}" d="M{left} {lower}{steps}H{right}"/>'
            f'<text class="name" x="{right + 8}" y="{ends[region] + 4:.1f}">{escape(_shortened(region, 16))}</text></g>'
        )
    return _svg("Share of searches that succeeded within so many queries, by region", lower + 44, "".join(parts))


def flow_chart(classes: Sequence[str], counts: Mapping[tuple[str, str], int]) -> str:
    """Return how often images of one class (down) were taken for another (across), as shaded counts."""
    most = max(counts.values(), default=1)
    side = min(44, (_WIDTH - 180) // max(1, len(classes)))
    left, upper = 110, 84
    parts: list[str] = []
    for i, name in enumerate(classes):
        short = escape(_shortened(name, 13))
        turned = f"translate({left + (i + 0.5) * side + 4:.1f} {upper - 8}) rotate(-45)"
        parts.append(f'<text class="tick" transform="{turned}">{short}</text>')
        down = f'<text class="tick" x="{left - 8}" y="{upper + (i + 0.5) * side + 4:.1f}" text-anchor="end">'
        parts.append(f"{down}{short}</text>")
        for j, other in enumerate(classes):
            cell = _cell(side, name, other, counts.get((name, other), 0), most)
            parts.append(f'<g class="cell" transform="translate({left + j * side} {upper + i * side})">{cell}</g>')
    label = "Successes by the class of the image (rows) and the class it was taken for (columns)"
    return _svg(label, upper + side * len(classes) + 8, "".join(parts))


def _cell(side: int, name: str, other: str, count: int, most: int) -> str:
    share = count / most
    title = f"<title>{escape(name)} taken for {escape(other)}: {count}</title>"
    kind = "same" if name == other else "some" if count else "none"
    shade = f' fill-opacity="{0.15 + 0.85 * share:.2f}"' if count else ""
    box = f'<rect class="{kind}" x="1" y="1" width="{side - 2}" height="{side - 2}" rx="3"{shade}/>'
    if not count:
        return title + box
    return (
        f'{title}{box}<text class="{"on" if share > 0.5 else "off"}" x="{side / 2}" y="{side / 2 + 4}">{count}</text>'
    )


def _svg(label: str, height: float, content: str) -> str:
    about = f'class="chart" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}"'
    return f"<svg {about}>{content}</svg>"


def _round_up(share: float) -> float:
    """Return a round end of a scale from 0 that is at least ``share``."""
    return next((end for end in (0.04, 0.08, 0.2, 0.4, 0.6, 0.8) if end >= share), 1.0)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _spread(places: Mapping[str, float], gap: float) -> dict[str, float]:
    """Move places apart, downwards from the first, until neighbours are ``gap`` from each other."""
    moved: dict[str, float] = {}
    last = float("-inf")
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        last = moved[name] = max(place, last + gap)
    return moved


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
