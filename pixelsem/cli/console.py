"""What people and programs see: progress, tables and problems on stderr, data on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pixelsem.errors import OutputError
from pixelsem.files import reason

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID


_data: ContextVar[TextIO | None] = ContextVar("data", default=None)


@contextmanager
def only_data_on_stdout() -> Iterator[None]:
    """Send to stderr what is printed while the block runs, but for :meth:`Console.data`.

    A model of the user's own may print; behind a pipe that would be taken for the path of a stage.
    """
    token = _data.set(data_stream())
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _data.reset(token)


def data_stream() -> TextIO:
    """Return the stream that data go to: stdout as it was when the command started."""
    return _data.get() or sys.stdout


class Console:
    """The one place that prints. ``quiet`` drops progress, notes and tables; problems always show.

    Where stderr cannot be written (a log on a full disk) the work goes on unsaid.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self._rich: RichConsole | None = None

    @property
    def rich(self) -> RichConsole:
        """The console on stderr (honours NO_COLOR and the terminal's width)."""
        if self._rich is None:
            from rich.console import Console as RichConsole

            self._rich = RichConsole(stderr=True, highlight=False)
        return self._rich

    def note(self, text: str) -> None:
        """Print one line of information, unless quiet."""
        if not self.quiet:
            self._line(text)

    def problem(self, text: str) -> None:
        """Print one line about something that went wrong; never dropped."""
        self._line(f"pixelsem: {text}", style="yellow")

    def table(self, table: RenderableType) -> None:
        """Print a table, unless quiet."""
        if not self.quiet:
            with suppress(OSError):
                self.rich.print(table)

    def data(self, text: str) -> None:
        """Print what a program may read on, on stdout. Where its reader is gone, nothing happens.

        Raises :class:`OutputError` where it cannot be written, say to a file on a full disk.
        """
        try:
            print(text, file=data_stream(), flush=True)
        except BrokenPipeError:
            silence_stdout()
        except OSError as error:
            silence_stdout()
            raise OutputError(f"standard output: cannot be written: {reason(error)}; what is done stays") from error

    def result(self, stage: Path, summary: dict[str, Any]) -> None:
        """Print the stage's path, or with ``--json`` the summary (with the path in it), on stdout."""
        self.data(json.dumps({"stage": str(stage), **summary}, ensure_ascii=False) if self.as_json else str(stage))

    @contextmanager
    def progress(self, what: str, total: float) -> Iterator[Bar]:
        """Show a progress bar while the block runs (on a terminal only)."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        shown = not self.quiet and self.rich.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
        detail = TextColumn("{task.fields[detail]}", markup=False)
        with Progress(*columns, TimeRemainingColumn(), detail, console=self.rich, disable=not shown) as progress:
            yield Bar(progress, progress.add_task(what, total=total, detail=""))

    def _line(self, text: str, style: str | None = None) -> None:
        # A file's name may hold line breaks and terminal codes; a message stays one line of text.
        text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
        with suppress(OSError):
            if self._rich is None and not sys.stderr.isatty():
                print(text, file=sys.stderr)  # the same without colours, and without the time to import rich
            else:
                self.rich.print(text, markup=False, soft_wrap=True, style=style, emoji=False)


class Bar:
    """One running progress bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, completed: float, detail: str = "") -> None:
        """Move the bar to ``completed`` of its total and show ``detail`` behind it."""
        self._progress.update(self._task, completed=completed, detail=detail)


def silence_stdout() -> None:
    """Point stdout to nowhere, so that Python does not complain about its lost reader when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), data_stream().fileno())
