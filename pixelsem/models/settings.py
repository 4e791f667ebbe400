"""Settings that choose a classifier. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pixelsem.settings import Settings, option
from pixelsem.transforms.specs import Defense, parse_defense


@dataclass(frozen=True)
class ModelOptions(Settings):
    """Which classifier, with which weights and preprocessing."""

    model: str = option(
        "allconv",
        "The classifier: a name from `pixelsem models`, torchvision:NAME, timm:NAME, FILE.py:FUNCTION, or a file "
        "(checkpoint, TorchScript, torch.export).",
        flag="-m",
    )
    weights: Path | None = option(
        None, "Weights (.safetensors, .pt) to load into a named architecture; none: as initialised.", metavar="FILE"
    )
    arch: str | None = option(None, "The architecture of a checkpoint that does not name its own.")
    scale: float | None = option(None, "Multiply the [0, 1] image by this first.", low=0)
    mean: tuple[float, float, float] | None = option(None, "Subtract this per channel, after --scale.")
    std: tuple[float, float, float] | None = option(None, "Divide by this per channel, after --mean.")
    input_size: int | None = option(None, "Side of the square input, in pixels.", low=1)
    defense: tuple[str, ...] = option(
        (),
        "An image transform in front of the model, such as jpeg:q=55 or tvm:drop=0.5; several are applied in order. "
        "Gradients go through resize, avg-pool and max-pool by their own and straight through the others (BPDA).",
        metavar="NAME:SETTING=VALUE",
        several=True,
    )
    classes: Path | None = option(None, "Class names, one per line, in the order of the logits.", metavar="FILE")

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a defence that there is not."""
        _ = self.defenses

    @property
    def defenses(self) -> list[Defense]:
        """The transforms in front of the model, in their order."""
        return [parse_defense(text) for text in self.defense]
