"""How well attacks survive image transforms (dong2020, §4.2: Figs. 4–6, Tables 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pixelsem.metrics.intervals import Rate, rate_by_cluster
from pixelsem.metrics.success import Image


@dataclass(frozen=True)
class Tried:
    """One search whose images went through a defence.

    :ivar image: which image it was on.
    :ivar before: whether it succeeded on the model that it attacked.
    :ivar right: whether the model gets the clean image right after the defence.
    :ivar after: whether its image is a success after the defence; False where none was kept.
    """

    image: Image
    before: bool
    right: bool
    after: bool


@dataclass(frozen=True)
class Survival:
    """What a defence leaves of an attack. None where nothing is counted; intervals are by image.

    :ivar right: of all attacked, what the model gets right after the defence alone: the only ones that count below.
    :ivar before: success on the attacked model, over these.
    :ivar after: success after the defence, over these: the grey-box success rate of dong2020.
    :ivar survived: success after the defence, over those of these that were a success before.
    """

    right: Rate | None
    before: Rate | None
    after: Rate | None
    survived: Rate | None


def survival(tried: Sequence[Tried], confidence: float = 0.95) -> Survival:
    """Count searches after a defence.

    Images that the defence alone makes the model get wrong are left out, so that a misclassification is the attack's
    doing (dong2020, §4.2: "robust images", correct after the processing).
    """
    robust = [one for one in tried if one.right]
    return Survival(
        right=rate_by_cluster(((one.image, one.right) for one in tried), confidence),
        before=rate_by_cluster(((one.image, one.before) for one in robust), confidence),
        after=rate_by_cluster(((one.image, one.after) for one in robust), confidence),
        survived=rate_by_cluster(((one.image, one.after) for one in robust if one.before), confidence),
    )


def right_everywhere(rows: Iterable[Sequence[Tried]]) -> set[Image]:
    """Return the images that were attacked in every row and are right after the defence of every one."""
    sets = [{one.image for one in tried if one.right} for tried in rows]
    return set.intersection(*sets) if sets else set()


def _pooled(
    name: str, delta: int, attack: str, values: tuple[float, float, float]
) -> dict[tuple[str, int, str], float]:
    return {(attack, delta, f"{name}:kernel={kernel}"): value for kernel, value in zip((3, 5, 7), values, strict=True)}


#: dong2020's success rates in % (Inception-v3 on ImageNet), by attack, δ and defence: Tables 3 and 4.
DONG2020 = {
    ("i-fgm", 4, "resize:gamma=2"): 46.05,
    ("sai-fgm", 4, "resize:gamma=2"): 82.17,
    ("i-fgm", 4, "jpeg:quality=55"): 68.40,
    ("sai-fgm", 4, "jpeg:quality=55"): 91.40,
    ("i-fgm", 4, "tvm:weight=0.03"): 44.60,
    ("sai-fgm", 4, "tvm:weight=0.03"): 82.00,
    **_pooled("avg-pool", 4, "i-fgm", (73.67, 20.55, 7.07)),
    **_pooled("avg-pool", 4, "sai-fgm", (93.27, 65.14, 36.91)),
    **_pooled("avg-pool", 8, "i-fgm", (85.94, 31.21, 11.47)),
    **_pooled("avg-pool", 8, "sai-fgm", (97.44, 79.96, 58.03)),
    **_pooled("avg-pool", 16, "i-fgm", (95.13, 46.02, 20.36)),
    **_pooled("avg-pool", 16, "sai-fgm", (99.57, 91.48, 77.35)),
    **_pooled("max-pool", 4, "i-fgm", (41.45, 16.67, 13.47)),
    **_pooled("max-pool", 4, "sai-fgm", (70.37, 39.20, 34.67)),
    **_pooled("max-pool", 8, "i-fgm", (54.79, 27.29, 20.39)),
    **_pooled("max-pool", 8, "sai-fgm", (85.10, 61.64, 55.73)),
    **_pooled("max-pool", 16, "i-fgm", (68.36, 37.06, 30.38)),
    **_pooled("max-pool", 16, "sai-fgm", (93.85, 83.29, 79.82)),
}
