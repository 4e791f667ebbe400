"""Classifiers: every way to name one, their weights, preprocessing and identity, and what is refused."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from pixelsem.errors import ModelError, OutputError
from pixelsem.images import read_image
from pixelsem.models import (
    Classifier,
    Preprocessing,
    fit_image,
    list_models,
    load_classifier,
    load_state,
    registry,
    save_weights,
    sources,
)
from pixelsem.models.checkpoints import fit_state
from pixelsem.models.registry import ARCHITECTURES, CIFAR10_CLASSES, Architecture, build_network, untrained

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Preprocessing((8, 8), 8, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))

FACTORY = """
import torch
from torch import nn
from neighbour import CLASSES

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, CLASSES))

def complete():
    from pixelsem.models import Classifier, Preprocessing
    return Classifier(make(), name="", class_names=("a", "b", "c"), preprocessing=Preprocessing((8, 6), 9))

def text():
    return "no network"

def broken():
    raise ValueError("first line\\nsecond line")

def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()

def map_():
    return nn.Conv2d(3, 3, 1)

def not_finite():
    network = make()
    nn.init.constant_(network[0].bias, float("inf"))
    nn.init.constant_(network[-1].weight, float("nan"))
    return network

def by_batch():
    class ByBatch(nn.Module):
        def forward(self, x):
            return (x - x.mean()).mean((2, 3))
    return ByBatch()

NOT_A_FUNCTION = 3
"""


def tiny_network(classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, 2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, classes),
        ).eval()


def tiny(network: nn.Module | None = None) -> Classifier:
    network = network or tiny_network()
    return Classifier(network, name="tiny", class_names=("a", "b", "c"), preprocessing=TINY, arch="tiny").eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def _tiny_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Register a small network of our own, and keep torch.hub's cache out of the home folder."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture("tiny:tiny", "for tests"))
    module = SimpleNamespace(tiny=tiny_network)
    real = registry.import_module
    monkeypatch.setattr(registry, "import_module", lambda name: module if name.endswith(".tiny") else real(name))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "neighbour.py").write_text("CLASSES = 3\n")
    (folder / "network.py").write_text(FACTORY)
    return folder / "network.py"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A state dict of the tiny network without any word about it."""
    path = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(tiny_network().state_dict(), path)
    return path


def refusal(name: str | Path, /, **options: object) -> str:
    """Load what must be refused; return the message, which must be one line."""
    with pytest.raises(ModelError) as caught:
        load_classifier(name, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


# Names


def test_importing_the_package_leaves_torch_out() -> None:
    code = "import sys, pixelsem, pixelsem.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "tiny"])
def test_own_architecture_untrained(name: str) -> None:
    state = torch.get_rng_state()
    classifier = load_classifier(name, weights="none")
    assert torch.equal(state, torch.get_rng_state())
    assert classifier(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert (classifier.class_names, classifier.name, classifier.arch) == (CIFAR10_CLASSES, name, name)
    assert not classifier.training
    assert not classifier.trained
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    assert classifier.digest == load_classifier(name, weights="none").digest


def test_no_bundled_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "bundled_weights", lambda name: None)
    message = refusal("vgg11")
    assert message == "vgg11: no bundled weights; give --weights FILE or train with `pixelsem defend train`"


def test_bundled_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: Tensor) -> None:
    save_weights(tiny(), tmp_path / "bundled.safetensors", half=False)
    monkeypatch.setattr(sources, "bundled_weights", lambda name: tmp_path / "bundled.safetensors")
    classifier = load_classifier("tiny")
    assert classifier.trained
    assert classifier.class_names == ("a", "b", "c")
    assert torch.equal(classifier(images), tiny()(images))
    assert "gives 3 logits, but has 2 class names; name all with --classes" in refusal("tiny", class_names=["x", "y"])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("allconf", "did you mean allconv?"),
        ("vgg1", "did you mean vgg1"),
        ("resnet50", "torchvision:resnet50"),
        ("torchvision:resnet19", "torchvision:resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no such model"),
        ("zzz", "`pixelsem models` lists them"),
    ],
)
def test_unknown_name(name: str, hint: str) -> None:
    message = refusal(name)
    assert message.startswith(f"{name}: no such model; ")
    assert hint in message


def test_unknown_arch(weights: Path) -> None:
    assert "allconf: no such model; did you mean allconv?" in refusal(weights, arch="allconf")


