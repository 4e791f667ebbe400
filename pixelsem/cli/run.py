"""``pixelsem run PLAN.yaml``: a matrix of models, regions, attacks and settings, command by command."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from pixelsem.cli.console import Console
from pixelsem.cli.options import expand
from pixelsem.errors import EXIT_SOME_FAILED, PixelsemError
from pixelsem.files import one_line
from pixelsem.settings import Settings, option, option_name

if TYPE_CHECKING:
    from pixelsem.engine.running import Ended

PlanFile = Annotated[Path, typer.Argument(help="The plan, a YAML file (docs/batch.md).", metavar="PLAN.yaml")]

#: Options that a plan sets by itself, or that would break how its steps find each other: one command, one stage.
_OWN = frozenset({"config", "output", "json", "help", "sweep"})


@dataclass(frozen=True)
class PlanOptions(Settings):
    """How a plan is run."""

    run: Path | None = option(
        None, "Folder of its stages, in place of the one that the plan names (relative to the plan)."
    )
    jobs: int = option(1, "Commands that run at a time; with several, what they say goes to RUN/logs.", low=1)
    dry_run: bool = option(False, "Print the commands as a shell script on stdout, and run nothing.", flag="--dry-run")
    json: bool = option(False, "Print how every command ended as JSON on stdout.", flag="--json")
    quiet: bool = option(False, "No notes on stderr.", flag="-q")


def register(app: typer.Typer) -> None:
    """Add the ``run`` command."""
    app.command("run")(expand(run_plan))


def run_plan(*, plan: PlanFile, options: PlanOptions) -> None:
    """Run a plan: segmentations, attacks on them, and what comes after, in every combination that it names.

    Each command leaves a stage of its own and takes up one that was interrupted, so the same plan goes on where it
    was. Where a command fails, what depends on it is left out, the rest goes on, and the exit code is 1.
    """
    from pixelsem.cli.app import make_app
    from pixelsem.engine.plans import read_plan
    from pixelsem.engine.running import PlanRun

    console = Console(quiet=options.quiet, as_json=options.json)
    # Of the program that this process is only this command was read.
    commands = _CommandLine(typer.main.get_command(make_app()))
    made = read_plan(plan, commands, None if options.run is None else str(options.run))
    if options.dry_run:
        console.data(made.script())
        return
    ended: list[Ended] = []
    # -P: files beside the plan must not stand for modules.
    running = PlanRun(made, [sys.executable, "-P", "-m", "pixelsem"], options.jobs).run()
    try:
        for result in running:
            ended.append(result)
            _tell(result, f"{len(ended)} of {len(made.steps)}", console)
    finally:
        running.close()  # ends what is still running, whatever ended this
    order = {step.name: number for number, step in enumerate(made.steps)}
    ended.sort(key=lambda result: order[result.step.name])
    failed = sum(not result.ok for result in ended)
    console.note(f"{len(ended) - failed} of {len(ended)} commands worked, {failed} failed or were left out")
    if options.json:
        console.data(json.dumps({"run": made.run, "steps": [_plain(result) for result in ended]}, ensure_ascii=False))
    else:
        for result in ended:
            if result.stage is not None:
                console.data(str(made.folder / result.stage))
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _tell(result: Ended, count: str, console: Console) -> None:
    if result.exit is None:
        console.problem(f"{count}: {result.step.name}: left out, as what it goes by is not there")
    elif result.ok:
        console.note(f"{count}: {result.step.name}: done in {result.seconds:.0f} s")
    else:
        where = f"; see {result.log}" if result.log else ""
        console.problem(f"{count}: {result.step.name}: ended with exit code {result.exit}{where}")


def _plain(result: Ended) -> dict[str, Any]:
    return {
        "name": result.step.name,
        "command": list(result.step.words),
        "after": list(result.step.after),
        "exit": result.exit,
        "stage": result.stage,
        "seconds": round(result.seconds, 3),
        "log": None if result.log is None else str(result.log),
    }


class _CommandLine:
    """What plans have to know of the command line, asked of the program itself."""

    def __init__(self, root: Any) -> None:
        self._root = root

    def options(self, command: Sequence[str]) -> frozenset[str]:
        """Return the names of a command's options; raises :class:`PixelsemError` where there is no such command."""
        return frozenset(self._parameters(command))

    def arguments(self, command: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        """Return options as they are typed; raises :class:`PixelsemError` for a value that is not taken."""
        known = self._parameters(command)
        words = [word for name, value in options.items() for word in _typed(known[name], name, value)]
        try:
            self._leaf([*command, *words], parse=True)
        except TyperException as error:
            raise PixelsemError(one_line(error.format_message().replace("Value error, ", ""))) from error
        return words

    def _parameters(self, command: Sequence[str]) -> dict[str, Any]:
        try:
            leaf = self._leaf(command, parse=False)
        except TyperException as error:
            raise PixelsemError(one_line(error.format_message())) from error
        return {p.name: p for p in leaf.params if p.param_type_name == "option" and p.name not in _OWN}

    def _leaf(self, words: Sequence[str], *, parse: bool) -> Any:
        """Follow words through the groups (and their default subcommands) to the command that they call."""
        command, left, context = self._root, list(words), None
        name = "pixelsem"
        while hasattr(command, "commands"):
            # A word that is no option keeps a group from printing its help in place of an answer.
            context = command.make_context(name, left or ["-"], parent=context, resilient_parsing=not parse)
            found, command, left = command.resolve_command(context, [*context._protected_args, *context.args])
            name = str(found)
            if command is None:
                raise PixelsemError(f"{' '.join(words)!r} is no command")
        if parse:
            command.make_context(name, left, parent=context)
        return command


def _typed(parameter: Any, name: str, value: Any) -> list[str]:
    """Return one option and its value as words; nothing for null."""
    if value is None:
        return []
    if isinstance(value, dict):
        raise PixelsemError(f"{name}: a plain value or a list expected, {value!r} given")
    if parameter.is_flag != isinstance(value, bool):
        wanted = "true or false" if parameter.is_flag else "a value that is not true or false"
        raise PixelsemError(f"{name}: {wanted} expected, {value!r} given")
    if parameter.is_flag:
        return list(parameter.opts[:1] if value else parameter.secondary_opts[:1])
    long = next((word for word in parameter.opts if word.startswith("--")), option_name(name))
    if isinstance(value, list) and parameter.multiple:
        return [word for item in value for word in (long, str(item))]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    # One word, so that a value that begins with a dash is not taken for an option.
    return [f"{long}={text}"] if text.startswith("-") else [long, text]
