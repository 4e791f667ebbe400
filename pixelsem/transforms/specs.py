"""Transforms as text: ``jpeg:q=55``, and lists of strengths: ``q=95:5:-10``, ``k=3/5/7``.

Nothing heavy is imported: the command line checks what is typed before it loads a model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings
from pixelsem.transforms.registry import TRANSFORMS, TransformInfo

#: Strengths in one list: enough for every quality factor.
MAX_VALUES = 200


@dataclass(frozen=True)
class Defense:
    """A transform with its settings."""

    info: TransformInfo
    settings: Settings

    @property
    def strength(self) -> float:
        """The value of the setting that says how strong the transform is."""
        return float(getattr(self.settings, self.info.main))

    @property
    def text(self) -> str:
        """As :func:`parse_defense` takes it: the main setting, and what else is not at its default."""
        fields = [field for field in dataclasses.fields(self.settings) if self._shown(field)]
        fields.sort(key=lambda field: field.name != self.info.main)
        values = ",".join(f"{field.name}={_plain(getattr(self.settings, field.name))}" for field in fields)
        return f"{self.info.name}:{values}"

    @property
    def others(self) -> str:
        """As :attr:`text` without the main setting: what is the same along a curve over its strengths."""
        fields = [field for field in dataclasses.fields(self.settings) if field.name != self.info.main]
        shown = [f"{f.name}={_plain(getattr(self.settings, f.name))}" for f in fields if self._shown(f)]
        return ":".join([self.info.name, *([",".join(shown)] if shown else [])])

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data: all that can change what comes out."""
        return {"transform": self.info.name, "settings": self.settings.to_dict()}

    def _shown(self, field: dataclasses.Field[Any]) -> bool:
        return field.name == self.info.main or getattr(self.settings, field.name) != field.default


def parse_defense(text: str) -> Defense:
    """Read one transform: its name, then settings by name or by the beginning of a name: ``tvm:drop=0.3,weight=0.1``.

    Raises :class:`PixelsemError` for what is no such thing, or out of range.
    """
    found = parse_defenses(text)
    if len(found) > 1:
        raise PixelsemError(f"--defense: {text!r} stands for {len(found)} strengths; one is needed here")
    return found[0]


def parse_defenses(text: str) -> list[Defense]:
    """Read one transform whose settings may be lists (see :func:`parse_values`): one :class:`Defense` per value.

    At most one setting is a list. Raises :class:`PixelsemError`.
    """
    name, _, rest = text.strip().partition(":")
    if name not in TRANSFORMS:
        raise PixelsemError(f"--defense: {name!r} is no transform; there are {', '.join(TRANSFORMS)}")
    info = TRANSFORMS[name]
    lists: dict[str, list[Any]] = {}
    for part in filter(None, rest.split(",")):
        key, values = parse_values(info.settings, part, f"--defense {text}")
        if key in lists:
            raise PixelsemError(f"--defense {text}: {key} is given twice")
        lists[key] = values
    longer = [key for key, values in lists.items() if len(values) > 1]
    if len(longer) > 1:
        raise PixelsemError(f"--defense {text}: {longer[0]} and {longer[1]} are both lists; one of them may be")
    swept = longer[0] if longer else None
    fixed = {key: values[0] for key, values in lists.items() if key != swept}
    choices = [{swept: value} for value in lists[swept]] if swept else [{}]
    return [Defense(info, _make(info, fixed | choice, text)) for choice in choices]


def _make(info: TransformInfo, values: dict[str, Any], text: str) -> Settings:
    try:
        return info.settings.from_dict(values)
    except PixelsemError as error:
        raise PixelsemError(f"--defense {text}: {error}") from error


def parse_values(settings: type[Settings], text: str, where: str) -> tuple[str, list[Any]]:
    """Read ``SETTING=VALUES``; return the setting's whole name and its values.

    ``VALUES`` is one, or several divided by ``/``, or ``FIRST:LAST:STEP`` with both ends (``95:5:-10``). A setting
    may be cut short as long as only one begins like that. Raises :class:`PixelsemError`, which names ``where``.
    """
    key, equals, rest = text.partition("=")
    if not equals or not rest.strip():
        raise PixelsemError(f"{where}: {text!r} is not SETTING=VALUE")
    name = _whole_name(settings, key.strip(), where)
    hint = get_type_hints(settings)[name]
    if hint in (int, float):
        return name, [_number(value, hint, f"{where}: {name}") for value in _numbers(rest, f"{where}: {name}")]
    return name, rest.strip().split("/")


def _whole_name(settings: type[Settings], key: str, where: str) -> str:
    names = [field.name for field in dataclasses.fields(settings)]
    fitting = [key] if key in names else [name for name in names if key and name.startswith(key)]
    if len(fitting) != 1:
        what = "stands for " + " and ".join(fitting) if fitting else "is no setting"
        raise PixelsemError(f"{where}: {key!r} {what}; there are {', '.join(names)}")
    return fitting[0]


def _numbers(text: str, where: str) -> Sequence[float]:
    """Read ``1``, ``3/5/7`` or ``95:5:-10``."""
    ends = text.split(":")
    try:
        values = [float(part) for part in (ends if len(ends) > 1 else text.split("/"))]
    except ValueError as error:
        raise PixelsemError(f"{where}: {text!r} is not 75, 3/5/7 or 95:5:-10") from error
    if not all(map(math.isfinite, values)):
        raise PixelsemError(f"{where}: {text!r} is not finite")
    if len(ends) == 1:
        return values
    if len(values) != 3 or values[2] == 0 or (values[1] - values[0]) * values[2] < 0:
        raise PixelsemError(f"{where}: {text!r} is not FIRST:LAST:STEP with a step that leads there, like 95:5:-10")
    first, last, step = values
    count = math.floor((last - first) / step + 1e-9) + 1
    if count > MAX_VALUES:
        raise PixelsemError(f"{where}: {text!r} stands for {count} values; at most {MAX_VALUES} are taken")
    return [round(first + number * step, 9) for number in range(count)]


def _number(value: float, kind: type, where: str) -> float | int:
    if kind is float:
        return value
    if value != int(value):
        raise PixelsemError(f"{where}: {value:g} is no whole number")
    return int(value)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
