"""``pixelsem evaluate report``: one page with the answer, charts, tables and every attacked image."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.inputs import named_inputs
from pixelsem.cli.stages import exit_with
from pixelsem.errors import InputError, PixelsemError, StageError
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    from pixelsem.cli.attack_stages import AttackStages, Search
    from pixelsem.report.gallery import GalleryItem
    from pixelsem.report.html_report import Found, Picture, Run
    from pixelsem.report.tables import Table

#: What other commands wrote is put on the page up to these sizes and numbers.
_FIGURE_BYTES, _TABLE_BYTES, _FIGURES, _TABLES = 4 << 20, 1 << 20, 40, 80

Inputs = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="RUN|STAGE...",
        help="Run folders, whose attack stages and evaluations are all taken, and attack stages "
        "(default: stdin, or --run).",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class ReportOptions(Settings):
    """What is on the page and where it goes."""

    output: Path | None = option(
        None, "The page: an .html file (default: one with a name of its own in the run's folder).", flag="-o"
    )
    run: Path = option(Path("pixelsem-run"), "The run folder to report on where no input is named.", env="PIXELSEM_RUN")
    title: str | None = option(None, "The page's title (default: the run folder's name).")
    confidence: float = option(0.95, "Level of the confidence intervals.", low=0.5, high=0.9999)
    gallery: int = option(20000, "Searches in the gallery at most; successful ones first, then by name.", low=0)
    embed: int = option(
        96, "Images of at most this many pixels a side are in the page as they are; the files of larger ones are "
        "loaded from the run's folder when they are enlarged.", low=1, high=1024,
    )  # fmt: skip
    thumbnail: int = option(112, "Pixels that the pictures of larger images have a side at most.", low=32, high=512)
    json: bool = option(False, "Print a summary as JSON on stdout in place of the page's path.", flag="--json")
    quiet: bool = option(False, "No progress and no notes on stderr.", flag="-q")


def evaluate_report(*, inputs: Inputs = None, options: ReportOptions) -> None:
    """Write one HTML page: which region is more fragile, with charts, tables, runs and every attacked image.

    The page needs no network. Tables and figures that other `evaluate` commands left in a run's folder are on it
    too. Images larger than --embed are on it as thumbnails; their files are loaded from the run's folder, as it
    lies to the page, when they are enlarged.
    """
    from pixelsem.cli.attack_stages import AttackStages
    from pixelsem.files import write_atomically
    from pixelsem.report.html_report import Report, write_report
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    _check_output(options.output)
    work = _Inputs(named_inputs(inputs) or [options.run])
    opened = AttackStages(work.stages, compact=True)
    notes = work.notes + opened.notes
    folder = work.runs[0] if work.runs else work.stages[0].parent
    path = options.output or folder / f"evaluate-report-{digest({'stages': opened.identities})[:6]}.html"
    searches, count = _chosen(opened, options.gallery)
    if len(searches) < count:
        notes.append(f"The gallery holds {len(searches)} of {count} searches; --gallery shows more.")
    title = options.title or folder.resolve().name
    found = [found for run in work.runs for found in _found(run, path, notes)]
    report = Report(title, opened.setups, _runs(opened), found, notes, options.confidence)
    failures: dict[str, str] = {}
    with write_atomically(path) as file, console.progress("report", len(searches)) as bar:
        items = _items(searches, opened, path, failures, bar.update)
        shown = write_report(file, report, items, whole=options.embed, thumbnail=options.thumbnail)
    for note in notes:
        console.note(f"note: {note}")
    megabytes = path.stat().st_size / 1e6
    console.note(f"{shown} searches of {len(opened.names)} stages are on the page ({megabytes:.1f} MB)")
    summary = {"page": str(path), "searches": shown, "inputs": opened.names, "notes": notes, "failures": failures}
    console.data(json.dumps(summary, ensure_ascii=False) if options.json else str(path))
    exit_with(console, failures)


def _check_output(path: Path | None) -> None:
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise PixelsemError(f"-o {path}: its name must end in .html")
    if path is not None and path.is_dir():
        raise PixelsemError(f"-o {path}: a folder, not a file")


class _Inputs:
    """The attack stages that were named, alone or by their run's folder; what is left out is noted."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises :class:`PixelsemError` where no attack stage can be read."""
        from pixelsem.stage import STAGE_FILE

        self.stages: list[Path] = []
        self.runs: list[Path] = []
        self.notes: list[str] = []
        self._damage: list[StageError] = []
        self._seen: set[Path] = set()
        for path in paths:
            if (path / STAGE_FILE).is_file():
                self._add(path, named=True)
                continue
            below = sorted(file.parent for file in path.glob(f"*/{STAGE_FILE}"))
            if not below:
                self.notes.append(f"{path}: is no stage and holds none; left out")
                continue
            self.runs.append(path)
            for stage in below:
                self._add(stage, named=False)
        if not self.stages and self._damage:
            raise self._damage[0]
        if not self.stages:
            reason = self.notes[0] if self.notes else f"{paths[0]}: holds no attack stage"
            raise PixelsemError(f"{reason.removesuffix('; left out')}; run an attack, or name its stage or run folder")

    def _add(self, path: Path, *, named: bool) -> None:
        """Take an attack stage that can be read; say why another is left out if it was ``named`` or is damaged."""
        from pixelsem.stage import Stage

        if path.resolve() in self._seen:
            self.notes.append(f"{path}: given twice; counted once")
            return
        self._seen.add(path.resolve())
        try:
            stage = Stage.open(path)
            if stage.info.kind != "attack":
                if named:
                    self.notes.append(f"{path}: is a stage of {stage.info.command!r}, not of an attack; left out")
                return
            held = sum(1 for _ in stage.records())  # read to the end, for damage
        except StageError as error:
            self._damage.append(error)
            self.notes.append(f"{error}; left out")
            return
        if not held:
            self.notes.append(f"{path}: holds no records yet; left out")
            return
        self.stages.append(path)


