"""Class activation on networks whose maps are known, and against an independent implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from pixelsem.attacks.settings import RegionOptions
from pixelsem.cli.app import app
from pixelsem.cli.stages import masks_identity
from pixelsem.engine.regions import RegionMaker
from pixelsem.errors import InputError, PixelsemError
from pixelsem.images import read_mask, write_image
from pixelsem.models import Classifier, Preprocessing, fit_image, fit_mask
from pixelsem.models.registry import untrained
from pixelsem.records import SegmentRecord
from pixelsem.regions.cam import Attention, Focus, Method, activation_maps, class_activation, find_focus, open_gradcam
from pixelsem.regions.masks import MaskSource
from pixelsem.regions.settings import CamSettings
from pixelsem.stage import open_stage


def classifier(network: nn.Module, size: int = 24, classes: int = 3, resize: int | None = None) -> Classifier:
    """Wrap a network whose input is not normalised."""
    names = tuple("abcdefghij"[:classes])
    preprocessing = Preprocessing((size, size), resize or size)
    return Classifier(network.eval(), name="net", class_names=names, preprocessing=preprocessing)


def noise(count: int = 2, size: int = 24, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def colours() -> nn.Sequential:
    """Return a network whose two features are red and green, and whose classes are red, green and red − green."""
    conv, linear = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 3)
    conv.weight.data = torch.eye(3)[:2, :, None, None].clone()
    linear.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), linear)


class Pooled(nn.Module):
    """Convolutions with strides, a functional ReLU (in place or not), an average as functions, one linear layer."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.fc = nn.Linear(12, 3)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        self.features = F.relu(self.two(F.relu(self.one(x), inplace=self.inplace)), inplace=self.inplace)
        out: Tensor = self.fc(self.features.mean([2, 3]))
        return out


class Deep(nn.Module):
    """Global pooling, but a head with a ReLU in it: the logits are not linear in the averages."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class InPlace(nn.Module):
    """A convolution whose output is overwritten by its activation."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.relu, self.fc = nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(inplace), nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.adaptive_max_pool2d(self.relu(self.conv(x)), 4).flatten(1))
        return out


def scaled(maps: Tensor, size: int) -> Tensor:
    """Enlarge maps [N, h, w] and divide each by its maximum."""
    large = F.interpolate(maps[:, None].clamp(min=0), size=(size, size), mode="bilinear")[:, 0]
    return large / large.amax((1, 2), keepdim=True)


# What is known


@pytest.mark.parametrize("method", ["cam", "gradcam"])
def test_a_network_of_colours(method: Method) -> None:
    images = noise(3)
    red, green = images[:, 0], images[:, 1]
    found = class_activation(classifier(colours()), images, torch.tensor([0, 1, 2]), method=method)
    assert found.dtype == torch.float32
    for map_, expected in zip(found, (red[0], green[1], (red[2] - green[2]).clamp(min=0)), strict=True):
        torch.testing.assert_close(map_, expected / expected.max(), rtol=0, atol=1e-6)


def test_bytes_are_the_same_images() -> None:
    net, classes = classifier(colours()), torch.tensor([0, 2])
    eight = (noise() * 255).round().to(torch.uint8)
    from_bytes = class_activation(net, eight, classes)
    torch.testing.assert_close(from_bytes, class_activation(net, eight.float() / 255, classes), rtol=0, atol=0)


def test_no_evidence_is_no_heat() -> None:
    images = torch.zeros(2, 3, 24, 24)
    images[:, 1] = 0.5  # green only: nothing speaks for "red − green"
    found = class_activation(classifier(colours()), images, torch.tensor([2, 1]))
    assert found[0].eq(0).all()
    assert found[1].eq(1).all()


