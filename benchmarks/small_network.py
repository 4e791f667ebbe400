"""A network that trains in a second, with what a resumed training must bring back: normalisation and dropout."""

from __future__ import annotations

from torch import nn

from pixelsem.models.classifier import Classifier, Preprocessing


def make() -> Classifier:
    """Return it, for 32×32 images and ten classes: ``--model small_network.py:make``."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 4 * 4, 10))
    names = tuple(map(str, range(10)))
    return Classifier(network, name="small", class_names=names, preprocessing=Preprocessing((32, 32), 32))
