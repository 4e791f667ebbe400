"""Run folders to report on: attack stages with pictures, made by hand, and small enough to know by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from attack_stages import info, record, write_stage
from numpy.typing import NDArray

from pixelsem.images import write_image
from pixelsem.records import AttackRecord

REGIONS = ("foreground", "background")


def scene(seed: int, side: int = 10) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 250, (side, side, 3), dtype=np.uint8)


def mask_of(region: str, side: int = 10) -> NDArray[np.bool_]:
    inside = np.zeros((side, side), bool)
    inside[: side * 4 // 10] = True
    return inside if region == "foreground" else ~inside


def write_pictures(stage: Path, found: AttackRecord, seed: int, *, noise: bool = False) -> None:
    """Write what a record names; with ``noise`` every pixel of the attacked image is one level brighter."""
    clean = scene(seed, found.height)
    write_image(stage / found.clean, clean)
    if found.mask is not None:
        write_image(stage / found.mask, mask_of(found.region, found.height))
    if found.adversarial is not None:
        attacked = clean + np.uint8(1) if noise else clean.copy()
        for change in found.pixels:
            attacked[change.y, change.x] = change.to
        write_image(stage / found.adversarial, attacked)


def search(n: int, region: str, *, hit: bool, side: int = 10, **changes: Any) -> AttackRecord:
    """A search on image ``n``, whose pixel at x 1, y 2 becomes (255, 0, 7) if it is a hit."""
    before = scene(n, side)[2, 1].tolist()
    pixels = [{"x": 1, "y": 2, "from": before, "to": [255, 0, 7]}] if hit else []
    size = {"height": side, "width": side, "region_pixels": int(mask_of(region, side).sum())}
    plain = size | {"pixels": pixels, "queries": 10 * n, "candidates": 10 * n, "confidence": 0.5 + n % 40 / 100}
    return record(f"cat/{n}.png", region, to="dog" if hit else None, **plain | changes)


def make_run(folder: Path, *, images: int = 12, hits: dict[str, set[int]] | None = None, side: int = 10) -> Path:
    """A run of two stages, foreground and background, on the same images; ``hits`` are image numbers by region."""
    hits = {"foreground": set(range(1, 9)), "background": {1}} if hits is None else hits
    for region in REGIONS:
        found = [search(n, region, hit=n in hits[region], side=side) for n in range(1, images + 1)]
        path = write_stage(folder / f"attack-{region}", info(region, counts={"searches": images}), *found)
        for n, one in enumerate(found, 1):
            write_pictures(path, one, n)
    return folder
