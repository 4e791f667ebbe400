"""Is a finished stage what its manifest says? Every file, every number that can be had again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from pixelsem.arrays import read_arrays
from pixelsem.engine.attacking import changed_pixels, describe
from pixelsem.engine.overlap import Ahead
from pixelsem.engine.scoring import fp32_logits, is_success
from pixelsem.errors import InputError, PixelsemError, StageError
from pixelsem.files import one_line
from pixelsem.fitness.evaluator import Evaluator
from pixelsem.images import pixel_digest, read_hints, read_image, read_mask
from pixelsem.records import FILE_FIELDS, AttackRecord, Prediction, Record, SegmentRecord
from pixelsem.regions.masks import region_of
from pixelsem.sources import IMAGES_ROLE
from pixelsem.stage import Stage

#: Confidences of one image on two machines agree within this, in fp32.
CONFIDENCE_TOLERANCE = 1e-3

_COVERAGE_TOLERANCE = 1e-9
_READ_AHEAD = 16

#: The fields of a record's files that hold colours; the others hold masks, or are looked at by name.
_COLOURS = frozenset({"clean", "adversarial", "attempt", "overlay"})

Pixels = NDArray[Any]


@dataclass(frozen=True)
class _Found:
    """What a record's files hold: pixels by field, and what is wrong with the files, one line each."""

    pixels: Mapping[str, Pixels]
    problems: list[str]


class Verification:
    """Looks at everything a stage holds; iterate over :meth:`problems`.

    ``evaluator`` holds the model that the stage was made with: predictions and successes are decided again in fp32
    on the files as they are. None leaves that out.

    :ivar records: the records that were looked at so far.
    """

    def __init__(self, stage: Stage, evaluator: Evaluator | None = None) -> None:
        self.stage, self.evaluator = stage, evaluator
        self.records = 0
        self._clean: tuple[str, Tensor | None] = ("", None)  # the last clean image and its logits

    def problems(self, progress: Callable[[int], None] = lambda _: None) -> Iterator[str]:
        """Yield one line for everything that is wrong, record by record.

        Raises :class:`StageError` where the manifest cannot be read at all.
        """
        yield from self._sources()
        with Ahead(_READ_AHEAD) as ahead:
            for record, found in ahead.map(self._read, self._distinct()):
                if isinstance(record, str):
                    yield record
                    continue
                self.records += 1
                for problem in self._of(record, found()):
                    yield f"{self.stage.path}: {record.key[0]!r}: {problem}"
                progress(self.records)

    def _distinct(self) -> Iterator[Record | str]:
        """Yield every record once, and as text what is wrong with lines of the manifest."""
        seen: dict[tuple[str, ...], Record] = {}
        for line in self.stage.scan():
            if isinstance(line, StageError):
                yield str(line)
            elif line.key not in seen:
                seen[line.key] = line
                yield line
            elif seen[line.key] != line:
                yield f"{self.stage.manifest}: two different records of {line.key[0]!r}"

    def _sources(self) -> Iterator[str]:
        root = self.stage.info.inputs.get(IMAGES_ROLE)
        if self.stage.info.kind == "segment" and root is not None and not (self.stage.path / root).is_dir():
            yield f"{self.stage.path}: its images are not at {(self.stage.path / root).resolve()}"

    def _read(self, record: Record | str) -> _Found:
        """Read a record's files; on the reader's thread."""
        pixels: dict[str, Pixels] = {}
        problems: list[str] = []
        fields = () if isinstance(record, str) else FILE_FIELDS.get(self.stage.info.kind, ())
        for field in fields:
            name = getattr(record, field)
            if name is None:
                continue
            try:
                found = _decoded(self.stage.resolve(name), field)
            except PixelsemError as error:
                problems.append(str(error))
                continue
            if found is not None:
                pixels[field] = found
        for field, digest in getattr(record, "digests", {}).items():
            if field in pixels and pixel_digest(pixels[field]) != digest:
                name = getattr(record, field)
                problems.append(f"{name}: holds other pixels than were written")
        return _Found(pixels, problems)

    def _of(self, record: Record, found: _Found) -> Iterator[str]:
        yield from found.problems
        if isinstance(record, SegmentRecord):
            yield from self._of_mask(record, found.pixels)
        elif isinstance(record, AttackRecord):
            yield from self._of_search(record, found.pixels)

    def _of_mask(self, record: SegmentRecord, pixels: Mapping[str, Pixels]) -> Iterator[str]:
        mask = pixels.get("mask")
        if mask is None:
            return
        coverage = float(region_of(mask, record.kind, "foreground", record.threshold).mean())
        if abs(coverage - record.coverage) > _COVERAGE_TOLERANCE:
            yield f"{record.mask}: covers {100 * coverage:.4g} %, not the record's {100 * record.coverage:.4g} %"
        root = self.stage.path / self.stage.info.inputs.get(IMAGES_ROLE, "")
        if not root.is_dir():
            return
        try:
            shape = read_image(root / record.image).shape
        except InputError as error:
            yield str(error)
            return
        if shape[:2] != mask.shape:
            yield f"{record.mask}: is {_size(mask)}, its image {shape[1]}×{shape[0]}"

    def _of_search(self, record: AttackRecord, pixels: Mapping[str, Pixels]) -> Iterator[str]:
        for field, values in pixels.items():
            if field != "overlay" and values.shape[:2] != (record.height, record.width):
                yield f"{getattr(record, field)}: is {_size(values)}, not {record.width}×{record.height}"
                return
        if record.success != (record.adversarial is not None):
            yield f"success is {_word(record.success)}, but there is {'an' if record.adversarial else 'no'} image"
        if record.attempt is not None and (record.success or record.outcome != "attacked"):
            became = "succeeded" if record.success else "never ran"
            yield f"{record.attempt}: is kept as a failure, but the search {became}"
        yield from _region_problems(record, pixels)
        if self.evaluator is not None:
            yield from self._scored(record, pixels, self.evaluator)

    def _scored(self, record: AttackRecord, pixels: Mapping[str, Pixels], evaluator: Evaluator) -> Iterator[str]:
        names = evaluator.classifier.class_names
        if "clean" in pixels:
            if self._clean[0] != record.clean:
                self._clean = (record.clean, fp32_logits(evaluator, pixels["clean"]))
            if self._clean[1] is not None:
                yield from _prediction_problems(record.clean, self._clean[1], record.before, names)
        name, image = _made(record, pixels)
        if image is None or record.after is None:
            return
        logits = fp32_logits(evaluator, image)
        yield from _prediction_problems(name, logits, record.after, names)
        wanted = [record.label] if record.target is None else [record.label, record.target]
        unknown = [name for name in wanted if name not in names]
        if unknown:
            yield f"{unknown[0]!r} is no class of {evaluator.classifier.name}"
            return
        target = None if record.target is None else names.index(record.target)
        success = is_success(logits, names.index(record.label), target)
        if success != record.success:
            yield f"{name}: success is {_word(success)} when scored again, {_word(record.success)} noted"


