"""``pixelsem evaluate occlusion``: is the region what a classifier goes by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.evaluate_masks import Masks, open_masks
from pixelsem.cli.figures import FigureOptions, write_figures
from pixelsem.cli.inputs import resolve_inputs
from pixelsem.cli.stages import exit_with
from pixelsem.cli.tables import TableOptions, show_tables, tables_folder
from pixelsem.errors import InputError, PixelsemError
from pixelsem.models.options import load, model_of, parse_models, resize_of
from pixelsem.models.settings import ModelOptions
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pixelsem.metrics.occlusion import Seen
    from pixelsem.metrics.predictions import Predictor
    from pixelsem.models import Classifier
    from pixelsem.models.labels import Labels
    from pixelsem.regions.masks import Region
    from pixelsem.regions.matching import NamedMasks
    from pixelsem.report.occlusion import OcclusionRow
    from pixelsem.sources import ImageItem
    from pixelsem.stage import Stage

_ATTENTION = ("cam", "gradcam")

#: Where qian2021 cuts the attention (§IV-B).
_TAU = 0.2

_AT_A_TIME = 256


@dataclass(frozen=True)
class OcclusionOptions(Settings):
    """Which models look at which images, and what the region is."""

    models: tuple[str, ...] | None = option(
        None, "Models to test on every input: as --model takes them, NAME=WEIGHTS, or a FILE.yaml of names with model "
        "options each (default: the model that a stage of segment --method gradcam was made with, else allconv).",
        metavar="A,B=FILE,…",
    )  # fmt: skip
    images: Path | None = option(
        None, "The images of the masks; a segmentation stage knows its own. A folder, one image, or a stage.", flag="-i"
    )
    tau: float | None = option(
        None, "From which share of its maximum on a soft mask is the region (default: 0.2 for cam and gradcam, as in "
        "qian2021, else as the masks' method has it).", low=0, high=1, metavar="τ",
    )  # fmt: skip
    fill: Literal["black", "mean"] = option(
        "black", "What pixels become: black (0, as in qian2021), or the mean colour that the model subtracts."
    )
    labels: str = option(
        "auto", "The right class: given (the image's class folder), predicted, FILE.csv (id,class), or auto: given "
        "where the folder names a class, else predicted.", metavar="given|predicted|FILE.csv",
    )  # fmt: skip
    resize: Literal["crop", "squash"] | None = option(
        None, "How images reach the model's resolution: its own resize and crop, or squashed (default: as the masks "
        "were made, else crop).",
    )  # fmt: skip
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    batch_size: int | None = option(None, "Images per forward pass (default: by their size).", low=1)


def evaluate_occlusion(
    *,
    context: typer.Context,
    masks: Masks = None,
    what: OcclusionOptions,
    drawing: FigureOptions,
    options: TableOptions,
) -> None:
    """Accuracy with a region's pixels set to 0, and with all but the region's (qian2021, Fig. 3: Adv-CFR, Adv-non-CFR).

    The region is the masks' foreground: with segment --method gradcam the contributing features. All images that
    have a mask count.
    """
    from pixelsem.report.occlusion import draw_occlusion, occlusion_table
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    sources = open_masks(resolve_inputs(masks, options.run, ("segment",), note=console.note))
    jobs = [_Job(name, source, *model) for name, source in sources.items() for model in _models(source, what.models)]
    rows: list[OcclusionRow] = []
    digests: list[str] = []
    notes: list[str] = []
    failures: dict[str, str] = {}
    with console.progress("occlusion", len(jobs)) as bar:
        for number, job in enumerate(jobs, 1):
            row, key = job.run(what, options.confidence, notes, failures)
            rows += [row] if row else []
            digests.append(key)
            bar.update(number)
    if not rows:
        exit_with(console, failures)
        raise PixelsemError(f"{', '.join(str(source.path) for source in sources.values())}: no image has a mask")
    asked = {"tau": what.tau, "fill": what.fill, "labels": what.labels, "resize": what.resize}
    key = digest({"masks": [source.identity() for source in sources.values()], "models": digests, **asked})
    folder = tables_folder(
        context, options, [source.path for source in sources.values()], f"evaluate-occlusion-{key[:6]}"
    )
    files = write_figures(console, folder, {"occlusion": partial(draw_occlusion, rows)}, drawing.formats)
    inputs = [str(source.path) for source in sources.values()]
    summary = {"inputs": inputs, "figures": files, "failures": failures}
    show_tables(console, folder, [occlusion_table(rows, options.confidence)], notes, summary)
    exit_with(console, failures)


def _models(source: NamedMasks, given: Sequence[str] | None) -> list[tuple[str, ModelOptions]]:
    """Return the models that look at the images of some masks, by name."""
    if given is not None:
        return list(parse_models(given).items())
    stage = _stage(source)
    options = ModelOptions() if stage is None else model_of(stage)
    return [(options.model, options)]


def _stage(source: NamedMasks) -> Stage | None:
    from pixelsem.stage import Stage

    return Stage.open(source.path) if source.is_stage else None


@dataclass
class _Job:
    """One model on one set of masks."""

    name: str
    source: NamedMasks
    network: str
    model: ModelOptions
    predicted: int = 0

    def run(
        self, what: OcclusionOptions, confidence: float, notes: list[str], failures: dict[str, str]
    ) -> tuple[OcclusionRow | None, str]:
        """Return the row, None without any image, and the model's digest."""
        from pixelsem.metrics.occlusion import occlusion
        from pixelsem.metrics.predictions import Predictor
        from pixelsem.models.labels import Labels
        from pixelsem.report.occlusion import OcclusionRow

        classifier = load(self.model)
        predictor = Predictor(classifier, device=what.device, batch_size=what.batch_size)
        reader = _Reader(self.source, classifier, what, _stage(self.source))
        labels = Labels(what.labels, classifier.class_names)
        found = occlusion(list(self._look(reader, predictor, labels, failures)), confidence)
        notes += reader.notes(self.network, self.predicted)
        if found is None:
            return None, classifier.digest
        return OcclusionRow(self.network, self.name, reader.cut, found), classifier.digest

    def _look(self, reader: _Reader, predictor: Predictor, labels: Labels, failures: dict[str, str]) -> Iterator[Seen]:
        from pixelsem.metrics.occlusion import Seen, fill

        for read in reader.read(failures):
            filled = [fill(image, region, reader.colour) for _, image, region in read]
            clean = predictor.predict([image for _, image, _ in read]).tolist()
            without = predictor.predict([one for one, _ in filled]).tolist()
            alone = predictor.predict([one for _, one in filled]).tolist()
            for (image_id, _, region), *seen in zip(read, clean, without, alone, strict=True):
                try:
                    label, source = labels.of(image_id, seen[0])
                except InputError as error:
                    failures[image_id] = str(error)
                    continue
                self.predicted += source == "predicted"
                right = [one == label for one in seen]
                yield Seen(right[0], right[1], right[2], float(region.mean()))


