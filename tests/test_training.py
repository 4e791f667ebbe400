"""Training, on a problem that is easy and a network that is tiny."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typer.testing import CliRunner

from pixelsem.cli.app import app
from pixelsem.defenses.data import open_folders
from pixelsem.defenses.examples import InMemory, augment
from pixelsem.defenses.settings import TrainSettings
from pixelsem.defenses.training import measure_accuracy, train
from pixelsem.errors import ModelError, OutputError, PixelsemError, StageError
from pixelsem.images import write_image
from pixelsem.models import Classifier, Preprocessing, load_classifier
from pixelsem.records import EpochRecord
from pixelsem.stage import open_stage

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 8
CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"epochs": 3, "batch": 8, "crop": 1, "lr": 0.05, "precision": "fp32"}

FACTORY = """
from torch import nn

from pixelsem.models import Classifier, Preprocessing


def make():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )
    return Classifier(network, name="tiny", class_names=("blue", "red"), preprocessing=Preprocessing((8, 8), 8))
"""


def tiny() -> Classifier:
    scope: dict[str, Any] = {}
    exec(FACTORY, scope)
    made: Classifier = scope["make"]()
    return made


def picture(red: bool, rng: np.random.Generator, side: int = SIDE) -> NDArray[np.uint8]:
    base = np.array((160, 100, 90) if red else (90, 100, 160))
    return np.clip(base + rng.normal(0, 40, (side, side, 3)), 0, 255).astype(np.uint8)


def examples(count: int, seed: int) -> InMemory:
    rng = np.random.default_rng(seed)
    labels = torch.arange(count) % 2
    pixels = np.stack([picture(bool(label), rng) for label in labels.tolist()])
    return InMemory(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels)


def loaded(data: Path, number: int) -> InMemory:
    """Return the images to train on (0) or to test on (1) of a folder."""
    held = open_folders(data)[number].load((SIDE, SIDE))
    assert held is not None
    return InMemory(*held)


def epochs(
    checkpoint: Path, classifier: Classifier, data: InMemory | None = None, **settings: Any
) -> list[EpochRecord]:
    steps = train(
        classifier, data or examples(40, 0), examples(30, 1), TrainSettings(**QUICK | settings), checkpoint, CPU
    )
    return [step for step in steps if isinstance(step, EpochRecord)]


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# The loop


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("start", [2.0**16, 2.0**30])
def test_half_precision_scales_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: float) -> None:
    """Steps that overflow, as the first do with a large scale, are left out without a word."""
    monkeypatch.setattr(
        torch.amp.GradScaler, "__init__", partialmethod(torch.amp.GradScaler.__init__, init_scale=start)
    )
    log = epochs(tmp_path / "c.pt", tiny(), precision="fp16", epochs=6)
    assert log[-1].test_accuracy == 1.0
    scaler = torch.load(tmp_path / "c.pt", weights_only=True)["scaler"]
    assert 1 <= scaler["scale"] <= 2.0**20
    assert scaler["_growth_tracker"] > 0


def test_an_easy_problem_is_learned(tmp_path: Path) -> None:
    classifier = tiny()
    log = epochs(tmp_path / "c.pt", classifier, epochs=6)
    assert [record.epoch for record in log] == [1, 2, 3, 4, 5, 6]
    assert log[-1].test_accuracy == 1.0
    assert log[-1].loss < log[0].loss / 2
    unseen = examples(60, 2)
    logits = classifier(unseen.images.float() / 255)
    assert (logits.argmax(1) == unseen.labels).all()
    assert measure_accuracy(classifier, unseen, device=CPU) == 1.0
    assert measure_accuracy(classifier, InMemory(unseen.images, 1 - unseen.labels), device=CPU) == 0.0


def test_accuracy_is_counted_over_uneven_batches() -> None:
    mixed = examples(31, 3)
    mixed.labels[:5] = 1 - mixed.labels[:5]

    class Redder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((2, 3))
            return mean[:, [2, 0]]

    classifier = Classifier(Redder(), name="x", class_names=("blue", "red"), preprocessing=Preprocessing((8, 8), 8))
    for batch in (1, 7, 31, 250):
        assert measure_accuracy(classifier.train(), mixed, device=CPU, batch=batch) == 26 / 31
        assert not classifier.training  # dropout and batch statistics have no place in it


def test_progress_rises_from_nothing_to_one_epoch_short_of_all(tmp_path: Path) -> None:
    steps = list(
        train(tiny(), examples(400, 0), examples(8, 1), TrainSettings(**QUICK | {"epochs": 2}), tmp_path / "c.pt", CPU)
    )
    shares = [step for step in steps if isinstance(step, float)]
    assert shares == [0.0, 20 / 100, 40 / 100, 50 / 100, 70 / 100, 90 / 100]


@pytest.mark.parametrize("stop", ["after an epoch", "in an epoch"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_interrupted_and_resumed_is_as_never_interrupted(tmp_path: Path, stop: str, precision: str) -> None:
    whole, broken, resumed = tiny(), tiny(), tiny()
    log = epochs(tmp_path / "whole.pt", whole, precision=precision, epochs=4)
    settings = TrainSettings(**QUICK | {"precision": precision, "epochs": 4})
    steps = train(broken, examples(40, 0), examples(30, 1), settings, tmp_path / "c.pt", CPU)
    while not isinstance(step := next(steps), EpochRecord) or step.epoch < 2:
        pass
    if stop == "in an epoch":
        assert isinstance(next(steps), float)
    steps.close()
    assert not same_weights(broken, whole)
    torch.manual_seed(99)  # whatever a new process starts with
    again = epochs(tmp_path / "c.pt", resumed, precision=precision, epochs=4)
    assert same_weights(resumed, whole)
    assert [(r.epoch, r.loss, r.train_accuracy, r.test_accuracy) for r in again] == [
        (r.epoch, r.loss, r.train_accuracy, r.test_accuracy) for r in log
    ]
    assert again[:2] != log[:2] or again[1].seconds != log[1].seconds
    # Finished, it only reads the checkpoint.
    once_more = tiny()
    assert epochs(tmp_path / "c.pt", once_more, precision=precision, epochs=4) == again
    assert same_weights(once_more, whole)


def test_the_seed_decides(tmp_path: Path) -> None:
    first, again, other = tiny(), tiny(), tiny()
    epochs(tmp_path / "1.pt", first)
    epochs(tmp_path / "2.pt", again)
    epochs(tmp_path / "3.pt", other, seed=1)
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_dropout_and_weight_decay_are_those_of_the_settings(tmp_path: Path) -> None:
    classifier = tiny()
    epochs(tmp_path / "1.pt", classifier, dropout=0.25)
    assert classifier.network[3].p == 0.25
    plain, decayed = tiny(), tiny()
    still = {"crop": 0, "flip": False, "dropout": 0.0, "epochs": 1, "batch": 40, "momentum": 0.0, "lr": 0.1}
    epochs(tmp_path / "2.pt", plain, **still, weight_decay=0.0)
    epochs(tmp_path / "3.pt", decayed, **still, weight_decay=0.5)
    torch.manual_seed(0)
    for one, two in zip(plain.parameters(), decayed.parameters(), strict=True):
        if one.ndim == 1:  # biases and batch normalisation
            assert torch.equal(one, two)
    # One step of plain gradient descent: what differs is lr · decay · the initial weights.
    start = tiny()
    torch.manual_seed(0)
    for module in start.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    for index in (0, 6):
        moved = plain.network[index].weight - decayed.network[index].weight
        assert torch.allclose(moved, 0.1 * 0.5 * start.network[index].weight, atol=1e-6)


@pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 0.01}, {"epochs": 4}])
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    epochs(tmp_path / "c.pt", tiny())
    before = (tmp_path / "c.pt").read_bytes()
    with pytest.raises(StageError, match=r"c\.pt: belongs to another training run"):
        epochs(tmp_path / "c.pt", tiny(), **change)
    with pytest.raises(StageError, match=r"c\.pt: belongs to another training run"):
        epochs(tmp_path / "c.pt", tiny(), data=examples(42, 0))
    assert (tmp_path / "c.pt").read_bytes() == before


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    epochs(path, tiny())
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"c\.pt: not a training checkpoint .*remove it to start anew"):
            epochs(path, tiny())
    for other in ({}, {"weight": torch.zeros(1)}, [1]):
        torch.save(other, path)
        with pytest.raises(ModelError, match="not a training checkpoint"):
            epochs(path, tiny())


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        epochs(tmp_path / "file" / "c.pt", tiny())


# Augmentation


def crops(image: NDArray[np.uint8], crop: int, flip: bool) -> dict[tuple[int, int, bool], NDArray[np.uint8]]:
    """Return all that may come of an image [3, H, W], made with loops: by row, column, flipped or not."""
    _, height, width = image.shape
    made = {}
    for top in range(2 * crop + 1):
        for left in range(2 * crop + 1):
            out = np.zeros_like(image)
            for y in range(height):
                for x in range(width):
                    row, column = y + top - crop, x + left - crop
                    row = -row if row < 0 else 2 * (height - 1) - row if row >= height else row
                    column = -column if column < 0 else 2 * (width - 1) - column if column >= width else column
                    out[:, y, x] = image[:, row, column]
            made[top, left, False] = out
            if flip:
                made[top, left, True] = out[:, :, ::-1]
    return made


@pytest.mark.parametrize(("crop", "flip"), [(0, False), (0, True), (1, False), (2, True), (3, True)])
def test_augmentation_draws_all_crops_and_flips_alike(crop: int, flip: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 9), np.uint8)
    possible = {made.tobytes(): key for key, made in crops(image, crop, flip).items()}
    count = 200 * len(possible)
    torch.manual_seed(0)
    drawn = augment(torch.from_numpy(image).expand(count, -1, -1, -1), crop, flip)
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (count, 3, 8, 9)
    seen = Counter(possible[made.contiguous().numpy().tobytes()] for made in drawn)
    assert len(seen) == len(possible) == (2 * crop + 1) ** 2 * (1 + flip)
    # 200 expected of each: six standard deviations of a binomial are less than 85.
    assert all(115 < number < 285 for number in seen.values()) or len(possible) == 1


def test_augmentation_keeps_every_image_with_its_own_label() -> None:
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (20, 3, 6, 6), np.uint8))
    torch.manual_seed(0)
    for image, made in zip(images, augment(images, 2, True), strict=True):
        assert made.contiguous().numpy().tobytes() in {m.tobytes() for m in crops(image.numpy(), 2, True).values()}


# Data


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of red and blue images, 20 + 20 to train and 10 + 10 to test; the folder above is entered."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 10)):
        for number in range(count):
            for name in ("red", "blue"):
                write_image(tmp_path / f"data/{split}/{name}/{number}.png", picture(name == "red", rng))
    return tmp_path / "data"


def test_folders_are_classes_in_their_order(data: Path) -> None:
    train_set, test_set = open_folders(data)
    assert train_set.class_names == test_set.class_names == ("blue", "red")
    held = loaded(data, 0)
    assert (held.images.shape, held.images.dtype) == ((40, 3, SIDE, SIDE), torch.uint8)
    assert held.labels.tolist() == [0] * 20 + [1] * 20
    assert train_set.ids()[:2] == ["train/blue/0.png", "train/blue/1.png"]
    # The classes' own colours came along: blue is the third channel.
    assert (held.images[:20, 2].float().mean((1, 2)) > held.images[:20, 0].float().mean((1, 2))).all()
    (data / "test").rename(data / "val")
    (data / "train/.cache").mkdir()
    assert loaded(data, 1).labels.tolist() == [0] * 10 + [1] * 10
    assert open_folders(data)[0].class_names == ("blue", "red")


def test_classes_that_are_not_tested_keep_their_numbers(data: Path) -> None:
    shutil.rmtree(data / "test/blue")
    assert loaded(data, 1).labels.tolist() == [1] * 10


def move(data: Path, name: str) -> None:
    (data / name).rename(data / "elsewhere")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda data: data.rename(data.parent / "gone"), r"data: no such folder; give --data"),
    "no train": (lambda data: move(data, "train"), r"data: has no folder 'train'"),
    "no test": (lambda data: move(data, "test"), r"data: has no folder 'test'"),
    "empty class": (lambda data: (data / "train/green").mkdir(), r"train/green: a class without images"),
    "unknown class in test": (
        lambda data: shutil.copytree(data / "test/red", data / "test/green"),
        r"test/green/0\.png: its top folder is none of the classes blue, red",
    ),
    "no images": (lambda data: [path.unlink() for path in data.rglob("train/*/*.png")], r"train: no images"),
    "images without class": (
        lambda data: write_image(data / "train/0.png", np.zeros((SIDE, SIDE, 3), np.uint8)),
        r"train/0\.png: in no folder of a class; expected train/CLASS",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_data_that_cannot_be_used(data: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(data)
    with pytest.raises(PixelsemError, match=message):
        open_folders(data)
    result = defend("--data", "data", code=2)
    assert result.stderr.count("\n") == 1
    assert re.search(message, result.stderr)
    assert not Path("pixelsem-run").exists()


def test_an_unreadable_image_is_named(data: Path) -> None:
    (data / "train/red/3.png").write_text("no image")
    result = defend("--data", "data", code=1)
    assert "train/red/3.png: not an image" in result.stderr
    assert result.stderr.count("\n") == 1


# The command


TINY = [
    "--model",
    "model.py:make",
    "--epochs",
    "6",
    "--batch",
    "8",
    "--crop",
    "1",
    "--lr",
    "0.05",
    "--precision",
    "fp32",
]


def defend(*arguments: str | Path, code: int = 0, options: list[str] = TINY) -> Any:
    result = CliRunner().invoke(app, ["defend", "train", *options, *map(str, arguments)], prog_name="pixelsem")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_leaves_weights_a_card_and_a_record_of_every_epoch(data: Path) -> None:
    result = defend("--data", "data", "--data-name", "Two colours")
    stage = Path(result.stdout.strip())
    assert stage.parent == Path("pixelsem-run")
    assert re.fullmatch(r"train-model\.py-make-standard-[0-9a-f]{6}", stage.name)
    assert sorted(path.name for path in stage.iterdir()) == [
        "checkpoint.pt", "manifest.jsonl", "model.py-make.md", "model.py-make.safetensors", "stage.yaml",
    ]  # fmt: skip
    log = list(open_stage(stage).epoch_records())
    assert [record.epoch for record in log] == [1, 2, 3, 4, 5, 6]
    info = open_stage(stage).info
    assert (info.kind, info.command, info.inputs) == ("train", "defend train", {"data": "../../data"})
    assert info.counts == {"images": 40, "test_images": 20, "epochs": 6}
    file = stage / "model.py-make.safetensors"
    classifier = load_classifier("model.py:make", weights=file)
    assert classifier.class_names == ("blue", "red")
    accuracy = measure_accuracy(classifier, loaded(data, 1), device=CPU)
    assert accuracy > 0.9
    card = (stage / "model.py-make.md").read_text()
    assert f"**Test accuracy: {100 * accuracy:.2f} %**" in card
    assert "Data: Two colours; 40 training images, 20 test images." in card
    assert "| epochs | 6 |" in card
    assert "| seed | 0 |" in card
    for record in log:
        assert f"| {record.epoch} | {record.loss:.4f} | {100 * record.train_accuracy:.2f} |" in card
    assert f"test accuracy {100 * accuracy:.2f} %; use it with --model model.py:make --weights {file}" in result.stderr


def test_training_goes_on_from_given_weights(data: Path) -> None:
    file = Path(json.loads(defend("--data", "data", "--json").stdout)["weights"])
    summary = json.loads(defend("--data", "data", "--json", "--weights", file, "--epochs", "1", "--lr", "0").stdout)
    before, after = (load_classifier("model.py:make", weights=path).state_dict() for path in (file, summary["weights"]))
    learned = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in learned), "steps of length 0"
    assert summary["test_accuracy"] > 0.9
    stage = open_stage(Path(summary["stage"]))
    assert "from the weights of model.py-make.safetensors" in (stage.path / "model.py-make.md").read_text()
    other = Path(json.loads(defend("--data", "data", "--json", "--seed", "1").stdout)["weights"])
    refused = defend("--data", "data", "--weights", other, "--epochs", "1", "--lr", "0", "-o", stage.path, code=2)
    assert "-o" in refused.output


def test_the_card_tells_the_accuracy_of_the_file(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding that breaks the network must show, whatever the epochs said."""
    from pixelsem.models import checkpoints

    stored = checkpoints._stored
    monkeypatch.setattr(
        checkpoints, "_stored", lambda tensor, half: stored(-tensor if tensor.ndim == 2 else tensor, half)
    )
    result = defend("--data", "data", "--json")
    summary = json.loads(result.stdout)
    stage = Path(summary["stage"])
    assert [*open_stage(stage).epoch_records()][-1].test_accuracy > 0.9
    assert summary["test_accuracy"] < 0.1
    assert f"**Test accuracy: {100 * summary['test_accuracy']:.2f} %**" in (stage / "model.py-make.md").read_text()
    measured = CliRunner().invoke(
        app,
        ["evaluate", "accuracy", "-m", "model.py:make", "--weights", summary["weights"], "-d", "data", "--json", "-q"],
    )
    assert measured.exit_code == 0, measured.output
    assert f"{summary['test_accuracy']}" in measured.stdout


