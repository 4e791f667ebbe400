"""Training of classifiers: resumable after every epoch, the same result whenever it is interrupted."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelsem.defenses.settings import TrainSettings
from pixelsem.errors import ModelError, StageError
from pixelsem.files import write_atomically
from pixelsem.models import Classifier
from pixelsem.models.checkpoints import first_line
from pixelsem.records import EpochRecord


class _Run:
    """Everything that changes during training and so goes into the checkpoint."""

    def __init__(self, classifier: Classifier, settings: TrainSettings, steps: int) -> None:
        self.classifier = classifier
        decayed = [p for p in classifier.parameters() if p.ndim > 1]
        plain = [p for p in classifier.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, settings.lr, settings.momentum, nesterov=settings.momentum > 0)
        warm = max(1, round(settings.warmup * steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
        )
        self.scaler = torch.amp.GradScaler(enabled=settings.precision == "fp16")
        self.log: list[EpochRecord] = []

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        state = {
            "identity": identity,
            "log": [msgspec.to_builtins(epoch) for epoch in self.log],
            "network": self.classifier.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        # Through memory: torch hides the error of a full disk, which must be told as such.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with write_atomically(path) as file:
            file.write(buffer.getbuffer())

    def load(self, path: Path, identity: dict[str, Any]) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            found = state["identity"]
        except Exception as error:  # damaged archives raise almost anything
            reason = first_line(error)
            raise ModelError(f"{path}: not a training checkpoint ({reason}); remove it to start anew") from error
        if found != identity:
            raise StageError(f"{path}: belongs to another training run; give another folder with -o")
        self.classifier.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.log = [msgspec.convert(epoch, EpochRecord) for epoch in state["log"]]


def train(
    classifier: Classifier,
    train_set: tuple[Tensor, Tensor],
    test_set: tuple[Tensor, Tensor],
    settings: TrainSettings,
    checkpoint: Path,
    device: torch.device,
) -> Iterator[EpochRecord | float]:
    """Train ``classifier`` in place; yield every epoch's record, and in between the share done in [0, 1].

    ``train_set`` and ``test_set`` are (uint8 [N, 3, H, W], int64 [N]) on the CPU. After every epoch the
    state is written to ``checkpoint`` (atomically); where that file exists, its epochs are yielded and
    training goes on from there. The random numbers of an epoch depend on (seed, epoch) alone, so a resumed
    run draws the same. Raises :class:`StageError` for a checkpoint of another run.
    """
    images, labels = (part.to(device) for part in train_set)
    per_epoch = -(-len(images) // settings.batch)
    _start(classifier, settings, device)
    run = _Run(classifier, settings, per_epoch * settings.epochs)
    identity = {**asdict(settings), "images": len(images), "model": classifier.name}
    if checkpoint.exists():
        run.load(checkpoint, identity)
        yield from run.log
    for epoch in range(len(run.log) + 1, settings.epochs + 1):
        start = time.perf_counter()
        torch.manual_seed((settings.seed << 16) + epoch - 1)
        loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
        classifier.train()
        for step, chosen in enumerate(torch.randperm(len(images), device=device).split(settings.batch)):
            logits, loss = _step(run, images[chosen], labels[chosen], settings, device)
            loss_sum += loss.detach() * len(chosen)
            correct += (logits.argmax(1) == labels[chosen]).sum()
            if step % 20 == 0:
                yield (epoch - 1 + step / per_epoch) / settings.epochs
        accuracy = measure_accuracy(classifier, *test_set, device=device)
        shares = float(loss_sum) / len(images), float(correct) / len(images), accuracy
        run.log.append(EpochRecord(epoch, *shares, time.perf_counter() - start))
        run.save(checkpoint, identity)
        yield run.log[-1]


def _start(classifier: Classifier, settings: TrainSettings, device: torch.device) -> None:
    """Let every layer that can draw its initial weights anew, by the seed; set the dropout of the settings."""
    torch.manual_seed(settings.seed)
    for module in classifier.modules():
        if isinstance(module, nn.Dropout):
            module.p = settings.dropout
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    classifier.requires_grad_(True)
    classifier.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _step(
    run: _Run, images: Tensor, labels: Tensor, settings: TrainSettings, device: torch.device
) -> tuple[Tensor, Tensor]:
    """One optimisation step; return the logits and the mean loss."""
    x = augment(images, settings.crop, settings.flip).float().div_(255)
    x = x.contiguous(memory_format=torch.channels_last)
    half = torch.float16 if settings.precision == "fp16" else torch.bfloat16
    with torch.autocast(device.type, half, enabled=settings.precision != "fp32"):
        logits = run.classifier(x).float()
    loss = F.cross_entropy(logits, labels)
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.schedule.step()
    return logits, loss


def augment(images: Tensor, crop: int, flip: bool) -> Tensor:
    """Crop [N, 3, H, W] images at random from their reflected padding and flip half of them, all in one gather."""
    count, _, height, width = images.shape
    device = images.device
    if crop:
        images = F.pad(images.float(), (crop,) * 4, mode="reflect").to(images.dtype)
    top, left = torch.randint(0, 2 * crop + 1, (2, count, 1), device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    if flip:
        mirrored = torch.rand(count, 1, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count, device=device)[:, None, None]
    return images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def measure_accuracy(
    classifier: Classifier, images: Tensor, labels: Tensor, *, device: torch.device, batch: int = 250
) -> float:
    """Return the share in [0, 1] of uint8 [N, 3, H, W] ``images`` whose fp32 top-1 is their label."""
    classifier.eval()
    correct = 0
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        correct += int((classifier(x.to(device).float() / 255).argmax(1).cpu() == y).sum())
    return correct / len(images)
