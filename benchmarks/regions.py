"""How many images per second each segmentation method does, on images of each of some folders.

Run it on an idle machine, on small images and on photos:

    python benchmarks/regions.py --images CIFAR/test,ECSSD/images --all PHOTOS --json FILE

What is timed is what `pixelsem segment` does: images are read, segmented and written on as many threads as there are
cores. Beside it stands what a single thread does with images that are in memory already, one call of the method at a
time. Of the folder after --all every image goes through the superpixel methods, once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import checkout  # noqa: F401
import torch
from common import Row, add_common_options, middle, names, note, show, spread, write_rows
from machine import describe, warn_if_busy

from pixelsem.errors import PixelsemError
from pixelsem.fitness.evaluator import pick_device
from pixelsem.images import iter_chunks, read_image
from pixelsem.models.u2net import NETWORKS
from pixelsem.regions.registry import METHODS, Segmenter, open_segmenter
from pixelsem.regions.run import segment_images, usable_cores
from pixelsem.regions.saliency import save_network
from pixelsem.report.tables import Column, Table
from pixelsem.settings import Settings
from pixelsem.sources import ImageItem, ImageSource, open_images
from pixelsem.stage import Stage, StageInfo

#: Images of up to so many pixels a side are small: they have the bundled classifier, others a network for photos.
SMALL = 64
SMALL_MODEL, PHOTO_MODEL = "allconv", "torchvision:squeezenet1_1"

#: β of the merging that is measured; dong2020 compares 2 and 4.
MERGE = 2.0
#: The side at which U²-Net's authors use it.
U2NET_SIZE = 320


@dataclass(frozen=True)
class Case:
    """One method with its settings: what the table calls it, and how it is made for small images or photos."""

    name: str
    method: str
    settings: Callable[[argparse.Namespace, bool], Settings]
    weights: str = ""


def _plain(method: str, **given: object) -> Case:
    name = method + "".join(f" --{key.replace('_', '-')} {value}" for key, value in given.items())
    return Case(name, method, lambda options, small: METHODS[method].settings(**given))


def _network(method: str, weights: str) -> Case:
    def settings(options: argparse.Namespace, small: bool) -> Settings:
        own = _random_u2net(options.scratch) if method == "u2net" else None
        return METHODS[method].settings(weights=own, device=options.device)

    return Case(method, method, settings, weights)


def _attention(method: str) -> Case:
    def settings(options: argparse.Namespace, small: bool) -> Settings:
        model, weights = (SMALL_MODEL, None) if small else (PHOTO_MODEL, Path("none"))
        return METHODS[method].settings(model=model, weights=weights, labels="predicted", device=options.device)

    return Case(method, method, settings, f"{SMALL_MODEL}; photos: {PHOTO_MODEL}, random")


CASES = {
    case.name: case
    for case in (
        _plain("grabcut"),
        _plain("grabcut", init="saliency"),
        _network("u2netp", "bundled"),
        _network("u2net", "random"),
        *(_plain(method, **given) for given in ({}, {"merge_threshold": MERGE}) for method in ("slic", "lsc", "seeds")),
        _attention("cam"),
        _attention("gradcam"),
    )
}
SUPERPIXELS = ("slic", "lsc", "seeds")


def _random_u2net(folder: Path) -> Path:
    """Return a file of random weights for U²-Net: the time does not depend on them."""
    path = folder / "u2net.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_network(NETWORKS["u2net"](), path, "u2net", U2NET_SIZE)
    return path


@contextmanager
def _stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory() as folder:
        info = StageInfo(kind="segment", command="benchmark", identity="0" * 64, options={}, inputs={})
        yield Stage.create(Path(folder) / "stage", info)


def run(segmenter: Segmenter, source: ImageSource, items: Sequence[ImageItem], workers: int) -> float:
    """Read, segment and write ``items`` as `pixelsem segment` does; return the images per second."""
    with _stage() as stage:
        start = time.perf_counter()
        summary = segment_images(items, segmenter, stage, source.root, workers=workers)
        seconds = time.perf_counter() - start
    if summary.failed:
        raise PixelsemError(next(iter(summary.failed.values())))
    return len(items) / seconds


def run_alone(segmenter: Segmenter, items: Sequence[ImageItem]) -> float:
    """Call the method on images in memory, one call at a time; return the images per second."""
    images, ids = [read_image(item.path) for item in items], [item.id for item in items]
    start = time.perf_counter()
    for chunk in iter_chunks(len(items), segmenter.batch):
        segmenter(images[chunk], ids[chunk])
    return len(items) / (time.perf_counter() - start)


def measure(case: Case, source: ImageSource, options: argparse.Namespace) -> Row:
    """Measure one method on images of one folder: as many as fit into ``options.seconds``, in several runs."""
    size = typical_size(source.items)
    segmenter = open_segmenter(case.method, case.settings(options, max(size) <= SMALL), [i.id for i in source.items])
    few = source.items[: segmenter.batch * options.workers]
    run(segmenter, source, few, options.workers)  # pays for set-up
    rate = run(segmenter, source, few, options.workers)
    # Whole batches for every thread, so that none waits at the end for a smaller one.
    whole = len(few) * max(1, round(rate * options.seconds / len(few)))
    items = source.items[:whole]
    rates = [run(segmenter, source, items, options.workers) for _ in range(options.repeats)]
    return _row(case, size, items, rates, options) | {"alone": run_alone(segmenter, items[: max(len(few), 16)])}


def measure_all(case: Case, source: ImageSource, options: argparse.Namespace) -> Row:
    """Measure one method on all images of a folder, once."""
    segmenter = open_segmenter(case.method, case.settings(options, False), [item.id for item in source.items])
    run(segmenter, source, source.items[:2], options.workers)
    rates = [run(segmenter, source, source.items, options.workers)]
    return _row(case, typical_size(source.items), source.items, rates, options) | {"alone": None}


def _row(
    case: Case, size: tuple[int, int], items: Sequence[ImageItem], rates: list[float], options: argparse.Namespace
) -> Row:
    return {
        "method": case.name, "weights": case.weights, "size": size, "images": len(items), "workers": options.workers,
        "repeats": len(rates), "images_per_second": middle(rates), "spread": spread(rates), "samples": rates,
        "machine": describe(pick_device(options.device)),
    }  # fmt: skip


def typical_size(items: Sequence[ImageItem]) -> tuple[int, int]:
    """Return the median (height, width) of some images."""
    shapes = [read_image(item.path).shape for item in items[:: max(1, len(items) // 50)]]
    height, width = (int(median(shape[axis] for shape in shapes)) for axis in (0, 1))
    return height, width


def make_table(rows: Sequence[Row]) -> Table:
    """Return the results for people."""
    columns = (
        Column("method", "Method"),
        Column("size", "Pixels"),
        Column("images", "Images", "count"),
        Column("rate", "Images/s", "number", 1),
        Column("low", "Slowest", "number", 1),
        Column("high", "Fastest", "number", 1),
        Column("alone", "One call at a time, without files", "number", 1),
        Column("weights", "Weights"),
    )
    cells = [
        [row["method"], "×".join(map(str, row["size"])), row["images"], row["images_per_second"], *row["spread"],
         row["alone"], row["weights"]]
        for row in rows
    ]  # fmt: skip
    return Table("regions", "Segmentation", columns, cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show a table and write the list of results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=names, default=[], metavar="DIR,…", help="folders of images for all methods")
    parser.add_argument("--all", type=Path, metavar="DIR", help="folder of which every image is cut into superpixels")
    parser.add_argument("--methods", type=names, default=list(CASES), help=f"methods (default: {','.join(CASES)})")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="threads (default: one per core)")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long a run shall take (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each (default: 3)")
    add_common_options(parser)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    unknown = [name for name in options.methods if name not in CASES]
    if unknown or not (options.images or options.all):
        parser.error(f"unknown method {unknown[0]}" if unknown else "give folders with --images or --all")
    warn_if_busy()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        options.scratch = Path(scratch)
        for source in (open_images(Path(folder)) for folder in options.images):
            for name in options.methods:
                rows.append(measure(CASES[name], source, options))
                note(f"{name} at {rows[-1]['size']}: {rows[-1]['images_per_second']:,.1f} images/s")
        if options.all:
            source = open_images(options.all)
            rows += [measure_all(CASES[name], source, options) for name in SUPERPIXELS]
    show(make_table(rows))
    write_rows(options.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
