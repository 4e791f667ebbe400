"""The root of the command line. Nothing heavy is imported here: ``pixelsem --help`` must be instant."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from pixelsem.cli import attack, defend, evaluate, models, segment
from pixelsem.cli.console import Console
from pixelsem.errors import EXIT_INTERRUPTED, PixelsemError


class _Root(TyperGroup):
    """Ends every command with one line and the documented exit code where something is wrong."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PixelsemError as error:
            Console().problem(str(error))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            Console().problem("interrupted; what is done stays done, the same command goes on from there")
            raise typer.Exit(EXIT_INTERRUPTED) from error


app = typer.Typer(
    cls=_Root,
    name="pixelsem",
    help="Find where in an image a classifier is fragile: in the object or around it, pixel by pixel.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (segment, attack, evaluate, defend, models):
    module.register(app)


def main() -> None:
    """Entry point of the ``pixelsem`` command."""
    app()
