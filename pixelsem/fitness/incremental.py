"""Incremental scoring: of each map, only the windows that the changed pixels reach are computed again.

A candidate's activations differ from those of its clean image in a window around each changed pixel, which
grows from layer to layer. The clean activations are kept; each layer reads what its window needs from them
and from the windows of the layer before, so that the logits are those of the whole network on the whole image
but for the order of sums. Where the windows cover most of a map, and where an operation is not known, whole
maps are filled in and computed from there on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from pixelsem.fitness.edits import Edits
from pixelsem.fitness.graph import asks_shape, lower
from pixelsem.fitness.kinds import Sliding, Value
from pixelsem.fitness.plan import Analysis, NodePlan, Plan, Step
from pixelsem.fitness.windows import Batch, Group, from_rows, to_rows
from pixelsem.models.classifier import Classifier

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CLEAN_BATCH = 16


class IncrementalScorer:
    """Scores candidates by what they change in the activations of their clean images; see the module's head.

    ``dense_from`` is the part of a map, in windows, above which whole maps are computed; ``classes``, squared, is
    how many sizes windows may have (None: what suits the device). ``dtype`` is the arithmetic where that of
    ``precision`` will not do.
    """

    def __init__(
        self,
        classifier: Classifier,
        precision: str = "fp32",
        *,
        dense_from: float = 0.9,
        classes: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._dtype = dtype or _DTYPES[precision]
        self._dense_from = dense_from
        self._device = classifier.mean.device
        # Every size is a kernel launch of its own, which a GPU minds more.
        self._classes = classes or (2 if self._device.type == "cuda" else 4)
        self._mean, self._std = classifier.mean.float(), classifier.std.float()
        self._preprocessing = classifier.preprocessing
        self._graph = self._lowered(classifier)
        self._images = torch.empty(0)
        self._clean: dict[fx.Node, Tensor] = {}
        self._plans: dict[int, Plan] = {}
        self._analyses: dict[tuple[int, int], Analysis] = {}

    def attach(self, images: Tensor) -> None:
        """Take uint8 [N, 3, H, W] clean images on the device; their activations are computed when first needed."""
        if images.shape[2:] != self._images.shape[2:]:
            self._plans.clear()
        self._images = images
        self._clean.clear()

    @torch.inference_mode()
    def logits(self, edits: Edits) -> Tensor:
        """Return float32 [C, classes] for one batch of candidates; in float64 where that is the scorer's dtype."""
        edits = edits.settled()
        plan = self._plan(edits.position.shape[1])
        self._keep(plan)
        # Only the images of this batch: the activations read are copied together with the windows.
        low, high = (int(end) for end in torch.aminmax(edits.image))
        clean = {node: _of_images(rows, len(self._images), low, high) for node, rows in self._clean.items()}
        batch = Batch(edits.image - low, edits.position, self._analysis().of_input)
        colours = self._normalised(edits.colour.reshape(-1, 3, 1, 1)).flatten(1)
        logits: Tensor = _Propagation(self._graph, plan, clean, batch, high - low + 1).run(colours)
        return logits if self._dtype == torch.float64 else logits.float()

    def cache_bytes(self) -> int:
        """Return the size of the clean activations that are kept now."""
        return sum(rows.nbytes for rows in self._clean.values())

    @torch.inference_mode()
    def explain(self, pixels: int = 1) -> list[NodePlan]:
        """Return how each operation is computed for candidates of ``pixels`` changed pixels."""
        return self._plan(pixels).nodes

    def _lowered(self, classifier: Classifier) -> fx.GraphModule:
        # Batch norm is folded, and the graph compared with the network, in fp32 even where the search is in bf16.
        folding = torch.promote_types(self._dtype, torch.float32)
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(2, 3, *classifier.preprocessing.size, generator=generator, dtype=folding)
        lowered = lower(copy.deepcopy(classifier.network).to(folding).eval(), example.to(self._device))
        return lowered.to(self._dtype).to(memory_format=torch.channels_last)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels [B, 3, ...] as the network takes them."""
        # The division and the normalisation stay in fp32: 8-bit values are not exact in bf16.
        unit = pixels.float() / 255
        return ((unit * self._preprocessing.scale - self._mean) / self._std).to(self._dtype)

    def _plan(self, pixels: int) -> Plan:
        if pixels not in self._plans:
            self._plans[pixels] = self._analysis().plan(pixels, self._dense_from)
        return self._plans[pixels]

    def _analysis(self) -> Analysis:
        height, width = self._images.shape[2:] if self._images.numel() else self._preprocessing.size
        if (height, width) not in self._analyses:
            grey = torch.full((1, 3, height, width), 128, dtype=torch.uint8, device=self._device)
            self._analyses[height, width] = Analysis(self._graph, self._normalised(grey), self._classes)
        return self._analyses[height, width]

    def _keep(self, plan: Plan) -> None:
        """Compute the clean activations that ``plan`` reads and that are not there yet."""
        missing = {node: plan.steps[node].value for node in plan.kept if node not in self._clean}
        if not missing:
            return
        kept: dict[fx.Node, list[Tensor]] = {node: [] for node in missing}
        for start in range(0, len(self._images), _CLEAN_BATCH):
            images = self._images[start : start + _CLEAN_BATCH].contiguous(memory_format=torch.channels_last)
            _Recording(self._graph, missing, kept).run(self._normalised(images))
        self._clean |= {node: torch.cat(parts) for node, parts in kept.items()}


def _of_images(rows: Tensor, images: int, low: int, high: int) -> Tensor:
    """Return the rows of images ``low`` to ``high`` (included) of ``images``."""
    each = len(rows) // images
    return rows[low * each : (high + 1) * each]


class _Recording(fx.Interpreter):
    """Runs the network on clean images and notes some of its activations, as rows."""

    def __init__(
        self, graph: fx.GraphModule, wanted: Mapping[fx.Node, Value], kept: dict[fx.Node, list[Tensor]]
    ) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self._wanted, self._kept = wanted, kept

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node in self._wanted:
            # A copy, for a network that is one node may overwrite its input.
            self._kept[node].append(to_rows(result, self._wanted[node].axes).clone())
        return result


@dataclass
class _Windows:
    """All windows of a batch at one node.

    :ivar rows: [R, C], their values; see ``Layout``.
    :ivar sources: for each value around the map, the rows to read from; see ``Batch.rows_to_read``.
    :ivar whole: the whole maps, once something asked for them.
    """

    node: fx.Node
    rows: Tensor
    about: Value
    sources: dict[float, Tensor] = field(default_factory=dict)
    whole: Tensor | None = None

    def as_map(self) -> Tensor:
        """Return all values as one map of one row, for operations that look at single positions."""
        return _as_map(self.rows, self.about)


def _as_map(rows: Tensor, about: Value) -> Tensor:
    return from_rows(rows, (1, len(rows)), about.shape, about.axes)


class _Propagation(fx.Interpreter):
    """Runs the network on the windows of a batch of candidates, and on whole maps where the plan says so.

    ``clean`` holds the kept activations of the ``images`` images that the batch refers to, as rows.
    """

    def __init__(
        self, graph: fx.GraphModule, plan: Plan, clean: Mapping[fx.Node, Tensor], batch: Batch, images: int
    ) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self._plan, self._clean, self._batch, self._images = plan, clean, batch, images

    def run_node(self, node: fx.Node) -> Any:
        step = self._plan.steps.get(node)
        if step is None:
            see = self._shape_only if asks_shape(node) else self._whole
            return self._call(node, see)
        if node.op == "placeholder":
            return _Windows(node, super().run_node(node)[self._batch.order], step.value)
        operand = self.env[node.all_input_nodes[0]]
        if isinstance(step.operation, Sliding):
            rows = self._slide(step.operation, step.value, operand)
        else:
            rows = to_rows(self._pointwise(node, step, operand), step.value.axes)
        return _Windows(node, rows, step.value)

    def _call(self, node: fx.Node, see: Callable[[_Windows], Tensor]) -> Any:
        """Run ``node`` as it is, with ``see`` applied to the operands that are windows."""
        given = self.fetch_args_kwargs_from_env(node)
        args, kwargs = map_aggregate(given, lambda one: see(one) if isinstance(one, _Windows) else one)
        return getattr(self, node.op)(node.target, args, kwargs)

    def _pointwise(self, node: fx.Node, step: Step, operand: _Windows) -> Tensor:
        call = getattr(step.operation, "call", None)
        result: Tensor = (
            call(operand.as_map()) if call else self._call(node, lambda one: self._aligned(one, step.value))
        )
        return result

    def _aligned(self, windows: _Windows, value: Value) -> Tensor:
        """Return ``windows`` widened to those of ``value``, as one map of one row."""
        if windows.about.placement is value.placement:
            return windows.as_map()
        layout = self._batch.layout(value.placement)
        read = [self._read(windows, group, *layout.coordinates(group)) for group in layout.groups]
        return _as_map(torch.cat(read), windows.about)

    def _slide(self, operation: Sliding, value: Value, operand: _Windows) -> Tensor:
        """Return the rows of the windows that ``operation`` results in."""
        layout, results = self._batch.layout(value.placement), []
        for group in layout.groups:
            part = slice(group.start, group.stop)
            y = operation.y.reads(layout.top[part], group.height)
            x = operation.x.reads(layout.left[part], group.width)
            read = self._read(operand, group, y, x, operation.outside)
            result = operation.call(from_rows(read, (y.shape[1], x.shape[1]), operand.about.shape, (2, 3)))
            if operation.weight is not None:
                rows, columns = (
                    weight.to(result)[places]
                    for weight, places in zip(operation.weight, layout.coordinates(group), strict=True)
                )
                result = result * (rows[:, None, :, None] * columns[:, None, None, :])
            results.append(to_rows(result, (2, 3)))
        return torch.cat(results)

    def _read(self, windows: _Windows, group: Group, y: Tensor, x: Tensor, outside: float = 0.0) -> Tensor:
        """Return rows [n · p · q, C]: what is at ``y`` [n, p] and ``x`` [n, q] for the windows of ``group``."""
        if outside not in windows.sources:
            around = windows.rows.new_full((1, windows.rows.shape[1]), outside)
            windows.sources[outside] = torch.cat([self._clean[windows.node], windows.rows, around])
        layout = self._batch.layout(windows.about.placement)
        which = self._batch.rows_to_read(layout, group, y, x, self._images)
        return windows.sources[outside].index_select(0, which)

    def _whole(self, windows: _Windows) -> Tensor:
        """Return the whole maps [C, ...]: the clean ones with the windows laid over them."""
        if windows.whole is None:
            about = windows.about
            height, width = about.placement.map
            clean = self._clean[windows.node].view(self._images, height * width, -1)
            rows = clean.index_select(0, self._batch.image).flatten(0, 1)
            changed = self._batch.rows_of_windows(self._batch.layout(about.placement))
            rows.index_copy_(0, changed, windows.rows)
            windows.whole = from_rows(rows, (height, width), about.shape, about.axes)
        return windows.whole

    def _shape_only(self, windows: _Windows) -> Tensor:
        return torch.empty((len(self._batch.image), *windows.about.shape[1:]), device="meta")
