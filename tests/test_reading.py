"""Training on images of any size, read on the fly, and on torchvision's data sets."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from test_training import CPU, FACTORY, QUICK, TINY, defend, picture, same_weights, tiny
from torch import Tensor

from pixelsem.defenses import data as data_module
from pixelsem.defenses.crops import Crop, draw_crop
from pixelsem.defenses.data import Pictures, find_split, open_folders
from pixelsem.defenses.examples import Batch, InMemory, OnTheFly
from pixelsem.defenses.settings import ReadingSettings, TrainSettings
from pixelsem.defenses.torchvision_data import SETS, open_torchvision
from pixelsem.defenses.training import train
from pixelsem.errors import PixelsemError, WorkerError
from pixelsem.images import resize_image, write_image
from pixelsem.models import Preprocessing, load_classifier
from pixelsem.models.inputs import fit_image
from pixelsem.records import EpochRecord
from pixelsem.stage import open_stage

pytestmark = pytest.mark.usefixtures("one_thread")

INPUT = Preprocessing((8, 8), 9)

#: The options of the tiny network, without those of images in memory.
PLAIN = [option for option in TINY if option not in ("--crop", "1")]
SIZES = [(13, 17), (9, 30), (24, 11), (8, 8), (40, 40), (8, 9), (31, 12)]


class Photos(Pictures):
    """Red and blue pictures of all sorts of sizes; every image's number is its label where ``numbered``."""

    def __init__(self, count: int, numbered: bool = False, seed: int = 0) -> None:
        super().__init__("photos", ("blue", "red"))
        rng = np.random.default_rng(seed)
        sides = [SIZES[number % len(SIZES)] for number in range(count)]
        self.images = [resize_image(picture(n % 2 == 1, rng, 16), side, "nearest") for n, side in enumerate(sides)]
        self.labels = list(range(count)) if numbered else [number % 2 for number in range(count)]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return self.images[index], self.labels[index]

    def entries(self) -> Iterator[str]:
        yield from map(str, range(len(self)))


def on_the_fly(pictures: Pictures, workers: int = 0, **reading: Any) -> OnTheFly:
    return OnTheFly(pictures, INPUT, ReadingSettings(workers=workers, **reading))


def drawn(examples: OnTheFly, epoch: int = 1, **settings: Any) -> list[Batch]:
    torch.manual_seed(0)
    return list(examples.training_batches(epoch, TrainSettings(**{"batch": 4, **settings}), CPU))


