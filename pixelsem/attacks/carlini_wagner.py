"""Carlini and Wagner's L2 attack (2017), a baseline of qian2021 §IV-D."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pixelsem.attacks.base import Outcome, Progress, Searches
from pixelsem.attacks.rows import Rows
from pixelsem.attacks.settings_qian2021 import CarliniWagnerSettings
from pixelsem.fitness.evaluator import Evaluator

#: How near to black and white a value comes in tanh space; at ±1 itself it could not move.
_NEARLY = 0.999999
#: What a hit's logit must exceed others by: float sums of a batch and of a single image differ in the last bits.
_LAST_BITS = 1e-4
#: Where early stop looks, in shares of the iterations, and how little the loss must fall there.
_LOOKS, _FALLING = 10, 0.9999


def carlini_wagner(
    searches: Searches, evaluator: Evaluator, settings: CarliniWagnerSettings, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Minimise ‖change‖² + c·f over images of the form (tanh w + 1) / 2; yield each :class:`Outcome`.

    f is how far the logit of the label, or of the best other class in targeted attacks, is above that of the best
    other class, or the target; at least −κ (Carlini and Wagner 2017, §V-A and §VI-A). Adam goes from the clean
    image. The nearest hit of all iterations and values of c counts; where there is none, the last image.

    With ``rounding='during'`` f, its gradient and the distances of hits are those of the image rounded to 8 bits,
    as if rounding had the derivative 1; only the term ‖change‖² stays that of the unrounded image. The history has
    ``c`` and ``loss``, float32 [values of c] and [values of c, iterations], NaN after an early stop.
    """
    progress = progress or Progress()
    run = _Run(searches, evaluator, settings)
    for number in range(settings.binary_search_steps):
        if not run.search(number, progress):
            return
        run.choose_next()
    yield from run.outcomes()


