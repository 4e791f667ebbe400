"""``pixelsem evaluate robustness``: what defences leave of attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.figures import FigureOptions, write_figures
from pixelsem.cli.inputs import resolve_inputs
from pixelsem.cli.stages import exit_with
from pixelsem.cli.tables import TableOptions, show_tables, tables_folder
from pixelsem.errors import PixelsemError, StageError
from pixelsem.settings import Settings, option
from pixelsem.transforms.registry import TRANSFORMS
from pixelsem.transforms.specs import Defense, parse_defenses

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pixelsem.cli.attack_stages import AttackStages, Group, Pair, Search
    from pixelsem.metrics.predictions import Predictor
    from pixelsem.metrics.robustness import Tried
    from pixelsem.models import Classifier
    from pixelsem.records import DefendRecord
    from pixelsem.report.robustness import RobustnessRow
    from pixelsem.stage import Stage

Stages = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Attack stages, and stages that `pixelsem defend` made of such (default: stdin, or the newest attack "
        "stage)."
    ),
]

#: Options by which a stage of transformed images is asked for some of them alone.
_SELECTING = ("limit", "sample", "shard")

_HOPS = 16  # transforms in a row that a stage may have behind it


@dataclass(frozen=True)
class RobustnessOptions(Settings):
    """Which defences are tried, and what counts."""

    defense: tuple[str, ...] = option(
        (),
        "A defence such as jpeg:q=55, or one with a list of strengths: jpeg:q=95:5:-10, avg-pool:k=3/5/7; repeat it "
        "for several. Default: what the attacked model itself is behind.",
        metavar="NAME:SETTING=VALUES",
        several=True,
    )
    common: bool = option(
        False, "Count the same images in all rows: attacked in each, and right after every defence.", flag="--common"
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    batch_size: int | None = option(None, "Images per forward pass (default: by their size).", low=1)

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a defence that there is not."""
        _ = self.defenses

    @property
    def defenses(self) -> list[Defense]:
        """Every defence at every strength, each once."""
        return list({each.text: each for text in self.defense for each in parse_defenses(text)}.values())


def evaluate_robustness(
    *,
    context: typer.Context,
    stages: Stages = None,
    what: RobustnessOptions,
    drawing: FigureOptions,
    options: TableOptions,
) -> None:
    """Success after image transforms, against their strength (dong2020, Figs. 4-6, Tables 3 and 4).

    Puts each defence in front of the network that was attacked, and scores the attacked images again, those too that
    did not fool it: grey-box where the attack did not know of the defence, adaptive where it was run with the same
    --defense. Only images count that the model gets right after the defence alone.
    """
    from pixelsem.cli.attack_stages import AttackStages
    from pixelsem.report.robustness import curves_of, draw_robustness, robustness_table
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    given, transformed = _sorted(resolve_inputs(stages, options.run, ("attack",), note=console.note))
    attacks = AttackStages(given)
    work = _Work(attacks, what, transformed)
    with console.progress("robustness", work.total) as bar:
        work.run(bar.update)
    rows, images = work.rows(options.confidence)
    if not rows:
        exit_with(console, work.failures)
        raise PixelsemError(f"{', '.join(attacks.names)}: nothing was attacked; there is nothing to defend against")
    used = [stage.info.contents for stage in transformed]
    key = digest({"stages": attacks.identities, "transformed": used, "what": [*what.defense], "common": what.common})
    folder = tables_folder(context, options, attacks.paths, f"evaluate-robustness-{key[:6]}")
    figures = {"robustness": partial(draw_robustness, rows)} if curves_of(rows) else {}
    files = write_figures(console, folder, figures, drawing.formats)
    summary = {"inputs": attacks.names, "figures": files, "failures": work.failures}
    show_tables(console, folder, [robustness_table(rows, options.confidence, images)], attacks.notes, summary)
    exit_with(console, work.failures)


