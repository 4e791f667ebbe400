"""Settings: frozen dataclasses that carry their own help, from which the command line is made.

Nothing heavy is imported here, so that options, help and completions come without torch.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pixelsem.errors import PixelsemError

S = TypeVar("S", bound="Settings")

#: The largest seed of a training: with the epoch in 16 bits it makes one number of 63.
MOST_SEED = 2**47 - 1


def option(default: Any, help: str, *, flag: str | None = None, low: float | None = None,
           high: float | None = None, metavar: str | None = None, env: str | None = None,
           several: bool = False) -> Any:  # fmt: skip
    """Declare one field of a settings dataclass.

    ``flag`` is a short option (``-o``) beside the long one, or the long option's own name; a bool has a
    ``--no-…`` beside it unless its ``flag`` is given. ``low`` and ``high`` bound numbers, ends included;
    ``metavar`` is what the help shows for the value; ``env`` names an environment variable that stands for
    the option. With ``several`` the option may be given repeatedly: the setting is a tuple of its values.
    """
    metadata = {"help": help, "flag": flag, "low": low, "high": high, "metavar": metavar, "env": env}
    metadata |= {"several": several}
    return dataclasses.field(default=default, metadata=metadata)


def option_name(field: str) -> str:
    """Return the long option of a setting, e.g. ``--out-of-range``: what every message calls it."""
    return "--" + field.replace("_", "-")


def parse_float(text: str) -> float:
    """Read a number or the fraction of two: ``0.5``, ``1e-3``, ``4/12``. Raises :class:`ValueError`."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{text!r} is no number, nor a fraction like 4/12") from error


def range_problem(value: float, low: float | None, high: float | None) -> str | None:
    """Say in a few words why a number is not between ``low`` and ``high``, ends included; None where it is."""
    if value != value:
        return "a number expected, not nan"
    if (low is None or value >= low) and (high is None or value <= high):
        return None
    if high is None:
        return f"{value} is not at least {low}"
    return f"{value} is not at most {high}" if low is None else f"{value} is not between {low} and {high}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of every settings dataclass: checks its own values; turns into and comes from plain data.

    Values of another type, out of range or of another number than annotated raise :class:`PixelsemError`.
    An int stands for a float, a list for a tuple and a string for a path.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _coerce(option_name(field.name), getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            _check_range(field, value)
        self.check()

    def check(self) -> None:
        """Raise :class:`PixelsemError` where values contradict each other. Sub-classes extend it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name, tuples as lists, for :meth:`from_dict`. Paths stay paths."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any]) -> S:
        """Build settings from plain data; a key that is no setting raises :class:`PixelsemError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(str(name) for name in values if name not in known)
        if unknown:
            raise PixelsemError(f"unknown setting {unknown[0]!r}; {cls.__name__} has {', '.join(sorted(known))}")
        return cls(**values)


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """Return ``value`` as the annotated type, or raise."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(name, value, next(a for a in arguments if a is not type(None)))
    if origin is Literal:
        if value not in arguments:
            raise PixelsemError(f"{name}: {value!r} is not one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        if len(value) != len(arguments) and Ellipsis not in arguments:
            raise PixelsemError(f"{name}: {len(arguments)} values expected, {len(value)} given")
        item = [arguments[0]] * len(value) if Ellipsis in arguments else arguments
        return tuple(_coerce(name, v, h) for v, h in zip(value, item, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    plain = typing.cast(type, origin or hint)
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise PixelsemError(f"{name}: {plain.__name__} expected, {value!r} given")
    return value


def _check_range(field: dataclasses.Field[Any], value: Any) -> None:
    low, high = field.metadata.get("low"), field.metadata.get("high")
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, int | float) or isinstance(number, bool):
            continue
        problem = range_problem(number, low, high)
        if problem is not None:
            raise PixelsemError(f"{option_name(field.name)}: {problem}")
