"""What every ``evaluate`` command does with its tables: write them, print them, say where they are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.options import command_name
from pixelsem.files import remove_temporaries
from pixelsem.locks import StageLock
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pixelsem.report.tables import Table

#: Tables that hold in a long form what another one shows, and so are written but not printed.
_NOT_SHOWN = ("success", "norms", "transfer")

#: What is printed at most, as more would bury the answer: lines of all tables, rows of the first one, and notes.
_LINES, _ROWS, _NOTES = 100, 40, 12


@dataclass(frozen=True)
class TableOptions(Settings):
    """Where tables go and what is printed."""

    output: Path | None = option(
        None,
        "Folder for the tables (default: a name of its own beside the stages, or below --run where that is given).",
        flag="-o",
    )
    run: Path = option(Path("pixelsem-run"), "Folder that holds the stages of one experiment.", env="PIXELSEM_RUN")
    confidence: float = option(0.95, "Level of the confidence intervals.", low=0.5, high=0.9999)
    json: bool = option(False, "Print everything as JSON on stdout in place of the folder's path.", flag="--json")
    quiet: bool = option(False, "No tables on stderr.", flag="-q")


class Placed(Protocol):
    """Options that say where results go."""

    @property
    def output(self) -> Path | None:
        """The place itself."""

    @property
    def run(self) -> Path:
        """The folder for what has a name of its own."""


def output_folder(context: typer.Context, options: Placed, inputs: Sequence[Path], name: str) -> Path:
    """Return where results go: ``-o``; else ``name`` in ``--run`` where that is given, else beside the inputs.

    Where ``inputs`` lie in several folders, ``name`` is in ``--run``'s default.
    """
    if options.output is not None:
        return options.output
    source = context.get_parameter_source("run")
    beside = {path.resolve().parent: path for path in inputs}
    if source is None or source.name != "DEFAULT" or len(beside) != 1:
        return options.run / name
    ((resolved, path),) = beside.items()
    # As the user wrote it, but for names that say nothing of a parent (., ..).
    return (path.parent if path.name not in ("", "..") and not path.is_symlink() else resolved) / name


def tables_folder(context: typer.Context, options: Placed, inputs: Sequence[Path], name: str) -> Path:
    """Return :func:`output_folder`, locked until the command ends.

    A lock whose holder is dead is taken over, which is said on stderr, and its half-written files are removed. Raises
    :class:`pixelsem.errors.StageError` where another process writes there, :class:`pixelsem.errors.OutputError` where
    the folder cannot be written.
    """
    folder = output_folder(context, options, inputs, name)
    lock = StageLock.acquire(folder, command_name(context))
    context.call_on_close(lock.release)
    if lock.replaced is not None:
        Console().problem(f"{folder}: the lock of {lock.replaced}, which is gone, was taken over")
        remove_temporaries(folder, below=False)  # stages below have locks of their own
    return folder


def show_tables(
    console: Console,
    folder: Path,
    tables: Sequence[Table],
    notes: Sequence[str],
    summary: dict[str, Any],
    *,
    shown: Collection[str] | None = None,
) -> None:
    """Write tables to ``folder``, print them and ``notes`` for people, and the folder (or all as JSON) on stdout.

    ``shown`` are the names of the tables that are printed (default: all but those that repeat another one in a long
    form), as far as there is room for them (:data:`_LINES`); the first one always is. A line names the others.
    """
    from pixelsem.report.tables import to_plain, write_tables

    write_tables(folder, tables)
    wanted = [t for t in tables if (t.name not in _NOT_SHOWN if shown is None else t.name in shown)]
    if not console.quiet:
        printed = _fitting(console, folder, wanted)
        # The first table is the answer: it comes last, where a terminal leaves the eye.
        for _, text in reversed(printed):
            console.table(text)
        names = [name for name, _ in printed]
        others = [t.name for t in (wanted if shown is None else tables) if t.name not in names]
        if others:
            console.note(f"more tables are in {folder}: {', '.join(others)}")
    for note in notes[:_NOTES]:
        console.note(f"note: {note}")
    if len(notes) > _NOTES:
        console.note(f"note: … and {len(notes) - _NOTES} more (--json has all)")
    plain = {table.name: to_plain(table) for table in tables}
    console.result(folder, {**summary, "notes": list(notes), "tables": plain})


def _fitting(console: Console, folder: Path, tables: Sequence[Table]) -> list[tuple[str, RenderableType]]:
    """Return, with their names, the tables that there is room for, ready to be printed."""
    from pixelsem.report.terminal import to_rich

    room = _LINES
    printed: list[tuple[str, RenderableType]] = []
    for table in tables:
        text = to_rich(_cut(table, folder) if not printed else table, console.rich.width)
        room -= len(console.rich.render_lines(text, pad=False))
        if printed and room < 0:
            break
        printed.append((table.name, text))
    return printed


def _cut(table: Table, folder: Path) -> Table:
    """Leave out the rows that there is no room for, and say where they are."""
    if len(table.rows) <= _ROWS:
        return table
    more = f"{len(table.rows) - _ROWS} more rows are in {folder / table.name}.md"
    return replace(table, rows=table.rows[:_ROWS], notes=[*table.notes, more])