def test_weights_of_a_known_architecture_load_by_themselves(data: Path) -> None:
    rng = np.random.default_rng(0)
    for path in data.rglob("*.png"):
        path.unlink()
    for split in ("train", "test"):
        for number in range(2):
            for name in ("red", "blue"):
                write_image(data / split / name / f"{number}.png", picture(name == "red", rng, 32))
    options = ["--data", "data", "--model", "allconv", "--epochs", "1", "--batch", "4", "--precision", "fp32"]
    summary = json.loads(defend("--json", "-q", options=options).stdout)
    file = Path(summary["weights"])
    assert file.name == "allconv.safetensors"
    classifier = load_classifier(file)
    assert (classifier.arch, classifier.class_names, classifier.trained) == ("allconv", ("blue", "red"), True)
    held = open_folders(data)[1].load((32, 32))
    assert held is not None
    assert measure_accuracy(classifier, InMemory(*held), device=CPU) == summary["test_accuracy"]
    assert "All-CNN-C, Springenberg et al. 2015" in file.with_suffix(".md").read_text()


def test_a_stopped_command_goes_on(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelsem.defenses import training

    whole = Path(defend("--data", "data", "-o", "whole").stdout.strip())
    measured = []

    def stop(*arguments: Any, **options: Any) -> float:
        measured.append(1)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return measure_accuracy(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(training, "measure_accuracy", stop)
        result = defend("--data", "data", "-o", "out", code=130)
    assert result.stderr.splitlines()[-1].startswith("pixelsem: interrupted; what is done stays done")
    assert [record.epoch for record in open_stage("out").epoch_records()] == [1, 2, 3]
    result = defend("--data", "data", "-o", "out")
    assert "epoch 4: " in result.stderr
    assert "epoch 3: " not in result.stderr
    assert [record.epoch for record in open_stage("out").epoch_records()] == [1, 2, 3, 4, 5, 6]
    name = "model.py-make.safetensors"
    assert (Path("out") / name).read_bytes() == (whole / name).read_bytes()


def test_another_run_there_is_refused(data: Path) -> None:
    defend("--data", "data", "-o", "out", "--epochs", "1")
    before = Path("out/checkpoint.pt").read_bytes()
    assert "holds another run" in defend("--data", "data", "-o", "out", "--epochs", "2", code=2).stderr
    write_image(data / "train/red/0.png", np.zeros((SIDE, SIDE, 3), np.uint8))
    assert "holds another run" in defend("--data", "data", "-o", "out", "--epochs", "1", code=2).stderr
    assert Path("out/checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "alconv"], "alconv: no such model; did you mean allconv?"),
        (["--epochs", "0"], "--epochs"),
        (["--method", "magic"], "--method"),
        (["--crop", "8"], "--crop 8: images of 8×8 pixels can be padded by 7 at most"),
        (["--seed", "1000000000000000"], "--seed"),
        (["--min-area", "0.5"], "--min-area goes with images of other sizes than the model's input size"),
        (["--workers", "2"], "--workers goes with images of other sizes than the model's input size"),
        (["--resize", "squash"], "--resize goes with images of other sizes than the model's input size"),
        (["--download"], "--data-root and --download go with --data torchvision:NAME"),
        (["--device", "abacus"], "--device"),
    ],
)
def test_options_that_cannot_be(data: Path, options: list[str], message: str) -> None:
    result = defend("--data", "data", *options, code=2)
    assert message in result.stderr
    assert not Path("pixelsem-run").exists()


def test_training_that_diverges_is_told_and_not_written(data: Path) -> None:
    result = defend("--data", "data", "-o", "out", "--lr", "1e30", code=2)
    assert result.stderr.splitlines()[-1] == (
        "pixelsem: epoch 1: training diverged, its loss is nan; give a lower --lr"
    )
    assert not Path("out/checkpoint.pt").exists()
    assert [*open_stage("out").epoch_records()] == []


@pytest.mark.parametrize("option", [["--min-area", "0.5"], ["--workers", "2"], ["--resize", "squash"], ["--crop", "8"]])
def test_options_that_cannot_be_are_told_before_the_images_are_read(data: Path, option: list[str]) -> None:
    for path in data.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])  # as far as the size, and no pixels
    assert "damaged" in defend("--data", "data", code=1).stderr
    assert f"pixelsem: {option[0]} " in defend("--data", "data", *option, code=2).stderr


def test_stage_file_repeats_the_training(data: Path) -> None:
    first = Path(defend("--data", "data", "-o", "first", "--seed", "3").stdout.strip())
    defend("--config", "first/stage.yaml", "-o", "again", options=[])
    name = "model.py-make.safetensors"
    assert (Path("again") / name).read_bytes() == (first / name).read_bytes()
    assert open_stage("again").info.identity == open_stage("first").info.identity
