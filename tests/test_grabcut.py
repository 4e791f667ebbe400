"""GrabCut on images whose object is known."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pixelsem.errors import InputError, PixelsemError
from pixelsem.images import read_hints, read_image, read_mask, write_image
from pixelsem.regions import opencv, registry
from pixelsem.regions.grabcut import GrabCut, grabcut, to_prior
from pixelsem.regions.registry import METHODS, open_segmenter
from pixelsem.regions.settings import GrabCutSettings
from pixelsem.settings import Settings

Image8 = NDArray[np.uint8]

QUICK = GrabCutSettings(upscale=0, iterations=2)


def scene(height: int = 60, width: int = 80, *, seed: int = 0) -> tuple[Image8, NDArray[np.bool_]]:
    """Return a red disc on green, with some noise, and where the disc is."""
    y, x = np.mgrid[:height, :width]
    disc = (x - 0.45 * width) ** 2 + (y - 0.5 * height) ** 2 < (0.3 * height) ** 2
    image = np.where(disc[..., None], (200, 30, 40), (40, 160, 60)).astype(float)
    image += np.random.default_rng(seed).normal(0, 8, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), disc


def two_discs() -> tuple[Image8, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return a red and a blue disc on grey: either may be the object."""
    y, x = np.mgrid[:60, :100]
    left, right = ((x - 28) ** 2 + (y - 30) ** 2 < 256), ((x - 72) ** 2 + (y - 30) ** 2 < 256)
    image = np.full((60, 100, 3), 128.0)
    image[left], image[right] = (200, 30, 30), (30, 30, 200)
    image += np.random.default_rng(1).normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), left, right


def iou(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize("settings", [GrabCutSettings(), QUICK, GrabCutSettings(rect=(5, 5, 70, 50), upscale=0)])
def test_finds_a_disc(settings: GrabCutSettings) -> None:
    image, disc = scene()
    found = grabcut(image, settings)
    assert found.dtype == bool
    assert found.shape == disc.shape
    assert iou(found, disc) > 0.95


def test_finds_a_tiny_disc_when_enlarged() -> None:
    image, disc = scene(32, 32)
    assert iou(grabcut(image), disc) > 0.9


def test_rectangle_in_fractions_is_the_one_in_pixels() -> None:
    image, _, right = two_discs()
    pixels = grabcut(image, GrabCutSettings(rect=(50, 6, 45, 48), upscale=0))
    assert iou(pixels, right) > 0.95
    assert (grabcut(image, GrabCutSettings(rect=(0.5, 0.1, 0.45, 0.8), upscale=0)) == pixels).all()


def test_hints_decide_which_of_two_is_the_object() -> None:
    image, left, right = two_discs()
    both = grabcut(image, QUICK)
    assert iou(both, left | right) > 0.9
    for wanted, other in ((left, right), (right, left)):
        hints = np.full(left.shape, 128, np.uint8)
        hints[28:32][wanted[28:32]] = 255
        hints[28:32][other[28:32]] = 0
        found = grabcut(image, QUICK, hints)
        assert iou(found, wanted) > 0.9
        assert found[hints == 255].all()
        assert not found[hints == 0].any()


def test_white_hint_outside_of_the_rectangle_widens_it() -> None:
    image, left, right = two_discs()
    rect = GrabCutSettings(rect=(50, 6, 45, 48), upscale=0)
    hints = np.full(left.shape, 128, np.uint8)
    hints[29:31, 16:40] = 255
    assert iou(grabcut(image, rect, hints), left | right) > 0.9


def test_hints_at_the_limits_of_grey() -> None:
    image, disc = scene()
    still = np.where(disc, 64, 191).astype(np.uint8)  # neither is white or black: the same as no hints
    assert (grabcut(image, QUICK, still) == grabcut(image, QUICK)).all()
    hints = still.copy()
    hints[30, 36], hints[5, 70] = 63, 192
    found = grabcut(image, QUICK, hints)
    assert disc[30, 36]
    assert not found[30, 36]
    assert found[5, 70]


def test_result_depends_on_the_arguments_alone() -> None:
    images = [scene(seed=seed)[0] for seed in range(6)]
    alone = [grabcut(image, QUICK) for image in images]
    again = [grabcut(image, QUICK) for image in reversed(images)][::-1]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: grabcut(image, QUICK), images * 3))
    for number, expected in enumerate(alone):
        assert (again[number] == expected).all()
        assert all((found == expected).all() for found in together[number :: len(images)])


