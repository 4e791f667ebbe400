"""Too little memory, on the host or on a GPU, is one clear line: never a traceback, never a damaged stage."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from corpus import MODEL, OWN, encoded, put, scene
from PIL import Image
from typer.testing import CliRunner

from pixelsem.cli.app import app
from pixelsem.errors import InputError, is_out_of_memory
from pixelsem.images import read_image

#: What Python, NumPy, PyTorch on the host and PyTorch on a GPU raise.
SHORTAGES = {
    "python": MemoryError(),
    "numpy": np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("u1")),
    "host": RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
}
each_shortage = pytest.mark.parametrize("shortage", SHORTAGES.values(), ids=SHORTAGES)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "model.py", MODEL)
    for number in range(3):
        put(tmp_path / f"photos/{number}.png", encoded(scene(number)))
    return tmp_path


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), prog_name="pixelsem")


def only_line(result: Any) -> str:
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    return str(line)


@each_shortage
def test_a_shortage_is_told_from_other_errors(shortage: Exception) -> None:
    assert is_out_of_memory(shortage)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("cannot allocate a name"))


def test_what_the_host_really_raises_is_known() -> None:
    with pytest.raises(RuntimeError) as host:
        torch.empty(2**46, dtype=torch.uint8)
    with pytest.raises(MemoryError) as numpy:
        np.empty(2**60, np.uint8)
    assert is_out_of_memory(host.value)
    assert is_out_of_memory(numpy.value)


@each_shortage
def test_one_image_that_does_not_fit_ends_an_attack_in_one_line(
    photos: Path, monkeypatch: pytest.MonkeyPatch, shortage: Exception
) -> None:
    """The model has room for the black and grey images that it is tried with, and none for one with colours."""
    short = ModuleType("short")
    short.error = shortage  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "short", short)
    raising = "        if x.std(1).amax() > 0.1:\n            raise short.error\n        return (x *"
    put(photos / "model.py", "import short\n" + MODEL.replace("        return (x *", raising))
    result = call(*OWN, "photos")
    assert result.exit_code == 2
    assert "out of memory with a single image" in only_line(result)
    assert not list(photos.rglob("*.tmp"))


@each_shortage
def test_a_shortage_anywhere_in_a_command_is_one_line(
    photos: Path, monkeypatch: pytest.MonkeyPatch, shortage: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise shortage

    monkeypatch.setattr("pixelsem.models.load_classifier", fail)
    result = call(*OWN, "photos")
    assert result.exit_code == 2
    assert only_line(result).startswith("pixelsem: out of memory")
    assert not (photos / "pixelsem-run").exists()


def test_other_errors_of_ours_are_not_hidden(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("pixelsem.models.load_classifier", fail)
    assert isinstance(call(*OWN, "photos").exception, RuntimeError)


def test_an_image_that_does_not_fit_in_memory_is_not_called_damaged(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(InputError, match=r"0\.png: does not fit in memory"):
        read_image(photos / "photos/0.png")
