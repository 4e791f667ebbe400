"""From settings dataclasses to command-line options, and the YAML files that fill them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import typer

from pixelsem.cli.console import only_data_on_stdout
from pixelsem.engine.shards import Shard
from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings, option, option_name, parse_float, range_problem

_CONFIG = "pixelsem.config"


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
    # 64 bits: what a generator takes as a part of its key.
    seed: int = option(0, "Seed of everything that is drawn.", low=0, high=2**64 - 1)


@dataclasses.dataclass(frozen=True)
class ShardOptions(Settings):
    """Which of several jobs this is."""

    shard: str | None = option(
        None,
        "Do part I of N only, from 1: a division by image, the same in every job; `pixelsem stage merge` joins the "
        "parts, each of which has a folder of its own.",
        metavar="I/N",
    )

    def check(self) -> None:
        """Raise :class:`PixelsemError` for a part that there is not."""
        Shard.parse(self.shard)

    @property
    def part(self) -> Shard | None:
        """The part to do, None for all."""
        return Shard.parse(self.shard)


@dataclasses.dataclass(frozen=True)
class EngineOptions(Settings):
    """Where the work is done."""

    engine: Literal["local", "ray"] = option(
        "local", "local: by this command (--device says on what); ray: by workers on a Ray cluster."
    )
    address: str | None = option(
        None,
        "With --engine ray: local (a cluster for this run alone), auto (the one that runs on this machine) or "
        "HOST:PORT (default: RAY_ADDRESS, else local).",
        metavar="auto|local|HOST:PORT",
    )
    ray_workers: int | None = option(
        None, "With --engine ray: workers, which share the cluster (default: one per GPU, else per core).", low=1
    )

    def check(self) -> None:
        """Raise :class:`PixelsemError` for options that would have no effect."""
        if self.engine != "ray" and (self.address is not None or self.ray_workers is not None):
            raise PixelsemError("--address and --ray-workers go with --engine ray")


def expand(function: Callable[..., None]) -> Callable[..., None]:
    """Turn every parameter annotated with a settings dataclass into that dataclass's options.

    Other parameters stay as they are. Settings that share a field share its option. The command also gets
    ``--config FILE``; a value given on the command line goes before the environment, this before the file,
    and the file before a preset (see :func:`add_defaults`) and the setting's default.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters: dict[str, inspect.Parameter] = {}
    groups: dict[str, type[Settings]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if isinstance(hint, type) and issubclass(hint, Settings):
            groups[name] = hint
            parameters |= {made.name: made for made in _parameters(hint)}
        else:
            parameters[name] = parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY)
    parameters["config"] = _config_parameter({name: _value_type(p.annotation) for name, p in parameters.items()})
    grouped = {field.name for kind in groups.values() for field in dataclasses.fields(kind)}

    @functools.wraps(function)
    def command(**values: Any) -> None:
        settings = {name: _build(kind, values) for name, kind in groups.items()}
        others = {name: value for name, value in values.items() if name not in grouped and name != "config"}
        with only_data_on_stdout():
            function(**settings, **others)

    command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return command


