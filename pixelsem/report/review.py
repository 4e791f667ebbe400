"""A page on which a person looks through the masks of a stage: one file, which loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pixelsem.images import encode_image, resize_image, resize_mask
from pixelsem.report.overlays import TINY, Pixels, label_colours, shown_size
from pixelsem.report.pages import data_block, data_uri, open_template


@dataclass(frozen=True)
class PageInfo:
    """What the page is about: the stage's name and identity, and ``revision``, which tells its states apart.

    What a person did is kept in the browser under identity and revision. ``format`` is noted in the export.
    """

    name: str
    command: str
    identity: str
    revision: str
    format: str


@dataclass(frozen=True)
class PageImage:
    """One image (uint8 [H, W, 3]) with its mask (integers [H, W] of ``kind``) and what is known of it.

    ``threshold`` is the level, from 0 to 1, that parts a soft mask. ``digest`` names the mask's content. ``drawn``
    is the (height, width) in which scribbles are drawn, None where there may be none; ``scribbles`` (uint8 [h, w]
    of that size: 0, 128 or 255) are the ones to start from.
    """

    id: str
    image: Pixels = field(repr=False)
    mask: NDArray[np.integer] = field(repr=False)
    kind: Literal["binary", "soft", "labels"]
    coverage: float
    flags: list[str]
    decision: Literal["accepted", "rejected"] | None
    digest: str
    drawn: tuple[int, int] | None
    threshold: float = 0.5
    scribbles: NDArray[np.uint8] | None = field(default=None, repr=False)


def write_page(file: IO[bytes], info: PageInfo, images: Iterable[PageImage], *, side: int = 480) -> int:
    """Write the page; return how many images are on it. They are taken and written one by one.

    Images are embedded with at most ``side`` pixels a side; those of at most :data:`TINY` as they are.
    """
    head, tail = open_template("review", info.name)
    file.write(head)
    shown = []
    for number, image in enumerate(images):
        file.write(data_block(f"d{number}", _pictures(image, side)))
        shown.append(_about(image))
    about = {
        "name": info.name, "command": info.command, "identity": info.identity, "revision": info.revision,
        "format": info.format, "images": shown,
    }  # fmt: skip
    file.write(data_block("about", about))
    file.write(tail)
    return len(shown)


def _about(image: PageImage) -> dict[str, Any]:
    """Return the small part of an image's data, which the page holds for all of them at once."""
    height, width = image.image.shape[:2]
    return {
        "id": image.id, "width": width, "height": height, "kind": image.kind, "coverage": image.coverage,
        "flags": image.flags, "decision": image.decision, "mask": image.digest, "tiny": max(height, width) <= TINY,
        "threshold": image.threshold,
        "drawn": image.drawn and [image.drawn[1], image.drawn[0]], "scribbled": image.scribbles is not None,
    }  # fmt: skip


def _pictures(image: PageImage, side: int) -> dict[str, str | None]:
    """Return the large part of an image's data: pictures as data URIs."""
    size = shown_size(image.image.shape, max(side, TINY))
    tiny = max(image.image.shape[:2]) <= TINY
    picture = image.image if size == image.image.shape[:2] else resize_image(image.image, size, "lanczos")
    scribbles = None if image.scribbles is None else data_uri(encode_image(image.scribbles), "png")
    return {
        "image": data_uri(encode_image(picture, "png" if tiny else "webp"), "png" if tiny else "webp"),
        "mask": data_uri(encode_image(_shown_mask(image, size)), "png"),
        "scribbles": scribbles,
    }


def _shown_mask(image: PageImage, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a mask at ``size``: how much of each pixel is foreground, or the heat, or coloured labels."""
    if image.kind == "labels":
        labels = resize_mask(image.mask, size)
        return np.where((labels == 0)[:, :, None], np.uint8(0), label_colours(labels))
    top = 65535 if image.kind == "soft" else max(1, int(image.mask.max()))
    level = (image.mask / top).astype(np.float32)
    if image.kind == "binary":
        level = (level > 0.5).astype(np.float32)
    return np.rint(255 * cv2.resize(level, size[::-1], interpolation=cv2.INTER_AREA)).astype(np.uint8)
