from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings, option, option_name


@dataclass(frozen=True)
class Sample(Settings):
    count: int = option(3, "How many.", low=1, high=10)
    rate: float = option(0.5, "How fast.", low=0)
    on: bool = option(False, "Whether.")
    way: Literal["left", "right"] = option("left", "Where.")
    place: Path | None = option(None, "File.")
    span: tuple[float, float] = option((0.5, 1.0), "From, to.", low=0, high=2)
    sizes: tuple[int, ...] = option((1,), "Any number of them.")
    name: str | None = option(None, "Name.")
    most: float | None = option(None, "Limit.", high=1)

    def check(self) -> None:
        if self.span[0] > self.span[1]:
            raise PixelsemError("--span: the wrong way round")


def refusal(**values: Any) -> str:
    with pytest.raises(PixelsemError) as caught:
        Sample(**values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_pass_their_own_checks() -> None:
    assert Sample() == Sample(3, 0.5, False, "left", None, (0.5, 1.0), (1,), None, None)


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Sample().count = 4  # type: ignore[misc]


def test_values_become_what_is_annotated() -> None:
    made = Sample(rate=1, place="a/b", span=[1, 2], sizes=[4, 5, 6])  # type: ignore[arg-type]
    assert (made.rate, made.place, made.span, made.sizes) == (1.0, Path("a/b"), (1.0, 2.0), (4, 5, 6))
    assert type(made.rate) is float
    assert all(type(number) is float for number in made.span)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "--count: 0 is not between 1 and 10"),
        ({"count": 11}, "--count: 11 is not between 1 and 10"),
        ({"count": True}, "--count: int expected, True given"),
        ({"count": 2.0}, "--count: int expected, 2.0 given"),
        ({"count": "3"}, "--count: int expected, '3' given"),
        ({"rate": -0.1}, "--rate: -0.1 is not at least 0"),
        ({"rate": math.nan}, "--rate: a number expected, not nan"),
        ({"rate": True}, "--rate: float expected, True given"),
        ({"most": 1.5}, "--most: 1.5 is not at most 1"),
        ({"on": 1}, "--on: bool expected, 1 given"),
        ({"way": "up"}, "--way: 'up' is not one of left, right"),
        ({"place": 3}, "--place: Path expected, 3 given"),
        ({"span": (1.0,)}, "--span: 2 values expected, 1 given"),
        ({"span": (1.0, 3)}, "--span: 3.0 is not between 0 and 2"),
        ({"span": (1.5, 1.0)}, "--span: the wrong way round"),
        ({"span": 1.0}, "--span: tuple expected, 1.0 given"),
        ({"sizes": (1, "x")}, "--sizes: int expected, 'x' given"),
        ({"name": 5}, "--name: str expected, 5 given"),
        ({"name": None, "count": None}, "--count: int expected, None given"),
    ],
)
def test_wrong_values_are_told_by_option(values: dict[str, Any], message: str) -> None:
    assert refusal(**values) == message


@given(
    st.builds(
        Sample,
        count=st.integers(1, 10),
        rate=st.floats(0, allow_nan=False),
        on=st.booleans(),
        way=st.sampled_from(["left", "right"]),
        place=st.none() | st.just(Path("x")),
        span=st.tuples(st.floats(0, 1), st.floats(1, 2)),
        sizes=st.lists(st.integers()).map(tuple),
        name=st.none() | st.text(),
        most=st.none() | st.floats(-5, 1),
    )
)
def test_plain_data_there_and_back(made: Sample) -> None:
    plain = made.to_dict()
    assert isinstance(plain["span"], list)
    assert Sample.from_dict(plain) == made


def test_unknown_keys_are_errors() -> None:
    with pytest.raises(PixelsemError, match=r"unknown setting 'counts'; Sample has count, most, name, on, place"):
        Sample.from_dict({"count": 1, "counts": 2})


def test_options_are_called_as_on_the_command_line() -> None:
    assert option_name("out_of_range") == "--out-of-range"
