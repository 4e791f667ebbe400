"""Training of classifiers: resumable after every epoch, the same result whenever it is interrupted."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelsem.defenses.adversaries import FewPixels, seed_of, training_adversary
from pixelsem.defenses.examples import Examples
from pixelsem.defenses.robustness import (
    attacked_accuracy,
    best_so_far,
    find_collapse,
    measuring_batch,
    robust_images,
)
from pixelsem.defenses.settings import TrainSettings
from pixelsem.fitness.allocation import keep_freed_memory
from pixelsem.models import Classifier
from pixelsem.models.epochs import Epochs, average_weights, check_loss
from pixelsem.records import EpochRecord


class _Run:
    """Everything that changes during training and so goes into the checkpoint.

    ``kept`` is the classifier that is measured and saved, ``trained`` the one that learns: the same, unless the
    weights are averaged. ``best`` holds, for ``fast``, the weights of the epoch with the highest robust accuracy.
    """

    def __init__(self, classifier: Classifier, settings: TrainSettings, steps: int, device: torch.device) -> None:
        self.kept = classifier
        self.trained = copy.deepcopy(classifier) if settings.average else classifier
        self.settings = settings
        decayed = [p for p in self.trained.parameters() if p.ndim > 1]
        plain = [p for p in self.trained.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, settings.lr, settings.momentum, nesterov=settings.momentum > 0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: rate(step, steps, settings.warmup, settings.schedule)
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.adversary = training_adversary(settings, self.scaler.scale)
        self.best: dict[str, Tensor] | None = None

    def state(self) -> dict[str, Any]:
        """Return all of it by name."""
        state: dict[str, Any] = {
            "network": self.trained.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.kept is not self.trained:
            state["averaged"] = self.kept.network.state_dict()
        return state if self.best is None else {**state, "best": self.best}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` returned."""
        self.trained.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.kept is not self.trained:
            self.kept.network.load_state_dict(state["averaged"])
        self.best = state.get("best")

    def step(self, images: Tensor, labels: Tensor, regions: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
        """Take one optimisation step on augmented uint8 [N, 3, H, W] images; return the logits and the mean loss."""
        x = self._attacked(images, labels, regions, seed).div_(255)
        x = x.contiguous(memory_format=torch.channels_last)
        logits = self._logits(x)
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with warnings.catch_warnings():
            # A step that overflowed in fp16 is left out; the schedule goes on with the images.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.schedule.step()
        if self.kept is not self.trained:
            average_weights(self.kept, self.trained, self.settings.average, self.schedule.last_epoch)
        return logits.detach(), loss.detach()

    def _attacked(self, images: Tensor, labels: Tensor, regions: Tensor | None, seed: int) -> Tensor:
        """Return what is trained on, float32 in units of 0 to 255."""
        if self.adversary is None:
            return images.float()
        if regions is None:
            regions = torch.ones_like(images[:, 0], dtype=torch.bool)
        # Few pixels are searched for in evaluation mode, gradients are those of training mode.
        self.trained.train(not isinstance(self.adversary, FewPixels))
        changed = self.adversary(self._logits, images, labels, regions, seed)
        self.trained.train()
        return changed

    def _logits(self, x: Tensor) -> Tensor:
        half = torch.float16 if self.settings.precision == "fp16" else torch.bfloat16
        with torch.autocast(x.device.type, half, enabled=self.settings.precision != "fp32"):
            logits: Tensor = self.trained(x)
        return logits.float()


def train(
    classifier: Classifier,
    train_set: Examples,
    test_set: Examples,
    settings: TrainSettings,
    checkpoint: Path,
    device: torch.device,
) -> Iterator[EpochRecord | float]:
    """Train ``classifier`` in place; yield every epoch's record, and in between the share done in [0, 1].

    One that is trained already goes on from its weights; any other starts from weights drawn by the seed. After
    every epoch the state is written to ``checkpoint`` (atomically); where that file exists, its epochs are yielded and
    training goes on from there. The random numbers of an epoch depend on (seed, epoch) alone, those of an attack on
    (seed, epoch, step), so a resumed run draws the same. ``fast`` training ends early at catastrophic overfitting,
    with the weights of its best epoch (see :func:`pixelsem.defenses.robustness.find_collapse`). Raises
    :class:`PixelsemError` where the loss of an epoch is not finite, which is not written,
    :class:`StageError` for a checkpoint of another run, :class:`InputError` for an image that cannot be read.
    """
    if device.type == "cpu":
        keep_freed_memory()
    settings = settings.resolved(*train_set.size)
    per_epoch = -(-len(train_set) // settings.batch)
    _start(classifier, settings, device)
    run = _Run(classifier, settings, per_epoch * settings.epochs, device)
    identity = {**asdict(settings), "images": len(train_set), "model": classifier.name}
    if classifier.trained:
        identity["weights"] = classifier.digest
    log: list[EpochRecord] = []

    def epoch(number: int) -> Iterator[EpochRecord | float]:
        start = time.perf_counter()
        run.trained.train()
        loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
        for step, (images, labels, regions) in enumerate(train_set.training_batches(number, settings, device)):
            logits, mean_loss = run.step(images, labels, regions, seed_of(settings.seed, number, step))
            loss_sum += mean_loss * len(labels)
            correct += (logits.argmax(1) == labels).sum()
            if step % 20 == 0:
                yield step / per_epoch
        loss = float(loss_sum) / len(train_set)
        check_loss(loss, number, settings.precision)
        accuracy = measure_accuracy(classifier, test_set, device=device, batch=measuring_batch(test_set, settings))
        shares = loss, float(correct) / len(train_set), accuracy
        robust = attacked_accuracy(classifier, test_set, settings, device)
        record = EpochRecord(number, *shares, time.perf_counter() - start, *robust)
        if record.fgsm_accuracy is not None and best_so_far([*log, record]):
            run.best = {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}
        yield record

    def collapsed(epochs: list[EpochRecord]) -> bool:
        return find_collapse(epochs, robust_images(settings, len(test_set))) is not None

    for step in Epochs(checkpoint, identity, EpochRecord, settings.epochs, settings.seed, collapsed).run(run, epoch):
        if isinstance(step, EpochRecord):
            log.append(step)
        yield step
    if collapsed(log) and run.best is not None:
        classifier.network.load_state_dict(run.best)


def rate(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Return the share of the peak learning rate at ``step``, from 0 on, of so many ``steps``.

    It rises linearly for the share ``warmup`` of them, then falls to 0: linearly (``one-cycle``, Wong et al. 2020,
    §5.1) or along half a ``cosine``.
    """
    warm = max(1, round(warmup * steps))
    if schedule == "one-cycle":
        return min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    if step < warm:
        return (step + 1) / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


def _start(classifier: Classifier, settings: TrainSettings, device: torch.device) -> None:
    """Let every layer of an untrained network draw its weights by the seed; set the dropout of the settings."""
    torch.manual_seed(settings.seed)
    for module in classifier.modules():
        if isinstance(module, nn.Dropout):
            module.p = settings.dropout
        if not classifier.trained and callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    classifier.requires_grad_(True)
    classifier.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.inference_mode()
def measure_accuracy(classifier: Classifier, test_set: Examples, *, device: torch.device, batch: int = 250) -> float:
    """Return the share in [0, 1] of the test images whose fp32 top-1 is their label, scored ``batch`` at a time."""
    classifier.eval()
    correct = 0
    for images, labels, _ in test_set.batches(batch, device):
        correct += int((classifier(images.float() / 255).argmax(1) == labels).sum())
    return correct / len(test_set)
