"""Training of saliency networks, on discs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from typer.testing import CliRunner

from pixelsem.cli.app import app
from pixelsem.errors import InputError, ModelError, PixelsemError, StageError
from pixelsem.images import read_mask, write_image
from pixelsem.models.u2net import U2Net
from pixelsem.records import SaliencyEpochRecord
from pixelsem.regions import saliency_training
from pixelsem.regions.saliency import load_network, normalise
from pixelsem.regions.saliency_training import (
    SaliencyData,
    augment,
    cooling,
    load_data,
    measure,
    start_network,
    supervised_loss,
    train,
)
from pixelsem.regions.settings import SaliencyTrainSettings
from pixelsem.sources import open_images, select
from pixelsem.stage import open_stage

CPU = torch.device("cpu")

#: No change to the images but the mirroring, which is always drawn.
PLAIN: dict[str, Any] = {"crop": 1.0, "turn": 0.0, "colour": 0.0, "paste": 0.0, "size": 32}
QUICK: dict[str, Any] = {"epochs": 3, "cooldown": 1, "warmup": 0, "batch": 4, "size": 32, "precision": "fp32"}


class Tiny(nn.Module):
    """Two maps from one convolution, in place of a network that takes long."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.norm(self.convolution(x)).split(1, 1))


def tiny(seed: int = 0) -> U2Net:
    torch.manual_seed(seed)
    return Tiny()  # type: ignore[return-value]


def disc(seed: int, side: int = 40) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a bright disc on a dark ground, both noisy, and where it is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    middle, radius = rng.uniform(0.3, 0.7, 2) * side, rng.uniform(0.15, 0.3) * side
    inside = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 < radius**2
    image = np.where(inside[..., None], rng.integers(150, 220, 3), rng.integers(20, 90, 3))
    return np.clip(image + rng.normal(0, 10, image.shape), 0, 255).astype(np.uint8), inside