def test_arguments_stay_as_they_are() -> None:
    image, disc = scene()
    hints = np.full(disc.shape, 128, np.uint8)
    before = image.copy(), hints.copy()
    grabcut(image, QUICK, hints)
    assert (image == before[0]).all()
    assert (hints == before[1]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (2, 2), (3, 3), (4, 3), (5, 60), (32, 32)])
@pytest.mark.parametrize("upscale", [0, 64])
def test_images_with_nothing_to_cut(shape: tuple[int, int], upscale: int) -> None:
    for value in (0, 128, 255):
        found = grabcut(np.full((*shape, 3), value, np.uint8), GrabCutSettings(upscale=upscale))
        assert found.shape == shape
        assert found.dtype == bool


@pytest.mark.parametrize(
    ("settings", "hints", "says"),
    [
        (GrabCutSettings(rect=(90, 0, 10, 10)), None, "outside of the image of 80×60"),
        (GrabCutSettings(rect=(0, 0, 1, 1)), None, "leaves no background"),
        (GrabCutSettings(rect=(0, 0, 500, 500)), None, "leaves no background"),
        (GrabCutSettings(), np.zeros((80, 60), np.uint8), "the hints are 60×80, the image is 80×60"),
    ],
)
def test_what_cannot_be_cut_is_one_line(settings: GrabCutSettings, hints: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        grabcut(scene()[0], settings, hints)
    assert "\n" not in str(caught.value)


def test_hints_that_leave_no_foreground() -> None:
    image, disc = scene()
    assert not grabcut(image, QUICK, np.zeros(disc.shape, np.uint8)).any()


@pytest.mark.parametrize("rect", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 5, float("nan"))])
def test_rectangles_that_hold_nothing(rect: tuple[float, float, float, float]) -> None:
    with pytest.raises(PixelsemError, match="rect"):
        GrabCutSettings(rect=rect)


def test_transparent_scribbles_are_open(tmp_path: Path) -> None:
    drawn = np.zeros((2, 3, 4), np.uint8)
    drawn[0, 0], drawn[0, 1], drawn[1, 2] = (255, 255, 255, 255), (0, 0, 0, 255), (255, 255, 255, 10)
    Image.fromarray(drawn).save(tmp_path / "a.png")
    assert read_hints(tmp_path / "a.png").tolist() == [[255, 0, 128], [128, 128, 128]]
    Image.fromarray(np.array([[0, 128, 255]], np.uint8)).save(tmp_path / "b.png")
    assert read_hints(tmp_path / "b.png").tolist() == [[0, 128, 255]]


def test_segmenter_takes_hints_by_name_and_knows_their_content(tmp_path: Path) -> None:
    image, left, right = two_discs()
    hints = np.full(left.shape, 128, np.uint8)
    hints[28:32][left[28:32]], hints[28:32][right[28:32]] = 255, 0
    write_image(tmp_path / "cat/a.png", hints)
    settings = GrabCutSettings(upscale=0, hints=tmp_path)
    segmenter = GrabCut(settings, ["cat/a.jpg", "cat/b.jpg"])
    assert iou(segmenter([image], ["cat/a.jpg"])[0] == 255, left) > 0.9
    assert iou(segmenter([image], ["cat/b.jpg"])[0] == 255, left | right) > 0.9
    before = segmenter.identity
    assert list(before["hints"]) == ["cat/a.jpg"]  # type: ignore[call-overload]
    assert str(tmp_path) not in str(before)
    write_image(tmp_path / "cat/a.png", 255 - hints)
    assert GrabCut(settings, ["cat/a.jpg"]).identity != before


