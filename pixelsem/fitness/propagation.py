"""Running a network on the windows of a batch of candidates, and on whole maps where its plan says so."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from pixelsem.fitness.changes import Passage
from pixelsem.fitness.graph import asks_shape, canonical_name, plain_module
from pixelsem.fitness.kinds import Sliding, Value
from pixelsem.fitness.plan import Plan, Step
from pixelsem.fitness.windows import Batch, Group, from_rows, to_rows


class Clock:
    """Notes how long each node of a graph takes.

    :ivar seconds: by node; of the last run.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[fx.Node, float] = {}
        self._device = device

    def now(self) -> float:
        """Return the time once everything asked of the device is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Timed(fx.Interpreter):
    """Runs a graph as it is; each node is timed where there is a clock."""

    def __init__(self, graph: fx.GraphModule, clock: Clock | None = None) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self._clock = clock

    def run_node(self, node: fx.Node) -> Any:
        """Return the value of ``node``."""
        if self._clock is None:
            return self.compute(node)
        start = self._clock.now()
        result = self.compute(node)
        self._clock.seconds[node] = self._clock.now() - start
        return result

    def compute(self, node: fx.Node) -> Any:
        """Return the value of ``node``."""
        return super().run_node(node)


@dataclass
class _Windows:
    """All windows of a batch at one node.

    :ivar rows: [R, C], their values; see ``Layout``.
    :ivar source: [clean rows + R + 1, C], what is read from (see ``Batch.rows_to_read``), where ``rows`` are a part of
        it; the other rows are filled when first read.
    :ivar clean: does ``source`` hold the clean rows?
    :ivar finished: are ``rows`` already what the only node that reads them makes of them in place?
    :ivar whole: the whole maps, once something asked for them.
    """

    node: fx.Node
    rows: Tensor
    about: Value
    source: Tensor | None = None
    clean: bool = False
    finished: bool = False
    whole: Tensor | None = None

    def as_map(self) -> Tensor:
        """Return all values as one map of one row, for operations that look at single positions."""
        return _as_map(self.rows, self.about)


def _as_map(rows: Tensor, about: Value) -> Tensor:
    return from_rows(rows, (1, len(rows)), about.shape, about.axes)


class Propagation(Timed):
    """Runs the network on the windows of a batch of candidates, and on whole maps where the plan says so.

    ``clean`` holds the kept activations of the images that the batch refers to, as rows.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        plan: Plan,
        clean: Mapping[fx.Node, Tensor],
        batch: Batch,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(graph, clock)
        self._plan, self._clean, self._batch = plan, clean, batch

    def compute(self, node: fx.Node) -> Any:
        """Return the value of ``node``: windows where the plan has a step for it."""
        step = self._plan.steps.get(node)
        if step is None:
            see = self._shape_only if asks_shape(node) else self._whole
            return self._call(node, see)
        if node.op == "placeholder":
            return _Windows(node, super().compute(node)[self._batch.order], step.value)
        operand = self.env[node.all_input_nodes[0]]
        if isinstance(step.operation, Sliding):
            slide, finish = self._slide if step.operation.spread is None else self._spread, self._finish(node)
            source = slide(node, step, operand, finish)
            return _Windows(node, self._rows_of(source, step.value), step.value, source, finished=finish is not None)
        in_place = _in_place(node)
        if in_place is not None and self._is_own(operand):
            # Nobody else reads the operand: its memory serves the result, and its source the next operation.
            if not operand.finished:
                in_place(operand.as_map())
            return _Windows(node, operand.rows, step.value, operand.source)
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

    @staticmethod
    def _is_own(operand: _Windows) -> bool:
        """Is the memory of the rows that of the operand alone, with nothing read from it yet?"""
        made = operand.source is not None or type(plain_module(operand.node)) is nn.Conv2d
        return operand.finished or (made and not operand.clean)

    def _finish(self, node: fx.Node) -> Callable[[Tensor], Tensor] | None:
        """Return what the only reader of ``node`` does in place, which is cheapest while the values are at hand."""
        reader = next(iter(node.users), node)
        return _in_place(reader) if reader in self._plan.steps else None

    def _spread(
        self, node: fx.Node, step: Step, operand: _Windows, finish: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Return what :meth:`_slide` does, from what the operand's windows change alone."""
        operation, value = step.operation, step.value
        assert isinstance(operation, Sliding), "asked for what is linear"
        assert operation.spread is not None
        before, after = (self._batch.layout(one.placement) for one in (operand.about, value))
        clean = self._clean[operand.node], self._clean[node]
        source = clean[1].new_empty(self._clean_rows(value) + after.rows + 1, clean[1].shape[1])
        passage = Passage(operation.spread, self._batch, before, after)
        passage.fill(self._rows_of(source, value), operand.rows, *clean, finish)
        return source

    def _slide(self, _: fx.Node, step: Step, operand: _Windows, finish: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Return a source whose windows are what ``finish`` makes of the operation's results; see :class:`_Windows`."""
        operation, value = step.operation, step.value
        assert isinstance(operation, Sliding), "asked for what slides"
        layout, source = self._batch.layout(value.placement), None
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
            rows = to_rows(result, (2, 3))
            if source is None:
                source = self._new_source(value, rows)
            first = self._clean_rows(value) + layout.row_of(group)
            place = source[first : first + group.rows]
            if finish is torch.relu_:
                torch.clamp(rows, min=0, out=place)  # both at once
            else:
                place.copy_(rows)
                if finish is not None:
                    finish(place)
        assert source is not None, "a batch has at least one window"
        return source

    def _new_source(self, value: Value, like: Tensor) -> Tensor:
        rows = self._batch.layout(value.placement).rows
        return like.new_empty(self._clean_rows(value) + rows + 1, like.shape[1])

    def _clean_rows(self, value: Value) -> int:
        """Return how many rows the clean maps of the batch's images are."""
        height, width = value.placement.map
        return self._batch.images * height * width

    def _rows_of(self, source: Tensor, value: Value) -> Tensor:
        return source[self._clean_rows(value) : -1]

    def _read(self, windows: _Windows, group: Group, y: Tensor, x: Tensor, outside: float = 0.0) -> Tensor:
        """Return rows [n · p · q, C]: what is at ``y`` [n, p] and ``x`` [n, q] for the windows of ``group``."""
        about = windows.about
        if windows.source is None:
            windows.source = self._new_source(about, windows.rows)
            self._rows_of(windows.source, about).copy_(windows.rows)
        if not windows.clean:
            windows.source[: self._clean_rows(about)] = self._clean[windows.node]
            windows.clean = True
        windows.source[-1] = outside
        layout = self._batch.layout(about.placement)
        return windows.source.index_select(0, self._batch.rows_to_read(layout, group, y, x))

    def _whole(self, windows: _Windows) -> Tensor:
        """Return the whole maps [C, ...]: the clean ones with the windows laid over them."""
        if windows.whole is None:
            about = windows.about
            height, width = about.placement.map
            clean = self._clean[windows.node].view(self._batch.images, height * width, -1)
            rows = clean.index_select(0, self._batch.image).flatten(0, 1)
            changed = self._batch.rows_of_windows(self._batch.layout(about.placement))
            rows.index_copy_(0, changed, windows.rows)
            windows.whole = from_rows(rows, (height, width), about.shape, about.axes)
        return windows.whole

    def _shape_only(self, windows: _Windows) -> Tensor:
        return torch.empty((len(self._batch.image), *windows.about.shape[1:]), device="meta")


#: Modules that can overwrite their operand.
_OVERWRITING = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU),
    *(nn.Mish, nn.Threshold),
)


def _in_place(node: fx.Node) -> Callable[[Tensor], Tensor] | None:
    """Return what ``node`` does as an operation that overwrites its operand, which nobody else reads; else None."""
    if len(node.all_input_nodes) != 1 or len(node.all_input_nodes[0].users) != 1:
        return None
    module = plain_module(node)
    if type(module) is nn.ReLU:
        return torch.relu_
    if isinstance(module, nn.Module) and type(module) in _OVERWRITING:
        twin: Any = copy.copy(module)
        twin.inplace = True
        overwrite: Callable[[Tensor], Tensor] = twin
        return overwrite
    if canonical_name(node) == "relu" and len(node.args) == 1:
        return torch.relu_
    return None
