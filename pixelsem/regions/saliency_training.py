"""Training of saliency networks: resumable after every epoch, with the averaged weights ready at any time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.errors import PixelsemError
from pixelsem.fitness.allocation import keep_freed_memory
from pixelsem.images import read_image, resize_image
from pixelsem.models.checkpoints import fit_state, load_state
from pixelsem.models.epochs import Epochs, average_weights, check_loss
from pixelsem.models.u2net import NETWORKS, U2Net
from pixelsem.records import SaliencyEpochRecord
from pixelsem.regions.masks import FolderMasks
from pixelsem.regions.saliency import find_maps, normalise
from pixelsem.regions.settings import SaliencyTrainSettings
from pixelsem.sources import ImageItem, open_images, select

#: Images wait in memory this much larger than the network sees them, so that crops stay sharp.
_SPARE = 1.25

#: A crop's width over its height changes by up to a factor of e to this, twice.
_STRETCH = 0.2


@dataclass(frozen=True)
class SaliencyData:
    """Photos with masks: ``images`` uint8 [N, 3, S, S] and ``masks`` uint8 [N, 1, S, S] to train on, squashed to
    squares; ``held`` pairs (uint8 [H, W, 3], bool [H, W]) of any sizes to measure on, named by ``held_ids``.
    """

    images: Tensor
    masks: Tensor
    held: list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]
    held_ids: list[str]


def load_data(images: Path, masks: Path, settings: SaliencyTrainSettings) -> SaliencyData:
    """Read a folder of photos and the folder of their masks (see :class:`pixelsem.regions.masks.FolderMasks`).

    ``settings.hold_out`` of them, drawn by ``settings.seed``, are kept for measuring. Raises
    :class:`PixelsemError` where an image has no mask, another size than its mask, cannot be read, or where
    nothing would be left to train on.
    """
    items, folder = open_images(images).items, FolderMasks(masks)
    if settings.hold_out >= len(items):
        raise PixelsemError(f"--hold-out: {settings.hold_out} of {len(items)} images; at least one is needed to train")
    held = select(items, sample=settings.hold_out, seed=settings.seed)
    kept = [item for item in items if item not in held]
    side = round(settings.size * _SPARE)

    def squashed(item: ImageItem) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        image, mask = _read_pair(item, folder)
        grey = np.repeat(np.where(mask, 255, 0).astype(np.uint8)[:, :, None], 3, axis=2)
        return resize_image(image, (side, side), "bilinear"), resize_image(grey, (side, side), "bilinear")[:, :, :1]

    with ThreadPoolExecutor() as pool:
        pairs = list(pool.map(squashed, kept))
        apart = list(pool.map(lambda item: _read_pair(item, folder), held))
    pixels, grey = (torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) for part in zip(*pairs, strict=True))
    return SaliencyData(pixels.contiguous(), grey.contiguous(), apart, [item.id for item in held])


def _read_pair(item: ImageItem, folder: FolderMasks) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    image, entry = read_image(item.path), folder.find(item.id)
    if entry is None:
        raise PixelsemError(f"{item.path}: has no mask in {folder.path}")
    if entry.values.shape != image.shape[:2]:
        sizes = f"{entry.values.shape[1]}×{entry.values.shape[0]}, its image {image.shape[1]}×{image.shape[0]}"
        raise PixelsemError(f"{entry.path}: is {sizes}")
    return image, entry.region("foreground")


def start_network(model: str, weights: Path | None, seed: int) -> U2Net:
    """Build ``model`` (``u2net``, ``u2netp``) with the weights of a file, or without one as drawn by ``seed``.

    Raises :class:`ModelError` where the file does not fit.
    """
    torch.manual_seed(seed)
    network = NETWORKS[model]()
    if weights is not None:
        fit_state(network, load_state(weights), weights, model)
    return network


class _Run:
    """Everything that changes during training and so goes into the checkpoint."""

    def __init__(self, averaged: U2Net, settings: SaliencyTrainSettings, device: torch.device) -> None:
        self.averaged = averaged.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = copy.deepcopy(self.averaged)
        self.settings = settings
        self.device = device
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), settings.lr, weight_decay=settings.weight_decay, eps=1e-8
        )
        self.steps = 0

    def step(self, images: Tensor, masks: Tensor, rate: float) -> Tensor:
        """Take one step at the learning rate ``rate``; return the loss."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            outputs = self.network(images)
        loss = supervised_loss(outputs, masks)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.steps + 1) / (self.settings.warmup + 1))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        average_weights(self.averaged, self.network, self.settings.average, self.steps)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Return all of it by name."""
        return {
            "steps": self.steps,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take what :meth:`state` returned."""
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.averaged.eval()
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]


