"""Keep one part of a finished attack's noise, and see what it does alone (dong2020, §3.2 and Fig. 2).

What is a success is decided as for every attack: the top-1 of the written 8-bit file, read back, in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pixelsem.attacks.random import generator
from pixelsem.engine.attacking import changed_pixels, describe, describe_after
from pixelsem.engine.scoring import fp32_logits, is_success, write_scored
from pixelsem.engine.shards import Shard, take
from pixelsem.errors import InputError, PixelsemError, StageError
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.images import pixel_digest, read_image, read_mask, write_image
from pixelsem.models.classifier import Preprocessing
from pixelsem.models.inputs import Resize, fit_mask
from pixelsem.records import AttackRecord, Outcome
from pixelsem.regions.masks import MaskEntry, MaskSource, Region, match_area
from pixelsem.stage import Stage

Side = Literal["foreground", "background"]


class StageOwnMasks(MaskSource):
    """The masks that an attack stage wrote beside its images, at the classifier's resolution."""

    def __init__(self, stage: Stage) -> None:
        """Raises :class:`PixelsemError` where the stage holds no masks of the foreground."""
        super().__init__(stage.path)
        self._stage = stage
        records = stage.attack_records()
        self._records = {r.id: r for r in records if r.region == "foreground" and r.mask is not None}
        # With --match-area the masks are only a part of the foreground.
        if not self._records or stage.info.options.get("match_area"):
            raise PixelsemError(
                f"{stage.path}: holds no masks; give --masks DIR, say a stage of `pixelsem segment` of the same images"
            )

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._records

    def find(self, image_id: str) -> MaskEntry | None:
        """Read the mask of the image ``image_id``; see :meth:`MaskSource.find`."""
        record = self._records.get(image_id)
        if record is None or record.mask is None:
            return None
        path = self._stage.resolve(record.mask)
        flags = ("degenerate-foreground",) if record.outcome == "flagged-mask" else ()
        return MaskEntry(path, read_mask(path), "binary", flags)


