"""Settings of qian2021's attack and of the white-box baselines it is compared with. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pixelsem.attacks.settings import AttackSettings
from pixelsem.errors import PixelsemError
from pixelsem.settings import option

#: Default ε and α by norm, in units of 0 to 255: qian2021 §IV-D; for L2, where it gives none, 0.5 in units of 0 to 1.
_EPSILON = {"linf": 16.0, "l2": 128.0}
_STEP = {"linf": 2.0}


@dataclass(frozen=True)
class CfrSettings(AttackSettings):
    """Perturbations of contributing feature regions (qian2021 §III, Algorithm 1)."""

    tau: float = option(
        0.2, "Only pixels with at least this share of the highest attention of the class change (Eq. 6).", low=0,
        high=1, metavar="τ",
    )  # fmt: skip
    mask_norm: Literal["max", "sum"] = option(
        "max", "What the attention is divided by: its maximum; or its sum, which is Eq. 6 to the letter and makes the "
        "step so small that nothing survives rounding to 8 bits.",
    )  # fmt: skip
    temperature: float = option(0.1, "Inverse temperature T (Eq. 8).", low=1e-6, metavar="T")
    beta: float = option(1.0, "Weight β of 1/‖change‖₂, for changes in units of 0 to 1 (Eq. 7).", low=0, metavar="β")
    eta: float | None = option(
        None, "Step size η of the gradient descent (default: 10, and 20 for inputs of more than 64×64 pixels, as the "
        "paper takes for CIFAR-10 and ImageNet).", low=0, metavar="η",
    )  # fmt: skip
    steps: int = option(20, "Steps N.", low=1, high=100_000)
    init: Literal["grey", "noise"] = option(
        "grey", "Where δ starts, 0 being excluded by Eq. 7: one level of 255 brighter everywhere, or noise of up to "
        "one level, drawn anew for every repeat.",
    )  # fmt: skip
    layer: str | None = option(
        None, "The module whose feature map the attention is taken from (default: the last convolution's, after its "
        "activation).", metavar="NAME",
    )  # fmt: skip
    early_stop: bool = option(
        False, "End a search with its first confirmed hit. The paper runs all steps: the first go too far, and later "
        "ones make the change smaller.",
    )  # fmt: skip

    @property
    def draws(self) -> bool:
        """Only noise that δ starts as is drawn at random."""
        return self.init == "noise"

    @property
    def budget(self) -> int:
        """How many queries one search takes at most."""
        return self.steps

    def eta_for(self, height: int, width: int) -> float:
        """Return the step size η for inputs of this size."""
        if self.eta is not None:
            return self.eta
        return 20.0 if height * width > 64 * 64 else 10.0


@dataclass(frozen=True)
class AscentSettings(AttackSettings):
    """Steps along the gradient of the loss, projected back into a ball around the image."""

    epsilon: float | None = option(
        None, "Budget ε in units of 0 to 255: what a value may change by (default: 16).", low=0, metavar="ε"
    )
    step: float | None = option(None, "Step size α in units of 0 to 255 (default: 2).", low=0, metavar="α")
    steps: int = option(20, "Steps per start.", low=1, high=100_000)
    early_stop: bool = option(False, "End a search with its first confirmed hit; the paper runs all steps.")

    @property
    def norm(self) -> Literal["linf", "l2"]:
        """Which norm of the change the budget binds."""
        return "linf"

    @property
    def restarts(self) -> int:
        """How many starts there are."""
        return 1

    @property
    def random_start(self) -> bool:
        """Is the first image drawn at random?"""
        return False

    @property
    def draws(self) -> bool:
        """Only a random start is drawn at random."""
        return self.random_start

    @property
    def budget(self) -> int:
        """How many queries one search takes at most: the steps, and the score of every 8-bit result."""
        return self.restarts * (self.steps + 1)

    @property
    def radius(self) -> float:
        """The budget ε in units of 0 to 255."""
        return _EPSILON[self.norm] if self.epsilon is None else self.epsilon

    @property
    def stride(self) -> float:
        """The step size α in units of 0 to 255; 2.5 ε / steps where the paper has none, as Madry et al. take."""
        if self.step is not None:
            return self.step
        return _STEP.get(self.norm, 2.5 * self.radius / self.steps)

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a budget that no 8-bit change fits in."""
        super().check()
        if self.radius < 1:
            raise PixelsemError(f"--epsilon: {self.radius:g} of 255 is less than one step of an 8-bit value")


