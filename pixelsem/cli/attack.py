"""``pixelsem attack NAME``: adversarial images whose changes stay inside a region."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from pixelsem.attacks.registry import ATTACKS, AttackInfo
from pixelsem.attacks.settings import AttackSettings, DeviceOptions, EvaluatorOptions, GoalOptions, RegionOptions
from pixelsem.cli import attack_patch, attack_split
from pixelsem.cli.attack_run import AttackCommand
from pixelsem.cli.console import Console, data_stream
from pixelsem.cli.options import (
    EngineOptions,
    OutputOptions,
    SelectionOptions,
    ShardOptions,
    add_defaults,
    as_text,
    expand,
)
from pixelsem.errors import PixelsemError
from pixelsem.models.settings import ModelOptions

Images = Annotated[
    list[Path] | None,
    typer.Argument(help="An image folder, an image, or a segmentation stage (default: stdin, or the newest stage)."),
]


def register(app: typer.Typer) -> None:
    """Add the ``attack`` group with one command per registered attack."""
    group = typer.Typer(help="Make adversarial images whose changes stay inside a region.", no_args_is_help=True)
    for info in ATTACKS.values():
        if info.name == attack_patch.NAME:
            attack_patch.register(group, _command(info), info.help)
        else:
            group.command(info.name, help=info.help)(_command(info))
    group.command("list")(_list)
    group.command("split")(expand(attack_split.attack_split))
    app.add_typer(group, name="attack")


def _command(info: AttackInfo) -> Callable[..., None]:
    def load_preset(context: typer.Context, value: str | None) -> str | None:
        if value is not None and not context.resilient_parsing:
            if value not in info.presets:
                raise PixelsemError(f"--preset: {value!r} is none of {', '.join(info.presets)}")
            fixed = {name: as_text(setting) for name, setting in info.presets[value].items()}
            add_defaults(context, fixed, first=False)
        return value

    def attack(
        *,
        context: typer.Context,
        images: Images = None,
        preset: str | None = None,
        settings: AttackSettings,
        region: RegionOptions,
        goal: GoalOptions,
        model: ModelOptions,
        evaluator: DeviceOptions,
        selection: SelectionOptions,
        sharding: ShardOptions,
        spreading: EngineOptions,
        output: OutputOptions,
    ) -> None:
        groups = (settings, region, goal, model, evaluator, selection, sharding, spreading, output)
        AttackCommand(context, info, preset, *groups).run(images)

    text = f"Settings of a paper: {', '.join(info.presets)}. Options given beside it win."
    choice = typer.Option(help=text, is_eager=True, callback=load_preset, hidden=not info.presets)
    attack.__annotations__ |= {
        "settings": info.settings,
        "preset": Annotated[str | None, choice],
        "evaluator": EvaluatorOptions if info.access == "black" else DeviceOptions,
    }
    return expand(attack)


def _list(as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON on stdout.")] = False) -> None:
    """List every attack: its norm, what it needs of the model, the paper, the default budget.

    On a terminal the list is a table, else lines with tabs.
    """
    rows = [
        {
            "name": info.name,
            "norm": info.norm,
            "budget": info.budget,
            "access": info.access,
            "targeted": info.targeted,
            "paper": info.paper,
            "summary": info.summary,
        }
        for info in ATTACKS.values()
    ]
    console = Console(as_json=as_json)
    shown = [_COLUMNS, *([str(row[key]) for key in _COLUMNS] for row in rows)]
    if as_json:
        console.data(json.dumps(rows, ensure_ascii=False))
    elif data_stream().isatty():
        _show(shown[1:], console)
    else:
        console.data("\n".join("\t".join(row) for row in shown))


_COLUMNS = ("name", "norm", "budget", "access", "paper", "summary")


def _show(rows: Sequence[Sequence[str]], console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("Attack", "Norm", "Budget", "Box", "Paper", "What it does", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*row)
    console.table(table)
