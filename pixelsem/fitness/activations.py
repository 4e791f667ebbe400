"""The activations of clean images, kept within a limit of memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from pixelsem.fitness.kinds import Value
from pixelsem.fitness.plan import Plan
from pixelsem.fitness.windows import to_rows

_BATCH = 16  # images per clean pass
_CPU_LIMIT = 2 * 2**30  # bytes


def memory_limit(device: torch.device) -> int:
    """Return how many bytes of activations to keep: a quarter of what is free on a GPU, 2 GiB on a CPU.

    More would gain next to nothing: an image that was dropped costs one clean pass for all its candidates.
    """
    return torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else _CPU_LIMIT


class Activations:
    """Keeps what plans read of the clean images: all of it where it fits, else of one block of images at a time.

    ``normalise`` turns uint8 images into what the graph takes.

    :ivar memory: the limit in bytes, which the activations of a single image may exceed.
    """

    def __init__(self, graph: fx.GraphModule, normalise: Callable[[Tensor], Tensor], memory: int) -> None:
        self._graph, self._normalise, self.memory = graph, normalise, memory
        self._images = torch.empty(0)
        self._rows: dict[fx.Node, Tensor] = {}
        self._block = range(0)

    @property
    def nbytes(self) -> int:
        """The size of what is kept now."""
        return sum(rows.nbytes for rows in self._rows.values())

    def attach(self, images: Tensor) -> None:
        """Take uint8 [N, 3, H, W] clean images; their activations are computed when first needed."""
        self._images = images
        self._drop()

    def block_of(self, image: int, plan: Plan, itemsize: int) -> range:
        """Return the images that are kept together with ``image`` for ``plan``."""
        each = max(1, plan.kept_values * itemsize)
        size = max(1, min(len(self._images), self.memory // each))
        start = image // size * size
        return range(start, min(start + size, len(self._images)))

    def of(self, plan: Plan, block: range, images: range) -> Mapping[fx.Node, Tensor]:
        """Return the rows [n · H · W, C] of ``images``, out of ``block``, for every node that ``plan`` reads."""
        if block != self._block:
            self._drop()
            self._block = block
        missing = {node: plan.steps[node].value for node in plan.kept if node not in self._rows}
        if missing:
            self._rows |= self._recorded(missing)
        if self.nbytes > self.memory:  # what other plans read goes
            self._rows = {node: rows for node, rows in self._rows.items() if node in plan.kept}
        low, high = images.start - block.start, images.stop - block.start
        return {node: _part(self._rows[node], len(block), low, high) for node in plan.kept}

    def _drop(self) -> None:
        self._rows, self._block = {}, range(0)

    def _recorded(self, wanted: Mapping[fx.Node, Value]) -> dict[fx.Node, Tensor]:
        rows: dict[fx.Node, Tensor] = {}
        recording = _Recording(self._graph, wanted, rows, len(self._block))
        for start in range(self._block.start, self._block.stop, _BATCH):
            images = self._images[start : min(start + _BATCH, self._block.stop)]
            recording.of(self._normalise(images), start - self._block.start)
        return rows


def _part(rows: Tensor, images: int, low: int, high: int) -> Tensor:
    """Return the rows of the images ``low`` to ``high`` (excluded) of ``images``."""
    each = len(rows) // images
    return rows[low * each : high * each]


class _Recording(fx.Interpreter):
    """Runs the network on clean images and notes some of its activations, as ``rows`` of all ``images`` of a block.

    Each has its place there from the first: to join parts would take twice the memory, in pieces of many sizes.
    """

    def __init__(
        self, graph: fx.GraphModule, wanted: Mapping[fx.Node, Value], rows: dict[fx.Node, Tensor], images: int
    ) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self._wanted, self._rows, self._images = wanted, rows, images
        self._which = slice(0)

    def of(self, images: Tensor, first: int) -> None:
        """Note the activations of ``images``, of which the first is number ``first`` of the block."""
        self._which = slice(first, first + len(images))
        self.run(images)

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node in self._wanted:
            # A copy, for a network that is one node may overwrite its input.
            rows = to_rows(result, self._wanted[node].axes)
            each = len(rows) // (self._which.stop - self._which.start)
            if node not in self._rows:
                self._rows[node] = rows.new_empty(each * self._images, rows.shape[1])
            self._rows[node][self._which.start * each : self._which.stop * each] = rows
        return result
