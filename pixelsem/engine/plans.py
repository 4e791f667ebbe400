"""Plans: a matrix of models, regions, attacks and settings, written as a short YAML file, as a graph of commands.

Imports nothing heavy, and knows commands only by what a :class:`Commands` tells of them.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from pixelsem.errors import PixelsemError
from pixelsem.regions.registry import METHODS
from pixelsem.yaml_files import read_yaml

#: A plan of more commands than this is refused: more likely a slip in its matrix than meant.
MAX_STEPS = 1000

_TOP = ("images", "run", "options", "segment", "models", "regions", "attacks", "then")
_OF_ATTACKS = ("attack", "models", "regions", "segment", "matrix")
_OF_THEN = ("command", "of", "together", "matrix")

Options = dict[str, Any]


class Commands(Protocol):
    """What a plan has to know of the command line."""

    def options(self, command: Sequence[str]) -> frozenset[str]:
        """Return the names of a command's options, with ``_``; raises :class:`PixelsemError` where there is none."""

    def arguments(self, command: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        """Return options as they are typed; raises :class:`PixelsemError` for a value that a command does not take."""


@dataclass(frozen=True)
class Step:
    """One command of a plan: ``words`` are typed as they are, then come the stages of the steps ``after``."""

    name: str
    words: tuple[str, ...]
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The steps of a plan, each behind those it goes by. Commands are run in ``folder``, where the plan lies."""

    path: Path
    run: str
    steps: tuple[Step, ...]

    @property
    def folder(self) -> Path:
        """Where the plan lies; its relative paths start there."""
        return self.path.parent

    def script(self, program: str = "pixelsem") -> str:
        """Return a shell script that does the same, one command after the other; the first error ends it."""
        names = {step.name: f"stage_{number}" for number, step in enumerate(self.steps, 1)}
        lines = ["#!/bin/sh", f"# {_printable(self.path.name)}", "set -e"]
        if self.folder != Path():
            lines.append(f"cd {shlex.quote(str(self.folder))}")
        for step in self.steps:
            words = [program, *map(shlex.quote, step.words), *(f'"${names[name]}"' for name in step.after)]
            lines += [f"# {_printable(step.name)}", f"{names[step.name]}=$({' '.join(words)})"]
        stages = " ".join(f'"${names[step.name]}"' for step in self.steps)
        return "\n".join([*lines, f"printf '%s\\n' {stages}"])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def read_plan(path: Path, commands: Commands, run: str | None = None) -> Plan:
    """Read and check a whole plan; ``run`` is the folder of its stages in place of the one that it names.

    Raises :class:`PixelsemError`, one line that names the file and the key: no plan, a key that is not known, a
    value that its command does not take, a name that nothing has, over :data:`MAX_STEPS` commands.
    """
    return _Reader(path, read_yaml(path), commands, run).plan()


@dataclass
class _Reader:
    path: Path
    content: Any
    commands: Commands
    given_run: str | None
    steps: dict[str, Step] = field(default_factory=dict)
    entries: dict[str, list[str]] = field(default_factory=dict)  # the steps of each attack or later command
    used: set[str] = field(default_factory=set)  # of the common options

    def plan(self) -> Plan:
        self._check_keys(self.content, _TOP, "the plan")
        if "images" not in self.content or "attacks" not in self.content:
            raise self._wrong("", "needs `images` (a folder) and `attacks`")
        self.images = self._text(self.content["images"], "images")
        self.run = self.given_run or self._text(self.content.get("run", "pixelsem-run"), "run")
        self.common = self._mapping(self.content.get("options"), "options")
        self.models = self._named(self.content.get("models", ["allconv"]), "models")
        self.segment = self._named(self.content.get("segment"), "segment")
        self.regions = self._texts(self.content.get("regions", ["original"]), "regions")
        made = self._segmentations()
        for name, entry in self._named(self.content["attacks"], "attacks").items():
            self._attack(name, entry, made)
        for name, entry in self._named(self.content.get("then"), "then").items():
            self._then(name, entry)
        for name in self.common.keys() - self.used:
            raise self._wrong(f"options.{name}", "is an option of none of the plan's commands")
        return Plan(self.path, self.run, tuple(self.steps.values()))

    # The sections

    def _segmentations(self) -> dict[tuple[str, str | None], str]:
        """Add the steps that make masks; return their names by entry and, where masks depend on it, model."""
        made: dict[tuple[str, str | None], str] = {}
        of_methods = {each.name for method in METHODS.values() for each in dataclasses.fields(method.settings)}
        for name, entry in self.segment.items():
            key = f"segment.{name}"
            method = self._text(entry.get("method", name), f"{key}.method")
            if method not in METHODS:
                raise self._wrong(f"{key}.method", f"{method!r} is none of {', '.join(METHODS)}")
            asked = {setting.name for setting in dataclasses.fields(METHODS[method].settings)}
            by_model = "model" in asked and "model" not in entry
            for model in self.models if by_model else [None]:
                own = {n: v for n, v in self._model(model).items() if n in asked} if model else {}
                step = "-".join(filter(None, ["segment", name, model]))
                foreign = frozenset(of_methods - asked)  # `segment` knows them, but refuses them of this method
                self._add(key, step, ["segment"], own | entry | {"method": method}, [self.images], (), foreign=foreign)
                made[name, model] = step
        return made

    def _attack(self, name: str, entry: Options, made: Mapping[tuple[str, str | None], str]) -> None:
        key = f"attacks.{name}"
        attack = self._text(entry.get("attack", name), f"{key}.attack")
        models = self._known(entry.get("models", list(self.models)), self.models, f"{key}.models")
        regions = self._texts(entry.get("regions", self.regions), f"{key}.regions")
        segment = self._known(entry.get("segment", list(self.segment)), self.segment, f"{key}.segment")
        plain = {n: value for n, value in entry.items() if n not in _OF_ATTACKS}
        settings = self._matrix(entry.get("matrix"), key)
        self.entries[name] = []
        for (label, chosen), model, region in product(settings, models, regions):
            own = self._model(model) | plain | chosen | {"region": region}
            base = "-".join(filter(None, ["attack", name, label, model, region.replace(":", "-")]))
            if region == "original" or "masks" in own:
                self._add(key, base, ["attack", attack], own, [self.images], (), of=name)
                continue
            if not segment:
                raise self._wrong(f"{key}.regions", f"{region} needs masks: a `segment` section, or `masks: FOLDER`")
            for masks in segment:
                after = made.get((masks, model)) or made[masks, None]
                self._add(key, f"{base}-{masks}", ["attack", attack], own, [], (after,), of=name)

    def _then(self, name: str, entry: Options) -> None:
        key = f"then.{name}"
        command = self._text(entry.get("command", name), f"{key}.command").split()
        if not command or command[0] not in ("attack", "defend", "evaluate", "stage"):
            raise self._wrong(
                f"{key}.command", f"{' '.join(command)!r} is no attack, defend, evaluate or stage command"
            )
        if name in self.entries:
            raise self._wrong(key, "is the name of an attack, too")
        together = entry.get("together", command[0] == "evaluate")
        if not isinstance(together, bool):
            raise self._wrong(f"{key}.together", f"true or false expected, {together!r} given")
        of = self._known(entry.get("of", self._attacks()), self.entries, f"{key}.of")
        stages = [step for attack in of for step in self.entries[attack]]
        plain = {n: value for n, value in entry.items() if n not in _OF_THEN}
        self.entries[name] = []
        for label, chosen in self._matrix(entry.get("matrix"), key):
            base = "-".join(filter(None, [name, label]))
            for group in [tuple(stages)] if together else [(stage,) for stage in stages]:
                step = base if together else f"{base}-{group[0]}"
                self._add(key, step, command, plain | chosen, [], group, of=name)

    def _attacks(self) -> list[str]:
        return list(self._named(self.content["attacks"], "attacks"))

    def _add(
        self, key: str, name: str, command: list[str], own: Options, inputs: list[str], after: tuple[str, ...],
        of: str | None = None, foreign: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        """Add one command, checked against what the command line knows."""
        if len(self.steps) >= MAX_STEPS:
            raise self._wrong(key, f"makes more than {MAX_STEPS} commands; thin the matrix or divide the plan")
        if name in self.steps:
            raise self._wrong(key, f"two commands would be called {name!r}; name the entries apart")
        own = {str(option).replace("-", "_"): value for option, value in own.items()}
        try:
            known = self.commands.options(command) - foreign
            unknown = sorted(own.keys() - known)
            if unknown:
                raise PixelsemError(f"unknown key {unknown[0]!r}; `{' '.join(command)}` has {', '.join(sorted(known))}")
            shared = {n: value for n, value in self.common.items() if n in known}
            self.used |= shared.keys()
            run = {"run": self.run} if "run" in known else {}
            words = [*command, *self.commands.arguments(command, run | shared | own), *inputs]
        except PixelsemError as error:
            raise self._wrong(key, str(error)) from error
        self.steps[name] = Step(name, tuple(words), after)
        if of is not None:
            self.entries[of].append(name)

    def _model(self, name: str) -> Options:
        return {"model": name} | self.models[name]

    def _matrix(self, values: Any, key: str) -> list[tuple[str, Options]]:
        """Return every combination of a matrix with its name: ``pixels3-seed1``; one that is empty for none."""
        lists = self._mapping(values, f"{key}.matrix")
        for name, each in lists.items():
            if not isinstance(each, list) or not each:
                raise self._wrong(f"{key}.matrix.{name}", f"a list of values expected, {each!r} given")
        size = 1
        for each in lists.values():
            size *= len(each)
        if size > MAX_STEPS:
            raise self._wrong(f"{key}.matrix", f"{size:,} combinations; at most {MAX_STEPS} commands make a plan")
        combined = [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
        return [("-".join(f"{n}{_slug(v)}" for n, v in chosen.items()), chosen) for chosen in combined]

    # Plain values

    def _named(self, value: Any, key: str) -> dict[str, Options]:
        """Return entries with their options; a list of names stands for entries without any."""
        if isinstance(value, list):
            value = dict.fromkeys(self._texts(value, key))
        entries = self._mapping(value, key)
        for name in entries:
            if re.fullmatch(r"[\w.:@+=-]+", name) is None and key != "models":
                raise self._wrong(f"{key}.{name}", "a name is made of letters, digits and -_.:@+=")
        return {name: self._mapping(options, f"{key}.{name}") for name, options in entries.items()}

    def _mapping(self, value: Any, key: str) -> Options:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._wrong(key, f"a mapping of names to values expected, {value!r} given")
        return {str(name): each for name, each in value.items()}

    def _check_keys(self, value: Any, known: Sequence[str], what: str) -> None:
        if not isinstance(value, dict):
            raise self._wrong("", f"{what} is a mapping of {', '.join(known)}")
        for name in value:
            if name not in known:
                raise self._wrong(str(name), f"unknown key; {what} has {', '.join(known)}")

    def _text(self, value: Any, key: str) -> str:
        if not isinstance(value, str) or not value:
            raise self._wrong(key, f"text expected, {value!r} given")
        return value

    def _texts(self, value: Any, key: str) -> list[str]:
        items = value if isinstance(value, list) else [value]
        texts = [self._text(item, key) for item in items]
        if len(set(texts)) < len(texts):
            raise self._wrong(key, "names something twice")
        return texts

    def _known(self, value: Any, among: Mapping[str, Any], key: str) -> list[str]:
        names = self._texts(value, key)
        for name in names:
            if name not in among:
                raise self._wrong(key, f"{name!r} is none of {', '.join(among) or 'none'}")
        return names

    def _wrong(self, key: str, problem: str) -> PixelsemError:
        return PixelsemError(f"{self.path}: {key}: {problem}" if key else f"{self.path}: {problem}")


def _slug(value: Any) -> str:
    return re.sub(r"[^\w.+-]", "-", "-".join(map(str, value)) if isinstance(value, list) else str(value))
