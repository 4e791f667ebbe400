"""``pixelsem defend …``: hardened models (so far: training)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixelsem.cli import defend_detect
from pixelsem.cli.console import Bar, Console
from pixelsem.cli.options import OutputOptions, expand
from pixelsem.cli.stages import close_output, open_output, options_of
from pixelsem.defenses.settings import TrainSettings
from pixelsem.errors import PixelsemError
from pixelsem.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from pixelsem.models import Classifier
    from pixelsem.records import EpochRecord
    from pixelsem.stage import Stage


def register(app: typer.Typer) -> None:
    """Add the ``defend`` group."""
    group = typer.Typer(help="Defend a classifier.", no_args_is_help=True)
    group.callback()(lambda: None)
    group.command("train", help="Train a classifier; resumable, with a model card beside the weights.")(expand(train))
    defend_detect.register(group)
    app.add_typer(group, name="defend")


def train(
    *,
    context: typer.Context,
    data: Annotated[
        Path, typer.Option(help="Folder with train/CLASS/… and test/CLASS/…, or torchvision's CIFAR-10 folder.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Architecture (see `pixelsem models`).")] = "allconv",
    data_name: Annotated[str | None, typer.Option(help="What the model card calls the data.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    settings: TrainSettings,
    output: OutputOptions,
) -> None:
    """Train a classifier into a stage: checkpoint, weights (fp16) and model card."""
    from pixelsem.defenses.card import TrainingData, model_card
    from pixelsem.defenses.data import load_split
    from pixelsem.defenses.training import measure_accuracy
    from pixelsem.defenses.training import train as train_classifier
    from pixelsem.fitness.evaluator import pick_device
    from pixelsem.models import load_classifier, save_weights

    started = time.monotonic()
    console = Console(quiet=output.quiet, as_json=output.json)
    where = pick_device(device)
    images, labels, names = load_split(data, "train", None)
    test_images, test_labels, _ = load_split(data, "test", names)
    train_set, test_set = (images, labels), (test_images, test_labels)
    classifier = load_classifier(model, weights="none", class_names=names)
    _check_size(data, images, classifier)
    _check_size(data, test_images, classifier)
    content = _digest(*train_set, *test_set)
    name = Path(model).name.replace(":", "-")  # of FILE.py:FUNCTION without its folder
    stage = open_output(
        context,
        f"train-{name}-{settings.method}",
        kind="train",
        identity={"settings": settings.to_dict(), "model": model, "classes": names, "data": content},
        options=options_of(settings, data=data, model=model, data_name=data_name, device=device),
        inputs={"data": data},
        output=output,
        modules=("numpy", "torch"),
        seed=settings.seed,
    )
    with console.progress(f"train {model}", settings.epochs) as bar:
        steps = train_classifier(classifier, train_set, test_set, settings, stage.path / "checkpoint.pt", where)
        log = _follow(steps, stage, console, bar, settings)
    described = TrainingData(data_name or data.resolve().name, len(images), len(test_images))
    file = stage.path / f"{name}.safetensors"
    save_weights(classifier, file)
    # What counts is the file: rounding to fp16 may tip a prediction.
    saved = load_classifier(model, weights=file).to(where)
    accuracy = measure_accuracy(saved, *test_set, device=where)
    version = (stage.info.versions or {})["torch"]
    write_text(file.with_suffix(".md"), model_card(classifier, settings, described, log, accuracy, version))
    counts = {"images": described.train, "test_images": described.test, "epochs": len(log)}
    close_output(stage, counts, started)
    console.note(f"test accuracy {100 * accuracy:.2f} %; use it with --model {model} --weights {file}")
    console.result(stage.path, {"counts": counts, "test_accuracy": accuracy, "weights": str(file)})


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


def _follow(
    steps: Iterator[EpochRecord | float], stage: Stage, console: Console, bar: Bar, settings: TrainSettings
) -> list[EpochRecord]:
    """Show the training's progress and record its epochs, those of a resumed checkpoint once."""
    log: list[EpochRecord] = []
    known = stage.keys()
    for step in steps:
        if isinstance(step, float):
            bar.update(step * settings.epochs, f"epoch {len(log) + 1} of {settings.epochs}")
            continue
        log.append(step)
        if step.key not in known:
            stage.append(step)
            accuracies = f"train {100 * step.train_accuracy:.2f} %, test {100 * step.test_accuracy:.2f} %"
            console.note(f"epoch {step.epoch}: loss {step.loss:.4f}, {accuracies}, {step.seconds:.0f} s")
    return log
