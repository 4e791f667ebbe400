"""How candidates are scored, as a table: which parts of a network are computed on windows, and what that saves."""

from __future__ import annotations

from collections.abc import Sequence

from pixelsem.fitness.plan import NodePlan
from pixelsem.fitness.tuning import Way
from pixelsem.report.tables import Column, Table

_COLUMNS = (
    Column("node", "Node", about=True),
    Column("operation", "Operation"),
    Column("computed", "Computed on"),
    Column("map", "Map"),
    Column("window", "Largest window"),
    Column("share", "Share of the map", "percent", digits=1),
    Column("dense_macs", "MACs of the whole map", "count"),
    Column("macs", "MACs spent", "count"),
)


def plan_table(nodes: Sequence[NodePlan], way: Way, pixels: int, activations: tuple[int, int]) -> Table:
    """Return the plan of incremental scoring node by node, with totals; ``way`` says whether it is what is used.

    ``activations`` are the bytes kept of one clean image, and of all at most. The share is that of all windows of
    an average candidate; one MAC is a multiplication and an addition.
    """
    rows = [_row(node) for node in nodes]
    dense, spent = sum(node.dense_macs for node in nodes), sum(node.incremental_macs for node in nodes)
    rows.append(("all", None, None, None, None, spent / max(dense, 1), dense, spent))
    rate = f", {way.rate:,.0f} queries/s" if way.rate else ""
    notes = [
        f"{way.evaluator} scoring, {way.batch_size} candidates at a time{rate}",
        f"whole maps cost {dense / max(spent, 1):.2f} times as many MACs as windows do",
        f"of each clean image {activations[0] / 2**20:.1f} MiB are kept, {activations[1] / 2**30:.1f} GiB at most",
    ]
    what = "1 changed pixel" if pixels == 1 else f"{pixels} changed pixels"
    return Table("scoring", f"How candidates of {what} are scored", _COLUMNS, rows, notes)


def _row(node: NodePlan) -> tuple[str | int | float | None, ...]:
    sizes = ["×".join(map(str, size)) for size in (node.map, node.window)]
    computed = "whole maps" if node.dense else "windows"
    return (node.name, node.op, computed, *sizes, node.share, node.dense_macs, node.incremental_macs)