def same(first: list[Batch], second: list[Batch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


# Crops


@pytest.mark.parametrize("shape", [(60, 60), (40, 90)])
def test_crops_are_drawn_as_torchvision_draws_them(shape: tuple[int, int]) -> None:
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    blank = torch.zeros(3, *shape)
    rng = np.random.default_rng(0)
    count = 400
    theirs = np.array([RandomResizedCrop.get_params(blank, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    made = [draw_crop(rng, shape, 0.2, True) for _ in range(count)]
    ours = np.array([(crop.top, crop.left, crop.height, crop.width) for crop in made])
    assert (ours >= [0, 0, 1, 1]).all()
    assert (ours[:, :2] + ours[:, 2:] <= shape).all()
    for what in (lambda box: box[:, 2] * box[:, 3], lambda box: np.log(box[:, 3] / box[:, 2]), lambda box: box[:, 0],
                 lambda box: box[:, 1]):  # fmt: skip
        one, two = what(ours.astype(float)), what(theirs.astype(float))
        error = np.sqrt((one.var() + two.var()) / count)
        assert abs(one.mean() - two.mean()) < 4 * error
        assert one.std() == pytest.approx(two.std(), rel=0.2)
    assert 0.4 < np.mean([crop.mirrored for crop in made]) < 0.6
    assert not any(draw_crop(rng, shape, 0.2, False).mirrored for _ in range(50))


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10), (1, 50), (50, 1), (1, 1)])
def test_where_no_box_fits_it_is_the_middle_as_in_torchvision(shape: tuple[int, int]) -> None:
    from torchvision.transforms import RandomResizedCrop

    wanted = RandomResizedCrop.get_params(torch.zeros(3, *shape), [1.0, 1.0], [3 / 4, 4 / 3])
    crop = draw_crop(np.random.default_rng(0), shape, 1.0, False)
    assert (crop.top, crop.left, crop.height, crop.width) == tuple(wanted)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("crop", [Crop(3, 5, 20, 31), Crop(0, 0, 6, 5, True), Crop(10, 2, 30, 45, True)])
def test_a_crop_is_torchvisions_of_the_same_box(crop: Crop, interpolation: str) -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    mode = InterpolationMode(interpolation)
    box = (crop.top, crop.left, crop.height, crop.width)
    wanted = F.resized_crop(Image.fromarray(pixels), *box, [12, 16], mode)
    if crop.mirrored:
        wanted = F.hflip(wanted)
    assert np.array_equal(crop.image(pixels, (12, 16), interpolation), np.asarray(wanted))


def test_a_region_goes_with_its_crop() -> None:
    rng = np.random.default_rng(0)
    region = rng.random((40, 50)) < 0.5
    pixels = np.repeat(np.where(region, 200, 50).astype(np.uint8)[:, :, None], 3, axis=2)
    for _ in range(20):
        crop = draw_crop(rng, (40, 50), 0.1, True)
        assert np.array_equal(crop.region(region, (8, 9)), crop.image(pixels, (8, 9), "nearest")[:, :, 0] == 200)


# Batches


def test_batches_do_not_depend_on_the_workers() -> None:
    photos = Photos(23, numbered=True)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    alone = drawn(on_the_fly(photos))
    after = torch.get_rng_state()
    for workers in (1, 2):
        assert same(alone, drawn(on_the_fly(photos, workers)))
        assert torch.equal(torch.get_rng_state(), after), "torch's numbers are as after reading alone"
        fitted = list(on_the_fly(photos, workers).batches(5, CPU))
        assert same(fitted, list(on_the_fly(photos).batches(5, CPU)))
    assert not torch.equal(state, after)
    assert [len(batch[1]) for batch in alone] == [4, 4, 4, 4, 4, 3]
    labels = torch.cat([batch[1] for batch in alone])
    assert sorted(labels.tolist()) == list(range(23))
    assert labels.tolist() != list(range(23))
    assert all(batch[0].shape[1:] == (3, 8, 8) and batch[0].dtype == torch.uint8 for batch in alone)


def test_a_crop_depends_on_seed_epoch_and_image_alone() -> None:
    def by_number(batches: list[Batch]) -> Tensor:
        images, labels = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))  # type: ignore[misc]
        return images[labels.argsort()]

    photos = on_the_fly(Photos(12, numbered=True))
    first = by_number(drawn(photos))
    torch.manual_seed(77)  # another order, in batches of another size
    again = by_number(list(photos.training_batches(1, TrainSettings(batch=5), CPU)))
    assert torch.equal(first, again)
    for other in (drawn(photos, 2), drawn(photos, seed=1), drawn(on_the_fly(photos.pictures, min_area=0.9))):
        assert (by_number(other) != first).flatten(1).any(1).all()


def test_training_crops_are_those_of_the_pictures() -> None:
    """A picture whose pixels say where they are: what comes out is a part of it, most often not all."""
    rows, columns = np.mgrid[:64, :64].astype(np.uint8)
    photos = Photos(1)
    photos.images = [np.stack([4 * rows, 4 * columns, 0 * rows], 2)] * 200
    photos.labels = [0] * 200
    examples = OnTheFly(photos, Preprocessing((16, 16), 16, interpolation="nearest"), ReadingSettings(workers=0))
    images = torch.cat([batch[0] for batch in drawn(examples)])
    spread = [(image[n].max() - image[n].min()).item() / 4 + 1 for image in images for n in (0, 1)]
    areas = np.array(spread).reshape(-1, 2).prod(1) / 64**2
    assert (areas > 0.05).all()
    assert 0.3 < areas.mean() < 0.65  # (1 + 0.08) / 2 and what the margin of a nearest pixel takes off
    mirrored = (images[:, 1, 0, 0] > images[:, 1, 0, -1]).float().mean()
    assert 0.35 < mirrored < 0.65
    assert (images[:, 0, 0, 0] < images[:, 0, -1, 0]).all(), "never upside down"