@dataclass(frozen=True)
class PgdSettings(AscentSettings):
    """Projected gradient descent (Madry et al. 2018), as qian2021 §IV-D sets it."""

    epsilon: float | None = option(
        None, "Budget ε in units of 0 to 255: with linf what a value may change by (default: 16), with l2 the length "
        "of the whole change (default: 128, which is 0.5 in units of 0 to 1).", low=0, metavar="ε",
    )  # fmt: skip
    step: float | None = option(
        None, "Step size α in units of 0 to 255 (default: 2; with l2 2.5·ε/steps).", low=0, metavar="α"
    )
    norm: Literal["linf", "l2"] = option("linf", "Which norm of the change the budget binds.")
    random_start: bool = option(True, "Start anywhere in the ball, drawn at random, not at the clean image.")
    restarts: int = option(
        1, "Starts, of which the best counts: a hit rather than none, then the highest loss. --early-stop begins no "
        "other after a hit.", low=1,
    )  # fmt: skip

    def check(self) -> None:
        """Raise :class:`PixelsemError` for restarts that would all be the same."""
        super().check()
        if self.restarts > 1 and not self.random_start:
            raise PixelsemError("--restarts goes with a random start; without one all would be the same")


@dataclass(frozen=True)
class MDi2FgmSettings(AscentSettings):
    """Iterative fast gradient sign method with momentum and diverse inputs (Xie et al. 2019)."""

    probability: float = option(
        0.5, "Share of the steps for which the image is resized and padded at random.", low=0, high=1, metavar="p"
    )
    momentum: float = option(
        1.0, "Decay μ of the gradients before, each divided by its L1 norm; 0: DI²-FGSM.", low=0, metavar="μ"
    )
    resize_rate: float = option(
        0.9, "Sizes between the input's side S and S·rate. Below 1 the shrunk image is padded back to S, which any "
        "model takes; above 1 the enlarged one is padded to S·rate, as Xie et al. do (330/299).", low=0.1, high=4,
    )  # fmt: skip

    @property
    def draws(self) -> bool:
        """Only sizes and places of resized images are drawn at random; a rate of 1 leaves no choice of them."""
        return self.probability > 0 and self.resize_rate != 1

    @property
    def budget(self) -> int:
        """How many queries one search takes at most; --early-stop scores the plain image at each step."""
        return self.steps * (2 if self.early_stop else 1) + 1


@dataclass(frozen=True)
class CarliniWagnerSettings(AttackSettings):
    """Carlini and Wagner's L2 attack (2017), as qian2021 §IV-D sets it."""

    c: float = option(
        1.0, "Weight c of the prediction against the squared L2 norm of the change, which is in units of 0 to 1.",
        low=1e-10, high=1e10,
    )  # fmt: skip
    lr: float = option(0.01, "Learning rate of Adam.", low=0)
    steps: int = option(1000, "Iterations for each c.", low=1, high=1_000_000)
    binary_search_steps: int = option(
        1, "Values of c that are tried: tenfold until the first hit, then halving the interval. 1: --c alone.", low=1,
        high=30,
    )  # fmt: skip
    kappa: float = option(
        0.0, "Confidence κ: by how much the logit of the wrong class must exceed all others.", low=0, metavar="κ"
    )
    rounding: Literal["during", "after"] = option(
        "during", "during: the model sees every candidate as it would be written, in 8 bits (gradients pass through "
        "the rounding); after: the search is in real numbers, as published, and what it finds is rounded at the end, "
        "which undoes part of the hits.",
    )  # fmt: skip
    early_stop: bool = option(
        False, "Give a value of c up when the loss has not fallen by 0.01 % within a tenth of the iterations."
    )

    @property
    def draws(self) -> bool:
        """Nothing is drawn at random."""
        return False

    @property
    def budget(self) -> int:
        """How many queries one search takes at most."""
        return self.steps * self.binary_search_steps


#: Madry et al. 2018, CIFAR-10: the setting they train with, and the longer one they attack with (Table 2).
PGD_PRESETS: dict[str, dict[str, Any]] = {
    "madry2018": {"norm": "linf", "epsilon": 8.0, "step": 2.0, "steps": 7, "random_start": True},
    "madry2018-20": {"norm": "linf", "epsilon": 8.0, "step": 2.0, "steps": 20, "random_start": True},
}

#: Xie et al. 2019: Inception's 299 pixels become up to 330.
M_DI2_FGSM_PRESETS: dict[str, dict[str, Any]] = {
    "xie2019": {
        "epsilon": 15.0, "step": 1.0, "steps": 19, "probability": 0.5, "momentum": 1.0, "resize_rate": 330 / 299,
    },
}  # fmt: skip

#: Carlini and Wagner 2017: the defaults of the authors' program.
CW_PRESETS: dict[str, dict[str, Any]] = {
    "carlini2017": {
        "c": 0.001, "lr": 0.01, "steps": 10_000, "binary_search_steps": 9, "kappa": 0.0, "early_stop": True,
    },
}  # fmt: skip
