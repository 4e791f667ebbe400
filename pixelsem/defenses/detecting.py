"""Training a detector on an attack's images, and scoring images with one (dong2020, §4.2; Liu et al. 2019).

The unit is the image: a clean one and all that was made of it are on one side of the split and in one draw of the
bootstrap. Images with the same pixels under several names count as one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pixelsem.defenses.detector import Detector
from pixelsem.defenses.features import Extractor, FeatureType, Image, Rows
from pixelsem.defenses.fld import FEWEST_IMAGES, Pairs, Progress, train_ensemble
from pixelsem.defenses.settings_detection import EnsembleSettings
from pixelsem.errors import InputError, PixelsemError
from pixelsem.images import iter_chunks, pixel_digest, read_image
from pixelsem.records import AttackRecord, DetectionRecord
from pixelsem.sources import ImageItem, open_images, select
from pixelsem.stage import STAGE_FILE, Stage

#: Images that are read and measured at once.
CHUNK = 32


@dataclass(frozen=True)
class Sample:
    """One image to measure; ``image`` is relative to its root. The rest is as in :class:`DetectionRecord`."""

    id: str
    image: str
    path: Path
    kind: Literal["clean", "adversarial", "unknown"] = "unknown"
    region: str | None = None
    target: str | None = None
    repeat: int = 0

    @property
    def key(self) -> tuple[str, ...]:
        """The key of its record."""
        return (self.id, self.kind, self.region or "", self.target or "", str(self.repeat))

    def record(self, score: float, split: Literal["train", "test"]) -> DetectionRecord:
        """Return what a detector says of it."""
        return DetectionRecord(
            self.id, self.image, self.kind, split, score, score > 0, self.region, self.target, self.repeat
        )


@dataclass(frozen=True)
class Samples:
    """Images under one ``root``; ``attack`` is the stage whose clean and adversarial images they are, if any."""

    root: Path
    items: list[Sample]
    attack: Stage | None = None


def open_samples(path: Path, region: str | None = None, attempts: bool = False) -> Samples:
    """Find the images that ``path`` stands for.

    Of an attack stage: every adversarial image (of one ``region``, if named) and once the clean image of each; with
    ``attempts`` what failed counts as adversarial too, where it was kept. Of anything else, those of
    :func:`pixelsem.sources.open_images`, as ``unknown``. Raises :class:`PixelsemError` where there is none, or a
    region is named of no attack.
    """
    if (path / STAGE_FILE).is_file():
        stage = Stage.open(path)
        if stage.info.kind == "attack":
            return Samples(path, _of_attack(stage, region, attempts), stage)
    if region is not None:
        raise PixelsemError(f"{path}: is no attack stage, so it has no --region")
    source = open_images(path)
    items = [Sample(item.id, item.path.relative_to(source.root).as_posix(), item.path) for item in source.items]
    return Samples(source.root, items)


def _of_attack(stage: Stage, region: str | None, attempts: bool) -> list[Sample]:
    made = [(record, _made(record, attempts)) for record in stage.attack_records()]
    found = [(record, name) for record, name in made if name is not None]
    regions = sorted({record.region for record, _ in found})
    if region is not None:
        found = [(record, name) for record, name in found if record.region == region]
    if not found:
        where = f" of region {region!r} (it has {', '.join(regions)})" if region is not None and regions else ""
        raise PixelsemError(f"{stage.path}: holds no adversarial images{where}")
    clean = {record.id: Sample(record.id, record.clean, stage.resolve(record.clean), "clean") for record, _ in found}
    return [*clean.values(), *(_adversarial(stage, record, name) for record, name in found)]


def _made(record: AttackRecord, attempts: bool) -> str | None:
    """Return the name of what counts as adversarial; a damaged one (empty, say) as it is, so that it is told."""
    failed = record.attempt if attempts else None
    return failed if record.adversarial is None else record.adversarial


def _adversarial(stage: Stage, record: AttackRecord, name: str) -> Sample:
    path = stage.resolve(name)
    return Sample(record.id, name, path, "adversarial", record.region, record.target, record.repeat)


def draw(samples: Samples, count: int, seed: int) -> Samples:
    """Return ``count`` of an attack's images (all, if it has fewer), drawn by ``seed``, with what was made of them.

    An image's draw depends on its id and the seed alone, so that several attacks on the same images get the same.
    """
    clean = [ImageItem(sample.id, sample.path, None) for sample in samples.items if sample.kind == "clean"]
    drawn = {item.id for item in select(clean, sample=count, seed=seed)}
    return replace(samples, items=[sample for sample in samples.items if sample.id in drawn])


@dataclass
class Measured:
    """Samples with their features, float [N, D], and the digests of their pixels; ``failures`` by image."""

    samples: list[Sample] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def measure(samples: Sequence[Sample], extractor: Extractor) -> Iterator[Measured]:
    """Read and measure samples, :data:`CHUNK` at a time; what cannot be read, or has no features, is a failure."""
    with ThreadPoolExecutor() as pool:
        for part in iter_chunks(len(samples), CHUNK):
            chunk = Measured()
            read: list[tuple[Sample, Image]] = []
            for sample, (image, problem) in zip(
                samples[part], pool.map(_reader(extractor), samples[part]), strict=True
            ):
                if image is None:
                    chunk.failures[sample.image] = problem
                else:
                    read.append((sample, image))
            images = [image for _, image in read]
            rows = list(extractor.measure(images)) if images else []
            for (sample, _), digest, row in zip(read, pool.map(pixel_digest, images), rows, strict=True):
                if np.isfinite(row).all():
                    chunk.samples.append(sample)
                    chunk.digests.append(digest)
                    chunk.rows.append(row)
                else:
                    kind = extractor.type.kind
                    chunk.failures[sample.image] = f"{sample.path}: its {kind} features are not finite; leave it out"
            yield chunk


def _reader(extractor: Extractor) -> Callable[[Sample], tuple[Image | None, str]]:
    def read(sample: Sample) -> tuple[Image | None, str]:
        try:
            image = read_image(sample.path)
            extractor.check(image, sample.path)
        except InputError as error:
            return None, str(error)
        return image, ""

    return read


def held_out(digests: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Return which images are for the test, bool [N]: ``share`` of the distinct digests, drawn by ``seed``.

    Equal digests are on one side. There is at least one on either side where there are two. An image's lot depends
    on its digest and the seed alone.
    """
    lots = {name: hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in digests}
    order = sorted(lots, key=lambda name: lots[name])
    count = min(max(1, round(share * len(order))), len(order) - 1)
    chosen = set(order[: max(0, count)])
    return np.array([name in chosen for name in digests], np.bool_)


