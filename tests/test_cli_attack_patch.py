"""``pixelsem attack adv-patch`` and its ``fit``, as they are typed, with a model of the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pixelsem.attacks.settings_patches import PATCH_FILE
from pixelsem.cli.app import app
from pixelsem.images import read_image, read_layer, write_image
from pixelsem.records import PatchRecord
from pixelsem.stage import open_stage

SIDE = 12

#: Which colour does the image have most of?
MODEL = """
import torch
from torch import nn

from pixelsem.models import Classifier, Preprocessing


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        means = x.mean((2, 3))
        return (means - means.sum(1, keepdim=True) / 2) * self.sharpness


def make():
    names = ("red", "green", "blue")
    return Classifier(Mean(), name="mean", class_names=names, preprocessing=Preprocessing((12, 12), 12))
"""


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of six reddish images and one in the wrong class; masks are their left halves."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    half = np.arange(SIDE) < SIDE // 2
    for number in range(7):
        noise = np.random.default_rng(number).normal(0, 5, (SIDE, SIDE, 3))
        name = f"{'blue' if number == 6 else 'red'}/{number}.png"
        write_image(tmp_path / "photos" / name, np.clip(noise + np.array((150, 130, 120)), 0, 255).astype(np.uint8))
        write_image(tmp_path / "masks" / name, np.broadcast_to(half, (SIDE, SIDE)).copy())
    return tmp_path / "photos"


def call(*arguments: str | Path, code: int = 0) -> Any:
    command = ["attack", "adv-patch", *map(str, arguments), "-m", "model.py:make"]
    result = CliRunner().invoke(app, command, prog_name="pixelsem")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


FIT = ("fit", "photos", "--steps", "40", "--lr", "0.05", "--images-per-step", "4")


def test_one_patch_for_many_images(photos: Path) -> None:
    result = call(*FIT)
    stage = open_stage(result.stdout.strip())
    assert stage.info.command == "attack adv-patch fit"
    assert stage.info.counts == {"images": 7, "used": 6, "failed": 0, "steps": 40}
    assert "1 images left out that the model is wrong on" in result.stderr
    records = [record for record in stage if isinstance(record, PatchRecord)]
    assert [record.step for record in records] == [25, 40]
    assert records[1].loss < records[0].loss
    patch = read_layer(stage.path / PATCH_FILE)
    assert patch.shape == (5, 5, 4)
    assert patch[..., 0].max() == 0  # what speaks for red is gone

    done = call("photos", "--patch", stage.path, "--place", "corner", "--json")
    attack = json.loads(done.stdout)
    attacked = open_stage(attack["stage"])
    assert attack["counts"]["successes"] == 6
    assert attacked.info.command == "attack adv-patch images"
    for record in attacked.attack_records():
        if record.success:
            assert (record.queries, record.generations) == (1, 1)
            changed = np.argwhere((read_image(attacked.path / str(record.adversarial))
                                   != read_image(attacked.path / record.clean)).any(2))  # fmt: skip
            assert {tuple(changed.min(0)), tuple(changed.max(0) - 4)} <= {(0, 0), (0, 7), (7, 0), (7, 7)}
            history = np.load(attacked.path / str(record.history))
            assert int(history["area"]) == 25


def test_the_same_command_goes_on_and_another_starts_anew(photos: Path) -> None:
    first, again = (call(*FIT) for _ in range(2))
    assert first.stdout == again.stdout
    assert call(*FIT, "--target", "blue").stdout != first.stdout
    assert call(*FIT, "--seed", "1").stdout != first.stdout
    repeated = call("fit", "--config", f"{first.stdout.strip()}/stage.yaml", "-o", "copy")
    old, new = (Path(each.stdout.strip()) / PATCH_FILE for each in (first, repeated))
    assert old.read_bytes() == new.read_bytes()


def test_the_patch_is_what_it_holds(photos: Path) -> None:
    """Where it lies is not part of a run's identity; a file of other pixels is another run."""
    stage = Path(call(*FIT).stdout.strip())
    first = call("photos", "--patch", stage).stdout
    assert call("photos", "--patch", stage / PATCH_FILE).stdout == first
    assert call("--config", f"{first.strip()}/stage.yaml").stdout == first
    other = Path(call(*FIT, "--target", "blue").stdout.strip())
    assert call("photos", "--patch", other).stdout != first


def test_regions_bind_both(photos: Path) -> None:
    region = ("--region", "foreground", "--masks", "masks", "--place", "region")
    stage = call(*FIT, *region).stdout.strip()
    attacked = open_stage(call("photos", "--patch", stage, *region).stdout.strip())
    records = [record for record in attacked.attack_records() if record.success]
    assert records
    for record in records:
        pixels = [read_image(attacked.path / str(name)) for name in (record.adversarial, record.clean)]
        assert (pixels[0] == pixels[1])[:, SIDE // 2 :].all()


def test_fit_takes_the_newest_masks_of_the_same_images(photos: Path) -> None:
    segment = ["segment", "photos", "--prior", "masks", "--upscale", "0", "-q"]
    masks = CliRunner().invoke(app, segment, prog_name="pixelsem").stdout.strip()
    region = ("--region", "foreground", "--flagged", "use", "--steps", "1")
    done = call("fit", "photos", *region)
    assert f"masks: {masks}" in done.stderr
    assert call("fit", "photos", *region, "--masks", masks).stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos", "--patch", "none.png"), "none.png"),
        (("photos", "--patch", "model.py"), "model.py"),
        (("photos", "--patch", "large.png"), "make it smaller"),
        (("photos", "--patch", "photos/red/0.png", "--steps", "3"), "--steps does not go with --patch"),
        (("fit", "photos", "--region", "all", "--masks", "masks"), "--region all"),
        (("fit", "photos", "--region", "foreground"), "needs masks"),
        (("fit", "photos", "--labels", "predicted", "--target", "red"), "7 of the target's class"),
        (("fit", "photos", "--target", "pink"), "pink"),
        (("fit", "photos", "--steps", "1", "--seed", str(2**64)), "seed"),
    ],
)
def test_what_cannot_be_done_is_one_line(photos: Path, arguments: tuple[str, ...], message: str) -> None:
    write_image(Path("large.png"), np.zeros((SIDE + 1, SIDE, 3), np.uint8))
    lines = [line for line in call(*arguments, code=2).stderr.splitlines() if not line.startswith("Try ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not Path("pixelsem-run").exists()


def test_other_attacks_run_as_typed(photos: Path) -> None:
    for name, options in (("jsma", ["--theta", "1"]), ("lavan", ["--steps", "5", "--share", "0.5"])):
        command = ["attack", name, "photos", "-m", "model.py:make", "--json", *options]
        result = CliRunner().invoke(app, command, prog_name="pixelsem")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["counts"]["successes"] == 6


@pytest.mark.parametrize("name", ["adv-patch", "lavan"])
def test_an_attack_without_a_preset_says_why(name: str) -> None:
    result = CliRunner().invoke(app, ["attack", name, "--help"], prog_name="pixelsem")
    assert "--preset" not in result.stdout
    assert "There is no preset of " in result.stdout
