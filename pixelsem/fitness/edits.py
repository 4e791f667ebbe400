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

    def changes(self, images: Tensor) -> Tensor:
        """Return bool [C]: does the candidate differ from its image (uint8 [N, 3, H, W]) at all?"""
        flat = images.flatten(2).transpose(1, 2)
        settled = self.settled()
        clean = flat[settled.image[:, None], settled.position]
        return (clean != settled.colour).flatten(1).any(1)

    def render(self, images: Tensor) -> Tensor:
        """Return uint8 [C, 3, H, W]: every candidate's image, written with one scatter."""
        count, channels, height, width = len(self), *images.shape[1:]
        settled = self.settled()
        out = images.flatten(2).index_select(0, settled.image)
        index = settled.position[:, None, :].expand(count, channels, -1)
        out.scatter_(2, index, settled.colour.transpose(1, 2))
        return out.view(count, channels, height, width)