@pytest.mark.parametrize("inplace", [False, True])
def test_cam_goes_through_the_weights_of_the_last_layer(inplace: bool) -> None:
    """Zhou et al. 2016: Σₖ wₖ A⁽ᵏ⁾; and Grad-CAM at that map is the same up to the scale."""
    network = Pooled(inplace)
    images, classes = noise(4), torch.tensor([0, 1, 2, 0])
    network(images)
    by_hand = torch.einsum("nk,nkhw->nhw", network.fc.weight[classes], network.features)
    expected = scaled(by_hand.detach(), 24)
    net = classifier(network)
    assert find_focus(net, "cam").method == "cam"
    torch.testing.assert_close(class_activation(net, images, classes, method="cam"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["allconv", "nin"])
def test_cam_of_a_network_that_ends_in_a_convolution_is_the_class_own_map(name: str) -> None:
    torch.manual_seed(0)
    net = untrained(name).eval()
    images, classes = noise(3, 32), torch.tensor([1, 5, 7])
    last = net.network[:-2]  # without the pooling
    net.network[-3].bias.data.fill_(0.1)  # as initialised, nothing speaks for some classes
    maps = last((images - net.mean) / net.std)[torch.arange(3), classes].detach()
    found = class_activation(net, images, classes, method="cam")
    kept = maps.amax((1, 2)) > 0
    assert kept.any()
    torch.testing.assert_close(found[kept], scaled(maps, 32)[kept], rtol=0, atol=1e-5)


# An independent implementation


@pytest.mark.parametrize(
    ("name", "layer"),
    [("vgg11", None), ("resnet18", None), ("allconv", None), ("nin", None), ("resnet18", "7"), ("allconv", "12")],
)
def test_captum_agrees(name: str, layer: str | None) -> None:
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(1)
    net = untrained(name).eval()
    images, classes = noise(3, 32, 1), torch.tensor([0, 4, 9])
    module = net.network.get_submodule(layer or find_focus(net).layer)
    theirs = attr.LayerGradCam(net, module).attribute(images, classes, relu_attributions=True)[:, 0].detach()
    found = class_activation(net, images, classes, layer)
    shown = theirs.amax((1, 2)) > 0
    assert shown.any()
    torch.testing.assert_close(found[shown], scaled(theirs, 32)[shown], rtol=0, atol=1e-4)
    assert found[~shown].eq(0).all()


# Which map


def test_layers_of_known_networks() -> None:
    found = {name: find_focus(untrained(name).eval()).layer for name in ("allconv", "nin", "vgg16", "resnet18")}
    # The ReLU before the convolution that makes the classes; the last ReLU; the last block.
    assert found == {"allconv": "25", "nin": "27", "vgg16": "42", "resnet18": "10"}


@pytest.mark.parametrize(
    ("name", "gradcam", "cam"),
    [
        ("squeezenet1_1", "features", ("classifier.2", "cam")),
        ("alexnet", "features.11", ("features.11", "gradcam")),
        ("mobilenet_v3_small", "features", ("features", "gradcam")),
    ],
)
def test_layers_of_torchvision(name: str, gradcam: str, cam: tuple[str, str]) -> None:
    import torchvision

    net = classifier(torchvision.models.get_model(name, weights=None), 64, 1000)
    assert find_focus(net) == Focus(gradcam, "gradcam")
    focus = find_focus(net, "cam")
    assert (focus.layer, focus.method) == cam


def test_cam_of_a_deep_head_is_gradcam() -> None:
    net = classifier(Deep())
    assert find_focus(net, "cam") == find_focus(net) == Focus("body", "gradcam")
    images, classes = noise(), torch.tensor([0, 1])
    same = class_activation(net, images, classes, method="cam")
    assert torch.equal(same, class_activation(net, images, classes))


def test_a_layer_of_ones_own() -> None:
    net = classifier(Pooled())
    images, classes = noise(), torch.tensor([0, 1])
    last, first = (class_activation(net, images, classes, layer) for layer in ("two", "one"))
    assert not torch.allclose(last, first, atol=0.05)
    assert find_focus(net, "cam", "one") == Focus("one", "gradcam")
    assert find_focus(classifier(colours()), "cam", "1") == Focus("1", "cam")


def test_what_overwrites_a_layer_does_not_change_its_map() -> None:
    images, classes = noise(), torch.tensor([0, 1])
    kept, overwritten = (
        class_activation(classifier(InPlace(inplace)), images, classes, "conv") for inplace in (False, True)
    )
    assert torch.equal(kept, overwritten)
    assert find_focus(classifier(InPlace(True))).layer == "relu"


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("tow", "has no module 'tow'; there are two, one"),
        ("fc", r"fc of net gives \[4, 3\], not a feature map"),
        ("", "has no module ''"),
    ],
)
def test_a_layer_that_is_none(layer: str, says: str) -> None:
    with pytest.raises(PixelsemError, match=says) as caught:
        class_activation(classifier(Pooled()), noise(), torch.tensor([0, 1]), layer)
    assert "\n" not in str(caught.value)


