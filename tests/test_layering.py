"""Imports point downwards only, and PIL has one home."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "pixelsem"

#: The layers of the house from the top; a part may import from the layers below its own.
LAYERS = [
    {"__main__", "__init__"},
    {"cli"},
    {"attacks", "regions", "defenses", "metrics", "report", "engine"},
    {"fitness", "models"},
    {"transforms"},
    {"sources"},
    {"stage", "images", "arrays"},
    {"records", "yaml_files", "locks"},
    {"files", "settings"},
    {"errors", "version"},
]
LEVEL = {part: number for number, layer in enumerate(LAYERS) for part in layer}

#: What may be imported from the same layer, and nothing else there.
SIDEWAYS = {
    ("report", "metrics"),
    ("defenses", "attacks"),
    ("defenses", "metrics"),
    ("engine", "attacks"),
    ("engine", "regions"),
    ("fitness", "models"),
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).with_suffix("").parts[0], path


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: relative import"
            for name in node.names:
                yield node.lineno, f"{node.module}.{name.name}"


def own_part(name: str) -> str | None:
    """Return the part of pixelsem that a full name belongs to, None for other packages."""
    first, *rest = name.split(".")
    if first != "pixelsem":
        return None
    return rest[0] if rest and rest[0] in LEVEL else "__init__"


def test_every_part_has_its_place() -> None:
    assert {part for part, _ in modules()} <= set(LEVEL)


def wrong_imports() -> Iterator[str]:
    for part, path in modules():
        for line, name in imports(path):
            below = own_part(name)
            if below is None or below == part or (part, below) in SIDEWAYS:
                continue
            if LEVEL[below] <= LEVEL[part]:
                yield f"{path.relative_to(ROOT)}, line {line}: {part} imports {below}"


def test_imports_point_downwards() -> None:
    assert list(wrong_imports()) == []


def test_sideways_imports_make_no_circle() -> None:
    parts = {part for pair in SIDEWAYS for part in pair}
    while parts:
        free = {part for part in parts if not any(a == part and b in parts for a, b in SIDEWAYS)}
        assert free, f"a circle among {sorted(parts)}"
        parts -= free


def test_only_images_knows_pil() -> None:
    homes = {path for _, path in modules() for _, name in imports(path) if name.split(".")[0] == "PIL"}
    assert homes == {PACKAGE / "images.py"}


@pytest.mark.parametrize("name", ["settings", "errors", "files", "locks", "records", "stage"])
def test_the_lowest_parts_import_nothing_heavy(name: str) -> None:
    heavy = {"torch", "torchvision", "cv2", "numpy", "scipy", "PIL", "rich", "typer", "safetensors"}
    assert not {full.split(".")[0] for _, full in imports(PACKAGE / f"{name}.py")} & heavy