def test_test_images_go_the_models_own_way() -> None:
    photos = Photos(9)
    for resize in ("crop", "squash"):
        (images, labels, regions), = on_the_fly(photos, resize=resize).batches(20, CPU)  # fmt: skip
        wanted = np.stack([fit_image(image, INPUT, resize) for image in photos.images])
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), wanted)
        assert labels.tolist() == photos.labels
        assert regions is None
    some = torch.tensor([7, 2, 3])
    chosen = torch.cat([batch[0] for batch in on_the_fly(photos, resize="squash").batches(2, CPU, some)])
    assert torch.equal(chosen, images[some])


def test_images_of_the_inputs_size_are_held_unless_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = Photos(5)
    assert photos.load((8, 8)) is None
    photos.images = [image[:8, :8] for image in photos.images]
    assert photos.load((8, 9)) is None
    held = photos.load((8, 8))
    assert held is not None
    assert np.array_equal(held[0].permute(0, 2, 3, 1).numpy(), np.stack(photos.images))
    assert torch.equal(next(on_the_fly(photos).batches(5, CPU))[0], held[0])
    monkeypatch.setattr(data_module, "_LIMIT", 5 * 8 * 8 * 3 - 1)
    assert photos.load((8, 8)) is None
    monkeypatch.setattr(data_module, "_LIMIT", 5 * 8 * 8 * 3)
    assert photos.load((8, 8)) is not None


def test_a_worker_that_dies_is_told() -> None:
    class Deadly(Photos):
        def read(self, index: int) -> tuple[NDArray[np.uint8], int]:
            if index == 3 and os.getpid() != here:
                os._exit(1)
            return super().read(index)

    here = os.getpid()
    with pytest.raises(WorkerError, match=r"reading photos: DataLoader worker.*give fewer --workers"):
        list(on_the_fly(Deadly(8), 1).batches(2, CPU))


def test_images_in_memory_are_told_from_others_without_a_second_copy() -> None:
    images = torch.randint(256, (2500, 3, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.arange(2500)
    pieces = list(InMemory(images, labels).contents())
    assert b"".join(pieces) == images.numpy().tobytes() + labels.numpy().tobytes()
    assert max(map(len, pieces[:-1])) <= images.numel() / 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(11, "Resource temporarily unavailable"),
        RuntimeError("Too many open files. Communication with the workers is no longer possible."),
        RuntimeError("received 0 items of ancdata"),
    ],
)
def test_workers_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(self: Any) -> None:
        raise error

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", refuse)
    with pytest.raises(WorkerError, match=r"reading photos: .*give fewer --workers"):
        list(on_the_fly(Photos(8), 2).batches(2, CPU))
    assert len(list(on_the_fly(Photos(8)).batches(2, CPU))) == 4


# Training


@pytest.mark.parametrize("method", ["standard", "fast"])
def test_interrupted_and_resumed_is_as_never_interrupted(tmp_path: Path, method: str) -> None:
    settings = TrainSettings(**QUICK | {"method": method, "robust_sample": 6, "robust_steps": 2, "epochs": 3})
    photos, held = Photos(30), on_the_fly(Photos(14, seed=1))

    def steps(classifier: Any, name: str, workers: int) -> Iterator[EpochRecord | float]:
        return train(classifier, on_the_fly(photos, workers), held, settings, tmp_path / name, CPU)

    whole, broken, resumed = tiny(), tiny(), tiny()
    log = [step for step in steps(whole, "whole.pt", 0) if isinstance(step, EpochRecord)]
    stopped = steps(broken, "c.pt", 1)
    while not isinstance(next(stopped), EpochRecord):
        pass
    assert isinstance(next(stopped), float)
    stopped.close()  # in the second epoch
    torch.manual_seed(99)
    again = [step for step in steps(resumed, "c.pt", 2) if isinstance(step, EpochRecord)]
    assert same_weights(resumed, whole)
    assert not same_weights(broken, whole)
    told = ("epoch", "loss", "train_accuracy", "test_accuracy", "robust_accuracy", "fgsm_accuracy")
    assert [[getattr(r, name) for name in told] for r in again] == [[getattr(r, name) for name in told] for r in log]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of red and blue pictures of several sizes; the folder above is entered."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    for split, count in (("train", 21), ("val", 7)):
        for number in range(count):
            for name in ("red", "blue"):
                image = resize_image(picture(name == "red", rng, 16), SIZES[number % len(SIZES)], "nearest")
                write_image(tmp_path / f"photos/{split}/{name}/{number}.png", image)
    return tmp_path / "photos"