def test_a_network_without_convolutions(tmp_path: Path) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 3))
    for method in ("cam", "gradcam"):
        with pytest.raises(PixelsemError, match=r"net: has no convolution .*--layer"):
            find_focus(classifier(flat), method)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_torchscript_has_no_modules_to_look_at() -> None:
    script = classifier(torch.jit.trace(Pooled(), noise()))  # type: ignore[no-untyped-call]
    for layer in (None, "two"):
        with pytest.raises(PixelsemError, match=r"TorchScript|has no module 'two'"):
            find_focus(script, "cam", layer)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
def test_an_exported_program_has_cam_alone() -> None:
    images, classes = noise(), torch.tensor([0, 1])
    batch = ({0: torch.export.Dim("batch")},)
    exported = nn.Sequential(torch.export.export(Pooled(), (images,), dynamic_shapes=batch).module())
    exported.eval = lambda: exported  # type: ignore[method-assign]
    with pytest.raises(PixelsemError, match="has no convolution"):
        find_focus(classifier(exported))
    found = class_activation(classifier(exported), images, classes, method="cam")
    torch.testing.assert_close(found, class_activation(classifier(Pooled()), images, classes, method="cam"))


# Batches


@pytest.mark.parametrize("method", ["cam", "gradcam"])
def test_an_image_does_not_depend_on_the_others(method: Method) -> None:
    net = classifier(Pooled())
    images, classes = noise(7), torch.arange(7) % 3
    together = class_activation(net, images, classes, method=method)
    for number in range(7):
        alone = class_activation(net, images[number : number + 1], classes[number : number + 1], method=method)
        torch.testing.assert_close(together[number], alone[0], rtol=0, atol=1e-5)


