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

#: Which colour is the brightest? A model that takes no time, and exact, whatever is in the batch.
MODEL = """
import torch
from torch import nn
from pixelsem.models import Classifier, Preprocessing


class Brightest(nn.Module):
    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        return x.amax((2, 3)) * self.sharpness


def make():
    names = ("red", "green", "blue")
    return Classifier(Brightest(), name="brightest", class_names=names, preprocessing=Preprocessing((32, 32), 32))
"""

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


def make_easy_images(folder: Path) -> None:
    """Put nine images with masks into ``folder``, and the model that sees their brightest colour.

    A pixel changes what it sees in the dark ones, hardly ever in the bright ones; one is in the wrong class.
    """
    (folder / "model.py").write_text(MODEL)
    for number in range(9):
        top = (90 if number % 2 else 254) - number // 2
        pixels = np.random.default_rng(number).integers(0, 60, (32, 32, 3), np.uint8)
        pixels[16, 16] = (top, top - 10 - 3 * number, top - 12 - 3 * number)
        mask = np.zeros((32, 32), np.bool_)
        mask[8:24, 8:24] = True
        for kind, values in (("photos", pixels), ("masks", mask)):
            write_image(folder / kind / ("blue" if number == 8 else "red") / f"{number}.png", values)


def easy_words(folder: Path) -> list[object]:
    """Return the words of an attack on the images of :func:`make_easy_images`."""
    regions = ["--region", "all", "--masks", folder / "masks"]
    return ["attack", "de", folder / "photos", "-m", f"{folder / 'model.py'}:make", *regions, *TINY]


def attack(folder: Path, *more: object, code: int = 0) -> Path:
    """Attack the images of :func:`make_easy_images`; return the stage."""
    return Path(call(*easy_words(folder), "--run", folder / "run", *more, code=code).stdout.strip())


def by_key(stage: Path) -> dict[tuple[str, ...], Any]:
    return {record.key: record for record in Stage.open(stage).records()}


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder but ``stage.yaml`` and the order of the manifest."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files.pop("stage.yaml")
    files["manifest.jsonl"] = b"".join(sorted(files["manifest.jsonl"].splitlines(keepends=True)))
    return files
