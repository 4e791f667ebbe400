"""Which way of scoring is fastest: measured once per model, device and number of changed pixels, then remembered."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import torch

from pixelsem.errors import OutputError
from pixelsem.files import cache_folder, write_atomically
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.incremental import DENSE_FROM, IncrementalScorer
from pixelsem.models.classifier import Classifier
from pixelsem.stage import digest
from pixelsem.version import __version__

LARGEST_PROBE = 4096  # candidates
LONG_PROBE = 3.0  # seconds: a batch that takes so long gains nothing from being larger
_FIRST_PROBE = 16
_CUTS_TRIED = 2


@dataclass(frozen=True)
class Way:
    """A way of scoring candidates with a certain number of changed pixels.

    :ivar batch_size: candidates per forward pass.
    :ivar rate: queries per second seen; 0 where it was not measured.
    :ivar dense_from: see :class:`pixelsem.fitness.incremental.IncrementalScorer`.
    :ivar tried: the largest number of candidates that it was measured for.
    """

    evaluator: Literal["dense", "incremental"]
    batch_size: int
    rate: float = 0.0
    dense_from: float = DENSE_FROM
    tried: int = LARGEST_PROBE


#: Seconds that a way takes for as many candidates as its batch size; raises where they do not fit in memory.
Seconds = Callable[[Way], float]


def fastest_batch(way: Way, seconds: Seconds) -> Way:
    """Double the batch while that makes ``way`` faster, up to ``way.tried``; return it with the best one.

    Of batches that are about as fast it is the largest: the same candidates over and over, as they are timed, are
    kind to small ones, where a search has other windows every time.
    """
    tried: list[Way] = []
    for size in _sizes(seconds(_sized(way, 1)), way.tried):
        try:
            taken = seconds(_sized(way, size))
        except torch.OutOfMemoryError:
            break
        if tried and taken > LONG_PROBE:
            break
        tried.append(_sized(way, size, size / taken))
        best = max(tried, key=lambda one: one.rate)
        if size >= 8 * best.batch_size:  # one dip may be chance
            break
    if not tried:
        return _sized(way, 1)
    return next(one for one in reversed(tried) if one.rate >= 0.95 * best.rate)


def _sizes(one: float, largest: int) -> Iterator[int]:
    """Yield sizes from one that takes no longer than :data:`LONG_PROBE`, where ``one`` candidate takes so long."""
    size = max(1, min(_FIRST_PROBE, int(LONG_PROBE / max(one, 1e-9))))
    while size <= max(largest, _FIRST_PROBE):
        yield size
        size *= 2


def _sized(way: Way, size: int, rate: float = 0.0) -> Way:
    return Way(way.evaluator, size, rate, way.dense_from, way.tried)


def fastest_way(dense: Way, incremental: Way, scorer: IncrementalScorer, edits: Edits, seconds: Seconds) -> Way:
    """Return the fastest of the dense way, the incremental one, and that with whole maps from elsewhere on.

    Both come with their batch size and rate; where to go over to whole maps is tried on ``edits``.
    """
    few = edits[: max(1, min(dense.batch_size, _FIRST_PROBE))]
    base = seconds(_sized(incremental, len(edits)))
    best = incremental
    for cut in scorer.cuts(edits, few)[:_CUTS_TRIED]:
        other = replace(incremental, dense_from=cut)
        rate = incremental.rate * base / seconds(_sized(other, len(edits)))
        if rate > best.rate * 1.02:
            best = replace(other, rate=rate)
    return best if best.rate > dense.rate else dense


class Memory:
    """What was measured before, in a small file below the user's cache; what cannot be read there counts as nothing.

    An entry holds for one model, precision, device, number of threads and version of PyTorch.
    """

    def __init__(self, classifier: Classifier, precision: str, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self._key = {
            "model": classifier.digest,
            "size": list(classifier.preprocessing.size),
            "precision": precision,
            "device": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} {platform.processor()}",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "pixelsem": __version__,
        }

    def recall(self, pixels: int, tried: int) -> Way | None:
        """Return the way found before for ``pixels`` changed pixels and about as many candidates as ``tried``."""
        return self._read().get(self._name(pixels, tried))

    def note(self, pixels: int, way: Way) -> None:
        """Remember a way; where the cache cannot be written it is measured again next time."""
        known = self._read() | {self._name(pixels, way.tried): way}
        try:
            with write_atomically(self._file()) as file:
                file.write(msgspec.json.format(msgspec.json.encode(known)))
        except OutputError:
            return

    def _name(self, pixels: int, tried: int) -> str:
        return digest(self._key | {"pixels": pixels, "tried": tried})[:16]

    @staticmethod
    def _file() -> Path:
        return cache_folder() / "tuning.json"

    def _read(self) -> dict[str, Way]:
        try:
            return msgspec.json.decode(self._file().read_bytes(), type=dict[str, Way])
        except (OSError, msgspec.DecodeError):
            return {}
