"""Random numbers that depend on what is searched and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, repeat: int, image: NDArray[np.uint8], region: str, target: int | None) -> np.random.Generator:
    """Return the counter-based generator of one search, keyed by all of the arguments.

    ``target`` is the class's number, None for an untargeted search.
    ``image`` is the clean image, uint8 [H, W, 3], at the classifier's resolution: neither its name nor its
    place in the run matters, nor do batch size, device, shard or resume.
    """
    pixels = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
    text = "\0".join((str(seed), str(repeat), pixels, region, "" if target is None else str(target)))
    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
