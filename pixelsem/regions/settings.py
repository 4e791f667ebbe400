"""Settings of the segmentation methods. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pixelsem.errors import PixelsemError
from pixelsem.models.settings import ModelOptions
from pixelsem.settings import MOST_SEED, Settings, option


@dataclass(frozen=True)
class GrabCutSettings(Settings):
    """GrabCut (Rother et al. 2004), as wang2021 uses it on CIFAR-10 (§III-B, §IV-B)."""

    init: Literal["rect", "center-prior", "saliency"] = option(
        "rect", "What the cut starts from: rect, what is in the rectangle; center-prior, an ellipse in the rectangle; "
        "saliency, what method u2netp finds.",
    )  # fmt: skip
    prior: Path | None = option(
        None, "Masks to start from, in place of --init: a folder with names as the images', or a stage. Soft masks "
        "say how likely each pixel is object.", metavar="DIR",
    )  # fmt: skip
    rect: tuple[float, float, float, float] | None = option(
        None, "Rectangle that holds the object, in pixels, or in fractions of the image where all are at most 1 "
        "(default: the image without a border of --margin).", metavar="X,Y,W,H",
    )  # fmt: skip
    margin: float | None = option(
        None, "Width of the border taken as background, as a fraction of each side (default: 0.04; none where masks "
        "say where to start).", low=0.0, high=0.49,
    )  # fmt: skip
    iterations: int = option(5, "Rounds of learning the colour models and cutting.", low=1, high=1000)
    # 192: the best of 128 to 256 on photos of known masks shrunk to 32×32. The smoothness term (Eq. 8) grows with
    # the outline and the data term with the area, so that on tiny images the cheapest cut is often nothing.
    upscale: int = option(
        192, "Enlarge an image whose shorter side is under N pixels to N for the cut; 0: never.", low=0, high=4096,
        metavar="N",
    )  # fmt: skip
    hints: Path | None = option(
        None, "Folder of scribbles named as the images: white is object, black is background, mid-grey is open.",
        metavar="DIR",
    )  # fmt: skip

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a rectangle that holds no pixel of any image, and for two starts."""
        if self.prior is not None and self.init != "rect":
            raise PixelsemError(f"--prior and --init {self.init}: the cut starts from one of them")
        if self.from_mask and (self.rect is not None or self.margin is not None):
            start = "--prior" if self.prior is not None else f"--init {self.init}"
            raise PixelsemError(f"--{'margin' if self.rect is None else 'rect'} has no effect with {start}")
        if self.rect is None:
            return
        x, y, width, height = self.rect
        if not (x >= 0 and y >= 0 and width > 0 and height > 0):
            raise PixelsemError(f"rect: {_join(self.rect)} is not X,Y,W,H with X, Y of at least 0 and W, H over 0")

    @property
    def from_mask(self) -> bool:
        """Does the cut start from a soft mask, not from a rectangle?"""
        return self.prior is not None or self.init == "saliency"


@dataclass(frozen=True)
class SaliencySettings(Settings):
    """U²-Net (Qin et al. 2020), as wang2021 uses it (§III-B, §IV-B)."""

    weights: Path | None = option(
        None, "The network's weights: the authors' .pth or what `segment train` wrote (default: u2netp's own; u2net's "
        "are downloaded).", metavar="FILE",
    )  # fmt: skip
    input_size: int | None = option(
        None, "Side of the square that the network sees, in pixels (default: what the weights were trained for, 320 "
        "where they do not say).", low=1,
    )  # fmt: skip
    precision: Literal["fp32", "bf16"] = option("fp32", "Arithmetic of the network (autocast).")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    batch_size: int = option(8, "Images per pass through the network; changes the speed only.", low=1)


#: Networks that the rembg project releases as ONNX files.
RembgNetwork = Literal[
    "u2net", "u2netp", "u2net_human_seg", "silueta", "isnet-general-use", "isnet-anime", "birefnet-general",
    "birefnet-general-lite", "birefnet-portrait", "birefnet-dis", "birefnet-hrsod", "birefnet-cod",
    "birefnet-massive", "bria-rmbg",
]  # fmt: skip


