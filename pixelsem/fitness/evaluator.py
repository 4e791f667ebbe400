"""The evaluator that all attacks share: candidates in, logits out, in batches that fit the device."""

from __future__ import annotations

import copy
import time
from typing import Protocol

import torch
from torch import Tensor

from pixelsem.errors import PixelsemError
from pixelsem.fitness.edits import Edits
from pixelsem.models.classifier import Classifier

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST_PROBE = 4096  # candidates
_LONG_PROBE = 1.0  # seconds: a batch that takes so long gains nothing from being larger


class Scorer(Protocol):
    """How a batch of candidates is turned into logits; the seam between dense and other ways."""

    def attach(self, images: Tensor) -> None:
        """Take uint8 [N, 3, H, W] clean images on the device; later edits refer to them."""

    def logits(self, edits: Edits) -> Tensor:
        """Return float32 [C, classes] for one batch of candidates."""


class DenseScorer:
    """Renders every candidate and runs the whole network on it."""

    def __init__(self, classifier: Classifier, precision: str) -> None:
        self._dtype = _DTYPES[precision]
        self._network = copy.deepcopy(classifier.network).to(self._dtype).to(memory_format=torch.channels_last)
        self._mean, self._std, self._scale = classifier.mean, classifier.std, classifier.preprocessing.scale
        self._images = torch.empty(0)

    def attach(self, images: Tensor) -> None:
        """Take uint8 [N, 3, H, W] clean images on the device."""
        self._images = images

    def logits(self, edits: Edits) -> Tensor:
        """Return float32 [C, classes] for one batch of candidates."""
        pixels = edits.render(self._images).contiguous(memory_format=torch.channels_last)
        # The division and the normalisation stay in fp32: 8-bit values are not exact in bf16.
        x = (pixels.float() / 255 * self._scale - self._mean) / self._std
        logits: Tensor = self._network(x.to(self._dtype))
        return logits.float()


