"""What the patch attacks need of files: a patch that is given, and the images that one is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.attacks.patch_fitting import Examples
from pixelsem.attacks.settings import RegionOptions
from pixelsem.attacks.settings_patches import AdvPatchSettings
from pixelsem.engine.overlap import Ahead
from pixelsem.engine.regions import RegionMaker
from pixelsem.errors import InputError, PixelsemError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.images import read_image, read_layer
from pixelsem.models import Classifier
from pixelsem.models.inputs import fit_image
from pixelsem.models.labels import Labels
from pixelsem.sources import ImageItem

_READ_AHEAD = 32  # images


def given_patch(
    settings: AdvPatchSettings, classifier: Classifier, device: str
) -> Callable[[Tensor, Tensor], Mapping[str, Tensor]]:
    """Read the patch that the settings name; what is returned hands it to all searches, as ``patches``.

    Without one there is nothing to hand out. Raises :class:`PixelsemError` for a file that is no picture, is larger
    than the classifier's input, or is transparent throughout.
    """
    file = settings.patch_file
    if file is None:
        return lambda images, labels: {}
    try:
        layer = torch.from_numpy(read_layer(file)).permute(2, 0, 1)
    except InputError as error:  # not one image's problem
        raise PixelsemError(f"--patch: {error}") from error
    (h, w), (height, width) = layer.shape[1:], classifier.preprocessing.size
    if h > height or w > width:
        raise PixelsemError(f"{file}: {w}×{h}, larger than the model's input of {width}×{height}; make it smaller")
    if not (layer[3] >= 128).any():
        raise PixelsemError(f"{file}: transparent throughout; a patch has opaque pixels")
    return lambda images, labels: {"patches": layer.expand(len(images), -1, -1, -1)}


@dataclass
class Reading:
    """What became of the images that a patch was to be trained on.

    :ivar used: the ids of those that it is trained on.
    :ivar skipped: how many were left out, by reason.
    :ivar failures: the one-line problem of each that could not be used, by id.
    """

    used: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def read_examples(
    items: list[ImageItem],
    evaluator: Evaluator,
    labels: Labels,
    target: int | None,
    options: RegionOptions,
    regions: RegionMaker,
) -> tuple[Examples, Reading]:
    """Read images, labels and regions into memory, those left out that nothing can be learnt from.

    These are the ones that the model is wrong on, those of the target's class, and those whose region is empty
    or flagged. Raises :class:`PixelsemError` where none is left.
    """
    reading = Reading()
    found = list(_examples(items, evaluator, labels, target, options, regions, reading))
    if not found:
        reasons = [f"{count} {reason}" for reason, count in sorted(reading.skipped.items())]
        reasons += [f"{len(reading.failures)} unreadable"] if reading.failures else []
        raise PixelsemError(f"none of {len(items)} images can be trained on: {', '.join(reasons)}")
    images, numbers, inside = zip(*found, strict=True)
    classes = torch.tensor(numbers)
    targets = torch.full_like(classes, -1 if target is None else target)
    return Examples(torch.stack(images), classes, targets, torch.stack(inside)), reading


def _examples(
    items: list[ImageItem],
    evaluator: Evaluator,
    labels: Labels,
    target: int | None,
    options: RegionOptions,
    regions: RegionMaker,
    reading: Reading,
) -> Iterator[tuple[Tensor, int, Tensor]]:
    preprocessing = evaluator.classifier.preprocessing

    def read(item: ImageItem) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[str, ...]]:
        full = read_image(item.path)
        pixels = np.ascontiguousarray(fit_image(full, preprocessing, options.resize))
        inside, flags = regions.of(item.id, full.shape, pixels, preprocessing)
        return pixels, inside[options.region], flags

    with Ahead(_READ_AHEAD) as ahead:
        for item, result in ahead.map(read, items):
            try:
                pixels, inside, flags = result()
                image = torch.from_numpy(pixels).permute(2, 0, 1)
                predicted = int(evaluator.confirm(image[None])[0].argmax())
                label, _ = labels.of(item.id, predicted)
            except InputError as error:
                reading.failures[item.id] = str(error)
                continue
            reason = _reason_to_skip(label, predicted, target, inside, flags, options)
            if reason is None:
                reading.used.append(item.id)
                yield image, label, torch.from_numpy(inside)
            else:
                reading.skipped[reason] = reading.skipped.get(reason, 0) + 1


def _reason_to_skip(
    label: int,
    predicted: int,
    target: int | None,
    inside: NDArray[np.bool_],
    flags: tuple[str, ...],
    options: RegionOptions,
) -> str | None:
    if predicted != label:
        return "that the model is wrong on"
    if label == target:
        return "of the target's class"
    if flags and options.region != "original" and options.flagged == "skip":
        return "with a flagged mask"
    return None if inside.any() else "with an empty region"
