"""What every command that draws needs: matplotlib, or one line on where to get it."""

from __future__ import annotations

from pixelsem.errors import PixelsemError


def need_matplotlib() -> None:
    """Raise :class:`PixelsemError` where matplotlib, the extra ``report``, is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise PixelsemError("figures need matplotlib, which is not there: pip install 'pixelsem[report]'") from error
