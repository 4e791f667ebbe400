"""A command group that may be called without naming a subcommand."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


def group_with_default(default: str) -> type[TyperGroup]:
    """Return a group class for which ``pixelsem GROUP …`` means ``pixelsem GROUP DEFAULT …``.

    The default stands in where the first argument is neither a subcommand nor a request for help.
    """

    class Group(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            named = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
            if not named and not (ctx.resilient_parsing and not args):
                args = [default, *args]
            return super().parse_args(ctx, args)

    return Group
