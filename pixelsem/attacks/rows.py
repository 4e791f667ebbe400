"""What white-box attacks go by: searches side by side, one row of every tensor for each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pixelsem.attacks.base import Searches, is_hit
from pixelsem.attacks.fgm import log_odds_against
from pixelsem.fitness.evaluator import Evaluator


class Rows:
    """Searches in lock-step on the evaluator's device.

    :ivar search: int64 [n] on the CPU, which of the searches given each row is about.
    :ivar clean: uint8 [n, 3, H, W], the clean image.
    :ivar region: bool [n, 1, H, W], the pixels that may change.
    :ivar labels: int64 [n], the class attacked away from.
    :ivar targets: int64 [n], the class to reach, -1 where any other will do.
    """

    def __init__(self, searches: Searches, evaluator: Evaluator) -> None:
        device = evaluator.device
        self._evaluator = evaluator
        self.search = torch.arange(len(searches))
        self.clean = searches.images.to(device)[searches.image.to(device)]
        self.region = searches.regions.to(device)[:, None]
        self.labels, self.targets = searches.labels.to(device), searches.targets.to(device)

    def __len__(self) -> int:
        return len(self.search)

    def keep(self, which: Tensor) -> None:
        """Drop every row that bool [n] ``which`` does not mark."""
        self.search = self.search[which.cpu()]
        for name in ("clean", "region", "labels", "targets"):
            setattr(self, name, getattr(self, name)[which])

    def log_odds(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return what an attack makes large, float [k]: log((1 − p)/p) of the label, or log(p/(1 − p)) of the target.

        It grows as the cross-entropy does and its gradient has the same direction, but does not vanish where the
        network is sure. ``logits`` are float [k, classes] of the rows ``index``, int64 [k].
        """
        targets = self.targets[index]
        aimed = targets >= 0
        odds = log_odds_against(logits, torch.where(aimed, targets, self.labels[index]))
        return torch.where(aimed, -odds, odds)

    def cross_entropy(self, log_odds: Tensor) -> Tensor:
        """Return the cross-entropy of the label, or of the target, float [n], given :meth:`log_odds` of all rows."""
        return F.softplus(torch.where(self.targets >= 0, -log_odds, log_odds))

    def hits(self, logits: Tensor) -> Tensor:
        """Return bool [n]: are float [n, classes] ``logits`` of the rows those of a success?"""
        return is_hit(logits, self.labels, self.targets)

    def confirmed(self, images: Tensor, candidates: Tensor) -> Tensor:
        """Return bool [n] on the CPU: which ``candidates``, bool [n], hold in fp32 as uint8 [n, 3, H, W] ``images``."""
        holds = torch.zeros(len(self), dtype=torch.bool)
        looked_at = candidates.nonzero()[:, 0]
        if len(looked_at):
            logits = self._evaluator.confirm(images[looked_at])
            found = is_hit(logits, self.labels[looked_at], self.targets[looked_at])
            holds[looked_at.cpu()] = found.cpu()
        return holds
