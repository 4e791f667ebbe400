"""The sample images: every one accounted for, the drawn ones reproducible, most of them what the model says too."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "sample_images"
IMAGES = sorted(p.relative_to(FOLDER / "images").as_posix() for p in (FOLDER / "images").rglob("*") if p.is_file())
RENDERED = sorted(p.relative_to(FOLDER / "truth").as_posix() for p in (FOLDER / "truth").rglob("*") if p.is_file())


def read(relative: str) -> NDArray[np.uint8]:
    """Return a file below sample_images/ as it is stored: [H, W, 3] or [H, W]."""
    with Image.open(FOLDER / relative) as image:
        return np.array(image)


@pytest.fixture(scope="module")
def render() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sample_images_render", FOLDER / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sources() -> dict[str, list[str]]:
    """Return the cells of each row of the table in SOURCES.md by file name."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (FOLDER / "SOURCES.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    return {row[0].strip("`"): row for row in rows}


def test_every_image_is_in_the_table_with_a_free_licence() -> None:
    table = sources()
    assert sorted(table) == sorted(f"images/{name}" for name in IMAGES)
    for row in table.values():
        assert len(row) == 5
        assert all(row), row
        assert row[4] in {"CC0 1.0", "public domain"}


def test_there_are_enough_images_and_they_are_small() -> None:
    assert len(IMAGES) >= 10
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.suffix in {".png", ".jpg"}) < 800_000


def test_what_the_script_renders_is_what_is_there(render: ModuleType) -> None:
    assert sorted(f"{name}.png" for name in render.SCENES) == RENDERED
    drawn = [name for name in IMAGES if sources()[f"images/{name}"][2] == "`render.py`"]
    assert drawn == RENDERED


@pytest.mark.parametrize("name", RENDERED)
def test_mask_fits_its_image(name: str) -> None:
    image, mask = read(f"images/{name}"), read(f"truth/{name}")
    assert image.dtype == mask.dtype == np.uint8
    assert image.shape == (*mask.shape, 3)
    assert set(np.unique(mask).tolist()) == {0, 255}
    assert 0.05 < (mask == 255).mean() < 0.80


@pytest.mark.parametrize("name", RENDERED)
def test_rendering_again_gives_the_same_picture(render: ModuleType, name: str) -> None:
    picture, mask = render.render(name.removesuffix(".png"))
    # Another build of OpenCV may round a blur differently: one grey level is allowed, in the mask nothing is.
    assert np.abs(picture.astype(int) - read(f"images/{name}")).max() <= 1
    np.testing.assert_array_equal(mask, read(f"truth/{name}"))


def test_main_writes_images_and_masks_and_the_seed_counts(
    render: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "SCENES", {"ship/cruiser": render.SCENES["ship/cruiser"]})
    render.main(["-o", str(tmp_path / "a"), "--seed", "7"])
    render.main(["-o", str(tmp_path / "b"), "--seed", "7"])
    render.main(["-o", str(tmp_path / "c"), "--seed", "8"])
    a, b, c = ((tmp_path / run / "images/ship/cruiser.png").read_bytes() for run in "abc")
    assert a == b
    assert a != c
    assert (tmp_path / "a/truth/ship/cruiser.png").is_file()


def test_the_bundled_model_sees_what_a_person_sees() -> None:
    import torch

    import pixelsem
    from pixelsem.models.inputs import fit_image

    classifier = pixelsem.load_classifier("allconv").eval()
    named = [name for name in IMAGES if name.split("/")[0] in classifier.class_names]
    fitted = [fit_image(read(f"images/{name}"), classifier.preprocessing, resize="crop") for name in named]
    batch = torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        classes = [classifier.class_names[k] for k in classifier(batch).argmax(1).tolist()]
    wrong = {name: seen for name, seen in zip(named, classes, strict=True) if not name.startswith(f"{seen}/")}
    assert len(named) - len(wrong) >= 6, wrong
