"""Superpixels and attention for attacks: at the classifier's resolution, from methods or from files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typer.testing import CliRunner

from pixelsem.attacks.settings_dong2020 import SaFgmSettings
from pixelsem.cli.app import app
from pixelsem.engine import guides
from pixelsem.engine.guides import AttentionGuide, SuperpixelGuide, superpixels_and_attention
from pixelsem.engine.searching import GuidesImages
from pixelsem.errors import InputError, PixelsemError
from pixelsem.images import read_image, write_image
from pixelsem.models.classifier import Classifier, Preprocessing
from pixelsem.stage import open_stage

SIZE = 24

Pixels = NDArray[np.uint8]


def colours() -> Classifier:
    """Three classes, each the mean of one colour channel over what exceeds half: CAM is that channel."""
    layer = nn.Conv2d(3, 3, 1, bias=True)
    layer.weight.data, layer.bias = torch.eye(3)[:, :, None, None], nn.Parameter(torch.full((3,), -0.5))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3, bias=False))
    pool[2].weight.data = torch.eye(3)
    names = ("red", "green", "blue")
    network = nn.Sequential(layer, nn.ReLU(), pool)
    return Classifier(
        network, name="colours", class_names=names, preprocessing=Preprocessing((SIZE, SIZE), SIZE)
    ).eval()


def halves() -> Pixels:
    """Red on the left, blue on the right, with some texture."""
    noise = np.random.default_rng(0).integers(0, 30, (SIZE, SIZE, 3))
    pixels = noise + np.where(np.arange(SIZE)[None, :, None] < SIZE // 2, (220, 0, 0), (0, 0, 200))
    return np.asarray(pixels, np.uint8)


def as_tensor(*images: Pixels) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def guide(**options: Any) -> SuperpixelGuide:
    return superpixels_and_attention(SaFgmSettings(**options), colours(), "cpu")


def of_image(made: SuperpixelGuide, pixels: Pixels, name: str = "a.png") -> NDArray[np.int64]:
    return made.of_image(name, pixels.shape, pixels, "crop")["superpixels"]


def same_partition(one: NDArray[Any], other: NDArray[Any]) -> bool:
    pairs = len(np.unique(np.stack([one.ravel(), other.ravel()]), axis=1).T)
    return pairs == len(np.unique(one)) == len(np.unique(other))


@pytest.mark.parametrize("method", ["slic", "lsc", "seeds"])
def test_superpixels_are_numbered_from_nought_without_a_gap(method: str) -> None:
    found = of_image(guide(superpixels=method, size=4), halves())
    assert found.dtype == np.int64
    assert found.shape == (SIZE, SIZE)
    assert np.unique(found).tolist() == list(range(found.max() + 1))
    assert 16 <= found.max() <= 60
    left, right = found[:, : SIZE // 2], found[:, SIZE // 2 :]
    assert not set(left.ravel()) & set(right.ravel())


def test_alike_superpixels_are_merged() -> None:
    assert of_image(guide(merge_threshold=40.0), halves()).max() == 1  # the two halves


def test_attention_is_where_the_label_is() -> None:
    attention = guide()(as_tensor(halves(), halves()), torch.tensor([0, 2]))["attention"]
    assert attention.shape == (2, SIZE, SIZE)
    assert attention.dtype == torch.float32
    assert attention.amax((1, 2)).tolist() == [1, 1]
    left = torch.arange(SIZE) < SIZE // 2
    assert (attention[0, :, left] > 0.7).all()
    assert (attention[0, :, ~left] == 0).all()
    assert (attention[1, :, ~left] > 0.7).all()
    assert (attention[1, :, left] == 0).all()


def test_without_any_evidence_all_is_attended() -> None:
    assert (guide()(as_tensor(halves()), torch.tensor([1]))["attention"] == 1).all()


def test_attention_comes_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (5, 3, SIZE, SIZE), dtype=np.uint8))
    labels = torch.tensor([0, 1, 2, 0, 1])
    made = AttentionGuide(colours(), "cam", None, "cpu")
    together = made(images, labels)["attention"]
    monkeypatch.setattr(guides, "_BATCH", 2)
    assert torch.allclose(made(images, labels)["attention"], together, atol=1e-6)


def test_the_layer_may_be_named() -> None:
    named = guide(layer="1")(as_tensor(halves()), torch.tensor([0]))["attention"]
    assert torch.allclose(named, guide()(as_tensor(halves()), torch.tensor([0]))["attention"])
    with pytest.raises(PixelsemError, match="--layer"):
        guide(layer="nowhere")


def test_maps_may_be_given_with_any_numbers(tmp_path: Path) -> None:
    labels = np.kron(np.arange(36).reshape(6, 6), np.ones((4, 4), int))
    numbers = (np.random.default_rng(2).permutation(60000)[:36]).astype(np.uint16)
    write_image(tmp_path / "maps/cat/a.png", numbers[labels])
    found = of_image(guide(superpixels=str(tmp_path / "maps")), halves(), "cat/a.jpg")
    assert found.max() == 35
    assert found.min() == 0
    assert same_partition(found, labels)
    merged = of_image(guide(superpixels=str(tmp_path / "maps"), merge_threshold=40.0), halves(), "cat/a.jpg")
    assert merged.max() == 1


def test_maps_go_the_way_of_their_image(tmp_path: Path) -> None:
    """A map of the source image's size is cropped and shrunk as the image is."""
    labels = np.arange(48 * 60, dtype=np.uint16).reshape(48, 60) // 60 // 8  # six stripes of eight rows
    write_image(tmp_path / "maps/a.png", labels.astype(np.uint8))
    made = guide(superpixels=str(tmp_path / "maps"))
    found = made.of_image("a.png", (48, 60, 3), halves(), "crop")["superpixels"]
    assert (found == (np.arange(SIZE) // 4)[:, None]).all()


def test_a_missing_map_or_one_of_another_size_is_that_images_problem(tmp_path: Path) -> None:
    write_image(tmp_path / "maps/a.png", np.zeros((5, 7), np.uint8))
    made = guide(superpixels=str(tmp_path / "maps"))
    with pytest.raises(InputError, match=r"b\.png: has no mask in .*maps"):
        of_image(made, halves(), "b.png")
    with pytest.raises(InputError, match=r"a\.png: is 7×5, its image 24×24"):
        of_image(made, halves())


def test_an_unknown_method_is_taken_for_a_folder_that_is_not_there() -> None:
    with pytest.raises(PixelsemError, match="slick: no such mask folder or stage"):
        guide(superpixels="slick")


def test_both_kinds_of_guide_are_told_apart() -> None:
    assert isinstance(guide(), GuidesImages)
    assert not isinstance(AttentionGuide(colours(), "cam", None, "cpu"), GuidesImages)


MODEL = """
import torch
from torch import nn

from pixelsem.models import Classifier, Preprocessing


def make():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        network[4].weight *= 40
        network[4].bias.zero_()
    names = ("red", "green", "blue")
    return Classifier(network, name="small", class_names=names, preprocessing=Preprocessing((24, 24), 24))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with model.py, three photos of texture and label maps of squares for two of them."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(80, 176, (SIZE, SIZE, 3), dtype=np.uint8)
        write_image(tmp_path / f"photos/{number}.png", pixels)
    squares = np.kron(np.arange(16).reshape(4, 4), np.ones((6, 6), int)).astype(np.uint8)
    for number in range(2):
        write_image(tmp_path / f"maps/{number}.png", squares)
    return tmp_path


def call(*arguments: str, code: int = 0) -> dict[str, Any]:
    command = [
        "attack",
        "sai-fgm",
        "photos",
        "-m",
        "model.py:make",
        "--delta",
        "12",
        "--phi",
        "0",
        "--json",
        *arguments,
    ]
    result = CliRunner().invoke(app, command, prog_name="pixelsem")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def test_an_attack_by_given_maps(folder: Path) -> None:
    """Noise is one in every square of the map; an image without a map is reported, the others are attacked."""
    summary = call("--superpixels", "maps", code=1)
    assert list(summary["failures"]) == ["2.png"]
    stage = open_stage(summary["stage"])
    records = list(stage.attack_records())
    assert len(records) == 2
    assert any(record.success for record in records)
    for record in records:
        if record.adversarial is not None:
            change = read_image(stage.path / record.adversarial).astype(int) - read_image(stage.path / record.clean)
            assert change.any()
            squares = change.reshape(4, 6, 4, 6, 3)
            assert (squares == squares[:, :1, :, :1]).all()


def test_the_same_maps_elsewhere_are_the_same_run(folder: Path) -> None:
    first = call("--superpixels", "maps", code=1)
    shutil.copytree("maps", "elsewhere/copied")
    again = call("--superpixels", "elsewhere/copied", code=1)
    assert again["stage"] == first["stage"]
    assert again["counts"]["resumed"] == 2
    write_image(folder / "elsewhere/copied/0.png", np.zeros((SIZE, SIZE), np.uint8))
    assert call("--superpixels", "elsewhere/copied", code=1)["stage"] != first["stage"]


def test_a_stage_of_given_maps_can_be_run_again_from_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = call("--superpixels", "maps", code=1)
    (folder / "other").mkdir()
    stage = folder / first["stage"]
    monkeypatch.chdir(folder / "other")
    command = ["attack", "sai-fgm", "--config", str(stage / "stage.yaml"), "-m", "../model.py:make", "--json"]
    result = CliRunner().invoke(app, command, prog_name="pixelsem")
    assert result.exit_code == 1, result.output
    assert Path(json.loads(result.stdout)["stage"]).name == stage.name


def test_found_superpixels_do_not_depend_on_how_many_search_together(folder: Path) -> None:
    one = call("--in-flight", "1", "-o", "one")
    many = call("--in-flight", "64", "-o", "many")
    assert one["counts"]["searched"] == many["counts"]["searched"] == 3
    for record, other in zip(
        sorted(open_stage("one").attack_records(), key=lambda record: record.id),
        sorted(open_stage("many").attack_records(), key=lambda record: record.id),
        strict=True,
    ):
        assert record.after is not None
        assert other.after is not None
        assert record.after.confidence == pytest.approx(other.after.confidence, abs=0.02)
