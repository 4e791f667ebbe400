"""What some attacks go by beside the image: superpixels and attention, at the classifier's resolution."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.attacks.settings_dong2020 import SaFgmSettings
from pixelsem.attacks.settings_qian2021 import CfrSettings
from pixelsem.engine.regions import fitted_mask
from pixelsem.fitness.evaluator import pick_device
from pixelsem.models.classifier import Classifier
from pixelsem.models.inputs import Resize
from pixelsem.regions.cam import Method, activation_maps, find_focus
from pixelsem.regions.masks import MaskSource
from pixelsem.regions.settings import LscSettings, SeedsSettings, SlicSettings, SuperpixelSettings
from pixelsem.regions.superpixels import Superpixels, merge

_BATCH = 16  # images whose attention is computed together

_METHODS: dict[str, type[SuperpixelSettings]] = {"slic": SlicSettings, "lsc": LscSettings, "seeds": SeedsSettings}


class AttentionGuide:
    """Where the classifier sees the label: ``attention``, float32 [N, H, W] in [0, 1] with the maximum 1.

    It is the class activation of :mod:`pixelsem.regions.cam`; where nothing speaks for the label it is 1
    throughout, so that nothing is cropped.
    """

    def __init__(self, classifier: Classifier, method: Method, layer: str | None, device: str) -> None:
        """Raises as :func:`pixelsem.regions.cam.find_focus` where there is no feature map to look at."""
        self._classifier = classifier.to(pick_device(device)).eval()
        self._focus = find_focus(self._classifier, method, layer)

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the attention of uint8 [N, 3, H, W] images to their labels, int64 [N]; on the CPU."""
        maps = [self._of(images[at : at + _BATCH], labels[at : at + _BATCH]) for at in range(0, len(images), _BATCH)]
        return {"attention": torch.cat(maps)}

    def _of(self, images: Tensor, labels: Tensor) -> Tensor:
        maps = activation_maps(self._classifier, images, self._focus, lambda _: labels).cpu()
        return torch.where(maps.amax((1, 2), keepdim=True) > 0, maps, 1.0)


class SuperpixelGuide(AttentionGuide):
    """Attention (CAM) and ``superpixels``, int64 [H, W] from 0 on: what dong2020's methods go by (§3.3)."""

    def __init__(self, settings: SaFgmSettings, classifier: Classifier, device: str) -> None:
        """Raises :class:`pixelsem.errors.PixelsemError` where superpixels or attention cannot be made as asked."""
        super().__init__(classifier, "cam", settings.layer, device)
        self._preprocessing = classifier.preprocessing
        self._merge_threshold = settings.merge_threshold
        self._maps = None if settings.maps is None else MaskSource.open(settings.maps)
        if self._maps is None:
            method = _METHODS[settings.superpixels]
            self._find = Superpixels(method(size=settings.size, merge_threshold=settings.merge_threshold))

    def of_image(
        self, image_id: str, shape: tuple[int, ...], pixels: NDArray[np.uint8], resize: Resize
    ) -> Mapping[str, NDArray[np.int64]]:
        """Return the superpixels of one image; see :class:`pixelsem.engine.searching.GuidesImages`.

        Maps that are given go the way of the image (nearest), and are merged there. Any value in them stands for
        one superpixel, 0 too. Raises :class:`pixelsem.errors.InputError` where there is none of the image, or of
        another size.
        """
        if self._maps is None:
            found = self._find([pixels], [image_id])[0]
        else:
            given = fitted_mask(self._maps, image_id, shape, self._preprocessing, resize).values
            found = merge(given, pixels, self._merge_threshold)  # names them from 1 on, also where it merges nothing
        return {"superpixels": found.astype(np.int64) - 1}


def superpixels_and_attention(settings: SaFgmSettings, classifier: Classifier, device: str) -> SuperpixelGuide:
    """Open the guide of the superpixel-guided attentional attacks."""
    return SuperpixelGuide(settings, classifier, device)


def attention(settings: CfrSettings, classifier: Classifier, device: str) -> AttentionGuide:
    """Open the guide of qian2021's attack: Grad-CAM of the label (Eqs. 4 and 5)."""
    return AttentionGuide(classifier, "gradcam", settings.layer, device)