def _sorted(paths: Sequence[Path]) -> tuple[list[Path], list[Stage]]:
    """Return the attack stages, those behind transformed ones too, and the transformed ones."""
    from pixelsem.stage import STAGE_FILE, Stage

    attacks: list[Path] = []
    transformed: list[Stage] = []
    for path in paths:
        if (path / STAGE_FILE).is_file() and (stage := Stage.open(path)).info.kind == "defend":
            transformed.append(stage)
            path = _lineage(stage)[0].path
            if any(path.resolve() == known.resolve() for known in attacks):
                continue
        attacks.append(path)
    return attacks, transformed


def _lineage(stage: Stage) -> tuple[Stage, list[Stage]]:
    """Return the attack stage whose images a stage has transformed, and all that did: the first one first.

    Raises :class:`StageError` where there is none.
    """
    from pixelsem.stage import Stage

    last, made = stage, [stage]
    for _ in range(_HOPS):
        role = next((role for role in ("attack", "defend") if role in last.info.inputs), None)
        if role is None:
            break
        path = last.path / last.info.inputs[role]
        if not path.is_dir():
            raise StageError(f"{last.path}: the stage that it transformed is not at {path.resolve()}")
        last = Stage.open(path)
        if role == "attack":
            return last, made
        made.insert(0, last)
    raise StageError(f"{stage.path}: holds no images of an attack; make it of an attack stage")


def _defense_of(stage: Stage) -> Defense:
    """Return the transform that made a stage of kind ``defend``; raises :class:`StageError` where that is unknown."""
    from pixelsem.stage import STAGE_FILE

    info = TRANSFORMS.get(stage.info.command.removeprefix("defend "))
    if info is None:
        raise StageError(f"{stage.path}: {stage.info.command!r} is no transform")
    known = info.settings().to_dict()
    values = {name: value for name, value in stage.info.options.items() if name in known}
    try:
        return Defense(info, info.settings.from_dict(values))
    except PixelsemError as error:
        raise StageError(f"{stage.path / STAGE_FILE}: {error}; correct it there") from error


@dataclass(frozen=True)
class _Trial:
    """What images are tried against.

    :ivar defenses: the defences that they go through, the first one first.
    :ivar made: by attack stage, as resolved path, the stages where its images went through them already; empty where
        they are put in front of the network.
    """

    defenses: Sequence[Defense]
    made: dict[Path, list[Stage]]

    @property
    def key(self) -> tuple[str, bool]:
        """What makes one row of the table."""
        from pixelsem.report.robustness import name_row

        return name_row(self.defenses), bool(self.made)


def _trials(stages: Iterable[Stage]) -> list[_Trial]:
    """Return what images of stages of kind ``defend`` went through; those that went through the same are together."""
    trials: dict[tuple[str, bool], _Trial] = {}
    for stage in stages:
        origin, made = _lineage(stage)
        place = origin.path.resolve()
        trial = _Trial([_defense_of(each) for each in made], {place: []})
        trials.setdefault(trial.key, trial).made.setdefault(place, []).append(stage)
    return list(trials.values())


