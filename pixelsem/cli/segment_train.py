"""``pixelsem segment train``: a saliency network from photos and masks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.options import OutputOptions, expand
from pixelsem.cli.stages import close_output, open_output, options_of
from pixelsem.cli.training import TrainingOptions, follow
from pixelsem.errors import PixelsemError
from pixelsem.files import write_text
from pixelsem.regions.settings import SaliencyTrainSettings

if TYPE_CHECKING:
    from pixelsem.records import SaliencyEpochRecord


def register(group: typer.Typer) -> None:
    """Add the command to the group ``segment``."""
    group.command("train", help="Train a saliency network; resumable, with a model card beside the weights.")(
        expand(train)
    )


def train(
    *,
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Folder with images/ and masks/ (same relative names).")],
    model: Annotated[Literal["u2net", "u2netp"], typer.Option("--model", "-m", help="The network.")] = "u2netp",
    weights: Annotated[
        Path | None, typer.Option(help="Start from these weights, not from random ones.", show_default=False)
    ] = None,
    training: TrainingOptions,
    settings: SaliencyTrainSettings,
    output: OutputOptions,
) -> None:
    """Train a saliency network into a stage: checkpoint, weights (fp16) and model card, new after every epoch."""
    from pixelsem.fitness.evaluator import pick_device
    from pixelsem.regions.saliency import save_network
    from pixelsem.regions.saliency_card import CardData, saliency_card
    from pixelsem.regions.saliency_training import load_data, start_network
    from pixelsem.regions.saliency_training import train as train_network
    from pixelsem.sources import file_digest, fingerprint, open_images

    started = time.monotonic()
    console = Console(quiet=output.quiet, as_json=output.json)
    where = pick_device(training.device)
    images, masks = data / "images", data / "masks"
    for folder in (images, masks):
        if not folder.is_dir():
            raise PixelsemError(f"{folder}: no such folder; give --data a folder with images/ and masks/")
    network = start_network(model, weights, settings.seed)
    read = load_data(images, masks, settings)
    # The length of a run is outside of its identity, so that it can be ended sooner or made longer.
    planned = {name: value for name, value in settings.to_dict().items() if name not in ("epochs", "cooldown")}
    identity = {
        "settings": planned,
        "model": model,
        "weights": weights and file_digest(weights),
        "images": fingerprint(open_images(images).items),
        "masks": fingerprint(open_images(masks).items),
    }
    stage = open_output(
        context,
        f"segment-train-{model}",
        kind="train-segment",
        identity=identity,
        options=options_of(settings, training, data=data, model=model, weights=weights),
        inputs={"data": data},
        output=output,
        modules=("numpy", "torch"),
        seed=settings.seed,
    )
    write_text(stage.path / "held-out.txt", "".join(f"{image_id}\n" for image_id in read.held_ids))
    file = stage.path / f"{model}.safetensors"
    described = CardData(model, training.name_of(data), len(read.images), len(read.held), weights)

    def export(log: list[SaliencyEpochRecord]) -> None:
        save_network(network, file, model, settings.size)
        write_text(
            file.with_suffix(".md"), saliency_card(described, settings, log, (stage.info.versions or {})["torch"])
        )

    with console.progress(f"train {model}", settings.epochs) as bar:
        steps = train_network(network, read, settings, stage.path / "checkpoint.pt", where, identity)
        log = follow(steps, stage, console, bar, settings.epochs, _line, export)
    export(log)  # where no epoch is new, the last run may have been stopped before it
    counts = {"images": len(read.images), "held_out": len(read.held), "epochs": len(log)}
    close_output(stage, counts, started)
    console.note(f"use it with --method {model} --weights {file}")
    console.result(stage.path, {"counts": counts, "iou": log[-1].iou, "error": log[-1].error, "weights": str(file)})


def _line(epoch: SaliencyEpochRecord) -> str:
    """Return what is told of an epoch on the console."""
    held = "" if epoch.iou is None else f", held out: IoU {epoch.iou:.4f}, error {epoch.error:.4f}"
    return f"epoch {epoch.epoch}: loss {epoch.loss:.4f}{held}, {epoch.seconds:.0f} s"
