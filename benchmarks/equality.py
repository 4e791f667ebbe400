"""Are incremental and dense scoring equal, and what does incremental scoring spend? On 40 torchvision classifiers.

    python benchmarks/equality.py --json benchmarks/results/equality.json

Every network has random weights, calibrated so that the values in it stay of unit size and a changed pixel moves
the logits. Its candidates change pixels at corners, along borders, side by side, in one place and anywhere. The
error of a candidate is the largest one of its logits, as a part of the largest change that the edit itself makes
in them: what overlooks a part of a change, or all of it, cannot pass.

The second table compares what incremental scoring computes with what no implementation of windows can do without.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from pixelsem.files import write_atomically
from pixelsem.fitness.edits import Edits
from pixelsem.fitness.evaluator import DenseScorer
from pixelsem.fitness.incremental import IncrementalScorer
from pixelsem.models.allconv import allconv
from pixelsem.models.classifier import Classifier, Preprocessing
from pixelsem.models.nin import nin

PIXELS = (1, 3, 5)
#: What the error may be of the change.
FLOAT64, FLOAT32 = 1e-6, 1e-3

#: Each model, and the side of the images it is tried on where time matters. Those that need a size are made for it.
MODELS = {
    **dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg16_bn"), 64),
    **dict.fromkeys(("alexnet", "squeezenet1_0", "squeezenet1_1", "resnet18", "resnet34", "resnet50", "resnet101"), 96),
    **dict.fromkeys(("resnext50_32x4d", "densenet121", "densenet169", "densenet201", "googlenet", "mobilenet_v2"), 96),
    **dict.fromkeys(("wide_resnet50_2", "densenet161", "vit_b_16"), 64),
    **dict.fromkeys(("mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"), 96),
    **dict.fromkeys(("mnasnet0_5", "mnasnet1_0", "mnasnet1_3", "regnet_x_400mf", "regnet_x_800mf"), 96),
    **dict.fromkeys(
        ("regnet_y_400mf", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_v2_s"), 96
    ),
    **dict.fromkeys(("convnext_tiny", "swin_t"), 96),
    "inception_v3": 107,
    "maxvit_t": 224,
}
#: Those also tried at the size that they are made for.
NATIVE = {
    **dict.fromkeys(("alexnet", "vgg16", "squeezenet1_1", "resnet18", "resnet50", "densenet121", "googlenet"), 224),
    **dict.fromkeys(("mobilenet_v2", "shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0", "convnext_tiny"), 224),
    "inception_v3": 299,
}
#: What the arithmetic is compared for, and the side of the images.
BOUNDED = {"vgg16": 224, "alexnet": 224, "squeezenet1_1": 224, "resnet50": 224, "allconv": 32, "nin": 32}


@dataclass
class Equality:
    """How far apart dense and incremental scoring are for one network, and what the latter spends.

    :ivar nodes: how many operations its graph has; one where it could not be traced.
    :ivar first_dense: by the number of pixels, the first operation on whole maps.
    :ivar share: by the number of pixels, the part of the dense pass's multiplications that is done.
    :ivar error64, error32: the largest error of a candidate, as a part of the change that it makes.
    :ivar dense_error32: the same of the dense pass in float32, against float64: the rounding to be expected.
    :ivar least_change: the smallest change of a candidate, as a part of the largest logit.
    """

    model: str
    size: int
    nodes: int
    gmacs: float
    first_dense: dict[int, str]
    share: dict[int, float]
    error64: dict[int, float]
    error32: dict[int, float]
    dense_error32: dict[int, float]
    least_change: float
    seconds: float


def build(name: str, size: int) -> nn.Module:
    """Return the network with random weights, calibrated on images of ``size``, in evaluation mode."""
    if name in ("allconv", "nin"):
        network: nn.Module = (allconv if name == "allconv" else nin)()
    else:
        options: dict[str, dict[str, Any]] = {
            "googlenet": {"aux_logits": False, "init_weights": False},
            "inception_v3": {"aux_logits": False, "init_weights": False},
            "vit_b_16": {"image_size": size},
            "maxvit_t": {"input_size": (size, size)},
        }
        network = getattr(torchvision.models, name)(weights=None, **options.get(name, {}))
    images = make_images(8, size, seed=99)
    calibrate(network.eval(), make_edits(images, max(PIXELS), contrast(name), seed=99).render(images))
    return network


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor) -> None:
    """Randomise the parameters such that every convolution, linear layer and norm has outputs of unit size."""
    for name, parameter in network.named_parameters():
        if name.endswith(("layer_scale", "gamma")):  # 1e-6 to begin with: the block would do nothing
            parameter.normal_(0, 0.5)
    handles = [
        module.register_forward_hook(_calibrate_norm if isinstance(module, nn.BatchNorm2d) else _calibrate_layer)
        for module in network.modules()
        if isinstance(module, (nn.BatchNorm2d, nn.Conv2d, nn.Linear))
    ]
    network(normalise(images))
    for handle in handles:
        handle.remove()


def _calibrate_layer(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    if getattr(module, "calibrated", False):  # called twice
        return output
    module.calibrated = True  # type: ignore[assignment]
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    if module.bias is not None:
        module.bias.zero_()
    module.weight.normal_().div_(module.weight[0].numel() ** 0.5)
    module.weight.div_(module.forward(inputs[0]).std())
    if module.bias is not None:
        module.bias.normal_(0, 0.2)
    return module.forward(inputs[0])


def _calibrate_norm(module: nn.Module, inputs: tuple[Tensor], _: Tensor) -> Tensor:
    assert isinstance(module, nn.BatchNorm2d)
    values, mean, variance = inputs[0], module.running_mean, module.running_var
    assert mean is not None
    assert variance is not None
    mean.copy_(values.mean((0, 2, 3))).add_(torch.randn_like(mean) * 0.2)
    # Somewhat more than the variance of the data: with just that, random layers blow up every difference by a
    # fifth, which through a hundred of them makes rounding as large as any change.
    variance.copy_(values.var((0, 2, 3))).clamp_(min=0.3).mul_(torch.empty_like(variance).uniform_(1, 2))
    module.weight.uniform_(0.5, 1.5)
    module.bias.normal_(0, 0.3)
    return module.forward(values)


def noise(size: int) -> float:
    """Return how far grey images of this side vary, in 8-bit steps.

    Five black or white pixels are then as far from grey, all in all, as the rest of the image: large enough to
    be seen in the logits of a deep network, small enough for layers that are calibrated on such images.
    """
    return 284 / size


def preprocessing(size: int) -> Preprocessing:
    mean, std = (0.5, 0.49, 0.51), noise(size) / 255
    return Preprocessing((size, size), size, mean, (std, 0.95 * std, 1.05 * std))


def normalise(images: Tensor) -> Tensor:
    about = preprocessing(images.shape[-1])
    mean, std = (torch.tensor(values)[:, None, None] for values in (about.mean, about.std))
    return (images.float() / 255 - mean) / std


def classifier(network: nn.Module, size: int) -> Classifier:
    names = tuple(map(str, range(10)))
    return Classifier(network, name="random", class_names=names, preprocessing=preprocessing(size)).eval()


def make_images(count: int, size: int, seed: int) -> Tensor:
    """Grey noise, of unit size once normalised."""
    values = np.random.default_rng(seed).normal(127, noise(size), (count, 3, size, size))
    return torch.from_numpy(values.clip(0, 255).round().astype(np.uint8))


def contrast(name: str) -> int:
    """Return how far from grey pixels are set: to black and white, but for networks whose gates multiply.

    Those run away from values that no image they were calibrated on comes near: from layer to layer these grow,
    and so does rounding, until nothing is left that dense and incremental scoring could agree on.
    """
    return 30 if name.startswith("efficientnet") else 127


def make_edits(images: Tensor, pixels: int, contrast: int, seed: int) -> Edits:
    """Eight candidates of dark and light pixels: at the four corners, and by K at borders, together, or anywhere."""
    rng, (height, width) = np.random.default_rng(seed), images.shape[2:]
    y, x = rng.integers(0, height, (8, pixels)), rng.integers(0, width, (8, pixels))
    y[:4, 0], x[:4, 0] = (0, 0, height - 1, height - 1), (0, width - 1, 0, width - 1)
    y[4], x[4] = height - 1, (width // 2 + np.arange(pixels)) % width  # side by side along a border
    if pixels > 1:
        y[5], x[5] = y[5, 0], x[5, 0]  # all in one place: the last colour counts
        # Overlapping further on, not here; and one place twice.
        y[6], x[6] = (y[6, 0] + 3 * np.arange(pixels)) % height, (x[6, 0] + 2 * np.arange(pixels)) % width
        y[6, -1], x[6, -1] = y[6, 0], x[6, 0]
    colour = (127 - contrast + rng.integers(0, 2, (8, pixels, 3)) * (2 * contrast + 1)).astype(np.uint8)
    image = torch.arange(8) % len(images)
    return Edits(image, torch.from_numpy(y * width + x), torch.from_numpy(colour))


def exact_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Return float64 logits by the network itself."""
    with torch.inference_mode():
        parts = [network(normalise(part).double()) for part in images.split(2)]
    return torch.cat(parts)


