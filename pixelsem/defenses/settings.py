"""Settings of the defences. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pixelsem.errors import PixelsemError
from pixelsem.settings import MOST_SEED, Settings, option, option_name

#: Inputs of more pixels than this get the ε that qian2021 §IV-F takes for ILSVRC2012, others that for CIFAR-10.
SMALL = 64 * 64

#: Which options only some methods have, and what they are where not given; ε and α follow from the images' size.
_OWN: Mapping[str, Mapping[str, Any]] = {
    "standard": {"epsilon": None, "robust_sample": 0, "robust_steps": 10},
    "fast": {"epsilon": None, "step": None, "region": "original", "robust_sample": 500, "robust_steps": 10},
    "pgd": {"epsilon": None, "step": None, "steps": 7, "region": "original", "robust_sample": 500, "robust_steps": 10},
    "pixel": {
        "pixels": 1, "population": 10, "generations": 3, "region": "original", "robust_sample": 500,
        "robust_steps": 10,
    },
}  # fmt: skip
_ANY = tuple(dict.fromkeys(name for own in _OWN.values() for name in own))


@dataclass(frozen=True)
class TrainSettings(Settings):
    """How a classifier is trained: stochastic gradient descent, on images as they are or on attacked ones.

    Options that are None take their method's own default, see :meth:`resolved`.
    """

    method: Literal["standard", "fast", "pgd", "pixel"] = option(
        "standard",
        "What is trained on: standard, the images; fast, FGSM from a random start (Wong et al. 2020); pgd, projected "
        "gradient descent (Madry et al. 2018); pixel, few pixels changed by differential evolution.",
    )
    epochs: int = option(12, "Passes over the training images.", low=1)
    batch: int = option(128, "Images per step.", low=1)
    lr: float = option(0.1, "Peak learning rate: linear warm-up to it, then decay to zero.", low=0)
    schedule: Literal["one-cycle", "cosine"] = option("one-cycle", "How it decays: linearly, or along a cosine.")
    warmup: float = option(0.2, "Share of the steps spent warming up.", low=0, high=1)
    momentum: float = option(0.9, "Nesterov momentum.", low=0, high=1)
    weight_decay: float = option(5e-4, "L2 penalty on the weights of convolutions and linear layers.", low=0)
    average: float = option(
        0.0, "Decay per step of a running average of the weights, which is then what is measured and saved; 0: none.",
        low=0, high=0.99999,
    )  # fmt: skip
    dropout: float = option(0.1, "Probability of every dropout layer of the network.", low=0, high=1)
    crop: int = option(
        4, "Images of the input's size: random crops from the image padded by this many reflected pixels; 0 for none.",
        low=0,
    )  # fmt: skip
    flip: bool = option(True, "Random horizontal flips.")
    precision: Literal["fp32", "bf16", "fp16"] = option("bf16", "Arithmetic of the forward pass (autocast).")
    epsilon: float | None = option(
        None, "fast, pgd, and what --robust-sample is attacked with: budget ε, what a value may change by, in units of "
        "0 to 255 (default: 8; 2 for images of more than 64×64 pixels).", low=0, high=255, metavar="ε",
    )  # fmt: skip
    step: float | None = option(
        None, "fast, pgd: step size α in units of 0 to 255 (default: fast 1.25 ε; pgd ε/4, which is 2 for 8).", low=0,
        metavar="α",
    )  # fmt: skip
    steps: int | None = option(None, "pgd: steps (default: 7).", low=1)
    pixels: int | None = option(None, "pixel: pixels that change (default: 1).", low=1, high=64)
    population: int | None = option(None, "pixel: candidates per generation (default: 10).", low=6)
    generations: int | None = option(None, "pixel: generations, the initial population included (default: 3).", low=1)
    region: str | None = option(
        None, "fast, pgd, pixel: where images are changed: original (everywhere, the default), foreground, background "
        "or label:N of --masks.",
    )  # fmt: skip
    robust_sample: int | None = option(
        None, "Test images that are attacked after every epoch: with PGD, or with --method pixel as in training; 0: "
        "none (default: 500; 0 with --method standard).", low=0, metavar="N",
    )  # fmt: skip
    robust_steps: int | None = option(
        None, "Steps of that PGD, or generations of that search (default: 10).", low=1, metavar="K"
    )
    seed: int = option(
        0, "Seed of the initial weights, the order, the crops and flips, and of the attacks.", low=0, high=MOST_SEED
    )

    def check(self) -> None:
        """Raise :class:`PixelsemError` for options that would have no effect."""
        own = _OWN[self.method]
        for name in _ANY:
            if getattr(self, name) is not None and name not in own:
                takers = ", ".join(method for method, names in _OWN.items() if name in names)
                raise PixelsemError(f"{option_name(name)} goes with --method {takers}, not {self.method}")
        if self._value("robust_sample") == 0:
            unused = ("robust_steps", "epsilon") if self.method == "standard" else ("robust_steps",)
            for name in unused:
                if getattr(self, name) is not None:
                    raise PixelsemError(f"{option_name(name)} goes with a --robust-sample of more than 0")
        region, _, number = (self.region or "original").partition(":")
        if self.region not in (None, "original", "foreground", "background") and not (
            region == "label" and number.isdecimal()
        ):
            raise PixelsemError(f"--region: {self.region!r} is none of original, foreground, background, label:N")

    def resolved(self, height: int, width: int) -> TrainSettings:
        """Return these settings for images of this size, every option of the method with a value.

        ε is 8 of 255, or 2 for more than 64×64 pixels, which qian2021 §IV-F says of ``fast`` alone; α is 1.25 ε for
        ``fast`` (Wong et al. 2020, §5) and ε/4 for ``pgd``, which for ε = 8 is the 2 of qian2021 §IV-F.
        """
        values = {name: self._value(name) for name in _OWN[self.method]}
        if values["robust_sample"] == 0:
            values["robust_steps"] = None
        if self.method == "standard" and not values["robust_sample"]:
            return replace(self, **values)
        if "epsilon" in values and values["epsilon"] is None:
            values["epsilon"] = 2.0 if height * width > SMALL else 8.0
        if "step" in values and values["step"] is None:
            values["step"] = values["epsilon"] * (1.25 if self.method == "fast" else 0.25)
        return replace(self, **values)

    def _value(self, name: str) -> Any:
        given = getattr(self, name)
        return _OWN[self.method][name] if given is None else given


@dataclass(frozen=True)
class ReadingSettings(Settings):
    """How images are read that do not have the size of the network's input, or are too many for memory."""

    resize: Literal["crop", "squash"] = option(
        "crop", "Images of other sizes: how a test image reaches the model's resolution, by the model's own resize and "
        "crop, or squashed.",
    )  # fmt: skip
    min_area: float = option(
        0.08, "Images of other sizes: the least share of a training image that its random crop, which is then resized, "
        "takes.", low=0.001, high=1, metavar="SHARE",
    )  # fmt: skip
    workers: int | None = option(
        None, "Images of other sizes: processes that read and decode them; 0: none but this (default: one per core, "
        "at most 8).", low=0,
    )  # fmt: skip
