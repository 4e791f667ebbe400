"""Weights on disk: reading state dicts without ever running code from them, fitting them, writing them."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pixelsem.errors import ClassCountError, ModelError
from pixelsem.files import write_atomically
from pixelsem.models.classifier import Classifier, Preprocessing

#: Keys under which training scripts keep the state dict inside a checkpoint.
_WRAPPERS = ("state_dict", "model", "network", "model_state_dict", "net")

#: Prefixes that wrappers (DataParallel, torch.compile, Classifier) put before every key.
_PREFIXES = ("module.", "_orig_mod.", "network.", "model.")

#: Heads used only in training by GoogLeNet and Inception; they never touch the logits in eval mode.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")

#: Names in files that torchvision still distributes, and what its networks call them today.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)"), r"\1"),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)

_STEP_COUNT = "num_batches_tracked"
_METADATA_KEY = "pixelsem"


@dataclass(frozen=True)
class Metadata:
    """What a safetensors file written by :func:`save_weights` says about its weights."""

    arch: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing


def first_line(error: BaseException) -> str:
    """Return the telling line of an error's message, cut to a readable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1] if "TorchScript interpreter" in lines[0] else lines[0]
    return line if len(line) <= 200 else line[:199] + "…"


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors`` or a ``torch.save`` file: name to tensor, on the CPU.

    Floating tensors come as float32. A checkpoint that keeps its state dict under ``state_dict``,
    ``model``, ``network``, ``model_state_dict`` or ``net`` is unwrapped. Raises :class:`ModelError` for a file that is
    missing, damaged, holds pickled code (which is never run), no tensors, or values that are not finite.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file; check the path")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(f"{path}: tensor {name!r} holds NaN or infinite values; use an undamaged checkpoint")
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        state = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file, or cut short ({first_line(error)}); get it again") from error
    if not state:
        raise ModelError(f"{path}: holds no tensors; give a state dict")
    return state


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search("unsupported (global|class|operand)|unrecognized", str(error), re.IGNORECASE)
        if refused and _is_pickle(path):
            advice = "save model.state_dict() instead of the model"
            raise ModelError(f"{path}: holds pickled code, which is never run; {advice}") from error
        raise ModelError(f"{path}: not a checkpoint that torch.load(weights_only=True) reads") from error
    except Exception as error:  # damaged archives raise RuntimeError, EOFError, ValueError, KeyError …
        raise ModelError(f"{path}: not a checkpoint, or damaged ({first_line(error)}); get it again") from error
    state = _unwrap(loaded)
    if state is None:
        raise ModelError(f"{path}: holds no state dict; save model.state_dict(), plain or under 'state_dict'")
    return state