class _Work:
    """Scores every group of searches after every defence."""

    def __init__(self, attacks: AttackStages, what: RobustnessOptions, transformed: Sequence[Stage]) -> None:
        """Raises :class:`PixelsemError` where a group has no defence to be tried against."""
        self._attacks, self._what = attacks, what
        self._groups = [group for group in attacks.groups() if group.attacked]
        self._trials = _trials(transformed)
        self._found: list[tuple[Group, _Trial, list[Tried]]] = []
        self.failures = attacks.failures
        # Of each group its own: the stages of one setup may have been transformed one by one.
        self._plans = {id(group): self._plan(group) for group in self._groups}

    @property
    def total(self) -> int:
        """How many groups are scored how often."""
        return sum(len(self._plans[id(group)]) for group in self._groups)

    def _plan(self, group: Group) -> dict[tuple[str, bool], _Trial]:
        """Return what a group is tried against, by key: what its stages' images went through, and --defense."""
        from pixelsem.models.options import model_of

        origins = {path.resolve() for path in {search.stage.path for search in group.attacked}}
        plan = [trial for trial in self._trials if origins & trial.made.keys()]
        self._note_left_out(origins, plan)
        plan += [_Trial([defense], {}) for defense in self._what.defenses]
        own = model_of(self._attacks.of_setup(group.setup)).defenses
        if not plan and own:
            plan = [_Trial(own, {})]
        if not plan:
            name = group.attacked[0].stage.path
            raise PixelsemError(
                f"{name}: no defence: give --defense, say jpeg:q=95:5:-10, or a stage of `pixelsem defend` made of it"
            )
        return {trial.key: trial for trial in plan}

    def _note_left_out(self, origins: set[Path], plan: Sequence[_Trial]) -> None:
        """Say which stages of a group a row is without, as none was given that transformed their images."""
        names = {stage.path.resolve(): stage.path for stage, _ in self._attacks.stages}
        for trial in plan:
            for origin in sorted(origins - trial.made.keys()):
                note = f"{names[origin]}: no stage of its images after {trial.key[0]} was given; not in that row"
                if note not in self._attacks.notes:
                    self._attacks.notes.append(note)

    def run(self, update: Callable[[float], None]) -> None:
        """Score everything, one network at a time."""
        from pixelsem.models.options import load, model_of

        done = 0
        for setup in self._attacks.setups:
            groups = [group for group in self._groups if group.setup is setup]
            if not groups:
                continue
            # The network itself: what an adaptive attack knew of is put in front of it below.
            classifier = load(replace(model_of(self._attacks.of_setup(setup)), defense=()))
            trials: dict[tuple[str, bool], _Trial] = {}
            for group in groups:
                trials |= self._plans[id(group)]
            for key, trial in trials.items():
                predictor = self._predictor(classifier, [] if trial.made else trial.defenses)
                for group in groups:
                    if key in self._plans[id(group)]:
                        self._found.append((group, trial, self._score(group, predictor, trial)))
                        done += 1
                        update(done)

    def _predictor(self, classifier: Classifier, defenses: Sequence[Defense]) -> Predictor:
        from pixelsem.metrics.predictions import Predictor
        from pixelsem.models.defended import put_behind

        shown = put_behind(classifier, defenses)
        return Predictor(shown, device=self._what.device, batch_size=self._what.batch_size)

    def _score(self, group: Group, predictor: Predictor, trial: _Trial) -> list[Tried]:
        """Return what became of the searches that ran; those whose files cannot be read are left out.

        Where stages hold the transformed images, of the searches of the attack stages behind these alone.
        """
        from pixelsem.cli.attack_stages import read_pairs
        from pixelsem.metrics.robustness import Tried
        from pixelsem.metrics.success import image_of

        images = _Images(trial, group.attacked) if trial.made else None
        searches = group.attacked if images is None else self._held(group.attacked, images)
        numbers = {name: number for number, name in enumerate(predictor.classifier.class_names)}
        tried: list[Tried] = []
        for pairs in read_pairs(searches, self.failures):
            for pair, clean, after in self._predicted(pairs, predictor, images):
                record = pair.search.record
                wanted = numbers.get(record.label if record.target is None else record.target)
                if wanted is None or record.label not in numbers:
                    raise StageError(f"{pair.search.stage.manifest}: {record.label!r} is no class of the model")
                fooled = after is not None and (after == wanted) == (record.target is not None)
                tried.append(Tried(image_of(record), record.success, clean == numbers[record.label], fooled))
        return tried

    def _held(self, searches: Sequence[Search], images: _Images) -> list[Search]:
        """Return the searches whose images were transformed; say how many others a stage should hold, or does not."""
        missing: dict[Path, list[int]] = {}
        held = []
        for search in searches:
            if not images.are_of(search):
                continue
            counts = missing.setdefault(search.stage.path, [0, 0])
            counts[1] += 1
            if images.holds(search):
                held.append(search)
                counts[0] += 1
        for origin, (count, of) in missing.items():
            if count < of:
                name, selected = images.describe(origin)
                told = f"{name}: holds {count} of {of} attacked searches of {origin}"
                if not selected:
                    self.failures[name] = f"{told}; run its command again"
                elif (note := f"{told}; only these are in its row") not in self._attacks.notes:
                    self._attacks.notes.append(note)
        return held

    def _predicted(
        self, pairs: Sequence[Pair], predictor: Predictor, images: _Images | None
    ) -> list[tuple[Pair, int, int | None]]:
        """Return, for every pair, the class of its clean image and that of its attacked one (None where not kept)."""
        chosen: list[tuple[Pair, NDArray[np.uint8], NDArray[np.uint8] | None]] = []
        for pair in pairs:
            attempt = pair.attempt if pair.written else None
            if images is None:
                chosen.append((pair, pair.clean, attempt))
            elif (read := images.of(pair, self.failures)) is not None:
                chosen.append((pair, *read))
        clean = predictor.predict([image for _, image, _ in chosen]).tolist() if chosen else []
        made = [image for _, _, image in chosen if image is not None]
        after = iter(predictor.predict(made).tolist() if made else [])
        return [
            (pair, label, None if image is None else next(after))
            for (pair, _, image), label in zip(chosen, clean, strict=True)
        ]

    def rows(self, confidence: float) -> tuple[list[RobustnessRow], int | None]:
        """Return the rows of the table and, with ``--common``, over how many images they are."""
        from pixelsem.metrics.robustness import right_everywhere, survival
        from pixelsem.report.robustness import RobustnessRow

        images = right_everywhere(tried for _, _, tried in self._found) if self._what.common else None
        rows = []
        for group, trial, tried in self._found:
            found = survival([one for one in tried if images is None or one.image in images], confidence)
            *earlier, defense = trial.defenses
            rows.append(RobustnessRow(group.setup, group.region, group.goal, defense, found, earlier))
        return rows, None if images is None else len(images)


