"""Which attack stages belong together: the same network and the same search, in several regions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from pixelsem.errors import StageError
from pixelsem.metrics.success import sort_regions
from pixelsem.records import AttackRecord
from pixelsem.stage import StageInfo, digest

#: Options that tell regions, goals, images or speed apart, not how strong the search is; and those of the
#: model, which has an identity of its own.
_NOT_THE_SEARCH = frozenset({
    "region", "masks", "match_area", "grow", "shrink", "flagged", "targeted", "target", "labels", "repeats",
    "seed", "limit", "sample", "time_limit", "preset", "device", "batch_size", "in_flight", "inputs", "images",
    "model", "weights", "defense", "arch", "scale", "mean", "std", "input_size", "classes", "output", "run",
    "overwrite", "json", "quiet", "evaluator", "explain", "workers", "shard", "keep", "attempts", "engine", "address",
    "ray_workers",
})  # fmt: skip

#: Options that change foreground and background, and mean nothing for the whole image.
_OF_THE_REGION = ("match_area", "grow", "shrink", "flagged")

_MOVES = ("match_area", "grow", "shrink")

_SHOWN = ("pixels", "constraint")

#: What tables count with: the budget δ, finite; and whole numbers of pixels, that may change or that a border moves by.
_NUMBERS: dict[str, Any] = {"delta": int | float, "pixels": int, "grow": int, "shrink": int}


@dataclass(frozen=True)
class AttackStage:
    """An attack stage as the tables need it: what it is called, what was asked, what came out."""

    name: str
    info: StageInfo
    records: Sequence[AttackRecord]


@dataclass
class Setup:
    """One network under one search: a block of rows in the tables, made of one or several stages.

    :ivar network: the model's name.
    :ivar attack: the attack's name, e.g. ``de``.
    :ivar weights: the name of the file that its weights were read from, None where none was named.
    :ivar options: what the search was asked, by option.
    :ivar told: how it differs from other setups that look alike, in words by option ("population=100",
        "no-early-stop"); by "stages" where nothing else does. Empty where none looks alike.
    :ivar stages: the names of its stages.
    :ivar cleans: what tells each image from others of its name, by id, where that is known; empty where there is no
        other stage. See :attr:`pixelsem.records.AttackRecord.clean_hash`.
    """

    network: str
    attack: str
    model: dict[str, Any]
    options: dict[str, Any]
    region_options: dict[str, Any] | None
    seed: int | None
    weights: str | None = None
    told: dict[str, str] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    by_key: dict[tuple[str, ...], AttackRecord] = field(default_factory=dict)
    cleans: dict[str, int] = field(default_factory=dict)

    @property
    def records(self) -> list[AttackRecord]:
        """All records, each key once."""
        return list(self.by_key.values())

    @property
    def regions(self) -> list[str]:
        """The regions there are records of, in the order of the tables."""
        return sort_regions(record.region for record in self.by_key.values())

    @property
    def pixels(self) -> int | None:
        """How many pixels may change, where the attack has such a limit."""
        return self.options.get("pixels")

    @property
    def constraint(self) -> str | None:
        """How the region binds, where the attack has a choice."""
        return self.options.get("constraint")

    @property
    def variant(self) -> str:
        """How it differs from other setups that look alike, in words."""
        return ", ".join(self.told_but())

    def told_but(self, *names: str) -> list[str]:
        """Return the words of :attr:`told` but those of the options ``names``."""
        return [words for name, words in self.told.items() if name not in names]

    @property
    def details(self) -> str:
        """The variant, and before it the constraint where that is not the usual one: for what does not show this."""
        usual = self.constraint in (None, "encode")
        return ", ".join(filter(None, ["" if usual else worded("constraint", self.constraint), self.variant]))


def combine(stages: Sequence[AttackStage]) -> tuple[list[Setup], list[str]]:
    """Gather stages into setups; return them with notes on what was left out.

    Stages go together when model, attack and search are the same and no two of their records contradict
    each other, those of one seed before others; a record that is there twice counts once. Images of one name that
    are not the same contradict each other too. Attacks on the whole image do not depend on how the regions were made:
    they count in every setup that they fit.
    """
    setups: list[Setup] = []
    notes: list[str] = []
    seeds = [stage.info.seed for stage in stages]
    for stage in sorted(stages, key=lambda stage: (_is_whole(stage), seeds.index(stage.info.seed))):
        own, repeated = _distinct(stage.records)
        if repeated:
            notes.append(f"{stage.name}: {repeated} records are there twice; the first of each counts")
        new = _setup_of(stage.info)
        new.cleans = _cleans(own) if len(stages) > 1 else {}
        fitting = [old for old in setups if _belongs(new, own, old)]
        fitting = [old for old in fitting if old.seed == new.seed] or fitting
        if not fitting:
            fitting = [new]
            setups.append(new)
        for setup in fitting if _is_whole(stage) else fitting[:1]:
            shared = sum(key in setup.by_key for key in own)
            if shared:
                notes.append(f"{stage.name}: {shared} records are also in {', '.join(setup.stages)}; counted once")
            setup.by_key |= own
            setup.cleans |= new.cleans
            setup.stages.append(stage.name)
    _name_variants(setups)
    return setups, notes


def name_attacks(infos: Sequence[StageInfo]) -> list[Setup]:
    """Return a setup without records for every attack stage, of different identities, told apart as in the tables."""
    setups = [_setup_of(info) for info in infos]
    for setup, info in zip(setups, infos, strict=True):
        setup.stages.append(info.identity[:6])
    _name_variants(setups)
    return setups


def check_numbers(info: StageInfo, file: Path) -> None:
    """Raise :class:`StageError` where what tables take for a number of an attack's options, read of ``file``, is none.

    These are :data:`_NUMBERS`; each may be missing.
    """
    for name, kinds in _NUMBERS.items():
        value = info.options.get(name)
        # Neither NaN nor a whole number that no float can hold is within the bounds.
        fits = isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        if value is not None and not fits:
            raise StageError(f"{file}: `options: {name}` is no number ({repr(value)[:40]}); correct it there")


def search_identity(info: StageInfo, region: str | None = None) -> str:
    """Return what two attack stages share that differ at most in their images, labels and seed.

    With ``region``, what the searches in that region share with a stage of them alone.
    """
    if region is not None:
        info = replace(info, options=info.options | {"region": region})
    setup = _setup_of(info)
    return digest({
        "attack": setup.attack, "model": setup.model, "options": setup.options, "region": info.options.get("region"),
        "region_options": setup.region_options,
    })  # fmt: skip


def _is_whole(stage: AttackStage) -> bool:
    return stage.info.options.get("region") == "original"


def _distinct(records: Sequence[AttackRecord]) -> tuple[dict[tuple[str, ...], AttackRecord], int]:
    by_key: dict[tuple[str, ...], AttackRecord] = {}
    for record in records:
        by_key.setdefault(record.key, record)
    return by_key, len(records) - len(by_key)


def _setup_of(info: StageInfo) -> Setup:
    model = info.model or {}
    options = {name: value for name, value in info.options.items() if name not in _NOT_THE_SEARCH}
    whole = info.options.get("region") == "original"
    weights = info.options.get("weights")
    return Setup(
        network=str(model.get("name", "unknown")),
        # A group's default command goes without its name.
        attack=info.command.removeprefix("attack ").removesuffix(" images"),
        model=model,
        options=options,
        region_options=None if whole else {name: info.options.get(name) for name in _OF_THE_REGION},
        seed=info.seed,
        weights=None if weights is None else PurePath(str(weights)).name,
    )


def _belongs(new: Setup, records: dict[tuple[str, ...], AttackRecord], old: Setup) -> bool:
    if (new.attack, new.model, new.options) != (old.attack, old.model, old.options):
        return False
    if not _same_regions(new, old) or not _same_images(new, old):
        return False
    if any(record != old.by_key.get(key, record) for key, record in records.items()):
        return False
    old.region_options = old.region_options or new.region_options
    return True


def _cleans(records: dict[tuple[str, ...], AttackRecord]) -> dict[str, int]:
    cleans: dict[str, int] = {}
    for record in records.values():
        if record.id not in cleans and (clean := record.clean_hash) is not None:
            cleans[record.id] = clean
    return cleans


def _same_images(one: Setup, two: Setup) -> bool:
    """Are the images of one name the same in both, as far as known?"""
    return all(two.cleans.get(name, clean) == clean for name, clean in one.cleans.items())


def _same_regions(one: Setup, two: Setup) -> bool:
    return None in (one.region_options, two.region_options) or one.region_options == two.region_options


def _name_variants(setups: Sequence[Setup]) -> None:
    """Tell setups of one network and attack apart by more than pixels and constraint, which tables show anyway."""
    for setup in setups:
        alike = [other for other in setups if _looks(other)[:2] == _looks(setup)[:2]]
        if len(alike) > 1:
            differences = _differences(setup, alike)
            looks = [other for other in alike if _looks(other) == _looks(setup)]
            twins = [other for other in looks if _differences(other, alike) == differences]
            setup.told = differences | ({} if len(twins) == 1 else {"stages": "+".join(setup.stages)})


def _looks(setup: Setup) -> tuple[Any, ...]:
    return (setup.network, setup.attack, *(setup.options.get(name) for name in _SHOWN))


def _differences(setup: Setup, alike: Sequence[Setup]) -> dict[str, str]:
    by_file = _files_tell(alike)
    mine = _flat(setup, by_file)
    others = [_flat(other, by_file) for other in alike]
    names = sorted({name for other in others for name in other})
    return {
        name: worded(name, mine.get(name))
        for name in names
        if name not in _SHOWN
        # An attack on the whole image has no options of the region, in which it could differ.
        and (name not in _OF_THE_REGION or name in mine)
        and any(other.get(name) != mine.get(name) for other in others if name not in _OF_THE_REGION or name in other)
        # A border that was not moved needs no words beside one that was.
        and (name not in _MOVES or mine.get(name))
    }


def _files_tell(setups: Sequence[Setup]) -> bool:
    """Do the names of their weights' files tell networks apart as well as digests do?"""
    models = {(setup.model.get("digest"), setup.weights) for setup in setups}
    return len(models) == len({digest for digest, _ in models}) == len({weights for _, weights in models})


