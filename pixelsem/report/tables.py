"""One type of table, and its renderings as JSON, CSV, Markdown and LaTeX.

Values stay numbers until they are rendered. People read percentages with intervals; programs read plain
numbers: a rate in a column ``untargeted1`` becomes ``untargeted1``, ``untargeted1_low``, ``untargeted1_high``,
``untargeted1_count`` and ``untargeted1_n`` in CSV, all shares in [0, 1].
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from pixelsem.files import write_text
from pixelsem.metrics.intervals import Rate

if TYPE_CHECKING:
    from pixelsem.metrics.bootstrap import Estimate

Cell = str | int | float | Rate | None
Kind = Literal["text", "count", "number", "percent", "points", "rate", "p"]

_MISSING = "–"


@dataclass(frozen=True)
class Column:
    """One column. ``key`` names it in JSON and CSV, ``title`` for people.

    ``kind``: ``text``; ``count`` (int); ``number``, shown with ``digits`` decimals; ``percent``, a share in
    [0, 1] shown in %; ``points``, a signed difference of shares shown in percentage points; ``rate``, a
    :class:`Rate`; ``p``, a p-value. ``about`` marks what a row is about, not what it says: where it is the same
    in all rows, a narrow rendering may say it once.
    """

    key: str
    title: str
    kind: Kind = "text"
    digits: int = 2
    about: bool = False


@dataclass(frozen=True)
class Table:
    """A table: ``name`` is its file's name, each row has one cell per column, None for what is not there."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.name}: a row of {len(row)} cells in a table of {len(self.columns)} columns")

    def texts(self) -> list[list[str]]:
        """Return every cell as people read it, without any markup."""
        return [[cell_text(cell, column) for cell, column in zip(row, self.columns, strict=True)] for row in self.rows]

    def filled(self) -> Table:
        """Return the table without the columns that have no value."""
        keep = [i for i in range(len(self.columns)) if any(row[i] is not None for row in self.rows)]
        rows = [[row[i] for i in keep] for row in self.rows]
        return replace(self, columns=[self.columns[i] for i in keep], rows=rows)


def cell_text(cell: Cell, column: Column) -> str:
    """Return one cell as people read it: ``12.80 % (64/500) [10.15, 16.01]``, ``0.041``, ``–`` for None."""
    if cell is None:
        return _MISSING
    if isinstance(cell, Rate):
        low, high = 100 * cell.low, 100 * cell.high
        return f"{100 * cell.value:.2f} % ({cell.successes}/{cell.n}) [{low:.2f}, {high:.2f}]"
    if isinstance(cell, str) or column.kind in ("text", "count"):
        return str(cell)
    return _number_text(float(cell), column)


def _number_text(value: float, column: Column) -> str:
    if column.kind == "percent":
        return f"{100 * value:.{column.digits}f} %"
    if column.kind == "points":
        return f"{100 * value:+.{column.digits}f}".replace("-", "−")
    if column.kind == "p":
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    return f"{value:.{column.digits}f}"


def level(confidence: float) -> str:
    """Return what an interval of this level is called: ``95 % intervals``."""
    return f"{100 * confidence:g} % intervals"


def with_ends(key: str, title: str, kind: Kind = "number", digits: int = 2) -> tuple[Column, ...]:
    """Return the columns of a number and the ends of its interval, which :func:`ends` fills; points say their unit."""
    head = f"{title} (points)" if kind == "points" else title
    names = ((key, head), (f"{key}_low", f"{title} from"), (f"{key}_high", f"{title} to"))
    return tuple(Column(name, text, kind, digits) for name, text in names)


def ends(estimate: Estimate | None) -> list[Cell]:
    """Return the cells of a number and the ends of its interval."""
    return [None, None, None] if estimate is None else [estimate.value, estimate.low, estimate.high]


def to_plain(table: Table) -> dict[str, Any]:
    """Return the table as plain data for JSON: title, columns, one object per row, notes; shares in [0, 1]."""
    rows = [{c.key: _plain(cell) for c, cell in zip(table.columns, row, strict=True)} for row in table.rows]
    columns = [asdict(column) for column in table.columns]
    return {"title": table.title, "columns": columns, "rows": rows, "notes": list(table.notes)}


def from_plain(name: str, plain: Any) -> Table:
    """Return the table that :func:`to_plain` gave ``plain`` of; raises :class:`ValueError` where it is none."""
    try:
        found = msgspec.convert(plain, _Plain)
        if any(set(row) != {column.key for column in found.columns} for row in found.rows):
            raise ValueError("a row has other keys than the table has columns")
        rows = [[_cell(row[column.key], column) for column in found.columns] for row in found.rows]
        return Table(name, found.title, found.columns, rows, found.notes)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


class _Plain(msgspec.Struct):
    title: str
    columns: list[Column]
    rows: list[dict[str, str | int | float | dict[str, int | float] | None]]
    notes: list[str]


