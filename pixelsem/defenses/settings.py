"""Settings of the defences. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pixelsem.settings import Settings, option


@dataclass(frozen=True)
class TrainSettings(Settings):
    """How a classifier is trained (stochastic gradient descent, one cycle of the learning rate)."""

    method: Literal["standard"] = option("standard", "Training method.")
    epochs: int = option(12, "Passes over the training images.", low=1)
    batch: int = option(128, "Images per step.", low=1)
    lr: float = option(0.1, "Peak learning rate: linear warm-up to it, linear decay to zero.", low=0)
    warmup: float = option(0.2, "Share of the steps spent warming up.", low=0, high=1)
    momentum: float = option(0.9, "Nesterov momentum.", low=0, high=1)
    weight_decay: float = option(5e-4, "L2 penalty on the weights of convolutions and linear layers.", low=0)
    dropout: float = option(0.1, "Probability of every dropout layer of the network.", low=0, high=1)
    crop: int = option(4, "Random crops from the image padded by this many reflected pixels; 0 for none.", low=0)
    flip: bool = option(True, "Random horizontal flips.")
    precision: Literal["fp32", "bf16", "fp16"] = option("bf16", "Arithmetic of the forward pass (autocast).")
    seed: int = option(0, "Seed of the initial weights, the order, the crops and flips.", low=0)