def measure(name: str, size: int, pixels: Iterable[int] = PIXELS, seed: int = 0) -> Equality:
    """Compare dense and incremental scoring of one network."""
    gc.collect()  # torch.fx ties the network before this one into cycles, gigabytes of it
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = classifier(build(name, size), size)
    images = make_images(2, size, seed)
    edits = {count: make_edits(images, count, contrast(name), seed + count) for count in pixels}
    double = copy.deepcopy(model.network).double()
    clean = exact_logits(double, images)
    expected = {count: exact_logits(double, some.render(images)) for count, some in edits.items()}
    del double
    scale = float(clean.abs().max())
    change = {count: (expected[count] - clean[some.image]).abs().amax(1) for count, some in edits.items()}
    least = min(float(of[of > 1e-12 * scale].min()) for of in change.values())
    # Strides can step over the last row and column. What no logit sees is measured by what another pixel changes.
    change = {count: torch.where(of > 1e-12 * scale, of, of.max()) for count, of in change.items()}

    def error(logits: Tensor, truth: Tensor, count: int) -> float:
        return float(((logits - truth).abs().amax(1) / change[count]).max())

    scorer = IncrementalScorer(model, dtype=torch.float64)
    scorer.attach(images)
    error64 = {count: error(scorer.logits(some), expected[count], count) for count, some in edits.items()}
    scorer = IncrementalScorer(model)
    scorer.attach(images)
    error32, dense_error32 = {}, {}
    dense = DenseScorer(model, "fp32")
    dense.attach(images)
    for count, some in edits.items():
        with torch.inference_mode():
            plain = torch.cat([dense.logits(some[i : i + 2]) for i in range(0, len(some), 2)])
        error32[count] = error(scorer.logits(some), plain, count)
        dense_error32[count] = error(plain, expected[count], count)
    plans = {count: scorer.explain(count) for count in edits}
    nodes = next(iter(plans.values()))
    return Equality(
        model=name,
        size=size,
        nodes=len(nodes),
        gmacs=sum(node.dense_macs for node in nodes) / 1e9,
        first_dense={count: _first_dense(plan) for count, plan in plans.items()},
        share={count: _share(plan) for count, plan in plans.items()},
        error64=error64,
        error32=error32,
        dense_error32=dense_error32,
        least_change=least / scale,
        seconds=time.perf_counter() - start,
    )