# Preprocessing


def test_preprocessing_arithmetic(weights: Path, images: Tensor) -> None:
    classifier = load_classifier(
        "tiny", weights=weights, scale=255, mean=(123, 117, 104), std=(2, 3, 4), input_size=8, class_names="abc"
    )
    x = images.numpy().astype(np.float64) * 255
    x = (x - np.array([123, 117, 104]).reshape(3, 1, 1)) / np.array([2, 3, 4]).reshape(3, 1, 1)
    expected = tiny_network()(torch.from_numpy(x).float())
    torch.testing.assert_close(classifier(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
@pytest.mark.parametrize("shape", [(300, 401), (257, 180), (224, 224)])
def test_torchvision_preprocessing_is_torchvisions(name: str, shape: tuple[int, int]) -> None:
    from torchvision import models

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    pixels = np.array(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BOX, (0, 0, 40, 40)))
    classifier = load_classifier(f"torchvision:{name}", weights="none")
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    if shape == classifier.preprocessing.size:  # taken as it is: the tool's own outputs
        transforms.resize_size = [shape[0]]
    theirs = transforms(Image.fromarray(pixels))[None]
    fitted = fit_image(pixels, classifier.preprocessing)
    ours = torch.from_numpy(fitted).permute(2, 0, 1)[None].float() / 255
    assert ours.shape == theirs.shape
    with torch.no_grad():
        torch.testing.assert_close(classifier(ours), classifier.network(theirs), rtol=1e-5, atol=1e-5)


def test_new_size_keeps_the_proportion_of_resize_to_crop() -> None:
    classifier = load_classifier("torchvision:squeezenet1_1", weights="none", input_size=112)
    assert classifier.preprocessing.size == (112, 112)
    assert classifier.preprocessing.resize == 128  # 256 to 224
    assert classifier.preprocessing.mean == (0.485, 0.456, 0.406)
    wide = load_classifier("allconv", weights="none", input_size=(40, 36))
    assert (wide.preprocessing.size, wide.preprocessing.resize) == ((40, 36), 36)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": (1, 0, 1)}, "std: (1.0, 0.0, 1.0) must be finite and above 0"),
        ({"std": (1, float("inf"), 1)}, "must be finite"),
        ({"mean": (float("nan"), 0, 0)}, "mean: (nan, 0.0, 0.0) is not finite"),
        ({"mean": (1, 2)}, "mean: 2 numbers given; give one for each of red, green and blue"),
        ({"scale": -1}, "scale: -1.0 must be finite and above 0"),
        ({"input_size": 0}, "input size: 0×0 is no image"),
    ],
)
def test_bad_preprocessing(options: dict[str, object], message: str) -> None:
    assert message in refusal("allconv", weights="none", **options)


def test_one_number_stands_for_all_channels() -> None:
    classifier = load_classifier("allconv", weights="none", mean=[0.5], std=[0.25])
    assert (classifier.preprocessing.mean, classifier.preprocessing.std) == ((0.5,) * 3, (0.25,) * 3)


def test_input_too_small_for_the_network() -> None:
    assert "cannot score images of 4×4" in refusal("vgg11", weights="none", input_size=4)


# Weights: writing and reading


def test_saved_weights_need_no_arch(tmp_path: Path, images: Tensor) -> None:
    path = tmp_path / "mine.safetensors"
    save_weights(tiny(), path, half=False)
    classifier = load_classifier(path)
    assert (classifier.name, classifier.arch, classifier.trained) == (str(path), "tiny", True)
    assert classifier.class_names == ("a", "b", "c")
    assert classifier.preprocessing == TINY
    assert torch.equal(classifier(images), tiny()(images))
    assert load_classifier("tiny", weights=path).digest == classifier.digest == tiny().digest
    renamed = load_classifier(path, class_names=["x", "y", "z"], scale=2)
    assert renamed.class_names == ("x", "y", "z")
    assert renamed.preprocessing == replace(TINY, scale=2.0)


