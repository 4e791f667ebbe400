"""What is computed on windows and what on whole maps, decided before any candidate is seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from pixelsem.fitness.classes import classify
from pixelsem.fitness.graph import asks_shape, called_module
from pixelsem.fitness.kinds import Join, Operation, Shape, Sliding, Value
from pixelsem.fitness.operations import understand
from pixelsem.fitness.windows import Placement, Reach

_PROBES = 2


@dataclass(frozen=True)
class NodePlan:
    """How one operation of the network is computed.

    :ivar window: height and width of the largest window of a changed pixel; of the map where it is dense.
    :ivar map: height and width of the whole map; (1, 1) for a vector.
    :ivar share: all windows of a candidate as a part of the map, for an average candidate; 1 where dense.
    :ivar dense_macs: multiplications and additions, in pairs, of one image on whole maps.
    :ivar incremental_macs: those that an average candidate really costs; where changes are spread, of its products.
    """

    name: str
    op: str
    window: tuple[int, int]
    map: tuple[int, int]
    share: float
    dense: bool
    dense_macs: int
    incremental_macs: int


@dataclass(frozen=True)
class Step:
    """An operation on windows, and the windows it results in; the input has no operation.

    :ivar macs: multiplications and additions, in pairs, that an average window costs.
    """

    operation: Operation | None
    value: Value
    macs: float = 0.0


@dataclass(frozen=True, eq=False)
class Plan:
    """How candidates with a certain number of pixels are scored.

    :ivar of_input: where windows lie in the image itself.
    :ivar steps: what is computed on windows; everything else is computed on whole maps.
    :ivar kept: the nodes whose clean maps are read.
    :ivar nodes: the same for people, in the order of computation.
    """

    of_input: Placement
    steps: dict[fx.Node, Step]
    kept: frozenset[fx.Node]
    nodes: list[NodePlan]

    @cached_property
    def kept_values(self) -> int:
        """How many values of one image are kept."""
        return sum(prod(self.steps[node].value.shape[1:]) for node in self.kept)


@dataclass(frozen=True)
class Placed:
    """Where windows lie, once it is settled which pixels have windows of one size.

    :ivar of_input: in the image itself.
    :ivar steps: what could be computed on windows, however large these are.
    """

    of_input: Placement
    steps: dict[fx.Node, Step]


class Analysis:
    """Everything about a network at one size of image that does not depend on the candidates.

    ``image`` is float [1, 3, H, W] as the network takes it.
    """

    def __init__(self, graph: fx.GraphModule, image: Tensor) -> None:
        self._graph = graph
        probe = _Probe(graph)
        with FlopCounterMode(display=False) as counter:
            probe.counter = counter
            probe.run(image.expand(_PROBES, *image.shape[1:]).contiguous())
        self._shapes, self._macs = probe.shapes, probe.macs
        self._reached = _reached(graph.graph, self._shapes)
        # Windows of all sizes first: what they cost tells which pixels should share a size.
        lengths = [torch.zeros(length, dtype=torch.int64, device=image.device) for length in image.shape[2:]]
        self._exact = self._steps(Placement(*map(Reach.of_input, lengths)))
        self._placed: dict[int, Placed] = {}

    def placed(self, classes: int) -> Placed:
        """Return the windows with the coordinates of pixels sorted into so many classes, per axis.

        More classes compute less in vain, in smaller batches.
        """
        if classes not in self._placed:
            y, x = (self._classes(self._exact, axis, classes) for axis in ("y", "x"))
            of_input = Placement(Reach.of_input(y), Reach.of_input(x))
            self._placed[classes] = Placed(of_input, self._steps(of_input))
        return self._placed[classes]

    def plan(self, pixels: int, dense_from: float, classes: int) -> Plan:
        """Return the plan for candidates of ``pixels`` changed pixels.

        Maps of which the windows would be a part above ``dense_from`` are computed whole, and all that follows.
        """
        placed = self.placed(classes)
        steps: dict[fx.Node, Step] = {}
        for node, step in placed.steps.items():
            fits = node.op == "placeholder" or pixels * step.value.placement.share <= dense_from
            if fits and all(operand in steps for operand in node.all_input_nodes if operand in self._reached):
                steps[node] = step
        nodes = [
            self._describe(node, steps.get(node), placed.steps.get(node), pixels)
            for node in self._reached
            if node.op != "output"
        ]
        return Plan(placed.of_input, steps, self._kept(steps), nodes)

    def shares(self, pixels: int, classes: int) -> list[float]:
        """Return every ``dense_from`` that makes a plan of its own, ascending; the last computes nothing whole."""
        shares = {pixels * step.value.placement.share for step in self.placed(classes).steps.values()}
        return sorted(shares)

    def _steps(self, of_input: Placement) -> dict[fx.Node, Step]:
        steps: dict[fx.Node, Step] = {}
        values: dict[fx.Node, Value] = {}
        for node in self._graph.graph.nodes:
            step = self._step(node, values, of_input)
            if step is not None:
                steps[node], values[node] = step, step.value
        return steps

    def _classes(self, steps: Mapping[fx.Node, Step], axis: str, count: int) -> Tensor:
        """Return int64 [S]: the class of each coordinate of a pixel along ``axis``, by what its windows cost."""
        costly = [
            (getattr(step.value.placement, axis), self._macs[node]) for node, step in steps.items() if self._macs[node]
        ]
        coordinates = getattr(steps[next(iter(steps))].value.placement, axis).first
        if not costly:
            return torch.zeros_like(coordinates)
        sizes = np.stack([reach.sizes.cpu().numpy() for reach, _ in costly], 1).astype(np.float64)
        # What a longer window costs: as many multiplications for each unit as the other axis is long.
        weight = np.array([macs * max(reach.windows) / reach.length**2 for reach, macs in costly])
        return torch.from_numpy(classify(sizes, weight, count)).to(coordinates.device)

    def _step(self, node: fx.Node, values: Mapping[fx.Node, Value], of_input: Placement) -> Step | None:
        shape = self._shapes[node]
        if node.op == "placeholder" and isinstance(shape, tuple):
            return Step(None, Value(shape, (2, 3), of_input))
        operands = [other for other in node.all_input_nodes if other in self._reached]
        if node not in self._reached or node.op == "output" or any(other not in values for other in operands):
            return None
        operation = understand(node, values, self._shapes)
        if operation is None:
            return None
        whole = shape if isinstance(shape, tuple) else values[operands[0]].shape
        placements = [values[other].placement for other in operands]
        placement = _placement(operation, placements)
        macs = self._macs[node] * placement.share
        if isinstance(operation, Sliding) and operation.spread:
            macs = placements[0].mean(operation.spread.macs)
        return Step(operation, Value(whole, operation.axes, placement), macs)

    def _kept(self, steps: Mapping[fx.Node, Step]) -> frozenset[fx.Node]:
        kept: set[fx.Node] = set()
        for node in self._reached:
            step = steps.get(node)
            if step is not None and isinstance(step.operation, Sliding) and step.operation.spread:
                kept.add(node)  # changes are added to it
            for operand in node.all_input_nodes:
                if operand in steps and (step is None or _reads_clean(step, steps[operand])):
                    kept.add(operand)
        return frozenset(kept)

    def _describe(self, node: fx.Node, step: Step | None, known: Step | None, pixels: int) -> NodePlan:
        macs = self._macs[node]
        size = known.value.placement.map if known else _map_size(self._shapes[node])
        window = step.value.placement.largest if step else size
        share = pixels * step.value.placement.share if step else 1.0
        operation = called_module(node) if node.op == "call_module" else None
        name = type(operation).__name__ if operation else getattr(node.target, "__name__", str(node.target))
        spent = round(pixels * step.macs) if step else macs
        return NodePlan(node.name, name, window, size, share, step is None, macs, spent)


class _Probe(fx.Interpreter):
    """Notes the shape of every result and what it costs."""

    counter: FlopCounterMode

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.shapes: dict[fx.Node, Shape | list[Shape] | None] = {}
        self.macs: dict[fx.Node, int] = {}

    def run_node(self, node: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        result = super().run_node(node)
        self.macs[node] = (self.counter.get_total_flops() - before) // (2 * _PROBES)
        self.shapes[node] = _shape(result)
        return result


def _shape(result: object) -> Shape | list[Shape] | None:
    if isinstance(result, Tensor):
        return tuple(result.shape)
    if isinstance(result, (list, tuple)) and result and all(isinstance(part, Tensor) for part in result):
        return [tuple(part.shape) for part in result]
    return None


def _reached(graph: fx.Graph, shapes: Mapping[fx.Node, Shape | list[Shape] | None]) -> dict[fx.Node, None]:
    """Return the nodes, in order, whose value depends on that of the image: not on its shape alone."""
    reached: dict[fx.Node, None] = {}
    for node in graph.nodes:
        depends = any(operand in reached for operand in node.all_input_nodes) and not asks_shape(node)
        if depends or (node.op == "placeholder" and isinstance(shapes[node], tuple)):
            reached[node] = None
    return reached


def _placement(operation: Operation, operands: list[Placement]) -> Placement:
    placement = operands[0]
    if isinstance(operation, Sliding):
        return placement.through(operation.y, operation.x, operation.size)
    for other in operands[1:]:
        placement = placement if other is placement else placement.union(other)
    return placement


def _reads_clean(step: Step, operand: Step) -> bool:
    """Does this operation on windows read more of its operand than the operand's windows?"""
    if isinstance(step.operation, Join):
        return step.value.placement is not operand.value.placement
    return isinstance(step.operation, Sliding)


def _map_size(shape: Shape | list[Shape] | None) -> tuple[int, int]:
    return (shape[2], shape[3]) if isinstance(shape, tuple) and len(shape) == 4 else (1, 1)
