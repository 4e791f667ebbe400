"""Models that carry their own graph: TorchScript files and ``torch.export`` files.

Neither is unpickled as Python code: TorchScript has its own interpreter, and a ``torch.export`` file is
refused where reading it would need more than ``weights_only`` allows.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from pixelsem.errors import ModelError
from pixelsem.models.checkpoints import first_line

Kind = Literal["torchscript", "export", "state"]


def kind_of(path: Path) -> Kind:
    """Tell by its content what a model file is; anything that is no program counts as a state dict."""
    if not zipfile.is_zipfile(path):
        return "state"
    with zipfile.ZipFile(path) as archive:
        inner = {name.partition("/")[2] for name in archive.namelist()}
    if "archive_format" in inner:
        return "export"
    return "torchscript" if "constants.pkl" in inner else "state"


def load_torchscript(path: Path) -> nn.Module:
    """Load a TorchScript file on the CPU. Raises :class:`ModelError` where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated; its files are still about
            network: nn.Module = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: not a TorchScript file that can be read ({first_line(error)})") from error
    return network


def load_exported(path: Path) -> tuple[nn.Module, tuple[int, int] | None]:
    """Load a ``torch.export`` file: its module, and the (height, width) it was exported for, None where open.

    Raises :class:`ModelError` where it cannot be read, holds pickled code, or has a fixed batch size.
    """
    _refuse_code(path)
    try:
        program = torch.export.load(path)
        network = program.module()
    except Exception as error:  # many kinds, from the archive, the schema and the operators
        raise ModelError(f"{path}: not a torch.export file that can be read ({first_line(error)})") from error
    shape = _input_shape(program)
    if shape is None:
        raise ModelError(f"{path}: must take one float tensor [N, 3, H, W]; export it so")
    if isinstance(shape[0], int):
        advice = "export it with dynamic_shapes=({0: torch.export.Dim('batch')},)"
        raise ModelError(f"{path}: was exported for batches of exactly {shape[0]}; {advice}")
    for method in ("train", "eval"):
        # torch.export replaces both by functions that raise, as the graph fixes the mode. Without
        # them the module's own only set a flag, and it can be a part of another module.
        vars(network).pop(method, None)
    height, width = shape[2:]
    return network, (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _input_shape(program: torch.export.ExportedProgram) -> torch.Size | None:
    """Return the shape of the only input (open dimensions are no ``int``), None where it is not one image batch."""
    inputs = program.graph_signature.user_inputs
    node = next((node for node in program.graph.nodes if node.name == inputs[0]), None) if len(inputs) == 1 else None
    value = None if node is None else node.meta.get("val")
    return value.shape if isinstance(value, torch.Tensor) and value.ndim == 4 else None


def _refuse_code(path: Path) -> None:
    """Raise :class:`ModelError` where torch.export.load would unpickle anything but plain tensors."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        # An archive with two entries of one name could show this check one and torch the other.
        plain = len({name.lower() for name in names}) == len(names) and "version" not in names
        try:
            for name in names if plain else ():
                if name.endswith(("weights_config.json", "constants_config.json")):
                    entries = json.loads(archive.read(name))["config"]
                    plain &= not any(entry["use_pickle"] for entry in entries.values())
                elif name.endswith(".pt"):
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
        except Exception:  # whatever cannot be read safely is refused
            plain = False
    if not plain:
        raise ModelError(f"{path}: holds pickled code, or is of an old format; export it again with plain tensors")
