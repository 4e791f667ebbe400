"""``pixelsem attack split``: what one part of a finished attack's noise does alone."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.inputs import newest_stage, resolve_inputs
from pixelsem.cli.options import OutputOptions, ShardOptions
from pixelsem.cli.stages import close_output, exit_with, masks_identity, open_output, options_of
from pixelsem.engine.shards import Shard
from pixelsem.errors import PixelsemError
from pixelsem.models.options import load, model_of, resize_of
from pixelsem.settings import Settings, option
from pixelsem.stage import STAGE_FILE, Stage

if TYPE_CHECKING:
    from pixelsem.engine.splitting import SplitTally
    from pixelsem.models import Classifier
    from pixelsem.regions.masks import MaskSource

Source = Annotated[
    list[Path] | None,
    typer.Argument(help="A stage of an attack on whole images (default: stdin, or the newest attack stage)."),
]


@dataclass(frozen=True)
class SplitOptions(Settings):
    """Which part of the noise is kept."""

    keep: Literal["foreground", "background"] = option("foreground", "The side whose noise is kept.")
    masks: Path | None = option(
        None,
        "What divides the images: a segmentation stage (say of segment --method gradcam), or a folder with their "
        "relative names (default: the attack stage's own masks, else the newest segmentation stage of its images).",
    )
    equal_area: bool = option(
        False, "Thin the larger side to as many pixels as the smaller has, drawn by --seed.", flag="--equal-area"
    )
    halves: bool = option(
        False, "Cut a soft mask at its median, so that both sides are one half (dong2020, Fig. 2).", flag="--halves"
    )
    flagged: Literal["skip", "use"] = option("skip", "What to do with masks that were flagged as degenerate.")
    seed: int = option(0, "Seed of what --equal-area and --halves draw.", low=0)

    def check(self) -> None:
        """Raise :class:`PixelsemError` for options that exclude each other."""
        if self.equal_area and self.halves:
            raise PixelsemError("--equal-area and --halves exclude each other: halves are equal already")

    @property
    def area(self) -> Literal["all", "equal", "halves"]:
        """How much of the image the sides are."""
        return "equal" if self.equal_area else "halves" if self.halves else "all"


@dataclass(frozen=True)
class RescoringOptions(Settings):
    """How the split images are scored."""

    model: str | None = option(
        None, "Where the attacked model is now, if its file was moved; it must be the same one.", flag="-m"
    )
    weights: Path | None = option(None, "Where its weights are now, if they were moved.", metavar="FILE")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")


def attack_split(
    *,
    context: typer.Context,
    stage: Source = None,
    split: SplitOptions,
    scoring: RescoringOptions,
    sharding: ShardOptions,
    output: OutputOptions,
) -> None:
    """Keep the part of an attack's noise that lies in the foreground or background, and score it (dong2020, §3.2).

    Takes every image that the attack changed successfully, undoes the change on the other side of the mask, and
    scores the result with the attacked model. What comes out is an attack stage like any other, of the region
    that was kept.
    """
    from pixelsem.engine.splitting import Sides, SplitRun, attacks_on_whole_images
    from pixelsem.fitness.evaluator import Evaluator

    started = time.monotonic()
    console = Console(quiet=output.quiet, as_json=output.json)
    source = _open(resolve_inputs(stage, output.run, ("attack",), note=console.note))
    attacks_on_whole_images(source)  # before anything is made
    masks, where = _masks(source, split.masks, output.run, console)
    classifier = attacked_model(source, scoring)
    sides = Sides(masks, classifier.preprocessing, resize_of(source), split.area, split.seed)
    evaluator = Evaluator(classifier, device=scoring.device, scorer="dense")
    shard = _shard(source, sharding)
    made = _open_output(context, source, where, classifier, split, scoring, output, shard)
    run = SplitRun(source, evaluator, made, sides, split.keep, split.flagged == "use", shard)
    made.save(planned=len(run.records))
    with console.progress(f"attack split {split.keep}", len(run.records)) as bar:
        tally = run.run(lambda tally: bar.update(tally.done, f"{tally.found} still succeed"))
    counts = _counts(made, tally)
    close_output(made, counts, started)
    _summary(console, tally, source, counts)
    console.result(made.path, {"counts": counts, "failures": tally.failures})
    exit_with(console, tally.failures)


def _open(paths: list[Path]) -> Stage:
    if len(paths) > 1:
        raise PixelsemError(f"{len(paths)} stages given; the noise of one at a time is split")
    source = Stage.open(paths[0])
    if source.info.kind != "attack":
        raise PixelsemError(f"{source.path}: is a stage of {source.info.command!r}; an attack's is needed")
    return source


def _shard(source: Stage, sharding: ShardOptions) -> Shard | None:
    """Return the part to do; of a stage that is a part itself, that one: there are no parts of parts."""
    held = source.info.shard
    if held is not None and sharding.shard is not None and sharding.part != Shard.parse(held):
        raise PixelsemError(f"--shard {sharding.shard}: {source.path} holds shard {held} only")
    return sharding.part or Shard.parse(held)


def _masks(source: Stage, given: Path | None, run: Path, console: Console) -> tuple[MaskSource, Path]:
    """Return the masks and where they lie: --masks, the stage's own, or the newest of the same images."""
    from pixelsem.engine.splitting import StageOwnMasks
    from pixelsem.regions.masks import MaskSource

    if given is not None:
        return MaskSource.open(given), given
    try:
        return StageOwnMasks(source), source.path
    except PixelsemError:
        images = (source.path / source.info.inputs.get("images", "")).resolve()

        def same_images(stage: Stage) -> bool:
            return (stage.path / stage.info.inputs.get("images", "")).resolve() == images

        newest = newest_stage(run, ("segment",), same_images)
        if newest is None:
            raise
        console.note(f"masks: {newest}")
        return MaskSource.open(newest), newest


