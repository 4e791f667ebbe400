"""``pixelsem evaluate masks``: how good masks are, and how far two methods agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.inputs import resolve_inputs
from pixelsem.cli.stages import NAMES_SHOWN, exit_with
from pixelsem.cli.tables import TableOptions, show_tables, tables_folder
from pixelsem.errors import InputError, PixelsemError
from pixelsem.files import reason
from pixelsem.settings import Settings, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pixelsem.metrics.masks import Measured
    from pixelsem.regions.masks import MaskEntry
    from pixelsem.regions.matching import NamedMasks
    from pixelsem.report.masks import PairRow


@dataclass(frozen=True)
class MaskOptions(Settings):
    """What masks are compared with, and on which images."""

    truth: Path | None = option(None, "The true masks: a folder of masks under the images' names, or a stage.")
    threshold: float | None = option(
        None,
        "From where on a soft mask is foreground, for IoU, coverage and agreement (default: as its method has it, "
        "else 0.5).",
        low=0.0,
        high=1.0,
    )
    list: Path | None = option(
        None, "Take only the images in this text file, one relative path per line, with or without suffix."
    )


Masks = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Segmentation stages or mask folders, one row each (default: stdin, or the newest segmentation stage).",
        show_default=False,
    ),
]


def evaluate_masks(*, context: typer.Context, masks: Masks = None, what: MaskOptions, options: TableOptions) -> None:
    """Quality of masks against true ones (IoU, F-measure, MAE, S-measure), and agreement of methods.

    All rows stand on the same images: those in every input and in --truth. Without --truth the masks are only
    compared with each other. Every table is written as JSON, CSV, Markdown and LaTeX; images.csv has the numbers
    of every image.
    """
    from pixelsem.files import write_text
    from pixelsem.metrics.masks import summarize
    from pixelsem.report.masks import agreement_table, images_table, masks_table
    from pixelsem.report.tables import to_csv

    console = Console(quiet=options.quiet, as_json=options.json)
    inputs = open_masks(resolve_inputs(masks, options.run, ("segment",), note=console.note))
    truth = None if what.truth is None else next(iter(open_masks([what.truth]).values()))
    names, notes = _choose(inputs, truth, what.list)
    work = _Work(inputs, truth, what.threshold)
    with console.progress("masks", len(names)) as bar, ThreadPoolExecutor() as pool:
        for number, _ in enumerate(pool.map(work.measure, names), 1):
            bar.update(number)
    if not work.done:
        exit_with(console, work.problems())
    rows = work.by_method(names)
    level = options.confidence
    summaries = {name: summarize(list(images.values()), level) for name, images in rows.items()}
    tables = [masks_table(summaries, what.threshold, level)]
    if len(inputs) > 1:
        tables.append(agreement_table(work.pairs(names, level), level))
    paths = [source.path for source in inputs.values()]
    folder = tables_folder(context, options, paths, f"evaluate-masks-{_identity(inputs, truth, what, names)[:6]}")
    write_text(folder / "images.csv", to_csv(images_table(rows)))
    shown = {"inputs": [*map(str, paths)], "failures": work.problems()}
    show_tables(console, folder, tables, notes, shown)
    exit_with(console, work.problems())


def open_masks(paths: Sequence[Path]) -> dict[str, NamedMasks]:
    """Open stages and mask folders under the names that tables call them by; one given twice counts once.

    The name is the folder's, or the whole path where two folders have the same. Raises
    :class:`PixelsemError` where one holds no masks.
    """
    from pixelsem.regions.matching import NamedMasks

    distinct = {path.resolve(): path for path in reversed(paths)}
    paths = [path for path in dict.fromkeys(paths) if path in distinct.values()]
    short = [path.resolve().name for path in paths]
    names = [str(path) if short.count(name) > 1 or not name else name for name, path in zip(short, paths, strict=True)]
    opened = {name: NamedMasks(path) for name, path in zip(names, paths, strict=True)}
    for source in opened.values():
        if not source.ids:
            raise PixelsemError(f"{source.path}: holds no masks yet")
    return opened


def _choose(
    inputs: Mapping[str, NamedMasks], truth: NamedMasks | None, chosen: Path | None
) -> tuple[list[str], list[str]]:
    """Return the images that all have, by the first input's names, and notes on those that are left out."""
    if chosen is None:
        common, notes = _in_all(list(inputs.values()))
    else:
        common, notes = _listed(list(inputs.values()), chosen)
    names = common
    if truth is not None:
        names = [name for name in common if name in truth]
        notes += _left_out([name for name in common if name not in truth], f"have no mask in {truth.path}")
    if not names:
        where = ", ".join(str(source.path) for source in [*inputs.values(), *([truth] if truth else [])])
        raise PixelsemError(f"{where}: no image is in all of them (they go by relative path, without suffix)")
    return names, notes


def _in_all(sources: Sequence[NamedMasks]) -> tuple[list[str], list[str]]:
    common = [name for name in sources[0].ids if all(name in source for source in sources)]
    notes = [
        f"{len(source.ids) - len(common)} of {len(source.ids)} masks in {source.path} are left out: "
        "not every input has one for their images"
        for source in sources
        if len(source.ids) > len(common)
    ]
    return common, notes


