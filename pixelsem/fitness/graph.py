"""A network as a graph without side effects: traced, batch norm folded, nothing written in place.

Incremental scoring keeps activations and reads them again, so no operation may overwrite its operand.
Tracing cannot follow every network, and can follow some of them wrongly (``y = x; y += 1`` loses that
``x`` changes too). Such a network is exported, which takes longer; where that fails as well, it becomes a
graph of one node, which is always right.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pixelsem.fitness import functional
from pixelsem.fitness.exported import aten_name, by_schema, expect_size, export

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPOUT_NAMES = ("dropout", "dropout1d", "dropout2d", "alpha_dropout", "stochastic_depth")

#: Element by element, from the operand to a new tensor: modules, and the names of functions and methods.
ELEMENTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.GELU, nn.LeakyReLU, nn.ELU),
    *(nn.SELU, nn.CELU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Mish, nn.LogSigmoid, nn.Tanhshrink),
    *(nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.RReLU),
)
ELEMENTWISE_NAMES = frozenset(
    {
        *("relu", "relu6", "silu", "hardswish", "hardsigmoid", "hardtanh", "gelu", "leaky_relu", "elu", "selu"),
        *("celu", "sigmoid", "tanh", "softplus", "softsign", "mish", "logsigmoid", "abs", "exp", "sqrt", "rsqrt"),
        *("square", "neg", "sign", "log", "clamp", "clamp_min", "clamp_max", "clone", "erf", "reciprocal"),
    }
)
BINARY_NAMES = frozenset({"add", "sub", "rsub", "mul", "div", "truediv", "maximum", "minimum", "pow"})
_FRESH_MODULES = (
    *ELEMENTWISE_MODULES,
    *(nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d),
    nn.LocalResponseNorm,
)
_FRESH_NAMES = ELEMENTWISE_NAMES | BINARY_NAMES | {"cat", "concat", "max_pool2d", "avg_pool2d", "linear", "layer_norm"}


Way = Callable[[nn.Module, Tensor], "fx.GraphModule | None"]


def lower(network: nn.Module, example: Tensor) -> fx.GraphModule:
    """Return a graph that computes the logits of ``network``, which is in evaluation mode.

    The network stays as it is; what of its modules need not be another shares it with the graph. ``example``,
    float [N, 3, H, W] of the network's dtype and on its device, N > 1, is what the graph is tried on: where graph
    and network disagree, or there is none, the graph is the network as one node.
    """
    for way in (_trace, _export):
        try:
            graph = way(network, example)
            if graph is not None and _agrees(way, network, graph, example):
                return graph
        except Exception:  # a foreign forward may raise anything on symbolic values
            continue
    return _as_one_node(network)


def _trace(network: nn.Module, _: Tensor) -> fx.GraphModule | None:
    traced = fx.symbolic_trace(network)
    if any(aten_name(node) for node in traced.graph.nodes):
        return None  # was exported by somebody else, for whatever size and with whatever checks
    _drop_identities(traced)
    _allow_any_layout(traced)
    return _fold(traced) if _make_pure(traced) else None


def _export(network: nn.Module, example: Tensor) -> fx.GraphModule | None:
    return _fold(export(network, example))


def _fold(graph: fx.GraphModule) -> fx.GraphModule:
    """Return the same graph with layers as modules, batch norm folded, and without what is no longer used."""
    _use_modules(graph)
    _fold_batch_norm(graph)
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.graph.erase_node(node)
    graph.graph.lint()
    return fx.GraphModule(graph, graph.graph)


def canonical_name(node: fx.Node) -> str:
    """Return what a function or method of PyTorch is called, one name for all its forms; ``""`` for others."""
    if node.op == "call_method":
        return str(node.target)
    if aten_name(node):
        return aten_name(node)
    name = getattr(node.target, "__name__", "")
    known = any(getattr(home, name, None) is node.target for home in (torch, F, operator, torch._C._nn))
    return name if name and known else ""


def called_module(node: fx.Node) -> nn.Module:
    """Return the module that a ``call_module`` node calls."""
    return _owner(node).get_submodule(str(node.target))


def _owner(node: fx.Node) -> fx.GraphModule:
    owner = node.graph.owning_module
    assert owner is not None, "graphs here always belong to a module"
    return owner


def plain_module(node: fx.Node) -> nn.Module | None:
    """Return the module that ``node`` calls with one operand and no hooks around it, else None."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    module = called_module(node)
    return None if module._forward_hooks or module._forward_pre_hooks else module


