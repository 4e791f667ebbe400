"""``pixelsem attack adv-patch``: its group, and ``fit``, which trains one patch for a folder of images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixelsem.attacks.settings import RegionOptions
from pixelsem.attacks.settings_patches import PATCH_FILE, PatchFitSettings, PatchGoalOptions
from pixelsem.cli.console import Bar, Console
from pixelsem.cli.groups import group_with_default
from pixelsem.cli.inputs import find_masks, resolve_inputs
from pixelsem.cli.options import OutputOptions, SelectionOptions, expand
from pixelsem.cli.stages import close_output, exit_with, open_output, options_of
from pixelsem.errors import PixelsemError
from pixelsem.models.options import load
from pixelsem.models.settings import ModelOptions

if TYPE_CHECKING:
    from pixelsem.attacks.patch_fitting import PatchTraining
    from pixelsem.records import PatchRecord
    from pixelsem.stage import Stage

#: The attack that is a group of commands.
NAME = "adv-patch"

Images = Annotated[
    list[Path] | None,
    typer.Argument(
        help="The images to train on: a folder, or a segmentation stage (default: stdin, or the newest stage). They "
        "are kept in memory, 150 MB for 1,000 at 224×224; --sample takes fewer."
    ),
]


def register(app: typer.Typer, attack: Callable[..., None], help: str) -> None:
    """Add the group to ``attack``: the attack itself is its default command."""
    group = typer.Typer(cls=group_with_default("images"), help=help)
    group.command("images", help=help)(attack)
    group.command("fit")(expand(fit))
    app.add_typer(group, name=NAME)


def fit(
    *,
    context: typer.Context,
    images: Images = None,
    settings: PatchFitSettings,
    goal: PatchGoalOptions,
    region: RegionOptions,
    model: ModelOptions,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    selection: SelectionOptions,
    output: OutputOptions,
) -> None:
    """Train one patch for many images, to be put into others with --patch; resumable.

    The stage holds patch.png, transparent where a circle leaves the corners free. An image that the model is wrong
    on, or that is of the target's class already, is left out.
    """
    from pixelsem.attacks.patch_fitting import PatchTraining, fit_patch
    from pixelsem.engine.patches import read_examples
    from pixelsem.engine.regions import RegionMaker
    from pixelsem.fitness.evaluator import Evaluator
    from pixelsem.models.labels import Labels, labels_identity
    from pixelsem.regions.masks import MaskSource
    from pixelsem.sources import fingerprint, open_images, select
    from pixelsem.stage import digest

    started = time.monotonic()
    console = Console(quiet=output.quiet, as_json=output.json)
    if len(region.regions) > 1:
        raise PixelsemError("--region all: a patch is trained for one region")
    paths = resolve_inputs(images, output.run, ("segment",), note=console.note)
    if len(paths) > 1:
        raise PixelsemError(f"{len(paths)} inputs given; one folder or stage at a time")
    source = open_images(paths[0])
    items = select(source.items, selection.limit, selection.sample, selection.seed)
    masks = find_masks(source, region, output.run, console.note)
    classifier = load(model)
    labels = Labels(goal.labels, classifier.class_names)
    target = None if goal.target is None else labels.index(goal.target, "--target")
    regions = RegionMaker(region, MaskSource.open(masks) if masks else None, selection.seed)
    evaluator = Evaluator(classifier, device=device, scorer="dense")
    examples, reading = read_examples(items, evaluator, labels, target, region, regions)
    identity = {
        "settings": settings.to_dict(),
        "labels": labels_identity(goal.labels),
        "target": target,
        "region": {name: value for name, value in region.to_dict().items() if name != "masks"},
        "regions": sha256(examples.regions.numpy().tobytes()).hexdigest() if masks else None,
        "seed": selection.seed,
        "model": classifier.digest,
        "classes": classifier.class_names,
        "images": fingerprint(items),
    }
    options = options_of(settings, goal, region, model, selection, images=[paths[0]], device=device)
    if Path(goal.labels).is_file():
        options["labels"] = str(Path(goal.labels).resolve())
    stage = open_output(
        context,
        f"attack-{NAME}-fit",
        kind="train-patch",
        identity=identity,
        options=options | {"masks": masks},
        inputs={"images": source.root} | ({"masks": masks} if masks else {}),
        output=output,
        modules=("numpy", "torch"),
        model={"name": classifier.name, "digest": classifier.digest},
        seed=selection.seed,
    )
    for reason, count in sorted(reading.skipped.items()):
        console.note(f"{count} images left out {reason}")
    patch = PatchTraining.start(settings, *classifier.preprocessing.size, evaluator.device)
    with console.progress(f"train {PATCH_FILE}", settings.steps) as bar:
        steps = fit_patch(
            patch, examples, evaluator, settings, selection.seed, stage.path / "checkpoint.pt", digest(identity)
        )
        log = _follow(steps, stage, console, bar, settings.steps, patch)
    counts = {"images": len(items), "used": len(examples), "failed": len(reading.failures), "steps": log[-1].step}
    close_output(stage, counts, started)
    console.note(f"use it with: pixelsem attack {NAME} --patch {stage.path / PATCH_FILE}")
    console.result(stage.path, {"counts": counts, "loss": log[-1].loss, "hits": log[-1].hits, "patch": PATCH_FILE})
    exit_with(console, reading.failures)


def _follow(
    steps: Iterator[PatchRecord | float], stage: Stage, console: Console, bar: Bar, total: int, patch: PatchTraining
) -> list[PatchRecord]:
    """Show the training's progress, record it (what a resumed checkpoint holds once) and write the patch."""
    from pixelsem.images import write_layer

    log: list[PatchRecord] = []
    known = stage.keys()
    for step in steps:
        if isinstance(step, float):
            bar.update(step * total, f"loss {log[-1].loss:.4f}" if log else "")
            continue
        log.append(step)
        if step.key not in known:
            write_layer(stage.path / PATCH_FILE, patch.pixels())
            stage.append(step)
    write_layer(stage.path / PATCH_FILE, patch.pixels())  # where no step is new, the last run may have been stopped
    console.note(f"step {log[-1].step}: loss {log[-1].loss:.4f}, {log[-1].hits:.1%} of the images changed their class")
    return log
