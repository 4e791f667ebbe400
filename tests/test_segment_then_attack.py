"""The masks of every method drive an attack: what it changes lies in the region that the mask says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from numpy.typing import NDArray
from test_saliency import make_onnx
from typer.testing import CliRunner

from pixelsem.cli.app import app
from pixelsem.images import read_image, read_mask
from pixelsem.models.classifier import Preprocessing
from pixelsem.models.inputs import fit_mask
from pixelsem.models.u2net import NETWORKS
from pixelsem.regions.registry import METHODS
from pixelsem.regions.saliency import save_network
from pixelsem.stage import Stage, open_stage

#: What each method is given beside the images, and the regions that its masks are asked for.
CASES = [
    ("grabcut", [], "all"),
    ("grabcut", ["--init", "saliency"], "all"),
    ("u2netp", [], "all"),
    ("u2net", ["--weights", "u2net.safetensors"], "all"),
    ("rembg", ["--weights", "grey.onnx"], "all"),
    ("cam", [], "all"),
    ("gradcam", ["--tau", "0.2"], "all"),
    ("slic", [], "label:7"),
    ("lsc", ["--merge-threshold", "2"], "label:2"),
    ("seeds", ["--size", "8"], "label:3"),
]
TINY = ["--population", "8", "--generations", "2", "--evaluator", "dense", "--batch-size", "64", "--flagged", "use"]


def call(*arguments: str | Path) -> Stage:
    result = CliRunner().invoke(app, [*map(str, arguments), "-q"], prog_name="pixelsem")
    assert result.exit_code == 0, result.output
    return open_stage(result.stdout.strip())


def test_every_method_is_tried() -> None:
    assert {method for method, _, _ in CASES} == set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "options", "region"), CASES, ids=lambda value: str(value))
def test_an_attack_keeps_to_the_masks(
    method: str, options: list[str], region: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "u2net.safetensors" in options:
        torch.manual_seed(0)
        save_network(NETWORKS["u2net"](), Path("u2net.safetensors"), "u2net", 64)
    if "grey.onnx" in options:
        pytest.importorskip("onnxruntime")
        make_onnx(Path("grey.onnx"))
    images = ["--limit", "3", "-o"]
    masks = call("segment", ROOT / "sample_images/images", "--method", method, *options, *images, "masks")
    attacked = call("attack", "de", masks.path, "--region", region, *TINY, *images, "attacked")
    regions = {"original", "foreground", "background"} if region == "all" else {region}
    searched = [record for record in attacked.attack_records() if record.queries]
    assert len({record.id for record in searched}) >= 2
    assert {record.region for record in searched} == regions
    for record in searched:
        shown = record.adversarial or record.attempt
        assert shown is not None
        changed = (read_image(attacked.path / shown) != read_image(attacked.path / record.clean)).any(2)
        assert changed.sum() == 1
        if record.region != "original":
            assert region_of_record(masks, record.id, record.region)[changed].all()


def region_of_record(masks: Stage, image_id: str, region: str) -> NDArray[np.bool_]:
    """Return where a region is at the classifier's resolution, bool [32, 32], by the numbers in the mask's file."""
    (record,) = (each for each in masks.segment_records() if each.id == image_id)
    values = read_mask(masks.path / record.mask)
    values = fit_mask(values, values.shape, Preprocessing((32, 32), 32))
    if region.startswith("label:"):
        return np.asarray(values == int(region[6:]))
    least = {"binary": 128, "soft": record.threshold * 65535, "labels": 1}[record.kind]
    return np.asarray(values >= least if region == "foreground" else values < least)
