"""The root of the command line. Nothing heavy is imported here: ``pixelsem --help`` must be instant.

So a process reads only the module of the command that it was called with; the others are names with a line of help.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from importlib import import_module
from typing import Annotated, Any

import typer

from pixelsem.cli.groups import RootGroup, run
from pixelsem.version import __version__

#: The commands, each a module of this package with a function ``register``: is it a group, and its line of help.
COMMANDS = {
    "segment": (True, "Find the object in each image: masks, from which the attacks take their regions."),
    "attack": (True, "Make adversarial images whose changes stay inside a region."),
    "evaluate": (True, "Make tables from what attacks left behind."),
    "defend": (True, "Defend a classifier: transform images, detect attacks, train."),
    "stage": (True, "Join, check and watch stages, whatever command made them."),
    "run": (
        False,
        "Run a plan: segmentations, attacks on them, and what comes after, in every combination that it names.",
    ),
    "models": (
        False,
        "List the classifiers by name: input size, classes, parameters, and whether the weights are at hand.",
    ),
}


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


def make_app(wanted: Collection[str] = tuple(COMMANDS)) -> typer.Typer:
    """Return the command line; commands that are not ``wanted`` are there by name and help alone."""
    app = typer.Typer(
        cls=RootGroup,
        name="pixelsem",
        help="Find where in an image a classifier is fragile: in the object or around it, pixel by pixel.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    for name, (is_group, text) in COMMANDS.items():
        if name in wanted:
            import_module(f"pixelsem.cli.{name}").register(app)
        elif is_group:
            group = typer.Typer(help=text)
            group.callback()(_nothing)
            app.add_typer(group, name=name)
        else:
            app.command(name, help=text)(_nothing)
    return app


def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Take the options of the program itself."""


def _nothing() -> None:
    """Stand for a command whose module was not read."""


def __getattr__(name: str) -> Any:
    """Make ``app``, with every command, when it is first asked for."""
    if name != "app":
        raise AttributeError(name)
    globals()["app"] = make_app()
    return globals()["app"]


def main() -> None:
    """Entry point of the ``pixelsem`` command."""
    completing = "_PIXELSEM_COMPLETE" in os.environ  # the command is in the environment too, as the shell has it
    named = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    run(make_app() if completing else make_app({named} if named else ()))