def _all(opened: AttackStages) -> list[tuple[int, Search]]:
    """Return every search with the number of its setup, once, in the order of setups and names."""
    found: dict[tuple[object, ...], tuple[int, Search]] = {}
    for number, setup in enumerate(opened.setups):
        for search in opened.searches(setup).values():
            found.setdefault((search.stage.path, search.record.key), (number, search))
    return sorted(found.values(), key=lambda item: (item[0], item[1].record.key))


def _chosen(opened: AttackStages, count: int) -> tuple[list[tuple[int, Search]], int]:
    """Return at most ``count`` searches, successful ones first if they are not all there; and how many there are."""
    every = _all(opened)
    chosen = every if len(every) <= count else sorted(every, key=lambda item: not item[1].record.success)[:count]
    return chosen, len(every)


def _runs(opened: AttackStages) -> dict[str, Run]:
    """Return the stages by the names that setups have for them, each called by its folder, or more where needed."""
    from pixelsem.report.html_report import Run

    folders = [stage.path.resolve().name for stage, _ in opened.stages]
    found = {}
    for stage, data in opened.stages:
        folder = stage.path.resolve()
        name = folder.name if folders.count(folder.name) == 1 else f"{folder.parent.name}/{folder.name}"
        repeat = f"pixelsem {stage.info.command} --config {name}/stage.yaml"
        found[data.name] = Run(name, repeat, stage.info)
    return found


def _items(
    searches: Sequence[tuple[int, Search]],
    opened: AttackStages,
    page: Path,
    failures: dict[str, str],
    progress: Callable[[float], None],
) -> Iterator[GalleryItem]:
    """Read the pictures of one search after the other; what cannot be read goes to ``failures``."""
    from pixelsem.report.gallery import GalleryItem

    stages = {stage.path: number for number, (stage, _) in enumerate(opened.stages)}
    for done, (setup, compact) in enumerate(searches, 1):
        try:
            search = compact.whole()
            clean = search.clean()
            attacked, mask = search.attempt(clean), search.mask()
        except (InputError, StageError) as error:
            failures[f"{compact.stage.path} {compact.record.key}"] = str(error)
            continue
        links = dict(_links(search, page))
        yield GalleryItem(search.record, setup, stages[search.stage.path], clean, attacked, mask, links)
        progress(done)


def _links(search: Search, page: Path) -> Iterator[tuple[str, str]]:
    """Yield where a search's files are as seen from the page; nothing where no relative way leads there."""
    for name in ("clean", "adversarial", "mask"):
        file = getattr(search.record, name)
        if file is not None:
            try:
                relative = os.path.relpath(search.stage.resolve(file), page.resolve().parent)
            except ValueError:  # two drives
                return
            yield name, quote(Path(relative).as_posix())


def _found(run: Path, page: Path, notes: list[str]) -> Iterator[Found]:
    """Yield the tables and figures that other ``evaluate`` commands left in a run's folder."""
    from pixelsem.report.html_report import Found

    left = {"figures": _FIGURES, "tables": _TABLES}
    places = sorted(place for place in run.glob("evaluate-*") if not place.name.startswith("evaluate-success-"))
    for place in places:
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        tables = [table for file in files if (table := _read_table(file, left, notes)) is not None]
        pictures = [picture for file in _best(files) if (picture := _read_picture(file, left, notes)) is not None]
        if tables or pictures:
            yield Found(place.name, tables, pictures)


def _best(files: Sequence[Path]) -> list[Path]:
    """Return the figures, each in its sharpest format only."""
    by_stem: dict[str, Path] = {}
    for file in files:
        if file.suffix.lower() in (".svg", ".png") and (file.stem not in by_stem or file.suffix.lower() == ".svg"):
            by_stem[file.stem] = file
    return list(by_stem.values())


def _read_table(file: Path, left: dict[str, int], notes: list[str]) -> Table | None:
    from pixelsem.report.tables import from_plain

    if file.suffix.lower() != ".json":
        return None
    try:
        data = _read(file, "tables", _TABLE_BYTES, left)
        return from_plain(file.stem, json.loads(data))
    except (ValueError, RecursionError, InputError) as error:
        notes.append(f"{error}; left out" if isinstance(error, InputError) else f"{file}: holds no table; left out")
        return None


def _read_picture(file: Path, left: dict[str, int], notes: list[str]) -> Picture | None:
    from pixelsem.report.html_report import Picture

    try:
        data = _read(file, "figures", _FIGURE_BYTES, left)
    except InputError as error:
        notes.append(f"{error}; left out")
        return None
    return Picture(file.stem.replace("-", " ").capitalize(), file.suffix.lower()[1:], data)


def _read(file: Path, kind: str, most: int, left: dict[str, int]) -> bytes:
    """Read a small file, as long as there is room for its kind; raises :class:`InputError`."""
    from pixelsem.files import reason

    if left[kind] == 0:
        raise InputError(f"{file}: the page has room for no more {kind}")
    try:
        if file.stat().st_size > most:
            raise InputError(f"{file}: is larger than {most >> 20} MiB")
        left[kind] -= 1
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {reason(error)}") from error
