"""``pixelsem segment review`` and ``preview``: a person looks at the masks of a stage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.inputs import resolve_inputs
from pixelsem.cli.options import SelectionOptions
from pixelsem.cli.stages import exit_with, hold, list_some
from pixelsem.errors import InputError, PixelsemError
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    from pixelsem.records import SegmentRecord
    from pixelsem.regions.review import Scribbles, ShownMask
    from pixelsem.report.preview import Tile
    from pixelsem.report.review import PageImage
    from pixelsem.sources import ImageItem
    from pixelsem.stage import Stage

#: A contact sheet has at most this many pictures, unless more are asked for.
SHEET = 400

_STAGE = typer.Argument(
    help="A stage of `segment` (default: stdin, or the newest one of --run).", show_default=False, metavar="STAGE"
)


@dataclass(frozen=True)
class ReviewOptions(Settings):
    """What is on the page, where it goes, or the decisions to apply."""

    apply: Path | None = option(
        None, "Apply the decisions and scribbles that a page exported to the stage.", metavar="FILE"
    )
    output: Path | None = option(
        None, "The page: an .html file (default: one with a name of its own below --run).", flag="-o"
    )
    run: Path = option(Path("pixelsem-run"), "Folder that holds the stages of one experiment.", env="PIXELSEM_RUN")
    only: Literal["all", "flagged"] = option("all", "Put all images on the page, or those with flagged masks.")
    size: int = option(480, "Pixels that an image on the page has a side at most.", low=160, high=2048)
    workers: int | None = option(None, "Masks made anew at a time (default: one per processor core).", low=1)
    json: bool = option(False, "Print a summary as JSON on stdout in place of a path.", flag="--json")
    quiet: bool = option(False, "No progress and no notes on stderr.", flag="-q")


@dataclass(frozen=True)
class PreviewOptions(Settings):
    """What the contact sheet shows and where it goes."""

    output: Path | None = option(
        None, "The sheet: a .png file (default: one with a name of its own below --run).", flag="-o"
    )
    run: Path = option(Path("pixelsem-run"), "Folder that holds the stages of one experiment.", env="PIXELSEM_RUN")
    columns: int | None = option(None, "Pictures side by side (default: as many as make the sheet square).", low=1)
    size: int = option(192, "Pixels per picture at most.", low=32, high=1024)
    only: Literal["all", "flagged"] = option("all", "Show all images, or those with flagged masks.")
    json: bool = option(False, "Print what is on the sheet as JSON on stdout in place of its path.", flag="--json")
    quiet: bool = option(False, "No notes on stderr.", flag="-q")


def segment_review(
    *, context: typer.Context, stage: Annotated[list[Path] | None, _STAGE] = None, options: ReviewOptions
) -> None:
    """Write a page on which masks are accepted, rejected or scribbled on; --apply takes its export back.

    The page is one file that needs no network. Accepted masks lose their flags, rejected ones are flagged, so that
    attacks leave them out; where there are scribbles, GrabCut makes the mask anew.
    """
    from pixelsem.stage import Stage

    console = Console(quiet=options.quiet, as_json=options.json)
    opened = Stage.open(_one_stage(stage, options.run, console))
    if options.apply is None:
        _write_page(opened, options, console)
    else:
        opened.lock = hold(context, opened.path)
        _apply(opened, options.apply, options, console)


def segment_preview(
    *, stage: Annotated[list[Path] | None, _STAGE] = None, selection: SelectionOptions, options: PreviewOptions
) -> None:
    """Draw a contact sheet of the masks of a stage, with names, coverage and flags."""
    from pixelsem.images import write_image
    from pixelsem.report.preview import draw_sheet
    from pixelsem.sources import select
    from pixelsem.stage import Stage

    console = Console(quiet=options.quiet, as_json=options.json)
    path = _output(options.output, ".png")
    opened = Stage.open(_one_stage(stage, options.run, console))
    pairs = _pairs(opened, options.only)
    chosen = {
        item.id for item in select([item for item, _ in pairs], selection.limit, selection.sample, selection.seed)
    }
    pairs = [pair for pair in pairs if pair[0].id in chosen]
    if len(pairs) > SHEET and selection.limit is None and selection.sample is None:
        console.note(f"{SHEET} of {len(pairs)} images are shown; --limit shows more, --sample a selection of all")
        pairs = pairs[:SHEET]
    failures: dict[str, str] = {}
    tiles = [_tile(shown, options.size) for shown in _loaded(opened, pairs, failures)]
    if not tiles:
        raise PixelsemError(next(iter(failures.values())))
    path = path or options.run / f"segment-preview-{opened.info.contents[:6]}.png"
    write_image(path, draw_sheet(tiles, columns=options.columns, side=options.size))
    shown = [{"id": tile.name, "note": tile.note, "flagged": tile.flagged} for tile in tiles]
    summary = {"sheet": str(path), "images": shown, "failures": failures}
    console.data(json.dumps(summary, ensure_ascii=False) if options.json else str(path))
    exit_with(console, failures)


def _one_stage(given: list[Path] | None, run: Path, console: Console) -> Path:
    paths = resolve_inputs(given, run, ("segment",), note=console.note)
    if len(paths) > 1:
        raise PixelsemError(f"{len(paths)} stages given; one at a time is looked at")
    return paths[0]


def _output(path: Path | None, suffix: str) -> Path | None:
    if path is not None and path.suffix.lower() != suffix:
        raise PixelsemError(f"-o {path}: its name must end in {suffix}")
    if path is not None and path.is_dir():
        raise PixelsemError(f"-o {path}: a folder, not a file")
    return path


def _pairs(stage: Stage, only: str) -> list[tuple[ImageItem, SegmentRecord]]:
    """Return the images of a stage with their records, in the order of their names."""
    from pixelsem.sources import open_images

    records = {record.id: record for record in stage.segment_records()}
    if not records:
        raise PixelsemError(f"{stage.path}: holds no masks yet; run its command again and let it work")
    pairs = [(item, records[item.id]) for item in open_images(stage.path).items]
    pairs = [pair for pair in pairs if only == "all" or pair[1].flags]
    if not pairs:
        raise PixelsemError(f"{stage.path}: no mask is flagged; --only all shows the others")
    return pairs


def _loaded(
    stage: Stage, pairs: Sequence[tuple[ImageItem, SegmentRecord]], failures: dict[str, str]
) -> Iterator[ShownMask]:
    """Read images and masks one by one; what cannot be read goes to ``failures``."""
    from pixelsem.regions.review import load_shown

    for item, record in pairs:
        try:
            yield load_shown(stage, record, item.path)
        except InputError as error:
            failures[item.id] = str(error)


def _tile(shown: ShownMask, side: int) -> Tile:
    from pixelsem.report import overlays
    from pixelsem.report.preview import Tile

    record = shown.record
    image = overlays.fitted(shown.image, side)
    if record.kind == "soft":
        drawn = overlays.draw_soft(image, overlays.fitted_mask(shown.mask, side), record.threshold)
    elif record.kind == "labels":
        drawn = overlays.draw_labels(image, overlays.fitted_mask(shown.mask, side))
    else:
        drawn = overlays.draw_binary(image, overlays.fitted_mask(shown.foreground, side))
    about = [f"{100 * record.coverage:.1f} %", *(flag.partition(":")[0] for flag in record.flags)]
    if record.review is not None and record.review.decision == "accepted":
        about.append("accepted")
    return Tile(drawn, record.id, " · ".join(about), bool(record.flags))


def _write_page(stage: Stage, options: ReviewOptions, console: Console) -> None:
    from pixelsem.files import write_atomically
    from pixelsem.regions.review import FORMAT, Scribbles, revision
    from pixelsem.report.review import PageInfo, write_page

    path = _output(options.output, ".html") or options.run / f"segment-review-{stage.info.contents[:6]}.html"
    pairs = _pairs(stage, options.only)
    info = PageInfo(stage.path.resolve().name, stage.info.command, stage.info.identity, revision(stage), FORMAT)
    failures: dict[str, str] = {}
    scribbles = Scribbles(stage)

    def images() -> Iterator[PageImage]:
        with console.progress("review", len(pairs)) as bar:
            for number, shown in enumerate(_loaded(stage, pairs, failures), 1):
                bar.update(number)
                try:
                    yield _page_image(stage, shown, scribbles)
                except InputError as error:
                    failures[shown.record.id] = str(error)

    with write_atomically(path) as file:
        count = write_page(file, info, images(), side=options.size)
        if not count:
            raise PixelsemError(next(iter(failures.values())))
    console.note(f"{count} images are on the page; open it in a browser, then --apply what it exports")
    summary = {"page": str(path), "images": count, "failures": failures}
    console.data(json.dumps(summary, ensure_ascii=False) if options.json else str(path))
    exit_with(console, failures)


def _page_image(stage: Stage, shown: ShownMask, held: Scribbles) -> PageImage:
    from pixelsem.images import resize_mask
    from pixelsem.regions.review import can_scribble, drawn_size, mask_digest
    from pixelsem.report.review import PageImage

    record = shown.record
    size = drawn_size(shown.image.shape) if can_scribble(record) else None
    levels = held.find(record) if size is not None else None
    if levels is not None and size is not None:
        levels = resize_mask(levels, size).astype("uint8")
    return PageImage(
        id=record.id, image=shown.image, mask=shown.mask, kind=record.kind, coverage=record.coverage,
        flags=record.flags, decision=record.review.decision if record.review else None,
        digest=mask_digest(stage, record), drawn=size,
        threshold=record.threshold, scribbles=levels,
    )  # fmt: skip


def _apply(stage: Stage, file: Path, options: ReviewOptions, console: Console) -> None:
    from pixelsem.regions.review import apply_review

    if options.output is not None:
        raise PixelsemError("-o names a page to write; with --apply the stage itself is changed")
    with console.progress("review", 1) as bar:
        summary = apply_review(
            file, stage, workers=options.workers, progress=lambda done, of: bar.update(done / of, f"{done} of {of}")
        )
    list_some(console, "flagged, left out by attacks", dict(sorted(summary.flagged.items())))
    console.note(
        f"{len(summary.accepted)} accepted, {len(summary.rejected)} rejected, {len(summary.redone)} made anew "
        f"from scribbles, {len(summary.failed)} failed"
    )
    parts = ("accepted", "rejected", "redone", "flagged")
    console.result(stage.path, {name: getattr(summary, name) for name in parts} | {"failures": summary.failed})
    exit_with(console, summary.failed)
