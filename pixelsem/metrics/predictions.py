"""What classifiers say of 8-bit images: in batches, and decided as a success is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pixelsem.fitness.evaluator import Evaluator
from pixelsem.images import pixel_digest
from pixelsem.models.classifier import Classifier
from pixelsem.models.inputs import fit_image

#: Where the two highest logits are nearer than this, the batch might have decided: such images are scored alone.
_MARGIN = 1e-3


class Predictor:
    """Predicts classes with one model; what it was asked before, it remembers.

    Images of another size than the model's input are resized to it, both sides at once: they are crops already.
    """

    def __init__(self, classifier: Classifier, *, device: str = "auto", batch_size: int | None = None) -> None:
        self.classifier = classifier
        self._evaluator = Evaluator(classifier, device=device, precision="fp32", batch_size=batch_size, scorer="dense")
        self._known: dict[str, int] = {}

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
        """Return the top-1 class, int64 [N], of uint8 [H, W, 3] images, in fp32, as if each were scored alone."""
        keys = [pixel_digest(image) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        if new:
            self._known |= zip(new, self._top1(list(new.values())).tolist(), strict=True)
        return np.array([self._known[key] for key in keys], np.int64)

    def _top1(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.int64]:
        preprocessing = self.classifier.preprocessing
        fitted = np.stack([fit_image(image, preprocessing, "squash") for image in images])
        pixels = torch.from_numpy(fitted).permute(0, 3, 1, 2).contiguous()
        logits = self._evaluator.logits(pixels.float() / 255)
        best = logits.topk(min(2, logits.shape[1]), dim=1).values
        close = torch.nonzero(best[:, 0] - best[:, -1] < _MARGIN)[:, 0]
        top1 = logits.argmax(1)
        if len(close):
            top1[close] = self._evaluator.confirm(pixels[close.cpu()]).argmax(1)
        found: NDArray[np.int64] = top1.cpu().numpy()
        return found