@dataclass(frozen=True)
class _Paired:
    """Indices of adversarial samples, of their clean ones, and the distinct image of each pair."""

    adversarial: NDArray[np.int64]
    clean: NDArray[np.int64]
    digests: list[str]


def _pair(measured: Measured) -> _Paired:
    clean = {sample.id: number for number, sample in enumerate(measured.samples) if sample.kind == "clean"}
    made = [n for n, sample in enumerate(measured.samples) if sample.kind == "adversarial" and sample.id in clean]
    owners = [clean[measured.samples[number].id] for number in made]
    return _Paired(np.array(made, np.int64), np.array(owners, np.int64), [measured.digests[n] for n in owners])


def train_detector(
    measured: Measured,
    extractor: Extractor,
    settings: EnsembleSettings,
    test_share: float,
    about: tuple[str, str],
    progress: Progress = lambda *_: None,
) -> tuple[Detector, list[DetectionRecord]]:
    """Train on the pairs of clean and adversarial images, and score all of them.

    ``test_share`` of the images are held out (:func:`held_out`); the records say which. ``about`` are the detector's
    ``attack`` and ``search``. Raises :class:`PixelsemError` where too few images are left to train on.
    """
    pairs = _pair(measured)
    test = held_out(pairs.digests, test_share, settings.seed)
    own = [digest for digest, held in zip(pairs.digests, test, strict=True) if not held]
    numbers = {digest: number for number, digest in enumerate(sorted(set(own)))}
    if len(numbers) < FEWEST_IMAGES or not test.any():
        raise PixelsemError(
            f"{len(set(pairs.digests))} images with an adversarial version leave {len(numbers)} to train on; at least "
            f"{FEWEST_IMAGES} and one for the test are needed: attack more images, or see to --sample and --test-share"
        )
    rows = np.stack(measured.rows)
    groups = np.array([numbers[digest] for digest in own], np.int64)
    training = Pairs(rows[pairs.clean[~test]], rows[pairs.adversarial[~test]], groups)
    ensemble = train_ensemble(training, settings, progress)
    made = frozenset(measured.digests[number] for number in pairs.adversarial[~test])
    detector = Detector(ensemble, extractor.type, extractor.type.version, *about, frozenset(numbers), made)
    return detector, Scorer(detector, extractor.type).score(measured)


class Scorer:
    """Scores measured samples, and says which of them the detector was trained on.

    That is decided by their pixels, whatever the files are called and wherever they lie. An adversarial image counts
    as trained on where its clean one does, too, which must come before it: in the samples, or in ``known``, the
    records that there are already.
    """

    def __init__(self, detector: Detector, type: FeatureType, known: Iterable[DetectionRecord] = ()) -> None:
        self._detector, self._type = detector, type
        self._splits = {record.id: record.split for record in known if record.kind == "clean"}

    def score(self, measured: Measured) -> list[DetectionRecord]:
        """Return a record for every sample."""
        if not measured.samples:
            return []
        scores = self._detector.score(np.stack(measured.rows), self._type)
        together = zip(measured.samples, measured.digests, scores.tolist(), strict=True)
        return [sample.record(score, self._split(sample, digest)) for sample, digest, score in together]

    def _split(self, sample: Sample, digest: str) -> Literal["train", "test"]:
        own: Literal["train", "test"] = "train" if self._detector.knows(digest) else "test"
        if sample.kind == "clean":
            self._splits[sample.id] = own
        return self._splits.get(sample.id, own) if sample.kind == "adversarial" and own == "test" else own