def _is_pickle(path: Path) -> bool:
    """Tell a pickle, plain or in torch.save's archive, from any other file."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def _unwrap(loaded: Any) -> dict[str, Tensor] | None:
    """Return the name-to-tensor dictionary in what torch.load gave, or None where there is none."""
    if not isinstance(loaded, Mapping):
        return None
    if loaded and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        return dict(loaded)
    found = (_unwrap(loaded[key]) for key in _WRAPPERS if key in loaded)
    return next((state for state in found if state is not None), None)


def load_metadata(path: Path) -> Metadata | None:
    """Return what the file says of its weights; None where :func:`save_weights` did not write it.

    Raises :class:`ModelError` where it is no safetensors file or says it in a way that cannot be read.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a safetensors file, or cut short ({first_line(error)}); get it again") from error
    if text is None:
        return None
    try:
        values = json.loads(text)
        arch, class_names = str(values.pop("arch")), tuple(map(str, values.pop("class_names")))
        tuples = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return Metadata(arch, class_names, Preprocessing(**{**values, **tuples}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ModelError) as error:
        raise ModelError(f"{path}: its {_METADATA_KEY!r} metadata cannot be read ({first_line(error)})") from error


def save_weights(classifier: Classifier, path: Path, *, half: bool = True) -> None:
    """Write the network's weights to ``path`` (safetensors), atomically, with what is needed to load them again.

    With ``half`` floating tensors of two or more dimensions are stored as float16; vectors (biases, the
    statistics of batch normalisation) and tensors that float16 cannot hold stay float32. Raises
    :class:`OutputError` where it cannot be written.
    """
    values = {"arch": classifier.arch, "class_names": classifier.class_names, **asdict(classifier.preprocessing)}
    write_state(classifier.network, path, {_METADATA_KEY: json.dumps(values)}, half=half)


def write_state(network: nn.Module, path: Path, metadata: dict[str, str], *, half: bool = True) -> None:
    """Write a network's tensors to ``path`` with some ``metadata``; see :func:`save_weights`."""
    state = {name: _stored(tensor.detach().cpu(), half) for name, tensor in network.state_dict().items()}
    content = safetensors.torch.save(state, metadata)
    with write_atomically(path) as file:
        file.write(content)


def _stored(tensor: Tensor, half: bool) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.contiguous().clone()
    single = tensor.float().contiguous().clone()  # safetensors refuses tensors that share their memory
    if not half or tensor.ndim < 2:
        return single
    stored = single.half()
    return stored if bool(stored.isfinite().all()) else single


def fit_state(network: nn.Module, state: Mapping[str, Tensor], path: Path, arch: str) -> None:
    """Copy ``state`` into ``network``. Raises :class:`ModelError` where names or shapes differ.

    ``path`` and ``arch`` are for the message. Prefixes of wrappers and names of older torchvision
    files are understood; auxiliary heads that the network was built without are dropped; step counts
    of batch normalisation may be missing.
    """
    own = network.state_dict()
    state = _rename(_strip(dict(state), own), own)
    missing = [name for name in own if name not in state and not name.endswith(_STEP_COUNT)]
    unexpected = [name for name in state if name not in own and not name.endswith(_STEP_COUNT)]
    unexpected = [name for name in unexpected if not name.startswith(_AUXILIARY)]
    reshaped = [name for name in state if name in own and state[name].shape != own[name].shape]
    if reshaped and not missing and not unexpected:
        _check_head(reshaped, state, own, f"{path}: does not fit {arch}")
    if missing or unexpected or reshaped:
        raise ModelError(f"{path}: does not fit {arch}: " + _mismatch(missing, unexpected, reshaped, state, own))
    own.update({name: tensor for name, tensor in state.items() if name in own})
    network.load_state_dict(own)  # `own` keeps the version numbers that some networks look for


def _strip(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take wrappers' prefixes off, only while no key is known: a network may itself have a part called "model"."""
    while state and not any(name in own for name in state):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _rename(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        today = name
        for pattern, replacement in _RENAMED:
            today = pattern.sub(replacement, today)
        renamed[today if name not in own and today in own else name] = tensor
    return renamed


def _check_head(reshaped: list[str], state: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    """Raise :class:`ClassCountError` where ``state`` differs from a network's ``own`` in the number of classes alone.

    ``reshaped`` names the tensors of other shapes; the message begins with ``what``.
    """
    heads = {(state[name].shape[:1], own[name].shape[:1]) for name in reshaped}
    same_rest = all(state[name].shape[1:] == own[name].shape[1:] for name in reshaped)
    if same_rest and len(heads) == 1 and len(reshaped) <= 2:
        (there,), (here,) = next(iter(heads))
        advice = f"name all {there} with --classes"
        raise ClassCountError(f"{what}: it has {there} classes, {here} are expected; {advice}", there)


def _mismatch(
    missing: list[str],
    unexpected: list[str],
    reshaped: list[str],
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
) -> str:
    """Say in a few words how ``state`` and a network's ``own`` differ."""
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors missing (first {missing[0]!r})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected (first {unexpected[0]!r})")
    if reshaped:
        name = reshaped[0]
        shapes = f"{list(state[name].shape)}, expected {list(own[name].shape)}"
        parts.append(f"{len(reshaped)} of another shape (first {name!r}: {shapes})")
    return ", ".join(parts) + "; give the architecture it was trained as"
