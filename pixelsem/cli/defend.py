"""``pixelsem defend …``: hardened models (so far: training)."""

from __future__ import annotations

import typer

from pixelsem.cli import defend_detect, defend_train


def register(app: typer.Typer) -> None:
    """Add the ``defend`` group."""
    group = typer.Typer(help="Defend a classifier.", no_args_is_help=True)
    group.callback()(lambda: None)
    defend_train.register(group)
    defend_detect.register(group)
    app.add_typer(group, name="defend")
