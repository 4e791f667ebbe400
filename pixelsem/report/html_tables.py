"""Tables as parts of a page."""

from __future__ import annotations

from html import escape

from pixelsem.metrics.intervals import Rate
from pixelsem.report.tables import Cell, Column, Table, cell_text


def to_html(table: Table) -> str:
    """Return the table as HTML without any style of its own: everything in it is escaped.

    Columns without any value are left out. A rate has its share large and its count and interval small.
    """
    table = table.filled()
    head = "".join(f'<th scope="col"{_side(column)}>{escape(column.title)}</th>' for column in table.columns)
    rows = "".join(
        f"<tr>{''.join(_cell(cell, column) for cell, column in zip(row, table.columns, strict=True))}</tr>\n"
        for row in table.rows
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    caption = f'<caption class="unseen">{escape(table.title)}</caption>'
    body = f"<table>{caption}<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"
    # What scrolls sideways can be reached by keyboard.
    frame = f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.title)}">{body}</div>'
    return frame + (f'<div class="notes">{notes}</div>' if notes else "")


def _side(column: Column) -> str:
    return "" if column.kind == "text" else ' class="number"'


def _cell(cell: Cell, column: Column) -> str:
    text = escape(cell_text(cell, column))
    if isinstance(cell, Rate):
        share, _, rest = text.partition(" (")
        text = f"{share} <small>({rest}</small>"
    mark = f'<th scope="row"{_side(column)}>' if column.about else f"<td{_side(column)}>"
    return f"{mark}{text}{'</th>' if column.about else '</td>'}"
