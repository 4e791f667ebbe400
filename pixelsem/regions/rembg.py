"""The networks that the rembg project releases as ONNX files, run by ONNX Runtime (the extra ``onnx``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pixelsem.errors import ModelError, PixelsemError
from pixelsem.images import resize_image
from pixelsem.models.checkpoints import first_line
from pixelsem.models.downloads import Download, fetch
from pixelsem.regions.saliency import fit_map, soft_mask, stretch
from pixelsem.regions.settings import RembgNetwork, RembgSettings
from pixelsem.sources import file_digest

RELEASE = "https://github.com/danielgatis/rembg/releases/download/v0.0.0/"

_MEAN = (0.485, 0.456, 0.406)


@dataclass(frozen=True)
class Network:
    """One file of the release: its name, checksum, and how the network is asked.

    It takes squares of ``size`` pixels, divided by their maximum, minus ImageNet's mean and divided by
    ``deviation``. ``logits``: what comes out goes through a sigmoid first.
    """

    file: str
    checksum: str
    size: int = 320
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)
    logits: bool = False


_ISNET: dict[str, Any] = {"size": 1024, "deviation": (1.0, 1.0, 1.0)}
_BIREFNET: dict[str, Any] = {"size": 1024, "logits": True}

#: What :data:`pixelsem.regions.settings.RembgNetwork` names.
NETWORKS: dict[RembgNetwork, Network] = {
    "u2net": Network("u2net.onnx", "md5:60024c5c889badc19c04ad937298a77b"),
    "u2netp": Network("u2netp.onnx", "md5:8e83ca70e441ab06c318d82300c84806"),
    "u2net_human_seg": Network("u2net_human_seg.onnx", "md5:c09ddc2e0104f800e3e1bb4652583d1f"),
    "silueta": Network("silueta.onnx", "md5:55e59e0d8062d2f5d013f4725ee84782"),
    "isnet-general-use": Network("isnet-general-use.onnx", "md5:fc16ebd8b0c10d971d3513d564d01e29", **_ISNET),
    "isnet-anime": Network("isnet-anime.onnx", "md5:6f184e756bb3bd901c8849220a83e38e", **_ISNET),
    "birefnet-general": Network("BiRefNet-general-epoch_244.onnx", "md5:7a35a0141cbbc80de11d9c9a28f52697", **_BIREFNET),
    "birefnet-general-lite": Network(
        "BiRefNet-general-bb_swin_v1_tiny-epoch_232.onnx", "md5:4fab47adc4ff364be1713e97b7e66334", **_BIREFNET
    ),
    "birefnet-portrait": Network(
        "BiRefNet-portrait-epoch_150.onnx", "md5:c3a64a6abf20250d090cd055f12a3b67", **_BIREFNET
    ),
    "birefnet-dis": Network("BiRefNet-DIS-epoch_590.onnx", "md5:2d4d44102b446f33a4ebb2e56c051f2b", **_BIREFNET),
    "birefnet-hrsod": Network("BiRefNet-HRSOD_DHU-epoch_115.onnx", "md5:c017ade5de8a50ff0fd74d790d268dda", **_BIREFNET),
    "birefnet-cod": Network("BiRefNet-COD-epoch_125.onnx", "md5:f6d0d21ca89d287f17e7afe9f5fd3b45", **_BIREFNET),
    "birefnet-massive": Network(
        "BiRefNet-massive-TR_DIS5K_TR_TEs-epoch_420.onnx", "md5:33e726a2136a3d59eb0fdf613e31e3e9", **_BIREFNET
    ),
    "bria-rmbg": Network(
        "bria-rmbg-2.0.onnx", "sha256:5b486f08200f513f460da46dd701db5fbb47d79b4be4b708a19444bcd4e79958", size=1024
    ),
}


def prepare(images: Sequence[NDArray[np.uint8]], size: int, network: Network) -> NDArray[np.float32]:
    """Return uint8 [H, W, 3] RGB images of any sizes as a network's input, float32 [N, 3, size, size].

    As rembg has it: squashed with Lanczos' filter, divided by the square's maximum, normalised.
    """
    squares = [resize_image(image, (size, size), "lanczos") / np.float64(255) for image in images]
    scaled = [(square / max(square.max(), 1e-6) - _MEAN) / network.deviation for square in squares]
    return np.ascontiguousarray(np.stack(scaled).transpose(0, 3, 1, 2), np.float32)


class Rembg:
    """One of :data:`NETWORKS`, as a :class:`pixelsem.regions.registry.Segmenter`."""

    kind: Literal["soft"] = "soft"
    whole = False

    def __init__(self, settings: RembgSettings, ids: Sequence[str] = ()) -> None:
        """Open the file, fetched at the first use.

        Raises :class:`PixelsemError` where ONNX Runtime is missing or cannot run on the device, and
        :class:`ModelError` where the file cannot be had, or is no network from images to maps.
        """
        runtime = _runtime()
        providers = _providers(runtime, settings.device)
        self._settings, self._network = settings, NETWORKS[settings.network]
        self._file = settings.weights or _fetch(settings.network)
        if not self._file.is_file():
            raise ModelError(f"{self._file}: no such weights file; check the path")
        try:
            self._session = runtime.InferenceSession(self._file, providers=providers)
        except Exception as error:  # its own classes, which differ between versions
            raise ModelError(f"{self._file}: ONNX Runtime cannot open it ({first_line(error)})") from error
        self._input = _image_input(self._session, self._file)
        self.size = self._side()
        self._turn = Lock()  # the network uses all cores by itself

    def _side(self) -> int:
        fixed = [side for side in self._input.shape[2:] if isinstance(side, int)]
        wanted = self._settings.input_size or (fixed[0] if fixed else self._network.size)
        if any(side != wanted for side in fixed):
            sides = "×".join(str(side) for side in self._input.shape[2:])
            raise PixelsemError(f"{self._file}: takes images of {sides}, not of {wanted}×{wanted}")
        return wanted

    @property
    def batch(self) -> int:
        """Images per pass."""
        return self._settings.batch_size

    @property
    def model(self) -> dict[str, object]:
        """The network's name and the digest of its file."""
        return {"name": f"rembg:{self._settings.network}", "digest": file_digest(self._file)}

    @property
    def remarks(self) -> list[str]:
        """Nothing."""
        return []

    @property
    def identity(self) -> dict[str, object]:
        """The network, its file by content, and the input size."""
        return self.model | {"input_size": self.size}

    def __call__(self, images: Sequence[NDArray[np.uint8]], ids: Sequence[str]) -> list[NDArray[np.integer]]:
        """Return the soft masks, uint16 [H, W]. Raises :class:`ModelError` where the network fails."""
        pixels = prepare(images, self.size, self._network)
        # Many of the files take one image at a time.
        step = self._input.shape[0] if isinstance(self._input.shape[0], int) else len(pixels)
        with self._turn:
            maps = np.concatenate([self._run(pixels[at : at + step]) for at in range(0, len(pixels), step)])
        found = torch.from_numpy(maps)
        found = stretch(found.sigmoid() if self._network.logits else found)
        return [soft_mask(fit_map(one, image.shape[:2])) for one, image in zip(found, images, strict=True)]

    def _run(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the first channel of the first output, float32 [N, 1, h, w]."""
        try:
            first = np.asarray(self._session.run(None, {self._input.name: pixels})[0])
        except Exception as error:  # its own classes, which differ between versions
            raise ModelError(f"{self._file}: ONNX Runtime fails ({first_line(error)})") from error
        if first.ndim != 4 or len(first) != len(pixels) or not first.size:
            raise ModelError(f"{self._file}: gives {list(first.shape)}; maps [N, 1, H, W] are needed")
        return np.asarray(first[:, :1], np.float32)


def _runtime() -> Any:
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise PixelsemError(
            f"--method rembg needs ONNX Runtime ({first_line(error)}): pip install 'pixelsem[onnx]'"
        ) from error


def _providers(runtime: Any, device: str) -> list[str | tuple[str, dict[str, int]]]:
    """Return what ONNX Runtime shall run on; CUDA with ``auto`` where its package can."""
    there = "CUDAExecutionProvider" in runtime.get_available_providers()
    kind, _, number = device.partition(":")
    if kind == "cpu" or (kind == "auto" and not there):
        return ["CPUExecutionProvider"]
    if kind not in ("auto", "cuda") or (number and not number.isdecimal()):
        raise PixelsemError(f"--device: {device!r} is none of auto, cpu, cuda, cuda:N")
    if not there:
        raise PixelsemError(f"--device: {device} needs the package onnxruntime-gpu in place of onnxruntime")
    return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]


def _fetch(name: RembgNetwork) -> Path:
    network = NETWORKS[name]
    download = Download(RELEASE + network.file, network.checksum)
    return fetch(download, f"rembg {name}", "fetch it on another machine and give it with --weights FILE")


def _image_input(session: Any, path: Path) -> Any:
    """Return the network's one input; raises where it takes anything but float32 [N, 3, H, W]."""
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3) or inputs[0].type != "tensor(float)":
        described = ", ".join(f"{one.type} {one.shape}" for one in inputs)
        raise ModelError(f"{path}: takes {described}; one input of float32 [N, 3, H, W] is needed")
    return inputs[0]
