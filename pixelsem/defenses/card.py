"""The model card that training leaves beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pixelsem.defenses.robustness import find_collapse, robust_images
from pixelsem.defenses.settings import TrainSettings
from pixelsem.metrics.intervals import wilson
from pixelsem.models.classifier import Classifier
from pixelsem.models.registry import ARCHITECTURES
from pixelsem.records import EpochRecord


@dataclass(frozen=True)
class TrainingData:
    """What a network was trained and tested on: a name to print, how many images of each, and how these were read.

    ``reading`` are rows of the card's recipe; one called ``crop`` replaces that of the settings.
    """

    name: str
    train: int
    test: int
    reading: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Accuracies:
    """Of the weights as they were written, shares of the test images: as they are, and of a sample under attack."""

    clean: float
    robust: float | None


def model_card(
    classifier: Classifier,
    settings: TrainSettings,
    data: TrainingData,
    log: list[EpochRecord],
    accuracies: Accuracies,
    torch: str,
    weights: Path | None = None,
) -> str:
    """Return a Markdown page: what the network is, its data, recipe, seed and accuracies.

    ``settings`` are resolved, ``log`` holds every epoch, ``torch`` is the version trained with,
    ``weights`` the file that training started from.
    """
    known = ARCHITECTURES.get(classifier.name)
    source = known.source if known else classifier.name
    used = {name: value for name, value in ({**settings.to_dict(), **data.reading}).items() if value is not None}
    recipe = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in used.items())
    preprocessing = classifier.preprocessing
    mean, std = (", ".join(f"{v:g}" for v in part) for part in (preprocessing.mean, preprocessing.std))
    height, width = preprocessing.size
    start = "" if weights is None else f", from the weights of {weights.name}"
    return f"""# {classifier.name}

{source}. {sum(p.numel() for p in classifier.parameters()):,} parameters.

- Input: RGB, {width}×{height}, [0, 1], minus ({mean}), divided by ({std}).
- Classes: {", ".join(classifier.class_names)}.
- Data: {data.name}; {data.train:,} training images, {data.test:,} test images.
- **Test accuracy: {_rate(accuracies.clean, data.test)} of the saved weights, scored in fp32.
{_robustness(settings, data, log, accuracies)}\
- Trained by `pixelsem defend train --model {classifier.name} --method {settings.method}` with torch {torch}{start}.

## Recipe

| setting | value |
|---|---|
{recipe}

## Epochs

{_epochs(log)}
"""


def describe_attack(settings: TrainSettings) -> str:
    """Return what robust accuracy is measured with, in words; ``settings`` are resolved."""
    where = f" in the {settings.region}" if settings.region not in (None, "original") else ""
    if settings.method == "pixel":
        size = f"{settings.pixels} changed pixel{'' if settings.pixels == 1 else 's'}{where}"
        return f"{size} (differential evolution, {settings.robust_steps} generations of {settings.population})"
    return f"PGD{where} (ε = {settings.epsilon:g}/255, {settings.robust_steps} steps)"


def _robustness(settings: TrainSettings, data: TrainingData, log: list[EpochRecord], accuracies: Accuracies) -> str:
    """Return the lines on robust accuracy and on catastrophic overfitting, none where nothing was measured."""
    if accuracies.robust is None:
        return ""
    sample = robust_images(settings, data.test)
    rate = _rate(accuracies.robust, sample)
    lines = f"- **Robust accuracy: {rate} of {sample:,} test images under {describe_attack(settings)}.\n"
    collapse = find_collapse(log, sample)
    if collapse is not None:
        lines += f"- Ended early: {collapse}. The weights are those of epoch {collapse.best.epoch}.\n"
    return lines


def _rate(share: float, n: int) -> str:
    interval = " to ".join(f"{100 * bound:.2f}" for bound in wilson(round(share * n), n))
    return f"{100 * share:.2f} %** (95 % interval {interval})"


def _epochs(log: list[EpochRecord]) -> str:
    """Return the table of the epochs, with those accuracies that were measured."""
    columns: dict[str, Callable[[EpochRecord], float | None]] = {
        "train accuracy %": lambda e: e.train_accuracy,
        "test accuracy %": lambda e: e.test_accuracy,
        "robust accuracy %": lambda e: e.robust_accuracy,
        "accuracy under FGSM %": lambda e: e.fgsm_accuracy,
    }
    shown = {name: share for name, share in columns.items() if any(share(e) is not None for e in log)}
    rows = [["epoch", "loss", *shown, "seconds"], ["---"] * (3 + len(shown))]
    for e in log:
        shares = [f"{100 * (share(e) or 0):.2f}" for share in shown.values()]
        rows.append([f"{e.epoch}", f"{e.loss:.4f}", *shares, f"{e.seconds:.0f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