def _first_dense(plan: list[Any]) -> str:
    return next((f"{node.name} ({node.op})" for node in plan if node.dense), "")


# What the arithmetic needs


@dataclass
class Bound:
    """What scoring candidates of ``pixels`` pixels needs, and what it takes, as parts of the dense pass.

    :ivar least: at positions that a changed pixel reaches, for pixels anywhere: nothing can do with less.
    :ivar windows: the same with one window for each pixel, overlapping or not, and at most the map.
    :ivar taken: what is computed, by the number of window sizes per axis; None: the scorer's own.
    """

    model: str
    size: int
    pixels: int
    least: float
    windows: float
    taken: dict[int | None, float]


@dataclass
class Marks:
    """What one layer needs; see :func:`spread_marks`.

    :ivar macs: of the whole map.
    :ivar rows, columns: float [H'] and [W'], how often each is reached by a random pixel; empty for all.
    """

    macs: int
    rows: Tensor
    columns: Tensor

    def least(self, pixels: int) -> float:
        """Return the part of the map that ``pixels`` random pixels reach, together."""
        return float((1 - (1 - self.rows[:, None] * self.columns) ** pixels).mean()) if len(self.rows) else 1.0

    def windows(self, pixels: int) -> float:
        """Return the part of the map that their windows are; at most all of it."""
        return min(1.0, float(pixels * self.rows.mean() * self.columns.mean())) if len(self.rows) else 1.0