def asks_shape(node: fx.Node) -> bool:
    """Does ``node`` read nothing but the shape of its operand?"""
    if node.op == "call_method":
        return node.target in ("size", "dim", "ndimension", "numel")
    if aten_name(node) in ("sym_size", "sym_numel") or node.target is expect_size:
        return True
    return node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim")


def _as_one_node(network: nn.Module) -> fx.GraphModule:
    root = nn.Module()
    root.network = network
    graph = fx.Graph()
    graph.output(graph.call_module("network", (graph.placeholder("x"),)))
    return fx.GraphModule(root, graph)


def _agrees(way: Way, network: nn.Module, graph: fx.GraphModule, example: Tensor) -> bool:
    """Does ``graph``, made of ``network`` in this way, give the same logits?"""
    batches = [example]
    if way is _export:
        # A network may do something else for a batch of one, or of many, without export noticing.
        batches += [example[:1], torch.cat([example, example.flip(-1), example[:1].flip(-2)])]
    if all(_same_logits(network, graph, batch) for batch in batches):
        return True
    # Logits that hardly depend on the image show nothing in fp32; fp64, folded anew, takes longer.
    exact = copy.deepcopy(network).double()
    again = way(exact, example.double())
    return again is not None and all(_same_logits(exact, again, batch.double()) for batch in batches)


@torch.no_grad()
def _same_logits(network: nn.Module, graph: fx.GraphModule, example: Tensor) -> bool:
    """Do both give the same logits, measured by how far those of the examples, and of one turned over, lie apart?"""
    expected = network(example.clone())
    error = (graph(example.clone()) - expected).abs().max()
    other = network(example.flip(-1).clone()) if len(example) == 1 else expected.roll(1, 0)
    return bool(error <= 1e-3 * (expected - other).abs().max())


def _allow_any_layout(traced: fx.GraphModule) -> None:
    """Make ``reshape`` of ``view``, which fails for maps whose channels lie together in memory."""
    for node in traced.graph.nodes:
        shape = node.args[1:] or tuple(node.kwargs.values())
        if node.op == "call_method" and node.target == "view" and not isinstance(shape[0], torch.dtype):
            node.target, node.kwargs = "reshape", {}
            node.args = (node.args[0], *shape)


def _drop_identities(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)


