"""``pixelsem models``: the classifiers there are, and whether their weights are at hand."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import typer

from pixelsem.cli.console import Console
from pixelsem.errors import PixelsemError

if TYPE_CHECKING:
    from pixelsem.models import ModelInfo

_COLUMNS = ("name", "input", "classes", "parameters", "weights", "source")


def register(app: typer.Typer) -> None:
    """Add the ``models`` command."""
    app.command("models")(list_models)


def list_models(
    pattern: Annotated[
        str | None, typer.Argument(help="Part of a name, or a pattern like 'vgg*' (default: every model).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the classifiers by name: input size, classes, parameters, and whether the weights are at hand.

    Weights are bundled (in the package), cached (from an earlier download), to download, or none (train them,
    or give --weights). On a terminal the list is a table, else lines with tabs. timm:NAME, FILE.py:FUNCTION
    and model files work too, but are not listed.
    """
    from pixelsem import models

    found = [model for model in models.list_models() if pattern is None or _matches(model.name, pattern)]
    if not found:
        raise PixelsemError(f"no model matches {pattern!r}; `pixelsem models` lists all")
    if as_json:
        Console().data(json.dumps([dataclasses.asdict(model) for model in found], ensure_ascii=False))
    elif sys.stdout.isatty():
        _print_table(found)
    else:
        Console().data("\n".join("\t".join(row) for row in [_COLUMNS, *map(_row, found)]))


def _matches(name: str, pattern: str) -> bool:
    """Tell whether ``pattern`` fits the name with or without its ``torchvision:``, or is a part of it."""
    name, pattern = name.lower(), pattern.lower()
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(":")[2], pattern)
    return pattern in name


def _row(model: ModelInfo) -> tuple[str, ...]:
    height, width = model.input_size
    return (model.name, f"{width}x{height}", str(model.classes), str(model.parameters), model.weights, model.source)


def _print_table(found: Sequence[ModelInfo]) -> None:
    from rich import box
    from rich.console import Console as RichConsole
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in _COLUMNS:
        numeric = column in ("input", "classes", "parameters")
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for model in found:
        name, size, classes, _, weights, source = _row(model)
        table.add_row(name, size, classes, _in_millions(model.parameters), weights, source)
    RichConsole(highlight=False).print(table, markup=False)


def _in_millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count < 100e6 else f"{count / 1e6:.0f} M"
