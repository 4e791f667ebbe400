"""How a classifier stands up to attacks while it is trained, and when it only seems to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pixelsem.defenses.adversaries import Adversary, measuring_adversary, seed_of, training_adversary
from pixelsem.defenses.examples import Batch, Examples
from pixelsem.defenses.settings import SMALL, TrainSettings
from pixelsem.metrics.intervals import wilson
from pixelsem.models.classifier import Classifier
from pixelsem.records import EpochRecord

#: Robust accuracy that falls below this share of its best may have collapsed.
_COLLAPSE = 0.5


def attacked_accuracy(
    classifier: Classifier, test_set: Examples, settings: TrainSettings, device: torch.device
) -> tuple[float | None, float | None]:
    """Return the accuracy on a sample of the test images under attack, in [0, 1].

    ``settings`` are resolved. The second share is that under the single step that ``fast`` trains with, None for
    other methods; both are None where the settings want no sample. The sample and the attacks depend on the settings'
    seed alone.
    """
    generator = torch.Generator().manual_seed(seed_of(settings.seed))
    chosen = torch.randperm(len(test_set), generator=generator)[: settings.robust_sample or 0].sort().values
    if not len(chosen):
        return None, None

    def under(adversary: Adversary) -> float:
        batches = test_set.batches(measuring_batch(test_set, settings), device, chosen)
        return measure_robustness(classifier, batches, adversary, seed_of(settings.seed, 0))

    single = training_adversary(settings) if settings.method == "fast" else None
    return under(measuring_adversary(settings)), None if single is None else under(single)


def measuring_batch(test_set: Examples, settings: TrainSettings) -> int:
    """Return how many images are measured at a time: of large ones, in fp32, half of what training has room for."""
    height, width = test_set.size
    return 250 if height * width <= SMALL else min(250, max(1, settings.batch // 2))


def measure_robustness(classifier: Classifier, batches: Iterable[Batch], adversary: Adversary, seed: int) -> float:
    """Return the share in [0, 1] of images whose fp32 top-1 is their label after the attack, which is not rounded.

    The classifier, which is on the device of the ``batches``, is put in evaluation mode. Every call with one ``seed``
    draws the same.
    """
    classifier.eval()
    correct, count = 0, 0
    for number, (images, labels, regions) in enumerate(batches):
        where = torch.ones_like(images[:, 0], dtype=torch.bool) if regions is None else regions
        changed = adversary(classifier, images, labels, where, seed_of(seed, number))
        with torch.inference_mode():
            correct += int((classifier(changed / 255).argmax(1) == labels).sum())
        count += len(labels)
    return correct / count


@dataclass(frozen=True)
class Collapse:
    """Catastrophic overfitting in the epoch ``epoch``; ``best`` had the highest robust accuracy before it."""

    epoch: EpochRecord
    best: EpochRecord

    def __str__(self) -> str:
        robust = f"robust accuracy fell from {_percent(self.best.robust_accuracy)} to "
        fgsm = f"under FGSM it rose from {_percent(self.best.fgsm_accuracy)} to "
        return (
            f"catastrophic overfitting in epoch {self.epoch.epoch}: {robust}{_percent(self.epoch.robust_accuracy)}, "
            f"{fgsm}{_percent(self.epoch.fgsm_accuracy)}"
        )


def robust_images(settings: TrainSettings, test_images: int) -> int:
    """Return how many of the test images robust accuracy is of; ``settings`` are resolved."""
    return min(settings.robust_sample or 0, test_images)


def find_collapse(log: list[EpochRecord], sample: int) -> Collapse | None:
    """Return the first epoch with catastrophic overfitting (Wong et al. 2020, §5.4), None where there is none.

    A network that is trained with single steps may learn to be safe from these alone: its accuracy under FGSM rises,
    while that under PGD collapses. The latter counts as collapsed below half of the best epoch so far, where 95 %
    Wilson intervals of both, of ``sample`` images, do not meet. Epochs without these accuracies are passed over.
    """
    best: EpochRecord | None = None
    for epoch in log:
        if epoch.robust_accuracy is None or epoch.fgsm_accuracy is None:
            continue
        if best is None or epoch.robust_accuracy > _robust(best):
            best = epoch
        elif _fell(epoch.robust_accuracy, _robust(best), sample) and epoch.fgsm_accuracy > (best.fgsm_accuracy or 0):
            return Collapse(epoch, best)
    return None


def best_so_far(log: list[EpochRecord]) -> bool:
    """Has the last epoch the highest robust accuracy of all, the first of equal ones?"""
    return len(log) == 1 or _robust(log[-1]) > max(map(_robust, log[:-1]))


def _fell(now: float, before: float, sample: int) -> bool:
    apart = wilson(now * sample, sample)[1] < wilson(before * sample, sample)[0]
    return now < _COLLAPSE * before and apart


def _robust(epoch: EpochRecord) -> float:
    return epoch.robust_accuracy or 0.0


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{100 * share:.2f} %"
