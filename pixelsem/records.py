"""The records of a manifest: one schema per kind of stage, checked on reading.

Confidences are softmax probabilities in [0, 1] of fp32 logits. Paths are relative, with ``/``.
"""

from __future__ import annotations

from sys import intern
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]  # what arithmetic on tables of them holds
Side = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Byte = Annotated[int, Meta(ge=0, le=255)]
Colour = tuple[Byte, Byte, Byte]
Text = Annotated[str, Meta(min_length=1)]

#: What became of one search: it ran; or it did not, because the model is wrong on the clean image, the
#: region has no pixel, or the mask is flagged as degenerate.
Outcome = Literal["attacked", "misclassified", "empty-region", "flagged-mask"]


class Prediction(Struct, frozen=True):
    """The model's answer on one image, as written: top-1 class, its confidence and the best five."""

    class_: Text = field(name="class")
    confidence: Share
    top5: list[tuple[Text, Share]]


class PredictionAfter(Prediction, frozen=True):
    """The answer on the adversarial image; ``of_before_top5``: [class, confidence, rank (1 = top)] of the old five."""

    of_before_top5: list[tuple[Text, Share, Annotated[int, Meta(ge=1)]]]


class PixelChange(Struct, frozen=True):
    """One changed pixel: column ``x``, row ``y`` (from the top left, 0-based), old and new 8-bit colour."""

    x: Count
    y: Count
    from_: Colour = field(name="from")
    to: Colour = field()


class Review(Struct, frozen=True):
    """What a person decided on a mask; ``flags`` are those it has without the decision."""

    decision: Literal["accepted", "rejected"]
    flags: list[str]


class SegmentRecord(Struct, frozen=True, omit_defaults=True):
    """One segmented image. ``coverage`` is the foreground's share; ``flags`` name what is degenerate.

    ``digests`` are of the pixels of the record's files (:func:`pixelsem.images.pixel_digest`), by field.

    Where a person's ``scribbles`` changed the mask, ``original`` is the one it was before. ``threshold`` is
    the share of 65535 from which a pixel of a ``soft`` mask is foreground; ``class_`` the class whose evidence an
    attention map shows.
    """

    id: Text
    image: Text
    mask: Text
    kind: Literal["binary", "soft", "labels"]
    coverage: Share
    flags: list[str]
    review: Review | None = None
    scribbles: str | None = None
    original: str | None = None
    threshold: Share = 0.5
    class_: Text | None = field(name="class", default=None)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a record unique in its manifest."""
        return (self.id,)


class AttackRecord(Struct, frozen=True, omit_defaults=True):
    """One search: image × region × target × repeat.

    ``queries`` are the candidates that went through the model, ``candidates`` all of them, ``generations``
    includes the initial population. ``region_pixels`` is the region's area, of ``height`` × ``width``.
    A search that did not run has ``outcome`` other than ``attacked`` and zero counts.

    An attack that tries every pixel also says how many are enough alone (``vulnerable_pixels``), how many
    reach which class (``reachable``, without the label and those that no pixel reaches), and where its ``map`` is
    (16 bits, 65535 is a confidence of 1) and its ``overlay``, for people. ``digests`` are of the pixels of the
    record's files (:func:`pixelsem.images.pixel_digest`), by field.

    ``adversarial`` is the image of a success, ``attempt`` the best one of a search that ran and failed, as it was
    scored: what other models are shown of it, and what ``after`` and ``pixels`` are about. None where it was not kept.
    """

    id: Text
    outcome: Outcome
    region: Text
    label: Text
    label_source: Literal["given", "predicted"]
    target: str | None
    repeat: Count
    seed: int
    clean: Text
    mask: str | None
    adversarial: str | None
    history: str | None
    height: Side
    width: Side
    region_pixels: Count
    success: bool
    queries: Count
    candidates: Count
    generations: Count
    before: Prediction
    after: PredictionAfter | None
    pixels: list[PixelChange]
    vulnerable_pixels: Count | None = None
    reachable: dict[Text, Count] | None = None
    map: str | None = None
    overlay: str | None = None
    attempt: str | None = None
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError, in which records that were read are refused, where a part is larger than its whole."""
        if self.region_pixels > self.height * self.width:
            raise ValueError("`region_pixels` are more than the image has")
        if (self.vulnerable_pixels or 0) > self.region_pixels:
            raise ValueError("`vulnerable_pixels` are more than `region_pixels`")

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a record unique in its manifest."""
        return (self.id, self.region, self.target or "", intern(str(self.repeat)))

    @property
    def clean_hash(self) -> int | None:
        """What tells its clean image from others of one name, within this process; None where that is not known."""
        clean = self.digests.get("clean")
        return None if clean is None else hash(clean)


class EpochRecord(Struct, frozen=True, omit_defaults=True):
    """One epoch of training; accuracies are shares of the training images (as trained on) and the test images.

    ``robust_accuracy`` is that of a sample of the test images under attack, ``fgsm_accuracy`` that of the same ones
    under the single step that they are trained with; None where it was not measured.
    """

    epoch: Annotated[int, Meta(ge=1)]
    loss: float
    train_accuracy: Share
    test_accuracy: Share
    seconds: Annotated[float, Meta(ge=0)]
    robust_accuracy: Share | None = None
    fgsm_accuracy: Share | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a record unique in its manifest."""
        return (str(self.epoch),)


