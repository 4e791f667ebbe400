"""The frame of every training: epochs, a checkpoint after each, and going on from there as if never interrupted."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import torch
from torch import nn

from pixelsem.errors import ModelError, PixelsemError, StageError
from pixelsem.files import write_atomically
from pixelsem.models.checkpoints import first_line
from pixelsem.records import EpochRecord, SaliencyEpochRecord

R = TypeVar("R", EpochRecord, SaliencyEpochRecord)


class Resumable(Protocol):
    """What changes during a training."""

    def state(self) -> dict[str, Any]:
        """Return all of it by name: tensors and plain data, as ``torch.load(weights_only=True)`` reads them."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` returned, its tensors on the CPU."""


@dataclass(frozen=True)
class Epochs(Generic[R]):
    """A number of ``epochs`` by a ``seed``, written to ``checkpoint`` after each.

    ``identity`` is plain data that says which run the checkpoint belongs to; ``record`` is the type of the epochs'
    records. A run for whose records ``over`` is true ends before its last epoch.
    """

    checkpoint: Path
    identity: dict[str, Any]
    record: type[R]
    epochs: int
    seed: int
    over: Callable[[list[R]], bool] = lambda _: False

    def run(self, training: Resumable, epoch: Callable[[int], Iterator[R | float]]) -> Iterator[R | float]:
        """Yield every epoch's record, and in between the share in [0, 1] done of all epochs.

        ``epoch(number)``, from 1 on, trains one: it yields the share done of it and at last its record. Torch's random
        numbers are seeded by (seed, number) before, so that a resumed run draws the same. Where the checkpoint
        exists, its records come first and training goes on from there. Raises :class:`StageError` for a checkpoint of
        another run, :class:`ModelError` for a file that is none, :class:`OutputError` where it cannot be written.
        """
        log: list[R] = []
        if self.checkpoint.exists():
            log = self._load(training)
            yield from log
        while len(log) < self.epochs and not self.over(log):
            number = len(log) + 1
            torch.manual_seed((self.seed << 16) + number - 1)
            for step in epoch(number):
                if isinstance(step, float):
                    yield (number - 1 + step) / self.epochs
                else:
                    log.append(step)
            self._save(training, log)
            yield log[-1]

    def _save(self, training: Resumable, log: list[R]) -> None:
        state = {"identity": self.identity, "log": [msgspec.to_builtins(record) for record in log]}
        # Through memory: torch hides the error of a full disk, which must be told as such.
        buffer = io.BytesIO()
        torch.save(state | training.state(), buffer)
        with write_atomically(self.checkpoint) as file:
            file.write(buffer.getbuffer())

    def _load(self, training: Resumable) -> list[R]:
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            if state["identity"] != self.identity:
                raise StageError(f"{self.checkpoint}: belongs to another training run; give another folder with -o")
            log = [msgspec.convert(record, self.record) for record in state["log"]]
            training.restore(state)
        except StageError:
            raise
        except Exception as error:  # damaged archives raise almost anything, tensors of other shapes RuntimeError
            reason = f"not a training checkpoint ({first_line(error)}); remove it to start anew"
            raise ModelError(f"{self.checkpoint}: {reason}") from error
        return log


@torch.no_grad()
def check_loss(loss: float, epoch: int, precision: str) -> None:
    """Raise :class:`PixelsemError` where the mean loss of an epoch is no number that training can go on from."""
    if not math.isfinite(loss):
        advice = "" if precision == "fp32" else ", or --precision fp32"
        raise PixelsemError(f"epoch {epoch}: training diverged, its loss is {loss}; give a lower --lr{advice}")


def average_weights(averaged: nn.Module, network: nn.Module, decay: float, steps: int) -> None:
    """Move ``averaged`` towards ``network`` after so many ``steps``: the running average of its weights, in place.

    Few steps are averaged at first, as the initial weights are worth nothing: the decay is at most
    (1 + steps) / (10 + steps). Integers (counts of steps) are copied.
    """
    decay = min(decay, (1 + steps) / (10 + steps))
    own = network.state_dict()
    for name, mean in averaged.state_dict().items():
        if mean.is_floating_point():
            mean.lerp_(own[name], 1 - decay)
        else:
            mean.copy_(own[name])
