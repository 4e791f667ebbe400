"""``pixelsem evaluate accuracy``: how often a classifier is right on clean images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pixelsem.cli.console import Console
from pixelsem.cli.options import SelectionOptions
from pixelsem.cli.stages import exit_with
from pixelsem.cli.tables import TableOptions, show_tables
from pixelsem.errors import InputError, PixelsemError
from pixelsem.models.options import load
from pixelsem.models.settings import ModelOptions
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pixelsem.metrics.accuracy import Accuracy
    from pixelsem.models import Classifier
    from pixelsem.report.tables import Cell, Table
    from pixelsem.sources import ImageItem


@dataclass(frozen=True)
class AccuracyOptions(Settings):
    """On which images accuracy is measured, and how they are scored."""

    data: Path | None = option(
        None, "Labelled images: CLASS/… or test/CLASS/… below it (names or numbers of the model's classes).", flag="-d"
    )
    resize: Literal["crop", "squash"] = option(
        "crop", "How an image reaches the model's resolution: the model's own resize and crop, or squashed."
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    batch_size: int = option(256, "Images per forward pass.", low=1)


def evaluate_accuracy(
    *, model: ModelOptions, data: AccuracyOptions, selection: SelectionOptions, options: TableOptions
) -> None:
    """Top-1 and top-5 accuracy on clean images, in fp32, overall and by class (wang2021, Table I)."""
    from pixelsem.metrics.accuracy import accuracy
    from pixelsem.sources import fingerprint
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    items = _images(data.data, selection)
    classifier = load(model)
    if not classifier.trained:
        console.problem(f"{classifier.name} has no trained weights; its accuracy is that of guessing")
    scoring = _Scoring(classifier, items, _labels(items, classifier.class_names), data)
    with console.progress("accuracy", len(items)) as bar:
        found = accuracy(scoring.batches(bar.update), len(classifier.class_names), options.confidence)
    if found.top1 is None:
        raise PixelsemError(f"{data.data}: none of {len(items)} images can be read")
    key = digest({"model": classifier.digest, "images": fingerprint(items), "resize": data.resize})
    folder = options.output or options.run / f"evaluate-accuracy-{key[:6]}"
    tables = _tables(classifier, found, options.confidence)
    summary = {"model": {"name": classifier.name, "digest": classifier.digest}, "failures": scoring.failures}
    show_tables(console, folder, tables, [], summary)
    exit_with(console, scoring.failures)


def _images(root: Path | None, selection: SelectionOptions) -> list[ImageItem]:
    from pixelsem.defenses.data import find_split
    from pixelsem.sources import open_images, select

    if root is None:
        raise PixelsemError("no images: give --data a folder with CLASS/… or test/CLASS/…")
    if not root.is_dir():
        raise PixelsemError(f"{root}: no such folder; give --data a folder with CLASS/… or test/CLASS/…")
    items = open_images(find_split(root, "test") or root).items
    return select(items, selection.limit, selection.sample, selection.seed)


def _labels(items: Sequence[ImageItem], class_names: tuple[str, ...]) -> dict[str, int]:
    """Return the class number of every image, by id; raises :class:`PixelsemError` where one has none."""
    from pixelsem.models.labels import Labels

    rule = Labels("given", class_names)
    labels = {}
    for item in items:
        if item.folder is None:
            raise PixelsemError(f"{item.path}: is in no class folder; expected CLASS/… below --data")
        labels[item.id] = rule.index(item.folder, str(item.path))
    return labels


@dataclass
class _Scoring:
    """Reads and scores images batch by batch; unreadable ones go to ``failures``."""

    classifier: Classifier
    items: Sequence[ImageItem]
    labels: dict[str, int]
    options: AccuracyOptions
    failures: dict[str, str] = field(default_factory=dict)

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


def _tables(classifier: Classifier, found: Accuracy, confidence: float) -> list[Table]:
    from pixelsem.report.tables import Column, Table

    level = f"Share of the images (count/images), Wilson {100 * confidence:g} % intervals, fp32."
    network = Column("network", "Network", about=True)
    columns = (network, Column("top1", "Top-1", "rate"), Column("top5", "Top-5", "rate"))
    overall: list[Cell] = [classifier.name, found.top1, found.top5]
    names = zip(classifier.class_names, found.per_class, strict=True)
    return [
        Table("accuracy", "Accuracy on clean images", columns, [overall], [level]),
        Table(
            "classes",
            "Accuracy by class",
            (Column("class", "Class", about=True), Column("accuracy", "Accuracy", "rate")),
            [[name, share] for name, share in names if share is not None],
        ),
    ]