def test_half_precision_on_disk(tmp_path: Path, images: Tensor) -> None:
    network = tiny_network()
    network[1].running_mean += 1e-4  # less than fp16 holds beside 1: statistics must not be rounded
    network[1].running_var += 1e-4
    save_weights(tiny(network), tmp_path / "half.safetensors")
    stored = safetensors.torch.load_file(tmp_path / "half.safetensors")
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.float16} == {"0.weight", "5.weight"}
    rounded = tiny_network()
    rounded.load_state_dict({k: v.half().float() if v.ndim > 1 else v for k, v in network.state_dict().items()})
    classifier = load_classifier(tmp_path / "half.safetensors")
    assert all(p.dtype == torch.float32 for p in classifier.parameters())
    assert torch.equal(classifier(images), tiny(rounded)(images))
    save_weights(classifier, tmp_path / "full.safetensors", half=False)
    assert load_classifier(tmp_path / "full.safetensors").digest == classifier.digest


def test_weights_too_large_for_half_precision_stay_whole(tmp_path: Path, images: Tensor) -> None:
    network = tiny_network()
    with torch.no_grad():
        network[5].weight[0, 0] = 1e6
    save_weights(tiny(network), tmp_path / "large.safetensors")
    assert load_state(tmp_path / "large.safetensors")["5.weight"][0, 0] == 1e6


def test_tied_and_strided_weights_can_be_saved(tmp_path: Path) -> None:
    network = tiny_network().to(memory_format=torch.channels_last)
    network[1].running_var = network[1].running_mean
    save_weights(tiny(network), tmp_path / "w.safetensors", half=False)
    assert torch.equal(load_state(tmp_path / "w.safetensors")["0.weight"], network[0].weight)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a folder that cannot be written")
def test_saving_into_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        save_weights(tiny(), tmp_path / "w.safetensors")


def test_saving_where_a_file_is_in_the_way_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match="cannot be written"):
        save_weights(tiny(), tmp_path / "file" / "w.safetensors")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "network", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "network.", "module._orig_mod."])
def test_checkpoint_shapes(tmp_path: Path, images: Tensor, wrapper: str | None, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in tiny_network().state_dict().items()}
    torch.save(state if wrapper is None else {"epoch": 3, wrapper: state}, tmp_path / "c.pt")
    classifier = load_classifier(tmp_path / "c.pt", arch="tiny", input_size=8, class_names="abc")
    expected = load_classifier("tiny", weights=tmp_path / "c.pt", input_size=8, class_names="abc")
    assert classifier.digest == expected.digest
    assert torch.equal(classifier(images), expected(images))
    assert torch.equal(classifier.network[0].weight, tiny_network()[0].weight)


def test_half_precision_checkpoint_becomes_single(tmp_path: Path) -> None:
    torch.save(tiny_network().half().state_dict(), tmp_path / "c.pt")
    classifier = load_classifier("tiny", weights=tmp_path / "c.pt", class_names="abc", input_size=8)
    assert all(p.dtype == torch.float32 for p in classifier.parameters())


def test_checkpoint_without_step_counts(tmp_path: Path) -> None:
    state = {k: v for k, v in tiny_network().state_dict().items() if "num_batches" not in k}
    safetensors.torch.save_file(state, tmp_path / "c.safetensors")
    loaded = load_classifier("tiny", weights=tmp_path / "c.safetensors", class_names="abc", input_size=8)
    assert loaded.trained


def test_old_names_in_torchvision_files(tmp_path: Path) -> None:
    network = sources.build("torchvision:densenet121", 5).network
    old = {re.sub(r"(norm|conv)([12])\.", r"\1.\2.", k): v for k, v in network.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save({**old}, tmp_path / "densenet.pth")
    path = tmp_path / "densenet.pth"
    classifier = load_classifier("torchvision:densenet121", weights=path, class_names="abcde", input_size=32)
    assert torch.equal(classifier.network.state_dict()["features.conv0.weight"], old["features.conv0.weight"])


def test_old_names_in_vision_transformers() -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(32, 16, num_layers=1, num_heads=1, hidden_dim=4, mlp_dim=6, num_classes=3)
    wanted = {name: torch.rand_like(tensor) for name, tensor in network.state_dict().items()}
    old = {re.sub(r"mlp\.([03])\.", lambda m: f"mlp.linear_{1 + int(m[1]) // 3}.", k): v for k, v in wanted.items()}
    assert "encoder.layers.encoder_layer_0.mlp.linear_2.weight" in old
    fit_state(network, old, Path("vit.pth"), "vit")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in network.state_dict().items())