def test_segmenter_names_what_does_not_fit(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((3, 3), np.uint8))
    settings = GrabCutSettings(hints=tmp_path)
    with pytest.raises(PixelsemError, match="no scribbles there"):
        GrabCut(settings, ["b.jpg"])
    with pytest.raises(InputError, match=r"a\.png: the hints are 3×3"):
        GrabCut(settings, ["a.jpg"])([scene()[0]], ["a.jpg"])
    with pytest.raises(InputError, match=r"b\.jpg: the rectangle leaves no background"):
        GrabCut(GrabCutSettings(rect=(0, 0, 1, 1)), ["b.jpg"])([scene()[0]], ["b.jpg"])
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError) as found:
        GrabCut(settings, ["a.jpg"])([scene()[0]], ["a.jpg"])
    assert str(found.value) == f"{tmp_path / 'a.png'}: not an image that can be read"


def test_methods_are_opened_by_name() -> None:
    segmenter = open_segmenter("grabcut", METHODS["grabcut"].settings(), ["a.jpg"])
    assert segmenter.kind == "binary"
    assert set(np.unique(segmenter([scene()[0]], ["a.jpg"]))) == {0, 255}
    with pytest.raises(PixelsemError, match="unknown method 'grabkut'; there are grabcut"):
        open_segmenter("grabkut", GrabCutSettings(), [])


def test_centre_prior_finds_the_middle_one() -> None:
    y, x = np.mgrid[:60, :100]
    middle, corner = (x - 50) ** 2 + (y - 30) ** 2 < 144, (x - 4) ** 2 + (y - 3) ** 2 < 6
    image = np.full((60, 100, 3), 128.0)
    image[middle | corner] = (200, 30, 30)
    image = np.clip(image + np.random.default_rng(1).normal(0, 6, image.shape), 0, 255).astype(np.uint8)
    rect = GrabCutSettings(upscale=0, margin=0.01)
    assert iou(grabcut(image, rect), middle | corner) > 0.95
    assert iou(grabcut(image, dataclasses.replace(rect, init="center-prior")), middle) > 0.95
    assert iou(grabcut(image, GrabCutSettings(init="center-prior")), middle) > 0.95  # enlarged


def test_centre_prior_lies_in_the_rectangle() -> None:
    image, left, right = two_discs()
    for rect, wanted in (((4, 6, 48, 48), left), ((0.5, 0.1, 0.45, 0.8), right)):
        found = grabcut(image, GrabCutSettings(init="center-prior", rect=rect, upscale=0))
        assert iou(found, wanted) > 0.95


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (4, 3), (5, 60)])
def test_centre_prior_of_tiny_images(shape: tuple[int, int]) -> None:
    for upscale in (0, 64):
        found = grabcut(np.full((*shape, 3), 9, np.uint8), GrabCutSettings(init="center-prior", upscale=upscale))
        assert found.shape == shape


def soft(region: NDArray[np.bool_], inside: float, outside: float) -> NDArray[np.float32]:
    return np.where(region, np.float32(inside), np.float32(outside))


SALIENT = GrabCutSettings(init="saliency", upscale=0, iterations=2)


def test_a_prior_decides_which_of_two_is_the_object() -> None:
    image, left, right = two_discs()
    for wanted in (left, right):
        rough = np.zeros_like(wanted)
        rough[20:40] = wanted[20:40]
        assert iou(grabcut(image, SALIENT, prior=soft(rough, 0.8, 0.2)), wanted) > 0.95
        assert iou(grabcut(image, dataclasses.replace(SALIENT, upscale=120), prior=soft(rough, 0.8, 0.2)), wanted) > 0.9


def test_a_prior_is_sure_at_its_ends() -> None:
    image, left, _ = two_discs()
    prior = soft(left, 0.7, 0.2)
    prior[29:31, 70:74], prior[29:31, 26:30] = 0.9, 0.05
    found = grabcut(image, SALIENT, prior=prior)
    assert found[29:31, 70:74].all()
    assert not found[29:31, 26:30].any()
    hints = np.full(left.shape, 128, np.uint8)
    hints[29:31, 70:74], hints[29:31, 26:30] = 0, 255  # scribbles win
    found = grabcut(image, SALIENT, hints, prior)
    assert not found[29:31, 70:74].any()
    assert found[29:31, 26:30].all()


