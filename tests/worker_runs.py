"""Attacks that run in several processes: a model that can be slow, stand still or kill its process; their stages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pixelsem.images import write_image
from pixelsem.records import AttackRecord
from pixelsem.stage import open_stage

#: Which colour is the brightest? Exact arithmetic, so that nothing depends on batches. An image with a pure blue pixel
#: ends the process that sees it where POISON is set; where HOLD is set, the late ones of the images are not scored as
#: long as there is a file named ``hold``.
MODEL = """
import os, time
import torch
from torch import nn
from pixelsem.models import Classifier, Preprocessing


def is_late(x):
    return ((x[..., 7, 7] * 255).round() == torch.tensor([1, 2, 3])).all(1).any()


class Brightest(nn.Module):
    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        while os.environ.get("HOLD") and os.path.exists("hold") and is_late(x):
            time.sleep(0.02)
        if os.environ.get("POISON") and (x == torch.tensor([0.0, 0.0, 1.0])[:, None, None]).all(1).any():
            os._exit(9)
        return x.amax((2, 3)) * self.sharpness


def make():
    if os.environ.get("PARENT", str(os.getpid())) != str(os.getpid()):
        raise RuntimeError("no room here")
    names = ("red", "green", "blue")
    return Classifier(Brightest(), name="brightest", class_names=names, preprocessing=Preprocessing((12, 12), 12))
"""

IMAGES = 12


def make_run(folder: Path) -> Path:
    """Put model.py and photos into ``folder``; return the photos."""
    (folder / "model.py").write_text(MODEL)
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 240, (12, 12, 3), np.uint8)
        pixels[5, 5, 0] = 240 + number
        if number >= IMAGES // 2:
            pixels[7, 7] = (1, 2, 3)  # a late one
        write_image(folder / f"photos/{number}.png", pixels)
    return folder / "photos"


def poison(photos: Path, number: int) -> None:
    """Make an image a deadly one."""
    pixels = np.random.default_rng(number).integers(0, 240, (12, 12, 3), np.uint8)
    pixels[0, 0] = (0, 0, 255)
    write_image(photos / f"{number}.png", pixels)


def command(*arguments: str) -> list[str]:
    words = ["attack", "de", "photos", "-m", "model.py:make", "--labels", "predicted", "--in-flight", "2"]
    budget = ["--population", "16", "--generations", "4", "--evaluator", "dense", "--batch-size", "16"]
    return [sys.executable, "-m", "pixelsem", *words, *budget, *arguments]


def call(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Attack the photos of the folder that this runs in, in a process of its own; check its exit code."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=500, env={**os.environ, **environment}
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def heed_signals() -> None:
    """A child started in the background may have been told to ignore Ctrl-C, and would pass that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments: str, stage: str) -> subprocess.Popen[str]:
    """Start an attack into ``stage``; return when it has a record. Half of the images wait for :func:`go_on`."""
    Path("hold").touch()
    manifest = Path(stage, "manifest.jsonl")
    process = subprocess.Popen(
        command("-o", stage, *arguments), env={**os.environ, "HOLD": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed_signals,
    )  # fmt: skip
    deadline = time.monotonic() + 400
    while not (manifest.exists() and manifest.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing was done"
        time.sleep(0.05)
    return process


def go_on() -> None:
    """Let what :func:`start` started go on."""
    Path("hold").unlink()


def records(stage: str | Path) -> dict[tuple[str, ...], AttackRecord]:
    """Return the records by key, each of which is there once."""
    found = list(open_stage(Path(stage)).attack_records())
    assert len(found) == len(Path(stage, "manifest.jsonl").read_text().splitlines()), "no search is there twice"
    return {record.key: record for record in found}


def files(stage: str | Path) -> dict[str, bytes]:
    found = (path for path in Path(stage).rglob("*") if path.suffix in (".png", ".npz"))
    return {path.relative_to(stage).as_posix(): path.read_bytes() for path in found}


def same(one: str | Path, other: str | Path) -> bool:
    """Do both stages hold the same records and files? The order may differ."""
    return records(one) == records(other) and files(one) == files(other)
