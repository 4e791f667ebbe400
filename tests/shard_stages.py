"""Runs that are divided into shards, on small images and at a tiny budget."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from conftest import ROOT
from typer.testing import CliRunner

from pixelsem.cli.app import app
from pixelsem.images import write_image
from pixelsem.stage import Stage

TINY = [
    "--population",
    "12",
    "--generations",
    "2",
    "--device",
    "cpu",
    "--evaluator",
    "dense",
    "--batch-size",
    "64",
    "-q",
]


def call(*arguments: object, code: int = 0) -> Any:
    """Call pixelsem in this process; check its exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="pixelsem")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def problem(*arguments: object, code: int = 2) -> str:
    """Return the one line that a refused call says."""
    said = call(*arguments, code=code).stderr.splitlines()
    assert len(said) == 1, said
    return str(said[0])


def make_images(folder: Path) -> None:
    """Put some sample images with masks (a square in the middle) into ``folder``."""
    for path in sorted((ROOT / "sample_images" / "images").glob("*/*.png"))[:9]:
        target = folder / "photos" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        mask = np.zeros((160, 160), np.bool_)
        mask[40:120, 40:120] = True
        write_image(folder / "masks" / path.parent.name / path.name, mask)


def attack(folder: Path, *more: object, code: int = 0) -> Path:
    """Attack the images of :func:`make_images`; return the stage."""
    words = ["attack", "de", folder / "photos", "--region", "all", "--masks", folder / "masks", "--run", folder / "run"]
    return Path(call(*words, *TINY, *more, code=code).stdout.strip())


def by_key(stage: Path) -> dict[tuple[str, ...], Any]:
    return {record.key: record for record in Stage.open(stage).records()}


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder but ``stage.yaml`` and the order of the manifest."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files.pop("stage.yaml")
    files["manifest.jsonl"] = b"".join(sorted(files["manifest.jsonl"].splitlines(keepends=True)))
    return files
