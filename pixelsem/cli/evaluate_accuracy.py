"""``pixelsem evaluate accuracy``: how often classifiers are right on clean images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.options import SelectionOptions
from pixelsem.cli.stages import exit_with
from pixelsem.cli.tables import TableOptions, show_tables, tables_folder
from pixelsem.errors import InputError, PixelsemError
from pixelsem.models.options import load, parse_models
from pixelsem.models.settings import ModelOptions
from pixelsem.settings import Settings, option, option_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pixelsem.models import Classifier
    from pixelsem.report.accuracy import AccuracyRow
    from pixelsem.sources import ImageItem


@dataclass(frozen=True)
class AccuracyOptions(Settings):
    """Of which models, and on which images, accuracy is measured, and how they are scored."""

    models: tuple[str, ...] | None = option(
        None, "Several models in one table: as --model takes them, NAME=WEIGHTS to load a file into it, or a FILE.yaml "
        "of names with model options each (default: the one of --model).", metavar="A,B=FILE,…",
    )  # fmt: skip
    data: Path | None = option(
        None, "Labelled images: CLASS/… or test/CLASS/… below it (names or numbers of the model's classes).", flag="-d"
    )
    resize: Literal["crop", "squash"] = option(
        "crop", "How an image reaches the model's resolution: the model's own resize and crop, or squashed."
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    batch_size: int = option(256, "Images per forward pass.", low=1)


def evaluate_accuracy(
    *,
    context: typer.Context,
    model: ModelOptions,
    data: AccuracyOptions,
    selection: SelectionOptions,
    options: TableOptions,
) -> None:
    """Top-1 and top-5 accuracy on clean images, in fp32, overall and by class (wang2021, Table I).

    Folders that are no class of a model are left out, and named.
    """
    from pixelsem.report.accuracy import accuracy_table, classes_table
    from pixelsem.sources import fingerprint
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    models = _models(context, model, data.models)
    items = _images(data.data, selection)
    work = _Work(items, data, options.confidence, console)
    if len(models) == 1:
        work.test(*next(iter(models.items())))
    else:
        work.test_all(models)
    if not work.rows:
        exit_with(console, work.failures)
    key = digest({"models": work.digests, "images": fingerprint(items), "resize": data.resize})
    folder = tables_folder(context, options, [], f"evaluate-accuracy-{key[:6]}")
    tables = [accuracy_table(work.rows, options.confidence), classes_table(work.rows)]
    show_tables(console, folder, tables, work.notes, {"models": work.digests, "failures": work.failures})
    exit_with(console, work.failures)


def _models(context: typer.Context, model: ModelOptions, given: Sequence[str] | None) -> dict[str, ModelOptions]:
    """Return the models by the name that tables call them by; an empty one stands for the model's own."""
    if given is None:
        return {"": model}
    for each in fields(ModelOptions):
        source = context.get_parameter_source(each.name)
        if source is not None and source.name == "COMMANDLINE":
            raise PixelsemError(
                f"--models names the models; leave {option_name(each.name)} out, or put it in a FILE.yaml"
            )
    return parse_models(given)


def _images(root: Path | None, selection: SelectionOptions) -> list[ImageItem]:
    from pixelsem.defenses.data import find_split
    from pixelsem.sources import open_images, select

    if root is None:
        raise PixelsemError("no images: give --data a folder with CLASS/… or test/CLASS/…")
    if not root.is_dir():
        raise PixelsemError(f"{root}: no such folder; give --data a folder with CLASS/… or test/CLASS/…")
    items = open_images(find_split(root, "test") or root).items
    return select(items, selection.limit, selection.sample, selection.seed)


