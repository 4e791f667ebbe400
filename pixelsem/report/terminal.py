"""Tables on a terminal: what does not fit is turned on its side, never cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pixelsem.report.tables import Table

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType


@dataclass(frozen=True)
class _Layout:
    """Texts ready to be laid out: one heading per column, and how many leading columns are labels."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int

    def widths(self, *, whole_heads: bool) -> list[int]:
        """Return the characters that each column needs; headings may break between words unless whole."""
        columns = zip(self.heads, *self.rows, strict=True)
        return [
            max(_longest([head] if whole_heads else head.split()), _longest(_lines(cells))) for head, *cells in columns
        ]

    def fits(self, width: int, *, whole_heads: bool = False) -> bool:
        """Is the layout, with what lies between its columns, at most ``width`` characters wide?"""
        return 2 + sum(3 + needed for needed in self.widths(whole_heads=whole_heads)) <= width

    def broken(self) -> _Layout:
        """Return the layout with every interval below its rate."""
        rows = [[text.replace(") [", ")\n[") for text in row] for row in self.rows]
        return _Layout(self.heads, rows, self.labels)

    def turned(self) -> _Layout:
        """Return the layout on its side: one row per value, one column per row."""
        heads = [" ".join(self._named(row)) for row in self.rows]
        values = range(self.labels, len(self.heads))
        return _Layout(["", *heads], [[self.heads[i], *(row[i] for row in self.rows)] for i in values], 1)

    def _named(self, row: Sequence[str]) -> Iterator[str]:
        """Yield the labels of a row; a number says nothing without its heading."""
        for head, text in zip(self.heads, row[: self.labels], strict=False):
            if text != "–":
                yield f"{head.lower()} {text}" if text[:1].isdigit() else text


def _lines(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in text.split("\n")]


def _longest(texts: Sequence[str]) -> int:
    return max(map(len, texts), default=0)


def to_rich(table: Table, width: int) -> RenderableType:
    """Return the table for a terminal of ``width`` characters.

    What all rows are about is said in the title, and columns without any value are left out. What fits in no
    way is printed as two tables, one below the other.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    title, layout = _settle(table)
    chosen = next((choice for choice in _choices(layout) if choice.fits(width)), None)
    if chosen is None and len(table.rows) > 1:
        first, second = _halves(table)
        return Group(to_rich(first, width), to_rich(second, width))
    made = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    # Left to itself, rich would break words of a heading before it breaks between them.
    tight = chosen is not None and not chosen.fits(width, whole_heads=True)
    chosen = chosen or layout.broken()
    for number, (head, needed) in enumerate(zip(chosen.heads, chosen.widths(whole_heads=False), strict=True)):
        side: JustifyMethod = "left" if number < chosen.labels else "right"
        made.add_column(Text(head), justify=side, overflow="fold", width=needed if tight else None)
    for row in chosen.rows:
        made.add_row(*map(Text, row))
    return Group(Text(title, style="bold"), made, *(Text(note, style="dim") for note in table.notes), Text())


def _halves(table: Table) -> tuple[Table, Table]:
    """Cut a table in two, where its first label changes nearest to the middle; the notes stay below the second."""
    middle = len(table.rows) / 2
    labels = [[cell for cell, column in zip(row, table.columns, strict=True) if column.about] for row in table.rows]
    cuts = [i for i in range(1, len(labels)) if labels[i][:1] != labels[i - 1][:1]] or range(1, len(labels))
    cut = min(cuts, key=lambda place: abs(place - middle))
    return replace(table, rows=table.rows[:cut], notes=()), replace(table, rows=table.rows[cut:])


def _choices(layout: _Layout) -> Iterator[_Layout]:
    yield layout
    yield layout.broken()
    yield layout.turned()
    yield layout.turned().broken()


def _settle(table: Table) -> tuple[str, _Layout]:
    """Return the title and the columns that are left, labels first."""
    table = table.filled()
    texts, columns = table.texts(), table.columns
    about = [i for i, column in enumerate(columns) if column.about]
    common = [i for i in about if len({row[i] for row in texts}) == 1]
    if common == about:  # every row needs a name
        common = common[:-1]
    said = ", ".join(f"{columns[i].title.lower()} {texts[0][i]}" for i in common)
    labels = [i for i in about if i not in common]
    order = labels + [i for i in range(len(columns)) if i not in about]
    rows = [[row[i] for i in order] for row in texts]
    title = f"{table.title} · {said}" if said else table.title
    return title, _Layout([columns[i].title for i in order], rows, len(labels))
