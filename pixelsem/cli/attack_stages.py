"""Attack stages with their images: what the commands share that look at pixels, not at records alone."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelsem.cli.inputs import resolve_inputs
from pixelsem.errors import InputError, PixelsemError, StageError
from pixelsem.metrics.compact import Compactor
from pixelsem.metrics.setups import AttackStage, Setup, check_numbers, combine
from pixelsem.metrics.success import GOALS, Goal, image_of, select
from pixelsem.records import AttackRecord
from pixelsem.stage import STAGE_FILE, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Search:
    """One search: its record, and the stage that holds its files; ``place`` is where in the manifest the record is."""

    stage: Stage
    record: AttackRecord
    place: int

    def whole(self) -> Search:
        """Return the search with its record as it was written, files included, where this one is compact.

        Raises :class:`StageError` where it is no longer there.
        """
        record = self.stage.at(self.place)
        if not isinstance(record, AttackRecord) or record.key != self.record.key:
            raise StageError(f"{self.stage.manifest}: was changed meanwhile; try again")
        return replace(self, record=record)

    def clean(self) -> NDArray[np.uint8]:
        """Read the clean image, uint8 [H, W, 3]; raises :class:`InputError` where it is not as the record says."""
        return self._read(self.record.clean)

    def attempt(self, clean: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        """Return what the search made of ``clean``, uint8 [H, W, 3]; None where that is not known.

        A success was written, and a failure where such are kept; else the pixels that its best try changed are known
        where they are few.
        Raises :class:`InputError`, and :class:`StageError` where a listed change lies outside of the image.
        """
        record = self.record
        if any(change.x >= record.width or change.y >= record.height for change in record.pixels):
            raise StageError(f"{self.stage.manifest}: a changed pixel of {record.id!r} lies outside the image")
        if (file := record.adversarial or record.attempt) is not None:
            return self._read(file)
        if record.outcome != "attacked" or not record.pixels:
            return None
        tried = clean.copy()
        for change in record.pixels:
            tried[change.y, change.x] = change.to
        return tried

    def mask(self) -> NDArray[np.bool_] | None:
        """Read which pixels could change, bool [H, W]; None where all could. Raises as :meth:`clean` does."""
        from pixelsem.images import read_mask

        if self.record.mask is None:
            return None
        path = self.stage.resolve(self.record.mask)
        mask: NDArray[np.bool_] = read_mask(path) != 0
        self._check_size(path, mask.shape)
        return mask

    def _read(self, name: str) -> NDArray[np.uint8]:
        from pixelsem.images import read_image

        path = self.stage.resolve(name)
        pixels = read_image(path)
        self._check_size(path, pixels.shape)
        return pixels

    def _check_size(self, path: Path, shape: tuple[int, ...]) -> None:
        if shape[:2] != (self.record.height, self.record.width):
            found, said = f"{shape[1]}×{shape[0]}", f"{self.record.width}×{self.record.height}"
            raise InputError(f"{path}: is {found}; the manifest says {said}")


@dataclass(frozen=True)
class Group:
    """The first searches (repeat 0) of one setup, region and goal, whatever became of them: one row of a table."""

    setup: Setup
    region: str
    goal: Goal
    searches: Sequence[Search]

    @property
    def attacked(self) -> list[Search]:
        """The searches that ran: a rate's denominator."""
        return [search for search in self.searches if search.record.outcome == "attacked"]

    def kept(self, images: set[tuple[str, str]]) -> Group:
        """Return the group with the searches of some images only (see :func:`pixelsem.metrics.success.image_of`)."""
        searches = [search for search in self.searches if image_of(search.record) in images]
        return Group(self.setup, self.region, self.goal, searches)


