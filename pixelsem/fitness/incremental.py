"""Incremental scoring: of each map, only the windows that the changed pixels reach are computed again.

A candidate's activations differ from those of its clean image in a window around each changed pixel, which
grows from layer to layer. The clean activations are kept; each layer reads what its window needs from them
and from the windows of the layer before, so that the logits are those of the whole network on the whole image
but for the order of sums. Where the windows cover most of a map, and where an operation is not known, whole
maps are filled in and computed from there on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from pixelsem.fitness.edits import Edits
from pixelsem.fitness.graph import asks_shape, lower
from pixelsem.fitness.operations import Sliding, Value
from pixelsem.fitness.plan import Analysis, NodePlan, Plan, Step, full_size
from pixelsem.fitness.windows import Batch, from_rows, to_rows
from pixelsem.models.classifier import Classifier

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CLEAN_BATCH = 16


class IncrementalScorer:
    """Scores candidates by what they change in the activations of their clean images; see the module's head.

    ``dense_from`` is the part of a map, in windows, above which whole maps are computed. ``dtype`` is the
    arithmetic where that of ``precision`` will not do.
    """

    def __init__(
        self,
        classifier: Classifier,
        precision: str = "fp32",
        *,
        dense_from: float = 0.9,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._dtype = dtype or _DTYPES[precision]
        self._dense_from = dense_from
        self._device = classifier.mean.device
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
        batch = Batch(edits.image - low, edits.position, self._images.shape[3])
        colours = self._normalised(edits.colour.reshape(-1, 3, 1, 1))
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
        network = classifier.network.to(folding) if folding == torch.float32 else _copy_as(classifier, folding)
        lowered = lower(network, example.to(self._device))
        return lowered.to(self._dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels [B, 3, ...] as the network takes them."""
        # The division and the normalisation stay in fp32: 8-bit values are not exact in bf16.
        unit = pixels.float() / 255
        return ((unit * self._preprocessing.scale - self._mean) / self._std).to(self._dtype)

    def _plan(self, pixels: int) -> Plan:
        if pixels not in self._plans:
            height, width = self._images.shape[2:] if self._images.numel() else self._preprocessing.size
            if (height, width) not in self._analyses:
                grey = torch.full((1, 3, height, width), 128, dtype=torch.uint8, device=self._device)
                self._analyses[height, width] = Analysis(self._graph, self._normalised(grey))
            self._plans[pixels] = self._analyses[height, width].plan(pixels, self._dense_from)
        return self._plans[pixels]

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


def _copy_as(classifier: Classifier, dtype: torch.dtype) -> torch.nn.Module:
    import copy

    return copy.deepcopy(classifier.network).to(dtype)


def _of_images(rows: Tensor, images: int, low: int, high: int) -> Tensor:
    """Return the rows of images ``low`` to ``high`` (included) of ``images``."""
    each = len(rows) // images
    return rows[low * each : (high + 1) * each]