def _build(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    hints = get_type_hints(kind)
    built = {}
    for field in dataclasses.fields(kind):
        value = values[field.name]
        if field.metadata.get("several"):
            built[field.name] = tuple(value) if value else field.default
        else:
            built[field.name] = _decode(value, hints[field.name], field.name)
    return kind(**built)


def _parameters(kind: type[Settings]) -> list[inspect.Parameter]:
    hints = get_type_hints(kind)
    made = []
    for field in dataclasses.fields(kind):
        annotation = _annotation(field, hints[field.name])
        default = (
            list(cast("tuple[Any, ...] | None", field.default) or ())
            if field.metadata.get("several")
            else as_text(field.default)
        )
        made.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return made


def _annotation(field: dataclasses.Field[Any], hint: Any) -> Any:
    meta = field.metadata
    long, flag = option_name(field.name), meta.get("flag")
    hint = _without_none(hint)
    if hint is bool:
        names = [long, flag] if flag and not flag.startswith("--") else [flag or f"{long}/--no-{long[2:]}"]
    else:
        names = [long] if flag is None else [long, flag] if len(flag) == 2 else [flag]
    extra: dict[str, Any] = {"help": meta["help"], "envvar": meta.get("env"), "metavar": meta.get("metavar")}
    if meta.get("several"):
        hint = list[get_args(hint)[0]]  # type: ignore[misc]
    elif _is_tuple(hint):
        extra["metavar"] = extra["metavar"] or ",".join(_item_names(hint))
        hint = str
    elif hint in (int, float):
        extra["min"], extra["max"] = meta.get("low"), meta.get("high")
        extra |= {"parser": _float_parser(meta.get("low"), meta.get("high"))} if hint is float else {}
    elif get_origin(hint) is Literal:
        extra["case_sensitive"] = False
    optional = hint | None if field.default is None else hint
    return Annotated[optional, typer.Option(*names, **extra)]


def _float_parser(low: float | None, high: float | None) -> Callable[[Any], float]:
    """Return what reads an option's number, which may be a fraction."""

    def parse(value: Any) -> float:
        number = parse_float(value) if isinstance(value, str) else float(value)
        problem = range_problem(number, low, high)
        if problem is not None:
            raise ValueError(problem)
        return number

    return parse


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(item for item in get_args(hint) if item is not type(None))
    return hint


def _value_type(annotation: Any) -> Any:
    """Return the type of an option's value, or of one item where it takes several."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    hint = _without_none(annotation)
    return _without_none(get_args(hint)[0]) if get_origin(hint) is list else hint


def _is_tuple(hint: Any) -> bool:
    return get_origin(hint) is tuple


def _item_names(hint: Any) -> list[str]:
    names = {int: "INT", float: "NUM", str: "TEXT"}
    return ["…" if item is Ellipsis else names.get(item, "VALUE") for item in get_args(hint)]


def as_text(value: Any) -> Any:
    """Return a tuple as the ``a,b,c`` that its option takes, anything else as it is."""
    return ",".join(map(_number, value)) if isinstance(value, tuple) else value


def _number(value: Any) -> str:
    """Return a number in its shortest form that keeps every digit."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _decode(value: Any, hint: Any, name: str) -> Any:
    """Turn ``a,b,c`` back into a tuple where the setting is one."""
    hint = _without_none(hint)
    if not isinstance(value, str) or not _is_tuple(hint):
        return value
    make = parse_float if get_args(hint)[0] is float else get_args(hint)[0]
    try:
        return tuple(make(part.strip()) for part in value.split(","))
    except ValueError as error:
        raise PixelsemError(f"{option_name(name)}: {value!r} is not a list like {_example(hint)}") from error


def _example(hint: Any) -> str:
    count = 3 if Ellipsis in get_args(hint) else len(get_args(hint))
    return ",".join(str(number) for number in range(1, count + 1))


def _config_parameter(kinds: Mapping[str, Any]) -> inspect.Parameter:
    """Make the ``--config`` option of a command whose options hold values of these types."""

    def load(context: typer.Context, file: Path | None) -> Path | None:
        if file is not None and not context.resilient_parsing:
            context.meta[_CONFIG] = file
            add_defaults(context, _read_config(context, file, kinds))
        return file

    text = "YAML file with options by name; a stage.yaml repeats that stage's run."
    hint = Annotated[Path | None, typer.Option("--config", help=text, is_eager=True, callback=load)]
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)


def config_of(context: typer.Context) -> Path | None:
    """Return the file that was given as ``--config``, None where none was."""
    file: Path | None = context.meta.get(_CONFIG)
    return file


def add_defaults(context: typer.Context, values: Mapping[str, Any], *, first: bool = True) -> None:
    """Let ``values`` stand for options that are not on the command line.

    With ``first`` they come before what was added earlier (a config beats a preset), else after.
    """
    new, old = {name: as_text(value) for name, value in values.items()}, dict(context.default_map or {})
    context.default_map = old | new if first else new | old


def command_name(context: typer.Context) -> str:
    """Return the command without the program's name, e.g. ``attack de``."""
    names: list[str] = []
    step: Any = context
    while step.parent is not None:
        names.insert(0, str(step.info_name))
        step = step.parent
    return " ".join(names)


def _read_config(context: typer.Context, file: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    from pixelsem.yaml_files import read_yaml

    values = read_yaml(file)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise PixelsemError(f"{file}: expected a mapping of option names to values")
    base = Path()
    if {"kind", "identity", "options"} <= set(values):
        if values.get("command") != command_name(context):
            raise PixelsemError(f"{file}: is of `{values.get('command')}`, not of `{command_name(context)}`")
        base, values = file.parent, values["options"]
        if not isinstance(values, dict):
            raise PixelsemError(f"{file}: `options` is not a mapping of option names to values")
    return _checked(context, file, values, base, kinds)


def _checked(
    context: typer.Context, file: Path, values: dict[Any, Any], base: Path, kinds: Mapping[str, Any]
) -> dict[str, Any]:
    """Check names and kinds of value; give each value the form it has on the command line."""
    several = {str(p.name): getattr(p, "multiple", False) or p.nargs != 1 for p in context.command.params}
    known = {name: several[name] for name in kinds if name in several}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise PixelsemError(f"{file}: unknown key {key!r}; `{command_name(context)}` has {', '.join(known)}")
        if name in checked:
            raise PixelsemError(f"{file}: {key!r} is given twice")
        if value is None:
            continue
        where = f"{file}: {key}"
        if known[name]:
            items = value if isinstance(value, list) else [value]
            checked[name] = [_scalar(item, where, kinds[name], base) for item in items]
        elif isinstance(value, list):
            checked[name] = ",".join(_scalar(item, where, None, base) for item in value)
        else:
            checked[name] = _scalar(value, where, kinds[name], base)
    return checked


def _scalar(value: Any, where: str, kind: Any, base: Path) -> Any:
    """Return one value as its option takes it: text, or a truth value; paths as seen from here."""
    if isinstance(value, dict | list) or value is None:
        raise PixelsemError(f"{where}: one plain value expected, {value!r} given")
    if (kind is bool) != isinstance(value, bool):
        wanted = "true or false" if kind is bool else "a value that is not true or false (quote a word like no)"
        raise PixelsemError(f"{where}: {wanted} expected, {value!r} given")
    if kind is bool:
        return value
    return str(base / str(value)) if kind is Path else str(value)