class AttackStages:
    """Some attack stages, read once and gathered into setups.

    :ivar paths: the folders of the stages that are used, as given.
    :ivar stages: every stage with what tables need of it; one given twice is there once.
    :ivar setups: see :func:`pixelsem.metrics.setups.combine`.
    :ivar notes: what was left out.
    :ivar failures: why a stage beside others could not be used, by path; what else fails may be added.
    """

    def __init__(self, paths: Sequence[Path], *, compact: bool = False) -> None:
        """``compact`` records name no files, and take a ninth of the memory.

        Raises :class:`PixelsemError` where no stage has a record, :class:`StageError` where none can be read.
        """
        self._compact = Compactor() if compact else None
        self.stages: list[tuple[Stage, AttackStage]] = []
        self._places: dict[str, array[int]] = {}  # of each stage's records
        self.notes: list[str] = []
        distinct: dict[Path, Path] = {}
        for path in paths:
            if path.resolve() in distinct:
                self.notes.append(f"{path}: given twice; counted once")
            distinct.setdefault(path.resolve(), path)
        problems: dict[Path, StageError] = {}
        for path in distinct.values():
            try:
                self._add(path)
            except StageError as error:
                problems[path] = error
        if not self.stages:
            raise next(iter(problems.values()))
        self.failures = {str(path): f"{error}; left out" for path, error in problems.items()}
        self.paths = [path for path in distinct.values() if path not in problems]
        if not any(data.records for _, data in self.stages):
            raise PixelsemError(f"{self.paths[0]}: nothing attacked yet; run its attack command again and let it work")
        self.setups, notes = combine([data for _, data in self.stages if data.records])
        self.notes += notes

    def _add(self, path: Path) -> None:
        stage = Stage.open(path)
        check_numbers(stage.info, path / STAGE_FILE)
        records: list[AttackRecord] = []
        places = self._places[str(path)] = array("q")
        for place, record in stage.placed_attack_records():
            places.append(place)
            records.append(record if self._compact is None else self._compact(record))
        self.notes += _gaps(stage, len(records))
        self.stages.append((stage, AttackStage(str(path), stage.info, records)))

    @property
    def names(self) -> list[str]:
        """The stages' paths, as given."""
        return [data.name for _, data in self.stages]

    @property
    def identities(self) -> list[str]:
        """What the stages hold, in an order of its own."""
        return sorted({stage.info.contents for stage, _ in self.stages})

    def groups(self) -> list[Group]:
        """Return every setup × region × goal of which there is a search, in the order of the tables."""
        found = []
        for setup in self.setups:
            searches = self.searches(setup)
            for region in setup.regions:
                for goal in GOALS:
                    chosen = {record.key for record in select(setup.records, goal, region)}
                    own = [searches[key] for key in searches if key in chosen]
                    if own:
                        found.append(Group(setup, region, goal, own))
        return found

    def searches(self, setup: Setup) -> dict[tuple[str, ...], Search]:
        """Return the searches of one setup by their records' keys, in the order of its stages."""
        held = {data.name: (stage, data.records) for stage, data in self.stages}
        found: dict[tuple[str, ...], Search] = {}
        for name in setup.stages:
            stage, records = held[name]
            for place, record in zip(self._places[name], records, strict=True):
                found.setdefault(record.key, Search(stage, record, place))
        return found

    def of_setup(self, setup: Setup) -> Stage:
        """Return the first stage of a setup."""
        return next(stage for stage, data in self.stages if data.name == setup.stages[0])


def _gaps(stage: Stage, count: int) -> list[str]:
    """Say what a stage that was not finished lacks."""
    if count == 0:
        return [f"{stage.path}: holds no records yet"]
    planned = (stage.info.counts or {}).get("searches")
    if planned is None:
        return [f"{stage.path}: was not finished; the same attack command goes on from there"]
    if count < planned and stage.info.options.get("target") is None:
        return [f"{stage.path}: holds {count} of {planned} searches; the others failed or are still to be run"]
    return []


def open_attacks(
    given: Sequence[Path] | None, run: Path, note: Callable[[str], None], *, compact: bool = False
) -> AttackStages:
    """Open what :func:`pixelsem.cli.inputs.resolve_inputs` finds of attack stages; see :class:`AttackStages`."""
    return AttackStages(resolve_inputs(given, run, ("attack",), note=note), compact=compact)


def common_images(groups: Sequence[Group]) -> set[tuple[str, str]]:
    """Return the images that were attacked in every group: right for every model, and with a region everywhere."""
    return set.intersection(*({image_of(search.record) for search in group.attacked} for group in groups))


@dataclass(frozen=True)
class Pair:
    """A search's clean image and what it made of it (None where not known), uint8 [H, W, 3] each."""

    search: Search
    clean: NDArray[np.uint8]
    attempt: NDArray[np.uint8] | None

    @property
    def written(self) -> bool:
        """Is the attempt a file of the stage, as every success is, and a failure where such are kept?"""
        record = self.search.record
        return record.adversarial is not None or record.attempt is not None


def read_pairs(searches: Sequence[Search], failures: dict[str, str], at_a_time: int = 256) -> Iterator[list[Pair]]:
    """Yield the pairs of ``searches``, read by several threads, in lists of images of one size, in order.

    At most ``at_a_time`` together. Unreadable ones go to ``failures``, by image.
    """

    def read(search: Search) -> Pair | None:
        try:
            clean = search.clean()
            return Pair(search, clean, search.attempt(clean))
        except (InputError, StageError) as error:
            failures[search.record.id] = str(error)
            return None

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(searches), at_a_time):
            by_size: dict[tuple[int, ...], list[Pair]] = {}
            for pair in pool.map(read, searches[start : start + at_a_time]):
                if pair is not None:
                    by_size.setdefault(pair.clean.shape, []).append(pair)
            yield from by_size.values()


def to_tensor(images: Sequence[NDArray[np.uint8]]) -> Any:
    """Stack uint8 [H, W, 3] images into a tensor uint8 [N, 3, H, W] on the CPU."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
