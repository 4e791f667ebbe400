from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from pixelsem.errors import OutputError
from pixelsem.metrics.intervals import Rate
from pixelsem.report.tables import (
    Column,
    Table,
    cell_text,
    from_plain,
    latex_escape,
    to_csv,
    to_json,
    to_latex,
    to_markdown,
    to_plain,
    write_tables,
)  # fmt: skip
from pixelsem.report.terminal import to_rich

TABLE = Table(
    name="success",
    title="Success & cost of 100 %",
    columns=[
        Column("network", "Network"),
        Column("pixels", "Pixels", "count"),
        Column("untargeted1", "Untargeted_1", "rate"),
        Column("confidence", "Confidence", "percent"),
        Column("generations", "Generations", "number"),
        Column("difference", "Difference", "points", 1),
        Column("p", "p", "p"),
    ],
    rows=[
        ["my|net_1", 1, Rate(64, 500, 0.1015, 0.1601, 500.0), 0.7401, 1.625, -0.062, 0.0004],
        ['a, "b"', None, None, None, None, None, None],
    ],
    notes=["50 % of *all* {images}."],
)

CSV = '''\
network,pixels,untargeted1,untargeted1_low,untargeted1_high,untargeted1_count,untargeted1_n,confidence,generations,difference,p
my|net_1,1,0.128,0.1015,0.1601,64,500,0.7401,1.625,-0.062,0.0004
"a, ""b""",,,,,,,,,,
'''

MARKDOWN = r"""**Success & cost of 100 %**

| Network | Pixels | Untargeted\_1 | Confidence | Generations | Difference | p |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| my\|net\_1 | 1 | 12.80 % (64/500) [10.15, 16.01] | 74.01 % | 1.62 | −6.2 | \<0.001 |
| a, "b" | – | – | – | – | – | – |

- 50 % of \*all\* {images}.
"""

LATEX = r"""\begin{table}
\centering
\caption{Success \& cost of 100 \%}
\label{tab:success}
\begin{tabular}{lrrrrrr}
\toprule
Network & Pixels & Untargeted\_1 & Confidence & Generations & Difference & p \\
\midrule
my\textbar{}net\_1 & 1 & 12.80 \% (64/500) [10.15, 16.01] & 74.01 \% & 1.62 & $-$6.2 & \textless{}0.001 \\
a, "b" & -- & -- & -- & -- & -- & -- \\
\bottomrule
\end{tabular}
\par\footnotesize 50 \% of *all* \{images\}.
\end{table}
"""


def test_csv():
    assert to_csv(TABLE) == CSV
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert rows[1]["network"] == 'a, "b"'


def test_markdown():
    assert to_markdown(TABLE) == MARKDOWN


def test_latex():
    assert to_latex(TABLE) == LATEX


def test_columns_without_values_are_not_printed_but_kept_in_csv():
    table = Table("t", "T", [Column("a", "A"), Column("b", "B")], [["x", None]])
    assert "B" not in to_markdown(table)
    assert "B" not in to_latex(table)
    assert to_csv(table) == "a,b\nx,\n"


def test_json():
    plain = json.loads(to_json(TABLE))
    assert plain == to_plain(TABLE)
    assert plain["rows"][0]["untargeted1"]["count"] == 64
    assert plain["rows"][0]["untargeted1"]["rate"] == 0.128
    assert plain["rows"][1] == {"network": 'a, "b"'} | dict.fromkeys([c.key for c in TABLE.columns[1:]])


def test_json_is_read_back():
    table = from_plain("t", json.loads(to_json(TABLE)))
    assert table.texts() == TABLE.texts()
    assert to_json(table) == to_json(TABLE)
    assert (to_csv(table), to_latex(from_plain(TABLE.name, to_plain(TABLE)))) == (to_csv(TABLE), LATEX)


@pytest.mark.parametrize(
    "changes",
    [
        {"title": 3},
        {"columns": [{"key": "a"}]},
        {"columns": [{"key": "a", "title": "A", "kind": "magic"}]},
        {"rows": [{"b": 1}]},
        {"rows": [{"a": [1]}]},
        {"rows": [{"a": {"rate": 1}}]},
        {"rows": [{"a": "x"}]},
        {"rows": [{"a": {"rate": 0, "low": 0, "high": 1, "count": 0, "n": 0, "effective_n": 0}}]},
    ],
)
def test_json_that_is_no_table_is_refused(changes):
    plain = {"title": "T", "columns": [{"key": "a", "title": "A", "kind": "number"}], "rows": [{"a": 1}], "notes": []}
    assert from_plain("t", plain).texts() == [["1.00"]]
    with pytest.raises(ValueError, match=r"."):
        from_plain("t", plain | changes)


