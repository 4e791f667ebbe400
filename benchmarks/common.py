"""What the benchmarks share: options, lists of results in files, tables on stderr."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pixelsem.errors import PixelsemError
from pixelsem.files import write_text
from pixelsem.report.tables import Table

Row = dict[str, Any]


def names(text: str) -> list[str]:
    """Parse ``a,b,c``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def numbers(text: str) -> list[int]:
    """Parse ``1,3,5``: whole numbers above 0."""
    values = [int(part) for part in names(text)]
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers above 0")
    return values


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that both benchmarks have."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, help="processor threads (default: PyTorch's own choice)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of candidates (default: 0)")
    parser.add_argument("--json", metavar="FILE|-", help="write the list of results there; - is standard output")


def write_rows(target: str | None, rows: Sequence[Row]) -> None:
    """Write the list to the file ``target``, one object below the other; ``-`` is stdout, None nowhere."""
    text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    elif target is not None:
        write_text(Path(target), text)


def read_rows(path: Path) -> list[Row]:
    """Read what :func:`write_rows` wrote. Raises :class:`PixelsemError` for anything else."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PixelsemError(f"{path}: cannot be read: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and "machine" in row for row in rows):
        raise PixelsemError(f"{path}: not a list of results; make one with evaluator.py or peers.py --json FILE")
    return rows


def kept_rows(target: str | None) -> list[Row]:
    """Return the results that are in the file ``target`` already; none where there is no such file."""
    return read_rows(Path(target)) if target not in (None, "-") and Path(target).exists() else []


def keep_rows(target: str | None, rows: Sequence[Row]) -> None:
    """Write the results so far, so that what was measured stays; nothing where they go to stdout in the end."""
    write_rows(None if target == "-" else target, rows)


def show(table: Table) -> None:
    """Print a table on stderr, where people look; stdout is for data."""
    from rich.console import Console

    from pixelsem.report.terminal import to_rich

    console = Console(stderr=True, highlight=False)
    console.print(to_rich(table, console.width))


def note(text: str) -> None:
    """Say on stderr how far it is."""
    print(text, file=sys.stderr, flush=True)


def middle(samples: Sequence[float]) -> float:
    """Return the median."""
    return float(median(samples))


def spread(samples: Sequence[float]) -> list[float]:
    """Return the smallest and the largest sample."""
    return [min(samples), max(samples)]


def wait_for(device: torch.device) -> None:
    """Return when everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