def test_auxiliary_heads_are_dropped(tmp_path: Path) -> None:
    from torchvision import models

    whole = models.get_model("googlenet", weights=None, num_classes=5, init_weights=False, transform_input=True).eval()
    torch.save(whole.state_dict(), tmp_path / "g.pth")
    path = tmp_path / "g.pth"
    classifier = load_classifier("torchvision:googlenet", weights=path, class_names="abcde", input_size=64)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(classifier.network(x), whole(x))


# Identity


def test_digest_tells_one_step_of_half_precision(tmp_path: Path) -> None:
    network = tiny_network()
    before = tiny(network).digest
    with torch.no_grad():
        weight = network[5].weight.half()
        network[5].weight.copy_(weight)
    same = tiny(network).digest
    assert same != before
    with torch.no_grad():
        network[5].weight[0, 0] = float(np.nextafter(np.float16(weight[0, 0]), np.float16(10)))
    assert tiny(network).digest != same


def test_digest_covers_preprocessing_and_not_step_counts() -> None:
    classifier = tiny()
    changed = Classifier(classifier.network, name="t", class_names=(), preprocessing=replace(TINY, scale=2.0))
    assert changed.digest != classifier.digest
    before = classifier.digest
    classifier.network[1].num_batches_tracked += 1
    assert classifier.digest == before
    assert re.fullmatch("[0-9a-f]{64}", before)


# Torchvision's downloads


