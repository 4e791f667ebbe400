"""Does what fools one model fool another: success and accuracy of target models on attacked images.

The model that an attack was made on is the substitute, the one that is tested the target (qian2021, §IV-E).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pixelsem.metrics.intervals import Rate, rate, rate_by_cluster
from pixelsem.metrics.success import Image


@dataclass(frozen=True)
class Look:
    """What a target model made of one search's images.

    :ivar image: which image it is of; several targets of one image are no independent trials.
    :ivar right: is the target model right on the clean image?
    :ivar fooled: did the attacked image fool the substitute?
    :ivar hit: is the attacked image a success against the target model (another class than the label, or the
        attack's target)? None where a failure against the substitute was not kept.
    :ivar correct: is the target model right on the attacked image? None where none was kept.
    """

    image: Image
    right: bool
    fooled: bool
    hit: bool | None
    correct: bool | None


@dataclass(frozen=True)
class Transfer:
    """One substitute, attack, region and goal against one target model. None where nothing counts.

    :ivar natural: clean images on which the target model is right, of all that were attacked.
    :ivar success: hits, of the attacked images that fooled the substitute and on whose clean version the target is
        right.
    :ivar accuracy: of the same images, those on which the target model is still right.
    :ivar of_attacked: hits, of all searches on whose clean image the target is right (the papers' count).
    :ivar accuracy_of_attacked: the target model's accuracy by the same count.
    :ivar not_kept: searches among them whose image was not kept: they count as failures, so that ``of_attacked`` is
        a lower bound and ``accuracy_of_attacked`` an upper one.
    """

    natural: Rate | None
    success: Rate | None
    accuracy: Rate | None
    of_attacked: Rate | None
    accuracy_of_attacked: Rate | None
    not_kept: int


def transfer(looks: Sequence[Look], confidence: float = 0.95) -> Transfer:
    """Count ``looks`` of the searches that ran; intervals at level ``confidence``, by images."""
    right = [look for look in looks if look.right]
    fooled = [look for look in right if look.fooled]
    distinct = {look.image: look.right for look in looks}
    return Transfer(
        natural=rate(sum(distinct.values()), len(distinct), confidence),
        success=rate_by_cluster(((look.image, look.hit is True) for look in fooled), confidence),
        accuracy=rate_by_cluster(((look.image, look.correct is True) for look in fooled), confidence),
        of_attacked=rate_by_cluster(((look.image, look.hit is True) for look in right), confidence),
        accuracy_of_attacked=rate_by_cluster(((look.image, look.correct is not False) for look in right), confidence),
        not_kept=sum(look.hit is None for look in right),
    )
