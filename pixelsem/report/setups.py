"""What all tables of attacks have in common: the columns that say which setup and region a row is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pixelsem.metrics.setups import Setup
from pixelsem.report.tables import Cell, Column

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


def describe(setup: Setup, *, without: Sequence[str] = ()) -> list[Cell]:
    """Return the cells of :data:`SETUP`; the variant leaves out the options ``without``, which a row is not about."""
    left_out = {name.replace("_", "-") for name in without}
    parts = [part for part in setup.variant.split(", ") if part.partition("=")[0] not in left_out]
    return [setup.network, setup.attack, setup.pixels, setup.constraint, ", ".join(parts) or None]


def describe_search(setup: Setup, region: str, goal: str) -> list[Cell]:
    """Return the cells of :data:`SEARCH`; as it has no constraint, the variant says one that is not the usual."""
    return [setup.network, setup.attack, setup.pixels, setup.details or None, region, goal]


def each_region(setups: Sequence[Setup]) -> Iterator[tuple[Setup, str]]:
    """Yield every setup with every region that it has records of."""
    for setup in setups:
        for region in setup.regions:
            yield setup, region
