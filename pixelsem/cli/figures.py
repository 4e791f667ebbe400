"""What every command that draws needs: matplotlib, or one line on where to get it, and figures as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pixelsem.cli.console import Console
from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What a figure may be written as.
FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class FigureOptions(Settings):
    """What figures beside tables are written as."""

    format: tuple[str, ...] = option(("png", "svg"), "What figures are written as: png, svg, pdf, or none of them.")

    def check(self) -> None:
        """Raise :class:`PixelsemError` for what no figure is written as."""
        for name in self.formats:
            if name not in FORMATS:
                raise PixelsemError(f"--format: {name!r} is none of {', '.join(FORMATS)}, none")

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that are wanted, none for ``none``."""
        return () if self.format == ("none",) else self.format


def need_matplotlib() -> None:
    """Raise :class:`PixelsemError` where matplotlib, the extra ``report``, is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise PixelsemError("figures need matplotlib, which is not there: pip install 'pixelsem[report]'") from error


def write_figures(
    console: Console, folder: Path, figures: Mapping[str, Callable[[], Figure]], formats: tuple[str, ...]
) -> list[str]:
    """Draw ``figures`` and write each to ``folder`` under its name, once per format; return the files.

    Where matplotlib is not installed one line says so and nothing is drawn: the tables hold the same numbers.
    Raises :class:`pixelsem.errors.OutputError`.
    """
    if not formats:
        return []
    try:
        need_matplotlib()
    except PixelsemError as error:
        console.note(f"note: {error}")
        return []
    from pixelsem.report.figures import save_figure

    return [str(path) for name, draw in figures.items() for path in save_figure(draw(), folder / name, formats)]
