"""Files of arrays that are read whole or refused."""

from __future__ import annotations

import struct
import tokenize
import zlib
from lzma import LZMAError
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pixelsem.files import one_line

#: What damage raises beside OSError and ValueError: in the archive, which may then seem to ask for a password or a
#: method that is not there (RuntimeError); in an array's header, which NumPy reads as Python text.
_DAMAGE = (
    BadZipFile, LZMAError, zlib.error, struct.error, EOFError, KeyError, RuntimeError,
    tokenize.TokenError, SyntaxError, TypeError, OverflowError, MemoryError,
)  # fmt: skip


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file by name.

    Raises :class:`OSError` where it cannot be read, and :class:`ValueError` where it is damaged, however it is.
    """
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise ValueError("holds one array and is no archive")
            arrays = {name: found[name] for name in found.files}
    except _DAMAGE as error:
        raise ValueError(one_line(error) or type(error).__name__) from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # of other members NumPy hands out bytes
        raise ValueError("holds something that is no array")
    return arrays
