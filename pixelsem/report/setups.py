"""What all tables of attacks have in common: the columns that say which setup and region a row is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pixelsem.metrics.bootstrap import Estimate
from pixelsem.metrics.setups import Setup
from pixelsem.metrics.success import Goal
from pixelsem.report.tables import Cell, Column, Kind

SETUP = (
    Column("network", "Network", about=True),
    Column("attack", "Attack", about=True),
    Column("pixels", "Pixels", "count", about=True),
    Column("constraint", "Constraint", about=True),
    Column("variant", "Variant", about=True),
)
REGION = Column("region", "Region", about=True)
GOAL = Column("goal", "Goal", about=True)
#: What a row over searches of every kind of attack is about (a constraint is what few-pixel ones have).
SEARCH = (*(column for column in SETUP if column.key != "constraint"), REGION, GOAL)
GOALS: tuple[Goal, ...] = ("untargeted", "targeted")


def describe(setup: Setup, *, without: Sequence[str] = ()) -> list[Cell]:
    """Return the cells of :data:`SETUP`; the variant leaves out the options ``without``, which a row is not about."""
    parts = [part for part in setup.variant.split(", ") if part.partition("=")[0] not in without]
    return [setup.network, setup.attack, setup.pixels, setup.constraint, ", ".join(parts) or None]


def describe_search(setup: Setup, region: str, goal: str) -> list[Cell]:
    """Return the cells of :data:`SEARCH`."""
    return [setup.network, setup.attack, setup.pixels, setup.variant or None, region, goal]


def each_region(setups: Sequence[Setup]) -> Iterator[tuple[Setup, str]]:
    """Yield every setup with every region that it has records of."""
    for setup in setups:
        for region in setup.regions:
            yield setup, region


def level(confidence: float) -> str:
    """Return what an interval of this level is called."""
    return f"{100 * confidence:g} % intervals"


def with_ends(key: str, title: str, kind: Kind = "number", digits: int = 2) -> tuple[Column, ...]:
    """Return the columns of a number and the ends of its interval, which :func:`ends` fills."""
    names = ((key, title), (f"{key}_low", f"{title} from"), (f"{key}_high", f"{title} to"))
    return tuple(Column(name, text, kind, digits) for name, text in names)


def ends(estimate: Estimate | None) -> list[Cell]:
    """Return the cells of a number and the ends of its interval."""
    return [None, None, None] if estimate is None else [estimate.value, estimate.low, estimate.high]