@dataclass(frozen=True)
class RembgSettings(Settings):
    """The networks of the rembg project, run by ONNX Runtime."""

    network: RembgNetwork = option(
        "u2net", f"Network, downloaded at its first use: {', '.join(get_args(RembgNetwork))}.", metavar="NAME"
    )
    weights: Path | None = option(
        None, "An ONNX file for --network, in place of the download: float32 images in, maps out.", metavar="FILE"
    )
    input_size: int | None = option(
        None, "Side of the square that the network sees, in pixels (default: the network's own).", low=1
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    batch_size: int = option(8, "Images per pass through the network; changes the speed only.", low=1)


@dataclass(frozen=True)
class SaliencyTrainSettings(Settings):
    """How U²-Net is trained: AdamW, a constant learning rate with a short end, the average of the weights kept."""

    epochs: int = option(60, "Passes over the training images.", low=1)
    cooldown: int = option(10, "Last epochs, in which the learning rate falls to zero along a cosine.", low=0)
    batch: int = option(8, "Images per step.", low=2)
    size: int = option(128, "Side of the squares that the network sees, in pixels.", low=32, high=1024)
    lr: float = option(1e-3, "Peak learning rate.", low=0)
    warmup: int = option(100, "Steps in which the learning rate rises to its peak.", low=0)
    weight_decay: float = option(1e-4, "Decay of the weights (AdamW).", low=0)
    average: float = option(0.998, "Decay of the running average of the weights, per step; 0: no average.",
                            low=0, high=0.99999)  # fmt: skip
    crop: float = option(0.6, "Smallest side of a random crop, as a fraction of the image's; 1: no crops.",
                         low=0.1, high=1)  # fmt: skip
    turn: float = option(10.0, "Images are turned by up to this many degrees.", low=0, high=180)
    colour: float = option(0.3, "Brightness, contrast, saturation and balance change by up to this share.",
                           low=0, high=1)  # fmt: skip
    paste: float = option(0.25, "Share of the images that get the object of another one pasted in.", low=0, high=1)
    precision: Literal["fp32", "bf16"] = option("bf16", "Arithmetic of the forward pass (autocast).")
    hold_out: int = option(0, "Images drawn by --seed that are not trained on but measured on.", low=0, metavar="N")
    seed: int = option(
        0, "Seed of the initial weights, the images held out, the order and all changes.", low=0, high=MOST_SEED
    )


def _compactness(default: float) -> float:
    chosen: float = option(
        default, "How much nearness weighs against colour. slic: the p of dong2020's Eq. 1, a distance of S pixels "
        "counts as p in CIELAB; lsc: the ratio of nearness to colour.", low=1e-6, high=1e6,
    )  # fmt: skip
    return chosen


@dataclass(frozen=True)
class SuperpixelSettings(Settings):
    """What the superpixel methods share (dong2020 §3.3)."""

    # 5: the most robust of 2 to 8 in dong2020 (§4.4, Figure 8a).
    size: int = option(
        5, "Grid interval: superpixels are of about S×S pixels before they are merged.", low=2, high=4096, metavar="S"
    )
    iterations: int = option(10, "Rounds of moving pixels between superpixels.", low=1, high=1000)
    merge_threshold: float = option(
        0.0, "Make neighbouring superpixels one where their mean CIELAB colours (L of 0 to 100) differ by less than "
        "β, and so on from neighbour to neighbour; 0: never. dong2020 compares 0, 2 and 4.", low=0.0, metavar="β",
    )  # fmt: skip


@dataclass(frozen=True)
class SlicSettings(SuperpixelSettings):
    """SLIC (Achanta et al. 2012), dong2020's default (§3.3, Eq. 1)."""

    # 10: what Achanta et al. take for CIELAB; dong2020 names no p.
    compactness: float = _compactness(10.0)


@dataclass(frozen=True)
class LscSettings(SuperpixelSettings):
    """LSC (Li and Chen 2015), compared in dong2020 §4.4."""

    compactness: float = _compactness(0.075)


@dataclass(frozen=True)
class SeedsSettings(SuperpixelSettings):
    """SEEDS (Van den Bergh et al. 2012), compared in dong2020 §4.4."""

    levels: int = option(
        2, "Levels of the blocks that move between superpixels, each of half the side of those above; the grid "
        "interval is rounded to a multiple of 2^(levels-1).", low=2, high=10,
    )  # fmt: skip
    bins: int = option(5, "Bins per channel of the colour histograms.", low=2, high=16)
    smoothness: int = option(2, "How much smooth outlines are preferred.", low=0, high=5)


@dataclass(frozen=True)
class CamSettings(ModelOptions):
    """Class activation (dong2020 §3.2) and Grad-CAM (qian2021 §III-C) of any classifier."""

    labels: str = option(
        "auto",
        "The class whose evidence is shown: given (the image's class folder), predicted, FILE.csv (id,class), or "
        "auto: given where the folder names a class, else predicted.",
        metavar="given|predicted|FILE.csv",
    )
    layer: str | None = option(
        None, "The module whose feature map is looked at (default: the last convolution's, after its activation; for "
        "cam the map that is pooled).", metavar="NAME",
    )  # fmt: skip
    # 4/12: the best of 0 to 11/12 in dong2020 (§4.4, Figure 8b).
    threshold: float = option(
        4 / 12, "Foreground is what has at least this share of the map's maximum (φ of dong2020).", low=0, high=1,
        metavar="φ",
    )  # fmt: skip
    tau: float = option(
        0.0, "Set what has less than this share of the map's maximum to zero in the soft mask (τ of qian2021, who "
        "takes 0.2).", low=0, high=1, metavar="τ",
    )  # fmt: skip
    resize: Literal["crop", "squash"] = option(
        "crop", "How an image reaches the model's resolution: the model's own resize and crop (what lies outside of "
        "the crop is background), or squashed.",
    )  # fmt: skip
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    batch_size: int = option(16, "Images per pass through the network; changes the speed only.", low=1)


def _join(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
