"""U²-Net: the network, its weights from anywhere, the masks, and the networks of rembg."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from pixelsem.cli.app import app
from pixelsem.errors import ModelError, PixelsemError
from pixelsem.files import cache_folder
from pixelsem.images import read_image, read_mask, write_image
from pixelsem.models.downloads import Download, fetch
from pixelsem.models.registry import bundled_weights
from pixelsem.models.u2net import NETWORKS, U2Net, U2NetP
from pixelsem.regions import rembg, saliency
from pixelsem.regions.masks import region_of
from pixelsem.regions.registry import open_segmenter
from pixelsem.regions.rembg import Rembg
from pixelsem.regions.saliency import (
    Saliency,
    find_maps,
    fit_map,
    load_network,
    prepare,
    save_network,
    soft_mask,
    stretch,
)
from pixelsem.regions.settings import RembgNetwork, RembgSettings, SaliencySettings
from pixelsem.sources import open_images, select
from pixelsem.stage import open_stage

Image8 = NDArray[np.uint8]

CPU = torch.device("cpu")

#: Of the checkpoints that the authors publish: names and shapes, u2net's and u2netp's.
KEYS = {
    "stage1.rebnconvin.conv_s1.weight": ((64, 3, 3, 3), (64, 3, 3, 3)),
    "stage1.rebnconvin.conv_s1.bias": ((64,), (64,)),
    "stage1.rebnconvin.bn_s1.weight": ((64,), (64,)),
    "stage1.rebnconvin.bn_s1.num_batches_tracked": ((), ()),
    "stage1.rebnconv1.conv_s1.weight": ((32, 64, 3, 3), (16, 64, 3, 3)),
    "stage1.rebnconv7.bn_s1.running_var": ((32,), (16,)),
    "stage1.rebnconv6d.conv_s1.weight": ((32, 64, 3, 3), (16, 32, 3, 3)),
    "stage2.rebnconvin.conv_s1.weight": ((128, 64, 3, 3), (64, 64, 3, 3)),
    "stage2.rebnconv6.conv_s1.weight": ((32, 32, 3, 3), (16, 16, 3, 3)),
    "stage3.rebnconv5.conv_s1.weight": ((64, 64, 3, 3), (16, 16, 3, 3)),
    "stage4.rebnconv3d.conv_s1.weight": ((128, 256, 3, 3), (16, 32, 3, 3)),
    "stage5.rebnconv1d.conv_s1.weight": ((512, 512, 3, 3), (64, 32, 3, 3)),
    "stage6.rebnconv4.bn_s1.running_mean": ((256,), (16,)),
    "stage5d.rebnconvin.conv_s1.weight": ((512, 1024, 3, 3), (64, 128, 3, 3)),
    "stage4d.rebnconvin.conv_s1.weight": ((256, 1024, 3, 3), (64, 128, 3, 3)),
    "stage3d.rebnconv1d.conv_s1.weight": ((128, 128, 3, 3), (64, 32, 3, 3)),
    "stage2d.rebnconv5d.conv_s1.weight": ((32, 64, 3, 3), (16, 32, 3, 3)),
    "stage1d.rebnconv1.conv_s1.weight": ((16, 64, 3, 3), (16, 64, 3, 3)),
    "side1.weight": ((1, 64, 3, 3), (1, 64, 3, 3)),
    "side3.weight": ((1, 128, 3, 3), (1, 64, 3, 3)),
    "side5.weight": ((1, 512, 3, 3), (1, 64, 3, 3)),
    "side6.bias": ((1,), (1,)),
    "outconv.weight": ((1, 6, 1, 1), (1, 6, 1, 1)),
    "outconv.bias": ((1,), (1,)),
}

#: What the authors' network gives for the weights and the input of the test below: mean and two pixels of each map.
GOLDEN = [
    (-0.450793, 2.05799, -1.21401),
    (-0.0286509, 0.12151, -0.00175834),
    (0.0212645, 0.760502, -0.142857),
    (0.0963579, 1.55511, -0.58791),
    (0.160938, -1.13089, -1.72012),
    (0.396342, -0.427706, -0.142116),
    (0.592768, -3.2039, 3.4079),
]


def small(seed: int = 0) -> U2NetP:
    """Return a network as drawn by ``seed``, whose maps are not all alike."""
    torch.manual_seed(seed)
    network = U2NetP()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network.eval()


def photo(height: int, width: int, seed: int = 0) -> Image8:
    return np.random.default_rng(seed).integers(0, 200, (height, width, 3), np.uint8)


def call(*arguments: str | Path, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments)], prog_name="pixelsem")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_network(small(), tmp_path / "small.safetensors", "u2netp", 64)
    return tmp_path / "small.safetensors"


# The network


def test_parameters_are_as_published() -> None:
    assert sum(p.numel() for p in U2Net().parameters()) == 44_009_869
    assert sum(p.numel() for p in U2NetP().parameters()) == 1_131_181


@pytest.mark.parametrize(("name", "column"), [("u2net", 0), ("u2netp", 1)])
def test_names_and_shapes_are_those_of_the_published_checkpoints(name: str, column: int) -> None:
    state = NETWORKS[name]().state_dict()
    assert len(state) == 112 * 7 + 14  # convolutions with batch normalisation, then six sides and the fusion
    assert {key: tuple(state[key].shape) for key in KEYS} == {key: shapes[column] for key, shapes in KEYS.items()}


def test_outputs_are_those_of_the_authors_network() -> None:
    network = U2NetP().eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                continue
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + len(name)).view(tensor.shape)
            if name.endswith("running_var"):
                wave = 6 + wave
            elif name.endswith("bn_s1.weight"):
                wave = 1 + 0.3 * wave
            else:
                wave = wave / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.1 * wave
            tensor.copy_(wave)
        x = torch.sin(torch.arange(3 * 64 * 64, dtype=torch.float64) * 0.37).view(1, 3, 64, 64).float()
        outputs = network(x)
    found = [(float(o.mean()), float(o[0, 0, 5, 7]), float(o[0, 0, 50, 33])) for o in outputs]
    np.testing.assert_allclose(found, GOLDEN, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 32)])
def test_any_size_gives_seven_maps_of_it(size: tuple[int, int]) -> None:
    with torch.no_grad():
        outputs = small()(torch.rand(2, 3, *size))
    assert [tuple(output.shape) for output in outputs] == [(2, 1, *size)] * 7


# What goes in and comes out


def test_the_input_is_squashed_and_divided_by_its_own_maximum() -> None:
    images = [photo(30, 50), photo(41, 20, 1) // 4]
    found = prepare(images, 32).numpy()
    for image, one in zip(images, found, strict=True):
        square = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) / 255
        wanted = (square / square.max() - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        np.testing.assert_allclose(one.transpose(1, 2, 0), wanted, atol=1e-5)


def test_a_black_image_is_no_division_by_zero() -> None:
    assert prepare([np.zeros((9, 9, 3), np.uint8)], 32).isfinite().all()


def test_maps_are_stretched_one_by_one() -> None:
    maps = torch.tensor([[[[0.2, 0.4], [0.3, 0.6]]], [[[5.0, 5.0], [5.0, 5.0]]]])
    wanted = torch.tensor([[[[0.0, 0.5], [0.25, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    torch.testing.assert_close(stretch(maps), wanted)


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (8, 6), (200, 3)])
def test_a_resized_map_has_the_maximum_1(size: tuple[int, int]) -> None:
    found = fit_map(torch.rand(1, 16, 16), size)
    assert found.shape == size
    assert found.min() >= 0
    assert found.max() == 1
    assert soft_mask(found).max() == 65535
    assert not fit_map(torch.zeros(1, 16, 16), size).any()


def test_a_resized_map_is_as_pil_has_it() -> None:
    wave = np.float32(np.sin(np.arange(256)).reshape(16, 16) / 2 + 0.5)
    for height, width in ((40, 21), (7, 30), (5, 5)):
        wanted = np.asarray(Image.fromarray(wave).resize((width, height), Image.Resampling.BILINEAR))
        found = fit_map(torch.from_numpy(wave)[None], (height, width))
        np.testing.assert_allclose(found, wanted / wanted.max(), atol=1e-5)


def test_the_saliency_is_the_fused_map() -> None:
    network, image = small(), photo(64, 64)
    found = find_maps(network, [image], 64, CPU)[0]
    with torch.no_grad():
        fused = network(prepare([image], 64))[0][0, 0].sigmoid().numpy()
    np.testing.assert_allclose(found, (fused - fused.min()) / (fused.max() - fused.min()), atol=1e-5)


def test_a_map_does_not_depend_on_the_others() -> None:
    network, images = small(), [photo(33, 47), photo(20, 60, 1) // 3, photo(64, 64, 2)]
    together = find_maps(network, images, 64, CPU)
    for number, image in enumerate(images):
        np.testing.assert_allclose(together[number], find_maps(network, [image], 64, CPU)[0], atol=1e-4)
        assert together[number].shape == image.shape[:2]


def test_bf16_is_near_fp32() -> None:
    network, image = small(), photo(40, 40)
    exact, near = (find_maps(network, [image], 64, CPU, precision)[0] for precision in ("fp32", "bf16"))
    assert np.abs(exact - near).max() > 0
    assert np.abs(exact - near).mean() < 0.02


# Weights


def test_the_authors_files_load(tmp_path: Path) -> None:
    torch.save(small(3).state_dict(), tmp_path / "u2netp.pth")
    network, path, size = load_network("u2netp", tmp_path / "u2netp.pth")
    assert (path, size) == (tmp_path / "u2netp.pth", 320)
    assert not network.training
    wanted = small(3).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in network.state_dict().items())


def test_saved_weights_come_back_in_half_precision_with_their_size(weights: Path) -> None:
    network, _, size = load_network("u2netp", weights)
    assert size == 64
    assert weights.stat().st_size < 2_500_000
    for name, tensor in small().state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)


def test_weights_of_another_network_are_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(ModelError, match=r"small.safetensors: does not fit u2net: .* of another shape"):
        load_network("u2net", weights)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"does not fit u2netp: .*missing"):
        load_network("u2netp", tmp_path / "other.pth")
    with pytest.raises(ModelError, match="no such weights file"):
        load_network("u2netp", tmp_path / "none.pth")
    torch.save(small(), tmp_path / "code.pth")
    with pytest.raises(ModelError, match="pickled code, which is never run"):
        load_network("u2netp", tmp_path / "code.pth")


@pytest.mark.parametrize("text", ["no json", "[]", '{"model": "u2netp"}', '{"size": "big"}'])
def test_broken_metadata_are_an_error(tmp_path: Path, text: str) -> None:
    safetensors.torch.save_file(small().state_dict(), tmp_path / "bad.safetensors", {"pixelsem-saliency": text})
    with pytest.raises(ModelError, match=r"bad.safetensors: its 'pixelsem-saliency' metadata cannot be read"):
        load_network("u2netp", tmp_path / "bad.safetensors")


def test_without_weights_the_message_says_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saliency, "bundled_weights", lambda name: None)
    with pytest.raises(ModelError, match=r"^u2netp: no weights .*segment train.* --weights.* --method rembg") as error:
        load_network("u2netp", None)
    assert "\n" not in str(error.value)


def test_the_packages_own_weights_are_taken(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setattr(saliency, "bundled_weights", {"u2netp": weights}.get)
    assert load_network("u2netp", None)[1:] == (weights, 64)


# Downloads


class Server:
    """Gives files on the loopback interface, and counts the requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.requests = 0
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/{name}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *arguments: Any) -> None:
        self._files = server
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self._files.requests += 1
        name = self.path[1:]
        if name not in self._files.files:
            self.send_error(404)
            return
        content = self._files.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self._files.cut else content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("PIXELSEM_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.close()


CONTENT = b"weights" * 5000
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@pytest.mark.parametrize("checksum", [MD5, f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"])
def test_a_download_is_fetched_once(server: Server, checksum: str) -> None:
    server.files["a.bin"] = CONTENT
    download = Download(server.url("a.bin"), checksum)
    path = fetch(download, "a", "give it")
    assert path == download.path == cache_folder() / "weights" / "a.bin"
    assert path.read_bytes() == CONTENT
    assert fetch(download, "a", "give it") == path
    assert server.requests == 1


@pytest.mark.parametrize(
    ("name", "checksum", "message"),
    [
        ("a.bin", f"md5:{'0' * 32}", "came damaged or is another file; try again, or give it"),
        ("cut.bin", MD5, "came damaged or is another file; try again, or give it"),
        ("none.bin", MD5, r"could not be fetched \(HTTP Error 404.*\); give it"),
    ],
)
def test_a_failed_download_leaves_nothing(server: Server, name: str, checksum: str, message: str) -> None:
    server.files |= {"a.bin": CONTENT, "cut.bin": CONTENT}
    server.cut.add("cut.bin")
    download = Download(server.url(name), checksum)
    with pytest.raises(ModelError, match=rf"^net: http://127.0.0.1:\d+/{name} {message}$"):
        fetch(download, "net", "give it")
    assert list(download.path.parent.iterdir()) == []


def test_a_server_that_is_not_there(server: Server) -> None:
    url = server.url("a.bin")
    server.close()
    with pytest.raises(ModelError, match=r"could not be fetched \(.*refused.*\); give it"):
        fetch(Download(url, MD5), "net", "give it")


def test_u2net_is_downloaded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(small().state_dict(), tmp_path / "small.pth")
    server.files["u2net.pth"] = content = (tmp_path / "small.pth").read_bytes()
    checksum = f"md5:{hashlib.md5(content).hexdigest()}"
    monkeypatch.setattr(saliency, "U2NET_WEIGHTS", Download(server.url("u2net.pth"), checksum))
    monkeypatch.setitem(NETWORKS, "u2net", U2NetP)  # the real one takes a second
    assert load_network("u2net", None)[1] == tmp_path / "cache/weights/u2net.pth"
    monkeypatch.setattr(saliency, "U2NET_WEIGHTS", Download(server.url("gone.pth"), checksum))
    with pytest.raises(ModelError, match=r"^u2net: .*404.*--weights, .* --method rembg --network u2net$"):
        load_network("u2net", None)


# The method


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(3):
        write_image(tmp_path / f"photos/{number}.png", photo(20 + number, 31 - number, number))
    return tmp_path / "photos"


def test_segment_writes_soft_masks(photos: Path, weights: Path, tmp_path: Path) -> None:
    command = ("segment", "--method", "u2netp", photos, "--weights", weights, "--run", tmp_path / "run")
    stage = open_stage(Path(call(*command).stdout.strip()))
    masks = {record.id: read_mask(stage.resolve(record.mask)) for record in stage.segment_records()}
    assert {record.kind for record in stage.segment_records()} == {"soft"}
    found = find_maps(load_network("u2netp", weights)[0], [read_image(photos / name) for name in masks], 64, CPU)
    for mask, wanted in zip(masks.values(), found, strict=True):
        assert mask.max() == 65535
        assert np.abs(mask - 65535.0 * wanted).max() <= 8
    assert stage.info.model == {"name": "u2netp", "digest": hashlib.sha256(weights.read_bytes()).hexdigest()}
    # One image at a time is the same run, so that nothing is left to do.
    assert Path(call(*command, "--batch-size", "1").stdout.strip()) == stage.path


def test_the_identity_is_what_changes_masks(tmp_path: Path, weights: Path) -> None:
    def identity(path: Path = weights, **options: Any) -> dict[str, object]:
        return open_segmenter("u2netp", SaliencySettings(weights=path, **options), []).identity

    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    assert identity() == identity(copy) == identity(batch_size=1, device="cpu") == identity(input_size=64)
    save_network(small(1), copy, "u2netp", 64)
    others = [identity(copy), identity(input_size=96), identity(precision="bf16")]
    assert all(other != identity() for other in others)
    assert json.dumps(others)


def test_options_reach_the_network(weights: Path) -> None:
    segmenter = Saliency("u2netp", SaliencySettings(weights=weights, input_size=96, batch_size=5))
    assert (segmenter.batch, segmenter.size, segmenter.kind, segmenter.whole) == (5, 96, "soft", False)
    image = photo(50, 40)
    mask = segmenter([image], ["a"])[0]
    other = Saliency("u2netp", SaliencySettings(weights=weights))([image], ["a"])[0]
    assert (mask.dtype, mask.shape) == (np.uint16, (50, 40))
    assert not np.array_equal(mask, other)


def test_a_device_that_is_not_there(weights: Path) -> None:
    with pytest.raises(PixelsemError, match="--device"):
        Saliency("u2netp", SaliencySettings(weights=weights, device="cuda:99"))


def test_no_memory_is_one_line(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr(saliency, "find_maps", full)
    with pytest.raises(PixelsemError, match="out of memory with 1 images; give a smaller --batch-size"):
        Saliency("u2netp", SaliencySettings(weights=weights))([photo(8, 8)], ["a"])


# rembg


def make_onnx(path: Path, *, batch: int | str = "n", channels: int = 3, side: int | str = "s", scale: float = 1.0,
              kind: str = "FLOAT") -> Path:  # fmt: skip
    """Write a network whose map is a weighted sum of the channels."""
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    weights = [scale * value for value in (0.5, 0.3, 0.2, *[0.0] * 8)][:channels]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["xw"]), helper.make_node("ReduceSum", ["xw", "axes"], ["y"], keepdims=1)],
        "grey",
        [helper.make_tensor_value_info("x", getattr(types, kind), [batch, channels, side, side])],
        [helper.make_tensor_value_info("y", getattr(types, kind), [batch, 1, side, side])],
        [
            helper.make_tensor("w", getattr(types, kind), [1, channels, 1, 1], weights),
            helper.make_tensor("axes", types.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def grey_map(image: Image8, size: int, deviation: tuple[float, ...] = (0.229, 0.224, 0.225)) -> NDArray[Any]:
    """Return what :func:`make_onnx` gives for an image, by rembg's preprocessing."""
    square = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS)).astype(float)
    pixels = (square / max(square.max(), 1e-6) - (0.485, 0.456, 0.406)) / deviation
    return np.asarray(pixels @ (0.5, 0.3, 0.2))


def as_mask(found: NDArray[Any]) -> NDArray[Any]:
    return (found - found.min()) / (found.max() - found.min()) * 65535


@pytest.fixture
def runtime() -> None:
    pytest.importorskip("onnxruntime")


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(("batch", "side"), [("n", "s"), ("n", 48), (1, 48), (2, 48)])
def test_rembg_runs_a_network(tmp_path: Path, batch: int | str, side: int | str) -> None:
    size = side if isinstance(side, int) else 320
    file = make_onnx(tmp_path / "grey.onnx", batch=batch, side=side)
    segmenter = open_segmenter("rembg", RembgSettings(weights=file), [])
    images = [photo(size, size, number) for number in range(4)]
    masks = segmenter(images, ["a", "b", "c", "d"])
    for image, mask in zip(images, masks, strict=True):
        assert mask.dtype == np.uint16
        np.testing.assert_allclose(mask, as_mask(grey_map(image, size)), atol=3)
    assert [mask.shape for mask in segmenter([photo(7, 90), photo(33, 21)], ["a", "b"])] == [(7, 90), (33, 21)]


@pytest.mark.usefixtures("runtime")
def test_rembg_treats_each_network_as_it_was_trained(tmp_path: Path) -> None:
    file, image = make_onnx(tmp_path / "grey.onnx", scale=3.0), photo(64, 64)
    isnet = Rembg(RembgSettings(network="isnet-general-use", weights=file, input_size=64))([image], ["a"])[0]
    np.testing.assert_allclose(isnet, as_mask(grey_map(image, 64, (1.0, 1.0, 1.0))), atol=3)
    birefnet = Rembg(RembgSettings(network="birefnet-general", weights=file, input_size=64))([image], ["a"])[0]
    np.testing.assert_allclose(birefnet, as_mask(1 / (1 + np.exp(-3 * grey_map(image, 64)))), atol=3)
    assert Rembg(RembgSettings(network="birefnet-general", weights=file)).size == 1024


@pytest.mark.usefixtures("runtime")
def test_rembg_refuses_what_is_no_such_network(tmp_path: Path) -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(PixelsemError, match=match) as error:
            Rembg(RembgSettings(**options))
        assert "\n" not in str(error.value)

    (tmp_path / "text.onnx").write_text("not a network")
    refused(r"text\.onnx: ONNX Runtime cannot open it", weights=tmp_path / "text.onnx")
    refused(r"gone\.onnx: no such weights file", weights=tmp_path / "gone.onnx")
    four = make_onnx(tmp_path / "four.onnx", channels=4)
    refused(r"four\.onnx: takes tensor\(float\).* is needed", weights=four)
    refused(r"takes tensor\(double\)", weights=make_onnx(tmp_path / "double.onnx", kind="DOUBLE"))
    fixed = make_onnx(tmp_path / "fixed.onnx", side=48)
    refused("takes images of 48×48, not of 64×64", weights=fixed, input_size=64)
    refused("--device: 'tpu' is none of", weights=fixed, device="tpu")


@pytest.mark.usefixtures("runtime")
def test_rembg_needs_the_right_package_for_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    file = make_onnx(tmp_path / "grey.onnx")
    with pytest.raises(PixelsemError, match="cuda needs the package onnxruntime-gpu"):
        Rembg(RembgSettings(weights=file, device="cuda"))
    assert Rembg(RembgSettings(weights=file, device="auto")).size == 320
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert rembg._providers(onnxruntime, "cuda:1")[0] == ("CUDAExecutionProvider", {"device_id": 1})
    assert rembg._providers(onnxruntime, "auto")[0] == ("CUDAExecutionProvider", {"device_id": 0})
    assert rembg._providers(onnxruntime, "cpu") == ["CPUExecutionProvider"]


@pytest.mark.usefixtures("runtime")
def test_rembg_fetches_its_release(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["silueta.onnx"] = content = make_onnx(tmp_path / "made.onnx", side=32).read_bytes()
    entry = rembg.Network("silueta.onnx", f"md5:{hashlib.md5(content).hexdigest()}")
    monkeypatch.setattr(rembg, "RELEASE", server.url(""))
    monkeypatch.setitem(rembg.NETWORKS, "silueta", entry)
    write_image(tmp_path / "photos/1.png", photo(20, 24))
    command = ("segment", tmp_path / "photos", "--method", "rembg", "--network", "silueta", "--run", tmp_path)
    stage = open_stage(Path(call(*command).stdout.strip()))
    assert stage.info.model == {"name": "rembg:silueta", "digest": hashlib.sha256(content).hexdigest()}
    assert read_mask(stage.resolve("masks/1.png")).max() == 65535
    (cache_folder() / "weights/silueta.onnx").unlink()
    server.files.clear()
    assert "--weights FILE" in call(*command, code=2).stderr


def test_rembg_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(PixelsemError, match=r"^--method rembg needs ONNX Runtime .*pip install 'pixelsem\[onnx\]'$"):
        Rembg(RembgSettings())


def test_every_name_of_rembg_has_its_file() -> None:
    assert tuple(rembg.NETWORKS) == get_args(RembgNetwork)
    files = [network.file for network in rembg.NETWORKS.values()]
    assert len(set(files)) == len(files)
    assert rembg.NETWORKS["u2net"].checksum == "md5:60024c5c889badc19c04ad937298a77b"
    assert rembg.NETWORKS["u2netp"].checksum == "md5:8e83ca70e441ab06c318d82300c84806"


# The bundled weights


@pytest.mark.slow
def test_bundled_weights_are_as_good_as_their_card_says(data_dir: Path) -> None:
    file = bundled_weights("u2netp")
    if file is None or not (data_dir / "ecssd").is_dir():
        pytest.skip("no bundled weights, or PIXELSEM_DATA has no ecssd")
    said = next(line for line in file.with_suffix(".md").read_text().splitlines() if "mean IoU" in line)
    wanted = float(said.split("mean IoU ")[1].split(",")[0])
    segmenter = open_segmenter("u2netp", SaliencySettings(), [])
    overlaps = []
    for item in select(open_images(data_dir / "ecssd/images").items, sample=100, seed=1):  # those held out
        found = region_of(segmenter([read_image(item.path)], [item.id])[0], "soft", "foreground")
        truth = read_mask(data_dir / "ecssd/masks" / Path(item.id).with_suffix(".png")) > 127
        overlaps.append((found & truth).sum() / (found | truth).sum())
    assert np.mean(overlaps) == pytest.approx(wanted, abs=0.003)


def test_threads_prepare_together_and_ask_the_network_one_by_one(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = Saliency("u2netp", SaliencySettings(weights=weights))
    images = [photo(30 + n, 40 - n, n) for n in range(8)]
    wanted = [segmenter([image], ["a"])[0] for image in images]
    inside, most, together = 0, 0, threading.Barrier(2, timeout=20)
    forward, prepared = segmenter._network.forward, saliency.prepare

    def slow(x: torch.Tensor) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return forward(x)

    def meet(*arguments: Any) -> torch.Tensor:
        together.wait()  # where only one thread at a time came here, this would break
        return prepared(*arguments)

    monkeypatch.setattr(segmenter._network, "forward", slow)
    monkeypatch.setattr(saliency, "prepare", meet)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda image: segmenter([image], ["a"])[0], images))
    assert most == 1
    for mask, alone in zip(found, wanted, strict=True):
        assert np.array_equal(mask, alone)