@pytest.mark.parametrize("value", [0.0, 0.3, 0.7, 1.0])
def test_a_prior_of_one_side_stays_one(value: float) -> None:
    image, disc = scene()
    assert (grabcut(image, SALIENT, prior=soft(disc, value, value)) == (value >= 0.5)).all()


def test_a_prior_belongs_to_settings_that_ask_for_it() -> None:
    image, disc = scene()
    with pytest.raises(PixelsemError, match="exactly where its settings"):
        grabcut(image, SALIENT)
    with pytest.raises(PixelsemError, match="exactly where its settings"):
        grabcut(image, QUICK, prior=soft(disc, 1, 0))
    with pytest.raises(InputError, match="the prior is 60×80, the image is 80×60"):
        grabcut(image, SALIENT, prior=soft(disc, 1, 0).T)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"init": "saliency", "margin": 0.1}, "--margin has no effect with --init saliency"),
        ({"prior": Path("masks"), "rect": (1, 1, 2, 2)}, "--rect has no effect with --prior"),
        ({"prior": Path("masks"), "init": "center-prior"}, "--prior and --init center-prior"),
    ],
)
def test_only_one_start(given: dict[str, Any], says: str) -> None:
    with pytest.raises(PixelsemError, match=says):
        GrabCutSettings(**given)


def test_masks_become_priors() -> None:
    values = np.array([[0, 13107, 32768, 65535]])
    np.testing.assert_allclose(to_prior(values, "soft"), [[0, 0.2, 0.5, 1]], atol=1e-5)
    np.testing.assert_allclose(to_prior(values, "soft", 0.2), [[0, 0.5, 0.6875, 1]], atol=1e-5)
    assert to_prior(np.array([[0, 255]]), "binary").tolist() == [[0.25, 0.75]]
    assert to_prior(np.array([[0, 1, 7]]), "labels").tolist() == [[0.25, 0.75, 0.75]]


def test_segmenter_starts_from_masks_by_name_and_knows_their_content(tmp_path: Path) -> None:
    image, left, right = two_discs()
    write_image(tmp_path / "cat/a.png", (soft(left, 0.8, 0.2) * 65535).astype(np.uint16))
    write_image(tmp_path / "cat/b.png", right)
    settings = GrabCutSettings(upscale=0, prior=tmp_path)
    segmenter = GrabCut(settings, ["cat/a.jpg", "cat/b.jpg"])
    first, second = segmenter([image, image], ["cat/a.jpg", "cat/b.jpg"])
    assert iou(first == 255, left) > 0.95
    assert iou(second == 255, right) > 0.95
    with pytest.raises(InputError, match=r"c\.jpg: has no mask in .* to start from"):
        segmenter([image], ["c.jpg"])
    before = segmenter.identity
    assert sorted(before["prior"]) == ["cat/a.jpg", "cat/b.jpg"]  # type: ignore[call-overload]
    write_image(tmp_path / "cat/b.png", left)
    assert GrabCut(settings, ["cat/a.jpg", "cat/b.jpg"]).identity != before
    with pytest.raises(PixelsemError, match="no mask there is named as one of the images"):
        GrabCut(settings, ["dog.jpg"])


def test_a_mask_to_start_from_that_cannot_be_read_is_its_images_problem_alone(tmp_path: Path) -> None:
    image, left, _ = two_discs()
    write_image(tmp_path / "a.png", left)
    (tmp_path / "b.png").write_bytes(b"no picture")
    segmenter = GrabCut(GrabCutSettings(upscale=0, prior=tmp_path), ["a.jpg", "b.jpg"])
    assert iou(segmenter([image], ["a.jpg"])[0] == 255, left) > 0.95
    with pytest.raises(InputError, match=r"b\.png: not an image that can be read"):
        segmenter([image], ["b.jpg"])
    before = segmenter.identity
    write_image(tmp_path / "b.png", left)
    assert GrabCut(segmenter.settings, ["a.jpg", "b.jpg"]).identity != before


