"""Queries per second of the evaluator: the whole network per candidate, against only what the changed pixels reach.

Random 8-bit colours at random pixels of several images, in the order in which an attack scores them: image by
image. Both sides run at the batch size that is the fastest for them, in turns, so that what else the machine does
meets both; every figure is the median over the turns. The matrix-multiply peak is measured in the same turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import checkout  # noqa: F401
import numpy as np
import torch
from common import Row, add_common_options, middle, names, note, numbers, show, spread, wait_for, write_rows
from machine import describe, warn_if_busy
from torch import Tensor, nn
from torch.nn import functional as F

from pixelsem.errors import PixelsemError
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import Evaluator, pick_device
from pixelsem.models import load_classifier
from pixelsem.models.classifier import Classifier
from pixelsem.models.registry import ARCHITECTURES, bundled_weights
from pixelsem.report.tables import Column, Table

MODELS = (
    *("torchvision:vgg16", "torchvision:alexnet", "torchvision:squeezenet1_1", "torchvision:resnet50", "allconv"),
    *("nin", "torchvision:resnet18", "torchvision:googlenet", "torchvision:densenet121", "torchvision:mobilenet_v2"),
)
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_COMPARED = 32  # candidates whose logits are compared


@dataclass(frozen=True)
class Setup:
    """What is the same for all models: see the options of the same names."""

    device: torch.device
    images: int
    candidates: int
    batch_size: int | None
    auto: bool
    seconds: float
    repeats: int
    seed: int


def load_model(name: str) -> Classifier:
    """Load a model with the weights that come with this package, else with random ones: speed is the same."""
    bare = name.startswith(("torchvision:", "timm:")) or (name in ARCHITECTURES and bundled_weights(name) is None)
    classifier = load_classifier(name, weights="none" if bare else None)
    if bare:
        calibrate(classifier)
    return classifier


@torch.no_grad()
def calibrate(classifier: Classifier) -> None:
    """Scale every layer so that its results are of unit size; as initialised, some networks' logits are all equal.

    In those an edit would change nothing, and dense and incremental scoring could not differ.
    """

    def rescale(module: nn.Module, inputs: tuple[Tensor], result: Tensor) -> Tensor:
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None  # noqa: PT018
            module.running_mean.copy_(inputs[0].mean((0, 2, 3)))
            module.running_var.copy_(inputs[0].var((0, 2, 3)))
        else:
            for parameter in module.parameters():
                parameter.div_(result.std())
        rescaled: Tensor = module.forward(*inputs)
        return rescaled

    layers = [layer for layer in classifier.modules() if isinstance(layer, (nn.Conv2d, nn.Linear, nn.BatchNorm2d))]
    handles = [layer.register_forward_hook(rescale) for layer in layers]
    classifier(random_images(4, classifier.preprocessing.size, 0).float() / 255)
    for handle in handles:
        handle.remove()


def random_images(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """Return uint8 [count, 3, H, W] noise."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, *size), dtype=np.uint8))


def random_edits(images: Tensor, each: int, pixels: int, seed: int) -> Edits:
    """Return ``each`` candidates per image, image by image, with ``pixels`` random pixels and colours."""
    rng = np.random.default_rng([seed, pixels])
    count = len(images) * each
    return Edits(
        torch.arange(len(images)).repeat_interleave(each),
        torch.from_numpy(rng.integers(0, images[0, 0].numel(), (count, pixels))),
        torch.from_numpy(rng.integers(0, 256, (count, pixels, 3), dtype=np.uint8)),
    )


def move(edits: Edits, device: torch.device) -> Edits:
    """Return the candidates on ``device``."""
    return Edits(edits.image.to(device), edits.position.to(device), edits.colour.to(device))


class Side:
    """One way to score.

    :ivar batch: candidates per forward pass, the number that the evaluator finds fastest unless it is given.
    """

    def __init__(self, kind: str, classifier: Classifier, precision: str, setup: Setup) -> None:
        self.evaluator = Evaluator(
            classifier, device=setup.device, precision=precision, batch_size=setup.batch_size, scorer=kind
        )
        self.batch = 0

    def attach(self, images: Tensor, edits: Edits) -> None:
        """Take the clean images and the candidates, and choose the batch size."""
        self._edits = move(edits, self.evaluator.device)
        self._next = 0
        self.evaluator.attach(images)
        self.batch = min(self.evaluator.way(self._edits).batch_size, len(edits))

    def rate(self, seconds: float) -> float:
        """Return queries per second over about so many seconds, whole batches, at least one."""
        return self.batch * per_second(self._score, seconds, self.evaluator.device)

    def score(self, which: Tensor) -> Tensor:
        """Return the logits, [C, classes] on the CPU, of some of the candidates."""
        return self.evaluator.score(self._edits[which.to(self.evaluator.device)]).cpu()

    def _score(self) -> None:
        """Score the next batch, as an attack meets them: never the last image together with the first."""
        if self._next + self.batch > len(self._edits):
            self._next = 0
        self.evaluator.score(self._edits[self._next : self._next + self.batch])
        self._next += self.batch


