"""``pixelsem defend …``: transformed images, detectors, hardened models."""

from __future__ import annotations

import typer

from pixelsem.cli import defend_detect, defend_train, defend_transform


def register(app: typer.Typer) -> None:
    """Add the ``defend`` group."""
    group = typer.Typer(help="Defend a classifier: transform images, detect attacks, train.", no_args_is_help=True)
    group.callback()(lambda: None)
    defend_train.register(group)
    defend_detect.register(group)
    defend_transform.register(group)
    app.add_typer(group, name="defend")
