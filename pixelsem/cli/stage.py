"""``pixelsem stage …``: stages as such. Join the parts of a run, check what a stage holds, see how far it is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pixelsem.cli.console import Console, data_stream
from pixelsem.cli.inputs import resolve_inputs
from pixelsem.cli.options import expand
from pixelsem.cli.stages import hold
from pixelsem.errors import EXIT_SOME_FAILED, PixelsemError, StageError
from pixelsem.records import RECORD_TYPES
from pixelsem.settings import Settings, option
from pixelsem.stage import STAGE_FILE, Stage, count_lines

if TYPE_CHECKING:
    from pixelsem.fitness.evaluator import Evaluator

_ANY = tuple(RECORD_TYPES)

Out = Annotated[Path, typer.Argument(help="The stage to make, or to go on with.", metavar="OUT", show_default=False)]
Parts = Annotated[
    list[Path], typer.Argument(help="Stages of one run, say its shards; - reads them from stdin.", metavar="PART…")
]
Verified = Annotated[
    list[Path] | None,
    typer.Argument(help="Stages (default: stdin, or the newest one of --run).", metavar="DIR…", show_default=False),
]
Watched = Annotated[
    list[Path] | None,
    typer.Argument(help="Stages (default: stdin, or every one in --run).", metavar="DIR…", show_default=False),
]


@dataclass(frozen=True)
class ReportOptions(Settings):
    """What is printed."""

    run: Path = option(Path("pixelsem-run"), "Folder that holds the stages of one experiment.", env="PIXELSEM_RUN")
    json: bool = option(False, "Print a summary as JSON on stdout.", flag="--json")
    quiet: bool = option(False, "No progress and no notes on stderr.", flag="-q")


@dataclass(frozen=True)
class MergeOptions(Settings):
    """How parts are joined."""

    link: bool = option(
        False, "Give files a second name in place of copying them, where the file system can.", flag="--link"
    )
    partial: bool = option(
        False,
        "Join what there is although parts are missing or were not finished; the run's own command, without --shard "
        "and with -o OUT, does the rest.",
        flag="--partial",
    )
    json: bool = option(False, "Print a summary as JSON on stdout in place of the stage's path.", flag="--json")
    quiet: bool = option(False, "No progress and no notes on stderr.", flag="-q")


@dataclass(frozen=True)
class VerifyOptions(Settings):
    """How stages are checked."""

    score: bool = option(True, "Decide predictions and successes again, in fp32 on the files as they are.")
    model: str | None = option(
        None, "Where the attacked model is now, if its file was moved; it must be the same one.", flag="-m"
    )
    weights: Path | None = option(None, "Where its weights are now, if they were moved.", metavar="FILE")
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")


def register(app: typer.Typer) -> None:
    """Add the ``stage`` group."""
    group = typer.Typer(help="Join, check and watch stages, whatever command made them.", no_args_is_help=True)
    group.command("merge")(expand(stage_merge))
    group.command("verify")(expand(stage_verify))
    group.command("status")(expand(stage_status))
    app.add_typer(group, name="stage")


def stage_merge(*, context: typer.Context, out: Out, parts: Parts, options: MergeOptions) -> None:
    """Join the parts of one run (`--shard I/N`) into one stage, as if it had been run at once.

    Everything is looked at before anything is written: parts of another run, results that differ between parts and
    files that are missing are refused. Interrupted, the same command goes on from there.
    """
    from pixelsem.engine.merging import Merge, missing, open_parts

    console = Console(quiet=options.quiet, as_json=options.json)
    opened = open_parts(out, resolve_inputs(parts, Path(), ("segment", "attack")))
    gaps = missing(opened)
    if gaps and not options.partial:
        raise StageError(f"{gaps[0]}; --partial joins what there is")
    merge = Merge(out, opened, link=options.link)
    total = merge.check()
    lock = hold(context, out)
    whole = Stage.create(out, merge.info())
    whole.lock = lock
    with console.progress("merge", total) as bar:
        summary = merge.run(whole, bar.update)
    for gap in summary.missing:
        console.problem(gap)
    console.note(
        f"{summary.records} records of {len(opened)} parts: {summary.held} were there before, {summary.doubled} in "
        "several parts, alike"
    )
    told = {"records": summary.records, "held": summary.held, "doubled": summary.doubled, "missing": summary.missing}
    console.result(out, told)


def stage_verify(*, stages: Verified = None, verify: VerifyOptions, options: ReportOptions) -> None:
    """Check stages: every record, every file, every pixel that is known, every success, scored again.

    One line per problem on stderr, and exit code 1. The paths of sound stages go to stdout, so that
    `pixelsem stage verify STAGE | pixelsem evaluate -` evaluates nothing that is damaged.
    """
    console = Console(quiet=options.quiet, as_json=options.json)
    reports = []
    for path in resolve_inputs(stages, options.run, _ANY, note=console.note):
        report = _verify(path, verify, console)
        reports.append(report)
        if not options.json and not report["problems"]:
            console.data(str(path))
        console.note(f"{path}: {report['records']} records, {len(report['problems'])} problems")
    if options.json:
        console.data(json.dumps({"stages": reports}, ensure_ascii=False))
    if any(report["problems"] for report in reports):
        raise typer.Exit(EXIT_SOME_FAILED)


def _verify(path: Path, options: VerifyOptions, console: Console) -> dict[str, Any]:
    """Check one stage; its problems are printed as they are found."""
    from pixelsem.engine.verifying import Verification

    problems: list[str] = []

    def tell(problem: str) -> None:
        problems.append(problem)
        console.problem(problem)

    records, scored = 0, False
    try:
        stage = Stage.open(path)
        evaluator = _evaluator(stage, options, tell)
        scored = evaluator is not None
        verification = Verification(stage, evaluator)
        with console.progress(f"verify {path.name}", count_lines(stage.manifest)) as bar:
            for problem in verification.problems(bar.update):
                tell(problem)
        records = verification.records
    except StageError as error:
        tell(str(error))
    return {"stage": str(path), "records": records, "scored": scored, "problems": problems}


def _evaluator(stage: Stage, options: VerifyOptions, tell: Callable[[str], None]) -> Evaluator | None:
    """Load the model that an attack stage was made with; where it cannot be had, that is a problem too."""
    from pixelsem.cli.attack_split import RescoringOptions, attacked_model
    from pixelsem.fitness.evaluator import Evaluator

    if not options.score or stage.info.kind != "attack":
        return None
    try:
        model = attacked_model(stage, RescoringOptions(options.model, options.weights, options.device))
    except PixelsemError as error:
        tell(f"{stage.path}: cannot be scored again: {error}; --no-score leaves that out")
        return None
    return Evaluator(model, device=options.device, scorer="dense")


def stage_status(*, stages: Watched = None, options: ReportOptions) -> None:
    """Say how far stages are: records done, failed and left, the rate, the time to go; of running ones too.

    The rate is that of the run that is going on, else that of all runs so far. Left is at most what is planned:
    searches that turn out to be pointless leave no record.
    """
    console = Console(quiet=options.quiet, as_json=options.json)
    states = []
    for path in _watched(stages, options.run):
        try:
            states.append(_state(Stage.open(path)))
        except (StageError, OSError) as error:
            console.problem(str(error))
    if options.json:
        console.data(json.dumps({"stages": states}, ensure_ascii=False))
    elif data_stream().isatty():
        _show(states, console)
    else:
        console.data("\n".join("\t".join(row) for row in [_COLUMNS, *map(_cells, states)]))


def _watched(given: Sequence[Path] | None, run: Path) -> list[Path]:
    found = sorted(file.parent for file in run.glob(f"*/{STAGE_FILE}"))
    if not given and found:
        return found
    return resolve_inputs(list(given or []), run, _ANY)


_COLUMNS = ("stage", "state", "done", "failed", "left", "per_second", "seconds_left", "writer")


def _state(stage: Stage) -> dict[str, Any]:
    """Return what is known of a stage's progress; None where a number is not known."""
    from pixelsem.locks import holder_of

    info, done, holder = stage.info, count_lines(stage.manifest), holder_of(stage.path)
    counts = info.counts or {}
    failed = counts.get("failed", 0) if holder is None and info.counts is not None else None
    planned = info.planned if info.planned is not None else counts.get("searches")
    left = None if planned is None else max(0, planned - done - (failed or 0))
    if holder is not None:
        taken, recent = time.time() - holder.since, done - holder.records
    else:
        taken, recent = info.wall_time or 0.0, done
    rate = recent / taken if taken > 0 and recent > 0 else None
    finished = holder is None and info.counts is not None
    return {
        "stage": str(stage.path),
        "state": "running" if holder else "finished" if finished else "stopped",
        "done": done,
        "failed": failed,
        "left": left,
        "per_second": None if rate is None else round(rate, 4),
        "seconds_left": None if rate is None or left is None else round(left / rate, 1),
        "writer": None if holder is None else str(holder),
    }


def _cells(state: dict[str, Any]) -> tuple[str, ...]:
    return tuple("" if state[name] is None else str(state[name]) for name in _COLUMNS)


def _show(states: list[dict[str, Any]], console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console as RichConsole
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column.replace("_", " "), justify="right" if column in _COLUMNS[2:7] else "left")
    for state in states:
        table.add_row(*_cells(state))
    RichConsole(highlight=False).print(table, markup=False)
