"""What a CPU process keeps from one batch for the next: its memory, and the kernels made for the shapes it met."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1
_KERNELS = 8192


@cache
def keep_freed_memory() -> bool:
    """Let malloc keep what is freed; return whether that could be said (glibc only).

    By default glibc asks the system for every large tensor and returns it at once. The system hands out pages one
    by one as they are touched, each cleared first: on a network whose maps are large that takes as long as computing
    them. The process then holds on to what it has ever used, and more (:class:`FreedMemory`).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))


class FreedMemory:
    """What malloc keeps of freed memory goes back to the system once in a while.

    It is in pieces that fit ever fewer of the tensors to come, which are of all sizes: a search of most of an hour
    grew to 7 GB, a shorter one to 3.2, of which 0.3 were in use.
    """

    def __init__(self, pause: float = 60) -> None:
        """``pause``: seconds from one return to the next. What is used again must be asked for again, page by page."""
        self._pause, self._last = pause, time.monotonic()
        self._kept = keep_freed_memory()

    def give_back(self) -> bool:
        """Return all that is free where it is time to; return whether it was. To be called between batches."""
        if not self._kept or time.monotonic() - self._last < self._pause:
            return False
        ctypes.CDLL(None).malloc_trim(0)
        self._last = time.monotonic()
        return True


def keep_kernels() -> None:
    """Let oneDNN keep more compiled kernels than its 1,024; to be called before it computes anything.

    It makes one for every shape. Windows come in groups of all sizes, some thousand shapes for a network, and with
    fewer places than shapes the kernels are made over and over: a tenth of the time of a search, in bf16.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KERNELS))
