"""How many images per second each image transform does, at 32 × 32 and at 224 × 224 pixels.

Run it on an idle machine: ``python benchmarks/transforms.py --json transforms.json``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import checkout  # noqa: F401
import torch
from common import Row, add_common_options, middle, names, note, numbers, show, spread, wait_for, write_rows
from machine import describe, warn_if_busy
from torch import Tensor

from pixelsem.fitness.evaluator import pick_device
from pixelsem.report.tables import Column, Table
from pixelsem.transforms.layer import apply
from pixelsem.transforms.specs import Defense, parse_defense

#: Every transform at a usual strength.
DEFENSES = "resize,jpeg,dnn-jpeg,avg-pool,max-pool,median,median:k=7,tvm,bit-depth"


def pictures(count: int, size: int, seed: int, device: torch.device) -> Tensor:
    """Return smooth images with some noise, uint8 [N, 3, size, size]: what codecs and solvers are made for."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    noise = torch.randn(count, 3, size, size, generator=random)
    return (255 * smooth + 4 * noise).round().clamp(0, 255).to(torch.uint8).to(device)


def measure(defense: Defense, images: Tensor, repeats: int) -> list[float]:
    """Return the images per second of each of ``repeats`` runs; one more, the first, pays for set-up."""
    rates = []
    for number in range(repeats + 1):
        wait_for(images.device)
        start = time.perf_counter()
        apply(images, [defense])
        wait_for(images.device)
        if number:
            rates.append(len(images) / (time.perf_counter() - start))
    return rates


def table(rows: Sequence[Row]) -> Table:
    """Return the results for people."""
    columns = (
        Column("defense", "Transform"),
        Column("size", "Pixels"),
        Column("batch", "Batch", "count"),
        Column("rate", "Images/s", "number", 1),
        Column("low", "Slowest", "number", 1),
        Column("high", "Fastest", "number", 1),
    )
    cells = [
        [row["defense"], f"{row['size']}×{row['size']}", row["batch"], row["images_per_second"], *row["spread"]]
        for row in rows
    ]
    return Table("transforms", "Image transforms", columns, cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show a table and write the list of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--defenses", type=names, default=names(DEFENSES), help=f"transforms (default: {DEFENSES})")
    parser.add_argument("--sizes", type=numbers, default=[32, 224], help="sides of the images (default: 32,224)")
    parser.add_argument("--batch", type=int, default=32, help="images together (default: 32)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default: 5)")
    add_common_options(parser)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    warn_if_busy()
    device, rows = pick_device(options.device), []
    for size in options.sizes:
        images = pictures(options.batch, size, options.seed, device)
        for text in options.defenses:
            defense = parse_defense(text)
            rates = measure(defense, images, options.repeats)
            note(f"{defense.text} at {size}: {middle(rates):,.1f} images/s")
            rows.append({
                "defense": defense.text, "size": size, "batch": options.batch, "images_per_second": middle(rates),
                "spread": spread(rates), "samples": rates, "machine": describe(device),
            })  # fmt: skip
    show(table(rows))
    write_rows(options.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