def test_nothing_is_left_behind() -> None:
    """No hooks, no gradients, and it runs where others switched gradients off."""
    net = classifier(Pooled())
    images, classes = noise(), torch.tensor([0, 1])
    before = class_activation(net, images, classes, "two")
    with torch.inference_mode():
        inside = class_activation(net, noise(), classes.clone(), "two")
    assert torch.equal(before, inside)
    assert not before.requires_grad
    assert all(not module._forward_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_class_may_depend_on_the_logits() -> None:
    net, images = classifier(Pooled()), noise(5)
    top = net(images).argmax(1)
    chosen = activation_maps(net, images, find_focus(net), lambda logits: logits.argmax(1))
    torch.testing.assert_close(chosen, class_activation(net, images, top))


# As a segmenter

MODEL = """
import torch
from torch import nn

def make():
    conv, linear = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
    conv.weight.data = torch.tensor([[1.0, -1, 0], [-1.0, 1, 0]])[:, :, None, None]  # redder, greener
    linear.weight.data = torch.eye(2)
    return nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
"""

OPTIONS = ["-m", "model.py:make", "--input-size", "20", "--classes", "names.txt"]


def scene(height: int, width: int, redness: int = 200) -> NDArray[np.uint8]:
    """Return grey with a ramp of red on the left half's upper part, and a green square below it on the right."""
    image = np.full((height, width, 3), 100, np.uint8)
    image[: height // 2, : width // 2, 0] = np.linspace(100, redness, width // 2).astype(np.uint8)
    image[-height // 3 :, -width // 3 :, 1] = 250
    return image


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    Path("names.txt").write_text("red\ngreen\n")
    write_image(tmp_path / "photos/red/wide.png", scene(20, 40))
    write_image(tmp_path / "photos/red/small.png", scene(20, 20))
    write_image(tmp_path / "photos/other/tall.png", scene(60, 30))
    return tmp_path / "photos"


def call(*arguments: str | Path, method: str = "cam", code: int = 0) -> Any:
    command = ["segment", *map(str, arguments), "--method", method]
    result = CliRunner().invoke(app, command, prog_name="pixelsem")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def masks(stage: str | Path) -> dict[str, tuple[SegmentRecord, NDArray[np.int32]]]:
    opened = open_stage(stage)
    return {record.id: (record, read_mask(opened.resolve(record.mask))) for record in opened.segment_records()}


def test_masks_are_soft_and_cut_at_the_threshold(photos: Path) -> None:
    stage = call("photos", *OPTIONS).stdout.strip()
    for record, values in masks(stage).values():
        assert (record.kind, record.threshold) == ("soft", 4 / 12)
        assert values.max() == 65535
        assert record.coverage == pytest.approx((values >= 65535 / 3).mean())
    record, values = masks(stage)["red/small.png"]
    image = scene(20, 20).astype(float)
    redder = (image[..., 0] - image[..., 1]).clip(min=0)
    assert np.abs(values / 65535 - redder / redder.max()).max() <= 1 / 65535
    assert 0 < record.coverage < (values > 0).mean()
    assert open_stage(stage).info.model is not None
    assert open_stage(stage).info.model["layer"] == "1"  # type: ignore[index]
    assert open_stage(stage).info.model["activation"] == "cam"  # type: ignore[index]


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_the_foreground_of_an_attack_follows_the_threshold(photos: Path, threshold: float) -> None:
    stage = Path(call("photos", *OPTIONS, "--threshold", str(threshold)).stdout.strip())
    image = scene(20, 20)
    _, values = masks(stage)["red/small.png"]
    maker = RegionMaker(RegionOptions(region="all"), MaskSource.open(stage), 0)
    regions, _ = maker.of("red/small.png", image.shape, image, Preprocessing((20, 20), 20))
    assert (regions["foreground"] == (values >= threshold * 65535)).all()
    assert (regions["background"] == ~regions["foreground"]).all()
    assert 0 < regions["foreground"].sum() < (values > 0).sum()


def test_attacks_on_other_foregrounds_are_other_runs(photos: Path) -> None:
    stages = [Path(call("photos", *OPTIONS, "--threshold", t, "-o", f"at{t}").stdout.strip()) for t in ("0.5", "0.4")]
    assert all((masks(stages[0])[key][1] == masks(stages[1])[key][1]).all() for key in masks(stages[0]))
    assert masks_identity(stages[0]) != masks_identity(stages[1])


def test_tau_clears_what_is_below(photos: Path) -> None:
    whole = masks(call("photos", *OPTIONS).stdout.strip())
    cleared = masks(call("photos", *OPTIONS, "--tau", "0.6").stdout.strip())
    for key, (_, values) in whole.items():
        assert (values[values > 0] < 0.6 * 65535).sum() > 0
        assert (cleared[key][1] == np.where(values >= 0.6 * 65535, values, 0)).all()


def test_whose_evidence(photos: Path) -> None:
    """By its folder, by the model (for which the square is the most), or by a table."""
    Path("labels.csv").write_text("id,class\nred/small.png,green\nother/tall.png,red\n")
    square = scene(20, 20)[..., 1] == 250
    given, by_folder = masks(call("photos", *OPTIONS).stdout.strip())["red/small.png"]
    predicted, by_model = masks(call("photos", *OPTIONS, "--labels", "predicted").stdout.strip())["red/small.png"]
    assert (given.class_, predicted.class_) == ("red", "green")
    assert not by_folder[square].any()
    assert (by_model == np.where(square, 65535, 0)).all()
    result = call("photos", *OPTIONS, "--labels", "labels.csv", "-o", "table", code=1)
    assert "labels.csv: has no line for 'red/wide.png'" in result.stderr
    table = masks("table")
    assert set(table) == {"red/small.png", "other/tall.png"}
    assert {key: record.class_ for key, (record, _) in table.items()} == {
        "red/small.png": "green", "other/tall.png": "red",
    }  # fmt: skip
    assert (table["red/small.png"][1] == by_model).all()
    assert table["other/tall.png"][1][40:, 20:].max() == 0
    Path("elsewhere").mkdir()
    (Path("elsewhere") / "again.csv").write_text(Path("labels.csv").read_text())
    again = call("photos", *OPTIONS, "--labels", "elsewhere/again.csv", "-o", "again", code=1)
    assert "has no line" in again.stderr
    assert open_stage("again").info.identity == open_stage("table").info.identity


def test_only_what_matters_makes_another_run(photos: Path) -> None:
    first = call("photos", *OPTIONS).stdout.strip()
    before = {key: values for key, (_, values) in masks(first).items()}
    assert call("photos", *OPTIONS, "--batch-size", "1", "--device", "cpu", "--layer", "1").stdout.strip() == first
    others = [["--threshold", "0.2"], ["--tau", "0.1"], ["--resize", "squash"], ["--labels", "predicted"]]
    others += [["--layer", "0"], ["--scale", "2"]]
    stages = {call("photos", *OPTIONS, *other).stdout.strip() for other in others}
    assert len(stages | {first}) == len(others) + 1
    for key, (_, values) in masks(call("photos", *OPTIONS, "--batch-size", "1", "-o", "single").stdout.strip()).items():
        assert np.abs(values - before[key]).max() <= 1


def test_stage_file_repeats_the_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("labels.csv").write_text(
        "".join(f"{name},1\n" for name in ("red/wide.png", "red/small.png", "other/tall.png"))
    )
    call("photos", *OPTIONS, "--labels", "labels.csv", "-o", "first", method="gradcam")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    call("--config", "../first/stage.yaml", "-m", "../model.py:make", "-o", "again", method="gradcam")
    assert open_stage("../first").info.identity == open_stage("again").info.identity


def test_what_the_model_is_told_about(photos: Path) -> None:
    assert "cam of model.py:make at 1" in call("photos", *OPTIONS).stderr
    told = call("photos", "-m", "vgg11", "--weights", "none", "--labels", "predicted").stderr
    assert "vgg11: its logits are not linear in the averages of one map; gradcam at 27 instead" in told
    assert "vgg11 has no trained weights" in told
    assert "--layer: model.py:make has no module 'conv9'; there are 1, 0" in call(
        "photos", *OPTIONS, "--layer", "conv9", code=2
    ).stderr  # fmt: skip


def test_a_mask_lies_on_its_image(photos: Path) -> None:
    """The crop of a wide image is its middle; the model's map is found again there, and nothing outside."""
    settings = CamSettings(model="model.py:make", input_size=20, labels="predicted")
    segmenter = open_gradcam(settings)
    image = scene(80, 160, 255)
    preprocessing = Preprocessing((20, 20), 20)
    (mask,) = segmenter([image], ["a.png"])
    assert mask.shape == (80, 160)
    assert mask.dtype == np.uint16
    assert mask.max() == 65535
    assert not mask[:, :40].any()
    assert not mask[:, 120:].any()
    (inside,) = segmenter([fit_image(image, preprocessing)], ["a.png"])
    taken_back = fit_mask(mask, image.shape, preprocessing)
    assert np.abs(taken_back / 65535 - inside / 65535).mean() < 0.02
    assert ((taken_back >= 32768) == (inside >= 32768)).mean() > 0.98


def test_images_of_several_sizes_in_one_batch(photos: Path) -> None:
    segmenter = open_gradcam(CamSettings(model="model.py:make", input_size=20, labels="predicted"))
    images = [scene(20, 40), scene(33, 21), scene(20, 20)]
    for together, image in zip(segmenter(images, ["a", "b", "c"]), images, strict=True):
        assert together.shape == image.shape[:2]
        assert np.abs(together.astype(int) - segmenter([image], ["a"])[0]).max() <= 1


def test_one_image_without_a_label_is_that_images_problem(photos: Path) -> None:
    segmenter = open_gradcam(CamSettings(model="model.py:make", input_size=20, labels="given"))
    with pytest.raises(InputError, match=r"b\.png: no folder above it is named after a class"):
        segmenter([scene(20, 20)], ["b.png"])


def test_out_of_memory_says_what_to_do(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = open_gradcam(CamSettings(model="model.py:make", input_size=20, labels="predicted"))

    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Classifier, "forward", full)
    with pytest.raises(PixelsemError, match="out of memory with 1 images at once; give a smaller --batch-size"):
        segmenter([scene(20, 20)], ["b.png"])


def test_heat_is_on_the_object(data_dir: Path) -> None:
    """Grad-CAM of the bundled network on CIFAR-10's ships: water and sky are around them, not in the middle."""
    from pixelsem.images import read_image

    paths = sorted((data_dir / "test/ship").iterdir())[:48]
    if not paths:
        pytest.skip("no CIFAR-10")
    segmenter: Attention = open_gradcam(CamSettings(labels="given"))
    heat = np.mean(segmenter([read_image(p) for p in paths], [f"ship/{p.name}" for p in paths]), axis=0)
    border = np.ones((32, 32), bool)
    border[6:-6, 6:-6] = False
    assert heat[~border].mean() > 1.5 * heat[border].mean()
