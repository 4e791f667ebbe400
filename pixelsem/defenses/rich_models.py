"""SRM, the spatial rich model, of one plane at a time, by the package sealwatch (the extra ``steganalysis``).

Fridrich & Kodovský, "Rich models for steganalysis of digital images", IEEE TIFS 7(3), 2012: co-occurrences of
quantized noise residuals, 34,671 numbers; SRMQ1 takes one quantizer per residual, 12,753.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pixelsem.errors import PixelsemError, WorkerError

RichModel = Literal["srm", "srmq1"]
Plane = NDArray[np.uint8]

#: Numbers per plane.
RICH_SIZES: dict[RichModel, int] = {"srm": 34671, "srmq1": 12753}

#: Rows and columns that a plane needs: of a smaller one, sealwatch leaves no residual of the widest filters, and NaN.
SMALLEST_RICH_SIDE = 8


def sealwatch_version() -> str:
    """Return the version of sealwatch; raises :class:`PixelsemError` where it is not installed."""
    try:
        return metadata.version("sealwatch")
    except metadata.PackageNotFoundError as error:
        raise PixelsemError(
            "srm and srmq1 need sealwatch, which is not there: pip install 'pixelsem[steganalysis]'"
        ) from error


def rich_model(plane: Plane, kind: RichModel) -> NDArray[np.float32]:
    """Return the rich model of one plane, uint8 [H, W] of at least 8×8 pixels, as float32 [34671] or [12753].

    Its submodels come in the order of their names: that in which sealwatch returns them is another one in every
    process, as it goes through a set of texts.
    """
    from sealwatch import srm, srmq1

    submodels = {"srm": srm.extract, "srmq1": srmq1.extract}[kind](plane)
    found = np.concatenate([submodels[name].ravel() for name in sorted(submodels)]).astype(np.float32)
    if found.shape != (RICH_SIZES[kind],):
        raise PixelsemError(
            f"{kind}: sealwatch {sealwatch_version()} gives {found.size} numbers, not {RICH_SIZES[kind]}"
        )
    return found


def rich_models(planes: Sequence[Plane], kind: RichModel, workers: int) -> Iterator[NDArray[np.float32]]:
    """Yield the rich model of every plane in order, computed by up to ``workers`` processes.

    Raises :class:`WorkerError` where one of these dies.
    """
    kinds: Iterable[RichModel] = [kind] * len(planes)
    if workers == 1 or len(planes) == 1:
        yield from map(rich_model, planes, kinds)
        return
    # Not forked: a process with threads (PyTorch's) may hang when it is.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(planes)), mp_context=context) as pool:
            yield from pool.map(rich_model, planes, kinds)
    except BrokenProcessPool:
        raise WorkerError(f"a process that computes {kind} died, out of memory perhaps; take fewer --workers") from None


def default_workers() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
