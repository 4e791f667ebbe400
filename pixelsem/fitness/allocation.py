"""What a CPU process keeps from one batch for the next: its memory, and the kernels made for the shapes it met."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1
_KERNELS = 8192


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


def keep_kernels() -> None:
    """Let oneDNN keep more compiled kernels than its 1,024; to be called before it computes anything.

    It makes one for every shape. Windows come in groups of all sizes, some thousand shapes for a network, and with
    fewer places than shapes the kernels are made over and over: a tenth of the time of a search, in bf16.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KERNELS))
