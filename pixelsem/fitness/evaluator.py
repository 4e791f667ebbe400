"""The evaluator that all attacks share: candidates in, logits out, in batches that fit the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from pixelsem.errors import ModelError, PixelsemError, is_out_of_memory
from pixelsem.fitness.allocation import FreedMemory, keep_kernels
from pixelsem.fitness.dense import DenseScorer
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.incremental import IncrementalScorer
from pixelsem.fitness.plan import NodePlan
from pixelsem.fitness.tuning import LARGEST_PROBE, Memory, Way, fastest_batch, fastest_way
from pixelsem.models.classifier import Classifier

_CLEAN_BATCH = 64
_FEW = 256  # ways are measured for at least as many candidates
_SHORT_PROBE = 0.3  # seconds
_REPEATS = 6  # of what is timed, the first of which pays for set-up
_CPU_VALUES, _GPU_VALUES = 2**18, 2**22  # pixels of all images that gradients are asked of together

#: float [n] losses of logits, float32 [n, classes], of the rows int64 [n].
Loss = Callable[[Tensor, Tensor], Tensor]
#: float [n, 3, H, W] images in [0, 1] of the parameters [n, …] of the rows int64 [n]; differentiable.
Render = Callable[[Tensor, Tensor], Tensor]


class LossAndGradient(NamedTuple):
    """Of N images: losses float [N], their gradients (as the parameters), logits float32 [N, classes]."""

    losses: Tensor
    gradients: Tensor
    logits: Tensor


class Scorer(Protocol):
    """How a batch of candidates is turned into logits; the seam between dense and other ways."""

    def attach(self, images: Tensor) -> None:
        """Take uint8 [N, 3, H, W] clean images on the device; later edits refer to them."""

    def clean(self, images: slice) -> Tensor:
        """Return float32 [n, classes], the logits of some of the attached images."""

    def logits(self, edits: Edits) -> Tensor:
        """Return float32 [C, classes] for one batch of candidates."""


class Evaluator:
    """Scores candidates of many images in shared batches on one device.

    :ivar device: where the model and all candidates live.
    :ivar queries: candidates that went through the model so far.

    The classifier is moved to the device and set to evaluation, in place.
    ``precision`` is the arithmetic of :meth:`score`; :meth:`confirm` always uses fp32. ``batch_size`` is
    the number of candidates per forward pass; None finds the fastest by trying. A batch that does not
    fit in memory is halved, for good. ``scorer`` is ``dense``, the whole network for every candidate,
    ``incremental``, only what the changed pixels reach (:mod:`pixelsem.fitness.incremental`): the same
    logits but for the order of sums; or ``auto``, the faster of both for each number of changed pixels, as
    measured once and remembered (:mod:`pixelsem.fitness.tuning`). A classifier behind a defence is always scored
    dense.

    :ivar on_measure: called before the faster of both is found by trying, which takes seconds.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        device: str | torch.device = "auto",
        precision: str = "fp32",
        batch_size: int | None = None,
        scorer: str = "auto",
    ) -> None:
        if scorer not in ("auto", "dense", "incremental"):
            raise PixelsemError(f"--evaluator: {scorer!r} is none of auto, dense, incremental")
        if classifier.defense is not None:
            # A transform spreads a change over pixels that the edit does not name.
            if scorer == "incremental":
                raise PixelsemError("--evaluator incremental: a model behind --defense is scored dense; leave it out")
            scorer = "dense"
        self.device = pick_device(str(device))
        self._freed: FreedMemory | None = None
        if self.device.type == "cpu":
            self._freed = FreedMemory()
            keep_kernels()
        self.precision = precision
        self.classifier = classifier.to(self.device).eval()
        self.queries = 0
        self._batch_size = batch_size
        self._mode = scorer
        self._images = torch.empty(0)
        self._scorers: dict[str, Scorer] = {}
        self._ways: dict[int, Way] = {}
        self._image_batch: int | None = None
        self.on_measure: Callable[[], None] = lambda: None

    @torch.inference_mode()
    def attach(self, images: Tensor) -> Tensor:
        """Make uint8 [N, 3, H, W] the clean images that edits refer to; return their logits, float32 [N, classes].

        The logits are in the search's precision; they are not counted as queries.
        """
        self._images = images.to(self.device)
        for scorer in self._scorers.values():
            scorer.attach(self._images)
        whole = self._scorer("incremental" if self._mode == "incremental" else "dense")
        size = self._batch_size or _CLEAN_BATCH
        return self._in_batches(whole.clean, len(images), size)[0]

    @torch.inference_mode()
    def score(self, edits: Edits) -> Tensor:
        """Return logits, float32 [C, classes] on the device, of candidates of the attached images."""
        if not len(edits):
            return torch.empty(0, len(self.classifier.class_names), device=self.device)
        self.queries += len(edits)
        way = self.way(edits)
        logits, size = self._in_batches(lambda part: self._logits(way, edits[part]), len(edits), way.batch_size)
        if size < way.batch_size:
            self._ways[edits.position.shape[1]] = replace(way, batch_size=size)
        return logits

    @torch.inference_mode()
    def way(self, edits: Edits) -> Way:
        """Return how candidates like ``edits`` are scored; measured where that is not known. None are counted."""
        pixels, tried = edits.position.shape[1], max(_FEW, 2 ** (len(edits) - 1).bit_length())
        tried = min(tried, LARGEST_PROBE)
        if pixels not in self._ways or 4 * self._ways[pixels].tried < tried:
            self._ways[pixels] = self._found(edits, tried)
        return self._ways[pixels]

    def explain(self, pixels: int) -> list[NodePlan]:
        """Return, node by node, how incremental scoring computes candidates of ``pixels`` changed pixels.

        It is what :meth:`way` decided on for them where it chose incremental scoring.
        """
        if self.classifier.defense is not None:
            raise PixelsemError("--explain: a model behind --defense is scored dense; there is no plan to explain")
        way = self._ways.get(pixels)
        scorer = self._incremental()
        if way is not None and way.evaluator == "incremental":
            scorer.cut(pixels, way.dense_from)
        return scorer.explain(pixels, LARGEST_PROBE if way is None else way.batch_size)

    def activation_bytes(self, pixels: int) -> tuple[int, int]:
        """Return the size of the activations that incremental scoring keeps of one clean image, and of all at most."""
        return self._incremental().activation_bytes(pixels)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits, float32 [N, classes] on the device, of float [N, 3, H, W] images in [0, 1]; N queries."""
        images = images.to(self.device)
        self.queries += len(images)
        dense = cast(DenseScorer, self._scorer("dense"))
        logits, self._image_batch = self._in_batches(
            lambda part: dense.of_images(images[part]), len(images), self._images_at_a_time()
        )
        return logits

    def loss_and_gradient(self, parameters: Tensor, loss: Loss, render: Render | None = None) -> LossAndGradient:
        """Return losses of N images and the gradient of each with respect to its own parameters; N queries.

        ``parameters`` is float [N, …] on the device, by default the images, [N, 3, H, W] in [0, 1];
        ``render(parameters, index)`` makes them from anything else. ``loss(logits, index)`` returns float [n] for
        the rows ``index`` (int64 [n]) of a batch. What comes out for a row depends on no other row.
        """
        self.queries += len(parameters)
        dense = cast(DenseScorer, self._scorer("dense"))
        parts: list[LossAndGradient] = []

        def logits_of(rows: slice) -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                own = parameters[rows].detach().clone().requires_grad_()
                index = torch.arange(rows.start, rows.stop, device=self.device)
                logits = dense.of_images(own if render is None else render(own, index))
                losses = loss(logits, index)
                (gradient,) = torch.autograd.grad(losses.sum(), own)
            parts.append(LossAndGradient(losses.detach(), gradient, logits.detach()))
            return parts[-1].logits

        _, self._image_batch = self._in_batches(logits_of, len(parameters), self._images_at_a_time())
        return LossAndGradient(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def measure_gradient_rate(self, images: int) -> float:
        """Return the images per second of :meth:`loss_and_gradient`, tried with so many; none are counted."""
        before, (height, width) = self.queries, self.classifier.preprocessing.size
        grey = torch.full((min(images, self._images_at_a_time()), 3, height, width), 0.5, device=self.device)
        seconds = 0.0
        for _ in range(2):  # the first pays for set-up
            start = time.perf_counter()
            self.loss_and_gradient(grey, lambda logits, _: logits[:, 0])
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - start
        self.queries = before
        return len(grey) / seconds

    def _images_at_a_time(self) -> int:
        """Return how many images go through the network together where gradients are kept."""
        if self._image_batch is None:
            height, width = self.classifier.preprocessing.size
            values = _GPU_VALUES if self.device.type == "cuda" else _CPU_VALUES
            self._image_batch = self._batch_size or max(1, min(256, values // (height * width)))
        return self._image_batch

    @torch.inference_mode()
    def confirm(self, images: Tensor) -> Tensor:
        """Return fp32 logits, float32 [N, classes] on the device, of uint8 [N, 3, H, W] images; no queries counted.

        One image at a time: what is decided here must not depend on what else is in a batch. Raises
        :class:`ModelError` for logits that are no numbers, :class:`PixelsemError` where one image does not fit in
        memory.
        """
        try:
            with _MatmulPrecision("fp32"):
                unit = images.to(self.device).float() / 255
                logits = torch.cat([self.classifier(image[None]).float() for image in unit])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise _too_large("image") from error
        if not logits.isfinite().all():
            raise ModelError(f"{self.classifier.name}: gives NaN or infinite logits for an image; use sound weights")
        return logits

    def attach_grey(self) -> None:
        """Attach one grey image: enough to measure with."""
        height, width = self.classifier.preprocessing.size
        self.attach(torch.full((1, 3, height, width), 128, dtype=torch.uint8))

    def measure_rate(self, candidates: int = 400, pixels: int = 1) -> float:
        """Return the queries per second of so many candidates of the first attached image; none are counted."""
        way = self.way_for(pixels, candidates)
        size = min(way.batch_size, candidates)
        return size / self._seconds(replace(way, batch_size=size), self._examples(pixels, size))

    def way_for(self, pixels: int, candidates: int) -> Way:
        """As :meth:`way`, for so many candidates all over the first attached image."""
        return self.way(self._examples(pixels, candidates))

    def _examples(self, pixels: int, candidates: int) -> Edits:
        places = torch.arange(candidates * pixels, device=self.device).view(candidates, pixels)
        positions = places * 37 % self._images[0, 0].numel()
        colour = torch.full((candidates, pixels, 3), 255, dtype=torch.uint8, device=self.device)
        return Edits(torch.zeros(candidates, dtype=torch.int64, device=self.device), positions, colour)

    def _found(self, edits: Edits, tried: int) -> Way:
        """Return the way that is wanted or fastest for candidates like ``edits``."""
        pixels = edits.position.shape[1]
        if self._batch_size is not None and self._mode != "auto":
            return Way(self._mode, self._batch_size, tried=tried)  # type: ignore[arg-type]
        memory = Memory(self.classifier, self.precision, self.device)
        known = memory.recall(pixels, tried) if self._mode == "auto" and self._batch_size is None else None
        if known is not None:
            return known

        def seconds(way: Way) -> float:
            return self._seconds(way, edits)

        def measured(name: Literal["dense", "incremental"]) -> Way:
            way = Way(name, self._batch_size or 1, tried=tried)
            if self._batch_size is None:
                return fastest_batch(way, seconds)
            return replace(way, rate=self._batch_size / seconds(way))

        if self._mode != "auto":
            return measured(self._mode)  # type: ignore[arg-type]
        self.on_measure()
        dense, incremental = measured("dense"), measured("incremental")
        many = _repeated(edits, max(1, min(incremental.batch_size, int(incremental.rate * _SHORT_PROBE))))
        best = fastest_way(dense, incremental, self._incremental(), many, seconds)
        if self._batch_size is None:
            memory.note(pixels, best)
        return best

    def _scorer(self, name: str) -> Scorer:
        if name not in self._scorers:
            make: Callable[[Classifier, str], Scorer] = IncrementalScorer if name == "incremental" else DenseScorer
            with torch.inference_mode(False):  # weights made in inference mode let no gradient through
                self._scorers[name] = make(self.classifier, self.precision)
            self._scorers[name].attach(self._images)
        return self._scorers[name]

    def _incremental(self) -> IncrementalScorer:
        return cast(IncrementalScorer, self._scorer("incremental"))

    def _logits(self, way: Way, edits: Edits) -> Tensor:
        if way.evaluator == "incremental":
            self._incremental().cut(edits.position.shape[1], way.dense_from)
        return self._scorer(way.evaluator).logits(edits)

    def _in_batches(self, logits: Callable[[slice], Tensor], count: int, size: int) -> tuple[Tensor, int]:
        """Return the logits of ``count`` items, and how many of them fit in memory at a time."""
        parts: list[Tensor] = []
        start = 0
        while start < count:
            left = count - start
            stop = start + -(-left // -(-left // size))  # batches of about one size: a small last one is slow
            try:
                with _MatmulPrecision(self.precision):
                    parts.append(logits(slice(start, stop)))
            except (MemoryError, RuntimeError) as error:
                size = _halved(stop - start, error)
                continue
            start = stop
        if self._freed is not None:
            self._freed.give_back()
        return torch.cat(parts), size

    @torch.inference_mode()
    def _seconds(self, way: Way, edits: Edits) -> float:
        """Return the time of one forward pass of as many candidates as ``way`` takes; the best of several if short.

        Raises :class:`torch.OutOfMemoryError` where they do not fit.
        """
        batch = _repeated(edits, way.batch_size)
        times: list[float] = []
        while len(times) < 2 or (len(times) < _REPEATS and sum(times) < _SHORT_PROBE):
            start = time.perf_counter()
            try:
                with _MatmulPrecision(self.precision):
                    self._logits(way, batch)
            except (MemoryError, RuntimeError) as error:
                _halved(len(batch), error)
                raise torch.OutOfMemoryError(str(error)) from error
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        return min(times[1:])


def _repeated(edits: Edits, count: int) -> Edits:
    """Return ``count`` candidates out of ``edits``, some of them repeatedly where there are too few."""
    return edits[torch.arange(count, device=edits.image.device) % len(edits)]


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


def pick_devices(names: str) -> list[str]:
    """Return the devices that ``names`` means: ``all`` CUDA devices, or a list with commas, one entry per process.

    A list takes what :func:`pick_device` takes; a device may be named twice. Raises :class:`PixelsemError`.
    """
    if names == "all":
        count = torch.cuda.device_count()
        if not count:
            raise PixelsemError("--device all: no CUDA device found; give cpu, or cpu,cpu for two processes")
        return [f"cuda:{number}" for number in range(count)]
    devices = [name.strip() for name in names.split(",")]
    for name in devices:
        pick_device(name)
    return devices


def _too_large(what: str) -> PixelsemError:
    return PixelsemError(f"out of memory with a single {what}; use a smaller model or another --device")


def _halved(size: int, error: Exception) -> int:
    """Return half of a batch ``size`` that ran out of memory; raise where it did not, or is one image already."""
    if not is_out_of_memory(error):
        raise error
    if size <= 1:
        raise _too_large("candidate") from error
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
