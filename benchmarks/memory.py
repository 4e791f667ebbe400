"""How much memory each attack takes: ``pixelsem attack NAME`` on ten photos, in a process of its own.

    python benchmarks/memory.py --images PHOTOS --weights squeezenet1_1.safetensors --json memory.json

The peak is what the system counts as resident, of the process and those it starts. What only makes a run longer is
cut (steps, generations, queries), what makes it larger is not: all ten images are in flight, populations and batches
are the defaults. The exhaustive search tries a square of each image. These figures hold on a busy machine, too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import checkout
import numpy as np
import torch
from common import Row, keep_rows, kept_rows, names, note, show, write_rows
from machine import describe

from pixelsem.attacks.registry import ATTACKS
from pixelsem.errors import PixelsemError
from pixelsem.images import read_image, write_image
from pixelsem.report.tables import Column, Table
from pixelsem.sources import ImageItem, open_images

MODEL = "torchvision:squeezenet1_1"
#: A second model, of many more activations, with random weights; and what is tried on it.
LARGE_MODEL, ON_LARGE = "torchvision:vgg16", ("de", "sparse-rs", "exhaustive", "jsma")

#: Less of what takes hours on processors.
CUTS: dict[str, list[str]] = {
    "de": ["--generations", "2"],
    "sparse-rs": ["--queries", "100"],
    "random": ["--queries", "400"],
    "cma-es": ["--queries", "400"],
    "cw": ["--steps", "10"],
    "jsma": ["--steps", "20"],
    "adv-patch": ["--steps", "10"],
    "lavan": ["--steps", "10", "--no-early-stop"],
}
#: The side of the square that the exhaustive search tries, at 224×224 pixels.
SQUARE = {MODEL: 16, LARGE_MODEL: 6}
#: A small process that starts the command and then prints its peak: a process counts as its own what its parent held
#: when it was started, and this one may hold a gigabyte of PyTorch.
_STARTER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(f"\\n{usage.ru_maxrss}")
sys.exit(os.waitstatus_to_exitcode(status) & 255)
"""
#: What ``ru_maxrss`` counts in.
_UNIT = 1 if sys.platform == "darwin" else 1024


def command(attack: str, model: str, options: argparse.Namespace, folder: Path) -> list[str]:
    """Return what is typed; all that it writes goes below ``folder``."""
    weights = options.weights if model == MODEL else None
    given = [*CUTS.get(attack, []), "--model", model, "--weights", weights or "none"]
    if attack == "exhaustive":
        write_squares(open_images(options.images).items[: options.limit], folder / "masks", SQUARE[model])
        given += ["--masks", folder / "masks", "--region", "foreground"]
    given += ["--limit", options.limit, "--labels", "predicted", "-o", folder / "stage", "--json"]
    return ["attack", attack, *map(str, [options.images, *given])]


def write_squares(items: Sequence[ImageItem], folder: Path, side: int) -> None:
    """Write a mask for each image: a square in its middle that is about ``side`` pixels wide at 224×224."""
    for item in items:
        height, width = read_image(item.path).shape[:2]
        half = max(1, round(side / 224 * min(height, width) / 2))
        mask = np.zeros((height, width), bool)
        mask[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = True
        write_image(folder / Path(item.id).with_suffix(".png"), mask)


def run(arguments: Sequence[str]) -> tuple[str, int]:
    """Run ``pixelsem``; see :func:`run_process`."""
    return run_process([sys.executable, "-m", "pixelsem", *arguments])


def run_process(command: Sequence[str]) -> tuple[str, int]:
    """Run a command; return what it prints, and the peak of its resident memory in bytes.

    Raises :class:`PixelsemError` with its last words where it fails.
    """
    environment = os.environ | {"PYTHONPATH": str(checkout.ROOT)}
    done = subprocess.run([sys.executable, "-c", _STARTER, *command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise PixelsemError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-500:]}")
    printed, peak = done.stdout.rstrip("\n").rsplit("\n", 1)
    return printed, int(peak) * _UNIT


def measure(attack: str, model: str, options: argparse.Namespace) -> Row:
    """Run one attack; return its peak memory, and what came of it."""
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        printed, peak = run(command(attack, model, options, Path(scratch)))
        seconds = time.perf_counter() - start
    counts = json.loads(printed)["counts"]
    return {
        "attack": attack, "model": model, "trained": model == MODEL and options.weights is not None,
        "images": options.limit, "cut": cut_of(attack, model), "peak_bytes": peak, "seconds": seconds,
        "counts": counts, "machine": describe(torch.device("cpu")),
    }  # fmt: skip


def cut_of(attack: str, model: str) -> str:
    """Return what is less than by default, as it is typed; nothing where nothing is."""
    if attack == "exhaustive":
        return f"{SQUARE[model]}×{SQUARE[model]} pixels of each image"
    return " ".join(CUTS.get(attack, []))


def make_table(rows: Sequence[Row]) -> Table:
    """Return the results for people."""
    columns = (
        Column("attack", "Attack"),
        Column("model", "Model"),
        Column("images", "Images", "count"),
        Column("peak", "Peak memory, GiB", "number", 2),
        Column("cut", "Cut to"),
    )
    cells = [
        [row["attack"], row["model"] + ("" if row["trained"] else ", random weights"), row["images"],
         row["peak_bytes"] / 2**30, row["cut"]]
        for row in rows
    ]  # fmt: skip
    return Table("memory", "Memory of the attacks at 224×224", columns, cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show a table and write the list of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of photos")
    parser.add_argument("--weights", type=Path, metavar="FILE", help=f"weights of {MODEL} (default: random ones)")
    parser.add_argument("--limit", type=int, default=10, help="images that are attacked together (default: 10)")
    parser.add_argument("--attacks", type=names, default=list(ATTACKS), help="attacks (default: all)")
    parser.add_argument("--large", type=names, default=list(ON_LARGE), help=f"those on {LARGE_MODEL}, too")
    parser.add_argument("--json", metavar="FILE|-", help="list of results, which goes on where it is; - is stdout")
    options = parser.parse_args(arguments)
    rows = kept_rows(options.json)
    for attack, model in [(name, MODEL) for name in options.attacks] + [(name, LARGE_MODEL) for name in options.large]:
        if any((row["attack"], row["model"]) == (attack, model) for row in rows):
            continue
        rows.append(measure(attack, model, options))
        note(f"{attack} on {model}: {rows[-1]['peak_bytes'] / 2**30:.2f} GiB, {rows[-1]['seconds']:.0f} s")
        keep_rows(options.json, rows)
    show(make_table(rows))
    write_rows(options.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
