"""Settings of the attacks. Imports nothing heavy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings, option

Strategy = Literal[
    "rand1bin", "best1bin", "rand2bin", "best2bin", "randtobest1bin", "currenttobest1bin",
    "rand1exp", "best1exp", "rand2exp", "best2exp", "randtobest1exp", "currenttobest1exp",
]  # fmt: skip


@dataclass(frozen=True)
class AttackSettings(Settings, ABC):
    """Base of the settings of every attack."""

    @property
    @abstractmethod
    def budget(self) -> int:
        """How many queries one search takes at most."""

    def budget_in(self, pixels: int) -> int:
        """How many queries one search takes at most in a region of so many pixels."""
        return self.budget

    @property
    def draws(self) -> bool:
        """Does what a search finds depend on random numbers? Without any, repeats and seeds are all alike."""
        return True

    @property
    def mask_inputs(self) -> Mapping[str, Path]:
        """Folders and stages of masks that settings name, by field: they count by what they hold."""
        return {}


@dataclass(frozen=True)
class EvolutionSettings(AttackSettings):
    """Differential evolution itself, whatever it minimises (wang2021 §III-C, Eqs. 10–13)."""

    population: int = option(400, "Candidates per generation.", low=6, high=1_000_000)
    generations: int = option(100, "Generations at most, the initial population included.", low=1)
    strategy: Strategy = option("rand1bin", "Base vector, difference vectors and crossover (Eq. 11 is rand/1).")
    mutation: tuple[float, float] = option((0.5, 1.0), "Range of F, drawn anew every generation.", low=0, high=2)
    crossover: float = option(0.7, "Crossover constant CR (Eq. 13); 1 for no crossover.", low=0, high=1)
    init: Literal["lhs", "uniform", "su"] = option(
        "lhs", "Initial population: Latin hypercube, uniform, or su2017's (colours from N(128, 127))."
    )
    out_of_range: Literal["resample", "clip", "reflect"] = option(
        "resample", "What becomes of a gene that leaves its range."
    )

    @property
    def budget(self) -> int:
        """How many queries one search takes at most."""
        return self.population * self.generations

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a range of F that is the wrong way round."""
        if self.mutation[0] > self.mutation[1]:
            raise PixelsemError(f"--mutation: {self.mutation[0]} is above {self.mutation[1]}")


@dataclass(frozen=True)
class DESettings(EvolutionSettings):
    """Few-pixel attack by differential evolution over (x, y, r, g, b) × K pixels (wang2021 §III-D, su2017)."""

    pixels: int = option(1, "Pixels that may change.", low=1, high=64)
    constraint: Literal["encode", "revert"] = option(
        "encode",
        "How the region binds: encode snaps every candidate to its nearest pixel in the region; revert searches "
        "the whole image and undoes changes outside (Eqs. 17 and 18), which costs no query.",
    )
    early_stop: bool = option(True, "End a search with its first confirmed hit; --no-early-stop runs all generations.")
    stop: Literal["hit", "confidence"] = option(
        "hit", "What ends a search: a changed prediction, or su2017's confidences (--stop-target, --stop-true)."
    )
    stop_target: float = option(0.9, "With --stop confidence: the target's confidence that ends it.", low=0, high=1)
    stop_true: float = option(0.05, "With --stop confidence: the label's confidence that ends it.", low=0, high=1)

    def check(self) -> None:
        """Raise :class:`PixelsemError` for options that would have no effect."""
        super().check()
        if self.stop == "hit" and (self.stop_target, self.stop_true) != (0.9, 0.05):
            raise PixelsemError("--stop-target and --stop-true go with --stop confidence")
        if self.stop == "confidence" and not self.early_stop:
            raise PixelsemError("--stop confidence ends searches early; it cannot go with --no-early-stop")


#: Named settings of the papers; each replaces defaults, and options on the command line replace these.
DE_PRESETS: dict[str, dict[str, Any]] = {
    "wang2021": {
        "population": 400, "generations": 100, "strategy": "rand1bin", "mutation": (0.5, 1.0), "crossover": 0.7,
        "init": "lhs", "constraint": "revert", "stop": "hit",
    },
    "su2017": {
        "population": 400, "generations": 100, "strategy": "rand1bin", "mutation": (0.5, 0.5), "crossover": 1.0,
        "init": "su", "constraint": "revert", "stop": "confidence", "stop_target": 0.9, "stop_true": 0.05,
    },
}  # fmt: skip


