"""``pixelsem defend train``: a classifier trained on images as they are, or on attacked ones."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.options import OutputOptions, expand
from pixelsem.cli.stages import close_output, masks_identity, open_output, options_of
from pixelsem.cli.training import TrainingOptions, follow
from pixelsem.defenses.settings import ReadingSettings, TrainSettings
from pixelsem.errors import ClassCountError, ModelError, PixelsemError
from pixelsem.files import cache_folder, write_text
from pixelsem.settings import Settings, option, option_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pixelsem.defenses.card import Accuracies
    from pixelsem.defenses.data import Pictures
    from pixelsem.defenses.examples import Examples
    from pixelsem.engine.regions import RegionMaker
    from pixelsem.models import Classifier
    from pixelsem.records import EpochRecord
    from pixelsem.regions.masks import MaskSource


def register(group: typer.Typer) -> None:
    """Add the command to the group ``defend``."""
    group.command("train", help="Train a classifier; resumable, with a model card beside the weights.")(expand(train))


@dataclass(frozen=True)
class SourceOptions(Settings):
    """Where torchvision's data sets are."""

    data_root: Path | None = option(
        None, "With --data torchvision:NAME: the folder that torchvision keeps it in (default: datasets/ in the cache)."
    )
    download: bool = option(
        False, "With --data torchvision:NAME: download it where it is not there.", flag="--download"
    )


def train(
    *,
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with train/CLASS/… and test/CLASS/… (or val/CLASS/…), images of any size; or torchvision:NAME "
            "(cifar10, cifar100, svhn, stl10, food101, imagenet …).",
            metavar="DIR|torchvision:NAME",
        ),
    ],
    source: SourceOptions,
    reading: ReadingSettings,
    model: Annotated[str, typer.Option("--model", "-m", help="Architecture (see `pixelsem models`).")] = "allconv",
    weights: Annotated[
        Path | None,
        typer.Option(help="Start from these weights, not from random ones.", metavar="FILE", show_default=False),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Masks for --region: a segmentation stage of --data, or a folder with the same names "
            "(train/CLASS/… and test/CLASS/…).",
            show_default=False,
        ),
    ] = None,
    training: TrainingOptions,
    settings: TrainSettings,
    output: OutputOptions,
) -> None:
    """Train a classifier into a stage: checkpoint, weights (fp16) and model card."""
    from pixelsem.defenses.card import TrainingData, model_card
    from pixelsem.defenses.examples import OnTheFly
    from pixelsem.defenses.robustness import find_collapse, robust_images
    from pixelsem.defenses.training import train as train_classifier
    from pixelsem.fitness.evaluator import pick_device
    from pixelsem.models import load_classifier, save_weights

    started = time.monotonic()
    console = Console(quiet=output.quiet, as_json=output.json)
    where = pick_device(training.device)
    pictures, root = _open(data, source)
    names = pictures[0].class_names
    classifier = _classifier(model, weights, names, pictures[0].where)
    resolved = settings.resolved(*classifier.preprocessing.size)
    _refuse_idle(context, pictures, classifier.preprocessing.size, settings.crop)
    train_set, test_set = _Loading(console, pictures, classifier, reading, settings, masks).run()
    if isinstance(train_set, OnTheFly) and _is_typed(context, "crop"):
        raise PixelsemError("--crop goes with training images of the model's input size; leave it out")
    identity = {"settings": resolved.to_dict(), "model": model, "classes": names, "data": _digest(train_set, test_set)}
    if weights is not None:
        identity["weights"] = classifier.digest
    name = Path(model).name.replace(":", "-")  # of FILE.py:FUNCTION without its folder
    noted = data.name if _is_torchvision(data) else data
    stage = open_output(
        context,
        f"train-{name}-{settings.method}",
        kind="train",
        identity=identity if masks is None else {**identity, "masks": masks_identity(masks)},
        options=options_of(settings, training, reading, source, data=noted, model=model, weights=weights, masks=masks),
        inputs={"data": root} if masks is None else {"data": root, "masks": masks},
        output=output,
        modules=("numpy", "torch"),
        seed=settings.seed,
    )
    with console.progress(f"train {model}", settings.epochs) as bar:
        steps = train_classifier(classifier, train_set, test_set, settings, stage.path / "checkpoint.pt", where)
        log = follow(steps, stage, console, bar, settings.epochs, _line)
    collapse = find_collapse(log, robust_images(resolved, len(test_set)))
    if collapse is not None:
        console.problem(f"{collapse}; ended early with the weights of epoch {collapse.best.epoch}")
    described = TrainingData(training.name_of(data), len(train_set), len(test_set), _told(train_set, test_set))
    file = stage.path / f"{name}.safetensors"
    save_weights(classifier, file)
    # What counts is the file: rounding to fp16 may tip a prediction.
    saved = load_classifier(model, weights=file).to(where)
    found = _accuracies(saved, test_set, resolved, where)
    card = model_card(classifier, resolved, described, log, found, (stage.info.versions or {})["torch"], weights)
    write_text(file.with_suffix(".md"), card)
    counts = {"images": described.train, "test_images": described.test, "epochs": len(log)}
    close_output(stage, counts, started)
    told = "" if found.robust is None else f", robust accuracy {100 * found.robust:.2f} %"
    console.note(f"test accuracy {100 * found.clean:.2f} %{told}; use it with --model {model} --weights {file}")
    summary = {"counts": counts, "test_accuracy": found.clean, "robust_accuracy": found.robust, "weights": str(file)}
    console.result(stage.path, summary)


