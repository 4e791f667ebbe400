"""A network that tracing cannot follow, as a graph by ``torch.export``: what it really did to an image.

Export runs the network on one batch, so that Python code that looks at shapes, types or its own settings is
followed, and overwritten tensors are sorted out. The result holds for images of that size; a network that looks
at the values of an image, or does something else for batches of another size, cannot be exported.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

#: What is left of types, views and copies once all values are new: nothing is done to their operand.
_NOTHING = frozenset({"alias", "detach", "lift_fresh_copy", "contiguous"})
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
_END = 2**63 - 1  # of a slice that has none
_CHECKS = frozenset({"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range_for_size"})


def export(network: nn.Module, example: Tensor) -> fx.GraphModule:
    """Return a graph without side effects of ``network``, which is in evaluation mode.

    ``example`` is float [N, 3, H, W] with N > 1. The graph takes batches of any length, and raises
    :class:`ValueError` for images of another size. Raises any exception where the network cannot be exported.
    """
    with torch.no_grad(), _quiet():
        batch = torch.export.Dim("batch")
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=False)
        module = program.run_decompositions({}).module()
    assert isinstance(module, fx.GraphModule)
    lowered = _plain(module, tuple(example.shape[2:]))
    _clean_up(lowered)
    return lowered


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what export logs and prints about a network that it cannot follow: that is no problem."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def expect_size(x: Tensor, height: int, width: int) -> None:
    """Raise :class:`ValueError` where the images [N, 3, H, W] are not as large as those of the export."""
    if tuple(x.shape[2:]) != (height, width):
        raise ValueError(f"this network was exported for images of {height}×{width}, not {x.shape[2]}×{x.shape[3]}")


def _plain(module: fx.GraphModule, size: tuple[int, ...]) -> fx.GraphModule:
    """Return the same graph with one tensor as input and output."""
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    result = graph.graph_copy(module.graph, values)
    while isinstance(result, (list, tuple)):
        (result,) = result
    graph.output(result)
    (image,) = (node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(image):
        graph.call_function(expect_size, (image, *size))
    return fx.GraphModule(module, graph)


def _clean_up(lowered: fx.GraphModule) -> None:
    graph = lowered.graph
    for node in list(graph.nodes):
        name, same = aten_name(node), _same_value(node)
        if same is not None:
            node.replace_all_uses_with(same)
        # The input overwritten at the end, which nobody here looks at again.
        overwrites_input = name == "copy_" and node.args[0].op == "placeholder" and not node.users
        checks = name in _CHECKS or (node.op == "call_module" and not node.users)
        if same is not None or overwrites_input or checks:
            graph.erase_node(node)
        elif name and node.target._schema.is_mutable:
            raise ValueError(f"{node.target} overwrites its operand")
        elif name and _fixes_type(node):
            raise ValueError(f"{node.target} would make float32 of other types")
        elif node.target in _VIEWS:
            # Export saw how its example lay in memory; other images may lie otherwise.
            node.target = torch.ops.aten.reshape.default


def _same_value(node: fx.Node) -> fx.Node | None:
    """Return the node whose value ``node`` merely repeats, if there is one."""
    name, same = aten_name(node), node.args[0] if node.args else None
    if name in ("slice", "slice_scatter"):
        given = by_schema(node.target, node)
        if given["start"] not in (None, 0) or given["end"] not in (None, _END) or given["step"] != 1:
            return None
        same = given.get("src", same)
    elif name not in _NOTHING:
        return None
    return same if isinstance(same, fx.Node) else None


def by_schema(operator: Any, node: fx.Node) -> dict[str, Any]:
    """Return the arguments of ``node``, by name, as those of an ATen operator with the same ones."""
    known = operator._schema.arguments
    given = zip((one.name for one in known), node.args, strict=False)
    return {one.name: one.default_value for one in known} | dict(given) | node.kwargs


def aten_name(node: fx.Node) -> str:
    """Return what the ATen operator that ``node`` calls is called, ``""`` where it calls something else."""
    known = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"
    return str(node.target._schema.name).removeprefix("aten::") if known else ""  # type: ignore[union-attr]


def _fixes_type(node: fx.Node) -> bool:
    """Is a type of floating-point numbers written into ``node``, which would not change with the graph's?"""
    given = (*node.args, *node.kwargs.values())
    return any(isinstance(one, torch.dtype) and one.is_floating_point for one in given)
