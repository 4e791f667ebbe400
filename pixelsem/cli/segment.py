"""``pixelsem segment``: masks that say which pixels are the object and which are around it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from pixelsem.cli import segment_review, segment_train
from pixelsem.cli.console import Console
from pixelsem.cli.groups import group_with_default
from pixelsem.cli.inputs import resolve_inputs
from pixelsem.cli.options import OutputOptions, SelectionOptions, ShardOptions, as_text, expand
from pixelsem.cli.stages import close_output, exit_with, list_some, open_output, options_of
from pixelsem.engine.shards import take
from pixelsem.errors import PixelsemError
from pixelsem.regions.registry import METHODS, AsksModel
from pixelsem.settings import Settings, option_name

if TYPE_CHECKING:
    from pixelsem.engine.shards import Shard
    from pixelsem.regions.registry import Segmenter
    from pixelsem.regions.run import SegmentSummary
    from pixelsem.sources import ImageItem, ImageSource
    from pixelsem.stage import Stage

_IMAGES = typer.Argument(
    help="Image folder (flat or class/…), one image, or a stage whose images to take; - or a pipe: its path "
    "from stdin (default: the newest stage of --run).",
    show_default=False,
)
_METHOD = typer.Option(help="How the foreground is found.")
_WORKERS = typer.Option(min=1, help="Images in work at a time (default: one per processor core).", show_default=False)


def register(app: typer.Typer) -> None:
    """Add the group ``segment`` to ``app``."""
    group = typer.Typer(
        cls=group_with_default("images"),
        help="Find the object in each image: masks, from which the attacks take their regions.",
    )
    _images.__annotations__["settings"] = all_settings()
    _images.__annotations__["method"] = Annotated[Literal[tuple(METHODS)], _METHOD]
    group.command("images")(expand(_images))
    group.command("review")(expand(segment_review.segment_review))
    group.command("preview")(expand(segment_review.segment_preview))
    segment_train.register(group)
    app.add_typer(group, name="segment")


def all_settings() -> type[Settings]:
    """Return one settings class with the options of every method, an option of several methods once.

    Nothing given is None, as methods may have defaults of their own; the help names both.
    """
    owners: dict[str, dict[str, dataclasses.Field[Any]]] = {}
    hints: dict[str, Any] = {}
    for name, method in METHODS.items():
        for field in dataclasses.fields(method.settings):
            owners.setdefault(field.name, {})[name] = field
        hints = get_type_hints(method.settings) | hints
    merged = [(name, hints[name] | None, _shared(fields)) for name, fields in owners.items()]
    return dataclasses.make_dataclass("SegmentSettings", merged, bases=(Settings,), frozen=True)


def _shared(fields: dict[str, dataclasses.Field[Any]]) -> Any:
    """Return one field for an option of several methods, each of which may mean something else by it."""
    first = next(iter(fields.values()))
    meanings: dict[str, dict[Any, list[str]]] = {}
    for method, field in fields.items():
        meanings.setdefault(field.metadata["help"], {}).setdefault(field.default, []).append(method)
    said = " ".join(f"{meaning} ({_owners(by_default)})" for meaning, by_default in meanings.items())
    lows, highs = ([field.metadata[end] for field in fields.values()] for end in ("low", "high"))
    # As wide as the widest; each method checks its own.
    bounds = {"low": None if None in lows else min(lows), "high": None if None in highs else max(highs)}
    return dataclasses.field(default=None, metadata=dict(first.metadata) | bounds | {"help": said})


def _owners(by_default: dict[Any, list[str]]) -> str:
    """Return methods with their defaults: ``slic: 10; lsc: 0.075``."""
    return "; ".join(
        ", ".join(methods) + ("" if default in (None, ()) else f": {_short(default)}")
        for default, methods in by_default.items()
    )


def _short(default: Any) -> Any:
    """Return a default as the help shows it: 4/12 has no end."""
    return f"{default:.4g}" if isinstance(default, float) else as_text(default)


def _images(
    context: typer.Context,
    settings: Settings,
    selection: SelectionOptions,
    sharding: ShardOptions,
    output: OutputOptions,
    images: Annotated[list[Path] | None, _IMAGES] = None,
    method: str = "grabcut",
    workers: Annotated[int | None, _WORKERS] = None,
) -> None:
    """Write a mask for every image.

    Masks whose foreground is under 2 % or over 98 % of the image are flagged; --hints can mend them. Run
    again, the same command goes on where it was stopped.
    """
    from pixelsem.regions.registry import open_segmenter
    from pixelsem.regions.run import segment_images
    from pixelsem.sources import open_images, select
    from pixelsem.stage import png_names

    started = time.monotonic()
    console = Console(quiet=output.quiet, as_json=output.json)
    own = _settings_of(method, settings)
    given = _one_input(images, output, console)
    source = open_images(given)
    items = select(source.items, selection.limit, selection.sample, selection.seed)
    segmenter = open_segmenter(method, own, [item.id for item in items])
    for remark in segmenter.remarks if isinstance(segmenter, AsksModel) else ():
        console.note(remark)
    options = options_of(own, selection, images=[given], method=method, workers=workers)
    if Path(options.get("labels", "")).is_file():
        options["labels"] = str(Path(options["labels"]).resolve())
    part = take(items, sharding.part)
    shared = (options, output, selection.seed, sharding.part, len(part))
    stage = _open_stage(context, method, segmenter, source, items, *shared)
    names = png_names(item.id for item in items)  # of all, so that parts never give two images one name
    with console.progress(f"segment {method}", len(part)) as bar:

        def show(summary: SegmentSummary) -> None:
            bar.update(summary.done + len(summary.failed), f"{len(summary.flagged)} flagged")

        summary = segment_images(part, segmenter, stage, source.root, workers=workers, progress=show, names=names)
    close_output(stage, summary.counts, started)
    _report(console, summary, len(part))
    console.result(stage.path, {"counts": summary.counts, "flagged": summary.flagged, "failures": summary.failed})
    exit_with(console, summary.failed)


def _settings_of(method: str, settings: Settings) -> Settings:
    """Return the settings of ``method`` alone; raise where an option of another method was given."""
    given = {name: value for name, value in vars(settings).items() if value is not None}
    known = {field.name for field in dataclasses.fields(METHODS[method].settings)}
    for name in given.keys() - known:
        raise PixelsemError(f"{option_name(name)} is no option of --method {method}")
    return METHODS[method].settings(**given)


def _one_input(images: list[Path] | None, output: OutputOptions, console: Console) -> Path:
    paths = resolve_inputs(images, output.run, ("segment", "attack"), note=console.note)
    if len(paths) > 1:
        raise PixelsemError(f"{len(paths)} inputs given; segment takes one folder, image or stage at a time")
    return paths[0]


def _open_stage(
    context: typer.Context,
    method: str,
    segmenter: Segmenter,
    source: ImageSource,
    items: list[ImageItem],
    options: dict[str, Any],
    output: OutputOptions,
    seed: int,
    shard: Shard | None,
    planned: int,
) -> Stage:
    from pixelsem.sources import IMAGES_ROLE, fingerprint

    return open_output(
        context,
        f"segment-{method}",
        kind="segment",
        identity={"method": method, "settings": segmenter.identity, "images": fingerprint(items)},
        options=options,
        inputs={IMAGES_ROLE: source.root},
        output=output,
        modules=METHODS[method].modules,
        model=segmenter.model if isinstance(segmenter, AsksModel) else None,
        seed=seed,
        shard=shard,
        planned=planned,
    )


def _report(console: Console, summary: SegmentSummary, images: int) -> None:
    list_some(console, "flagged, left out by attacks (--hints can mend them)", dict(sorted(summary.flagged.items())))
    counts = summary.counts
    console.note(
        f"{counts['done']} of {images} images have a mask, {counts['flagged']} flagged, {counts['failed']} failed"
    )