@pytest.fixture
def offer(served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Put random squeezenet weights on the server under a name with this hash; make torchvision point there."""
    from torchvision import models

    folder, root = served

    def place(digits: str | None) -> str:
        network = models.get_model("squeezenet1_1", weights=None)
        torch.save(network.state_dict(), folder / "w.pth")
        digits = digits or hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()[:8]
        (folder / "w.pth").rename(folder / f"squeezenet-{digits}.pth")
        entry = models.get_model_weights("squeezenet1_1").DEFAULT
        url = f"{root}/squeezenet-{digits}.pth"
        monkeypatch.setattr(entry, "_value_", replace(entry.value, url=url))
        assert entry.url == url
        return url

    return place


def test_torchvision_download(offer: Callable[[str | None], str], served: tuple[Path, str]) -> None:
    url = offer(None)
    (info,) = [m for m in list_models() if m.name == "torchvision:squeezenet1_1"]
    assert (info.weights, info.url) == ("download", url)
    classifier = load_classifier("torchvision:squeezenet1_1")
    file = served[0] / url.rpartition("/")[2]
    stored = torch.load(file, weights_only=True)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in classifier.network.state_dict().items())
    assert classifier.trained
    assert classifier.class_names[:2] == ("tench", "goldfish")
    (info,) = [m for m in list_models() if m.name == "torchvision:squeezenet1_1"]
    assert info.weights == "cached"
    file.unlink()  # the second time nothing is fetched
    assert load_classifier("torchvision:squeezenet1_1").digest == classifier.digest


def test_torchvision_download_with_a_wrong_checksum(offer: Callable[[str], str]) -> None:
    url = offer("00000000")
    message = refusal("torchvision:squeezenet1_1")
    assert f"{url} came damaged (invalid hash value" in message
    assert "--weights FILE" in message
    assert not sources.cached_path(url).exists()


def test_torchvision_download_that_fails(offer: Callable[[str | None], str], served: tuple[Path, str]) -> None:
    url = offer(None)
    (served[0] / url.rpartition("/")[2]).unlink()
    message = refusal("torchvision:squeezenet1_1")
    assert f"{url} could not be downloaded (HTTP Error 404: " in message
    assert "give it with --weights FILE" in message


def test_damaged_cache(offer: Callable[[str | None], str]) -> None:
    path = sources.cached_path(offer(None))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    assert str(path) in refusal("torchvision:squeezenet1_1")


# timm


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'pixelsem[timm]'" in refusal("timm:resnet18")


def test_timm_random_weights_and_its_own_preprocessing(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    classifier = load_classifier("timm:resnet10t", weights="none")
    config = timm.data.resolve_model_data_config(classifier.network)
    pixels = np.random.default_rng(1).integers(0, 256, (260, 333, 3), np.uint8)
    theirs = timm.data.create_transform(**config, is_training=False)(Image.fromarray(pixels))[None]
    ours = torch.from_numpy(fit_image(pixels, classifier.preprocessing)).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        torch.testing.assert_close(classifier(ours), classifier.network(theirs), rtol=1e-5, atol=1e-5)
    assert classifier.class_names[0] == "tench"
    save_weights(classifier, tmp_path / "t.safetensors", half=False)
    assert load_classifier(tmp_path / "t.safetensors").digest == classifier.digest
    assert "did you mean timm:resnet18" in refusal("timm:resnet18x")


# A function in a file


def test_factory(factory: Path, images: Tensor) -> None:
    classifier = load_classifier(f"{factory}:make", input_size=8)
    assert classifier.class_names == ("0", "1", "2")
    assert classifier.preprocessing == Preprocessing((8, 8), 8)
    assert torch.equal(classifier(images), classifier.network(images))
    assert classifier.trained
    assert str(factory.parent) not in sys.path
    again = load_classifier(f"{factory}:make", input_size=8)
    assert again.digest == classifier.digest
    factory.write_text(FACTORY + "\n# another network of the same shapes\n")
    assert load_classifier(f"{factory}:make", input_size=8).digest != classifier.digest


def test_factory_that_returns_a_classifier(factory: Path) -> None:
    classifier = load_classifier(f"{factory}:complete")
    assert classifier.class_names == ("a", "b", "c")
    assert classifier.preprocessing == Preprocessing((8, 6), 9)
    assert classifier.name == f"{factory}:complete"


def test_factory_with_weights(factory: Path, weights: Path) -> None:
    classifier = load_classifier(f"{factory}:make", weights=weights, input_size=8, class_names="abc")
    assert torch.equal(classifier.network[0].weight, tiny_network()[0].weight)
    assert load_classifier(weights, arch=f"{factory}:make", input_size=8).arch == f"{factory}:make"
    assert not load_classifier(f"{factory}:make", weights="none", input_size=8).trained


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("make", "does not say its input size; give --input-size"),
        ("missing", "has no function 'missing'"),
        ("NOT_A_FUNCTION", "has no function 'NOT_A_FUNCTION'"),
        ("text", "returned str; it must return a torch.nn.Module or a Classifier"),
        ("broken", "raised ValueError: first line"),
    ],
)
def test_bad_factory(factory: Path, function: str, message: str) -> None:
    assert message in refusal(f"{factory}:{function}")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("pair", "returns tuple; it must return logits [N, classes]"),
        ("map_", "returns [2, 3, 8, 8] for 2 images"),
        ("not_finite", "NaN or infinite logits for a black image"),
        ("by_batch", "scores an image differently in another batch"),
    ],
)
def test_module_that_is_no_classifier(factory: Path, function: str, message: str) -> None:
    assert message in refusal(f"{factory}:{function}", input_size=8)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_of_this_name\ndef make(): pass", "raised ModuleNotFoundError: No module named"),
        ("def make(:", "raised SyntaxError: invalid syntax"),
        ("raise SystemExit('stop')", "raised SystemExit: stop"),
    ],
)
def test_file_that_does_not_run(factory: Path, code: str, message: str) -> None:
    factory.write_text(code)
    assert message in refusal(f"{factory}:make")


def test_factory_names(factory: Path, tmp_path: Path) -> None:
    assert f"{factory}:FUNCTION" in refusal(factory)
    assert "no such file" in refusal(f"{tmp_path / 'none.py'}:make")


# Files with their own graph


def exported(network: nn.Module, path: Path, *, batch: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if batch else None
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes), path)
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript(tmp_path: Path, images: Tensor) -> None:
    torch.jit.script(tiny_network()).save(str(tmp_path / "s.pt"))
    classifier = load_classifier(tmp_path / "s.pt", input_size=8, mean=[0.5], class_names="abc")
    torch.testing.assert_close(classifier(images), tiny_network()(images - 0.5), rtol=1e-5, atol=1e-6)
    assert classifier.digest == load_classifier(tmp_path / "s.pt", input_size=8, mean=[0.5]).digest
    assert "give --input-size" in refusal(tmp_path / "s.pt")
    assert "holds a whole model; leave --arch out" in refusal(tmp_path / "s.pt", arch="tiny")
    assert "gives 3 logits, but has 4 class names" in refusal(tmp_path / "s.pt", input_size=8, class_names="abcd")


def test_exported_program(tmp_path: Path, images: Tensor) -> None:
    path = exported(tiny_network(), tmp_path / "e.pt2")
    classifier = load_classifier(path)
    assert classifier.preprocessing.size == (8, 8)
    assert classifier.class_names == ("0", "1", "2")
    for count in (1, 3, 5):
        torch.testing.assert_close(classifier(images[:count]), tiny_network()(images[:count]), rtol=1e-5, atol=1e-6)
    assert not classifier.train().eval().training
    x = images.clone().requires_grad_()
    classifier(x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any())


def test_exported_program_with_a_fixed_batch(tmp_path: Path) -> None:
    path = exported(tiny_network(), tmp_path / "f.pt2", batch=False)
    assert "batches of exactly 2; export it with dynamic_shapes=" in refusal(path)


def test_exported_program_in_training_mode(tmp_path: Path) -> None:
    path = exported(tiny_network().train(), tmp_path / "t.pt2")
    assert "scores an image differently in another batch" in refusal(path)


class _Bomb:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_exported_program_with_pickled_code(tmp_path: Path) -> None:
    path = exported(tiny_network(), tmp_path / "e.pt2")
    torch.save(_Bomb(tmp_path / "exploded"), tmp_path / "bomb")
    bomb = (tmp_path / "bomb").read_bytes()

    def in_inputs(name: str, content: bytes) -> bytes:
        return bomb if name.endswith(".pt") else content

    def in_weights(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return content.replace(b'"use_pickle":false', b'"use_pickle":true').replace(
                b'"use_pickle": false', b'"use_pickle": true'
            )
        return bomb if name.endswith("weight_0") else content

    for number, change in enumerate((in_inputs, in_weights)):
        bad = rewrite(path, tmp_path / f"bad{number}.pt2", change)
        assert bad.read_bytes() != path.read_bytes()
        assert "holds pickled code" in refusal(bad)
    assert not (tmp_path / "exploded").exists()


# Files that cannot be used


def test_pickle_with_code(tmp_path: Path) -> None:
    torch.save(tiny_network(), tmp_path / "whole.pt")
    message = refusal(tmp_path / "whole.pt", arch="tiny")
    assert message == (
        f"{tmp_path / 'whole.pt'}: holds pickled code, which is never run; save model.state_dict() instead of the model"
    )
    torch.save({"state_dict": _Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    assert "pickled code" in refusal("tiny", weights=tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pt2", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04" + bytes(50)])
def test_file_that_is_no_model(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    for message in (refusal(path), refusal(path, arch="tiny"), refusal("tiny", weights=path)):
        assert message.startswith(f"{path}: not a ")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pt2"])
def test_file_cut_short(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    if suffix == ".safetensors":
        save_weights(tiny(), path)
    elif suffix == ".pt2":
        exported(tiny_network(), path)
    else:
        torch.save(tiny_network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    assert refusal(path).startswith(f"{path}: not a ")


def test_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    assert refusal(path) == f"{path}: no such model file; check the path"
    assert refusal("tiny", weights=path) == f"{path}: no such weights file; check the path"


def test_not_a_model_file(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("x")
    assert "not a model file; it must end in .safetensors, .pt" in refusal(tmp_path / "model.txt")
    assert "not a model file" in refusal(tmp_path)


@pytest.mark.parametrize("content", [{}, [1, 2], {"state_dict": {"a": 3}}, torch.zeros(3)])
def test_checkpoint_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "c.pt")
    assert "holds no state dict" in refusal("tiny", weights=tmp_path / "c.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_are_not_finite(tmp_path: Path, value: float, suffix: str) -> None:
    state = tiny_network().state_dict()
    state["5.weight"][1, 2] = value
    path = tmp_path / f"c{suffix}"
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    assert f"{path}: tensor '5.weight' holds NaN or infinite values" in refusal("tiny", weights=path)


def test_checkpoint_of_another_architecture(weights: Path) -> None:
    message = refusal("allconv", weights=weights)
    own, stored = build_network("allconv", 10).state_dict(), tiny_network().state_dict()
    missing = [name for name in own if name not in stored and "num_batches" not in name]
    assert message.startswith(f"{weights}: does not fit allconv: {len(missing)} tensors missing (first {missing[0]!r})")
    unexpected = [name for name in stored if name not in own and "num_batches" not in name]
    assert f"{len(unexpected)} unexpected (first '{unexpected[0]}')" in message
    assert "of another shape (first '0.weight': [4, 3, 3, 3], expected [96, 3, 3, 3])" in message


def test_wrong_class_counts(tmp_path: Path, weights: Path) -> None:
    message = refusal("tiny", weights=weights)
    assert message == (f"{weights}: does not fit tiny: it has 3 classes, 10 are expected; name all 3 with --classes")
    save_weights(tiny(), tmp_path / "mine.safetensors")
    message = refusal(tmp_path / "mine.safetensors", class_names="abcd")
    assert "it has 3 classes, 4 are expected" in message


def test_arch_and_weights_where_they_do_not_belong(weights: Path) -> None:
    assert "does not say its architecture; give --arch" in refusal(weights)
    assert "is a file with its own weights" in refusal(weights, arch="tiny", weights=weights)
    assert "names an architecture already" in refusal("tiny", arch="tiny")


@pytest.mark.parametrize(
    "text", ["no json", "[]", "{}", '{"arch": "tiny", "class_names": ["a"], "size": [0, 0], "resize": 0}',
             '{"arch": "tiny", "class_names": ["a"], "unknown": 1}'],
)  # fmt: skip
def test_damaged_metadata(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.safetensors"
    safetensors.torch.save_file(tiny_network().state_dict(), path, {"pixelsem": text})
    assert f"{path}: its 'pixelsem' metadata cannot be read" in refusal(path)


def test_a_weights_file_cannot_make_code_run(tmp_path: Path, factory: Path) -> None:
    classifier = load_classifier(f"{factory}:complete")
    save_weights(classifier, tmp_path / "c.safetensors", half=False)
    message = refusal(tmp_path / "c.safetensors")
    assert f"was made by {factory}:complete; to run that code, give it with --arch" in message
    loaded = load_classifier(tmp_path / "c.safetensors", arch=f"{factory}:complete")
    assert loaded.digest == classifier.digest


# The list


def test_list_models() -> None:
    from torchvision import models

    infos = {info.name: info for info in list_models()}
    assert len(infos) == len(ARCHITECTURES) + len(models.list_models(module=models))
    vgg = infos["torchvision:vgg16"]
    assert (vgg.parameters, vgg.classes, vgg.input_size, vgg.weights) == (138357544, 1000, (224, 224), "download")
    assert vgg.url is not None
    assert infos["torchvision:inception_v3"].input_size == (299, 299)
    # Counted by hand: kernels, batch normalisation's two vectors each, and the last layer's biases.
    kernels = 3 * 96 * 9 + 96 * 96 * 9 * 2 + 96 * 192 * 9 + 192 * 192 * 9 * 3 + 192 * 192 + 192 * 10
    assert infos["allconv"].parameters == kernels + 2 * (3 * 96 + 5 * 192) + 10
    assert infos["allconv"].input_size == (32, 32)


def test_bundled_files_load() -> None:
    for name in ARCHITECTURES:
        if registry.bundled_weights(name) is not None:
            classifier = load_classifier(name)
            assert classifier.trained
            assert classifier.class_names == CIFAR10_CLASSES
            assert classifier.preprocessing.size == (32, 32)


def test_untrained_has_the_training_preprocessing() -> None:
    classifier = untrained("allconv")
    loaded = load_classifier("allconv", weights="none")
    assert classifier.preprocessing == loaded.preprocessing


# Real weights and photos


@pytest.mark.slow
def test_real_imagenet_weights() -> None:
    root = Path(os.environ.get("PIXELSEM_DATA", ""))
    path, folder = root / "squeezenet1_1-imagenet.safetensors", root / "imagenet-sample"
    if not (os.environ.get("PIXELSEM_DATA") and path.is_file() and folder.is_dir()):
        pytest.skip("PIXELSEM_DATA does not hold the weights and the photos")
    classifier = load_classifier(
        "torchvision:squeezenet1_1", weights=path, scale=255, mean=(123, 117, 104), std=(1, 1, 1)
    )
    first = among_five = 0
    files = sorted(folder.iterdir())
    for file in files:
        pixels = fit_image(read_image(file), classifier.preprocessing)
        with torch.no_grad():
            top = classifier(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)[0].topk(5).indices.tolist()
        first += top[0] == int(file.name[:3])
        among_five += int(file.name[:3]) in top
    assert first / len(files) >= 0.63
    assert among_five / len(files) >= 0.87


def test_classes_of_the_same_name_are_told_apart() -> None:
    names = ["crane", *(f"class{n}" for n in range(8)), "crane"]
    classifier = load_classifier("allconv", weights="none", class_names=names)
    assert classifier.class_names == ("crane (0)", *names[1:9], "crane (9)")