def attacked_model(source: Stage, scoring: RescoringOptions) -> Classifier:
    """Load the model that was attacked; raise :class:`PixelsemError` where what is found is another one."""
    given = {name: value for name in ("model", "weights") if (value := getattr(scoring, name)) is not None}
    options = replace(model_of(_origin(source)), **given)
    classifier = load(options)
    if classifier.digest != (source.info.model or {}).get("digest"):
        raise PixelsemError(
            f"{options.model}: is not the model that {source.path} was made with; give that one with --model"
        )
    return classifier


def _origin(stage: Stage) -> Stage:
    """Return the stage of the attack itself, whose options name the model, where ``stage`` was made of one."""
    passed = {stage.path.resolve()}
    while (attack := stage.info.inputs.get("attack")) is not None:
        path = stage.path / attack
        if path.resolve() in passed or not (path / STAGE_FILE).is_file():
            break
        passed.add(path.resolve())
        stage = Stage.open(path)
    return stage


def _open_output(
    context: typer.Context,
    source: Stage,
    masks: Path,
    classifier: Classifier,
    split: SplitOptions,
    scoring: RescoringOptions,
    output: OutputOptions,
    shard: Shard | None,
) -> Stage:
    own = masks == source.path
    identity = {
        "source": source.info.identity,
        "keep": split.keep,
        "area": split.area,
        "flagged": split.flagged,
        "seed": split.seed,
        "model": classifier.digest,
        "masks": None if own else masks_identity(masks),
    }
    options = options_of(split, scoring, stage=[source.path]) | {"masks": None if own else masks}
    return open_output(
        context,
        f"attack-split-{split.keep}",
        kind="attack",
        identity=identity,
        options=options,
        inputs={"attack": source.path} | ({} if own else {"masks": masks}),
        output=output,
        modules=("numpy", "torch", "torchvision"),
        model=dict(source.info.model or {}),
        seed=split.seed,
        shard=shard,
    )


def _counts(stage: Stage, tally: SplitTally) -> dict[str, int]:
    """Count what the stage holds; only ``resumed`` and ``failed`` are of this run."""
    records = list(stage.attack_records())
    outcomes = Counter(record.outcome for record in records)
    return {
        "searches": tally.total,
        "searched": outcomes.pop("attacked", 0),
        "successes": sum(record.success for record in records),
        "without_noise": tally.without_noise,
        "resumed": tally.resumed,
        "failed": len(tally.failures),
        **{name.replace("-", "_"): count for name, count in sorted(outcomes.items())},
    }


def _summary(console: Console, tally: SplitTally, source: Stage, counts: dict[str, int]) -> None:
    if tally.resumed:
        console.note(f"{tally.resumed} images were split before")
    split = f"{counts['searched']} split images (the successes of {source.path})"
    console.note(f"{counts['successes']} of {split} still fool the model")
    if tally.without_noise:
        console.note(f"{tally.without_noise} of its searches found nothing and count nowhere: no noise to split")
    for reason, count in sorted(tally.skipped.items()):
        console.note(f"{count} images skipped: {reason}")