def test_photos_of_any_size_are_learned(photos: Path) -> None:
    summary = json.loads(defend("--data", "photos", "--workers", "0", "--json", "-o", "out", options=PLAIN).stdout)
    assert summary["counts"] == {"images": 42, "test_images": 14, "epochs": 6}
    assert summary["test_accuracy"] >= 13 / 14
    card = Path("out/model.py-make.md").read_text()
    assert "| crop | random, at least 0.08 of the area, resized |" in card
    assert "| test images | resized and cropped |" in card


def test_any_number_of_workers_makes_the_same_network(photos: Path) -> None:
    plain = ["--data", "photos", "--epochs", "1"]
    defend(*plain, "--workers", "2", "-o", "out", options=PLAIN)
    defend(*plain, "--workers", "0", "-o", "alone", options=PLAIN)
    defend("--config", "out/stage.yaml", "-o", "again", options=[])
    weights = [(Path(name) / "model.py-make.safetensors").read_bytes() for name in ("out", "alone", "again")]
    assert weights[0] == weights[1] == weights[2]
    assert len({open_stage(name).info.identity for name in ("out", "alone", "again")}) == 1
    # How the images are read is part of what the run is.
    for option in (["--resize", "squash"], ["--min-area", "0.5"]):
        assert "holds another run" in defend(*plain, *option, "-o", "out", code=2, options=PLAIN).stderr
    (photos / "train/red/0.png").write_bytes((photos / "train/red/1.png").read_bytes())
    assert "holds another run" in defend(*plain, "-o", "out", code=2, options=PLAIN).stderr


def test_the_accuracy_is_that_of_evaluate(photos: Path) -> None:
    from test_training import CliRunner, app

    summary = json.loads(
        defend("--data", "photos", "--epochs", "1", "--resize", "squash", "--json", options=PLAIN).stdout
    )
    told = ["-m", "model.py:make", "--weights", summary["weights"], "-d", "photos", "--resize", "squash"]
    measured = CliRunner().invoke(app, ["evaluate", "accuracy", *told, "--json", "-q"])
    assert measured.exit_code == 0, measured.output
    assert f"{summary['test_accuracy']}" in measured.stdout


def test_only_one_split_of_other_sizes(photos: Path) -> None:
    for path in photos.glob("train/*/*.png"):
        write_image(path, picture(path.parent.name == "red", np.random.default_rng(0)))
    result = defend("--data", "photos", "--workers", "0", "--resize", "squash", "--epochs", "1", "-o", "out")
    assert "test: images of other sizes than 8×8" in result.stderr
    assert "train: images of other sizes" not in result.stderr
    assert "| crop | 1 |" in Path("out/model.py-make.md").read_text()
    assert "--min-area goes with" in defend("--data", "photos", "--min-area", "0.5", code=2).stderr


