"""What a classifier is attacked with while it is trained: whole batches, on one device, without leaving it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pixelsem.attacks.base import fitness_of
from pixelsem.attacks.evolution import Evolution
from pixelsem.attacks.few_pixel import GENES, PixelCoding
from pixelsem.attacks.pgd import LInfBall
from pixelsem.attacks.settings import EvolutionSettings
from pixelsem.defenses.settings import TrainSettings

T = TypeVar("T")

#: float [N, 3, H, W] images in [0, 1] to float32 [N, classes]; differentiable.
Logits = Callable[[Tensor], Tensor]

#: Candidates that go through the network together, in pixels of all of them.
_CPU_VALUES, _GPU_VALUES = 2**20, 2**24


class Adversary(Protocol):
    """Changes images so that the classifier errs."""

    def __call__(self, logits: Logits, images: Tensor, labels: Tensor, regions: Tensor, seed: int) -> Tensor:
        """Return changed images, float32 [N, 3, H, W] in units of 0 to 255.

        ``images`` is uint8 [N, 3, H, W], ``labels`` int64 [N] the classes to lead away from, ``regions`` bool
        [N, H, W] the pixels that may change (none: the image stays). All that is drawn depends on ``seed`` alone.
        """


class SignAscent:
    """Steps of ``stride`` along the sign of the gradient of the cross-entropy, within ``radius`` of every value.

    Each starts anywhere in the ball, drawn uniformly. One step of 1.25 radius is what "fast" training takes (Wong et
    al. 2020, Algorithm 3), more and smaller ones are PGD (Madry et al. 2018, §2.1). Both are in units of 0 to 255.
    What comes out is not rounded, and no value of it is further than ``radius`` from the image or outside 0 to 255.

    The network runs as it is: in training mode, batches are normalised by their own statistics (which also move the
    running ones) and dropout is drawn, as in the training step that follows. ``scale`` multiplies the loss where its
    gradient would vanish in fp16.
    """

    def __init__(
        self, radius: float, stride: float, steps: int, scale: Callable[[Tensor], Tensor] = lambda loss: loss
    ) -> None:
        self._radius, self._stride, self._steps, self._scale = radius, stride, steps, scale

    def __call__(self, logits: Logits, images: Tensor, labels: Tensor, regions: Tensor, seed: int) -> Tensor:
        """Return changed images; see :class:`Adversary`."""
        ball = LInfBall(images, regions[:, None], self._radius)
        generator = torch.Generator(images.device).manual_seed(seed)
        noise = torch.rand(images.shape, generator=generator, device=images.device)
        change = ball.project(self._radius * (2 * noise - 1))
        for _ in range(self._steps):
            x = ((images + change) / 255).contiguous(memory_format=torch.channels_last).requires_grad_()
            loss = self._scale(F.cross_entropy(logits(x), labels, reduction="sum"))
            (gradient,) = torch.autograd.grad(loss, x)
            # An overflow of fp16 leaves a value where it is.
            change = ball.project(change + self._stride * ball.direction(gradient.nan_to_num(0.0)))
        return images + change


class FewPixels:
    """Differential evolution over a few pixels: the best of some generations, hit or not (su2017, wang2021 §III-D).

    All images are searched in lock-step, for the lowest confidence of their label. Of few generations the greedy
    best/1 makes most. Candidates differ in their image alone, so the network must be in evaluation mode: what is
    found for an image does then not depend on the others.
    """

    def __init__(self, pixels: int, population: int, generations: int) -> None:
        self._pixels = pixels
        self._settings = EvolutionSettings(population=population, generations=generations, strategy="best1bin")

    @torch.no_grad()
    def __call__(self, logits: Logits, images: Tensor, labels: Tensor, regions: Tensor, seed: int) -> Tensor:
        """Return changed images; see :class:`Adversary`."""
        changed = images.float()
        open_ = regions.flatten(1).any(1).nonzero()[:, 0]
        if not len(open_):
            return changed
        own, truth = images[open_], labels[open_]
        index = torch.arange(len(own), device=images.device)
        coding = PixelCoding(own, index, regions[open_], "encode")
        search = Evolution(_generators(seed, len(own)), GENES * self._pixels, self._settings, device=images.device)
        for _ in range(self._settings.generations):
            search.tell(self._fitness(logits, coding, own, truth, search.ask()))
        genes, _ = search.best()
        changed[open_] = coding.edits(genes[:, None, :]).render(own).float()
        return changed

    def _fitness(self, logits: Logits, coding: PixelCoding, images: Tensor, labels: Tensor, genes: Tensor) -> Tensor:
        """Return the label's confidence, float32 [n, P], of the candidates that ``genes`` [n, P, D] stand for."""
        edits = coding.edits(genes)
        values = _GPU_VALUES if images.device.type == "cuda" else _CPU_VALUES
        size = max(1, values // images[0, 0].numel())
        parts = []
        for start in range(0, len(edits), size):
            part = edits[start : start + size]
            x = (part.render(images).float() / 255).contiguous(memory_format=torch.channels_last)
            target = torch.full_like(part.image, -1)
            parts.append(fitness_of(logits(x), labels[part.image], target))
        return torch.cat(parts).view(genes.shape[:2])


def training_adversary(
    settings: TrainSettings, scale: Callable[[Tensor], Tensor] = lambda loss: loss
) -> Adversary | None:
    """Return what training attacks with, None for ``standard``; ``settings`` are resolved."""
    if settings.method == "standard":
        return None
    if settings.method == "pixel":
        return FewPixels(_given(settings.pixels), _given(settings.population), _given(settings.generations))
    steps = _given(settings.steps) if settings.method == "pgd" else 1
    return SignAscent(_given(settings.epsilon), _given(settings.step), steps, scale)


def measuring_adversary(settings: TrainSettings) -> Adversary:
    """Return what robust accuracy is measured with: PGD with steps of ε/4, or for ``pixel`` a longer search."""
    steps = _given(settings.robust_steps)
    if settings.method == "pixel":
        return FewPixels(_given(settings.pixels), _given(settings.population), steps)
    radius = _given(settings.epsilon)
    return SignAscent(radius, radius / 4, steps)


def seed_of(*key: int) -> int:
    """Return a seed, of 63 bits, that depends on all of ``key``."""
    text = " ".join(map(str, key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _generators(seed: int, count: int) -> list[np.random.Generator]:
    streams = np.random.SeedSequence(seed).spawn(count)
    return [np.random.Generator(np.random.Philox(stream)) for stream in streams]


def _given(value: T | None) -> T:
    """Return an option that settings have once they are resolved."""
    assert value is not None
    return value
