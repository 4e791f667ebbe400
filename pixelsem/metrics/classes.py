"""Which classes images were turned into (wang2021, Figs. 3–5; su2017's number of target classes)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pixelsem.metrics.intervals import Rate, rate
from pixelsem.metrics.success import Goal, attacked, select, successes_by_image
from pixelsem.records import AttackRecord


def target_classes(records: Iterable[AttackRecord], region: str, confidence: float = 0.95) -> list[Rate]:
    """Return for n = 0, 1, … the share of images that were turned into exactly n target classes (wang2021, Fig. 3).

    The last n is the greatest number of targets that an image was tried for. Empty without targeted searches.
    """
    by_image = successes_by_image(attacked(select(records, "targeted", region)))
    reached = Counter(hits for hits, _ in by_image.values())
    most = max((trials for _, trials in by_image.values()), default=-1)
    found = [rate(reached[number], len(by_image), confidence) for number in range(most + 1)]
    return [share for share in found if share is not None]


@dataclass(frozen=True)
class ClassPairs:
    """How often an attack led from one class to another (wang2021, Figs. 4 and 5), by (original, target) class.

    :ivar hits: successes; untargeted, the target is the class that the image was taken for.
    :ivar tried: searches that could have led there: those of the pair itself or, untargeted, all of the original
        class.
    """

    hits: Mapping[tuple[str, str], int]
    tried: Mapping[tuple[str, str], int]


def class_pairs(records: Iterable[AttackRecord], region: str, goal: Goal) -> ClassPairs:
    """Count the successes of one goal and region by original and target class; pairs never reached count 0."""
    searches = attacked(select(records, goal, region))
    hits = Counter((r.label, r.target or r.after.class_) for r in searches if r.success and r.after is not None)
    if goal == "targeted":
        tried = Counter((r.label, r.target or "") for r in searches)
    else:
        origins = Counter(r.label for r in searches)
        targets = {target for _, target in hits}
        tried = Counter({(o, t): count for o, count in origins.items() for t in targets if o != t})
    return ClassPairs({pair: hits[pair] for pair in tried}, dict(tried))


def class_names(records: Iterable[AttackRecord], most: int) -> list[str]:
    """Return the classes that records tell of, in order; all of them, or those of successes where they are > ``most``.

    Of more than ``most`` classes in successes, those that occur most often.
    """
    records = list(records)
    known = {name for r in records for name in (r.label, r.target, *(name for name, _ in r.before.top5)) if name}
    known |= {r.after.class_ for r in records if r.after is not None}
    if len(known) <= most:
        return sort_classes(known)
    uses = Counter(n for r in records if r.success and r.after is not None for n in (r.label, r.after.class_))
    return sort_classes(name for name, _ in sorted(uses.items(), key=lambda pair: (-pair[1], pair[0]))[:most])


def sort_classes(names: Iterable[str]) -> list[str]:
    """Return distinct classes by name, numbers by value and before words."""
    return sorted(set(names), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
