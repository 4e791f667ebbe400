"""The one type of model that everything else sees: pixels in, logits out."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pixelsem.errors import ModelError, PixelsemError, is_out_of_memory
from pixelsem.files import one_line
from pixelsem.transforms.layer import DefenseLayer

#: How pixels are interpolated when an image is resized; PIL's filters, all antialiased but ``nearest``.
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes what the network was trained on.

    ``resize`` is the length of the shorter side before the centre crop to ``size`` (height, width) pixels;
    the [0, 1] image is then multiplied by ``scale``, ``mean`` subtracted and the result divided by ``std``.
    Where ``size`` is no square, ``resize`` belongs to its shorter side. Raises :class:`ModelError` for
    sizes below 1, a crop larger than the resized image, and numbers that are not finite or (``scale``, ``std``)
    not above 0.
    """

    size: tuple[int, int]
    resize: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ModelError(f"input size: {self.size[0]}×{self.size[1]} is no image; both sides must be at least 1")
        if self.resize < min(self.size):
            raise ModelError(f"resize: {self.resize} is smaller than the crop's shorter side, {min(self.size)}")
        if not all(map(math.isfinite, self.mean)):
            raise ModelError(f"mean: {self.mean} is not finite")
        if not all(math.isfinite(s) and s > 0 for s in self.std):
            raise ModelError(f"std: {self.std} must be finite and above 0")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ModelError(f"scale: {self.scale} must be finite and above 0")
        known = get_args(Interpolation)
        if self.interpolation not in known:
            raise ModelError(f"interpolation: {self.interpolation!r} is not one of {', '.join(known)}")


class Classifier(nn.Module):
    """A network with its preprocessing: float [N, 3, H, W] in [0, 1] to logits [N, classes].

    :ivar network: the plain network, normalised float [N, 3, H, W] to logits; what is traced.
    :ivar name: what the user called it, e.g. ``allconv`` or ``torchvision:vgg16``.
    :ivar arch: the architecture its weights fit, e.g. ``allconv`` where ``name`` is a file.
    :ivar class_names: one name per logit.
    :ivar trained: whether trained weights were loaded (False: as initialised).
    :ivar defense: transforms that every image goes through first, at the input's resolution; None for none.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        class_names: tuple[str, ...],
        preprocessing: Preprocessing,
        digest: str = "",
        trained: bool = False,
        arch: str = "",
        defense: DefenseLayer | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.arch = arch or name
        self.class_names = class_names
        self.preprocessing = preprocessing
        self.trained = trained
        self.defense = defense
        self._digest = digest
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1), persistent=False)

    @property
    def digest(self) -> str:
        """Sha256 (hex) of the weights and the preprocessing: the model's identity in a stage.

        The one taken when the classifier was loaded; else computed from the weights as they are now.
        """
        return self._digest or compute_digest(self.network, self.preprocessing)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of float images [N, 3, H, W] in [0, 1]."""
        if self.defense is not None:
            x = self.defense(x)
        return run_network(self.network, (x * self.preprocessing.scale - self.mean) / self.std, self.name)


def run_network(network: nn.Module, x: Tensor, name: str) -> Tensor:
    """Return what a network, which may be anyone's code, makes of normalised images [N, 3, H, W].

    Raises :class:`ModelError`, one line that names the model, for whatever it raises but a lack of memory.
    """
    try:
        logits: Tensor = network(x)
    except PixelsemError:
        raise
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {one_line(error)}"
        raise ModelError(f"{name}: cannot score images of {x.shape[3]}×{x.shape[2]} ({said})") from error
    return logits


def compute_digest(network: nn.Module, preprocessing: Preprocessing, extra: bytes = b"") -> str:
    """Return the sha256 (hex) over ``preprocessing``, every tensor of the state dict, and ``extra``.

    Floating tensors count as float32, so weights stored in fp16 and the same values in fp32 are one
    model. The step counts of batch normalisation are left out: they cannot change a logit.
    """
    sha = hashlib.sha256(json.dumps(asdict(preprocessing), sort_keys=True).encode())
    for name, tensor in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        value = tensor.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).contiguous()
        sha.update(f"\n{name} {list(value.shape)} {value.dtype}\n".encode())
        sha.update(memoryview(value.numpy()).cast("B") if value.numel() else b"")
    sha.update(extra)
    return sha.hexdigest()
