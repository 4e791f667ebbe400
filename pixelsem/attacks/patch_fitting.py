"""Training of one patch for many images (Brown et al. 2017): the same result whenever it is interrupted."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelsem.attacks.base import is_hit
from pixelsem.attacks.carlini_wagner import Adam
from pixelsem.attacks.patches import goal_log_odds
from pixelsem.attacks.placement import Placement, find_places, patch_mask
from pixelsem.attacks.settings_patches import PatchFitSettings
from pixelsem.errors import InputError, StageError
from pixelsem.files import one_line, write_atomically
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.records import PatchRecord

_ROUND = 25  # steps to a record and a checkpoint


@dataclass(frozen=True)
class Examples:
    """N images to train a patch on, on the CPU.

    :ivar images: uint8 [N, 3, H, W].
    :ivar labels: int64 [N], the class to get away from.
    :ivar targets: int64 [N], the class to reach, -1 where any other will do.
    :ivar regions: bool [N, H, W], where the patch may change pixels; none empty.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    regions: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class PatchTraining:
    """A patch while it is trained.

    :ivar content: float32 [3, h, w] in [0, 1].
    :ivar mask: bool [h, w], the pixels that belong to it, on the CPU.
    """

    content: Tensor
    mask: Tensor

    @classmethod
    def start(cls, settings: PatchFitSettings, height: int, width: int, device: torch.device) -> PatchTraining:
        """Make a grey patch for images of height × width."""
        mask = patch_mask(settings.share, settings.shape, height, width)
        return cls(torch.full((3, *mask.shape), 0.5, device=device), mask)

    def pixels(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the patch on 8 bits, uint8 [h, w, 4]; opaque where it has pixels, else transparent."""
        colours = (self.content * 255).round().to(torch.uint8).cpu()
        opacity = self.mask.to(torch.uint8)[None] * 255
        layer: np.ndarray[Any, np.dtype[np.uint8]] = torch.cat([colours, opacity]).permute(1, 2, 0).numpy()
        return layer


def fit_patch(
    patch: PatchTraining,
    examples: Examples,
    evaluator: Evaluator,
    settings: PatchFitSettings,
    seed: int,
    checkpoint: Path,
    identity: str,
) -> Iterator[PatchRecord | float]:
    """Train ``patch`` in place; yield a record every 25 steps and at the end, and the share done in between.

    Every step draws images and a place in each of them, pastes the patch, cut to the regions, and lets Adam minimise
    the mean of −log of the probability that Brown et al. maximise (§2): that of the target, or of any class but the
    label. After every record the state is written to ``checkpoint`` (atomically); where that file exists, its
    records are yielded and training goes on from there. The draws of a step depend on (seed, step) alone. Raises
    :class:`StageError` for a checkpoint of another ``identity``, :class:`InputError` for a file that is none.
    """
    run = _Run(patch, examples, evaluator, settings, seed)
    log = run.load(checkpoint, identity) if checkpoint.exists() else []
    yield from log
    start = log[-1].step if log else 0
    since = time.perf_counter()
    for step in range(start, settings.steps):
        run.step(step)
        done = step + 1
        if done % _ROUND == 0 or done == settings.steps:
            log.append(PatchRecord(done, *run.take_means(), time.perf_counter() - since))
            since = time.perf_counter()
            run.save(checkpoint, identity, log)
            yield log[-1]
        else:
            yield done / settings.steps


class _Run:
    """Everything that changes during training."""

    def __init__(
        self, patch: PatchTraining, examples: Examples, evaluator: Evaluator, settings: PatchFitSettings, seed: int
    ) -> None:
        self._patch, self._examples, self._evaluator = patch, examples, evaluator
        self._settings, self._seed = settings, seed
        self._adam = Adam(patch.content, settings.lr)
        self._losses: list[Tensor] = []
        self._hits: list[Tensor] = []

    def step(self, step: int) -> None:
        """Take one step."""
        examples, device, patch = self._examples, self._evaluator.device, self._patch
        draws = np.random.Generator(np.random.Philox(key=[self._seed, step]))
        count = min(self._settings.images_per_step, len(examples))
        chosen = torch.from_numpy(draws.choice(len(examples), count, replace=False))
        labels, targets = examples.labels[chosen].to(device), examples.targets[chosen].to(device)
        regions, mask = examples.regions[chosen].to(device), patch.mask.to(device)
        corners = find_places(regions, mask, self._settings.place, torch.from_numpy(draws.random(count)).to(device))
        placement = Placement(examples.images[chosen].to(device).float() / 255, regions, mask, corners)

        def loss(logits: Tensor, index: Tensor) -> Tensor:
            # −log p = log(1 + (1 − p)/p)
            return F.softplus(goal_log_odds(logits, labels[index], targets[index]))

        result = self._evaluator.loss_and_gradient(patch.content.expand(count, -1, -1, -1), loss, placement.paste)
        self._adam.step(result.gradients.mean(0))
        patch.content = self._adam.parameters = self._adam.parameters.clamp(0, 1)
        self._losses.append(result.losses.mean())
        self._hits.append(is_hit(result.logits, labels, targets).float().mean())

    def take_means(self) -> tuple[float, float]:
        """Return the mean loss and share of hits since the last time."""
        means = float(torch.stack(self._losses).mean()), float(torch.stack(self._hits).mean())
        self._losses, self._hits = [], []
        return means

    def save(self, path: Path, identity: str, log: list[PatchRecord]) -> None:
        """Write what training goes on from."""
        records = [msgspec.to_builtins(record) for record in log]
        buffer = io.BytesIO()  # through memory: torch hides the error of a full disk
        torch.save({"identity": identity, "log": records, "adam": self._adam.state()}, buffer)
        with write_atomically(path) as file:
            file.write(buffer.getbuffer())

    def load(self, path: Path, identity: str) -> list[PatchRecord]:
        """Take up the state in ``path``; return the records so far."""
        try:
            state = torch.load(path, map_location=self._evaluator.device, weights_only=True)
            found, adam = state["identity"], state["adam"]
            log = [msgspec.convert(record, PatchRecord) for record in state["log"]]
        except Exception as error:  # damaged archives raise almost anything
            raise InputError(f"{path}: not a checkpoint ({one_line(error)[:80]}); remove it to start anew") from error
        if found != identity:
            raise StageError(f"{path}: belongs to another run; give another folder with -o")
        self._adam.resume(**adam)
        self._patch.content = self._adam.parameters
        return log
