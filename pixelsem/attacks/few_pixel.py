"""How genes become pixels: the encoding that few-pixel searches share."""

from __future__ import annotations

import torch
from torch import Tensor

from pixelsem.fitness.edits import Edits

#: Genes per pixel: x, y, r, g, b.
GENES = 5


class PixelCoding:
    """Decodes unit-cube genes of n searches, [n, P, 5K], into integer positions and 8-bit colours.

    ``encode``: (x, y) spans the region's bounding box and is snapped to the nearest pixel of the region by a
    table made once per search, so that every candidate lies in the region. ``revert``: (x, y) spans the
    whole image and a pixel outside the region keeps its clean colour (wang2021 Eqs. 17 and 18).
    """

    def __init__(self, images: Tensor, image: Tensor, regions: Tensor, constraint: str) -> None:
        """Take uint8 [N, 3, H, W] images, int64 [n] image index and bool [n, H, W] regions, all on one device."""
        count, height, width = regions.shape
        self._image = image
        self._flat = images.flatten(2).transpose(1, 2)
        self._regions = regions.flatten(1)
        self._snap: Tensor | None = None
        self._origin = torch.zeros(count, 2, dtype=torch.int64, device=regions.device)
        self._extent = torch.tensor([width, height], device=regions.device).expand(count, 2)
        self._width = width
        if constraint == "encode":
            self._origin, self._extent = bounding_boxes(regions)
            self._snap = snap_tables(regions)

    def edits(self, genes: Tensor) -> Edits:
        """Return the n·P candidates that ``genes``, float64 [n, P, 5K] in [0, 1], stand for."""
        count, size, _ = genes.shape
        pixel = genes.view(count, size, -1, GENES)
        extent = self._extent[:, None, None, :]
        xy = torch.minimum((pixel[..., :2] * extent).long(), extent - 1) + self._origin[:, None, None, :]
        position = (xy[..., 1] * self._width + xy[..., 0]).view(count, -1)
        colour = (pixel[..., 2:] * 256).long().clamp_(max=255).to(torch.uint8).view(count, position.shape[1], 3)
        if self._snap is not None:
            position = self._snap.gather(1, position)
        else:
            clean = self._flat[self._image[:, None], position]
            inside = self._regions.gather(1, position)
            colour = torch.where(inside[..., None], colour, clean)
        image = self._image[:, None].expand(count, size).reshape(-1)
        return Edits(image, position.view(count * size, -1), colour.view(count * size, -1, 3))

    def keep(self, which: Tensor) -> None:
        """Drop every search that bool [n] ``which`` does not mark."""
        for name in ("_image", "_regions", "_origin", "_extent", "_snap"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value[which])


def colour_genes(pixels: int) -> Tensor:
    """Return bool [5 · pixels]: which genes are colours."""
    return torch.tensor([False, False, True, True, True]).repeat(pixels)


def bounding_boxes(regions: Tensor) -> tuple[Tensor, Tensor]:
    """Return origin and extent, int64 [n, 2] each as (x, y), of the smallest boxes around bool [n, H, W] regions."""
    bounds = []
    for axis in (1, 2):  # any() over rows leaves columns (x), over columns leaves rows (y)
        present = regions.any(axis).long()
        first = present.argmax(1)
        last = present.shape[1] - 1 - present.flip(1).argmax(1)
        bounds.append((first, last - first + 1))
    (x, width), (y, height) = bounds
    return torch.stack([x, y], 1), torch.stack([width, height], 1)


def snap_tables(regions: Tensor) -> Tensor:
    """Return int64 [n, H·W]: for every position the nearest (Euclidean) position of the region, bool [n, H, W]."""
    from scipy.ndimage import distance_transform_edt

    width = regions.shape[2]
    made: dict[bytes, Tensor] = {}  # searches of one image and region share their table
    keys = []
    for region in regions.cpu().numpy():
        keys.append(region.tobytes())
        if keys[-1] not in made:
            y, x = distance_transform_edt(~region, return_distances=False, return_indices=True)
            made[keys[-1]] = torch.from_numpy(y.astype("int64") * width + x).flatten()
    return torch.stack([made[key] for key in keys]).to(regions.device)