class _Work:
    """Tests models one after the other, so that one at a time is in memory."""

    def __init__(
        self, items: Sequence[ImageItem], options: AccuracyOptions, confidence: float, console: Console
    ) -> None:
        self.items, self.options, self.confidence, self.console = items, options, confidence, console
        self.rows: list[AccuracyRow] = []
        self.digests: dict[str, str] = {}
        self.notes: list[str] = []
        self.failures: dict[str, str] = {}

    def test_all(self, models: dict[str, ModelOptions]) -> None:
        """Add a row for every model; one that cannot be tested becomes a failure."""
        for name, model in models.items():
            try:
                self.test(name, model)
            except PixelsemError as error:
                self.failures[name] = f"{name}: {error}; left out"

    def test(self, name: str, options: ModelOptions) -> None:
        """Add a model's row; raises :class:`PixelsemError` where there is no image that it can be tested on."""
        from pixelsem.metrics.accuracy import accuracy
        from pixelsem.report.accuracy import AccuracyRow

        classifier = load(options)
        name = name or classifier.name
        if not classifier.trained:
            self.console.problem(f"{name} has no trained weights; its accuracy is that of guessing")
        labels, left_out = label_images(self.items, classifier.class_names)
        items = [item for item in self.items if item.id in labels]
        scoring = _Scoring(classifier, items, labels, self.options, self.failures)
        with self.console.progress(f"accuracy {name}", len(items)) as bar:
            found = accuracy(scoring.batches(bar.update), len(classifier.class_names), self.confidence)
        if found.top1 is None:
            raise PixelsemError(f"{self.options.data}: none of {len(items)} images can be read")
        self.notes += [f"{count} images in {folder} left out: no class of {name}" for folder, count in left_out.items()]
        self.digests[name] = classifier.digest
        self.rows.append(AccuracyRow(name, found, classifier.class_names))


def label_images(items: Sequence[ImageItem], class_names: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the class number of every image, by id, and how many are in which folder that is no class.

    Raises :class:`PixelsemError` where all of them are.
    """
    from pixelsem.models.labels import Labels

    rule = Labels("given", class_names)
    numbers: dict[str | None, int] = {}
    problems: dict[str | None, str] = {}
    for item in items:
        if item.folder in numbers or item.folder in problems:
            continue
        if item.folder is None:
            problems[None] = f"{item.path}: is in no class folder; expected CLASS/… below --data"
            continue
        try:
            numbers[item.folder] = rule.index(item.folder, str(item.path))
        except PixelsemError as error:
            problems[item.folder] = str(error)
    if not numbers:
        raise PixelsemError(next(iter(problems.values())))
    left_out = Counter(f"{item.folder}/" if item.folder else "no folder" for item in items if item.folder in problems)
    return {item.id: numbers[item.folder] for item in items if item.folder in numbers}, dict(left_out)


@dataclass
class _Scoring:
    """Reads and scores images batch by batch; unreadable ones go to ``failures``."""

    classifier: Classifier
    items: Sequence[ImageItem]
    labels: dict[str, int]
    options: AccuracyOptions
    failures: dict[str, str]

    def batches(
        self, on_progress: Callable[[float], None]
    ) -> Iterator[tuple[NDArray[np.floating], NDArray[np.integer]]]:
        """Yield (fp32 logits [N, classes], labels [N]) of the images that can be read."""
        import numpy as np
        import torch

        from pixelsem.fitness.evaluator import Evaluator

        size = self.options.batch_size
        evaluator = Evaluator(self.classifier, device=self.options.device, precision="fp32", batch_size=size)
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self.items), size):
                part = self.items[start : start + size]
                read = [found for found in pool.map(self._read, part) if found is not None]
                if read:
                    pixels = torch.from_numpy(np.stack([image for image, _ in read]))
                    logits = evaluator.attach(pixels.permute(0, 3, 1, 2).contiguous())
                    yield logits.cpu().numpy(), np.array([label for _, label in read])
                on_progress(start + len(part))

    def _read(self, item: ImageItem) -> tuple[NDArray[np.uint8], int] | None:
        from pixelsem.images import read_image
        from pixelsem.models.inputs import fit_image

        try:
            image = fit_image(read_image(item.path), self.classifier.preprocessing, self.options.resize)
        except InputError as error:
            self.failures[item.id] = str(error)
            return None
        return image, self.labels[item.id]
