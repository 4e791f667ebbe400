"""``pixelsem evaluate transfer``: does what fools one model fool others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.figures import FigureOptions, write_figures
from pixelsem.cli.stages import exit_with
from pixelsem.cli.tables import TableOptions, show_tables, tables_folder
from pixelsem.errors import PixelsemError
from pixelsem.models.options import load, model_of, parse_models
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pixelsem.cli.attack_stages import AttackStages, Group
    from pixelsem.metrics.predictions import Predictor
    from pixelsem.metrics.transfer import Look
    from pixelsem.models import Classifier
    from pixelsem.models.settings import ModelOptions
    from pixelsem.report.transfer import TransferRow

Stages = Annotated[
    list[Path] | None,
    typer.Argument(help="Attack stages; several make one matrix (default: stdin, or the newest attack stage)."),
]


@dataclass(frozen=True)
class TransferOptions(Settings):
    """Which models are tested, and how."""

    models: tuple[str, ...] | None = option(
        None, "Target models: as --model takes them, NAME=WEIGHTS to load a file into one, or a FILE.yaml of names "
        "with model options each (default: the models of the stages).", metavar="A,B=FILE,…",
    )  # fmt: skip
    over: Literal["written", "attacked"] = option(
        "written", "What the matrix and the heat maps are over: written, the images that fooled the substitute; "
        "attacked, those too that did not, as the papers count (in the white box this is the ASR).",
    )  # fmt: skip
    common: bool = option(
        False, "Count only images that were attacked in every row, so that every substitute is right on them "
        "(qian2021, §IV-A).", flag="--common",
    )  # fmt: skip
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    batch_size: int | None = option(None, "Images per forward pass (default: by their size).", low=1)


def evaluate_transfer(
    *,
    context: typer.Context,
    stages: Stages = None,
    what: TransferOptions,
    drawing: FigureOptions,
    options: TableOptions,
) -> None:
    """Substitute × target matrices of success and accuracy (dong2020, Table 1; qian2021, Figs. 7 and 8).

    Scores every attacked image of the stages with each target model. Only images that the target model gets right
    clean count. Images of another size than a target model's input are resized to it.
    """
    from pixelsem.cli.attack_stages import open_attacks
    from pixelsem.report.transfer import draw_transfer, matrix_table, transfer_table
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    attacks = open_attacks(stages, options.run, console.note)
    models = _targets(attacks, what.models)
    work = _Work(attacks, what, options.confidence)
    with console.progress("transfer", len(models) * len(work.groups)) as bar:
        for name, target in models.items():
            work.test(name, target, bar.update)
    if not work.rows:
        exit_with(console, work.failures)
    rows = work.ordered()
    key = digest({"stages": attacks.identities, "models": work.digests, "common": what.common, "over": what.over})
    folder = tables_folder(context, options, attacks.paths, f"evaluate-transfer-{key[:6]}")
    figures = {
        "transfer-success": partial(draw_transfer, rows, what.over, accuracy=False),
        "transfer-accuracy": partial(draw_transfer, rows, what.over, accuracy=True),
    }
    files = write_figures(console, folder, figures, drawing.formats)
    tables = [matrix_table(rows, what.over), transfer_table(rows, options.confidence)]
    summary = {"inputs": attacks.names, "models": work.digests, "figures": files, "failures": work.failures}
    show_tables(console, folder, tables, work.notes, summary)
    exit_with(console, work.failures)


class _Target(NamedTuple):
    """A target model; ``digest`` is that of the model it must be, None for one that the user named."""

    options: ModelOptions
    digest: str | None = None


def _targets(attacks: AttackStages, given: Sequence[str] | None) -> dict[str, _Target]:
    """Return the target models by name: those that are given, else those of the stages, each once."""
    if given is not None:
        return {name: _Target(options) for name, options in parse_models(given).items()}
    found: dict[str, _Target] = {}
    for setup in attacks.setups:
        stage, digest = attacks.of_setup(setup), str(setup.model.get("digest"))
        if digest not in {target.digest for target in found.values()}:
            name = setup.network if setup.network not in found else f"{setup.network} ({stage.path.name})"
            found[name] = _Target(model_of(stage), digest)
    return found


def _groups(attacks: AttackStages, common: bool) -> tuple[list[Group], list[str]]:
    """Return what was attacked, and notes; with ``common`` only images that are in every group."""
    from pixelsem.cli.attack_stages import common_images

    groups, notes = [group for group in attacks.groups() if group.attacked], list(attacks.notes)
    if common and groups:
        images = common_images(groups)
        notes.append(f"{len(images)} images were attacked in every row")
        groups = [kept for group in groups if (kept := group.kept(images)).attacked]
    if not groups:
        raise PixelsemError(f"{', '.join(attacks.names)}: no image was attacked; there is nothing to transfer")
    return groups, notes


class _Work:
    """Tests target models one after the other, so that one at a time is in memory."""

    def __init__(self, attacks: AttackStages, what: TransferOptions, confidence: float) -> None:
        """Raises :class:`PixelsemError` where nothing was attacked."""
        self.groups, self.notes = _groups(attacks, what.common)
        self.what, self.confidence = what, confidence
        self.rows: list[TransferRow] = []
        self.digests: dict[str, str] = {}
        self.failures = attacks.failures

    def test(self, name: str, target: _Target, update: Callable[[float], None]) -> None:
        """Add the rows of one target model; one with other classes than the attacks' becomes a failure.

        So does one that should be a stage's own and is another: its file was changed or is elsewhere now.
        """
        from pixelsem.metrics.predictions import Predictor

        classifier = load(target.options)
        if target.digest not in (None, classifier.digest):
            self.failures[name] = f"{name}: is not the model that was attacked; say where that is with --models"
            return
        predictor = Predictor(classifier, device=self.what.device, batch_size=self.what.batch_size)
        rows: list[TransferRow] = []
        try:
            for group in self.groups:
                rows.append(self._row(name, group, predictor))
                update(len(self.rows) + len(rows))
        except PixelsemError as error:
            self.failures[name] = f"{name}: {error}; left out"
            return
        self.rows += rows
        self.digests[name] = classifier.digest
        self._note_sizes(name, classifier)

    def _row(self, name: str, group: Group, predictor: Predictor) -> TransferRow:
        from pixelsem.metrics.transfer import transfer
        from pixelsem.report.setups import describe_search
        from pixelsem.report.transfer import TransferRow

        looks = list(_look(group, predictor, self.failures))
        white = group.setup.model.get("digest") == predictor.classifier.digest
        names = describe_search(group.setup, group.region, group.goal)
        return TransferRow(names, name, white, transfer(looks, self.confidence))

    def _note_sizes(self, name: str, classifier: Classifier) -> None:
        height, width = classifier.preprocessing.size
        records = (group.attacked[0].record for group in self.groups)
        sizes = {f"{record.width}×{record.height}" for record in records} - {f"{width}×{height}"}
        if sizes:
            self.notes.append(f"{name}: images of {', '.join(sorted(sizes))} were resized to {width}×{height}")

    def ordered(self) -> list[TransferRow]:
        """Return the rows of one attack after each other, its target models in the order given."""
        order = {tuple(row.names): number for number, row in reversed(list(enumerate(self.rows)))}
        return sorted(self.rows, key=lambda row: order[tuple(row.names)])


def _look(group: Group, predictor: Predictor, failures: dict[str, str]) -> Iterator[Look]:
    """Yield what a target model makes of a group's clean and attacked images.

    Raises :class:`PixelsemError` where it does not know the classes.
    """
    from pixelsem.cli.attack_stages import read_pairs
    from pixelsem.metrics.success import image_of
    from pixelsem.metrics.transfer import Look
    from pixelsem.models.labels import Labels

    classes = Labels("given", predictor.classifier.class_names)
    for pairs in read_pairs(group.attacked, failures):
        written = [pair.attempt for pair in pairs if pair.written and pair.attempt is not None]
        clean = predictor.predict([pair.clean for pair in pairs])
        attacked = iter(predictor.predict(written).tolist())
        for pair, before in zip(pairs, clean.tolist(), strict=True):
            record = pair.search.record
            label = classes.index(record.label, str(pair.search.stage.path))
            target = None if record.target is None else classes.index(record.target, str(pair.search.stage.path))
            hit = correct = None
            if pair.written:
                after = next(attacked)
                correct = after == label
                hit = not correct if target is None else after == target
            yield Look(image_of(record), before == label, record.success, hit, correct)