class _Reader:
    """Reads images and their regions at a model's resolution."""

    def __init__(self, source: NamedMasks, classifier: Classifier, what: OcclusionOptions, stage: Stage | None) -> None:
        from pixelsem.sources import open_images

        if what.images is None and not source.is_stage:
            raise PixelsemError(f"{source.path}: a mask folder does not know its images; give them with --images DIR")
        self._source, self._preprocessing = source, classifier.preprocessing
        self._items: Sequence[ImageItem] = open_images(what.images or source.path).items
        made = stage.info.options if stage else {}
        self._resize = what.resize or ("crop" if stage is None else resize_of(stage))
        self._tau = _TAU if what.tau is None and made.get("method") in _ATTENTION else what.tau
        self.colour = _mean_colour(classifier) if what.fill == "mean" else (0, 0, 0)
        #: Where soft masks were cut; None where there was none.
        self.cut: float | None = None
        self._without_mask = 0

    def read(self, failures: dict[str, str]) -> Iterator[list[tuple[str, NDArray[np.uint8], Region]]]:
        """Yield (id, uint8 [h, w, 3], bool [h, w]) in lists; what cannot be read goes to ``failures``."""
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self._items), _AT_A_TIME):
                part = self._items[start : start + _AT_A_TIME]
                read = [found for found in pool.map(partial(self._read, failures=failures), part) if found is not None]
                if read:
                    yield read

    def _read(self, item: ImageItem, failures: dict[str, str]) -> tuple[str, NDArray[np.uint8], Region] | None:
        from pixelsem.images import read_image
        from pixelsem.models.inputs import fit_image, fit_mask

        try:
            entry = self._source.find(item.id)
            if entry is None:
                self._without_mask += 1
                return None
            full = read_image(item.path)
            values = fit_mask(entry.values, full.shape, self._preprocessing, self._resize)
            image = fit_image(full, self._preprocessing, self._resize)
        except InputError as error:
            failures[item.id] = str(error)
            return None
        threshold = entry.threshold if self._tau is None else self._tau
        if entry.kind == "soft":
            self.cut = threshold
        return item.id, image, replace(entry, values=values, threshold=threshold).region("foreground")

    def notes(self, network: str, predicted: int) -> list[str]:
        """Say what was left out, and where accuracy is only agreement with the clean prediction."""
        found = []
        if self._without_mask:
            found.append(f"{self._without_mask} images have no mask in {self._source.path}; left out")
        if predicted:
            found.append(f"{network}: the label of {predicted} images is the model's own clean prediction")
        return found


def _mean_colour(classifier: Classifier) -> tuple[int, int, int]:
    """Return the 8-bit colour that the model's normalisation takes to 0."""
    given = classifier.preprocessing
    red, green, blue = (round(255 * min(max(mean / given.scale, 0), 1)) for mean in given.mean)
    return red, green, blue
