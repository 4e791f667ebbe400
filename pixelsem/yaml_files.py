"""Plain data in YAML, read with limits. Apart from the other files because the parser takes time to import."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from pixelsem.errors import PixelsemError
from pixelsem.files import one_line, reason

#: YAML files larger than this are refused unread.
MAX_YAML_BYTES = 1 << 20


def read_yaml(path: Path) -> Any:
    """Read one YAML document of plain data (mappings, lists, scalars).

    Aliases, tags, a key given twice and files over :data:`MAX_YAML_BYTES` are refused: the first two can make
    a small file cost any amount of memory or run code, the third hides a mistake. Dates are text, as which folders
    are often called. Raises :class:`PixelsemError`, one line that names the file and where in it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_YAML_BYTES + 1)
    except OSError as error:
        raise PixelsemError(f"{path}: cannot be read: {reason(error)}") from error
    if len(data) > MAX_YAML_BYTES:
        raise PixelsemError(f"{path}: over {MAX_YAML_BYTES >> 10} KiB; too large for a file of options")
    try:
        return yaml.load(data, _PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise PixelsemError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # bytes that are no text; numbers like 0x_
        raise PixelsemError(f"{path}: not valid YAML: {one_line(error)}") from error
    except RecursionError as error:
        raise PixelsemError(f"{path}: not valid YAML: nested too deeply") from error


def dump_yaml(values: Any) -> str:
    """Return plain data as YAML that :func:`read_yaml` takes; the order of keys is kept."""
    return yaml.dump(values, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)


_DATE = "tag:yaml.org,2002:timestamp"


class _PlainLoader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way
        first: [(tag, pattern) for tag, pattern in kinds if tag != _DATE]
        for first, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag != _DATE
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not taken; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused by the base class
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # what read_yaml refuses must not be written
        return True
