"""Classifiers: their networks, weights and preprocessing. Importing this package does not import torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixelsem.models.catalogue import ModelInfo, list_models
    from pixelsem.models.checkpoints import load_state, save_weights
    from pixelsem.models.classifier import Classifier, Preprocessing
    from pixelsem.models.inputs import fit_image, fit_mask
    from pixelsem.models.loading import load_classifier

__all__ = [
    "Classifier",
    "ModelInfo",
    "Preprocessing",
    "fit_image",
    "fit_mask",
    "list_models",
    "load_classifier",
    "load_state",
    "save_weights",
]

_HOMES = {
    "Classifier": "classifier",
    "ModelInfo": "catalogue",
    "Preprocessing": "classifier",
    "fit_image": "inputs",
    "fit_mask": "inputs",
    "list_models": "catalogue",
    "load_classifier": "loading",
    "load_state": "checkpoints",
    "save_weights": "checkpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
