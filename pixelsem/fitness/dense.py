"""Dense scoring: the whole network on every candidate."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pixelsem.fitness.edits import Edits
from pixelsem.fitness.products import with_fast_products
from pixelsem.models.classifier import Classifier, run_network

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DenseScorer:
    """Renders every candidate and runs the whole network on it."""

    def __init__(self, classifier: Classifier, precision: str) -> None:
        self._dtype = DTYPES[precision]
        network = copy.deepcopy(classifier.network).requires_grad_(False)
        self._network = with_fast_products(network.to(self._dtype).to(memory_format=torch.channels_last))
        self._defense, self._name = classifier.defense, classifier.name
        self._mean, self._std, self._scale = classifier.mean, classifier.std, classifier.preprocessing.scale
        self._images = torch.empty(0)

    def attach(self, images: Tensor) -> None:
        """Take uint8 [N, 3, H, W] clean images on the device."""
        self._images = images

    def clean(self, images: slice) -> Tensor:
        """Return float32 [n, classes], the logits of some of the attached images."""
        return self._logits(self._images[images])

    def logits(self, edits: Edits) -> Tensor:
        """Return float32 [C, classes] for one batch of candidates."""
        return self._logits(edits.render(self._images))

    def _logits(self, images: Tensor) -> Tensor:
        return self.of_images(images.contiguous(memory_format=torch.channels_last).float() / 255)

    def of_images(self, images: Tensor) -> Tensor:
        """Return float32 [N, classes] for float [N, 3, H, W] images in [0, 1], differentiable."""
        if self._defense is not None:
            images = self._defense(images)
        # The normalisation stays in fp32: 8-bit values are not exact in bf16.
        x = (images * self._scale - self._mean) / self._std
        return run_network(self._network, x.to(self._dtype), self._name).float()
