"""The model card that the training of a saliency network leaves beside the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pixelsem.models.u2net import NETWORKS
from pixelsem.records import SaliencyEpochRecord
from pixelsem.regions.settings import SaliencyTrainSettings


@dataclass(frozen=True)
class CardData:
    """What was trained (a name of :data:`pixelsem.models.u2net.NETWORKS`), on what, and the weights it started from."""

    model: str
    name: str
    train: int
    held: int
    weights: Path | None


def saliency_card(data: CardData, settings: SaliencyTrainSettings, log: list[SaliencyEpochRecord], torch: str) -> str:
    """Return a Markdown page: what the network is, its data, recipe, seed and what it reaches.

    ``log`` holds every epoch, the last being that of the weights; ``torch`` is the version trained with.
    """
    parameters = sum(p.numel() for p in NETWORKS[data.model]().parameters())
    recipe = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in settings.to_dict().items())
    epochs = "\n".join(
        f"| {e.epoch} | {e.loss:.4f} | {_number(e.iou)} | {_number(e.error)} | {e.seconds:.0f} |" for e in log
    )
    start = "random weights" if data.weights is None else f"`{data.weights.name}`"
    return f"""# {data.model}

U²-Net (Qin et al. 2020, {"full" if data.model == "u2net" else "small"}). {parameters:,} parameters.

- Input: RGB squashed to {settings.size}×{settings.size}, divided by its maximum, ImageNet's mean and deviation.
- Data: {data.name}; {data.train:,} images trained on, {data.held:,} held out (drawn by seed {settings.seed}).
- **Held out: mean IoU {_number(log[-1].iou)}, mean absolute error {_number(log[-1].error)}** at the images' own
  size, masks cut at half, after {log[-1].epoch} epochs. No epoch was chosen by these figures.
- Trained by `pixelsem segment train --model {data.model}` from {start} with torch {torch}. The weights are the
  running average over the steps.

## Recipe

| setting | value |
|---|---|
{recipe}

## Epochs

| epoch | loss | held-out IoU | held-out error | seconds |
|---|---|---|---|---|
{epochs}
"""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