@dataclass(frozen=True)
class Sides:
    """Divides images into foreground and background.

    ``area``: ``all``, every pixel is of one side, as the mask says; ``equal``, the larger side is thinned to as many
    pixels as the smaller one has, drawn by ``seed`` (the same ones as an attack's ``--match-area``); ``halves``, a
    soft mask is cut at its median, what ties there drawn by ``seed``: two equal parts, as in dong2020's Fig. 2.
    """

    masks: MaskSource
    preprocessing: Preprocessing
    resize: Resize = "crop"
    area: Literal["all", "equal", "halves"] = "all"
    seed: int = 0

    def of(self, image_id: str, pixels: NDArray[np.uint8]) -> tuple[dict[Side, Region], tuple[str, ...]]:
        """Return both sides, bool [h, w], of an image at the classifier's resolution, and its mask's flags.

        Raises :class:`InputError` for a mask that is missing or cannot be read, :class:`PixelsemError` where halves
        are wanted of a mask that is not soft.
        """
        entry = self.masks.find(image_id)
        if entry is None:
            raise InputError(f"{image_id}: has no mask in {self.masks.path}")
        values = fit_mask(entry.values, entry.values.shape, self.preprocessing, self.resize)
        if self.area == "halves":
            foreground = self._upper_half(entry, values, pixels)
        else:
            foreground = replace(entry, values=values).region("foreground")
        background = ~foreground
        if self.area == "equal":
            rng = generator(self.seed, 0, pixels, "match-area", None)
            foreground, background = match_area(foreground, background, rng)
        return {"foreground": foreground, "background": background}, entry.flags

    def _upper_half(self, entry: MaskEntry, values: NDArray[np.integer], pixels: NDArray[np.uint8]) -> Region:
        if entry.kind != "soft":
            raise PixelsemError(
                f"{entry.path}: is no soft mask; --halves takes attention maps (segment --method gradcam)"
            )
        lots = generator(self.seed, 0, pixels, "halves", None).permutation(values.size)
        order = np.lexsort((lots, -values.ravel().astype(np.int64)))
        upper = np.zeros(values.size, np.bool_)
        upper[order[: values.size // 2]] = True
        return upper.reshape(values.shape)


@dataclass
class SplitTally:
    """Counts of a run; ``without_noise`` are searches that found nothing, so that there is nothing to split."""

    total: int = 0
    done: int = 0
    found: int = 0
    resumed: int = 0
    without_noise: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class SplitRun:
    """Splits the noise of an attack stage into another stage. One image's problem never ends the run."""

    def __init__(
        self,
        source: Stage,
        evaluator: Evaluator,
        stage: Stage,
        sides: Sides,
        keep: Side,
        use_flagged: bool = False,
        shard: Shard | None = None,
    ) -> None:
        """Raises what :func:`attacks_on_whole_images` does; ``shard`` leaves the images of other parts out."""
        self.source, self.stage = source, stage
        self.evaluator, self.names = evaluator, evaluator.classifier.class_names
        self.sides, self.keep, self.use_flagged = sides, keep, use_flagged
        attacked = take(attacks_on_whole_images(source), shard)
        self.records = [record for record in attacked if record.adversarial is not None]
        self.tally = SplitTally(total=len(self.records), without_noise=len(attacked) - len(self.records))

    def run(self, on_change: Callable[[SplitTally], None] = lambda _: None) -> SplitTally:
        """Split everything that the manifest does not hold yet; return the counts.

        Raises :class:`OutputError` where the stage cannot be written: what is in the manifest stays valid.
        """
        done = self.stage.keys()
        for record in self.records:
            if self._key(record) in done:
                self.tally.resumed += 1
            else:
                try:
                    self._split(record)
                except InputError as error:
                    self.tally.failures[record.id] = str(error)
            self.tally.done += 1
            on_change(self.tally)
        return self.tally

    def _key(self, record: AttackRecord) -> tuple[str, ...]:
        return (record.id, self.keep, *record.key[2:])

    def _split(self, record: AttackRecord) -> None:
        clean, whole = self._read(record, record.clean), self._read(record, str(record.adversarial))
        sides, flags = self.sides.of(record.id, clean)
        region = sides[self.keep]
        if flags and not self.use_flagged:
            self._append(record, "flagged-mask", clean, None, region)
        elif not region.any():
            self._append(record, "empty-region", clean, None, region)
        else:
            self._append(record, "attacked", clean, keep_noise(clean, whole, region), region)

    def _read(self, record: AttackRecord, name: str) -> NDArray[np.uint8]:
        path = self.source.resolve(name)
        pixels = read_image(path)
        size = self.evaluator.classifier.preprocessing.size
        if pixels.shape[:2] != size:
            raise InputError(f"{path}: is {pixels.shape[1]}×{pixels.shape[0]}, not the model's {size[1]}×{size[0]}")
        return pixels

    def _append(
        self,
        record: AttackRecord,
        outcome: Outcome,
        clean: NDArray[np.uint8],
        kept: NDArray[np.uint8] | None,
        region: Region,
    ) -> None:
        """Decide what the ``kept`` noise does, write its files and then its record; None where nothing was kept."""
        before = fp32_logits(self.evaluator, clean)
        after = None if kept is None else fp32_logits(self.evaluator, kept)
        success = kept is not None and after is not None and self._succeeds(record, clean, kept, after)
        clean_file = _moved(record.clean, 1, "clean")
        mask_file = _moved(str(record.adversarial), 2, "masks", self.keep)
        name = _moved(str(record.adversarial), 2, "images" if success else "attempts", self.keep)
        digests = {"clean": pixel_digest(clean), "mask": pixel_digest(region)}
        if kept is not None:
            write_scored(self.stage.path / name, kept)
            digests["adversarial" if success else "attempt"] = pixel_digest(kept)
        write_scored(self.stage.path / clean_file, clean)
        write_image(self.stage.path / mask_file, region)
        tried = int(kept is not None)
        self.stage.append(
            AttackRecord(
                id=record.id,
                outcome=outcome,
                region=self.keep,
                label=record.label,
                label_source=record.label_source,
                target=record.target,
                repeat=record.repeat,
                seed=self.sides.seed,
                clean=clean_file,
                mask=mask_file,
                adversarial=name if success else None,
                attempt=None if success or kept is None else name,
                history=None,
                height=record.height,
                width=record.width,
                region_pixels=int(region.sum()),
                success=success,
                queries=tried,
                candidates=tried,
                generations=tried,
                before=describe(before, self.names),
                after=None if after is None else describe_after(after, before, self.names),
                pixels=[] if kept is None else changed_pixels(clean, kept),
                digests=digests,
            )
        )
        self.tally.found += success
        if outcome != "attacked":
            self.tally.skipped[outcome] = self.tally.skipped.get(outcome, 0) + 1

    def _succeeds(
        self, record: AttackRecord, clean: NDArray[np.uint8], kept: NDArray[np.uint8], logits: Tensor
    ) -> bool:
        """Did the model change its mind, on an image that was changed at all?"""
        target = None if record.target is None else self._number(record.target)
        return is_success(logits, self._number(record.label), target) and not np.array_equal(clean, kept)

    def _number(self, name: str) -> int:
        if name not in self.names:
            raise StageError(f"{self.source.manifest}: {name!r} is no class of {self.evaluator.classifier.name}")
        return self.names.index(name)


def attacks_on_whole_images(source: Stage) -> list[AttackRecord]:
    """Return the records of searches that could change every pixel; :class:`PixelsemError` where there are none."""
    found = [r for r in source.attack_records() if r.region == "original" and r.outcome == "attacked"]
    if not found:
        raise PixelsemError(f"{source.path}: holds no attack on whole images (--region original) to split")
    return found


def _moved(name: str, depth: int, *folders: str) -> str:
    """Return a file's path with its first ``depth`` folders replaced: images/original/cat/1.png and so on."""
    parts = PurePosixPath(name).parts
    return str(PurePosixPath(*folders, *(parts[depth:] or parts[-1:])))


def keep_noise(clean: NDArray[np.uint8], attacked: NDArray[np.uint8], region: Region) -> NDArray[np.uint8]:
    """Return the clean image with the attacked one's pixels in ``region``, bool [H, W]; uint8 [H, W, 3]."""
    return np.where(region[:, :, None], attacked, clean)
