"""pixelsem: find where in an image a classifier is fragile.

Everything that the commands do can be called from Python; names are imported when they are first used, so
that ``import pixelsem`` is instant. See the README for an example.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pixelsem.version import __version__

if TYPE_CHECKING:
    from pixelsem.attacks.base import Outcome, Progress, Searches
    from pixelsem.attacks.de import differential_evolution
    from pixelsem.attacks.settings import DESettings
    from pixelsem.errors import PixelsemError
    from pixelsem.fitness.edits import Edits
    from pixelsem.fitness.evaluator import Evaluator
    from pixelsem.images import read_image, read_mask, write_image
    from pixelsem.models import Classifier, load_classifier
    from pixelsem.models.inputs import fit_image, fit_mask
    from pixelsem.regions.grabcut import grabcut
    from pixelsem.regions.settings import GrabCutSettings
    from pixelsem.stage import Stage, open_stage

_HOME = {
    "Classifier": "models",
    "DESettings": "attacks.settings",
    "Edits": "fitness.edits",
    "Evaluator": "fitness.evaluator",
    "GrabCutSettings": "regions.settings",
    "Outcome": "attacks.base",
    "PixelsemError": "errors",
    "Progress": "attacks.base",
    "Searches": "attacks.base",
    "Stage": "stage",
    "differential_evolution": "attacks.de",
    "fit_image": "models.inputs",
    "fit_mask": "models.inputs",
    "grabcut": "regions.grabcut",
    "load_classifier": "models",
    "open_stage": "stage",
    "read_image": "images",
    "read_mask": "images",
    "write_image": "images",
}

__all__ = [
    "Classifier",
    "DESettings",
    "Edits",
    "Evaluator",
    "GrabCutSettings",
    "Outcome",
    "PixelsemError",
    "Progress",
    "Searches",
    "Stage",
    "__version__",
    "differential_evolution",
    "fit_image",
    "fit_mask",
    "grabcut",
    "load_classifier",
    "open_stage",
    "read_image",
    "read_mask",
    "write_image",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pixelsem' has no attribute {name!r}")
    return getattr(import_module(f"pixelsem.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
