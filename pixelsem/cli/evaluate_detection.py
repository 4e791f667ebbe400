"""``pixelsem evaluate detection``: how well attacks are detected (dong2020, Table 2)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pixelsem.cli.console import Console
from pixelsem.cli.defend_detect import ATTACK_FILE, detection_records
from pixelsem.cli.figures import FigureOptions, write_figures
from pixelsem.cli.inputs import resolve_inputs
from pixelsem.cli.tables import TableOptions, show_tables, tables_folder
from pixelsem.defenses.settings_detection import EnsembleSettings, SplitSettings
from pixelsem.errors import PixelsemError, StageError

if TYPE_CHECKING:
    from pixelsem.metrics.detection import Detection
    from pixelsem.metrics.intervals import Rate
    from pixelsem.metrics.setups import Setup
    from pixelsem.records import DetectionRecord
    from pixelsem.report.detection import DetectionRow, Source
    from pixelsem.stage import Stage, StageInfo

Stages = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Stages of `defend detect train` and `defend detect score`; several make one table (default: stdin, or "
        "the newest of them)."
    ),
]

_KINDS = ("train-detector", "detect")


def evaluate_detection(
    *, context: typer.Context, stages: Stages = None, drawing: FigureOptions, options: TableOptions
) -> None:
    """Detection rate, false alarms, P_E and the ROC by attack (dong2020, Table 2).

    A stage of `defend detect train` is a detector tested on the attack that it was trained on, as in the paper; one of
    `defend detect score` of an attack stage tests it on another. Only images that it was not trained on count, in
    pairs of a clean image and what was made of it.
    """
    from pixelsem.report.detection import delta_table, detection_table, draw_roc, flagged_table
    from pixelsem.stage import digest

    console = Console(quiet=options.quiet, as_json=options.json)
    paths = resolve_inputs(stages, options.run, _KINDS, note=console.note)
    work = _Work(paths, options.confidence)
    rows, flagged = work.rows(), list(work.flagged())
    if not rows and not flagged:
        name, stage = next(iter(work.stages.items()))
        held = any(True for _ in stage.records())
        lacks = "image that its detector was not trained on" if held else "scores: its command was not finished"
        raise PixelsemError(f"{name}: holds no {lacks}")
    shown = delta_table(rows, options.confidence)
    tables = [*([shown] if shown else []), *([detection_table(rows, options.confidence)] if rows else [])]
    tables += [flagged_table(flagged)] if flagged else []
    identity = digest({"detection": sorted(stage.info.identity for stage in work.stages.values())})
    folder = tables_folder(context, options, paths, f"evaluate-detection-{identity[:6]}")
    figures = {"roc": lambda: draw_roc(rows)} if rows else {}
    files = write_figures(console, folder, figures, drawing.formats)
    summary = {"inputs": list(work.stages), "figures": files}
    show_tables(console, folder, tables, work.notes, summary)


class _Work:
    """Stages with what was attacked in them, and their rows."""

    def __init__(self, paths: Sequence[Path], confidence: float) -> None:
        """Raises :class:`PixelsemError` for a stage of another kind."""
        from pixelsem.metrics.setups import name_attacks
        from pixelsem.stage import Stage

        self.confidence = confidence
        self.notes: list[str] = []
        self.stages: dict[str, Stage] = {}
        for path in paths:
            stage = Stage.open(path)
            if stage.info.kind not in _KINDS:
                raise PixelsemError(
                    f"{path}: is a stage of {stage.info.command!r}; first run `pixelsem defend detect train` on it"
                )
            if any(stage.info.identity == other.info.identity for other in self.stages.values()):
                self.notes.append(f"{path}: given twice; counted once")
            else:
                self.stages[str(path)] = stage
                if stage.info.options.get("attempts"):
                    self.notes.append(f"{path}: with images that did not fool the model")
        self._attacks = {name: _attack_of(stage) for name, stage in self.stages.items()}
        infos = {info.identity: info for info in self._attacks.values() if info is not None}
        setups = name_attacks(list(infos.values()))
        self._setups: dict[str, Setup] = dict(zip(infos, setups, strict=True))

    def rows(self) -> list[DetectionRow]:
        """Return one row per stage and region, where there are clean and adversarial images of the test."""
        from pixelsem.report.detection import tell_apart

        found = list(self._rows())
        sources = _sources_of(self.stages)
        return tell_apart([row for _, row in found], [sources[name] for name, _ in found])

    def _rows(self) -> Iterator[tuple[str, DetectionRow]]:
        """Yield every row of :meth:`rows` behind its stage's name."""
        from pixelsem.metrics.detection import measure
        from pixelsem.metrics.success import sort_regions

        for name, info in self._attacks.items():
            if info is None:
                continue
            test = self._test(name)
            for region in sort_regions(record.region for record in test if record.region):
                found = measure([r for r in test if r.region in (None, region)], self.confidence)
                if found is not None:
                    yield name, self._row(name, info, region, found)

    def flagged(self) -> Iterator[tuple[str, str, str, Rate]]:
        """Yield, for every stage of images of no attack, what was scored by what, and the share called adversarial."""
        from pixelsem.metrics.intervals import rate

        for name, stage in self.stages.items():
            unknown = [record.detected for record in self._test(name) if record.kind == "unknown"]
            found = rate(sum(unknown), len(unknown), self.confidence)
            if found is not None:
                features, trained_on = _detector_of(stage)
                yield Path(name).name, features, trained_on, found

    def _test(self, name: str) -> list[DetectionRecord]:
        return [record for record in detection_records(self.stages[name]) if record.split == "test"]

    def _row(self, name: str, info: StageInfo, region: str, found: Detection) -> DetectionRow:
        from pixelsem.metrics.setups import search_identity
        from pixelsem.report.detection import DetectionRow

        setup = self._setups[info.identity]
        model = self.stages[name].info.model or {}
        features, trained_on = _detector_of(self.stages[name])
        # The searches in one region are the same, whether they were run alone or beside those in others.
        own = (search_identity(info), search_identity(info, region))
        delta = info.options.get("delta")
        # Budgets have a column of their own.
        variant = ", ".join(setup.told_but("delta"))
        return DetectionRow(
            setup.network, setup.attack, setup.pixels, variant or None, None if delta is None else float(delta), region,
            features, None if model.get("search") in own else trained_on, found,
        )  # fmt: skip