class _Run:
    """All searches over all values of c; row i of every tensor belongs to search i."""

    def __init__(self, searches: Searches, evaluator: Evaluator, settings: CarliniWagnerSettings) -> None:
        self._evaluator, self._settings = evaluator, settings
        self._rows = Rows(searches, evaluator)
        count, device = len(searches), evaluator.device
        self._clean = self._rows.clean.float() / 255
        self._start = ((self._clean * 2 - 1) * _NEARLY).atanh()
        self._c = torch.full((count,), settings.c, device=device)
        self._lower = torch.zeros(count, device=device)
        self._upper = torch.full((count,), torch.inf, device=device)
        self._hit = torch.zeros(count, dtype=torch.bool, device=device)  # with this value of c
        self._nearest = torch.full((count,), torch.inf, device=device)  # squared distance, in units of 0 to 1
        self._best = self._rows.clean
        self._queries = torch.zeros(count, dtype=torch.int64, device=device)
        self._losses = torch.full((count, settings.binary_search_steps, settings.steps), torch.nan, device=device)
        self._tried: list[Tensor] = []

    def search(self, number: int, progress: Progress) -> bool:
        """Minimise with the values of c as they are; return False where asked to stop."""
        self._tried.append(self._c)
        self._hit = torch.zeros_like(self._hit)
        here = torch.arange(len(self._c), device=self._c.device)
        adam = Adam(self._start, self._settings.lr)
        before = torch.full_like(self._c, torch.inf)
        look = max(1, self._settings.steps // _LOOKS)
        for step in range(self._settings.steps):
            if progress.should_stop():
                return False
            loss = self._iterate(here, adam)
            self._losses[here, number, step] = loss
            progress.queries = self._evaluator.queries
            progress.on_change(progress)
            if self._settings.early_stop and step % look == 0:
                falling = loss <= before * _FALLING
                here, before = here[falling], loss[falling]
                adam.keep(falling)
                if not len(here):
                    break
        return True

    def choose_next(self) -> None:
        """Choose the next c of every search: between the largest that failed and the smallest that did not."""
        self._upper = torch.where(self._hit, torch.minimum(self._upper, self._c), self._upper)
        self._lower = torch.where(self._hit, self._lower, torch.maximum(self._lower, self._c))
        self._c = torch.where(self._upper.isinf(), self._c * 10, (self._lower + self._upper) / 2)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield what all searches came to."""
        best, queries = self._best.cpu(), self._queries.tolist()
        losses, tried = self._losses.cpu().numpy(), torch.stack(self._tried, 1).cpu().numpy()
        for search in range(len(best)):
            yield Outcome(
                search=search,
                adversarial=best[search],
                queries=queries[search],
                candidates=queries[search],
                generations=queries[search],
                history={"loss": losses[search], "c": tried[search]},
            )

    def _iterate(self, here: Tensor, adam: Adam) -> Tensor:
        """Take one step of the searches ``here``, note what they have found, return their losses."""
        clean, region, c = self._clean[here], self._rows.region[here], self._c[here]
        during = self._settings.rounding == "during"

        def images_of(w: Tensor, rows: slice | Tensor) -> Tensor:
            return torch.where(region[rows], (w.tanh() + 1) / 2, clean[rows])

        def render(w: Tensor, index: Tensor) -> Tensor:
            images = images_of(w, index)
            return images + (_in_8_bits(images.detach()) - images.detach()) if during else images

        def loss_of(logits: Tensor, index: Tensor) -> Tensor:
            return c[index] * (-self._margins(logits, here[index])).clamp(min=-self._settings.kappa)

        losses, gradients, logits = self._evaluator.loss_and_gradient(adam.parameters, loss_of, render)
        images = images_of(adam.parameters, slice(None))
        change = images - clean
        self._note(here, images, _in_8_bits(images) - clean if during else change, logits)
        # The derivative of ‖change‖², which the evaluator's loss has no part of.
        adam.step(gradients + change * (1 - adam.parameters.tanh() ** 2) * region)
        return losses + change.square().sum((1, 2, 3))

    def _note(self, here: Tensor, images: Tensor, change: Tensor, logits: Tensor) -> None:
        """Keep the images that are hits and nearer than what there was, and any where there was none."""
        self._queries[here] += 1
        hits = self._margins(logits, here) >= max(self._settings.kappa, _LAST_BITS)
        distance = torch.where(hits, change.square().sum((1, 2, 3)), torch.inf)
        self._hit[here] |= hits
        better = (distance < self._nearest[here]) | self._nearest[here].isinf()
        self._nearest[here] = torch.minimum(distance, self._nearest[here])
        written = (images * 255).round().to(torch.uint8)
        self._best[here] = torch.where(better[:, None, None, None], written, self._best[here])

    def _margins(self, logits: Tensor, here: Tensor) -> Tensor:
        """Return float [k]: by how much a class that is wanted exceeds all that are not."""
        labels, targets = self._rows.labels[here], self._rows.targets[here]
        aimed = targets >= 0
        named = torch.where(aimed, targets, labels)[:, None]
        own = logits.gather(1, named)[:, 0]
        other = logits.scatter(1, named, -torch.inf).amax(1)
        return torch.where(aimed, own - other, other - own)


class Adam:
    """Kingma and Ba's Adam over rows that may be dropped; every step has its length from its own row alone."""

    def __init__(self, parameters: Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.parameters = parameters
        self._lr, self._betas = lr, betas
        self._mean, self._square = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self._steps = 0

    def step(self, gradients: Tensor) -> None:
        """Move the parameters against the gradients."""
        first, second = self._betas
        self._steps += 1
        self._mean = first * self._mean + (1 - first) * gradients
        self._square = second * self._square + (1 - second) * gradients.square()
        size = self._lr / (1 - first**self._steps)
        spread = (self._square / (1 - second**self._steps)).sqrt() + 1e-8
        self.parameters = self.parameters - size * self._mean / spread

    def keep(self, which: Tensor) -> None:
        """Drop every row that bool [n] ``which`` does not mark."""
        for name in ("parameters", "_mean", "_square"):
            setattr(self, name, getattr(self, name)[which])

    def state(self) -> dict[str, Tensor | int]:
        """Return what :meth:`resume` goes on from."""
        return {
            "parameters": self.parameters,
            "mean": self._mean,
            "square": self._square,
            "steps": self._steps,
        }

    def resume(self, parameters: Tensor, mean: Tensor, square: Tensor, steps: int) -> None:
        """Go on from an earlier :meth:`state`."""
        self.parameters, self._mean, self._square, self._steps = parameters, mean, square, steps


def _in_8_bits(images: Tensor) -> Tensor:
    return (images * 255).round() / 255
