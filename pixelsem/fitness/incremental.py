"""Incremental scoring: of each map, only the windows that the changed pixels reach are computed again.

A candidate's activations differ from those of its clean image in a window around each changed pixel, which
grows from layer to layer. The clean activations are kept; each layer reads what its window needs from them
and from the windows of the layer before, so that the logits are those of the whole network on the whole image
but for the order of sums. Where the windows cover most of a map, and where an operation is not known, whole
maps are filled in and computed from there on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import GraphModule

from pixelsem.fitness.activations import Activations, memory_limit
from pixelsem.fitness.dense import DTYPES
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.graph import lower
from pixelsem.fitness.kinds import Sliding
from pixelsem.fitness.plan import Analysis, NodePlan, Plan
from pixelsem.fitness.products import with_fast_products
from pixelsem.fitness.propagation import Clock, Propagation, Timed
from pixelsem.fitness.windows import Batch
from pixelsem.models.classifier import Classifier

#: Above this part of a map, in windows, whole maps are computed: where nothing was measured.
DENSE_FROM = 0.9
_CLASSES = (1, 2, 3, 4, 6)
#: Rough figures, which only weigh computing in vain against calls: both ends are flat.
_CPU_MACS_PER_SECOND, _GPU_MACS_PER_SECOND = 1e11, 2e13  # per thread; per device; in fp32
_CPU_SECONDS_PER_GROUP, _GPU_SECONDS_PER_GROUP = 150e-6, 300e-6  # of windows, per operation
_STEPS_OF_SPREAD = 2  # as many calls as this many more operations have
_MANY = 4096  # candidates


class IncrementalScorer:
    """Scores candidates by what they change in the activations of their clean images; see the module's head.

    ``dense_from`` is the part of a map, in windows, above which whole maps are computed (:meth:`cut` says it per
    number of pixels); ``classes``, squared, is how many sizes windows may have (None: what suits the device and
    the batch). ``memory`` bounds the bytes of activations kept. ``dtype`` is the arithmetic where that of
    ``precision`` will not do.
    """

    def __init__(
        self,
        classifier: Classifier,
        precision: str = "fp32",
        *,
        dense_from: float = DENSE_FROM,
        classes: int | None = None,
        memory: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._dtype = dtype or DTYPES[precision]
        self._device = classifier.mean.device
        self._dense_from, self._cuts = dense_from, dict[int, float]()
        self._classes = classes
        self._mean, self._std = classifier.mean.float(), classifier.std.float()
        self._preprocessing = classifier.preprocessing
        self._graph = self._lowered(classifier)
        self._images = torch.empty(0)
        limit = memory_limit(self._device) if memory is None else memory
        self._activations = Activations(self._graph, self._normalised, limit)
        self._analyses: dict[tuple[int, int], Analysis] = {}
        self._plans: dict[tuple[int, float, int], Plan] = {}
        self._chosen: dict[tuple[int, int], int] = {}
        self._clock: Clock | None = None

    def attach(self, images: Tensor) -> None:
        """Take uint8 [N, 3, H, W] clean images on the device; their activations are computed when first needed."""
        if images.shape[2:] != self._images.shape[2:]:
            self._plans.clear()
            self._chosen.clear()
        self._images = images
        self._activations.attach(images)

    @torch.inference_mode()
    def clean(self, images: slice) -> Tensor:
        """Return float32 [n, classes], the logits of some of the attached images; computed whole."""
        return self._result(self._graph(self._normalised(self._images[images])))

    @torch.inference_mode()
    def logits(self, edits: Edits) -> Tensor:
        """Return float32 [C, classes] for one batch of candidates; in float64 where that is the scorer's dtype.

        Cheapest where the candidates come image by image.
        """
        pixels = edits.position.shape[1]
        plan = self._plan(pixels, self._classes_for(pixels, len(edits)))
        order = torch.argsort(edits.image, stable=True)
        parts = [self._of_block(plan, block, part) for block, part in self._blocks(plan, edits[order].settled())]
        result = torch.cat(parts)
        return torch.empty_like(result).index_copy_(0, order, result)

    def cut(self, pixels: int, dense_from: float) -> None:
        """Compute maps whole above another part for candidates of ``pixels`` changed pixels."""
        self._cuts[pixels] = dense_from

    def cuts(self, edits: Edits, few: Edits) -> list[float]:
        """Return every useful ``dense_from`` for such ``edits``, the one that promises to be fastest first.

        Each operation is timed once on the windows of ``edits`` and once on the whole maps of ``few``.
        """
        pixels = edits.position.shape[1]
        classes = self._classes_for(pixels, len(edits))
        before, self._cuts[pixels] = self._cuts.get(pixels, self._dense_from), float("inf")
        self._clock, on_maps = Clock(self._device), Clock(self._device)
        for _ in range(2):  # the first time pays for set-up
            self.logits(edits)
            Timed(self._graph, on_maps).run(self._normalised(few.render(self._images)))
        on_windows, self._clock, self._cuts[pixels] = self._clock, None, before
        analysis = self._analysis()

        def promised(cut: float) -> float:
            steps = analysis.plan(pixels, cut, classes).steps
            windows, maps = on_windows.seconds, on_maps.seconds
            return sum(
                windows.get(node, 0.0) / len(edits) if node in steps else seconds / len(few)
                for node, seconds in maps.items()
            )

        return sorted(analysis.shares(pixels, classes), key=promised)

    def cache_bytes(self) -> int:
        """Return the size of the clean activations that are kept now."""
        return self._activations.nbytes

    @torch.inference_mode()
    def activation_bytes(self, pixels: int) -> tuple[int, int]:
        """Return the size of the activations kept of one clean image for ``pixels`` changed pixels, and the limit."""
        plan = self._plan(pixels, self._classes_for(pixels, _MANY))
        return plan.kept_values * self._dtype.itemsize, self._activations.memory

    @torch.inference_mode()
    def explain(self, pixels: int = 1, candidates: int = _MANY) -> list[NodePlan]:
        """Return how each operation is computed for so many candidates with ``pixels`` changed pixels."""
        return self._plan(pixels, self._classes_for(pixels, candidates)).nodes

    def _lowered(self, classifier: Classifier) -> GraphModule:
        # Batch norm is folded, and the graph compared with the network, in fp32 even where the search is in bf16.
        folding = torch.promote_types(self._dtype, torch.float32)
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(2, 3, *classifier.preprocessing.size, generator=generator, dtype=folding)
        lowered = lower(copy.deepcopy(classifier.network).to(folding).eval(), example.to(self._device))
        return with_fast_products(lowered.to(self._dtype).to(memory_format=torch.channels_last))

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels [B, 3, ...] as the network takes them."""
        # The division and the normalisation stay in fp32: 8-bit values are not exact in bf16.
        unit = pixels.contiguous(memory_format=torch.channels_last).float() / 255
        return ((unit * self._preprocessing.scale - self._mean) / self._std).to(self._dtype)

    def _result(self, logits: Tensor) -> Tensor:
        return logits if self._dtype == torch.float64 else logits.float()

    def _classes_for(self, pixels: int, candidates: int) -> int:
        """Return into how many classes per axis to sort the pixels of so many candidates.

        More of them compute less in vain, but every size is a batch of its own, with its own calls.
        """
        if self._classes is not None:
            return self._classes
        key = pixels, candidates.bit_length()
        if key not in self._chosen:
            many = 2 ** key[1]
            self._chosen[key] = min(_CLASSES, key=lambda classes: self._promised_seconds(pixels, many, classes))
        return self._chosen[key]

    def _promised_seconds(self, pixels: int, candidates: int, classes: int) -> float:
        plan = self._plan(pixels, classes)
        macs = candidates * sum(node.incremental_macs for node in plan.nodes)
        operations = [step.operation for step in plan.steps.values()]
        spreads = sum(isinstance(one, Sliding) and one.spread is not None for one in operations)
        groups = (len(plan.steps) + _STEPS_OF_SPREAD * spreads) * min(classes**2, candidates * pixels)
        cuda = self._device.type == "cuda"
        rate = _GPU_MACS_PER_SECOND if cuda else _CPU_MACS_PER_SECOND * torch.get_num_threads()
        rate *= torch.float32.itemsize / self._dtype.itemsize
        return macs / rate + groups * (_GPU_SECONDS_PER_GROUP if cuda else _CPU_SECONDS_PER_GROUP)

    def _plan(self, pixels: int, classes: int) -> Plan:
        key = pixels, self._cuts.get(pixels, self._dense_from), classes
        if key not in self._plans:
            self._plans[key] = self._analysis().plan(*key)
        return self._plans[key]

    def _analysis(self) -> Analysis:
        height, width = self._images.shape[2:] if self._images.numel() else self._preprocessing.size
        if (height, width) not in self._analyses:
            grey = torch.full((1, 3, height, width), 128, dtype=torch.uint8, device=self._device)
            self._analyses[height, width] = Analysis(self._graph, self._normalised(grey))
        return self._analyses[height, width]

    def _blocks(self, plan: Plan, edits: Edits) -> Iterator[tuple[range, Edits]]:
        """Split candidates, sorted by image, by the blocks of images that are kept together."""
        start = 0
        while start < len(edits):
            block = self._activations.block_of(int(edits.image[start]), plan, self._dtype.itemsize)
            stop = int(torch.searchsorted(edits.image, block.stop))
            yield block, edits[start:stop]
            start = stop

    def _of_block(self, plan: Plan, block: range, edits: Edits) -> Tensor:
        # Only the images of these candidates: the activations read are copied together with the windows.
        images = range(int(edits.image[0]), int(edits.image[-1]) + 1)
        clean = self._activations.of(plan, block, images)
        batch = Batch(edits.image - images.start, edits.position, plan.of_input, len(images))
        colours = self._normalised(edits.colour.reshape(-1, 3, 1, 1)).flatten(1)
        return self._result(Propagation(self._graph, plan, clean, batch, self._clock).run(colours))
