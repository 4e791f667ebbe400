"""The benchmark of image transforms: it tries all of them and counts as its keys say."""

from __future__ import annotations

import importlib
import json
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import Tensor

from pixelsem.transforms.registry import TRANSFORMS


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("transforms")


def test_every_transform_is_measured_at_every_size(
    transforms: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, shapes = [0.0], []

    def work(images: Tensor, defenses: list[Any]) -> None:
        shapes.append(tuple(images.shape))
        now[0] += 0.5 * len(shapes)  # every run takes longer

    monkeypatch.setattr(transforms.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(transforms, "apply", work)
    assert transforms.main(["--sizes", "8,12", "--batch", "3", "--repeats", "3", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["defense"].partition(":")[0] for row in rows} == set(TRANSFORMS)
    assert [row["size"] for row in rows] == [8] * (len(rows) // 2) + [12] * (len(rows) // 2)
    assert set(shapes) == {(3, 3, 8, 8), (3, 3, 12, 12)}
    assert len(shapes) == 4 * len(rows)
    # The first run is not counted.
    assert rows[0]["samples"] == [3 / 1.0, 3 / 1.5, 3 / 2.0]
    assert (rows[0]["images_per_second"], rows[0]["spread"]) == (2.0, [1.5, 3.0])


def test_pictures_are_smooth_but_for_noise(transforms: ModuleType) -> None:
    images = transforms.pictures(4, 64, 0, torch.device("cpu"))
    assert (images.dtype, images.shape) == (torch.uint8, (4, 3, 64, 64))
    steps = images.float().diff(dim=3).abs().mean((1, 2, 3))
    assert ((steps > 1) & (steps < 12)).all()
    assert (images.float().std((2, 3)) > 15).all()


def test_the_transforms_themselves_are_run(transforms: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert transforms.main(["--sizes", "8", "--batch", "1", "--repeats", "1", "--json", "-"]) == 0
    assert all(row["images_per_second"] > 0 for row in json.loads(capsys.readouterr().out))
