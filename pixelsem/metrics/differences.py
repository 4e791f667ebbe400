"""What differs between two runs of the same attack, and whether float arithmetic explains it.

The random draws of a search never depend on how candidates were batched, but the last bits of a fitness may;
where two fitness values agree within :data:`TIE`, that may turn a comparison, and from there on the search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pixelsem.records import AttackRecord, Prediction, PredictionAfter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    History = Mapping[str, NDArray[np.generic]]

#: Confidences and fitness values this close may compare either way.
TIE = 1e-5

Cause = Literal["float tie", "unexplained"]
Key = tuple[str, ...]

_PREDICTIONS = ("before", "after")
# Files that older records lack or that were not asked for; their pixels are compared where both have them.
_NOT_COMPARED = (*_PREDICTIONS, "digests", "attempt")
_ASKED, _MADE = {"clean": "clean images", "mask": "masks"}, ("adversarial", "attempt")


@dataclass(frozen=True)
class Difference:
    """One search that came out differently; ``generation`` is where the runs part (1-based), None if unknown."""

    key: Key
    cause: Cause
    reason: str
    generation: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Two runs, search by search."""

    identical: Sequence[Key]
    differences: Sequence[Difference]
    only_first: Sequence[Key]
    only_second: Sequence[Key]

    def of(self, cause: Cause) -> list[Difference]:
        """Return the differences with this cause."""
        return [difference for difference in self.differences if difference.cause == cause]


def compare(
    first: Iterable[AttackRecord],
    second: Iterable[AttackRecord],
    histories: Callable[[AttackRecord, AttackRecord], tuple[History, History] | None],
) -> Comparison:
    """Compare two runs by record key, whatever the order; ``histories`` loads both histories of one search.

    Everything in a record counts, and its images where both runs know their digests; confidences agree within
    :data:`TIE`, and classes closer than that may have swapped their ranks. ``histories`` may return None where there
    are none; a history holds ``accepted`` and ``close``, uint8 [generations − 1, ceil(P / 8)] of packed bits.
    """
    one, two = {record.key: record for record in first}, {record.key: record for record in second}
    shared = [key for key in one if key in two]
    differing = [key for key in shared if not agree(one[key], two[key])]
    return Comparison(
        identical=[key for key in shared if key not in set(differing)],
        differences=[trace(one[key], two[key], histories(one[key], two[key])) for key in differing],
        only_first=[key for key in one if key not in two],
        only_second=[key for key in two if key not in one],
    )


def agree(one: AttackRecord, two: AttackRecord) -> bool:
    """Are two records and their images the same, confidences within :data:`TIE`?"""
    return not _other_pixels(one, two, (*_ASKED, *_MADE)) and _agree_but_for_images(one, two)


def _other_pixels(one: AttackRecord, two: AttackRecord, names: Iterable[str]) -> list[str]:
    """Return which of the files ``names`` are known to have other pixels in one than in two."""
    digests = {name: (one.digests.get(name), two.digests.get(name)) for name in names}
    return [name for name, pair in digests.items() if None not in pair and pair[0] != pair[1]]


def _agree_but_for_images(one: AttackRecord, two: AttackRecord) -> bool:
    fields = [name for name in one.__struct_fields__ if name not in _NOT_COMPARED]
    if any(getattr(one, name) != getattr(two, name) for name in fields):
        return False
    return all(_predictions_agree(getattr(one, name), getattr(two, name)) for name in _PREDICTIONS)


def _predictions_agree(one: Prediction | None, two: Prediction | None) -> bool:
    if one is None or two is None:
        return one is two
    if one.class_ != two.class_ or not _near(one.confidence, two.confidence) or not _tops_agree(one.top5, two.top5):
        return False
    if isinstance(one, PredictionAfter) and isinstance(two, PredictionAfter):
        return _tops_agree(
            [(name, confidence) for name, confidence, _ in one.of_before_top5],
            [(name, confidence) for name, confidence, _ in two.of_before_top5],
            ordered=False,
        )
    return True


def _tops_agree(one: Sequence[tuple[str, float]], two: Sequence[tuple[str, float]], *, ordered: bool = True) -> bool:
    """Compare lists of (class, confidence); a class that only one has must tie with the other's last.

    A rank that differs although every confidence agrees is a swap of classes that tie.
    """
    if len(one) != len(two):
        return False
    if ordered and not all(_near(a, b) for (_, a), (_, b) in zip(one, two, strict=True)):
        return False
    return _covered(dict(one), dict(two)) and _covered(dict(two), dict(one))


