"""What operations can do to windows, and what is asked to find out which of it one does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from pixelsem.fitness.spreading import Spread
from pixelsem.fitness.windows import Placement, Slide

#: Of each node: the shape of its tensor for a batch of probes, those of a tuple of tensors, or None.
Shape = tuple[int, ...]
Shapes = Mapping[fx.Node, "Shape | list[Shape] | None"]


@dataclass(frozen=True)
class Value:
    """What is known of a tensor that can be kept as windows.

    :ivar shape: of the whole maps; dimension 0 is the batch.
    :ivar axes: the dimensions of the map's height and width, (2, 3) but for networks that permute.
    """

    shape: Shape
    axes: tuple[int, int]
    placement: Placement

    @property
    def channels(self) -> list[int]:
        """The dimensions that are neither the batch nor an axis of the map."""
        return [dim for dim in range(1, len(self.shape)) if dim not in self.axes]

    def dim(self, dim: int) -> int:
        """Return a dimension counted from the front."""
        return dim % len(self.shape)


@dataclass(frozen=True)
class Pointwise:
    """Every position of the map for itself.

    :ivar axes: the dimensions of height and width in the result.
    :ivar call: what to do to the windows; None: what the node does to maps.
    """

    axes: tuple[int, int]
    call: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Join:
    """Several maps of one size, every position for itself, as the node does it: sums, products, concatenations."""

    axes: tuple[int, int]


@dataclass(frozen=True)
class Sliding:
    """A convolution, pooling, padding or subsampling of maps [N, C, H, W].

    :ivar call: the operation without padding, on what :meth:`Slide.reads` of both axes has gathered.
    :ivar outside: the value around the map.
    :ivar weight: float64 [H'] and [W'], what to multiply the results at each row and column with.
    :ivar spread: what it makes of changes, where that is the faster way; it is linear then but for its bias.
    """

    y: Slide
    x: Slide
    size: tuple[int, int]
    call: Callable[[Tensor], Tensor]
    outside: float = 0.0
    weight: tuple[Tensor, Tensor] | None = None
    axes: tuple[int, int] = (2, 3)
    spread: Spread | None = None


Operation = Pointwise | Join | Sliding


@dataclass(frozen=True)
class Case:
    """One node to understand, and what a rule may ask about it.

    :ivar values: every node that can be windows.
    :ivar shapes: every node's shape.
    """

    node: fx.Node
    values: Mapping[fx.Node, Value]
    shapes: Shapes

    @property
    def operand(self) -> Value:
        """The first operand, where it can be windows."""
        return self.values[self.node.args[0]]  # type: ignore[index]

    @property
    def shape(self) -> Shape:
        """The result's shape; () where it is not one tensor."""
        shape = self.shapes[self.node]
        return shape if isinstance(shape, tuple) else ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result, if that is [N, C, H, W]."""
        return self.shape[2], self.shape[3]

    def argument(self, name: str, place: int, default: Any = None) -> Any:
        """Return an argument given by place or name."""
        args = self.node.args
        return args[place] if len(args) > place else self.node.kwargs.get(name, default)

    def is_map(self) -> bool:
        """Are operand and result [N, C, H, W]?"""
        return len(self.operand.shape) == 4 and self.operand.axes == (2, 3) and len(self.shape) == 4