@dataclass(frozen=True)
class RegionOptions(Settings):
    """Where an attack may change pixels."""

    region: str = option(
        "original",
        "original (every pixel), foreground, background, all (each of the three), or label:N of a label map.",
    )
    masks: Path | None = option(None, "Masks: a segmentation stage, or a folder with the images' relative names.")
    match_area: bool = option(
        False, "Reduce foreground and background to the same number of pixels, drawn by the seed.", flag="--match-area"
    )
    grow: int = option(0, "Move the foreground's border outwards by N pixels.", low=0)
    shrink: int = option(0, "Move the foreground's border inwards by N pixels.", low=0)
    flagged: Literal["skip", "use"] = option("skip", "What to do with masks that were flagged as degenerate.")
    resize: Literal["crop", "squash"] = option(
        "crop", "How an image reaches the model's resolution: the model's own resize and crop, or squashed (wang2021)."
    )

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a region that is none, or for options that contradict each other."""
        name, _, number = self.region.partition(":")
        if self.region not in ("original", "foreground", "background", "all") and not (
            name == "label" and number.isdecimal() and len(number) < 10
        ):
            raise PixelsemError(f"--region: {self.region!r} is none of original, foreground, background, all, label:N")
        if self.grow and self.shrink:
            raise PixelsemError("--grow and --shrink exclude each other")
        if self.region == "original" and self.masks is not None:
            raise PixelsemError("--masks goes with another --region than original, which is every pixel")
        if self.region == "original" and (self.grow or self.shrink):
            raise PixelsemError("--grow and --shrink move a mask's border; --region original has none")
        if self.match_area and self.region not in ("foreground", "background", "all"):
            raise PixelsemError(f"--match-area goes with --region foreground, background or all, not {self.region}")

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions that are attacked, one after the other."""
        return ("original", "foreground", "background") if self.region == "all" else (self.region,)


@dataclass(frozen=True)
class GoalOptions(Settings):
    """What an attack is after, and how often."""

    labels: str = option(
        "auto",
        "The class attacked away from: given (the image's class folder), predicted, FILE.csv (id,class), or auto: "
        "given where the folder names a class, else predicted.",
        metavar="given|predicted|FILE.csv",
    )
    targeted: bool = option(False, "Attack towards a class: every other one in turn, or --target.", flag="--targeted")
    target: str | None = option(None, "The class to reach (implies --targeted).")
    repeats: int = option(
        1, "Independent searches per image, region and target, of an attack that draws at random.", low=1
    )
    time_limit: float | None = option(None, "Stop cleanly after so many seconds; the same command goes on.", low=0)
    attempts: bool = option(
        True,
        "Keep the images of searches that failed too, in attempts/: other models are shown them (evaluate transfer).",
    )


@dataclass(frozen=True)
class DeviceOptions(Settings):
    """How the model is run; changes the speed, and only ``precision`` may change results."""

    device: str = option(
        "auto",
        "auto, cpu, cuda, cuda:N; all (every CUDA device) or a list such as cuda:0,cuda:1: one process on each.",
        metavar="NAME[,NAME…]",
    )
    workers: int | None = option(
        None, "Threads that read and prepare images, per device (default: one per processor core, 4 at most).", low=1
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = option(
        "fp32", "Arithmetic of the search; success is always decided in fp32 on the written file."
    )
    batch_size: int | None = option(None, "Images per forward pass (default: what suits the device).", low=1)
    in_flight: int = option(64, "Searches that run in lock-step.", low=1)


@dataclass(frozen=True)
class EvaluatorOptions(DeviceOptions):
    """How the candidates of black-box attacks are scored."""

    batch_size: int | None = option(None, "Candidates per forward pass (default: found by trying).", low=1)
    evaluator: Literal["auto", "dense", "incremental"] = option(
        "auto",
        "dense runs the whole network on every candidate; incremental computes only what the changed pixels reach; "
        "auto measures once per model and device which is faster.",
    )
    explain: bool = option(
        False, "Show how candidates would be scored, node by node, and attack nothing.", flag="--explain"
    )