def _decoded(path: Path, field: str) -> Pixels | None:
    """Read one file; None where it holds no pixels. Raises :class:`InputError` naming it."""
    if not path.is_file():
        raise InputError(f"{path}: is missing")
    if field in _COLOURS:
        return read_image(path)
    if field in ("mask", "original", "map"):
        return read_mask(path)
    if field == "history":
        _check_arrays(path)
    else:
        read_hints(path)
    return None


def _check_arrays(path: Path) -> None:
    try:
        read_arrays(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({one_line(error)})") from error


def _made(record: AttackRecord, pixels: Mapping[str, Pixels]) -> tuple[str, Pixels | None]:
    """Return the name and the pixels of what a search made, a success or a failure; None where they were not kept."""
    field = "attempt" if record.adversarial is None else "adversarial"
    return str(getattr(record, field)), pixels.get(field)


def _region_problems(record: AttackRecord, pixels: Mapping[str, Pixels]) -> Iterator[str]:
    """Compare what a search changed with its region and its list of pixels."""
    inside = pixels["mask"] > 0 if "mask" in pixels else None
    if inside is not None and int(inside.sum()) != record.region_pixels:
        yield f"{record.mask}: has {int(inside.sum())} pixels, the record {record.region_pixels}"
    clean, (name, made) = pixels.get("clean"), _made(record, pixels)
    if clean is None or made is None:
        return
    if inside is not None and ((clean != made).any(axis=2) & ~inside).any():
        yield f"{name}: differs from the clean image outside of the region"
    if changed_pixels(clean, made) != record.pixels:
        yield f"{name}: differs from the clean image in other pixels than the record lists"


def _prediction_problems(name: str, logits: Tensor, noted: Prediction, names: tuple[str, ...]) -> Iterator[str]:
    found = describe(logits, names)
    if found.class_ != noted.class_:
        tie = abs(found.confidence - noted.confidence) <= CONFIDENCE_TOLERANCE and len(found.top5) > 1
        if tie and found.top5[0][1] - found.top5[1][1] <= CONFIDENCE_TOLERANCE:
            return
        yield f"{name}: is seen as {found.class_!r}, the record says {noted.class_!r}"
    elif abs(found.confidence - noted.confidence) > CONFIDENCE_TOLERANCE:
        yield f"{name}: has confidence {found.confidence:.4f}, the record says {noted.confidence:.4f}"


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}×{pixels.shape[0]}"


def _word(value: bool) -> str:
    return "true" if value else "false"
