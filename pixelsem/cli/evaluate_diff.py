"""``pixelsem evaluate diff``: are two runs of an attack the same, and if not, why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelsem.cli.console import Console
from pixelsem.errors import EXIT_SOME_FAILED, PixelsemError, StageError
from pixelsem.files import one_line
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    from pixelsem.metrics.differences import Comparison, History
    from pixelsem.records import AttackRecord
    from pixelsem.stage import Stage

#: How many differing searches are printed; ``--json`` has them all.
_SHOWN = 20


@dataclass(frozen=True)
class DiffOptions(Settings):
    """What is printed."""

    json: bool = option(False, "Print counts and every difference as JSON on stdout.", flag="--json")
    quiet: bool = option(False, "No table on stderr.", flag="-q")


def evaluate_diff(
    *,
    first: Annotated[Path, typer.Argument(metavar="A", help="An attack stage.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another run of the same attack.", show_default=False)],
    options: DiffOptions,
) -> None:
    """Compare two runs search by search; a difference is traced to a float tie, or unexplained (exit code 1)."""
    from pixelsem.metrics.differences import compare
    from pixelsem.stage import Stage

    console = Console(quiet=options.quiet, as_json=options.json)
    one, two = Stage.open(first), Stage.open(second)
    comparison = compare(one.attack_records(), two.attack_records(), _histories(one, two))
    if not comparison.identical and not comparison.differences:
        raise PixelsemError(f"{first} and {second}: no search is in both; nothing to compare")
    if one.info.identity != two.info.identity:
        console.note(f"note: {first} and {second} were asked for different things; differences are no surprise")
    _print(console, comparison, options.json)
    if comparison.of("unexplained"):
        raise typer.Exit(EXIT_SOME_FAILED)


def _histories(one: Stage, two: Stage) -> Callable[[AttackRecord, AttackRecord], tuple[History, History] | None]:
    def load(first: AttackRecord, second: AttackRecord) -> tuple[History, History] | None:
        if first.history is None or second.history is None:
            return None
        return _accepted(one, first.history), _accepted(two, second.history)

    return load


def _accepted(stage: Stage, name: str) -> Mapping[str, Any]:
    """Return a history in which what was accepted, if it is there, is bits by generation."""
    arrays = read_history(stage, name)
    for key in ("accepted", "close"):
        if key in arrays and (arrays[key].ndim != 2 or str(arrays[key].dtype) != "uint8"):
            found = f"{arrays[key].dtype} {list(arrays[key].shape)}"
            raise StageError(f"{stage.path / name}: `{key}` is {found}, not the bits of every generation")
    return arrays


def read_history(stage: Stage, name: str) -> Mapping[str, Any]:
    """Return the arrays of a search's history by name; raises :class:`StageError` where it cannot be read."""
    from pixelsem.arrays import read_arrays

    path = stage.resolve(name)
    try:
        return read_arrays(path)
    except (OSError, ValueError) as error:
        raise StageError(f"{path}: not a history that can be read: {one_line(error)}") from error


def _or_none(text: str) -> str | None:
    return text or None


def _counts(comparison: Comparison) -> dict[str, int]:
    return {
        "identical": len(comparison.identical),
        "float_ties": len(comparison.of("float tie")),
        "unexplained": len(comparison.of("unexplained")),
        "only_in_a": len(comparison.only_first),
        "only_in_b": len(comparison.only_second),
    }


def _print(console: Console, comparison: Comparison, as_json: bool) -> None:
    import json

    from pixelsem.report.tables import Column, Table
    from pixelsem.report.terminal import to_rich

    counts = _counts(comparison)
    columns = (
        Column("id", "Image", about=True), Column("region", "Region", about=True),
        Column("target", "Target", about=True), Column("repeat", "Repeat", about=True),
        Column("generation", "Parts in generation", "count"), Column("cause", "Cause"), Column("reason", "Reason"),
    )  # fmt: skip
    ordered = sorted(comparison.differences, key=lambda difference: difference.cause != "unexplained")
    rows = [[*map(_or_none, d.key), d.generation, d.cause, d.reason] for d in ordered]
    more = [f"… and {len(rows) - _SHOWN} more (--json has all)"] if len(rows) > _SHOWN else []
    if rows:
        table = Table("diff", "Searches that differ", columns, rows[:_SHOWN], more)
        console.table(to_rich(table, console.rich.width))
    if as_json:
        differences = [asdict(difference) for difference in ordered]
        only = {"only_in_a": comparison.only_first, "only_in_b": comparison.only_second}
        console.data(json.dumps({"counts": counts, "differences": differences, **only}, ensure_ascii=False))
    else:
        console.data(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items()))
