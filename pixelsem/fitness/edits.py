"""Candidates as data: which pixels of which image get which colour."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Edits:
    """C candidates, each of which changes at most K pixels of one image.

    :ivar image: int64 [C], index of the image each candidate changes.
    :ivar position: int64 [C, K], flat pixel positions ``y * width + x``.
    :ivar colour: uint8 [C, K, 3], the RGB colour each of these pixels gets.

    Where a candidate names a position twice, the last colour counts. Writing the colour that a pixel
    already has is how a candidate changes fewer than K pixels.
    """

    image: Tensor
    position: Tensor
    colour: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, which: slice | Tensor) -> Edits:
        return Edits(self.image[which], self.position[which], self.colour[which])

    def settled(self) -> Edits:
        """Return the same candidates with every repeated position given its last colour everywhere.

        After this the order of writing does not matter, so that one scatter renders them on any device.
        """
        colour = self.colour
        for last in range(1, self.position.shape[1]):
            same = self.position[:, :last] == self.position[:, last : last + 1]
            earlier = torch.where(same[:, :, None], colour[:, last : last + 1], colour[:, :last])
            colour = torch.cat([earlier, colour[:, last:]], 1)
        return Edits(self.image, self.position, colour)

    def keys(self, images: Tensor) -> Tensor:
        """Return int64 [C]: the same number for candidates of one image that come to the same picture, 0 for the clean.

        ``images`` is uint8 [N, 3, H, W]. With one pixel different pictures have different numbers; with more, two
        may share one by a chance of 1 in 2^64.
        """
        flat = images.flatten(2).transpose(1, 2)
        settled = self.settled()
        counts = (flat[settled.image[:, None], settled.position] != settled.colour).any(2)
        for last in range(1, self.position.shape[1]):  # a position that is named again counts once
            counts[:, last] &= (self.position[:, :last] != self.position[:, last : last + 1]).all(1)
        red, green, blue = settled.colour.long().unbind(2)
        code = ((settled.position << 24) | (red << 16) | (green << 8) | blue) + 1
        return (counts * (code if code.shape[1] == 1 else mixed(code))).sum(1)

    def changes(self, images: Tensor) -> Tensor:
        """Return bool [C]: does the candidate differ from its image (uint8 [N, 3, H, W]) at all?"""
        return self.keys(images) != 0

    def render(self, images: Tensor) -> Tensor:
        """Return uint8 [C, 3, H, W]: every candidate's image, written with one scatter."""
        count, channels, height, width = len(self), *images.shape[1:]
        settled = self.settled()
        out = images.flatten(2).index_select(0, settled.image)
        index = settled.position[:, None, :].expand(count, channels, -1)
        out.scatter_(2, index, settled.colour.transpose(1, 2))
        return out.view(count, channels, height, width)


def mixed(values: Tensor) -> Tensor:
    """Spread int64 numbers evenly over all of int64, 0 staying 0 (the finaliser of Murmur3, a bijection)."""
    for factor in (-49064778989728563, -4265267296055464877):  # 0xff51afd7ed558ccd and 0xc4ceb9fe1a85ec53, signed
        values = (values ^ _shifted(values)) * factor
    return values ^ _shifted(values)


def _shifted(values: Tensor) -> Tensor:
    """Shift to the right by 33 bits, zeros coming in."""
    return (values >> 33) & (2**31 - 1)