class _Recording(fx.Interpreter):
    """Runs the network on clean images and notes some of its activations, as rows."""

    def __init__(self, graph: fx.GraphModule, wanted: Mapping[fx.Node, Value], kept: dict[fx.Node, list[Tensor]]) -> None:
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

    :ivar values: [C · K, ...], in place of the map's height and width those of the window.
    :ivar sources: for each value around the map, the rows that a gather reads from; see ``Batch.rows_to_read``.
    :ivar whole: the whole maps, once something asked for them.
    """

    node: fx.Node
    values: Tensor
    about: Value
    sources: dict[float, Tensor] = field(default_factory=dict)
    whole: Tensor | None = None


class _Propagation(fx.Interpreter):
    """Runs the network on the windows of a batch of candidates, and on whole maps where the plan says so."""

    def __init__(
        self, graph: fx.GraphModule, plan: Plan, clean: Mapping[fx.Node, Tensor], batch: Batch, images: int
    ) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self._plan, self._clean, self._batch, self._images = plan, clean, batch, images

    def run_node(self, node: fx.Node) -> Any:
        step = self._plan.steps.get(node)
        if step is None:
            return self._run_whole(node)
        if node.op == "placeholder":
            return _Windows(node, super().run_node(node), step.value)
        if isinstance(step.operation, Sliding):
            return _Windows(node, self._slide(step.operation, step.value, self.env[node.all_input_nodes[0]]), step.value)
        return _Windows(node, self._pointwise(node, step), step.value)

    def _run_whole(self, node: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        see = self._shape_only if asks_shape(node) else self._whole
        args, kwargs = (map_aggregate(given, lambda one: see(one) if isinstance(one, _Windows) else one) for given in (args, kwargs))
        return getattr(self, node.op)(node.target, args, kwargs)

    def _pointwise(self, node: fx.Node, step: Step) -> Tensor:
        """Run ``node``, of one operand or several, on windows brought to one size and place."""
        call = getattr(step.operation, "call", None)
        if call is not None:
            result: Tensor = call(self.env[node.all_input_nodes[0]].values)
            return result
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        args, kwargs = (
            map_aggregate(given, lambda one: self._aligned(one, step.value) if isinstance(one, _Windows) else one)
            for given in (args, kwargs)
        )
        result = getattr(self, node.op)(node.target, args, kwargs)
        return result

    def _slide(self, operation: Sliding, value: Value, operand: _Windows) -> Tensor:
        top, left = self._batch.origins(value.placement)
        height, width = value.placement.window
        y, x = operation.y.reads(top, height), operation.x.reads(left, width)
        result = operation.call(self._read(operand, y, x, operation.outside))
        if operation.weight is None:
            return result
        down, along = (weight.to(result.device) for weight in operation.weight)
        rows = down[top.flatten()[:, None] + torch.arange(height, device=top.device)]
        columns = along[left.flatten()[:, None] + torch.arange(width, device=top.device)]
        return result * (rows[:, None, :, None] * columns[:, None, None, :]).to(result.dtype)

    def _aligned(self, windows: _Windows, value: Value) -> Tensor:
        """Return ``windows`` widened to those of ``value``."""
        if windows.about.placement is value.placement:
            return windows.values
        top, left = self._batch.origins(value.placement)
        height, width = value.placement.window
        y = top[:, :, None] + torch.arange(height, device=top.device)
        x = left[:, :, None] + torch.arange(width, device=top.device)
        return self._read(windows, y, x)

    def _read(self, windows: _Windows, y: Tensor, x: Tensor, outside: float = 0.0) -> Tensor:
        """Return the candidates' values at rows ``y`` [C, K, n] and columns ``x`` [C, K, m] of the map."""
        about = windows.about
        if outside not in windows.sources:
            rows = to_rows(windows.values, about.axes)
            around = rows.new_full((1, rows.shape[1]), outside)
            windows.sources[outside] = torch.cat([self._clean[windows.node], rows, around])
        which = self._batch.rows_to_read(about.placement, y, x, self._images)
        read = windows.sources[outside].index_select(0, which)
        return from_rows(read, (y.shape[2], x.shape[2]), about.shape, about.axes)

    def _whole(self, windows: _Windows) -> Tensor:
        """Return the whole maps [C, ...]: the clean ones with the windows laid over them."""
        if windows.whole is None:
            about = windows.about
            height, width = about.placement.map
            clean = self._clean[windows.node].view(self._images, height * width, -1)
            rows = clean.index_select(0, self._batch.image).flatten(0, 1)
            rows.index_copy_(0, self._batch.rows_of_windows(about.placement), to_rows(windows.values, about.axes))
            windows.whole = from_rows(rows, (height, width), about.shape, about.axes)
        return windows.whole

    def _shape_only(self, windows: _Windows) -> Tensor:
        return torch.empty(full_size(windows.about, len(self._batch.image)), device="meta")
