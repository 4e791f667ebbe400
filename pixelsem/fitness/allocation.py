"""How a CPU process gets its memory: kept for the next batch, not given back to the system in between."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Let malloc keep what is freed; return whether that could be said (glibc only).

    By default glibc asks the system for every large tensor and returns it at once. The system hands out pages one
    by one as they are touched, each cleared first: on a network whose maps are large that takes as long as computing
    them. The process then holds on to the most memory that it has ever used.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))