class _PlainRate(msgspec.Struct):
    rate: float
    low: float
    high: float
    count: int
    n: Annotated[int, msgspec.Meta(ge=1)]
    effective_n: float


def _cell(value: str | int | float | dict[str, int | float] | None, column: Column) -> Cell:
    """Return a cell as it was; raises :class:`ValueError` where its column holds nothing of the kind."""
    if isinstance(value, dict):
        found = msgspec.convert(value, _PlainRate)
        return Rate(found.count, found.n, found.low, found.high, found.effective_n)
    if isinstance(value, str) and column.kind not in ("text", "count"):
        raise ValueError(f"{column.key}: {value!r} is no number")
    return value


def _plain(cell: Cell) -> Any:
    if isinstance(cell, Rate):
        return {
            "rate": cell.value, "low": cell.low, "high": cell.high, "count": cell.successes, "n": cell.n,
            "effective_n": cell.effective_n,
        }  # fmt: skip
    return cell


def to_csv(table: Table) -> str:
    """Return the table as CSV (RFC 4180 but for line ends): a header of keys, plain numbers, nothing for None."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in _csv_names(column)])
    for row in table.rows:
        writer.writerow([v for cell, column in zip(row, table.columns, strict=True) for v in _csv_values(cell, column)])
    return out.getvalue()


def _csv_names(column: Column) -> list[str]:
    ends = ("", "_low", "_high", "_count", "_n") if column.kind == "rate" else ("",)
    return [column.key + end for end in ends]


def _csv_values(cell: Cell, column: Column) -> list[Any]:
    if column.kind != "rate":
        return ["" if cell is None else cell]
    if not isinstance(cell, Rate):
        return [""] * len(_csv_names(column))
    return [cell.value, cell.low, cell.high, cell.successes, cell.n]


def to_markdown(table: Table) -> str:
    """Return the table as GitHub-flavoured Markdown, with its title above and its notes below.

    Columns without any value are left out.
    """
    table = table.filled()
    bars = ["---" if column.kind == "text" else "---:" for column in table.columns]
    lines = [[_markdown(column.title) for column in table.columns], bars]
    lines += [[_markdown(text) for text in texts] for texts in table.texts()]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"- {_markdown(note)}\n" for note in table.notes)
    return f"**{_markdown(table.title)}**\n\n{body}\n" + (f"\n{notes}" if notes else "")


def _markdown(text: str) -> str:
    """Escape what would be markup in a cell."""
    for character in ("\\", "|", "*", "_", "`", "<"):
        text = text.replace(character, "\\" + character)
    return " ".join(text.replace("](", "]\\(").split())


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "–": "--", "−": "$-$", "×": r"$\times$",
}  # fmt: skip
# LaTeX has no such letters outside of formulas.
_LATEX |= {
    character: rf"\ensuremath{{\{name}}}"
    for character, name in {
        "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "η": "eta", "θ": "theta",
        "κ": "kappa", "λ": "lambda", "μ": "mu", "σ": "sigma", "τ": "tau", "φ": "varphi", "ℓ": "ell", "∞": "infty",
        "≤": "leq", "≥": "geq", "≠": "neq", "→": "rightarrow", "←": "leftarrow", "√": "surd",
    }.items()
}  # fmt: skip


def latex_escape(text: str) -> str:
    """Return ``text`` so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    """Return the table as a LaTeX float with booktabs rules; it needs ``\\usepackage{booktabs}``.

    Columns without any value are left out.
    """
    table = table.filled()
    align = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    head = _latex_row([column.title for column in table.columns])
    rows = [_latex_row(texts) for texts in table.texts()]
    caption = r"\caption{" + latex_escape(table.title) + "}"
    label = r"\label{tab:" + table.name + "}"
    notes = [r"\par\footnotesize " + latex_escape(note) for note in table.notes]
    start = [r"\begin{table}", r"\centering", caption, label, rf"\begin{{tabular}}{{{align}}}", r"\toprule", head]
    return "\n".join([*start, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}"]) + "\n"


def _latex_row(texts: Sequence[str]) -> str:
    line = " & ".join(map(latex_escape, texts)) + r" \\"
    # After the "\\" of the line before, LaTeX would take a bracket or a star as its argument.
    return "{}" + line if line.startswith(("[", "*")) else line


def to_json(table: Table) -> str:
    """Return :func:`to_plain` as JSON."""
    return json.dumps(to_plain(table), ensure_ascii=False, indent=1) + "\n"


#: Renderings that are files, by suffix.
FORMATS = {".json": to_json, ".csv": to_csv, ".md": to_markdown, ".tex": to_latex}


def write_tables(folder: Path, tables: Iterable[Table]) -> None:
    """Write every table in every format to ``folder``, replacing older files of the same names atomically.

    Raises :class:`pixelsem.errors.OutputError` where the folder cannot be written.
    """
    for table in tables:
        for suffix, render in FORMATS.items():
            write_text(folder / f"{table.name}{suffix}", render(table))