def per_second(work: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Return how often per second ``work`` can be done, measured over about so many seconds."""
    once = time_of(work, 1, device)
    count = max(1, round(seconds / once))
    return count / time_of(work, count, device) if count > 1 else 1 / once


def time_of(work: Callable[[], object], count: int, device: torch.device) -> float:
    """Return the seconds that doing ``work`` so often takes."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(count):
        work()
    wait_for(device)
    return time.perf_counter() - start


class Product:
    """What the machine can do at best: a large matrix product.

    On processors PyTorch's plain product is not always the fastest one: its convolutions are matrix products too,
    by another library that may use more of the processor. The faster one counts. (On GPUs convolutions may take
    fewer operations than they are counted as, so that only the plain product tells.)

    :ivar name: ``product`` or ``convolution``, whichever it is.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self._precision, self._device = precision, device
        ways = self._ways(PRECISIONS[precision])
        for way in ways.values():
            self._rate(way, 0.0)  # the first one pays for set-up
        self.name = max(ways, key=lambda name: self._rate(ways[name], 0.2))
        self._way = ways[self.name]

    def rate(self, seconds: float) -> float:
        """Return floating-point operations per second over about so many seconds."""
        return self._rate(self._way, seconds)

    @torch.inference_mode()
    def _rate(self, way: tuple[Callable[[], Tensor], int], seconds: float) -> float:
        work, operations = way
        with _tf32(self._precision == "tf32"):
            return operations * per_second(work, seconds, self._device)

    def _ways(self, dtype: torch.dtype) -> dict[str, tuple[Callable[[], Tensor], int]]:
        """Return how to multiply, and the operations it takes."""
        size = 8192 if self._device.type == "cuda" else 2048
        matrix = torch.rand(size, size, device=self._device).to(dtype)
        product = (partial(torch.mm, matrix, matrix), 2 * size**3)
        if self._device.type == "cuda":
            return {"product": product}
        maps = torch.rand(16, 256, 30, 30).to(dtype).contiguous(memory_format=torch.channels_last)
        weight = torch.rand(256, 256, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
        return {"product": product, "convolution": (partial(F.conv2d, maps, weight), 2 * 16 * 28**2 * 9 * 256**2)}


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def measure_model(name: str, pixels: Sequence[int], precision: str, setup: Setup) -> Iterator[Row]:
    """Yield one result for each number of changed pixels."""
    classifier = load_model(name)
    images = random_images(setup.images, classifier.preprocessing.size, setup.seed)
    product = Product(precision, setup.device)
    dense, incremental = (Side(kind, classifier, precision, setup) for kind in ("dense", "incremental"))
    auto = Side("auto", classifier, precision, setup) if setup.auto else None
    for count in pixels:
        edits = random_edits(images, setup.candidates, count, setup.seed)
        for side in (dense, incremental, auto) if auto else (dense, incremental):
            side.attach(images, edits)
        agreement = compare(dense, incremental, images, edits)
        plan = describe_plan(incremental.evaluator, count, setup.images)
        sides = [side.rate for side in (dense, incremental, *([auto] if auto else []))]
        *rates, peak = take_turns([*sides, product.rate], setup)
        yield {
            "model": name,
            "size": list(classifier.preprocessing.size),
            "pixels": count,
            "precision": precision,
            "device": str(setup.device),
            "images": setup.images,
            "batch_dense": dense.batch,
            "batch_incremental": incremental.batch,
            **summarise(rates, peak, plan["macs_dense"], plan["macs_incremental"]),
            "peak_gemm": product.name,
            "auto": auto.evaluator.way(edits).evaluator if auto else None,
            **agreement,
            **plan,
            "repeats": setup.repeats,
            "machine": describe(setup.device),
        }


def describe_plan(evaluator: Evaluator, pixels: int, images: int) -> Row:
    """Return what the arithmetic allows, and the memory that the clean images' activations take."""
    each, most = evaluator.activation_bytes(pixels)
    plan = evaluator.explain(pixels)
    dense, incremental = (sum(getattr(node, f"{kind}_macs") for node in plan) for kind in ("dense", "incremental"))
    return {
        "cache_bytes": min(images * each, most),
        "macs_dense": dense,
        "macs_incremental": incremental,
        "mac_ratio": dense / incremental,
    }


def compare(dense: Side, incremental: Side, images: Tensor, edits: Edits) -> Row:
    """Return how far the two ways differ in the logits, absolutely and as a part of what the edits change in fp32."""
    which = torch.linspace(0, len(edits) - 1, min(_COMPARED, len(edits))).long()
    difference = float((incremental.score(which) - dense.score(which)).abs().max())
    some, exact = edits[which], dense.evaluator.confirm
    change = float((exact(some.render(images)) - exact(images)[some.image]).abs().max())
    return {"max_abs_diff": difference, "max_abs_change": change, "relative_diff": difference / change}


def take_turns(rates: Sequence[Callable[[float], float]], setup: Setup) -> list[list[float]]:
    """Return the samples of each rate, taken one after the other, again and again."""
    turns = [[rate(setup.seconds) for rate in rates] for _ in range(setup.repeats)]
    return [list(samples) for samples in zip(*turns, strict=True)]


def summarise(rates: Sequence[Sequence[float]], peak: Sequence[float], dense_macs: int, incremental_macs: int) -> Row:
    """Return medians, and what each side makes of the machine: two operations for each multiply-accumulate.

    ``rates`` are the samples of dense, incremental and, where it was measured, automatic scoring.
    """
    dense, incremental, *auto = rates
    qps = {
        f"{name}_qps": middle(samples) for name, samples in zip(("dense", "incremental", "auto"), rates, strict=False)
    }
    flops = middle(peak)
    return {
        **qps,
        "ratio": qps["incremental_qps"] / qps["dense_qps"],
        **({"auto_ratio": qps["auto_qps"] / qps["dense_qps"]} if auto else {}),
        "spread": {
            "dense_qps": spread(dense),
            "incremental_qps": spread(incremental),
            "ratio": spread([fast / slow for fast, slow in zip(incremental, dense, strict=True)]),
        },
        "peak_gemm_flops": flops,
        "dense_utilisation": 2 * dense_macs * qps["dense_qps"] / flops,
        "incremental_utilisation": 2 * incremental_macs * qps["incremental_qps"] / flops,
    }


def make_table(rows: Sequence[Row]) -> Table:
    """Return the results for people."""
    columns = [
        Column("model", "Model", about=True),
        Column("size", "Size", "count", about=True),
        Column("pixels", "Pixels", "count", about=True),
        Column("precision", "Precision", about=True),
        Column("dense_qps", "Dense, queries/s", "number", 1),
        Column("incremental_qps", "Incremental, queries/s", "number", 1),
        Column("ratio", "Ratio", "number", 2),
        Column("auto_ratio", "Auto, ratio", "number", 2),
        Column("mac_ratio", "Fewer operations", "number", 2),
        Column("batches", "Batches"),
        Column("dense_utilisation", "Dense, of peak", "percent", 0),
        Column("incremental_utilisation", "Incremental, of peak", "percent", 0),
        Column("relative_diff", "Difference / change"),
        Column("cache", "Activations kept, MiB", "number", 1),
    ]
    shown = [
        {
            **row,
            "size": row["size"][0],
            "batches": f"{row['batch_dense']} / {row['batch_incremental']}",
            "relative_diff": f"{row['relative_diff']:.0e}",
            "cache": row["cache_bytes"] / 2**20,
        }
        for row in rows
    ]
    return Table(
        "evaluator",
        "Dense against incremental scoring",
        columns,
        [[row.get(column.key) for column in columns] for row in shown],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", type=names, default=list(MODELS), help="models, as in `pixelsem --model`")
    parser.add_argument("--pixels", type=numbers, default=[1, 3, 5], help="changed pixels (default: 1,3,5)")
    parser.add_argument("--precision", type=names, default=["fp32"], help=f"of {', '.join(PRECISIONS)} (default: fp32)")
    parser.add_argument("--images", type=int, default=8, help="clean images (default: 8)")
    parser.add_argument("--candidates", type=int, default=400, help="candidates of each image (default: 400)")
    parser.add_argument("--batch-size", type=int, help="candidates per forward pass (default: each side's fastest)")
    parser.add_argument("--auto", action="store_true", help="measure `--evaluator auto` too")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each figure (default: 5)")
    add_common_options(parser)
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.precision if name not in PRECISIONS]:
        parser.error(f"--precision: {unknown[0]!r} is none of {', '.join(PRECISIONS)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    warn_if_busy()
    try:
        rows = _run(options)
    except PixelsemError as error:
        parser.exit(error.exit_code, f"{parser.prog}: {error}\n")
    if options.json == "-":
        write_rows("-", rows)
    show(make_table(rows))


def _run(options: argparse.Namespace) -> list[Row]:
    """Measure everything; a file is written anew after each result, so that a long run cut short is not lost."""
    setup = Setup(
        pick_device(options.device), options.images, options.candidates, options.batch_size, options.auto,
        options.seconds, options.repeats, options.seed,
    )  # fmt: skip
    rows: list[Row] = []
    for name in options.models:
        for precision in options.precision:
            for row in measure_model(name, options.pixels, precision, setup):
                rows.append(row)
                note(f"{name}, {row['pixels']} pixels, {precision}: {row['dense_qps']:.1f} → "
                     f"{row['incremental_qps']:.1f} queries/s, {row['ratio']:.2f}×")  # fmt: skip
                if options.json != "-":
                    write_rows(options.json, rows)
    return rows


if __name__ == "__main__":
    main()
