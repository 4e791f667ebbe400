"""Which classifiers there are, and how each is built from a name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pixelsem.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from pixelsem.models.classifier import Classifier

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Architecture:
    """A network of our own: ``module:function`` under ``pixelsem.models`` and what it was made for."""

    factory: str
    source: str


#: The CIFAR-10 architectures; each has 32×32 input and ten classes.
ARCHITECTURES = {
    "allconv": Architecture("allconv:allconv", "All-CNN-C, Springenberg et al. 2015"),
    "nin": Architecture("nin:nin", "Network in Network, Lin et al. 2014"),
    "vgg11": Architecture("vgg:vgg11", "VGG-11, Simonyan & Zisserman 2015"),
    "vgg13": Architecture("vgg:vgg13", "VGG-13, Simonyan & Zisserman 2015"),
    "vgg16": Architecture("vgg:vgg16", "VGG-16, Simonyan & Zisserman 2015"),
    "resnet18": Architecture("resnet:resnet18", "ResNet-18, He et al. 2016, for 32×32"),
    "resnet34": Architecture("resnet:resnet34", "ResNet-34, He et al. 2016, for 32×32"),
}


def build_network(name: str, num_classes: int) -> nn.Module:
    """Build the untrained network ``name`` of :data:`ARCHITECTURES`; raises :class:`ModelError`."""
    if name not in ARCHITECTURES:
        raise ModelError(f"{name}: no such architecture; there are {', '.join(ARCHITECTURES)}")
    module, function = ARCHITECTURES[name].factory.split(":")
    network: nn.Module = getattr(import_module(f"pixelsem.models.{module}"), function)(num_classes)
    return network


def bundled_weights(name: str) -> Path | None:
    """Return the weights that come with the package for the architecture ``name``, None where there are none."""
    path = Path(__file__).parent / "weights" / f"{name}.safetensors"
    return path if path.is_file() else None


def untrained(name: str, class_names: tuple[str, ...] = CIFAR10_CLASSES, size: int = 32) -> Classifier:
    """Return the architecture ``name`` as initialised, with CIFAR-10's preprocessing."""
    from pixelsem.models.classifier import Classifier, Preprocessing

    preprocessing = Preprocessing((size, size), size, CIFAR10_MEAN, CIFAR10_STD)
    network = build_network(name, len(class_names))
    return Classifier(network, name=name, class_names=class_names, preprocessing=preprocessing)
