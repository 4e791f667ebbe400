"""OpenCV, with one clear line where the installed one cannot do what is needed."""

from __future__ import annotations

from types import ModuleType

from pixelsem.errors import PixelsemError

#: The function was there in every release since this one; results were compared from here on.
OLDEST = (4, 10)

_REPAIR = (
    "several OpenCV packages overwrite each other: `pip uninstall -y opencv-python opencv-python-headless "
    "opencv-contrib-python opencv-contrib-python-headless`, then "
    "`pip install --force-reinstall opencv-contrib-python-headless`"
)


def require(name: str) -> ModuleType:
    """Return ``cv2`` after making sure that it has ``name`` (``grabCut``, ``ximgproc.createSuperpixelSLIC``).

    Two OpenCV distributions in one environment share the folder ``cv2``: the last one installed wins, and a
    sub-module may still be importable while its functions are gone. So the very function is looked for.
    Raises :class:`PixelsemError` saying what to install.
    """
    try:
        import cv2
    except Exception as error:  # not only ImportError: a half overwritten package fails in other ways
        raise PixelsemError(f"OpenCV cannot be imported ({' '.join(str(error).split())}); {_REPAIR}") from error
    version = str(getattr(cv2, "__version__", "unknown"))
    found: object = cv2
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise PixelsemError(f"OpenCV {version} has no {name}; {_REPAIR}")
    if _numbers(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise PixelsemError(f"OpenCV {version} is older than {oldest}; {_REPAIR}")
    module: ModuleType = cv2
    return module


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
