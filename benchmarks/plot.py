"""Tables and plots of committed results: those of each script here, ``results/NAME*.json``, to a page of the docs.

Writes ``benchmarks.md`` and one picture per file of results. The same results give the same files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkout
import evaluator
import memory
import oracles
import peers
import regions
import transforms
from common import Row, read_rows

from pixelsem.errors import PixelsemError
from pixelsem.files import write_atomically, write_text
from pixelsem.report.tables import Table, to_markdown

#: Okabe and Ito's colours, told apart by everyone; each is lighter or darker than the next, too.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_BAR = 0.8  # of the distance between two groups


def machine_line(machine: Row) -> str:
    """Return one line about the machine."""
    gpu = machine["gpu"]
    processor = f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    parts = [
        f"{gpu['name']}, {gpu['memory_gib']:.0f} GiB, CUDA {gpu['cuda']}" if gpu else "",
        processor,
        ", ".join(machine["abilities"]),
        f"{machine['ram_gib']:.0f} GiB" if machine["ram_gib"] else "",
        f"PyTorch {machine['torch']}",
        f"load {machine['load']} at the end" if machine["load"] is not None else "",
    ]
    return " · ".join(part for part in parts if part)


def plot_evaluator(rows: Sequence[Row]) -> Any:
    """Return a figure: by how much incremental scoring is faster; a line shows how much less is computed."""
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    pixels = sorted({row["pixels"] for row in rows})
    figure, axes = _figure(len(precisions), 1.2 + 0.55 * len(models))
    for axis, precision in zip(axes, precisions, strict=True):
        for number, count in enumerate(pixels):
            chosen = [row for row in rows if row["precision"] == precision and row["pixels"] == count]
            height = _BAR / len(pixels)
            places = [models.index(row["model"]) + (number - (len(pixels) - 1) / 2) * height for row in chosen]
            ratios = [row["ratio"] for row in chosen]
            label = f"{count} pixel" + "s" * (count > 1)
            axis.barh(places, ratios, height, xerr=_errors(chosen, "ratio"), color=_COLOURS[number % 5], label=label)
            allowed = [row["mac_ratio"] for row in chosen]
            axis.scatter(allowed, places, marker="|", s=60, color="black", zorder=3)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_yticks(range(len(models)), [model.removeprefix("torchvision:") for model in models])
        axis.invert_yaxis()
        axis.set_xlabel("times the dense queries per second")
        axis.set_title(precision)
    figure.legend(*axes[0].get_legend_handles_labels(), title="| times fewer operations", loc="outside right center")
    return figure


def plot_peers(rows: Sequence[Row]) -> Any:
    """Return a figure: everyone's queries per second."""
    figure, (axis,) = _figure(1, 1.2 + 0.45 * len(rows))
    colours = [_COLOURS[0] if row["contestant"].startswith("pixelsem") else _COLOURS[1] for row in rows]
    rates = [row["queries_per_second"] for row in rows]
    axis.barh(range(len(rows)), rates, _BAR, xerr=_errors(rows, "queries_per_second"), color=colours)
    for place, row in enumerate(rows):
        text = f" {row['queries_per_second']:.0f}/s, {row['seconds_per_image']:.1f} s per image"
        axis.text(row["spread"]["queries_per_second"][1], place, text, va="center")
    axis.set_yticks(range(len(rows)), [row["contestant"] for row in rows])
    axis.invert_yaxis()
    axis.set_xlim(right=1.7 * max(rates))  # room for the text
    axis.set_xlabel("queries per second")
    return figure


def _figure(columns: int, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 5.5 * columns, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _errors(rows: Sequence[Row], key: str) -> list[list[float]]:
    """Return how far the smallest and the largest sample lie from the median."""
    ends = [(row[key], *row["spread"][key]) for row in rows]
    return [[max(0.0, value - low) for value, low, _ in ends], [max(0.0, high - value) for value, _, high in ends]]


@dataclass(frozen=True)
class Kind:
    """What a sort of results shows: a heading, what to know of the figures, a table, and a figure for some."""

    heading: str
    about: str
    table: Callable[[Sequence[Row]], Table]
    figure: Callable[[Sequence[Row]], Any] | None = None


_TURNS = "Medians of {repeats} measurements in turns; lines at the bars are their range."

#: By the beginning of a file's name.
KINDS = {
    "evaluator": Kind("Dense and incremental scoring", _TURNS, evaluator.make_table, plot_evaluator),
    "peers": Kind("One attack by several", _TURNS, peers.make_table, plot_peers),
    "regions": Kind(
        "Segmentation",
        "Images that are read, segmented and written per second, medians of {repeats} runs: as many threads as cores.",
        regions.make_table,
    ),
    "transforms": Kind("Image transforms", "Medians of several runs.", transforms.table),
    "memory": Kind(
        "Memory of the attacks",
        "The peak of the resident memory of `pixelsem attack NAME`, all images in flight at 224×224. What only makes a "
        "run longer is cut, where the last column says so: steps, generations or queries; of the exhaustive search the "
        "region, a square in the middle of each image.",
        memory.make_table,
    ),
    "oracles": Kind(
        "The same attacks by others",
        "Images of CIFAR-10, all of which the bundled AllConv gets right, attacked with the same settings; both "
        "sides are rounded to 8 bits before they are scored. Success with its 95 % Wilson interval. Distances: L2 in "
        "units of 0 to 1, or how many values differ, means over the images of which both have changed the class.",
        oracles.make_table,
    ),
}


def write_page(results: Path, output: Path) -> None:
    """Write the page and its pictures into the folder ``output``."""
    sections = []
    for name, kind in KINDS.items():
        for path in sorted(results.glob(f"{name}*.json")):
            rows = read_rows(path)
            lines = [f"## {kind.heading}", machine_line(rows[-1]["machine"])]
            if kind.figure is not None:
                picture = f"benchmarks-{path.stem}.svg"
                _save(kind.figure(rows), output / picture)
                lines.append(f"![{kind.heading}]({picture})")
            lines.append(kind.about.format_map({"repeats": rows[0].get("repeats")}))
            sections.append("\n\n".join([*lines, to_markdown(kind.table(rows)).rstrip()]))
    if not sections:
        wanted = ", ".join(f"{name}*.json" for name in KINDS)
        raise PixelsemError(f"{results}: no results; make one of {wanted} with the script of that name and --json")
    intro = "# Benchmarks\n\nHow these are measured: [benchmarks/README.md](../benchmarks/README.md)."
    write_text(output / "benchmarks.md", "\n\n".join([intro, *sections]) + "\n")


def _save(figure: Any, path: Path) -> None:
    import matplotlib as mpl

    # Names inside the file come from the hash salt, its date from now: both would differ every time.
    with mpl.rc_context({"svg.hashsalt": "pixelsem"}), write_atomically(path) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    folder = checkout.ROOT / "benchmarks" / "results"
    parser.add_argument("--results", type=Path, default=folder, help="folder of results (default: benchmarks/results)")
    parser.add_argument("-o", "--output", type=Path, default=checkout.ROOT / "docs", help="folder (default: docs)")
    options = parser.parse_args(arguments)
    try:
        write_page(options.results, options.output)
    except PixelsemError as error:
        parser.exit(error.exit_code, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