class _Images:
    """The images of stages of kind ``defend``, by the searches that they are of."""

    def __init__(self, trial: _Trial, searches: Sequence[Search]) -> None:
        """Take of the stages of ``trial`` those that are of the attack stages of ``searches``."""
        origins = {path: path.resolve() for path in {search.stage.path for search in searches}}
        self._stages = {path: trial.made[origin] for path, origin in origins.items() if origin in trial.made}
        self._found: dict[tuple[Path, tuple[str, ...]], tuple[Stage, DefendRecord]] = {}
        for path, stages in self._stages.items():
            for stage in stages:
                for record in stage.defend_records():
                    self._found.setdefault((path, record.key), (stage, record))

    def are_of(self, search: Search) -> bool:
        """Was a stage given that transformed the images of the search's stage?"""
        return search.stage.path in self._stages

    def holds(self, search: Search) -> bool:
        """Is there a record of the search among the transformed ones?"""
        return (search.stage.path, search.record.key) in self._found

    def describe(self, origin: Path) -> tuple[str, bool]:
        """Return the names of the stages of an attack stage's images, and whether they were asked for some alone."""
        stages = self._stages[origin]
        selected = any(stage.info.options.get(name) is not None for stage in stages for name in _SELECTING)
        return " + ".join(str(stage.path) for stage in stages), selected

    def of(self, pair: Pair, failures: dict[str, str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None] | None:
        """Return the transformed clean and attacked image of a search; None, and a failure, where there are none."""
        from pixelsem.errors import InputError
        from pixelsem.images import read_image

        search = pair.search.record
        place = pair.search.stage.path
        stage, record = self._found.get((place, search.key), (None, None))
        name = None if record is None else record.adversarial or record.attempt
        if stage is None or record is None or (name is None) == pair.written:
            looked, _ = self.describe(place)
            failures[search.id] = f"{looked}: holds nothing of {search.id!r}; run its command again"
            return None
        try:
            clean = read_image(stage.resolve(record.image))
            made = None if name is None else read_image(stage.resolve(name))
        except (InputError, StageError) as error:
            failures[search.id] = str(error)
            return None
        return clean, made
