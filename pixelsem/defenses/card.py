"""The model card that training leaves beside the weights."""

from __future__ import annotations

from dataclasses import dataclass

from pixelsem.defenses.settings import TrainSettings
from pixelsem.metrics.intervals import wilson
from pixelsem.models.classifier import Classifier
from pixelsem.models.registry import ARCHITECTURES
from pixelsem.records import EpochRecord


@dataclass(frozen=True)
class TrainingData:
    """What a network was trained and tested on: a name to print and how many images of each."""

    name: str
    train: int
    test: int


def model_card(
    classifier: Classifier,
    settings: TrainSettings,
    data: TrainingData,
    log: list[EpochRecord],
    accuracy: float,
    torch: str,
) -> str:
    """Return a Markdown page: what the network is, its data, recipe, seed and accuracy.

    ``log`` holds every epoch, ``accuracy`` is that of the weights as they were written (a share of the test
    images), ``torch`` is the version trained with.
    """
    known = ARCHITECTURES.get(classifier.name)
    source = known.source if known else classifier.name
    interval = " to ".join(f"{100 * bound:.2f}" for bound in wilson(round(accuracy * data.test), data.test))
    recipe = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in settings.to_dict().items())
    epochs = "\n".join(
        f"| {e.epoch} | {e.loss:.4f} | {100 * e.train_accuracy:.2f} | {100 * e.test_accuracy:.2f} | {e.seconds:.0f} |"
        for e in log
    )
    preprocessing = classifier.preprocessing
    mean, std = (", ".join(f"{v:g}" for v in part) for part in (preprocessing.mean, preprocessing.std))
    height, width = preprocessing.size
    return f"""# {classifier.name}

{source}. {sum(p.numel() for p in classifier.parameters()):,} parameters.

- Input: RGB, {width}×{height}, [0, 1], minus ({mean}), divided by ({std}).
- Classes: {", ".join(classifier.class_names)}.
- Data: {data.name}; {data.train:,} training images, {data.test:,} test images.
- **Test accuracy: {100 * accuracy:.2f} %** (95 % interval {interval}) of the saved weights, scored in fp32.
- Trained by `pixelsem defend train --model {classifier.name} --method {settings.method}` with torch {torch}.

## Recipe

| setting | value |
|---|---|
{recipe}

## Epochs

| epoch | loss | train accuracy % | test accuracy % | seconds |
|---|---|---|---|---|
{epochs}
"""