def _is_torchvision(data: Path) -> bool:
    # The name alone: a path in a stage.yaml is seen from the stage.
    return data.name.startswith("torchvision:")


def _open(data: Path, source: SourceOptions) -> tuple[tuple[Pictures, Pictures], Path]:
    """Return the images to train on and those to test on, and the folder where they are."""
    from pixelsem.defenses.data import open_folders
    from pixelsem.defenses.torchvision_data import open_torchvision

    if _is_torchvision(data):
        root = source.data_root or cache_folder() / "datasets"
        return open_torchvision(data.name.partition(":")[2], root, source.download), root
    if source.data_root is not None or source.download:
        raise PixelsemError("--data-root and --download go with --data torchvision:NAME")
    if (data / "cifar-10-batches-py").is_dir():
        return open_torchvision("cifar10", data, False), data
    return open_folders(data), data


def _classifier(model: str, weights: Path | None, names: tuple[str, ...], where: str) -> Classifier:
    """Load the network to train, with one logit for every class of the data, which messages call ``where``."""
    from pixelsem.models import load_classifier

    try:
        return load_classifier(model, weights=weights or "none", class_names=names)
    except ClassCountError as error:
        advice = f"let it return {len(names)} logits"
        if weights is not None:
            advice = "give weights for these classes, or none to start from random ones"
        raise ModelError(
            f"{weights or model}: is for {error.count} classes, {where} has {len(names)}; {advice}"
        ) from None


