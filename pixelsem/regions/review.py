"""A person's eye on the masks of a stage: decisions and scribbles, checked and applied (wang2021 §IV-B).

A page (:mod:`pixelsem.report.review`) shows the masks and exports one JSON file; here it is taken back. All that
a file brings is written into a folder of its own in the stage (``reviews/DIGEST/``) before the manifest, which
alone says what counts, is replaced: a kill leaves the stage as it was or as it shall be, image by image.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType
from numpy.typing import NDArray

from pixelsem.errors import InputError, PixelsemError, StageError
from pixelsem.files import one_line, reason, write_atomically
from pixelsem.images import (
    decode_hints,
    iter_chunks,
    pixel_digest,
    read_hints,
    read_image,
    read_mask,
    resize_mask,
    write_image,
)
from pixelsem.records import Review, SegmentRecord
from pixelsem.regions.grabcut import BLACK, WHITE, grabcut, to_prior
from pixelsem.regions.masks import FolderMasks, coverage_flags, region_of
from pixelsem.regions.registry import Segmenter, open_segmenter
from pixelsem.regions.run import usable_cores
from pixelsem.regions.settings import GrabCutSettings
from pixelsem.sources import file_digest, open_images
from pixelsem.stage import Stage, digest, png_names

FORMAT: Literal["pixelsem-review-1"] = "pixelsem-review-1"

#: What stands first among the flags of a mask that a person rejected.
REJECTED = "rejected in review"

#: Scribbles are drawn on at most this many pixels a side.
DRAWN_SIDE = 2048

#: The files that are taken are at most this large, in bytes.
MAX_BYTES = 256 * 2**20

_PNG = "data:image/png;base64,"

#: Images whose masks are made anew before the manifest is replaced.
_CHUNK = 16

Decision = Literal["accepted", "rejected"]


class ReviewedImage(Struct, forbid_unknown_fields=True):
    """What a person decided on one image; what is left out stays as it is in the stage.

    ``mask`` is the digest (see :func:`mask_digest`) of the mask that the person saw. ``decision`` null takes an
    earlier decision back. ``scribbles`` are a PNG as a data URI, null where earlier ones were cleared.
    """

    id: Annotated[str, Meta(min_length=1, max_length=4096)]
    mask: Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    decision: Decision | UnsetType | None = UNSET
    scribbles: Annotated[str, Meta(max_length=16 * 2**20)] | UnsetType | None = UNSET


class ReviewFile(Struct, forbid_unknown_fields=True):
    """The file that a review page exports; ``stage`` is the identity of the stage it was made of."""

    format: Literal["pixelsem-review-1"]
    stage: str
    images: list[ReviewedImage]


@dataclass
class ReviewSummary:
    """By id: what became of the images, and what is wrong with those that could not be changed."""

    accepted: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    redone: list[str] = field(default_factory=list)
    flagged: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownMask:
    """One image of a stage as it is shown: uint8 [H, W, 3] RGB, and its mask, integers [H, W] of the record's kind."""

    record: SegmentRecord
    image: NDArray[np.uint8] = field(repr=False)
    mask: NDArray[np.integer] = field(repr=False)

    @property
    def foreground(self) -> NDArray[np.bool_]:
        """Where the object is, bool [H, W]."""
        return region_of(self.mask, self.record.kind, "foreground", self.record.threshold)


def load_shown(stage: Stage, record: SegmentRecord, source: Path) -> ShownMask:
    """Read an image (from ``source``) and its mask; raises :class:`InputError` where they do not go together."""
    path = stage.resolve(record.mask)
    image, mask = read_image(source), read_mask(path)
    if mask.shape != image.shape[:2]:
        raise InputError(
            f"{path}: is {mask.shape[1]}×{mask.shape[0]}, its image {source} {image.shape[1]}×{image.shape[0]}; "
            "was the image changed after it was segmented?"
        )
    return ShownMask(record, image, mask)


def mask_digest(stage: Stage, record: SegmentRecord) -> str:
    """Return the first 16 digits of the sha256 of a record's mask file (of a missing one, of nothing)."""
    return (file_digest(stage.resolve(record.mask)) or hashlib.sha256().hexdigest())[:16]


def revision(stage: Stage) -> str:
    """Return a digest of the stage's identity, masks and decisions: another one after every change."""
    shown = {r.id: [mask_digest(stage, r), r.flags, r.review and r.review.decision] for r in stage.segment_records()}
    return digest({"stage": stage.info.identity, "images": shown})