class FakeNetwork:
    """Finds what is red."""

    kind = "soft"
    batch = 8
    whole = False

    def __init__(self, weights: str) -> None:
        self.identity = {"weights": weights}

    def __call__(self, images: list[Image8], ids: list[str]) -> list[NDArray[np.uint16]]:
        assert len(images) == len(ids) == 1
        return [np.where(image[..., 0] > 165, 60000, 6000).astype(np.uint16) for image in images]


def test_saliency_starts_from_what_u2netp_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    image, left, _ = two_discs()
    opened = []

    def fake(method: str, settings: Settings, ids: list[str]) -> FakeNetwork:
        opened.append((method, settings, ids))
        return FakeNetwork(f"weights {len(opened)}")

    monkeypatch.setattr(registry, "open_segmenter", fake)
    segmenter = GrabCut(SALIENT, ["a.jpg"])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: segmenter([image], ["a.jpg"])[0], range(6)))
    assert all(iou(mask == 255, left) > 0.95 for mask in found)
    assert opened == [("u2netp", METHODS["u2netp"].settings(), ["a.jpg"])]
    assert segmenter.identity["prior"] == {"weights": "weights 1"}
    assert GrabCut(SALIENT, ["a.jpg"]).identity != segmenter.identity
    assert GrabCut(QUICK, ["a.jpg"]).identity["prior"] is None


def test_half_an_opencv_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    assert opencv.require("grabCut") is cv2
    monkeypatch.delattr(cv2, "grabCut")
    with pytest.raises(PixelsemError, match=r"has no grabCut; .*pip install --force-reinstall"):
        opencv.require("grabCut")
    with pytest.raises(PixelsemError, match=r"has no ximgproc\.createNothing"):
        opencv.require("ximgproc.createNothing")
    monkeypatch.setattr(cv2, "__version__", "4.2.0")
    with pytest.raises(PixelsemError, match=r"older than 4\.10"):
        opencv.require("resize")


WANTED = "opencv-contrib-python-headless"
INSTALL = f"`pip install --force-reinstall {WANTED}`"


@pytest.mark.parametrize(
    ("installed", "advice"),
    [
        ([], INSTALL),
        ([WANTED], INSTALL),
        (["opencv-python"], f"opencv-python is installed: `pip uninstall -y opencv-python`, then {INSTALL}"),
        (
            ["opencv-python-headless", WANTED],
            f"opencv-python-headless and {WANTED} overwrite each other: "
            f"`pip uninstall -y opencv-python-headless {WANTED}`, then {INSTALL}",
        ),
    ],
)
def test_advice_fits_what_is_installed(monkeypatch: pytest.MonkeyPatch, installed: list[str], advice: str) -> None:
    import cv2

    def distribution(name: str) -> None:
        if name not in installed:
            raise PackageNotFoundError(name)

    monkeypatch.setattr(opencv, "distribution", distribution)
    monkeypatch.delattr(cv2.ximgproc, "createSuperpixelSLIC")  # the sub-module itself may stay
    with pytest.raises(PixelsemError) as caught:
        opencv.require("ximgproc.createSuperpixelSLIC")
    assert str(caught.value) == f"OpenCV {cv2.__version__} has no ximgproc.createSuperpixelSLIC; {advice}"


DATA = os.environ.get("PIXELSEM_DATA", "")


@pytest.mark.skipif(not (Path(DATA) / "ecssd/images").is_dir() or not DATA, reason="PIXELSEM_DATA names no data")
def test_real_photos() -> None:
    scores = []
    for path in sorted((Path(DATA) / "ecssd/images").iterdir())[:300:50]:
        image = read_image(path)
        truth = read_mask(path.parents[1] / "masks" / f"{path.stem}.png") > 127
        scores.append(iou(grabcut(image, GrabCutSettings(iterations=2)), truth))
    assert np.mean(scores) > 0.5


def test_saliency_without_weights_says_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelsem.regions.saliency.bundled_weights", lambda model: None)
    with pytest.raises(PixelsemError, match=r"--init saliency .*--method u2netp --weights FILE, .*--prior") as error:
        GrabCut(SALIENT, ["a.jpg"])
    assert "\n" not in str(error.value)