class SaliencyEpochRecord(Struct, frozen=True):
    """One epoch of training a segmenter; ``iou`` and ``error`` (mean absolute) of the held-out images, if any."""

    epoch: Annotated[int, Meta(ge=1)]
    loss: float
    iou: Share | None
    error: Share | None
    seconds: Annotated[float, Meta(ge=0)]

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a record unique in its manifest."""
        return (str(self.epoch),)


class PatchRecord(Struct, frozen=True):
    """Training of a patch up to a step; ``loss`` and the share of ``hits`` are means since the record before."""

    step: Annotated[int, Meta(ge=1)]
    loss: float
    hits: Share
    seconds: Annotated[float, Meta(ge=0)]

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a record unique in its manifest."""
        return (str(self.step),)


class DetectionRecord(Struct, frozen=True, omit_defaults=True):
    """One image scored by a detector: ``score`` is the mean vote in [-1, 1], above 0 ``detected`` as adversarial.

    ``kind`` is ``unknown`` for images of no attack. ``image`` is relative to the stage's input ``images``; ``id``,
    ``region``, ``target`` and ``repeat`` are of the attack's record, the latter three only of what it made.
    ``split`` is ``train`` where the detector has learnt from the image or its clean version, so that its score says
    nothing about other images.
    """

    id: Text
    image: Text
    kind: Literal["clean", "adversarial", "unknown"]
    split: Literal["train", "test"]
    score: Annotated[float, Meta(ge=-1, le=1)]
    detected: bool
    region: Text | None = None
    target: Text | None = None
    repeat: Count = 0

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a record unique in its manifest."""
        return (self.id, self.kind, self.region or "", self.target or "", str(self.repeat))


class DefendRecord(Struct, frozen=True, omit_defaults=True):
    """One transformed image, or what became of one search's clean image and its adversarial one.

    ``image`` is the transformed plain or clean image. Of a search of an attack stage, ``adversarial`` is its
    transformed success (None where it had none), ``attempt`` its transformed failure where that was kept; ``region``,
    ``target``, ``repeat`` and ``label`` are the search's, ``outcome`` is what became of it. ``digests`` are of the
    pixels of the record's files (:func:`pixelsem.images.pixel_digest`), by field.
    """

    id: Text
    image: Text
    adversarial: str | None = None
    region: Text | None = None
    target: Text | None = None
    repeat: Count = 0
    label: Text | None = None
    outcome: Outcome | None = None
    attempt: str | None = None
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a record unique in its manifest."""
        return (self.id, self.region or "", self.target or "", str(self.repeat))


Record = SegmentRecord | AttackRecord | EpochRecord | SaliencyEpochRecord | PatchRecord | DetectionRecord | DefendRecord

#: The schema of each kind of stage.
RECORD_TYPES: dict[str, type[Record]] = {
    "segment": SegmentRecord,
    "attack": AttackRecord,
    "train": EpochRecord,
    "train-segment": SaliencyEpochRecord,
    "train-patch": PatchRecord,
    "train-detector": DetectionRecord,
    "detect": DetectionRecord,
    "defend": DefendRecord,
}

#: The fields that hold paths of files in the stage itself.
FILE_FIELDS: dict[str, tuple[str, ...]] = {
    "segment": ("mask", "scribbles", "original"),
    "attack": ("clean", "mask", "adversarial", "attempt", "history", "map", "overlay"),
    "train": (),
    "train-segment": (),
    "train-patch": (),
    "train-detector": (),
    "detect": (),
    "defend": ("image", "adversarial", "attempt"),
}

#: The fields that hold paths relative to the stage or, for ids, to its input.
PATH_FIELDS: dict[str, tuple[str, ...]] = {
    "segment": ("id", "image", "mask", "scribbles", "original"),
    "attack": ("id", "clean", "mask", "adversarial", "attempt", "history", "map", "overlay"),
    "train": (),
    "train-segment": (),
    "train-patch": (),
    "train-detector": ("id", "image"),
    "detect": ("id", "image"),
    "defend": ("id", "image", "adversarial", "attempt"),
}