def discs(count: int, side: int = 40) -> SaliencyData:
    pairs = [disc(number, side) for number in range(count)]
    images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([inside for _, inside in pairs])[:, None].astype(np.uint8) * 255)
    held = [disc(1000 + number, side) for number in range(6)]
    return SaliencyData(images.contiguous(), masks, held, [f"{number}.png" for number in range(6)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of ten discs in images/ and masks/, of two sizes."""
    for number in range(10):
        image, inside = disc(number, 40 + number % 2)
        write_image(tmp_path / f"data/images/{number}.png", image)
        write_image(tmp_path / f"data/masks/{number}.png", inside)
    return tmp_path / "data"


def records(checkpoint: Path, network: U2Net, data: SaliencyData | None = None, **settings: Any) -> list[Any]:
    chosen = SaliencyTrainSettings(**QUICK | settings)
    steps = train(network, data or discs(8), chosen, checkpoint, CPU, {"run": "test"})
    return [step for step in steps if isinstance(step, SaliencyEpochRecord)]


def same(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# Data


def test_data_are_squashed_and_some_held_out(folder: Path) -> None:
    settings = SaliencyTrainSettings(size=32, hold_out=3, seed=5)
    data = load_data(folder / "images", folder / "masks", settings)
    assert data.images.shape == (7, 3, 40, 40)
    assert data.masks.shape == (7, 1, 40, 40)
    assert data.images.dtype == data.masks.dtype == torch.uint8
    # By the same draw as `segment --sample 3 --seed 5`, so that these can be segmented later.
    items = open_images(folder / "images").items
    assert data.held_ids == [item.id for item in select(items, sample=3, seed=5)]
    for image_id, (image, inside) in zip(data.held_ids, data.held, strict=True):
        number = int(image_id.removesuffix(".png"))
        wanted, truth = disc(number, 40 + number % 2)
        np.testing.assert_array_equal(image, wanted)
        np.testing.assert_array_equal(inside, truth)
    kept = [item.id for item in items if item.id not in data.held_ids]
    for number, image_id in enumerate(kept):
        image, inside = disc(int(image_id.removesuffix(".png")), 40)
        if int(image_id.removesuffix(".png")) % 2 == 0:  # of the very size
            np.testing.assert_array_equal(data.images[number].permute(1, 2, 0), image)
            np.testing.assert_array_equal(data.masks[number, 0], inside * 255)


def test_data_that_do_not_fit(folder: Path) -> None:
    settings = SaliencyTrainSettings(size=32)
    with pytest.raises(PixelsemError, match=r"--hold-out: 10 of 10 images"):
        load_data(folder / "images", folder / "masks", SaliencyTrainSettings(hold_out=10))
    write_image(folder / "masks/4.png", np.zeros((8, 9), np.uint8))
    with pytest.raises(PixelsemError, match=r"masks/4\.png: is 9×8, its image 40×40"):
        load_data(folder / "images", folder / "masks", settings)
    (folder / "masks/4.png").unlink()
    with pytest.raises(PixelsemError, match=r"images/4\.png: has no mask in .*masks"):
        load_data(folder / "images", folder / "masks", settings)
    (folder / "images/2.png").write_text("damaged")
    with pytest.raises(InputError, match=r"2\.png"):
        load_data(folder / "images", folder / "masks", settings)


# Augmentation


def corners(count: int = 64) -> tuple[Tensor, Tensor]:
    """Return squares that are white where their mask is: the upper left quarter, in a frame of their own number."""
    masks = torch.zeros(count, 1, 40, 40, dtype=torch.uint8)
    masks[:, :, 5:20, 5:20] = 255
    return masks.expand(-1, 3, -1, -1).contiguous(), masks


def seen(images: Tensor) -> Tensor:
    """Undo the normalisation of white and black: 1 where white."""
    white, black = (normalise(torch.full((1, 3, 1, 1), value)) for value in (1.0, 0.0))
    return ((images - black) / (white - black)).mean(1, keepdim=True)


def test_without_changes_images_are_as_they_were_or_mirrored() -> None:
    torch.manual_seed(0)
    images, masks = corners()
    x, y = augment(images, masks, SaliencyTrainSettings(**PLAIN | {"size": 40}))
    torch.testing.assert_close(seen(x), y, atol=1e-4, rtol=0)
    straight = (y - masks / 255).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (y.flip(3) - masks / 255).abs().amax((1, 2, 3)) < 1e-4
    assert (straight ^ mirrored).all()
    assert 16 < int(mirrored.sum()) < 48


@pytest.mark.parametrize("change", [{"crop": 0.5}, {"turn": 30.0}, {"crop": 0.6, "turn": 10.0, "size": 56}])
def test_masks_go_where_their_images_go(change: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x, y = augment(*corners(), SaliencyTrainSettings(**PLAIN | change))
    assert x.shape[2:] == y.shape[2:] == (change.get("size", 32),) * 2
    # A crop beside the object is black, and nothing is its own maximum.
    visible = y.amax((1, 2, 3)) > 0.99
    assert visible.sum() > 48
    torch.testing.assert_close(seen(x)[visible], y[visible], atol=0.02, rtol=0)
    assert len({round(float(mean), 4) for mean in y.mean((1, 2, 3))}) > 16


def test_colours_change_and_masks_do_not() -> None:
    torch.manual_seed(0)
    images, masks = discs(8).images, discs(8).masks
    plain = SaliencyTrainSettings(**PLAIN)
    torch.manual_seed(1)
    x, y = augment(images, masks, plain)
    torch.manual_seed(1)
    other, same_masks = augment(images, masks, SaliencyTrainSettings(**PLAIN | {"colour": 0.3}))
    assert torch.equal(y, same_masks)
    difference = (x - other).abs().mean((1, 2, 3))
    assert (difference > 0.02).all()
    assert (difference < 2).all()


def test_objects_are_pasted() -> None:
    torch.manual_seed(0)
    images = torch.stack([torch.full((3, 40, 40), 40 * number, dtype=torch.uint8) for number in range(1, 5)])
    masks = torch.zeros(4, 1, 40, 40, dtype=torch.uint8)
    for number in range(4):
        masks[number, :, 10 * number : 10 * number + 10] = 255
    x, y = augment(images, masks, SaliencyTrainSettings(**PLAIN | {"paste": 1.0, "size": 40}))
    rows = y[:, 0].mean(2).view(4, 4, 10).mean(2)
    # Each has its own strip and that of the one before.
    torch.testing.assert_close(rows, torch.eye(4) + torch.eye(4).roll(1, 0), atol=1e-4, rtol=0)
    levels = seen(x)[:, 0].mean(2).view(4, 4, 10).mean(2)
    for number in range(4):
        own, other = 40 * (number + 1), 40 * ((number - 1) % 4 + 1)
        wanted = torch.full((4,), float(own))
        wanted[(number - 1) % 4] = other
        torch.testing.assert_close(levels[number], wanted / wanted.max(), atol=1e-3, rtol=0)


# Loss, rate, measures


def test_the_loss_adds_every_output() -> None:
    outputs = [torch.linspace(-3, 3, 8).view(2, 1, 2, 2), torch.full((2, 1, 2, 2), 1.5)]
    masks = torch.tensor([0.0, 1, 1, 0, 0.5, 1, 0, 1]).view(2, 1, 2, 2)
    wanted = 0.0
    for output in outputs:
        p = 1 / (1 + np.exp(-output.double().numpy()))
        truth = masks.double().numpy()
        wanted += float(-(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean())
    assert float(supervised_loss(outputs, masks)) == pytest.approx(wanted, rel=1e-6)


def test_the_rate_falls_at_the_end_only() -> None:
    assert [cooling(done, 10, 4) for done in (0, 3.5, 6)] == [1, 1, 1]
    assert [cooling(done, 10, 4) for done in (7, 8, 9, 10)] == pytest.approx([0.853553, 0.5, 0.146447, 0], abs=1e-6)
    assert cooling(9.99, 10, 0) == 1


def test_masks_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [np.array([[1.0, 0.5], [0.4, 0.0]], np.float32), np.zeros((1, 2), np.float32)]
    monkeypatch.setattr(saliency_training, "find_maps", lambda network, images, *rest: [found.pop(0) for _ in images])
    image = np.zeros((2, 2, 3), np.uint8)
    pairs = [(image, np.array([[True, False], [True, False]])), (image[:1], np.array([[False, False]]))]
    iou, error = measure(tiny(), pairs, 32, CPU, batch=1)
    assert iou == pytest.approx((1 / 3 + 1) / 2)
    assert error == pytest.approx(((0 + 0.5 + 0.6 + 0) / 4 + 0) / 2)
    assert measure(tiny(), [], 32, CPU, batch=1) == (None, None)


# The run


def test_learns_discs(tmp_path: Path) -> None:
    log = records(tmp_path / "one.pt", tiny(), discs(32), **PLAIN, epochs=8, cooldown=4, lr=0.1, warmup=4, average=0.5)
    assert log[-1].iou > 0.9
    assert log[-1].error < 0.3
    assert log[-1].loss < 0.5 * log[0].loss


@pytest.mark.slow
def test_u2netp_learns_discs(tmp_path: Path) -> None:
    network = start_network("u2netp", None, 0)
    settings = {**PLAIN, "size": 40, "epochs": 30, "cooldown": 15, "lr": 5e-3, "warmup": 10, "average": 0.8}
    log = records(tmp_path / "one.pt", network, discs(32), **settings)
    assert log[-1].iou > 0.9
    assert log[-1].error < 0.1


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    undisturbed = tiny()
    log = records(tmp_path / "one.pt", undisturbed)
    interrupted = tiny()
    steps = train(interrupted, discs(8), SaliencyTrainSettings(**QUICK), tmp_path / "two.pt", CPU, {"run": "test"})
    while not isinstance(next(steps), SaliencyEpochRecord):
        pass
    next(steps)  # a step into the second epoch
    steps.close()
    resumed = tiny(7)
    again = records(tmp_path / "two.pt", resumed)
    assert same(undisturbed, resumed)
    assert [(e.epoch, e.loss, e.iou, e.error) for e in log] == [(e.epoch, e.loss, e.iou, e.error) for e in again]
    assert not same(undisturbed, tiny())


def test_a_run_may_be_made_longer_or_shorter_before_it_cools_down(tmp_path: Path) -> None:
    planned, changed = tiny(), tiny()
    records(tmp_path / "one.pt", planned, epochs=3, cooldown=1)
    steps = train(
        changed, discs(8), SaliencyTrainSettings(**QUICK | {"epochs": 9}), tmp_path / "two.pt", CPU, {"run": "test"}
    )
    while not isinstance(step := next(steps), SaliencyEpochRecord) or step.epoch < 2:
        pass
    steps.close()
    records(tmp_path / "two.pt", changed, epochs=3, cooldown=1)
    assert same(planned, changed)
    # What is done already is given as it is.
    shorter = tiny(3)
    assert [record.epoch for record in records(tmp_path / "one.pt", shorter, epochs=1)] == [1, 2, 3]
    assert same(planned, shorter)


def test_weights_are_averaged(tmp_path: Path) -> None:
    """The average, worked out anew from the weights after each step."""
    last, mean = tiny(), tiny()
    records(tmp_path / "last.pt", last, average=0.0, epochs=2)
    records(tmp_path / "mean.pt", mean, average=0.9, epochs=2)
    checkpoint = torch.load(tmp_path / "mean.pt", weights_only=True)
    assert all(torch.equal(tensor, last.state_dict()[name]) for name, tensor in checkpoint["network"].items())
    wanted: dict[str, Tensor] = {name: tensor.clone() for name, tensor in tiny().state_dict().items()}
    for step in range(1, 5):  # two epochs of two steps; each run stops a step later
        settings = SaliencyTrainSettings(**QUICK | {"average": 0.0, "epochs": 2})
        run = saliency_training._Run(tiny(), settings, CPU)
        run.network.train()
        done = 0
        for epoch in range(2):
            torch.manual_seed(epoch)
            for number, chosen in enumerate(torch.randperm(8).split(4)):
                if done < step:
                    batch = augment(discs(8).images[chosen], discs(8).masks[chosen], settings)
                    run.step(*batch, settings.lr * cooling(epoch + number / 2, 2, 1))
                    done += 1
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in run.network.state_dict().items():
            wanted[name] = decay * wanted[name] + (1 - decay) * tensor if tensor.is_floating_point() else tensor
    for name, tensor in mean.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-6)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    records(tmp_path / "one.pt", tiny(), epochs=1)
    settings = SaliencyTrainSettings(**QUICK)
    with pytest.raises(StageError, match="belongs to another training run"):
        next(train(tiny(), discs(8), settings, tmp_path / "one.pt", CPU, {"run": "other"}))
    (tmp_path / "one.pt").write_bytes((tmp_path / "one.pt").read_bytes()[:100])
    with pytest.raises(ModelError, match=r"one\.pt: not a training checkpoint"):
        next(train(tiny(), discs(8), settings, tmp_path / "one.pt", CPU, {"run": "test"}))


def test_training_that_diverges_is_told_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saliency_training, "supervised_loss", lambda outputs, masks: outputs[0].sum() * torch.nan)
    with pytest.raises(PixelsemError, match=r"epoch 1: training diverged, its loss is nan; give a lower --lr"):
        records(tmp_path / "one.pt", tiny(), epochs=1)
    assert not (tmp_path / "one.pt").exists()


def test_the_loss_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record's loss is the mean over the images, also where the last batch is smaller."""
    seen_losses: list[tuple[float, int]] = []

    def noting(outputs: Any, masks: Tensor) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(outputs[0], masks)
        seen_losses.append((float(loss.detach()), len(masks)))
        return loss

    monkeypatch.setattr(saliency_training, "supervised_loss", noting)
    (record,) = records(tmp_path / "one.pt", tiny(), discs(6), epochs=1)
    assert [count for _, count in seen_losses] == [4, 2]
    assert record.loss == pytest.approx(sum(loss * count for loss, count in seen_losses) / 6, rel=1e-5)


# The command


def call(*arguments: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments)], prog_name="pixelsem")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_the_command_leaves_weights_that_segment_takes(folder: Path, tmp_path: Path) -> None:
    options = ("--size", "32", "--batch", "4", "--hold-out", "4", "--precision", "fp32", "--cooldown", "0")
    command = ("segment", "train", "--data", folder, *options, "--run", tmp_path / "run")
    first = call(*command, "--epochs", "1")
    stage = open_stage(Path(first.stdout.strip()))
    assert "epoch 1: loss" in first.stderr
    assert (stage.path / "held-out.txt").read_text().split() == [
        item.id for item in select(open_images(folder / "images").items, sample=4, seed=0)
    ]
    before = (stage.path / "u2netp.safetensors").read_bytes()
    # Longer: the same stage, in which the first epoch is not trained again.
    summary = json.loads(call(*command, "--epochs", "2", "--json", "--data-name", "ten discs").stdout)
    assert Path(summary["stage"]) == stage.path
    assert summary["counts"] == {"images": 6, "held_out": 4, "epochs": 2}
    log = list(open_stage(stage.path))
    assert [record.key for record in log] == [("1",), ("2",)]
    weights = Path(summary["weights"])
    assert weights.read_bytes() != before
    network, _, size = load_network("u2netp", weights)
    assert size == 32
    held = [disc(int(i[0]), 40 + int(i[0]) % 2) for i in (stage.path / "held-out.txt").read_text().split()]
    iou, error = measure(network, held, 32, CPU, 4)
    assert (iou, error) == pytest.approx((summary["iou"], summary["error"]), abs=0.01)  # of fp16
    card = (stage.path / "u2netp.md").read_text()
    for part in ("ten discs; 6 images trained on, 4 held out", f"mean IoU {summary['iou']:.4f}", "| size | 32 |"):
        assert part in card
    # Fewer epochs than are done: nothing is trained, the weights are written anew.
    weights.unlink()
    call(*command, "--epochs", "1")
    assert load_network("u2netp", weights)[2] == 32
    masks = call("segment", "--method", "u2netp", "--weights", weights, folder / "images", "--run", tmp_path / "run")
    segmented = open_stage(Path(masks.stdout.strip()))
    assert all(read_mask(segmented.resolve(record.mask)).max() == 65535 for record in segmented.segment_records())


def test_training_starts_from_given_weights(tmp_path: Path) -> None:
    network = start_network("u2netp", None, 4)
    assert same(network, start_network("u2netp", None, 4))
    assert not same(network, start_network("u2netp", None, 5))
    torch.save(network.state_dict(), tmp_path / "u2netp.pth")
    assert same(network, start_network("u2netp", tmp_path / "u2netp.pth", 5))
    with pytest.raises(ModelError, match="does not fit u2net"):
        start_network("u2net", tmp_path / "u2netp.pth", 0)


def test_the_command_wants_its_folders(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert "masks: no such folder; give --data a folder" in call("segment", "train", "--data", tmp_path, code=2).stderr
    assert "--device" in call("segment", "train", "--data", tmp_path, "--device", "tpu", code=2).stderr
