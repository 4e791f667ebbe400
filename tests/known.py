"""Classifiers whose best change is known, and pictures for them: what tests of attacks share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.models.classifier import Classifier, Preprocessing


def classifier_of(network: nn.Module, classes: int, size: tuple[int, int]) -> Classifier:
    """A classifier of images of (height, width) ``size``, taken as they are."""
    names = tuple(f"class{n}" for n in range(classes))
    return Classifier(network, name="known", class_names=names, preprocessing=Preprocessing(size, min(size))).eval()


def linear(weight: Tensor, bias: Tensor | None = None) -> Classifier:
    """Logits that are linear in the pixels: ``weight`` float [classes, 3, H, W]."""
    layer = nn.Linear(weight[0].numel(), len(weight))
    layer.weight.data = weight.flatten(1).clone()
    layer.bias.data = torch.zeros(len(weight)) if bias is None else bias.clone()
    return classifier_of(nn.Sequential(nn.Flatten(), layer), len(weight), (weight.shape[2], weight.shape[3]))


def random_weight(classes: int, side: int, seed: int = 0, scale: float = 0.5) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (classes, 3, side, side))).float()


def random_images(count: int, size: tuple[int, int], seed: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, *size), dtype=np.uint8))


def recorded(monkeypatch: pytest.MonkeyPatch, images: Tensor) -> list[bytes]:
    """Return a list to which every picture is added that goes through the model."""
    seen: list[bytes] = []
    asked = Evaluator.score

    def score(evaluator: Evaluator, edits: Edits) -> Tensor:
        seen.extend(picture.tobytes() for picture in edits.render(images).numpy())
        return asked(evaluator, edits)

    monkeypatch.setattr(Evaluator, "score", score)
    return seen
