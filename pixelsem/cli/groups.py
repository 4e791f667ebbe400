"""Command groups: the root, which ends every command properly, and groups with a default subcommand."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from pixelsem.cli.console import Console, silence_stdout
from pixelsem.cli.options import config_of
from pixelsem.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_SOME_FAILED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    PixelsemError,
    is_out_of_memory,
)
from pixelsem.files import one_line

_STOPPED = "what is done stays done, the same command goes on from there"

_SMALLER = "ask for less at a time (--batch-size, --in-flight, --population, --limit), or take smaller images"


@dataclass
class _Ending:
    """How signals end the command.

    :ivar terminated: SIGTERM (a scheduler's time limit) or SIGHUP came. It is unwound like Ctrl-C; what tells them
        apart is kept here and not in the exception, as libraries put a KeyboardInterrupt of their own in its place.
    :ivar said: the line was printed.
    """

    terminated: bool = False
    said: bool = False

    @property
    def code(self) -> int:
        """The exit code of a command that a signal ended."""
        return EXIT_TERMINATED if self.terminated else EXIT_INTERRUPTED


_ending = _Ending()


class RootGroup(TyperGroup):
    """Ends every command with one line and the documented exit code where something is wrong."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and leave with its exit code; without ``standalone_mode`` return or raise."""

        def run() -> Any:
            return super(RootGroup, self).main(args, prog_name, complete_var, False, windows_expand_args, **extra)

        if not standalone_mode:
            return run()
        _ending.terminated = _ending.said = False
        sys.exit(_exit_code(run))

    def make_context(self, *given: Any, **options: Any) -> Any:
        """Read the command line, which a signal may end before there is a command."""
        try:
            return super().make_context(*given, **options)
        except KeyboardInterrupt as error:
            raise typer.Exit(_stopped()) from error

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; what it raises becomes one line on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except PixelsemError as error:
            Console().problem(one_line(error))
            raise typer.Exit(error.exit_code) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            Console().problem(f"out of memory ({one_line(error)[:200]}); {_SMALLER}")
            raise typer.Exit(EXIT_USAGE) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(_stopped()) from error


def _exit_code(run: Callable[[], Any]) -> int:
    try:
        code = run()
        sys.stdout.flush()
    except TyperException as error:
        return _show_usage_error(error)
    except (typer.Abort, KeyboardInterrupt):
        return _stopped()
    except BrokenPipeError:
        silence_stdout()
        return EXIT_SOME_FAILED
    if code == EXIT_INTERRUPTED and not _ending.said:  # typer's answer, where it was between its calls of ours
        return _stopped()
    return code if isinstance(code, int) else EXIT_OK


def _stopped() -> int:
    """Say, once, which signal ended the command; return the exit code for it."""
    if not _ending.said:
        _ending.said = True
        for number in _asking_to_end():
            if signal.getsignal(number) == _terminate:
                signal.signal(number, signal.SIG_IGN)  # it ends as it is; another one would change its exit code
        Console().problem(f"{'terminated' if _ending.terminated else 'interrupted'}; {_STOPPED}")
    return _ending.code


def _show_usage_error(error: TyperException) -> int:
    context = getattr(error, "ctx", None)
    message = error.format_message().replace("Value error, ", "")
    if context is None:
        Console().problem(one_line(message))
    elif message == context.get_help():  # a group called with nothing behind it
        print(message, file=sys.stderr)
    else:
        Console().problem(_blame_config(error, context) + one_line(message))
        print(f"Try '{context.command_path} --help'.", file=sys.stderr)
    return EXIT_USAGE


def _blame_config(error: TyperException, context: Any) -> str:
    """Name the --config file where the value that is wrong came from it."""
    parameter = getattr(error, "param", None)
    source = parameter and context.get_parameter_source(parameter.name)
    return f"{config_of(context)}: " if source and source.name == "DEFAULT_MAP" and config_of(context) else ""


def group_with_default(default: str) -> type[TyperGroup]:
    """Return a group class for which ``pixelsem GROUP …`` means ``pixelsem GROUP DEFAULT …``.

    The default stands in where the first argument is neither a subcommand nor a request for help; its options
    are shown in the group's help and completed after the group's name.
    """

    class Group(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            named = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
            if named and args[0] == default and os.path.exists(default):  # a folder of that name is meant
                named = False
            if not named and not (ctx.resilient_parsing and not args):
                args = [default, *args]
            return super().parse_args(ctx, args)

        def collect_usage_pieces(self, ctx: Any) -> list[str]:
            return [*self.commands[default].collect_usage_pieces(ctx), "|", "COMMAND", "…"]

        def format_options(self, ctx: Any, formatter: Any) -> None:
            self.commands[default].format_options(ctx, formatter)

        def format_help_text(self, ctx: Any, formatter: Any) -> None:
            super().format_help_text(ctx, formatter)
            self.format_commands(ctx, formatter)

        def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
            own = super().shell_complete(ctx, incomplete)
            offered = {item.value for item in own}
            more = self.commands[default].shell_complete(ctx, incomplete)
            return own + [item for item in more if item.value not in offered]

    return Group


def run(app: typer.Typer) -> None:
    """Run ``app`` as this process's command line: the signals and streams that a program should have."""
    for number in _asking_to_end():
        # What is ignored stays so: nohup asks for it.
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _terminate)
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):  # names of files need not be text
            stream.reconfigure(errors="surrogateescape")
    atexit.register(_leave)  # the first one to be registered is the last one to be called
    app(prog_name="pixelsem")


def _asking_to_end() -> list[signal.Signals]:
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _terminate(number: int, frame: FrameType | None) -> None:
    _ending.terminated = True
    raise KeyboardInterrupt


def _leave() -> None:
    """End the process with the code that was decided on, where a signal ended the command.

    Python itself dies of SIGINT in its place once a KeyboardInterrupt came by any ``exec()`` of a text (that of
    dataclasses, say), though it was caught.
    """
    if _ending.said:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # as the interpreter: nobody is there to be told
                stream.flush()
        os._exit(_ending.code)
