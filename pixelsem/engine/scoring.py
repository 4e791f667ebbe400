"""What counts as a success, in one place: the top-1 in fp32 of an 8-bit image, which reads back as it was scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.attacks.base import is_hit
from pixelsem.errors import OutputError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.images import read_image, write_image


def fp32_logits(evaluator: Evaluator, pixels: NDArray[np.uint8]) -> Tensor:
    """Return float32 [classes] on the CPU of one image, uint8 [H, W, 3]; raises as :meth:`Evaluator.confirm`."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    return evaluator.confirm(image)[0].cpu()


def is_success(logits: Tensor, label: int, target: int | None) -> bool:
    """Is the top-1 of float32 [classes] ``logits`` the target, or without one another class than the label?"""
    targets = torch.tensor([-1 if target is None else target])
    return bool(is_hit(logits[None], torch.tensor([label]), targets)[0])


def write_scored(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write an image, uint8 [H, W, 3], and look that it reads back as it was scored, pixel by pixel.

    Raises :class:`OutputError` where it cannot be written, or reads back otherwise; that file is removed.
    """
    write_image(path, pixels)
    if not np.array_equal(read_image(path), pixels):
        path.unlink()
        raise OutputError(f"{path}: reads back as other pixels than were written; is the disk sound?")
