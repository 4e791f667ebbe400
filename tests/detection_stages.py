"""Attack stages whose adversarial images are noisy versions of smooth ones, so that steganalysis can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from attack_stages import info, record, write_stage
from numpy.typing import NDArray

from pixelsem.images import write_image

SIZE = 24


def smooth_image(seed: int) -> NDArray[np.uint8]:
    """Return a gradient of its own in colours of its own, with a little grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    slopes = rng.uniform(-80, 80, (2, 3))
    image = 128 + y[..., None] * slopes[0] + x[..., None] * slopes[1] + rng.normal(0, 1, (SIZE, SIZE, 3))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def noisy(image: NDArray[np.uint8], seed: int, strength: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(-strength, strength + 1, image.shape)
    return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)


def make_stage(
    path: Path, count: int = 24, *, strength: int = 6, failures: int = 0, region: str = "original", first: int = 0,
    **options: object,
) -> Path:  # fmt: skip
    """Write an attack stage of ``count`` successes (the image of seed ``first`` and on) and some failures.

    The images of the failures are kept, but for that of the last one where there are several.
    """
    records = []
    for number in range(count + failures):
        name, hit = f"cat/{number}.png", number < count
        lost = hit or 0 < number - count == failures - 1
        attempt = None if lost else f"attempts/{region}/{name}"
        records.append(record(name, region, to="dog" if hit else None, height=SIZE, width=SIZE, attempt=attempt))
    write_stage(path, info(region, **options), *records)
    for number, one in enumerate(records):
        clean = smooth_image(first + number)
        write_image(path / one.clean, clean)
        for made in filter(None, (one.adversarial, one.attempt)):
            write_image(path / made, noisy(clean, number, strength))
    return path