def _attack_of(stage: Stage) -> StageInfo | None:
    """Return what the scored attack was; None for images of no attack. Raises :class:`StageError`."""
    import msgspec

    from pixelsem.files import one_line
    from pixelsem.metrics.setups import check_numbers
    from pixelsem.stage import StageInfo
    from pixelsem.yaml_files import read_yaml

    file = stage.path / ATTACK_FILE
    if not file.is_file():
        if any(record.kind != "unknown" for record in detection_records(stage)):
            raise StageError(f"{file}: is missing, and with it what the attack was; run the stage's command again")
        return None
    try:
        info = msgspec.convert(read_yaml(file), StageInfo)
    except msgspec.ValidationError as error:
        raise StageError(f"{file}: not a valid stage file: {one_line(error)}") from error
    check_numbers(info, file)
    return info


def _detector_of(stage: Stage) -> tuple[str, str]:
    """Return what a stage's detector looks at, and what it was trained on."""
    model = stage.info.model or {}
    return str(model.get("features", "unknown")), str(model.get("trained_on", "unknown"))


def _sources_of(stages: dict[str, Stage]) -> dict[str, Source]:
    """Return for every stage what tells its rows from those of others."""
    from pixelsem.report.detection import Source

    digests = {name: _digest_of(stage) for name, stage in stages.items()}
    asked = [field.name for kind in (EnsembleSettings, SplitSettings) for field in fields(kind)]
    trained = {
        digests[name]: {option: stage.info.options.get(option) for option in asked}
        for name, stage in stages.items()
        if stage.info.kind == "train-detector"
    }
    folders = {name: stage.path.resolve() for name, stage in stages.items()}
    shared = os.path.commonpath([folder.parent for folder in folders.values()])
    return {
        name: Source(
            trained.get(digests[name]),
            stage.info.kind == "train-detector",
            folders[name].relative_to(shared).as_posix(),
        )
        for name, stage in stages.items()
    }


def _digest_of(stage: Stage) -> str:
    """Return the digest of a stage's detector; of a training whose file cannot be read the stage's own."""
    from pixelsem.defenses.detector import detector_digest

    if stage.info.kind == "train-detector":
        with suppress(OSError):
            return detector_digest(stage.path)
    return str((stage.info.model or {}).get("digest", stage.info.identity))