def test_masks_go_with_photos(photos: Path) -> None:
    method = ["--method", "fast", "--robust-sample", "4", "--robust-steps", "1", "--epochs", "1", "--workers", "1"]
    there = ["--region", "foreground", "--masks", "masks", "-o", "out"]
    for path in photos.rglob("*.png"):
        inside = np.zeros(Image.open(path).size[::-1], np.uint8)
        inside[: len(inside) // 2] = 255
        write_image(Path("masks") / path.relative_to(photos), inside)
    defend("--data", "photos", *method, *there, options=PLAIN)
    assert open_stage("out").info.inputs == {"data": "../photos", "masks": "../masks"}
    write_image(Path("masks/train/red/0.png"), np.zeros((3, 3), np.uint8))
    refused = defend("--data", "photos", *method, *there[:-1], "other", code=1, options=PLAIN)
    assert "masks/train/red/0.png: is 3×3, its image 17×13; masks must have the size of their images" in refused.stderr
    Path("masks/val/red/5.png").unlink()
    refused = defend("--data", "photos", *method, *there[:-1], "third", code=1, options=PLAIN)
    assert refused.stderr.splitlines()[-1] == "pixelsem: val/red/5.png: has no mask in masks"
    assert not Path("third").exists()


def test_where_a_photo_is_attacked_goes_with_its_crop(photos: Path) -> None:
    from pixelsem.engine.regions import RegionReader
    from pixelsem.regions.masks import MaskSource

    rng = np.random.default_rng(0)
    for path in photos.rglob("*.png"):
        inside = rng.random(Image.open(path).size[::-1]) < 0.5
        write_image(path, np.repeat(np.where(inside, 200, 50).astype(np.uint8)[:, :, None], 3, axis=2))
        write_image(Path("masks") / path.relative_to(photos), inside)
    train_set, _ = open_folders(photos)
    regions = RegionReader(MaskSource.open(Path("masks")), "foreground", train_set.ids())
    nearest = Preprocessing((8, 8), 8, interpolation="nearest")
    examples = OnTheFly(train_set, nearest, ReadingSettings(workers=2, resize="squash"), regions)
    assert same(drawn(pickle.loads(pickle.dumps(examples))), drawn(examples))  # where workers are not forks
    for images, _, where in [*drawn(examples), *examples.batches(10, CPU)]:
        assert where is not None
        assert torch.equal(where, images[:, 0] == 200)
        assert 0.2 < where.float().mean() < 0.8


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_photo_that_cannot_be_read_ends_it_with_one_line(photos: Path, workers: str) -> None:
    (photos / "train/red/9.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    result = defend("--data", "photos", "--workers", workers, code=1, options=[*PLAIN, "-q"])
    (line,) = result.stderr.splitlines()
    assert line.startswith("pixelsem: photos/train/red/9.png: ")


def test_a_picture_in_no_class_is_told(photos: Path) -> None:
    (photos / "train/red/9.png").rename(photos / "train/9.png")
    told = "photos/train/9.png: in no folder of a class; expected train/CLASS/… (ImageFolder)"
    assert defend("--data", "photos", code=2).stderr == f"pixelsem: {told}\n"


def test_a_single_class_is_refused(photos: Path) -> None:
    for split in ("train", "val"):
        shutil.rmtree(photos / split / "blue")
    result = defend("--data", "photos", code=2)
    assert result.stderr == "pixelsem: photos/train: holds one class, red; a classifier needs two or more\n"


@pytest.mark.parametrize("linked", [("red",), ("red", "blue")])
def test_a_class_that_is_a_link_is_told(photos: Path, linked: tuple[str, ...]) -> None:
    for name in linked:
        (photos / "train" / name).rename(photos.parent / name)
        (photos / "train" / name).symlink_to(photos.parent / name)
    told = f"photos/train/{min(linked)}: a link to a folder, which is not followed; link its files, or copy it"
    assert defend("--data", "photos", code=2).stderr == f"pixelsem: {told}\n"


def test_crops_of_the_other_kind_are_refused(photos: Path) -> None:
    result = defend("--data", "photos", "--crop", "2", code=2, options=PLAIN)
    assert result.stderr.splitlines()[-1].startswith("pixelsem: --crop goes with training images of the model's input")
    assert not Path("pixelsem-run").exists()


def test_a_head_for_other_classes_is_refused(photos: Path) -> None:
    weights = json.loads(defend("--data", "photos", "--epochs", "1", "--json", options=PLAIN).stdout)["weights"]
    for split in ("train", "val"):
        write_image(photos / split / "green/0.png", np.zeros((9, 9, 3), np.uint8))
    told = "is for 2 classes, photos/train has 3; "
    result = defend("--data", "photos", code=2)
    assert result.stderr == f"pixelsem: model.py:make: {told}let it return 3 logits\n"
    Path("model.py").write_text(FACTORY.replace("4, 2", "4, 3").replace('"red")', '"green", "red")'))
    result = defend("--data", "photos", "--weights", weights, code=2)
    assert result.stderr == (
        f"pixelsem: {weights}: {told}give weights for these classes, or none to start from random ones\n"
    )


# torchvision


@pytest.fixture
def svhn(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, NDArray[np.uint8]]:
    """Put a small SVHN on a server that torchvision takes for the real one; return its images by split, N×32×32×3."""
    from torchvision.datasets import SVHN

    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(FACTORY.replace("(8, 8), 8", "(32, 32), 32").replace("4, 2", "4, 10").replace(
        '("blue", "red")', "tuple('0123456789')"))  # fmt: skip
    folder, address = served
    rng = np.random.default_rng(0)
    images, files = {}, {}
    for split, count in (("train", 20), ("test", 11)):
        images[split] = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        name = f"{split}_32x32.mat"
        digits = np.arange(count)[:, None] % 10 + 1  # in the file 10 stands for zero
        savemat(folder / name, {"X": images[split].transpose(1, 2, 3, 0), "y": digits.astype(np.uint8)})
        md5 = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
        files[split] = [f"{address}/{name}", name, md5]
    monkeypatch.setattr(SVHN, "split_list", files)
    return images


def test_svhn_is_downloaded_and_trained_on(svhn: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    asked = ["--data", "torchvision:svhn", "--data-root", "sets"]
    missing = defend(*asked, code=2).stderr
    assert missing.startswith("pixelsem: torchvision:svhn: torchvision finds it missing or damaged in sets (")
    assert missing.endswith("; give its --data-root, or --download\n")
    assert missing.count("\n") == 1
    summary = json.loads(defend(*asked, "--download", "--epochs", "1", "--json", "-o", "out").stdout)
    assert summary["counts"] == {"images": 20, "test_images": 11, "epochs": 1}
    assert load_classifier("model.py:make", weights=summary["weights"]).class_names == tuple("0123456789")
    assert open_stage("out").info.inputs == {"data": "../sets"}
    (tmp_path / "served/train_32x32.mat").unlink()  # it is there now
    (tmp_path / "elsewhere").mkdir()
    defend("--config", "out/stage.yaml", "-o", "elsewhere/again", options=[])
    assert open_stage("elsewhere/again").info.identity == open_stage("out").info.identity
    train_set, test_set = open_torchvision("SVHN", Path("sets"), False)
    held, tested = train_set.load((32, 32)), test_set.load((32, 32))
    assert held is not None
    assert tested is not None
    assert np.array_equal(held[0].permute(0, 2, 3, 1).numpy(), svhn["train"])
    assert held[1].tolist() == [(number + 1) % 10 for number in range(20)]
    assert np.array_equal(tested[0].permute(0, 2, 3, 1).numpy(), svhn["test"])
    assert np.array_equal(train_set.read(3)[0], svhn["train"][3])
    assert train_set.load((8, 8)) is None
    Path("sets/test_32x32.mat").write_bytes(b"damaged")
    assert "missing or damaged in sets" in defend(*asked, code=2).stderr


def test_a_download_that_fails_is_one_line(svhn: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    (tmp_path / "served/test_32x32.mat").unlink()
    result = defend("--data", "torchvision:svhn", "--data-root", "sets", "--download", code=2)
    assert "torchvision:svhn: could not be downloaded to sets (HTTP Error 404" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("pixelsem: torchvision:svhn: ")
    assert not Path("pixelsem-run").exists()


def test_stl10_of_another_size_is_read_on_the_fly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda *_: True)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 96, 96, 3), np.uint8)
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())  # columns first
        (folder / f"{split}_y.bin").write_bytes(bytes([1, 2, 3, 10, 5, 6]))
    (folder / "fold_indices.txt").write_text("0 1\n" * 10)
    train_set, test_set = open_torchvision("stl10", tmp_path, False)
    assert train_set.class_names == tuple("0123456789")
    assert train_set.load((8, 8)) is None
    batch = next(on_the_fly(test_set, 2, resize="squash").batches(6, CPU))
    assert batch[1].tolist() == [0, 1, 2, 9, 4, 5]
    wanted = np.stack([fit_image(image, INPUT, "squash") for image in images])
    assert np.array_equal(batch[0].permute(0, 2, 3, 1).numpy(), wanted)
    with pytest.raises(PixelsemError, match="images have no names that masks could have; give a folder of classes"):
        train_set.ids()


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> NDArray[np.uint8]:
    """Write small files of CIFAR-10 or -100 as torchvision reads them; return the images, N×32×32×3."""
    from torchvision import datasets

    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    known = getattr(datasets, kind)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    key = "fine_labels" if kind == "CIFAR100" else "labels"
    folder = root / known.base_folder
    folder.mkdir(parents=True)
    content = {"data": images.transpose(0, 3, 1, 2).reshape(5, -1), key: [0, 1, 2, 1, 0]}
    for name, _ in known.train_list + known.test_list:
        (folder / name).write_bytes(pickle.dumps(content))
    names = ["apple", "bear", "cup"]
    (folder / known.meta["filename"]).write_bytes(pickle.dumps({known.meta["key"]: names}))
    return images


