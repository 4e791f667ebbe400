"""What attacks say about the question behind them: which part of the image is more fragile, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pixelsem.metrics import success as metrics
from pixelsem.metrics.intervals import Paired, Rate, rate
from pixelsem.metrics.setups import Setup
from pixelsem.metrics.success import GOALS, Goal

_WHERE = {"original": "anywhere in the image", "foreground": "in the foreground", "background": "in the background"}


@dataclass(frozen=True)
class Answer:
    """One setup's answer: a verdict in a few words, the sentences behind it, and the stages they stand on."""

    about: str
    verdict: str
    sentences: Sequence[str]
    stages: Sequence[str]


def answers(setups: Sequence[Setup], confidence: float = 0.95) -> list[Answer]:
    """Return an answer for every setup and goal with searches that ran; ``confidence`` is the intervals' level."""
    return [found for setup in setups for goal in GOALS if (found := _answer(setup, goal, confidence)) is not None]


def region_rates(setup: Setup, goal: Goal, confidence: float = 0.95) -> dict[str, Rate]:
    """Return the rate of success of every region (targeted: images that reached at least one target)."""
    found = {}
    for region in setup.regions:
        hits = metrics.image_success(setup.records, region, goal)
        share = rate(sum(hits.values()), len(hits), confidence)
        if share is not None:
            found[region] = share
    return found


def setup_name(setup: Setup) -> str:
    """Return what a setup is called beside others: network, attack and what tells it apart."""
    pixels = None if setup.pixels is None else f"{setup.pixels} pixel{'s' * (setup.pixels != 1)}"
    attack = setup.attack if pixels is None else f"{setup.attack}, {pixels}"
    constraint = setup.constraint if setup.constraint not in (None, "encode") else None
    return " · ".join(filter(None, [setup.network, attack, constraint, setup.variant]))


def search_name(setup: Setup, goal: Goal) -> str:
    """Return :func:`setup_name`, and the goal where it is not the usual one."""
    return setup_name(setup) + (" · targeted" if goal == "targeted" else "")


def _answer(setup: Setup, goal: Goal, confidence: float) -> Answer | None:
    rates = region_rates(setup, goal, confidence)
    if not rates:
        return None
    about = search_name(setup, goal)
    sides = [metrics.image_success(setup.records, region, goal) for region in ("foreground", "background")]
    pair = metrics.pair(*sides)
    if not pair.n:
        return Answer(about, _alone(setup, rates), list(_each(setup, goal, rates, confidence)), setup.stages)
    sentences = [_compared(setup, goal, pair, confidence), *_whole(setup, rates, confidence), *_areas(setup)]
    return Answer(about, _verdict(pair, confidence), sentences, setup.stages)


def _verdict(pair: Paired, confidence: float) -> str:
    if pair.p_value >= 1 - confidence:
        return "No difference between foreground and background is shown"
    return f"The {'foreground' if pair.difference > 0 else 'background'} is more fragile"


def _alone(setup: Setup, rates: dict[str, Rate]) -> str:
    region, found = max(rates.items(), key=lambda item: item[1].value)
    return f"{setup.network} is fooled {_WHERE.get(region, f'in {region}')} on {_share(found.value)} of the images"


def _each(setup: Setup, goal: Goal, rates: dict[str, Rate], confidence: float) -> Iterator[str]:
    for region, found in rates.items():
        yield f"{_doing(setup, goal)} {_WHERE.get(region, f'in {region}')} on {_described(found, confidence)}."


def _compared(setup: Setup, goal: Goal, pair: Paired, confidence: float) -> str:
    """Say both rates on the same images, their difference and the test."""
    rates = [rate(pair.both + only, pair.n, confidence) for only in (pair.only_first, pair.only_second)]
    front, back = (_described(found, confidence) for found in rates if found is not None)
    low, high = pair.interval(confidence)
    p = "p < 0.001" if pair.p_value < 0.001 else f"p = {pair.p_value:.3f}"
    return (
        f"{_doing(setup, goal)} in the foreground on {front}, in the background on {back} of the same images. "
        f"The difference is {_points(pair.difference)} points ({_points(low)} to {_points(high)}); "
        f"McNemar's exact test: {p}."
    )


def _whole(setup: Setup, rates: dict[str, Rate], confidence: float) -> Iterator[str]:
    if "original" in rates:
        yield f"With every pixel free to change: {_described(rates['original'], confidence)}."


def _areas(setup: Setup) -> Iterator[str]:
    """Say where the comparison is one of large with small."""
    if (setup.region_options or {}).get("match_area"):
        yield "Both regions have the same number of pixels (--match-area)."
        return
    front, back = (metrics.area(setup.records, region) for region in ("foreground", "background"))
    if front is not None and back is not None and abs(front.value - back.value) > 0.02:
        yield (
            f"The foreground is {_share(front.value)} of the image and the background {_share(back.value)}, "
            "on average: an attack with --match-area compares equal areas."
        )


def _doing(setup: Setup, goal: Goal) -> str:
    towards = " to a chosen class" if goal == "targeted" else ""
    if setup.pixels is None:
        return f"{setup.attack} fools {setup.network}{towards}"
    many = setup.pixels != 1
    return f"{setup.pixels} changed pixel{'s' * many} fool{'s' * (not many)} {setup.network}{towards}"


def _described(found: Rate, confidence: float) -> str:
    interval = f"{100 * confidence:g} % interval {100 * found.low:.1f} to {100 * found.high:.1f}"
    return f"{_share(found.value)} ({found.successes} of {found.n}; {interval})"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
