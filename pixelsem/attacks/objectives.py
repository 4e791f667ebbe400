"""What black-box searches may minimise beside the confidence (:func:`pixelsem.attacks.base.fitness_of`)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def margin_of(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return float32 [C]: how far the label's logit is above the largest other one, or the target's below it.

    Below 0 it is a hit. ``logits`` is [C, classes], ``labels`` and ``targets`` int64 [C] with -1 for no target.
    """
    aimed = targets >= 0
    wanted = torch.where(aimed, targets, labels)[:, None]
    logits = logits.float()
    margin = logits.gather(1, wanted)[:, 0] - logits.scatter(1, wanted, -torch.inf).amax(1)
    return torch.where(aimed, -margin, margin)


def cross_entropy_of(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return float32 [C]: log of the label's confidence, or −log of the target's.

    It orders candidates as the confidence does, also where that is 0 or 1 to the last bit.
    """
    aimed = targets >= 0
    loss = F.cross_entropy(logits.float(), torch.where(aimed, targets, labels), reduction="none")
    return torch.where(aimed, loss, -loss)


def margin_or_cross_entropy_of(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return float32 [C]: the margin where there is no target, else the cross-entropy (Croce et al. 2022)."""
    margin, cross_entropy = margin_of(logits, labels, targets), cross_entropy_of(logits, labels, targets)
    return torch.where(targets >= 0, cross_entropy, margin)