def train(
    network: U2Net,
    data: SaliencyData,
    settings: SaliencyTrainSettings,
    checkpoint: Path,
    device: torch.device,
    identity: dict[str, Any],
) -> Iterator[SaliencyEpochRecord | float]:
    """Train ``network`` from the weights it has; yield every epoch's record, in between the share done in [0, 1].

    Where a record comes out, ``network`` holds the running average of the weights, on ``device`` and in eval
    mode. After every epoch the state is written to ``checkpoint`` (atomically); where that file exists, its
    epochs are yielded and training goes on from there. ``identity`` (plain data) says which run that is. The
    random numbers of an epoch depend on (seed, epoch) alone, so a resumed run draws the same. The learning
    rate is constant until the last ``settings.cooldown`` epochs, so a run may be made longer or shorter while
    these are not reached, with the same result as if it had been planned so. Raises :class:`StageError` for a
    checkpoint of another run, :class:`PixelsemError` where the loss of an epoch is not finite, which is not written.
    """
    if device.type == "cpu":
        keep_freed_memory()
    run = _Run(network, settings, device)
    count = len(data.images)
    per_epoch = -(-count // settings.batch)

    def epoch(number: int) -> Iterator[SaliencyEpochRecord | float]:
        start = time.perf_counter()
        run.network.train()
        total = torch.zeros((), device=device)
        for step, chosen in enumerate(torch.randperm(count).split(settings.batch)):
            images, masks = (part[chosen].to(device) for part in (data.images, data.masks))
            rate = settings.lr * cooling(number - 1 + step / per_epoch, settings.epochs, settings.cooldown)
            total += run.step(*augment(images, masks, settings), rate) * len(chosen)
            yield (step + 1) / per_epoch
        loss = float(total) / count
        check_loss(loss, number, settings.precision)
        network.eval()
        iou, error = measure(network, data.held, settings.size, device, settings.batch)
        yield SaliencyEpochRecord(number, loss, iou, error, time.perf_counter() - start)

    frame = Epochs(checkpoint, identity, SaliencyEpochRecord, settings.epochs, settings.seed)
    yield from frame.run(run, epoch)


def cooling(done: float, epochs: int, cooldown: int) -> float:
    """Return the share of the peak learning rate after ``done`` of ``epochs``.

    It is 1, and in the last ``cooldown`` of them falls along a cosine to 0.
    """
    left = epochs - done
    return 1.0 if left >= cooldown else 0.5 - 0.5 * math.cos(math.pi * left / cooldown)


def supervised_loss(outputs: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Return the sum of the mean binary cross-entropies of all outputs, fused and sides (wang2021 Eq. 9, weights 1).

    ``outputs`` are logits [N, 1, H, W], ``masks`` in [0, 1] of the same shape.
    """
    losses = [F.binary_cross_entropy_with_logits(output.float(), masks) for output in outputs]
    return torch.stack(losses).sum()


def augment(images: Tensor, masks: Tensor, settings: SaliencyTrainSettings) -> tuple[Tensor, Tensor]:
    """Make one batch for the network from squares uint8 [N, 3, S, S] and [N, 1, S, S] on one device.

    Each image is cropped, turned and mirrored at random (mirrored outside of its borders), then changed in
    colour; some get the object of another one pasted in. Returns normalised float [N, 3, size, size] and
    masks in [0, 1], [N, 1, size, size].
    """
    pixels = torch.cat((images.float(), masks.float()), 1).div_(255)
    shape = [len(images), 4, settings.size, settings.size]
    grid = F.affine_grid(_placements(len(images), settings).to(images.device), shape, align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    colours, masks = _recoloured(pixels[:, :3], settings.colour), pixels[:, 3:]
    others = torch.roll(torch.arange(len(images)), 1).to(images.device)
    alpha = masks[others] * (torch.rand(len(images), 1, 1, 1) < settings.paste).to(images.device)
    colours = torch.lerp(colours, colours[others], alpha)
    return normalise(colours).contiguous(memory_format=torch.channels_last), torch.maximum(masks, alpha)


def _placements(count: int, settings: SaliencyTrainSettings) -> Tensor:
    """Draw where in its square each image is looked at, as :func:`torch.nn.functional.affine_grid` takes it."""
    draws = torch.rand(6, count)
    zoom = settings.crop + (1 - settings.crop) * draws[0]
    longer = torch.exp(_STRETCH * (2 * draws[1] - 1))
    across, down = (zoom * longer).clamp(settings.crop, 1), (zoom / longer).clamp(settings.crop, 1)
    right, below = (1 - across) * (2 * draws[2] - 1), (1 - down) * (2 * draws[3] - 1)
    angle = math.radians(settings.turn) * (2 * draws[4] - 1)
    across = torch.where(draws[5] < 0.5, -across, across)
    rows = [across * angle.cos(), -down * angle.sin(), right, across * angle.sin(), down * angle.cos(), below]
    return torch.stack(rows, 1).view(count, 2, 3)


def _recoloured(images: Tensor, most: float) -> Tensor:
    """Change brightness, contrast, saturation and the channels' balance of [N, 3, H, W] by up to ``most``."""
    draws = 1 + most * (2 * torch.rand(6, len(images), 1, 1, 1).to(images.device) - 1)
    brightness, contrast, saturation = draws[:3]
    balance = draws[3:].squeeze(-1).squeeze(-1).permute(1, 0, 2).unsqueeze(-1).sqrt()
    images = images * brightness * balance
    images = torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast)
    return torch.lerp(images.mean(1, keepdim=True), images, saturation).clamp_(0, 1)


def measure(
    network: U2Net,
    pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]],
    size: int,
    device: torch.device,
    batch: int,
) -> tuple[float | None, float | None]:
    """Return mean IoU at half of the maximum and mean absolute error of the masks of ``pairs``; None without any.

    ``pairs`` are (uint8 [H, W, 3], bool [H, W]); both are measured at the image's own size, in fp32.
    """
    overlaps, errors = [], []
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        for found, (_, truth) in zip(find_maps(network, [p[0] for p in part], size, device), part, strict=True):
            inside = found >= 0.5
            either = np.count_nonzero(inside | truth)
            overlaps.append(np.count_nonzero(inside & truth) / either if either else 1.0)
            errors.append(float(np.abs(found - truth).mean()))
    return (float(np.mean(overlaps)), float(np.mean(errors))) if pairs else (None, None)
