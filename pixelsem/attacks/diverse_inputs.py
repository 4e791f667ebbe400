"""M-DI²-FGSM (Xie et al. 2019), a baseline of qian2021 §IV-E: gradients of images resized and padded at random."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.pgd import Ascent
from pixelsem.attacks.settings_qian2021 import MDi2FgmSettings
from pixelsem.errors import ModelError, PixelsemError
from pixelsem.fitness.evaluator import Evaluator, LossAndGradient, Render


def diverse_inputs(
    searches: Searches, evaluator: Evaluator, settings: MDi2FgmSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Step along the sign of gradients gathered with momentum; yield each :class:`Outcome`.

    For a share p of the steps, drawn for every search, the gradient is taken at the image after a random resize
    and a random padding with black (Xie et al. 2019, §3.3). Gradients are divided by their L1 norm and added to μ
    times those before (Dong et al. 2018). The rest is as in :mod:`pixelsem.attacks.pgd`, from the clean image.

    Raises :class:`pixelsem.errors.PixelsemError` where the model does not take the enlarged images.
    """
    yield from _DiverseAscent(searches, evaluator, settings).run(progress or Progress())


class _DiverseAscent(Ascent):
    def __init__(self, searches: Searches, evaluator: Evaluator, settings: MDi2FgmSettings) -> None:
        super().__init__(searches, evaluator, settings)
        self._momentum = settings.momentum
        self._gathered = torch.zeros(self.rows.clean.shape, device=evaluator.device)
        height, width = searches.images.shape[2:]
        self._vertical = Resizing(height, settings.resize_rate)
        self._horizontal = Resizing(width, settings.resize_rate)
        # Of each step: whether to resize at all, the size, the place from the top and from the left.
        drawn = np.stack([each.random((settings.steps, 4)) for each in searches.generators])
        on_host = torch.from_numpy(drawn).to(torch.float32)
        self._diverse = on_host[..., 0] < settings.probability  # of each search, on the CPU
        self._drawn = on_host[..., 1:].to(evaluator.device)  # of each row
        self._plan()
        if settings.resize_rate > 1 and settings.probability > 0:
            self._check_model()

    def gradient(self, images: Tensor) -> LossAndGradient:
        """As of :class:`Ascent`, with the momentum in it, and part of the images resized."""
        self.queries += 1
        result = self._differentiate(images)
        inside = result.gradients * self.rows.region
        self._gathered = self._momentum * self._gathered + inside / _l1(inside)
        return result._replace(gradients=self._gathered)

    def plain_logits(self, images: Tensor, logits: Tensor) -> Tensor:
        """Return the logits of the images before resizing; one more query."""
        self.queries += 1
        return self.evaluator.logits(images)

    def keep(self, which: Tensor) -> None:
        """Drop every row that bool [n] ``which`` does not mark."""
        super().keep(which)
        self._gathered, self._drawn = self._gathered[which], self._drawn[which]
        self._plan()

    def _plan(self) -> None:
        """Order the rows for every step, resized ones first; all at once, so that no step waits for the device."""
        diverse = self._diverse[self.rows.search].T
        order = diverse.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        self._resized: list[int] = diverse.sum(1).tolist()
        self._order, self._back = (each.to(self._drawn.device) for each in (order, order.argsort(dim=1)))

    def _differentiate(self, images: Tensor) -> LossAndGradient:
        """Return losses, gradients and logits of all rows: resized ones and others, whose sizes may differ."""
        count = self._resized[self.step]
        resized, plain = self._order[self.step, :count], self._order[self.step, count:]
        parts = [self._of_resized(images, resized)] if len(resized) else []
        parts += [self._of_part(images, plain)] if len(plain) else []
        return LossAndGradient(*(torch.cat(each)[self._back[self.step]] for each in zip(*parts, strict=True)))

    def _of_resized(self, images: Tensor, rows: Tensor) -> LossAndGradient:
        size, top, left = self._drawn[rows, self.step].unbind(1)
        vertical, horizontal = self._vertical.matrices(size, top), self._horizontal.matrices(size, left)

        def render(part: Tensor, index: Tensor) -> Tensor:
            return vertical[index, None] @ part @ horizontal[index, None].mT

        return self._of_part(images, rows, render)

    def _of_part(self, images: Tensor, rows: Tensor, render: Render | None = None) -> LossAndGradient:
        def loss(logits: Tensor, index: Tensor) -> Tensor:
            return self.rows.log_odds(logits, rows[index])

        return self.evaluator.loss_and_gradient(images[rows], loss, render)

    def _check_model(self) -> None:
        size = (self._vertical.padded, self._horizontal.padded)
        try:
            self.evaluator.confirm(torch.zeros(1, 3, *size, dtype=torch.uint8))
        except (RuntimeError, ModelError) as error:
            name = self.evaluator.classifier.name
            text = f"--resize-rate: {name} takes no images of {size[0]}×{size[1]} pixels; give a rate below 1"
            raise PixelsemError(text) from error


class Resizing:
    """Bilinear resizing and padding of one side, drawn anew for every row.

    :ivar padded: the length that comes out, for a side of ``length`` pixels: it, or ``length``·``rate`` above 1.
    """

    def __init__(self, length: int, rate: float) -> None:
        self._length = length
        self._smallest, self.padded = sorted((length, max(1, round(length * rate))))

    def matrices(self, size: Tensor, place: Tensor) -> Tensor:
        """Return float [n, padded, length]; times a column of pixels, each makes it resized and padded with 0.

        ``size`` and ``place``, float [n] in [0, 1), choose the length among those from the smallest up to, but
        without, ``padded``, and the offset among all that fit. Pixels are areas: their centres are at halves.
        """
        span = self.padded - self._smallest
        length = self._smallest + (size * span).floor()[:, None, None]
        offset = (place[:, None, None] * (self.padded - length + 1)).floor()
        target = torch.arange(self.padded, device=size.device)[:, None] - offset
        source = ((target + 0.5) * self._length / length - 0.5).clamp(0, self._length - 1)
        weight = (1 - (source - torch.arange(self._length, device=size.device)).abs()).clamp(min=0)
        return weight * ((target >= 0) & (target < length))


def _l1(values: Tensor) -> Tensor:
    return values.abs().sum((1, 2, 3), keepdim=True).clamp(min=1e-30)
