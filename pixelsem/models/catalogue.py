"""What ``pixelsem models`` lists: every named classifier, without building or downloading one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from pixelsem.models.registry import ARCHITECTURES, CIFAR10_CLASSES, build_network, bundled_weights
from pixelsem.models.sources import cached_path, torchvision_names, torchvision_preprocessing, torchvision_weights


@dataclass(frozen=True)
class ModelInfo:
    """One row of the list. ``input_size`` is (height, width).

    ``weights`` says whether they are at hand: ``bundled`` in the package, ``cached`` from an earlier
    download, to ``download`` from ``url``, or ``none``.
    """

    name: str
    source: str
    input_size: tuple[int, int]
    classes: int
    parameters: int
    weights: Literal["bundled", "cached", "download", "none"]
    url: str | None = None


def list_models() -> list[ModelInfo]:
    """Return our architectures and torchvision's classifiers, in this order, each with its default weights."""
    own = [_describe_own(name) for name in ARCHITECTURES]
    return own + [_describe_torchvision(f"torchvision:{name}") for name in torchvision_names()]


def _describe_own(name: str) -> ModelInfo:
    with torch.device("meta"):  # shapes only: no memory, no initialisation
        network = build_network(name, len(CIFAR10_CLASSES))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    weights: Literal["bundled", "none"] = "none" if bundled_weights(name) is None else "bundled"
    return ModelInfo(name, ARCHITECTURES[name].source, (32, 32), len(CIFAR10_CLASSES), parameters, weights)


def _describe_torchvision(name: str) -> ModelInfo:
    weights = torchvision_weights(name)
    size = torchvision_preprocessing(weights).size
    at_hand: Literal["cached", "download"] = "cached" if cached_path(weights.url).is_file() else "download"
    classes, parameters = len(weights.meta["categories"]), int(weights.meta["num_params"])
    return ModelInfo(name, "torchvision", size, classes, parameters, at_hand, weights.url)
