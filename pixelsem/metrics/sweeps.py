"""Attack setups that differ in one or two options: which ones, and what else tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pixelsem.errors import PixelsemError
from pixelsem.metrics.setups import Setup

#: A value of an option, as a figure's axis takes it.
Value = float | str

#: More differing options than this cannot be shown in one figure.
_AXES = 2


@dataclass(frozen=True)
class Point:
    """Where one setup lies: its values on the axes (``y`` None with one axis), and what else tells it from others."""

    setup: Setup
    x: Value
    y: Value | None
    rest: str


def differing(setups: Sequence[Setup]) -> list[str]:
    """Return the options that differ between setups of one attack on one model, by name.

    Options that only other attacks have, and the seed, are none.
    """
    found: set[str] = set()
    for one in setups:
        for other in setups:
            if (one.attack, one.model) == (other.attack, other.model):
                mine, theirs = _options(one), _options(other)
                found |= {name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)}
    return sorted(found)


def place(setups: Sequence[Setup], x: str | None = None, y: str | None = None) -> tuple[list[Point], str, str | None]:
    """Return where each setup lies on the axes ``x`` and ``y`` (options by name), and the axes.

    What is not given are the options that differ; one that alone is left over becomes ``y``. Raises
    :class:`PixelsemError` where none or more than two differ, or a setup does not have an option that was asked for.
    """
    known = differing(setups)
    rest = [name for name in known if name not in (x, y)]
    if x is None:
        if not rest:
            raise PixelsemError(
                "the stages differ in no option of the search; a sweep needs two values of one at least"
            )
        if len(rest) + (y is not None) > _AXES:
            raise PixelsemError(f"the stages differ in {', '.join(known)}; say which to show, with --x and --y")
        x = rest.pop(0)
    if y is None and len(rest) == 1:
        y = rest.pop()
    for name in filter(None, (x, y)):
        for setup in setups:
            if name not in _options(setup):
                has = ", ".join(sorted(_options(setup)))
                raise PixelsemError(
                    f"--{'x' if name == x else 'y'} {name}: {setup.attack} has no such option; it has {has}"
                )
    seeds = len({setup.seed for setup in setups}) > 1
    return [_point(setup, x, y, rest, seeds) for setup in setups], x, y


def _point(setup: Setup, x: str, y: str | None, rest: Sequence[str], seeds: bool) -> Point:
    options = _options(setup)
    told = [f"{name}={plain(options[name])}" for name in rest if name in options]
    # Beside its options a setup may differ in the model's weights, or in nothing but its stages.
    told += setup.told_but("seed", *options) + ([f"seed={setup.seed}"] if seeds else [])
    return Point(setup, plain(options[x]), None if y is None else plain(options[y]), ", ".join(told))


def _options(setup: Setup) -> dict[str, Any]:
    return setup.options | (setup.region_options or {})


def plain(value: Any) -> Value:
    """Return an option's value as a number or a text; None is the attack's own default."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, list | tuple):
        return ",".join(str(plain(item)) for item in value)
    return "default" if value is None else str(value)


def in_order(values: Sequence[Value]) -> list[Value]:
    """Return the distinct values: numbers ascending, then texts by the alphabet."""
    return sorted(set(values), key=lambda value: (isinstance(value, str), value))
