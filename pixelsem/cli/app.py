"""The root of the command line. Nothing heavy is imported here: ``pixelsem --help`` must be instant."""

from __future__ import annotations

from typing import Annotated

import typer

from pixelsem.cli import attack, defend, evaluate, models, segment, stage
from pixelsem.cli import run as run_plan
from pixelsem.cli.groups import RootGroup, run
from pixelsem.version import __version__


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


app = typer.Typer(
    cls=RootGroup,
    name="pixelsem",
    help="Find where in an image a classifier is fragile: in the object or around it, pixel by pixel.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Take the options of the program itself."""


for module in (segment, attack, evaluate, defend, stage, run_plan, models):
    module.register(app)


def main() -> None:
    """Entry point of the ``pixelsem`` command."""
    run(app)
