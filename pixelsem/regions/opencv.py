"""OpenCV, with one clear line where the installed one cannot do what is needed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType

from pixelsem.errors import PixelsemError

#: The function was there in every release since this one; results were compared from here on.
OLDEST = (4, 10)

#: The one to have: with ximgproc, and without a need for a display's libraries.
_WANTED = "opencv-contrib-python-headless"
#: All that put a folder ``cv2`` into an environment.
_DISTRIBUTIONS = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", _WANTED)


def require(name: str) -> ModuleType:
    """Return ``cv2`` after making sure that it has ``name`` (``grabCut``, ``ximgproc.createSuperpixelSLIC``).

    Two OpenCV distributions in one environment share the folder ``cv2``: the last one installed wins, and a
    sub-module may still be importable while its functions are gone. So the very function is looked for.
    Raises :class:`PixelsemError` saying what to install, and what to remove before.
    """
    try:
        import cv2
    except Exception as error:  # not only ImportError: a half overwritten package fails in other ways
        raise PixelsemError(f"OpenCV cannot be imported ({' '.join(str(error).split())}); {_repair()}") from error
    version = str(getattr(cv2, "__version__", "unknown"))
    found: object = cv2
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise PixelsemError(f"OpenCV {version} has no {name}; {_repair()}")
    if _numbers(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise PixelsemError(f"OpenCV {version} is older than {oldest}; {_repair()}")
    module: ModuleType = cv2
    return module


def _repair() -> str:
    """Return what to do, by the distributions that are installed."""
    there = [name for name in _DISTRIBUTIONS if _is_installed(name)]
    install = f"`pip install --force-reinstall {_WANTED}`"
    if there in ([], [_WANTED]):
        return install
    remove = f"`pip uninstall -y {' '.join(there)}`, then {install}"
    if len(there) == 1:
        return f"{there[0]} is installed: {remove}"
    return f"{' and '.join(there)} overwrite each other: {remove}"


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