class Evaluator:
    """Scores candidates of many images in shared batches on one device.

    :ivar device: where the model and all candidates live.
    :ivar queries: candidates that went through the model so far.

    The classifier is moved to the device and set to evaluation, in place.
    ``precision`` is the arithmetic of :meth:`score`; :meth:`confirm` always uses fp32. ``batch_size`` is
    the number of candidates per forward pass; None finds the fastest by trying. A batch that does not
    fit in memory is halved, for good. ``scorer`` is ``dense``, the whole network for every candidate, or
    ``incremental``, only what the changed pixels reach (:mod:`pixelsem.fitness.incremental`): the same
    logits but for the order of sums.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        device: str | torch.device = "auto",
        precision: str = "fp32",
        batch_size: int | None = None,
        scorer: str = "dense",
    ) -> None:
        self.device = pick_device(str(device))
        self.precision = precision
        self.classifier = classifier.to(self.device).eval()
        self.queries = 0
        self._batch_size = batch_size
        self._images = torch.empty(0)
        self._scorer = _make_scorer(scorer, self.classifier, precision)

    @property
    def batch_size(self) -> int | None:
        """Candidates per forward pass; None as long as it is not known."""
        return self._batch_size

    @torch.inference_mode()
    def attach(self, images: Tensor) -> Tensor:
        """Make uint8 [N, 3, H, W] the clean images that edits refer to; return their logits, float32 [N, classes].

        The logits are in the search's precision; they are not counted as queries.
        """
        self._images = images.to(self.device)
        self._scorer.attach(self._images)
        positions = torch.zeros(len(images), 1, dtype=torch.int64, device=self.device)
        unchanged = self._images[:, :, 0, 0][:, None, :]
        index = torch.arange(len(images), device=self.device)
        return self._in_batches(Edits(index, positions, unchanged))

    @torch.inference_mode()
    def score(self, edits: Edits) -> Tensor:
        """Return logits, float32 [C, classes] on the device, of candidates of the attached images."""
        if self._batch_size is None:
            self._batch_size = self._probe(edits)
        self.queries += len(edits)
        return self._in_batches(edits)

    @torch.inference_mode()
    def confirm(self, images: Tensor) -> Tensor:
        """Return fp32 logits, float32 [N, classes] on the device, of uint8 [N, 3, H, W] images; no queries counted.

        One image at a time: what is decided here must not depend on what else is in a batch.
        """
        with _MatmulPrecision("fp32"):
            unit = images.to(self.device).float() / 255
            return torch.cat([self.classifier(image[None]).float() for image in unit])

    @torch.inference_mode()
    def measure_rate(self, candidates: int = 400, pixels: int = 1) -> float:
        """Return the queries per second of so many candidates of the first attached image; none are counted."""
        places = torch.arange(candidates * pixels, device=self.device).view(candidates, pixels)
        positions = places * 37 % self._images[0, 0].numel()
        colour = torch.full((candidates, pixels, 3), 255, dtype=torch.uint8, device=self.device)
        edits = Edits(torch.zeros(candidates, dtype=torch.int64, device=self.device), positions, colour)
        if self._batch_size is None:
            self._batch_size = self._probe(edits)
        size = min(self._batch_size, candidates)
        return size / self._time(edits[:size])

    def _in_batches(self, edits: Edits) -> Tensor:
        parts: list[Tensor] = []
        start = 0
        while start < len(edits):
            size = self._batch_size or 64
            try:
                with _MatmulPrecision(self.precision):
                    parts.append(self._scorer.logits(edits[start : start + size]))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._batch_size = _halved(min(size, len(edits) - start), error)
                continue
            start += size
        return torch.cat(parts)

    def _probe(self, edits: Edits) -> int:
        """Double the batch while that makes it clearly faster; return the fastest size seen."""
        size, best, best_rate = 16, 16, 0.0
        while size <= min(_LARGEST_PROBE, max(16, len(edits))):
            repeated = edits[torch.arange(size, device=self.device) % len(edits)]
            try:
                seconds = self._time(repeated)
                rate = size / seconds
            except (torch.OutOfMemoryError, RuntimeError) as error:
                return min(best, _halved(size, error))
            if rate > best_rate * 1.03:
                best, best_rate = size, rate
            elif size >= 4 * best:
                break
            if seconds > _LONG_PROBE:
                break
            size *= 2
        return best

    def _time(self, edits: Edits) -> float:
        """Seconds of one forward pass; of a short one the second, as the first pays for set-up."""
        seconds = 0.0
        for _ in range(2):
            start = time.perf_counter()
            with _MatmulPrecision(self.precision):
                self._scorer.logits(edits)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - start
            if seconds > _LONG_PROBE:
                break
        return seconds


def _make_scorer(name: str, classifier: Classifier, precision: str) -> Scorer:
    if name == "incremental":
        from pixelsem.fitness.incremental import IncrementalScorer

        return IncrementalScorer(classifier, precision)
    if name != "dense":
        raise PixelsemError(f"--evaluator: {name!r} is none of dense, incremental")
    return DenseScorer(classifier, precision)


def pick_device(name: str) -> torch.device:
    """Return the device that ``name`` means: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; else :class:`PixelsemError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PixelsemError(f"--device: {name!r} is none of auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PixelsemError(f"--device: {name} is not there; {torch.cuda.device_count()} CUDA devices found")
    if device.type not in ("cpu", "cuda"):
        raise PixelsemError(f"--device: {name!r} is none of auto, cpu, cuda, cuda:N")
    return device


def _halved(size: int, error: Exception) -> int:
    """Return half of a batch ``size`` that ran out of memory; raise where it did not, or is one image already."""
    if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error).lower():
        raise error
    if size <= 1:
        raise PixelsemError("out of memory with a single candidate; use a smaller model or another --device") from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return size // 2


class _MatmulPrecision:
    """Set the precision of fp32 convolutions and matrix products on CUDA for the length of a block."""

    def __init__(self, precision: str) -> None:
        self._allow = precision == "tf32"

    def __enter__(self) -> None:
        self._before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self._allow

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before
