"""``pixelsem defend train``: a classifier trained on images as they are, or on attacked ones."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.options import OutputOptions, expand
from pixelsem.cli.stages import close_output, masks_identity, open_output, options_of
from pixelsem.cli.training import TrainingOptions, follow
from pixelsem.defenses.settings import TrainSettings
from pixelsem.errors import PixelsemError
from pixelsem.files import write_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pixelsem.defenses.card import Accuracies
    from pixelsem.models import Classifier
    from pixelsem.records import EpochRecord


def register(group: typer.Typer) -> None:
    """Add the command to the group ``defend``."""
    group.command("train", help="Train a classifier; resumable, with a model card beside the weights.")(expand(train))


def train(
    *,
    context: typer.Context,
    data: Annotated[
        Path, typer.Option(help="Folder with train/CLASS/… and test/CLASS/…, or torchvision's CIFAR-10 folder.")
    ],
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
    from pixelsem.defenses.robustness import find_collapse
    from pixelsem.defenses.training import train as train_classifier
    from pixelsem.fitness.evaluator import pick_device
    from pixelsem.models import load_classifier, save_weights

    started = time.monotonic()
    console = Console(quiet=output.quiet, as_json=output.json)
    where = pick_device(training.device)
    train_set, test_set, names = _load(data)
    images, test_images = train_set[0], test_set[0]
    classifier = load_classifier(model, weights=weights or "none", class_names=names)
    _check_size(data, images, classifier)
    _check_size(data, test_images, classifier)
    resolved = settings.resolved(*classifier.preprocessing.size)
    regions = _regions(console, data, masks, settings, (images, test_images), classifier)
    content = _digest(*train_set, *test_set)
    identity = {"settings": resolved.to_dict(), "model": model, "classes": names, "data": content}
    if weights is not None:
        identity["weights"] = classifier.digest
    name = Path(model).name.replace(":", "-")  # of FILE.py:FUNCTION without its folder
    stage = open_output(
        context,
        f"train-{name}-{settings.method}",
        kind="train",
        identity=identity if masks is None else {**identity, "masks": masks_identity(masks)},
        options=options_of(settings, training, data=data, model=model, weights=weights, masks=masks),
        inputs={"data": data} if masks is None else {"data": data, "masks": masks},
        output=output,
        modules=("numpy", "torch"),
        seed=settings.seed,
    )
    with console.progress(f"train {model}", settings.epochs) as bar:
        steps = train_classifier(
            classifier, train_set, test_set, settings, stage.path / "checkpoint.pt", where, regions
        )
        log = follow(steps, stage, console, bar, settings.epochs, _line)
    collapse = find_collapse(log, resolved.robust_sample or 0)
    if collapse is not None:
        console.problem(f"{collapse}; ended early with the weights of epoch {collapse.best.epoch}")
    described = TrainingData(training.name_of(data), len(images), len(test_images))
    file = stage.path / f"{name}.safetensors"
    save_weights(classifier, file)
    # What counts is the file: rounding to fp16 may tip a prediction.
    saved = load_classifier(model, weights=file).to(where)
    found = _accuracies(saved, test_set, regions and regions[1], resolved, where)
    card = model_card(classifier, resolved, described, log, found, (stage.info.versions or {})["torch"], weights)
    write_text(file.with_suffix(".md"), card)
    counts = {"images": described.train, "test_images": described.test, "epochs": len(log)}
    close_output(stage, counts, started)
    told = "" if found.robust is None else f", robust accuracy {100 * found.robust:.2f} %"
    console.note(f"test accuracy {100 * found.clean:.2f} %{told}; use it with --model {model} --weights {file}")
    summary = {"counts": counts, "test_accuracy": found.clean, "robust_accuracy": found.robust, "weights": str(file)}
    console.result(stage.path, summary)


def _load(data: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[str, ...]]:
    """Return the images and labels to train on, those to test on, and the classes' names."""
    from pixelsem.defenses.data import load_split

    images, labels, names = load_split(data, "train", None)
    test_images, test_labels, _ = load_split(data, "test", names)
    return (images, labels), (test_images, test_labels), names


def _accuracies(
    classifier: Classifier,
    test_set: tuple[Tensor, Tensor],
    regions: Tensor | None,
    settings: TrainSettings,
    device: torch.device,
) -> Accuracies:
    """Measure a trained network; ``settings`` are resolved."""
    from pixelsem.defenses.card import Accuracies
    from pixelsem.defenses.robustness import attacked_accuracy
    from pixelsem.defenses.training import measure_accuracy

    robust, _ = attacked_accuracy(classifier, *test_set, regions, settings, device)
    return Accuracies(measure_accuracy(classifier, *test_set, device=device), robust)


def _check_size(data: Path, images: Tensor, classifier: Classifier) -> None:
    size = tuple(images.shape[2:])
    if size != classifier.preprocessing.size:
        wanted = "×".join(map(str, classifier.preprocessing.size))
        raise PixelsemError(f"{data}: its images are {size[0]}×{size[1]}, {classifier.name} takes {wanted}")


def _digest(*parts: Tensor) -> str:
    """Return the sha256 (hex) of the images and labels themselves."""
    content = hashlib.sha256()
    for part in parts:
        content.update(part.numpy().tobytes())
    return content.hexdigest()


def _regions(
    console: Console,
    data: Path,
    masks: Path | None,
    settings: TrainSettings,
    splits: tuple[Tensor, Tensor],
    classifier: Classifier,
) -> tuple[Tensor, Tensor] | None:
    """Return where the training and the test images may be attacked, bool [N, H, W]; None for everywhere."""
    import torch

    from pixelsem.attacks.settings import RegionOptions
    from pixelsem.defenses.data import list_split
    from pixelsem.engine.regions import RegionMaker, stack_regions
    from pixelsem.regions.masks import MaskSource

    region = settings.region or "original"
    options = RegionOptions(region=region, masks=masks)
    maker = RegionMaker(options, None if masks is None else MaskSource.open(masks), settings.seed)
    if region == "original":
        return None
    made = []
    for split, images in zip(("train", "test"), splits, strict=True):
        pixels = images.permute(0, 2, 3, 1).numpy()
        regions, flagged = stack_regions(maker, region, list_split(data, split), pixels, classifier.preprocessing)
        closed = int((~regions.any((1, 2))).sum())
        if closed:
            console.note(f"{split}: {closed} of {len(regions)} images stay as they are ({flagged} with flagged masks)")
        made.append(torch.from_numpy(regions))
    return made[0], made[1]


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