def test_cifar_100_and_the_folder_of_cifar_10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = cifar(tmp_path / "sets", monkeypatch, "CIFAR100")
    train_set, test_set = open_torchvision("cifar100", tmp_path / "sets", False)
    assert train_set.class_names == test_set.class_names == ("apple", "bear", "cup")
    held = train_set.load((32, 32))
    assert held is not None
    assert np.array_equal(held[0].permute(0, 2, 3, 1).numpy(), images)
    assert held[1].tolist() == [0, 1, 2, 1, 0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(FACTORY.replace("(8, 8), 8", "(32, 32), 32").replace("4, 2", "4, 3").replace(
        '("blue", "red")', '("apple", "bear", "cup")'))  # fmt: skip
    cifar(tmp_path / "ten", monkeypatch, "CIFAR10")
    for told in (["--data", "ten"], ["--data", "torchvision:cifar10", "--data-root", "ten"]):
        defend(*told, "--epochs", "1", "-o", "out")  # the second finds the first's run
    assert open_stage("out").info.counts == {"images": 25, "test_images": 5, "epochs": 1}


def test_imagenets_folder_is_read_by_our_own_reader(tmp_path: Path) -> None:
    names = {"n01": ("tench", "Tinca tinca"), "n02": ("crane",), "n03": ("crane",)}
    torch.save((names, []), tmp_path / "meta.bin")
    for split, count in (("train", 2), ("val", 1)):
        for level, wnid in enumerate(names):
            for number in range(count):
                image = np.full((10 + level, 12, 3), 50 * level, np.uint8)
                (tmp_path / split / wnid).mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(tmp_path / split / wnid / f"{number}.JPEG")
    train_set, test_set = open_torchvision("imagenet", tmp_path, False)
    assert train_set.class_names == ("tench", "crane", "crane")
    assert (len(train_set), len(test_set)) == (6, 3)
    image, label = test_set.read(2)
    assert (image.shape, image.dtype, label) == ((12, 12, 3), np.uint8, 2)
    assert image.mean() == 100
    (tmp_path / "val/n01/0.JPEG").write_bytes(b"no image")
    with pytest.raises(PixelsemError, match=r"val/n01/0\.JPEG: not an image"):
        next(on_the_fly(test_set, 1).batches(3, CPU))
    with pytest.raises(PixelsemError, match="torchvision:imagenet: torchvision cannot download it"):
        open_torchvision("imagenet", tmp_path, True)
    with pytest.raises(
        PixelsemError, match=r"missing or damaged .*; give its --data-root; torchvision cannot download"
    ):
        open_torchvision("imagenet", tmp_path / "val", False)


def test_names_that_are_none(photos: Path) -> None:
    told = defend("--data", "torchvision:cifar1000", code=2).stderr
    assert told == "pixelsem: torchvision:cifar1000: no such data set; did you mean torchvision:cifar100?\n"
    assert "there are cifar10, cifar100, " in defend("--data", "torchvision:?", code=2).stderr


@pytest.mark.parametrize("name", SETS)
def test_torchvision_takes_what_it_is_told(name: str) -> None:
    from torchvision import datasets

    known = SETS[name]
    signature = inspect.signature(getattr(datasets, known.kind))
    for split in (known.train, known.test):
        signature.bind("root", **split, **({"download": True} if known.downloads else {}))
    assert known.train != known.test


def test_images_that_nobody_labelled_are_not_what_is_tested_on(tmp_path: Path) -> None:
    """As below ILSVRC: ``test`` holds images, ``val`` folders of classes."""
    (tmp_path / "test").mkdir()
    write_image(tmp_path / "test" / "1.png", np.zeros((8, 8, 3), np.uint8))
    assert find_split(tmp_path, "test") == tmp_path / "test"
    (tmp_path / "val" / "cat").mkdir(parents=True)
    assert find_split(tmp_path, "test") == tmp_path / "val"
    (tmp_path / "test" / "cat").mkdir()
    assert find_split(tmp_path, "test") == tmp_path / "test"
    assert find_split(tmp_path, "train") is None