def _flat(setup: Setup, by_file: bool) -> dict[str, Any]:
    own = {f"model {name}": value for name, value in setup.model.items() if name != "name"}
    if by_file:
        own = {name: value for name, value in own.items() if name != "model digest"}
        own["weights"] = setup.weights or "default"
    return own | setup.options | (setup.region_options or {}) | {"seed": setup.seed}


def worded(name: str, value: Any) -> str:
    """Write an option much as it is typed, without its dashes: ``phi=0.5``, ``no-early-stop``."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return name if value else f"no-{name}"
    return f"{name}={_short(value)}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_short, value))
    if isinstance(value, float):
        return f"{value:.6g}"  # 1/3 in short
    text = "-" if value is None else str(value)
    return text[:8] if len(text) == 64 else text  # a sha256


def opposites(setups: Sequence[Setup], option: str, first: Any, second: Any) -> Iterator[tuple[Setup, Setup]]:
    """Yield pairs of setups that differ in ``option`` alone: ``first`` in one, ``second`` in the other."""
    for one in setups:
        for two in setups:
            if (one.options.get(option), two.options.get(option)) != (first, second):
                continue
            same = {**one.options, option: None} == {**two.options, option: None}
            if not same or (one.attack, one.model) != (two.attack, two.model):
                continue
            if _same_regions(one, two) and _same_images(one, two):
                yield one, two


def alike_but(setups: Sequence[Setup], *names: str) -> list[list[Setup]]:
    """Return groups of two or more setups that differ in nothing but ``names``: options of the region, or ``seed``.

    Attacks on the whole image, which has no options of the region, are only in groups by ``seed``, where they are
    alike to those with any.
    """
    groups: list[list[Setup]] = []
    for setup in setups:
        if setup.region_options is None and "seed" not in names:
            continue
        group = next((group for group in groups if _alike_but(group[0], setup, names)), None)
        if group is None:
            groups.append([setup])
        else:
            group.append(setup)
    return [group for group in groups if len(group) > 1]


def _alike_but(one: Setup, two: Setup, names: Sequence[str]) -> bool:
    if (one.attack, one.model, one.options) != (two.attack, two.model, two.options):
        return False
    if ("seed" not in names and one.seed != two.seed) or not _same_images(one, two):
        return False
    return None in (one.region_options, two.region_options) or _but(one, names) == _but(two, names)


def _but(setup: Setup, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in (setup.region_options or {}).items() if name not in names}
