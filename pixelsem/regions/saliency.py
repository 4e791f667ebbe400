"""U²-Net: the object that stands out, found by a network (wang2021 §III-B; Qin et al. 2020)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.errors import ModelError, PixelsemError
from pixelsem.fitness.evaluator import pick_device
from pixelsem.images import resize_image
from pixelsem.models.checkpoints import first_line, fit_state, load_state, write_state
from pixelsem.models.downloads import Download, fetch
from pixelsem.models.registry import bundled_weights
from pixelsem.models.u2net import NETWORKS, U2Net
from pixelsem.regions.settings import SaliencySettings
from pixelsem.sources import file_digest

#: What weights are used with that do not say for which input size they were trained (Qin et al. 2020, §4.2).
DEFAULT_SIZE = 320

#: The authors publish their checkpoints where programs cannot fetch them; this is a copy, told by its checksum.
U2NET_WEIGHTS = Download(
    "https://huggingface.co/akhaliq/CLIPasso/resolve/main/u2net.pth", "md5:09fb4e49b7f785c9f855baf94916840a"
)

_ADVICE = (
    "get the authors' file from https://github.com/xuebinqin/U-2-Net and give it with --weights, or take the same "
    "network with --method rembg --network "
)
_METADATA_KEY = "pixelsem-saliency"
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare(images: Sequence[NDArray[np.uint8]], size: int) -> Tensor:
    """Return uint8 [H, W, 3] RGB images of any sizes as the network's input, float [N, 3, size, size].

    Each is squashed to the square (bilinear, antialiased), then normalised: see :func:`normalise`.
    """
    squares = np.stack([resize_image(image, (size, size), "bilinear") for image in images])
    return normalise(torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255)


def normalise(images: Tensor) -> Tensor:
    """Divide each of [N, 3, H, W] by its own maximum, then take off ImageNet's mean and divide by its deviation."""
    mean, deviation = (images.new_tensor(part).view(1, 3, 1, 1) for part in (_MEAN, _DEVIATION))
    return (images / images.amax((1, 2, 3), keepdim=True).clamp(min=1e-6) - mean) / deviation


def stretch(maps: Tensor) -> Tensor:
    """Bring each of [N, 1, H, W] to the range [0, 1] by its own minimum and maximum; a constant one becomes 0."""
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def fit_map(found: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize one stretched map [1, h, w] to (height, width) ``size``: float32 [H, W], again with the maximum 1.

    Bilinear, antialiased where it shrinks. A map that is 0 throughout stays so.
    """
    resized = F.interpolate(found[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0, 0]
    resized = resized.clamp(0, 1)
    top = float(resized.max())
    return np.asarray((resized / top if top > 0 else resized).numpy())


def soft_mask(found: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return a map in [0, 1] as the values of a soft mask."""
    return np.asarray(np.round(found * 65535.0), np.uint16)


@torch.inference_mode()
def find_maps(
    network: U2Net,
    images: Sequence[NDArray[np.uint8]],
    size: int,
    device: torch.device,
    precision: Literal["fp32", "bf16"] = "fp32",
    turn: AbstractContextManager[object] | None = None,
) -> list[NDArray[np.float32]]:
    """Return the saliency of each uint8 [H, W, 3] image at its own size: float32 [H, W] in [0, 1].

    ``network`` is on ``device`` and in eval mode; it sees the images at ``size`` × ``size``. The fused map is
    stretched to its range (:func:`stretch`), then resized. Where several threads share the network, ``turn`` is the
    lock that keeps it to one of them, while others prepare their images and resize their maps.
    """
    squares = prepare(images, size)
    with turn or nullcontext(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        x = squares.to(device, memory_format=torch.channels_last)
        fused = network(x)[0].float()
        maps = stretch(fused.sigmoid()).cpu()
    return [fit_map(found, image.shape[:2]) for found, image in zip(maps, images, strict=True)]


def save_network(network: U2Net, path: Path, model: str, size: int) -> None:
    """Write the weights of ``model`` (fp16 safetensors, atomically), with the input size they are meant for."""
    write_state(network, path, {_METADATA_KEY: json.dumps({"model": model, "size": size})})


def load_network(model: str, weights: Path | None) -> tuple[U2Net, Path, int]:
    """Return ``model`` (a name of :data:`NETWORKS`) with its weights, the weights' file and input size.

    Without ``weights`` these are the ones in the package or, of ``u2net``, the authors', fetched at the first
    use. The network is on the CPU, in eval mode. Raises :class:`ModelError` where there are none, or they do
    not fit.
    """
    path = weights or own_weights(model)
    network = NETWORKS[model]()
    fit_state(network, load_state(path), path, model)
    return network.eval(), path, _input_size(path)


def own_weights(model: str) -> Path:
    """Return the file with the weights that belong to ``model``; see :func:`load_network`."""
    if model == "u2net":
        return fetch(U2NET_WEIGHTS, model, _ADVICE + model)
    path = bundled_weights(model)
    if path is None:
        advice = "train it with `pixelsem segment train`, " + _ADVICE + model
        raise ModelError(f"{model}: no weights in this package; {advice}")
    return path


def _input_size(path: Path) -> int:
    """Return the input size that :func:`save_network` wrote into the file, else :data:`DEFAULT_SIZE`."""
    if path.suffix != ".safetensors":
        return DEFAULT_SIZE
    with safetensors.safe_open(path, "pt") as file:  # it was read as such already
        text = (file.metadata() or {}).get(_METADATA_KEY)
    try:
        return DEFAULT_SIZE if text is None else int(json.loads(text)["size"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: its {_METADATA_KEY!r} metadata cannot be read ({first_line(error)})") from error


class Saliency:
    """A saliency network with its weights, as a :class:`pixelsem.regions.registry.Segmenter`."""

    kind: Literal["soft"] = "soft"
    whole = False

    def __init__(self, model: str, settings: SaliencySettings) -> None:
        """Load the weights. Raises :class:`pixelsem.errors.PixelsemError` where there are none, or no such device."""
        self._device = pick_device(settings.device)
        network, self._file, size = load_network(model, settings.weights)
        self._network = network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._name, self._settings = model, settings
        self._turn = Lock()  # the network uses all cores by itself
        self.size = settings.input_size or size

    @property
    def batch(self) -> int:
        """Images per pass."""
        return self._settings.batch_size

    @property
    def model(self) -> dict[str, object]:
        """The network's name and the digest of its weights."""
        return {"name": self._name, "digest": file_digest(self._file)}

    @property
    def remarks(self) -> list[str]:
        """Nothing."""
        return []

    @property
    def identity(self) -> dict[str, object]:
        """The weights by content, the input size and the arithmetic."""
        return self.model | {"input_size": self.size, "precision": self._settings.precision}

    def __call__(self, images: Sequence[NDArray[np.uint8]], ids: Sequence[str]) -> list[NDArray[np.integer]]:
        """Return the soft masks, uint16 [H, W]; see :func:`find_maps`. Raises :class:`PixelsemError` without memory."""
        try:
            found = find_maps(self._network, images, self.size, self._device, self._settings.precision, self._turn)
        except torch.OutOfMemoryError as error:
            raise PixelsemError(f"out of memory with {len(images)} images; give a smaller --batch-size") from error
        return [soft_mask(one) for one in found]


def open_u2net(settings: SaliencySettings, ids: Sequence[str]) -> Saliency:
    """Open ``--method u2net``."""
    return Saliency("u2net", settings)


def open_u2netp(settings: SaliencySettings, ids: Sequence[str]) -> Saliency:
    """Open ``--method u2netp``."""
    return Saliency("u2netp", settings)
