"""Tables and heat maps of transfer: substitutes against target models (dong2020, Table 1; qian2021, Figs. 7–8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from pixelsem.metrics.intervals import Rate
from pixelsem.metrics.transfer import Transfer
from pixelsem.report.setups import SEARCH
from pixelsem.report.tables import Cell, Column, Table, level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What rates are over: the images that fooled the substitute, or all searches.
Over = Literal["written", "attacked"]

_ABOUT = (Column("network", "Substitute", about=True), *SEARCH[1:])


@dataclass(frozen=True)
class TransferRow:
    """One attack on a substitute against one target model.

    :ivar names: network, attack, pixels, variant, region and goal, in this order.
    :ivar target: what the target model is called.
    :ivar white_box: is it the substitute itself?
    """

    names: Sequence[Cell]
    target: str
    white_box: bool
    found: Transfer

    def rate(self, over: Over, *, accuracy: bool) -> Rate | None:
        """Return the success rate, or with ``accuracy`` the target model's accuracy."""
        if over == "written":
            return self.found.accuracy if accuracy else self.found.success
        return self.found.accuracy_of_attacked if accuracy else self.found.of_attacked

    @property
    def substitute(self) -> str:
        """The attacked model."""
        return str(self.names[0])

    @property
    def attack(self) -> str:
        """The attack in a few words, without what is the same for most: the whole image and no target."""
        _, attack, pixels, variant, region, goal = self.names
        parts = [attack, pixels and f"{pixels} px", variant, region if region != "original" else None]
        return " ".join(str(part) for part in [*parts, goal if goal != "untargeted" else None] if part)


def transfer_table(rows: Sequence[TransferRow], confidence: float) -> Table:
    """Return one row per substitute, attack, region, goal and target model."""
    columns = (
        *_ABOUT,
        Column("target", "Target model", about=True),
        Column("box", "Box", about=True),
        Column("natural", "Natural accuracy", "rate"),
        Column("success", "Success", "rate"),
        Column("accuracy", "Accuracy", "rate"),
        Column("of_attacked", "Success of all attacked", "rate"),
        Column("accuracy_of_attacked", "Accuracy of all attacked", "rate"),
    )
    cells: list[list[Cell]] = []
    for row in rows:
        found = row.found
        rates = (found.natural, found.success, found.accuracy, found.of_attacked, found.accuracy_of_attacked)
        cells.append([*row.names, row.target, "white" if row.white_box else "black", *rates])
    notes = [
        "Natural accuracy: the target model on the clean images that were attacked. Success and accuracy: on the "
        "attacked images that fooled the substitute, counting those whose clean image the target model gets right. Of "
        f"all attacked: on those that did not fool it too. Wilson {level(confidence)}, by image.",
        *_bounds(rows),
    ]
    return Table("transfer", "Transfer to target models", columns, cells, notes)


def _bounds(rows: Sequence[TransferRow]) -> list[str]:
    """Say where success of all attacked is a lower bound only."""
    lost = max((row.found.not_kept for row in rows), default=0)
    if not lost:
        return []
    return [
        f"Of up to {lost} searches a row the image was not kept; they count as failures, so that success of all "
        "attacked is a lower bound there."
    ]


def matrix_table(rows: Sequence[TransferRow], over: Over = "written") -> Table:
    """Return dong2020's Table 1: attacks down, target models across, success in %; a star marks the white box."""
    targets = list(dict.fromkeys(row.target for row in rows))
    lines: dict[tuple[Cell, ...], dict[str, str | None]] = {}
    for row in rows:
        lines.setdefault(tuple(row.names), {})[row.target] = _percent(row, over)
    columns = (*_ABOUT, *(Column(f"target_{number}", target) for number, target in enumerate(targets, 1)))
    cells: list[list[Cell]] = [[*names, *(line.get(target) for target in targets)] for names, line in lines.items()]
    counted = {
        "written": "the attacked images that fooled the substitute",
        "attacked": "all attacked images",
    }[over]
    notes = [f"Success rate (%) over {counted}, of those whose clean version the target model gets right; * white box."]
    notes += _bounds(rows) if over == "attacked" else []
    return Table("matrix", "Success against target models (dong2020, Table 1)", columns, cells, notes)


def _percent(row: TransferRow, over: Over) -> str | None:
    rate = row.rate(over, accuracy=False)
    return None if rate is None else f"{100 * rate.value:.2f}{' *' if row.white_box else ''}"


def draw_transfer(rows: Sequence[TransferRow], over: Over = "written", *, accuracy: bool) -> Figure:
    """Draw one heat map per substitute: target models down, attacks across (qian2021, Figs. 7–8).

    ``accuracy`` shows the accuracy of the target models, with that on clean images (natural) before it, as the
    paper does; else their success rate. The white box is framed: all attacks on the network, or, where networks of
    one name stand together, those on the target model itself.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    from pixelsem.report.figures import INK, draw_heat_map, draw_scale, new_figure, style

    targets = list(dict.fromkeys(row.target for row in rows))
    by_substitute: dict[str, list[TransferRow]] = {}
    for row in rows:
        by_substitute.setdefault(row.substitute, []).append(row)
    widest = max(len({row.attack for row in own}) for own in by_substitute.values()) + accuracy
    labels = max(len(name) for name in targets)
    with style():
        width = len(by_substitute) * (0.7 + 0.62 * widest) + 0.075 * labels + 1.2
        height = 1.4 + 0.42 * len(targets) + 0.065 * max(len(row.attack) for row in rows)
        figure, axes = new_figure(1, len(by_substitute), width=width, height=height, sharey=True)
        for place, (substitute, own) in zip(axes[0], by_substitute.items(), strict=True):
            attacks = list(dict.fromkeys(row.attack for row in own))
            columns = ["natural"] * accuracy + attacks
            values = np.full((len(targets), len(columns)), np.nan)
            for row in own:
                line = targets.index(row.target)
                found = row.rate(over, accuracy=accuracy)
                values[line, columns.index(row.attack)] = np.nan if found is None else 100 * found.value
                if accuracy and row.found.natural is not None:
                    values[line, 0] = 100 * row.found.natural.value
            image = draw_heat_map(place, values, targets, columns, limits=(0, 100), text="{:.1f}".format)
            for line, first, count in _white_boxes(own, targets, attacks):
                corner = (first - 0.5 + accuracy, line - 0.5)
                frame = Rectangle(corner, count, 1, fill=False, edgecolor=INK, linewidth=1.4, clip_on=False)
                place.add_patch(frame)
            place.set_title(f"on {substitute}")
        axes[0, 0].set_ylabel("target model")
        what = "accuracy (%)" if accuracy else "success rate (%)"
        draw_scale(figure, image, axes[0], what)
        return figure


def _white_boxes(
    rows: Sequence[TransferRow], targets: Sequence[str], attacks: Sequence[str]
) -> Iterator[tuple[int, int, int]]:
    """Yield target, first attack and number of attacks, side by side, that are white boxes."""
    white = {(row.target, row.attack) for row in rows if row.white_box}
    for line, target in enumerate(targets):
        boxes = [(target, attack) in white for attack in attacks]
        for is_white, run in groupby(range(len(attacks)), boxes.__getitem__):
            if is_white:
                places = list(run)
                yield line, places[0], len(places)