def drawn_size(shape: Sequence[int]) -> tuple[int, int]:
    """Return (height, width) in which an image of ``shape`` is scribbled on: its own, or less where it is large."""
    height, width = shape[0], shape[1]
    factor = min(1.0, DRAWN_SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def can_scribble(record: SegmentRecord) -> bool:
    """Can the mask be made anew from scribbles? Label maps cannot: GrabCut knows two sides only."""
    return record.kind != "labels"


class Scribbles:
    """The scribbles that a stage's masks were made with: of its last review, else of its ``--hints``."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._folder: FolderMasks | None = None
        hints = stage.info.options.get("hints")
        if isinstance(hints, str) and (stage.path / hints).is_dir():
            self._folder = FolderMasks(stage.path / hints)

    def find(self, record: SegmentRecord) -> NDArray[np.uint8] | None:
        """Return grey levels, uint8 [H, W], or None; raises :class:`InputError` where they cannot be read."""
        path = self._stage.resolve(record.scribbles) if record.scribbles is not None else None
        if path is None and self._folder is not None and record.original is None:
            path = self._folder.locate(record.id)
        return None if path is None else read_hints(path)


@dataclass(frozen=True)
class _Change:
    """One image of a checked file: ``scribbles`` are uint8 [H, W] at the mask's size."""

    record: SegmentRecord
    mask: str
    decision: Decision | UnsetType | None
    scribbles: NDArray[np.uint8] | UnsetType | None = field(repr=False)


def read_review(path: Path, stage: Stage) -> tuple[bytes, list[_Change]]:
    """Read and check a whole file of decisions for ``stage``; return its bytes and what it asks for.

    Raises :class:`PixelsemError` naming the file: not JSON, of another form, too large, of another stage, an
    image that the stage does not hold or one twice, scribbles that are no PNG of the size they were drawn in, or
    scribbles on a label map.
    """
    data = _read_bytes(path)
    try:
        asked = msgspec.json.decode(data, type=ReviewFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PixelsemError(f"{path}: not a file of decisions: {one_line(error)}; export it from the page") from error
    if asked.stage != stage.info.identity:
        raise PixelsemError(f"{path}: was made from another stage than {stage.path}")
    records = {record.id: record for record in stage.segment_records()}
    seen: set[str] = set()
    changes = []
    for item in asked.images:
        if item.id not in records:
            raise PixelsemError(f"{path}: {stage.path} has no image {item.id!r}")
        if item.id in seen:
            raise PixelsemError(f"{path}: {item.id!r} is in it twice")
        seen.add(item.id)
        scribbles = _scribbles(item, stage, records[item.id], path)
        changes.append(_Change(records[item.id], item.mask, item.decision, scribbles))
    return data, changes


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PixelsemError(f"{path}: cannot be read: {reason(error)}") from error
    if len(data) > MAX_BYTES:
        raise PixelsemError(f"{path}: over {MAX_BYTES // 2**20} MiB; not a file of decisions")
    return data


def _scribbles(
    item: ReviewedImage, stage: Stage, record: SegmentRecord, file: Path
) -> NDArray[np.uint8] | UnsetType | None:
    """Return what is drawn, 0, 128 and 255 at the size of the mask; None where nothing is."""
    if item.scribbles is UNSET or item.scribbles is None:
        return item.scribbles
    name = f"{file}: the scribbles of {item.id!r}"
    if not can_scribble(record):
        raise PixelsemError(f"{name}: its mask holds labels, which scribbles cannot change")
    if not item.scribbles.startswith(_PNG):
        raise PixelsemError(f"{name}: not a PNG as a data URI")
    try:
        data = base64.b64decode(item.scribbles[len(_PNG) :], validate=True)
    except binascii.Error as error:
        raise PixelsemError(f"{name}: not base64 ({one_line(error)})") from error
    shape = read_mask(stage.resolve(record.mask)).shape
    try:
        drawn = decode_hints(data, name, drawn_size(shape))
    except InputError as error:
        raise PixelsemError(str(error)) from error
    levels = np.full(drawn.shape, 128, np.uint8)
    levels[drawn >= WHITE], levels[drawn <= BLACK] = 255, 0
    return resize_mask(levels, (shape[0], shape[1])).astype(np.uint8) if (levels != 128).any() else None


def apply_review(
    path: Path, stage: Stage, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> ReviewSummary:
    """Apply a file of decisions to ``stage`` (of kind ``segment``).

    An accepted mask loses its flags; a rejected one is flagged, so that attacks leave it out; where there are
    scribbles, GrabCut makes the mask anew: in a stage of ``segment --method grabcut`` as that command with
    ``--hints`` does, elsewhere from the mask that the method found, scribbles being sure. The earlier mask stays
    in the stage. Cleared scribbles bring it back. Masks do not depend on ``workers``.

    The file is checked before anything is changed; see :func:`read_review` for what it raises. It can be applied
    again after an interruption: what is done already stays. An image whose mask is another than the person saw,
    or whose source cannot be read, is noted in the summary. Raises :class:`pixelsem.errors.OutputError` where the
    stage cannot be written. ``progress`` is called with how many masks were made anew, and of how many.
    """
    data, changes = read_review(path, stage)
    summary = ReviewSummary()
    folder = f"reviews/{hashlib.sha256(data).hexdigest()[:12]}"
    work = _Work(stage, folder)
    ready = [change for change in changes if work.fits(change, summary)]
    if ready:
        with write_atomically(stage.path / folder / "decisions.json") as file:
            file.write(data)
    redone = [change for change in ready if work.must_cut(change)]
    plain = [change for change in ready if not work.must_cut(change)]
    _commit(stage, [(change.record, work.decided(change)) for change in plain])
    for count, pairs in enumerate(work.cut(redone, workers or usable_cores(), summary), 1):
        _commit(stage, pairs)
        if progress is not None:
            progress(min(count * _CHUNK, len(redone)), len(redone))
    _note(summary, stage, ready)
    counts = {"flagged": sum(bool(record.flags) for record in stage.segment_records())}
    stage.save(counts=(stage.info.counts or {}) | counts)
    return summary


def _commit(stage: Stage, pairs: list[tuple[SegmentRecord, SegmentRecord]]) -> None:
    changed = [(old, new) for old, new in pairs if old != new]
    if changed:
        stage.replace(changed)


def _note(summary: ReviewSummary, stage: Stage, changes: Sequence[_Change]) -> None:
    """Say in the summary how the images of ``changes`` stand in the stage now."""
    asked = {change.record.id: change for change in changes if change.record.id not in summary.failed}
    for record in stage.segment_records():
        if record.id not in asked:
            continue
        if record.review is not None:
            (summary.accepted if record.review.decision == "accepted" else summary.rejected).append(record.id)
        if isinstance(asked[record.id].scribbles, np.ndarray):
            summary.redone.append(record.id)
        if record.flags:
            summary.flagged[record.id] = "; ".join(record.flags)


def _reviewed(record: SegmentRecord, flags: list[str], decision: Decision | None) -> SegmentRecord:
    """Return the record of a mask with ``flags`` of its own after a person's decision."""
    if decision is None:
        return msgspec.structs.replace(record, flags=flags, review=None)
    shown = [] if decision == "accepted" else [REJECTED, *flags]
    return msgspec.structs.replace(record, flags=shown, review=Review(decision, flags))


class _Work:
    """Applying one file: what it asks, in the words of the manifest."""

    def __init__(self, stage: Stage, folder: str) -> None:
        self._stage, self._folder = stage, folder
        records = list(stage.segment_records())
        self._names = png_names(record.id for record in records)
        self._held = Scribbles(stage)

    def fits(self, change: _Change, summary: ReviewSummary) -> bool:
        """Is the mask the one that the person saw, or what they asked for there already? Else note it."""
        if mask_digest(self._stage, change.record) == change.mask or self._is_done(change):
            return True
        summary.failed[change.record.id] = (
            f"{change.record.id}: its mask was changed after the page was made; make a new page and decide again"
        )
        return False

    def _is_done(self, change: _Change) -> bool:
        return not self.must_cut(change) and (change.scribbles is not UNSET or self.decided(change) == change.record)

    def must_cut(self, change: _Change) -> bool:
        """Does the change ask for another mask than there is?"""
        if change.scribbles is UNSET:
            return False
        if change.scribbles is None:
            return self._held.find(change.record) is not None
        held = self._held.find(change.record) if change.record.scribbles is not None else None
        return held is None or not np.array_equal(held, change.scribbles)

    def decided(self, change: _Change) -> SegmentRecord:
        """Return the record with the decision, the mask being as it is."""
        record = change.record
        if change.decision is UNSET:
            return record
        return _reviewed(record, record.review.flags if record.review else record.flags, change.decision)

    def cut(
        self, changes: Sequence[_Change], workers: int, summary: ReviewSummary
    ) -> Iterator[list[tuple[SegmentRecord, SegmentRecord]]]:
        """Yield the old and new records of some images at a time; their masks are written."""
        if not changes:
            return
        for change in changes:  # all of them first: GrabCut takes them from the folder
            levels = change.scribbles
            if isinstance(levels, np.ndarray):
                write_image(self._stage.path / self._scribbles(change), levels)
        sources = {item.id: item.path for item in open_images(self._stage.path).items}
        segmenter = self._segmenter(changes)
        with ThreadPoolExecutor(workers, thread_name_prefix="review") as pool:
            for chunk in iter_chunks(len(changes), _CHUNK):
                some = changes[chunk]
                futures = [pool.submit(self._cut_one, change, sources, segmenter) for change in some]
                pairs = []
                for change, future in zip(some, futures, strict=True):
                    try:
                        pairs.append((change.record, future.result()))
                    except InputError as error:
                        summary.failed[change.record.id] = str(error)
                yield pairs

    def _scribbles(self, change: _Change) -> str:
        return f"{self._folder}/scribbles/{self._names[change.record.id]}"

    def _segmenter(self, changes: Sequence[_Change]) -> Segmenter | None:
        """Return the method of a GrabCut stage with the new scribbles; None for a stage of another method."""
        if self._stage.info.options.get("method") != "grabcut":
            return None
        settings = _settings(self._stage)
        drawn = [change.record.id for change in changes if isinstance(change.scribbles, np.ndarray)]
        hints = self._stage.path / self._folder / "scribbles" if drawn else None
        return open_segmenter("grabcut", dataclasses.replace(settings, hints=hints), drawn)

    def _cut_one(self, change: _Change, sources: Mapping[str, Path], segmenter: Segmenter | None) -> SegmentRecord:
        record, levels = change.record, change.scribbles
        first = record.original or record.mask
        values: NDArray[np.integer]
        if levels is None and record.original is not None:
            values = read_mask(self._stage.resolve(first))
            new = msgspec.structs.replace(record, mask=first, scribbles=None, original=None)
        else:
            shown = load_shown(self._stage, record, sources[record.id])
            if segmenter is not None:
                (values,) = segmenter([shown.image], [record.id])
            else:
                values = self._from_prior(shown, first, levels)
            mask = f"{self._folder}/masks/{self._names[record.id]}"
            write_image(self._stage.path / mask, values)
            scribbles = self._scribbles(change) if isinstance(levels, np.ndarray) else None
            new = msgspec.structs.replace(record, mask=mask, scribbles=scribbles, original=first)
        coverage = float(region_of(values, record.kind, "foreground", record.threshold).mean())
        new = msgspec.structs.replace(new, coverage=coverage, digests={"mask": pixel_digest(values)})
        decision = (record.review.decision if record.review else None) if change.decision is UNSET else change.decision
        return _reviewed(new, coverage_flags(coverage), decision)

    def _from_prior(self, shown: ShownMask, first: str, levels: object) -> NDArray[np.integer]:
        """Cut from the mask that the method found; integers [H, W] of the record's kind."""
        kind, threshold = shown.record.kind, shown.record.threshold
        prior = region_of(read_mask(self._stage.resolve(first)), kind, "foreground", threshold)
        try:
            inside = cut_from(shown.image, prior, levels) if isinstance(levels, np.ndarray) else prior
        except InputError as error:
            raise InputError(f"{shown.record.id}: {error}") from error
        # A soft mask stays one, so that a stage's masks are of one kind: sure everywhere, at any threshold.
        if kind == "soft":
            return np.where(inside, 65535, 0).astype(np.uint16)
        return np.where(inside, 255, 0).astype(np.uint8)


def cut_from(
    image: NDArray[np.uint8], prior: NDArray[np.bool_], scribbles: NDArray[np.uint8], *, upscale: int = 192
) -> NDArray[np.bool_]:
    """Return the foreground, bool [H, W], that GrabCut finds from a mask and scribbles.

    ``image`` is uint8 [H, W, 3] RGB; ``prior`` (bool [H, W]) is what probably is foreground, the rest probably is
    not; ``scribbles`` (uint8 [H, W]) are sure: white (see :data:`pixelsem.regions.grabcut.WHITE`) as foreground,
    black as background. Where nothing is foreground, so it stays. Raises :class:`InputError` where nothing is
    background.
    """
    white, black = scribbles >= WHITE, scribbles <= BLACK
    if ((prior | white) & ~black).all():
        raise InputError("its mask is the whole image: draw some background, too")
    settings = GrabCutSettings(init="saliency", upscale=upscale)  # any start from a mask
    found = grabcut(image, settings, scribbles, to_prior(prior.astype(np.uint8), "binary"))
    # Sure whatever rounding the enlarged size took.
    return np.asarray((found | white) & ~black)


def _settings(stage: Stage) -> GrabCutSettings:
    """Return the settings that a GrabCut stage was made with; raises :class:`StageError` where they make no sense."""
    known = {field.name for field in dataclasses.fields(GrabCutSettings)} - {"hints"}
    given: dict[str, Any] = {n: v for n, v in stage.info.options.items() if n in known and v is not None}
    try:
        settings = GrabCutSettings.from_dict(given)
        # Paths are noted as seen from the stage.
        paths: dict[str, Any] = {n: stage.path / v for n, v in vars(settings).items() if isinstance(v, Path)}
        return dataclasses.replace(settings, **paths)
    except PixelsemError as error:
        raise StageError(f"{stage.path}: its options are no settings of GrabCut: {error}") from error