def _listed(sources: Sequence[NamedMasks], path: Path) -> tuple[list[str], list[str]]:
    wanted = _read_list(path)
    notes = []
    for source in sources:
        absent = [name for name in wanted if name not in source]
        notes += _left_out(absent, f"are in {path} but have no mask in {source.path}")
    there = (sources[0].locate(name) for name in wanted if all(name in source for source in sources))
    return list(dict.fromkeys(name for name in there if name is not None)), notes


def _left_out(names: Sequence[str], why: str) -> list[str]:
    if not names:
        return []
    more = f" … and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return [f"left out, as they {why}: {len(names)} ({', '.join(names[:NAMES_SHOWN])}{more})"]


def _read_list(path: Path) -> list[str]:
    """Read the names in a text file, each once; raises :class:`PixelsemError` where it holds none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise PixelsemError(f"--list {path}: not a text file (UTF-8)") from error
    except OSError as error:
        raise PixelsemError(f"--list {path}: cannot be read: {reason(error)}") from error
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise PixelsemError(f"--list {path}: names no image")
    return names


@dataclass
class _Work:
    """Measures images one by one; what cannot be used goes to ``failures``, and out of every row."""

    inputs: Mapping[str, NamedMasks]
    truth: NamedMasks | None
    threshold: float | None
    done: dict[str, list[Measured]] = field(default_factory=dict)
    compared: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def measure(self, name: str) -> None:
        """Measure the masks of one image; safe to call from several threads."""
        try:
            self.done[name], self.compared[name] = self._measured(name)
        except InputError as error:
            self.failures[name] = str(error)

    def problems(self) -> dict[str, str]:
        """Return what could not be used, by image, in the order of names."""
        return dict(sorted(self.failures.items()))

    def _measured(self, name: str) -> tuple[list[Measured], list[tuple[float, float]]]:
        from pixelsem.metrics.masks import Measured, agreement, iou, score

        entries = [_entry(source, name) for source in self.inputs.values()]
        truth = None if self.truth is None else _entry(self.truth, name)
        _check_sizes(entries if truth is None else [truth, *entries])
        true = None if truth is None else truth.region("foreground")
        measured, foregrounds = [], []
        for source, entry in zip(self.inputs.values(), entries, strict=True):
            soft = _as_soft(entry)
            threshold = entry.threshold if self.threshold is None else self.threshold
            found = soft >= threshold
            coverage = float(found.mean())
            scores = None if true is None else score(soft, true, threshold)
            measured.append(Measured(coverage, _is_flagged(source, entry, coverage), scores))
            foregrounds.append(found)
        return measured, [(iou(a, b), agreement(a, b)) for a, b in combinations(foregrounds, 2)]

    def by_method(self, names: Sequence[str]) -> dict[str, dict[str, Measured]]:
        """Return what was measured by method and image, in the order of ``names``."""
        kept = [name for name in names if name in self.done]
        return {method: {name: self.done[name][i] for name in kept} for i, method in enumerate(self.inputs)}

    def pairs(self, names: Sequence[str], confidence: float) -> list[PairRow]:
        """Return how every two methods agree."""
        import numpy as np

        from pixelsem.metrics.bootstrap import bootstrap
        from pixelsem.report.masks import PairRow

        kept = [name for name in names if name in self.done]
        compared = np.array([self.compared[name] for name in kept])
        rows = []
        methods = enumerate(self.inputs)
        for place, ((i, first), (j, second)) in enumerate(combinations(methods, 2)):
            shared, same = (bootstrap(compared[:, place, k], confidence) for k in range(2))
            gains = [self._gain(self.done[name], i, j) for name in kept]
            gain = None if None in gains else bootstrap(np.array(gains, np.float64), confidence)
            rows.append(PairRow(first, second, shared, same, gain))
        return rows

    @staticmethod
    def _gain(measured: Sequence[Measured], first: int, second: int) -> float | None:
        before, after = measured[first].scores, measured[second].scores
        return None if before is None or after is None else after.iou - before.iou


def _entry(source: NamedMasks, name: str) -> MaskEntry:
    entry = source.find(name)
    if entry is None:
        raise InputError(f"{name}: has no mask in {source.path}")
    return entry


def _check_sizes(entries: Sequence[MaskEntry]) -> None:
    first = entries[0]
    for entry in entries[1:]:
        if entry.values.shape != first.values.shape:
            sizes = [f"{one.values.shape[1]}×{one.values.shape[0]}" for one in (entry, first)]
            raise InputError(
                f"{entry.path}: is {sizes[0]}, {first.path} {sizes[1]}; only masks of one size can be compared"
            )


def _as_soft(entry: MaskEntry) -> NDArray[np.float64]:
    """Return the mask in [0, 1]; 0 and 1 where it is not soft."""
    import numpy as np

    if entry.kind == "soft":
        return np.asarray(entry.values / 65535)
    return entry.region("foreground").astype(np.float64)


def _is_flagged(source: NamedMasks, entry: MaskEntry, coverage: float) -> bool:
    from pixelsem.regions.masks import coverage_flags

    return bool(entry.flags if source.is_stage else coverage_flags(coverage))


def _identity(
    inputs: Mapping[str, NamedMasks], truth: NamedMasks | None, what: MaskOptions, names: Sequence[str]
) -> str:
    """Return the digest of what decides the tables."""
    from pixelsem.stage import digest

    chosen: dict[str, Any] = {"threshold": what.threshold, "images": list(names)}
    sources = [source.identity() for source in inputs.values()]
    return digest({"masks": sources, "truth": None if truth is None else truth.identity(), **chosen})