@dataclass
class _Loading:
    """Brings the images to the network's size, in memory where they have it and on the fly where not."""

    console: Console
    pictures: tuple[Pictures, Pictures]
    classifier: Classifier
    reading: ReadingSettings
    settings: TrainSettings
    masks: Path | None

    def run(self) -> tuple[Examples, Examples]:
        """Return what to train and to test on; raises :class:`PixelsemError` for data that cannot be used."""
        from pixelsem.attacks.settings import RegionOptions
        from pixelsem.engine.regions import RegionMaker
        from pixelsem.regions.masks import MaskSource

        region = self.settings.region or "original"
        source = None if self.masks is None else MaskSource.open(self.masks)
        maker = RegionMaker(RegionOptions(region=region, masks=self.masks), source, self.settings.seed)
        train, test = (self._examples(number, region, maker, source) for number in (0, 1))
        return train, test

    def _examples(self, number: int, region: str, maker: RegionMaker, source: MaskSource | None) -> Examples:
        from pixelsem.defenses.examples import InMemory, OnTheFly
        from pixelsem.engine.regions import RegionReader

        split, pictures, preprocessing = ("train", "test")[number], self.pictures[number], self.classifier.preprocessing
        held = pictures.load(preprocessing.size)
        masks = None if region == "original" else source
        if held is None:
            height, width = preprocessing.size
            self.console.note(
                f"{split}: images of other sizes than {width}×{height} or too many for memory; read as needed"
            )
            regions = None if masks is None else RegionReader(masks, region, pictures.ids())
            return OnTheFly(pictures, preprocessing, self.reading, regions)
        return InMemory(*held, None if masks is None else self._regions(split, pictures.ids(), held[0], region, maker))

    def _regions(self, split: str, ids: list[str], images: Tensor, region: str, maker: RegionMaker) -> Tensor:
        """Return where images in memory may be attacked, bool [N, H, W]."""
        import torch

        from pixelsem.engine.regions import stack_regions

        pixels = images.permute(0, 2, 3, 1).numpy()
        regions, flagged = stack_regions(maker, region, ids, pixels, self.classifier.preprocessing)
        closed = int((~regions.any((1, 2))).sum())
        if closed:
            self.console.note(
                f"{split}: {closed} of {len(regions)} images stay as they are ({flagged} with flagged masks)"
            )
        return torch.from_numpy(regions)


def _refuse_idle(context: typer.Context, pictures: tuple[Pictures, Pictures], size: tuple[int, int], crop: int) -> None:
    """Raise :class:`PixelsemError` for an option on the command line that images of ``size`` leave without effect.

    And for a crop that these are too small to be padded for by so many of their own pixels. Their headers tell that,
    before all of them are read; of images of other sizes the first does.
    """
    idle = {"min_area": pictures[:1], "resize": pictures[1:], "workers": pictures}
    for name, needed in idle.items():
        if _is_typed(context, name) and all(each.are_for_memory(size) for each in needed):
            raise PixelsemError(
                f"{option_name(name)} goes with images of other sizes than the model's input size; leave it out"
            )
    if crop >= min(size) and pictures[0].are_for_memory(size):
        height, width = size
        raise PixelsemError(
            f"--crop {crop}: images of {width}×{height} pixels can be padded by {min(size) - 1} at most"
        )


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _digest(*parts: Examples) -> str:
    """Return the sha256 (hex) of what tells these examples from others."""
    content = hashlib.sha256()
    for part in parts:
        for piece in part.contents():
            content.update(piece)
    return content.hexdigest()


def _told(train_set: Examples, test_set: Examples) -> dict[str, str]:
    """Return what the model card tells of how images of other sizes were read."""
    from pixelsem.defenses.examples import OnTheFly

    told = {}
    if isinstance(train_set, OnTheFly):
        told["crop"] = f"random, at least {train_set.reading.min_area:g} of the area, resized"
    if isinstance(test_set, OnTheFly):
        told["test images"] = {"crop": "resized and cropped", "squash": "squashed"}[test_set.reading.resize]
    return told


def _accuracies(
    classifier: Classifier, test_set: Examples, settings: TrainSettings, device: torch.device
) -> Accuracies:
    """Measure a trained network; ``settings`` are resolved."""
    from pixelsem.defenses.card import Accuracies
    from pixelsem.defenses.robustness import attacked_accuracy, measuring_batch
    from pixelsem.defenses.training import measure_accuracy

    robust, _ = attacked_accuracy(classifier, test_set, settings, device)
    batch = measuring_batch(test_set, settings)
    return Accuracies(measure_accuracy(classifier, test_set, device=device, batch=batch), robust)


def _line(epoch: EpochRecord) -> str:
    """Return what is told of an epoch on the console."""
    shares = {
        "train": epoch.train_accuracy,
        "test": epoch.test_accuracy,
        "robust": epoch.robust_accuracy,
        "FGSM": epoch.fgsm_accuracy,
    }
    told = ", ".join(f"{name} {100 * share:.2f} %" for name, share in shares.items() if share is not None)
    return f"epoch {epoch.epoch}: loss {epoch.loss:.4f}, {told}, {epoch.seconds:.0f} s"
