"""Success after defences: the table and the curves (dong2020, Figs. 4–6, Tables 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pixelsem.metrics.intervals import Rate
from pixelsem.metrics.robustness import DONG2020, Survival
from pixelsem.metrics.setups import Setup
from pixelsem.report.setups import SEARCH, describe_search
from pixelsem.report.tables import Cell, Column, Table, level
from pixelsem.transforms.specs import Defense

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = (
    *SEARCH,
    Column("defense", "Defence"),
    Column("right", "Right after it", "rate"),
    Column("before", "Success before", "rate"),
    Column("after", "Success after", "rate"),
    Column("survived", "Survive", "rate"),
    Column("dong2020", "dong2020", "percent"),
)

_TICKS = 8  # strengths up to which each has its own


@dataclass(frozen=True)
class RobustnessRow:
    """What one defence leaves of one attack, in one region and for one goal.

    :ivar earlier: the defences that the images went through before ``defense``, the first one first.
    """

    setup: Setup
    region: str
    goal: str
    defense: Defense
    found: Survival
    earlier: Sequence[Defense] = ()

    @property
    def attack(self) -> str:
        """The attack with what tells it from the others, for a legend."""
        pixels = None if self.setup.pixels is None else f"{self.setup.pixels} px"
        region = None if self.region == "original" else self.region
        goal = None if self.goal == "untargeted" else self.goal
        return " ".join(filter(None, [self.setup.network, self.setup.attack, pixels, region, goal, self.setup.details]))

    @property
    def defenses(self) -> str:
        """All that the images went through: ``median:kernel=5+jpeg:quality=75``."""
        return name_row([*self.earlier, self.defense])

    @property
    def cells(self) -> list[Cell]:
        """The row of the table."""
        setup, found = self.setup, self.found
        about = describe_search(setup, self.region, self.goal)
        rates: list[Cell] = [found.right, found.before, found.after, found.survived]
        return [*about, self.defenses, *rates, self._published]

    @property
    def _published(self) -> float | None:
        """dong2020's rate, of untargeted attacks on the whole image; None where it has none."""
        if (self.region, self.goal) != ("original", "untargeted"):
            return None
        found = DONG2020.get((self.setup.attack, self.setup.options.get("delta", 0), self.defenses))
        return None if found is None else round(found / 100, 6)


def name_row(defenses: Sequence[Defense]) -> str:
    """Return what defences in a row are called, the first one first: ``median:kernel=5+jpeg:quality=75``."""
    return "+".join(defense.text for defense in defenses)


def robustness_table(rows: Sequence[RobustnessRow], confidence: float, common: int | None = None) -> Table:
    """Return one row per attack and defence; ``common`` is how many images all rows are over, where they are."""
    notes = [
        "Right after it: of the attacked images, those that the model gets right after the defence alone; only these "
        "count to the right of it (dong2020, §4.2).",
        "Success before and after: on the attacked model, and on the attacked image after the defence; a search whose "
        "image was not kept counts as a failure. Survive: success after, of the successes before.",
        f"Shares (count/searches), Wilson {level(confidence)}, by image.",
    ]
    if common is not None:
        notes.append(f"All rows are over the same {common} images.")
    table = Table("robustness", "Attacks after image transforms", _COLUMNS, [row.cells for row in rows], notes).filled()
    if any(column.key == "dong2020" for column in table.columns):
        more = "dong2020: its Tables 3 and 4, Inception-v3 on 2,000 ImageNet images."
        table = Table(table.name, table.title, table.columns, table.rows, [*notes, more])
    return table


def draw_robustness(rows: Sequence[RobustnessRow]) -> Figure:
    """Draw success after the defence against its strength, a panel per transform and a line per attack.

    Transforms with one strength make no curve and are left out, as are several in a row.
    """
    from pixelsem.report.figures import Series, draw_lines, new_figure, show_legend, show_percent, style, styles_for

    curves = curves_of(rows)
    attacks = list(dict.fromkeys(row.attack for row in rows))
    across = min(3, len(curves))
    down = -(-len(curves) // across)
    with style():
        figure, axes = new_figure(down, across, width=max(4.4, 3.2 * across), height=0.5 + 2.6 * down, sharey=True)
        looks = styles_for(attacks)
        places: list[Axes] = list(axes.ravel())
        for place, (name, own) in zip(places, curves.items(), strict=False):
            series = []
            for attack in attacks:
                line = sorted((row for row in own if row.attack == attack), key=lambda row: row.defense.strength)
                low, middle, high = zip(*(_ends(row.found.after) for row in line), strict=True) if line else ((),) * 3
                series.append(Series(attack, [row.defense.strength for row in line], middle, low, high))
            draw_lines(place, series, looks)
            place.set_title(name)
            place.set_xlabel(own[0].defense.info.main)
            strengths = sorted({row.defense.strength for row in own})
            if len(strengths) <= _TICKS:
                place.set_xticks(strengths)
            place.set_ylim(0, 1.02)
            show_percent(place)
        for place in places[len(curves) :]:
            place.set_visible(False)
        for row_of_axes in axes:
            row_of_axes[0].set_ylabel("success after the defence")
        show_legend(figure, places[0])
    return figure


def curves_of(rows: Sequence[RobustnessRow]) -> dict[str, list[RobustnessRow]]:
    """Return the rows by transform, those of several strengths only; not those of several transforms in a row."""
    by_name: dict[str, list[RobustnessRow]] = {}
    for row in (row for row in rows if not row.earlier):
        by_name.setdefault(row.defense.others, []).append(row)
    return {name: own for name, own in by_name.items() if len({row.defense.strength for row in own}) > 1}


def _ends(rate: Rate | None) -> tuple[float, float, float]:
    nothing = float("nan")
    return (nothing, nothing, nothing) if rate is None else (rate.low, rate.value, rate.high)
