"""What every ``evaluate`` command does with its tables: write them, print them, say where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelsem.cli.console import Console
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    from pixelsem.report.tables import Table

#: Tables that hold in a long form what another one shows, and so are written but not printed.
_NOT_SHOWN = ("success", "norms", "transfer")


@dataclass(frozen=True)
class TableOptions(Settings):
    """Where tables go and what is printed."""

    output: Path | None = option(None, "Folder for the tables (default: a name of its own below --run).", flag="-o")
    run: Path = option(Path("pixelsem-run"), "Folder that holds the stages of one experiment.", env="PIXELSEM_RUN")
    confidence: float = option(0.95, "Level of the confidence intervals.", low=0.5, high=0.9999)
    json: bool = option(False, "Print everything as JSON on stdout in place of the folder's path.", flag="--json")
    quiet: bool = option(False, "No tables on stderr.", flag="-q")


def show_tables(
    console: Console, folder: Path, tables: Sequence[Table], notes: Sequence[str], summary: dict[str, Any]
) -> None:
    """Write tables to ``folder``, print them and ``notes`` for people, and the folder (or all as JSON) on stdout."""
    from pixelsem.report.tables import to_plain, write_tables
    from pixelsem.report.terminal import to_rich

    write_tables(folder, tables)
    shown = [] if console.quiet else [table for table in tables if table.name not in _NOT_SHOWN]
    for table in reversed(shown):  # the first table is the answer: it comes last, where a terminal leaves the eye
        console.table(to_rich(table, console.rich.width))
    for note in notes:
        console.note(f"note: {note}")
    plain = {table.name: to_plain(table) for table in tables}
    console.result(folder, {**summary, "notes": list(notes), "tables": plain})