def _covered(one: dict[str, float], two: dict[str, float]) -> bool:
    return all(_near(confidence, two.get(name, min(two.values()))) for name, confidence in one.items())


def _near(one: float, two: float) -> bool:
    return abs(one - two) <= TIE


def trace(one: AttackRecord, two: AttackRecord, histories: tuple[History, History] | None) -> Difference:
    """Say why two records of the same search differ; ``histories`` are theirs, None where there are none."""
    made = _trace_start(one, two)
    if made is None and histories is not None:
        made = _trace_histories(one.key, *histories)
    return made or _trace_end(one, two)


def _trace_start(one: AttackRecord, two: AttackRecord) -> Difference | None:
    """Look at what went into the search."""
    for name in _other_pixels(one, two, _ASKED):
        return Difference(one.key, "unexplained", f"the {_ASKED[name]} differ")
    for name in ("seed", "label", "label_source", "region_pixels", "height", "width", "outcome"):
        if getattr(one, name) != getattr(two, name):
            if name in ("label", "outcome") and (_top_tie(one.before) or _top_tie(two.before)):
                return Difference(one.key, "float tie", "the clean image's two best classes tie")
            return Difference(
                one.key, "unexplained", f"{name} differs: {getattr(one, name)!r} and {getattr(two, name)!r}"
            )
    if not _predictions_agree(one.before, two.before):
        if _top_tie(one.before) or _top_tie(two.before):
            return Difference(one.key, "float tie", "the clean image's two best classes tie")
        return Difference(one.key, "unexplained", "the clean image is scored differently")
    return None


def _trace_histories(key: Key, one: History, two: History) -> Difference | None:
    """Find the first generation in which a trial replaced its parent in one run only."""
    try:
        accepted, close = [[_bits(h[name]) for h in (one, two)] for name in ("accepted", "close")]
    except KeyError:
        return None
    if any(array.shape[1] != accepted[0].shape[1] for array in (*accepted, *close)):
        return Difference(key, "unexplained", "the histories are of populations of different size")
    common = min(len(array) for array in (*accepted, *close))
    parted = accepted[0][:common] ^ accepted[1][:common]
    row = next((number for number, bits in enumerate(parted) if bits.any()), None)
    if row is None:
        return None
    # Row 0 is the comparison that makes generation 2 from generation 1.
    generation = row + 2
    if (parted[row] & ~(close[0][row] | close[1][row])).any():
        return Difference(key, "unexplained", "a trial was accepted in one run only, and is no tie", generation)
    return Difference(key, "float tie", "trial and parent tie", generation)


def _bits(array: Any) -> NDArray[np.uint8]:
    import numpy as np

    packed = np.asarray(array)
    if packed.dtype != np.uint8 or packed.ndim != 2:
        raise KeyError("not packed bits")
    return packed


def _trace_end(one: AttackRecord, two: AttackRecord) -> Difference:
    """Look at which candidate was chosen, the searches having gone the same way."""
    if _agree_but_for_images(one, two):
        return Difference(one.key, "unexplained", "the images that were made differ, and nothing else does")
    if one.after is None or two.after is None:
        return Difference(one.key, "unexplained", "only one of the runs has a result")
    if _top_tie(one.after) or _top_tie(two.after):
        return Difference(one.key, "float tie", "the adversarial image's two best classes tie")
    wanted = [_confidence_in(record.after, one.target or one.label) for record in (one, two)]
    # Only of one generation: candidates of two generations were never compared with each other.
    chosen = one.generations == two.generations and one.pixels != two.pixels
    if chosen and wanted[0] is not None and wanted[1] is not None and _near(wanted[0], wanted[1]):
        return Difference(one.key, "float tie", "the two chosen candidates tie")
    return Difference(one.key, "unexplained", "the searches went the same way to different results")


def _confidence_in(prediction: PredictionAfter | None, name: str) -> float | None:
    if prediction is None:
        return None
    known = {cls: confidence for cls, confidence, _ in prediction.of_before_top5} | dict(prediction.top5)
    return known.get(name)


def _top_tie(prediction: Prediction) -> bool:
    return len(prediction.top5) > 1 and _near(prediction.top5[0][1], prediction.top5[1][1])