def _is_identity(node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(plain_module(node)) in (nn.Identity, *_DROPOUTS)
    name = getattr(node.target, "__name__", "")
    home = getattr(node.target, "__module__", "") or ""
    if node.op != "call_function" or name not in _DROPOUT_NAMES:
        return False
    if not home.startswith(("torch.nn.functional", "torchvision.ops")) or not isinstance(node.args[0], fx.Node):
        return False
    return _arguments(node).get("training") is False


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a function by name; none of those by place where it has no signature."""
    of = _operator(node)
    if of is not None:
        return by_schema(of, node)
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return dict(node.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _operator(node: fx.Node) -> Any:
    """Return the ATen operator that a function written in C++ is, for layers that are called as functions."""
    if aten_name(node):
        return node.target
    builtin = {"conv2d": torch.ops.aten.conv2d.default, "prelu": torch.ops.aten.prelu.default}
    return builtin.get(canonical_name(node))


def _use_modules(graph: fx.GraphModule) -> None:
    """Make modules of convolutions and norms that are called as functions, so that one rule knows both."""
    for node in list(graph.graph.nodes):
        module = _as_module(graph, node) if node.op == "call_function" else None
        if module is None:
            continue
        name = f"{node.name}_layer"
        graph.add_submodule(name, module)
        with graph.graph.inserting_after(node):
            call = graph.graph.call_module(name, (node.args[0],))
        results = _results(node)
        for result in results:
            result.replace_all_uses_with(call)
            graph.graph.erase_node(result)
        if node not in results:
            graph.graph.erase_node(node)


def _as_module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the layer that ``node`` is, if it has one input and one result, and all else are parameters."""
    given = _arguments(node)
    parameters = {key: _parameter(graph, value) for key, value in given.items()}
    inputs = [key for key, value in parameters.items() if isinstance(value, fx.Node)]
    name, operand = canonical_name(node), node.args[0] if node.args else None
    if len(inputs) != 1 or not isinstance(operand, fx.Node) or given[inputs[0]] is not operand:
        return None
    if not _results(node) or ("norm" in name and not _is_map(operand)):
        return None
    return functional.layer(name, parameters)


def _parameter(graph: fx.GraphModule, value: Any) -> Any:
    """Return the tensor of the network that ``value`` stands for, or the value itself."""
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return value
    owner, _, leaf = str(value.target).rpartition(".")
    return getattr(graph.get_submodule(owner), leaf)


def _results(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that stand for the one result of ``node``; none where more of its results are used."""
    if canonical_name(node) != "_native_batch_norm_legit_no_training":
        return [node]
    first = all(canonical_name(user) == "getitem" and user.args[1] == 0 for user in node.users)
    return list(node.users) if first else []


def _is_map(node: fx.Node) -> bool:
    """Is ``node`` known to be [N, C, H, W]?"""
    known = node.meta.get("val")  # of exported networks
    return known.ndim == 4 if isinstance(known, Tensor) else isinstance(plain_module(node), nn.Conv2d)


def _fold_batch_norm(traced: fx.GraphModule) -> None:
    """Fold every batch norm that alone follows a convolution into that convolution's weights."""
    calls = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    for node in list(traced.graph.nodes):
        norm, before = plain_module(node), node.args[0] if node.args else None
        if not isinstance(norm, nn.BatchNorm2d) or not is_affine(norm) or not isinstance(before, fx.Node):
            continue
        conv = plain_module(before)
        if type(conv) is nn.Conv2d and len(before.users) == 1 and calls.count(str(before.target)) == 1:
            parent, _, leaf = str(before.target).rpartition(".")
            setattr(traced.get_submodule(parent), leaf, fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)


def is_affine(module: nn.Module | None) -> bool:
    """Is ``module`` a batch norm over maps that uses its running statistics?"""
    return type(module) is nn.BatchNorm2d and module.running_mean is not None and not module.training


def _make_pure(traced: fx.GraphModule) -> bool:
    """Give every operation that overwrites its operand a result of its own; False where that cannot be done.

    What read the overwritten tensor afterwards now reads the result. Anything else that shares the
    tensor's memory, as a view does, would see the change too: the answer is False then.
    """
    nodes = list(traced.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    memory: dict[fx.Node, set[fx.Node]] = {}
    for node in nodes:
        operand = node.args[0] if node.args else None
        pure = _stop_writing(node)
        if pure is None:
            shared = set() if _is_fresh(node) or asks_shape(node) else set(node.all_input_nodes)
            memory[node] = {node}.union(*(memory[other] for other in shared))
            continue
        if not pure or not isinstance(operand, fx.Node):
            return False
        sharing = [other for other in memory if other is not operand and memory[other] & memory[operand]]
        if any(place[user] > place[node] for other in sharing for user in other.users):
            return False
        for user in [user for user in operand.users if place[user] > place[node]]:
            user.replace_input_with(operand, node)
        memory[node] = {node}
    return True


def _is_fresh(node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(plain_module(node)) in _FRESH_MODULES
    return node.op in ("call_function", "call_method") and canonical_name(node) in _FRESH_NAMES


def _stop_writing(node: fx.Node) -> bool | None:
    """Make ``node`` leave its operand alone; None where it does already, False where it cannot be made to."""
    if node.op == "call_module":
        module = called_module(node)
        if not getattr(module, "inplace", False):
            return None
        # A copy: the same module may be called elsewhere, where this must be noticed again.
        pure: Any = copy.deepcopy(module)
        pure.inplace = False
        name = f"{node.name}_pure"
        _owner(node).add_submodule(name, pure)
        node.target = name
        return True
    if node.op in ("call_function", "call_method"):
        return _stop_writing_function(node)
    return None


def _stop_writing_function(node: fx.Node) -> bool | None:
    if node.op == "call_function" and _arguments(node).get("inplace", False):
        if canonical_name(node) not in ELEMENTWISE_NAMES:
            return False
        arguments = _arguments(node) | {"inplace": False}
        node.args = (arguments.pop("input"),)
        node.kwargs = arguments
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if "out" in node.kwargs or name in ("setitem", "delitem"):
        return False
    if not name.endswith("_") or name.endswith("__"):
        return None
    plain = name[:-1]
    if plain not in ELEMENTWISE_NAMES | BINARY_NAMES:
        return False
    return _retarget(node, plain)


def _retarget(node: fx.Node, name: str) -> bool:
    if node.op == "call_method":
        node.target = name
        return True
    function: Callable[..., Any] | None = getattr(torch, name, None) or getattr(F, name, None)
    if function is not None:
        node.target = function
    return function is not None