def spread_marks(network: nn.Module, size: int) -> list[Marks]:
    """Return for each convolution and linear layer which of its outputs depend on a pixel.

    Found without arithmetic on windows: the pixel (i, i) of the i-th image is marked, a convolution or pooling
    marks what reads a mark, and everything else leaves marks where they are. What happens to rows and columns
    does not depend on each other, so that the diagonal shows everything.
    """
    marking, found = copy.deepcopy(network), []

    def spread(module: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))
        x = x.amax(1, keepdim=True).clamp(max=1)  # paths that join may have added marks
        kernel, stride, padding, dilation = (
            _pair(getattr(module, key, 1)) for key in ("kernel_size", "stride", "padding", "dilation")
        )
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        x = F.max_pool2d(x, kernel, stride, 0, dilation, getattr(module, "ceil_mode", False))
        if isinstance(module, nn.Conv2d):
            macs = module.weight.numel() * x.shape[2] * x.shape[3]
            found.append(Marks(macs, x.amax((1, 3)).double().mean(0), x.amax((1, 2)).double().mean(0)))
        return x

    def whole(module: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(module, nn.Linear)
        found.append(Marks(module.weight.numel(), torch.empty(0), torch.empty(0)))
        return x.new_zeros(len(x), module.out_features)

    for module in marking.modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            module.forward = lambda x, module=module: spread(module, x)  # type: ignore[method-assign]
        elif isinstance(module, nn.Linear):
            module.forward = lambda x, module=module: whole(module, x)  # type: ignore[method-assign]
        elif not list(module.children()) and not isinstance(module, (nn.AdaptiveAvgPool2d, nn.Flatten)):
            module.forward = lambda x: x  # type: ignore[method-assign]
    marks = torch.eye(size)[:, None, :, None] * torch.eye(size)[:, None, None, :]
    with torch.inference_mode():
        marking(marks)
    return found


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def bounds(
    name: str, size: int, pixels: Iterable[int] = PIXELS, classes: Iterable[int | None] = (None,)
) -> list[Bound]:
    """Compare what scoring with one network needs with what it takes."""
    network = build(name, size)
    found, model = spread_marks(network, size), classifier(network, size)
    scorers = {count: IncrementalScorer(model, classes=count) for count in classes}
    dense = sum(marks.macs for marks in found)
    rows = []
    for count in pixels:
        least = sum(marks.macs * marks.least(count) for marks in found) / dense
        windows = sum(marks.macs * marks.windows(count) for marks in found) / dense
        taken = {key: _share(scorer.explain(count)) for key, scorer in scorers.items()}
        rows.append(Bound(name, size, count, least, windows, taken))
    return rows


def _share(plan: list[Any]) -> float:
    return sum(node.incremental_macs for node in plan) / sum(node.dense_macs for node in plan)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [f"{name}:{size}" for sizes in (MODELS, NATIVE) for name, size in sizes.items()]
    models = "NAME:SIDE of the images, comma-separated; by default all, most of them with small images"
    arguments.add_argument("--models", default=",".join(everything), help=models)
    arguments.add_argument("--pixels", default="1,3,5", help="numbers of pixels, comma-separated")
    arguments.add_argument(
        "--classes",
        default="2,3,4,5,6,8,12",
        help="numbers of window sizes per axis to try for the bounds, beside the scorer's own",
    )
    arguments.add_argument("--no-bounds", action="store_true", help="leave out the comparison with the arithmetic")
    arguments.add_argument("--json", type=Path, help="where to write the results; - for stdout")
    given = arguments.parse_args()
    pixels = [int(count) for count in given.pixels.split(",")]
    classes = [None, *map(int, filter(None, given.classes.split(",")))]
    rows, needs = [], []
    for entry in filter(None, given.models.split(",")):
        name, _, side = entry.partition(":")
        rows.append(measure(name, int(side or MODELS[name]), pixels))
        print(_line(rows[-1]), file=sys.stderr, flush=True)
    for name, size in {} if given.no_bounds else BOUNDED.items():
        for row in bounds(name, size, pixels, classes):
            needs.append(row)
            print(_bound_line(row), file=sys.stderr, flush=True)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    text = json.dumps({"versions": versions, "models": list(map(asdict, rows)), "bounds": list(map(asdict, needs))})
    if given.json and str(given.json) != "-":
        with write_atomically(given.json) as file:
            file.write((text + "\n").encode())
    elif given.json:
        print(text)


def _line(row: Equality) -> str:
    shares = " ".join(f"{share:6.3f}" for share in row.share.values())
    errors = " ".join(f"{max(of.values()):8.1e}" for of in (row.error64, row.error32, row.dense_error32))
    first = next(iter(row.first_dense.values()))
    return (
        f"{row.model:20} {row.size:4} {row.nodes:4} nodes  {row.gmacs:6.2f} GMAC  share {shares}  errors {errors}  "
        f"least change {row.least_change:7.1e}  {row.seconds:5.1f} s  dense from {first}"
    )


def _bound_line(row: Bound) -> str:
    taken = "  ".join(
        f"{count or 'own'}: {share / row.windows:.3f} {share / row.least:.3f}" for count, share in row.taken.items()
    )
    needs = f"windows 1/{1 / row.windows:.2f}, least 1/{1 / row.least:.2f}"
    return f"{row.model:14} K = {row.pixels}  {needs}; taken of both, by classes  {taken}"


if __name__ == "__main__":
    main()
