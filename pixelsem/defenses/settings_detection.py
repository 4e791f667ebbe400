"""Options of the steganalysis detector. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pixelsem.settings import Settings, option

FeatureKind = Literal["spam", "srmq1", "srm"]
Channels = Literal["separate", "mean", "luma"]

#: How colour is used where nothing else is asked: rich models take seconds per plane, so that one plane is enough.
DEFAULT_CHANNELS: dict[FeatureKind, Channels] = {"spam": "separate", "srmq1": "luma", "srm": "luma"}


@dataclass(frozen=True)
class FeatureSettings(Settings):
    """What a detector looks at."""

    features: FeatureKind = option(
        "spam",
        "What is measured in every image: spam (686 numbers per channel), srm (34,671; seconds per channel) or srmq1 "
        "(12,753; one quantizer per residual). The latter two need pixelsem[steganalysis].",
    )
    channels: Channels | None = option(
        None,
        "Colour: red, green and blue one after another (separate), their mean, or of the luma alone (default: "
        "separate for spam, luma for srm and srmq1). dong2020 does not say.",
    )

    @property
    def combination(self) -> Channels:
        """How the channels are combined."""
        return self.channels or DEFAULT_CHANNELS[self.features]


@dataclass(frozen=True)
class EnsembleSettings(Settings):
    """How an ensemble of Fisher linear discriminants is trained (Kodovský et al. 2012)."""

    learners: int | None = option(
        None,
        "Number of discriminants (default: until the out-of-bag error has settled); made odd, so that votes cannot "
        "tie. 1: a single one of all images, and of all features unless --subspace says otherwise.",
        low=1,
        high=2001,
    )
    subspace: int | None = option(
        None,
        "Features that each discriminant takes, at random (default: searched by the out-of-bag error).",
        low=1,
        metavar="D",
    )
    ridge: float = option(
        1e-2,
        "Added to the covariance's diagonal, in units of a feature's variance: the more, the fewer images there are "
        "(1e-10 hardly more than inverting it takes, as Kodovský et al. do).",
        low=1e-10,
        high=1e3,
    )
    seed: int = option(0, "Seed of the split, the subspaces and the bootstrap samples.", low=0)


@dataclass(frozen=True)
class SplitSettings(Settings):
    """Which pairs of an attack are trained on."""

    region: str | None = option(None, "Take the attack's images of this region alone (default: of all it has).")
    attempts: bool = option(
        False, "Take also the images that did not fool the model, where the attack kept them: what it changed is there "
        "all the same.", flag="--attempts",
    )  # fmt: skip
    sample: int | None = option(
        None, "Take N of the images, drawn by --seed, each with all that was made of it (default: all).", low=2,
        metavar="N",
    )  # fmt: skip
    test_share: float = option(
        0.5, "Share of the images held out for the test; a clean image and all that was made of it stay together.",
        low=0.05, high=0.95,
    )  # fmt: skip