def shown(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(to_rich(table, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_terminal_shows_brackets_as_they_are_and_no_empty_columns():
    columns = [Column("a", "[bold]A"), Column("b", "Empty"), Column("c", "C", "count")]
    text = shown(Table("t", "T [red]", columns, [["[x]", None, 3]], ["note [1]"]), 60)
    assert all(part in text for part in ("T [red]", "[bold]A", "[x]", "note [1]"))
    assert "Empty" not in text


def wide(regions: tuple[str, ...], values: int) -> Table:
    columns = [Column("n", "Network", about=True), Column("r", "Region", about=True)]
    columns += [Column(f"v{i}", f"Value {i}", "number") for i in range(values)]
    rows = [["allconv", region, *(1000.0 + i for i in range(values))] for region in regions]
    return Table("t", "Title", columns, rows)


def test_terminal_says_once_what_all_rows_are_about():
    text = shown(wide(("foreground", "background"), 2), 80)
    assert "Title · network allconv" in text
    assert text.count("allconv") == 1
    assert [line.split() for line in text.splitlines() if "foreground" in line] == [
        ["foreground", "1000.00", "1001.00"],
    ]  # fmt: skip


def test_terminal_turns_what_is_too_wide():
    text = shown(wide(("foreground", "background"), 9), 80)
    assert [line.split() for line in text.splitlines() if "Value 8" in line] == [
        ["Value", "8", "1008.00", "1008.00"],
    ]  # fmt: skip
    assert "…" not in text


def test_terminal_names_the_numbers_that_stand_above_a_turned_table():
    columns = [Column("r", "Region", about=True), Column("p", "Pixels", "count", about=True)]
    columns += [Column(f"v{i}", f"Value {i}", "number") for i in range(9)]
    rows = [["original", pixels, *map(float, range(9))] for pixels in (1, 3)]
    rows += [["background", 3, *map(float, range(9))]]
    heading = shown(Table("t", "Title", columns, rows), 80).splitlines()[2]
    assert heading.split() == ["original", "pixels", "1", "original", "pixels", "3", "background", "pixels", "3"]


def test_terminal_cuts_nothing_where_nothing_fits():
    text = shown(wide(tuple("abcdefghij"), 9), 40)
    assert "…" not in text


def test_terminal_breaks_intervals():
    table = Table("t", "T", [Column("r", "Rate", "rate")] * 3, [[Rate(64, 500, 0.1015, 0.1601, 500.0)] * 3])
    assert "12.80 % (64/500) [10.15, 16.01]" in shown(table, 120)
    assert "12.80 % (64/500)   12.80 % (64/500)" in shown(table, 70)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("100%", r"100\%"),
        ("a_b^c~d", r"a\_b\textasciicircum{}c\textasciitilde{}d"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("$1 & #2", r"\$1 \& \#2"),
        ("3×3", r"3$\times$3"),
        ("ℓ∞ ≤ δ", r"\ensuremath{\ell}\ensuremath{\infty} \ensuremath{\leq} \ensuremath{\delta}"),
        ("λ, τ, φ", r"\ensuremath{\lambda}, \ensuremath{\tau}, \ensuremath{\varphi}"),
    ],
)
def test_latex_escapes(text, escaped):
    assert latex_escape(text) == escaped


def test_latex_rows_may_start_with_a_bracket():
    made = to_latex(Table("t", "T", [Column("a", "A")], [["[x]"], ["*"]]))
    assert "\n{}[x] \\\\\n{}* \\\\\n" in made


def test_markdown_escapes_links_and_line_ends():
    made = to_markdown(Table("t", "T", [Column("a", "A")], [["[x](y)\nz `w` <b> \\"]]))
    assert "| [x]\\(y) z \\`w\\` \\<b> \\\\ |" in made


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (0.041, Column("p", "p", "p"), "0.041"),
        (0.0009999, Column("p", "p", "p"), "<0.001"),
        (0.062, Column("d", "d", "points"), "+6.20"),
        (1.0, Column("s", "s", "percent", 0), "100 %"),
        (None, Column("s", "s", "percent"), "–"),
        (1234567, Column("n", "n", "count"), "1234567"),
    ],
)
def test_cells(value, column, text):
    assert cell_text(value, column) == text


def test_rows_must_fit():
    with pytest.raises(ValueError, match="2 cells in a table of 1"):
        Table("t", "T", [Column("a", "A")], [["x", "y"]])


def test_files_are_replaced(tmp_path):
    (tmp_path / "success.csv").write_text("old")
    write_tables(tmp_path, [TABLE])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "success.csv", "success.json", "success.md", "success.tex",
    ]  # fmt: skip
    assert (tmp_path / "success.csv").read_text() == CSV


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_tables(tmp_path / "out", [TABLE])
    assert (tmp_path / "out").read_text() == ""


def test_what_fits_in_no_way_becomes_two_tables_cut_between_networks():
    columns = [Column("n", "Network", about=True), Column("r", "Region", about=True), *wide((), 6).columns[2:]]
    names = [("allconv", "original"), ("nin", "original"), ("nin", "foreground"), ("nin", "background")]
    rows = [[*name, *(1000.0 + i for i in range(6))] for name in names]
    text = shown(Table("t", "Title", columns, rows, ["the note"]), 50)
    assert max(map(len, text.splitlines())) <= 50
    titles = [line for line in text.splitlines() if line.startswith("Title")]
    assert titles == ["Title · network allconv", "Title · network nin"]
    assert text.count("the note") == 1
    assert text.index("the note") > text.index("Title · network nin")
    assert text.count("1005.0") == 4
