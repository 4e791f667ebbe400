"""From settings dataclasses to command-line options, and the YAML files that fill them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections import ChainMap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings, option

@dataclasses.dataclass(frozen=True)
class OutputOptions(Settings):
    """Where results go and what is printed; every stage command takes these."""

    output: Path | None = option(None, "The stage folder itself (default: a name of its own below --run).", flag="-o")
    run: Path = option(Path("pixelsem-run"), "Folder that holds the stages of one experiment.", env="PIXELSEM_RUN")
    overwrite: bool = option(False, "Start anew where the stage folder holds another run.", flag="--overwrite")
    json: bool = option(False, "Print a summary as JSON on stdout in place of the stage's path.", flag="--json")
    quiet: bool = option(False, "No progress and no tables on stderr.", flag="-q")


@dataclasses.dataclass(frozen=True)
class SelectionOptions(Settings):
    """Which part of the input images to take."""

    limit: int | None = option(None, "Take the first N images (by relative path).", low=1)
    sample: int | None = option(None, "Take N images drawn at random by --seed.", low=1)
    seed: int = option(0, "Seed of everything that is drawn.", low=0)


def expand(function: Callable[..., None]) -> Callable[..., None]:
    """Turn every parameter annotated with a settings dataclass into that dataclass's options.

    Other parameters stay as they are. The command also gets ``--config FILE``.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Settings]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if isinstance(hint, type) and issubclass(hint, Settings):
            groups[name] = hint
            parameters += _parameters(hint)
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))
    parameters = list({parameter.name: parameter for parameter in parameters}.values())
    parameters.append(_config_parameter(frozenset(p.name for p in parameters if "Path" in str(p.annotation))))

    @functools.wraps(function)
    def command(**values: Any) -> None:
        values.pop("config")
        arguments = {}
        for name, kind in groups.items():
            kinds = get_type_hints(kind)
            fields = [field.name for field in dataclasses.fields(kind)]
            arguments[name] = kind(**{field: _decode(values[field], kinds[field], field) for field in fields})
        grouped = {f.name for kind in groups.values() for f in dataclasses.fields(kind)}
        function(**arguments, **{name: value for name, value in values.items() if name not in grouped})

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameters(kind: type[Settings]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind)
    made = []
    for field in dataclasses.fields(kind):
        annotation = _annotation(field, hints[field.name])
        default = as_text(field.default)
        made.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return made


def as_text(value: Any) -> Any:
    """Return a tuple as the ``a,b,c`` that its option takes, anything else as it is."""
    if not isinstance(value, tuple):
        return value
    return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)


def _annotation(field: dataclasses.Field[Any], hint: Any) -> Any:
    meta = field.metadata
    long = "--" + field.name.replace("_", "-")
    flag = meta.get("flag")
    hint = _without_none(hint)
    if hint is bool:
        names = [long, flag] if flag and not flag.startswith("--") else [flag or f"{long}/--no-{long[2:]}"]
    else:
        names = [long] if flag is None else [long, flag] if len(flag) == 2 else [flag]
    extra: dict[str, Any] = {"help": meta["help"], "envvar": meta.get("env"), "metavar": meta.get("metavar")}
    if _is_tuple(hint):
        extra["metavar"] = extra["metavar"] or ",".join(_item_names(hint))
        hint = str
    elif hint in (int, float):
        extra["min"], extra["max"] = meta.get("low"), meta.get("high")
    elif get_origin(hint) is Literal:
        extra["case_sensitive"] = False
    optional = hint | None if field.default is None else hint
    return Annotated[optional, typer.Option(*names, **extra)]


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(item for item in get_args(hint) if item is not type(None))
    return hint


def _is_tuple(hint: Any) -> bool:
    return get_origin(hint) is tuple


def _item_names(hint: Any) -> list[str]:
    names = {int: "INT", float: "NUM", str: "TEXT"}
    return ["…" if item is Ellipsis else names.get(item, "VALUE") for item in get_args(hint)]


def _decode(value: Any, hint: Any, name: str) -> Any:
    """Turn ``a,b,c`` back into a tuple where the setting is one."""
    hint = _without_none(hint)
    if not isinstance(value, str) or not _is_tuple(hint):
        return value
    make = get_args(hint)[0]
    try:
        return tuple(make(part) for part in value.split(","))
    except ValueError as error:
        raise PixelsemError(f"--{name.replace('_', '-')}: {value!r} is not a list like {_example(hint)}") from error


def _example(hint: Any) -> str:
    count = 3 if Ellipsis in get_args(hint) else len(get_args(hint))
    return ",".join(str(number) for number in range(1, count + 1))


def _config_parameter(paths: frozenset[str]) -> inspect.Parameter:
    """Make the ``--config`` option of a command; ``paths`` are the names of its options that hold paths."""

    def load(context: typer.Context, file: Path | None) -> Path | None:
        if file is not None and not context.resilient_parsing:
            add_defaults(context, _read_config(context, file, paths))
        return file

    text = "YAML file with options by name; a stage.yaml repeats that stage's run."
    hint = Annotated[Path | None, typer.Option("--config", help=text, is_eager=True, callback=load)]
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


def add_defaults(context: typer.Context, values: Mapping[str, Any], *, first: bool = True) -> None:
    """Let ``values`` stand for options that are not on the command line.

    With ``first`` they come before what was added earlier (a config beats a preset), else after.
    """
    old = dict(context.default_map or {})
    context.default_map = dict(ChainMap(dict(values), old) if first else ChainMap(old, dict(values)))


def command_name(context: typer.Context) -> str:
    """Return the command without the program's name, e.g. ``attack de``."""
    return " ".join(context.command_path.split()[1:])


def _read_config(context: typer.Context, file: Path, paths: frozenset[str]) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PixelsemError(f"{file}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise PixelsemError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise PixelsemError(f"{file}: expected a mapping of option names to values")
    base = Path()
    if {"kind", "identity", "options"} <= set(values):
        if values.get("command") != command_name(context):
            raise PixelsemError(f"{file}: is of `{values.get('command')}`, not of `{command_name(context)}`")
        base, values = file.parent, values["options"]
    return _checked(context, file, values, base, paths)


def _checked(
    context: typer.Context, file: Path, values: dict[Any, Any], base: Path, paths: frozenset[str]
) -> dict[str, Any]:
    """Check names; make paths relative to ``base``; lists become the text that an option takes."""
    known = [str(parameter.name) for parameter in context.command.params if parameter.name not in ("config", "help")]
    checked: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise PixelsemError(f"{file}: unknown key {key!r}; `{command_name(context)}` has {', '.join(known)}")
        if name in paths:
            items = value if isinstance(value, list) else [value]
            placed = [str(base / str(item)) if item is not None else None for item in items]
            value = placed if isinstance(value, list) else placed[0]
        elif isinstance(value, list):
            value = ",".join(map(str, value))
        if value is not None:
            checked[name] = value
    return checked
