"""``pixelsem segment review`` and ``preview`` as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from conftest import ROOT
from review_stages import SIZE, disc, entry, make_stage, png, records, scene, strokes, write_decisions
from typer.testing import CliRunner

from pixelsem.cli import segment, segment_review
from pixelsem.cli.groups import RootGroup
from pixelsem.images import read_image, write_image
from pixelsem.report.overlays import draw_binary, draw_labels, draw_soft, fitted, fitted_mask, label_colours
from pixelsem.report.preview import Tile, draw_sheet

IDS = ["a.png", "cat/b.png", "cat/c.png", "dog/d.png"]
SMALL = np.zeros(SIZE, np.uint8)
SMALL[20:24, 14:18] = 255  # 0.6 % of the image: flagged
BLUE = (0, 114, 178)


def call(*arguments: str | Path, code: int = 0) -> Any:
    app = typer.Typer(cls=RootGroup, pretty_exceptions_enable=False, rich_markup_mode=None)
    segment.register(app)
    app.command("other")(lambda: None)
    result = CliRunner().invoke(app, ["segment", *map(str, arguments)], prog_name="pixelsem")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def embedded(page: Path) -> dict[str, Any]:
    """Return the data of a page: what it says of all images, and the pictures of each."""
    found = {}
    for part in page.read_text().split('<script type="application/json" id="')[1:]:
        name, rest = part.split('">', 1)
        found[name] = json.loads(rest.split("</script>")[0])
    return found


# Without a browser


def test_page_holds_every_image_and_nothing_from_elsewhere(folder: Path) -> None:
    stage = make_stage(folder, IDS, a_png=SMALL)
    result = call("review", "stage", "-o", "page.html")
    assert result.stdout == "page.html\n"
    assert "4 images are on the page" in result.stderr
    data = embedded(Path("page.html"))
    images = data["about"]["images"]
    assert [image["id"] for image in images] == IDS
    assert images[0]["flags"] == records(stage)["a.png"].flags
    assert images[1]["coverage"] == records(stage)["cat/b.png"].coverage
    assert (images[1]["width"], images[1]["height"], images[1]["drawn"]) == (60, 44, [60, 44])
    assert all(data[f"d{number}"]["image"].startswith("data:image/") for number in range(4))
    text = Path("page.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text


def test_page_of_the_newest_stage_below_run(folder: Path) -> None:
    stage = make_stage(folder / "pixelsem-run", IDS)
    page = call("review", "-q").stdout.strip()
    assert page == f"pixelsem-run/segment-review-{stage.info.identity[:6]}.html"
    assert call("preview", "-q").stdout.strip() == f"pixelsem-run/segment-preview-{stage.info.identity[:6]}.png"


def test_only_flagged_images_are_on_the_page(folder: Path) -> None:
    make_stage(folder, IDS, cat_b_png=SMALL)
    summary = json.loads(call("review", "stage", "--only", "flagged", "--json", "-o", "page.html").stdout)
    assert summary == {"page": "page.html", "images": 1, "failures": {}}
    assert [image["id"] for image in embedded(Path("page.html"))["about"]["images"]] == ["cat/b.png"]
    make_stage(folder / "clean", IDS)
    assert "no mask is flagged" in call("review", "clean/stage", "--only", "flagged", code=2).stderr


def test_images_that_do_not_fit_are_named_and_the_others_shown(folder: Path) -> None:
    make_stage(folder, IDS)
    write_image(folder / "photos/cat/b.png", scene(1)[:20])
    result = call("review", "stage", "-o", "page.html", "--json", code=1)
    assert json.loads(result.stdout)["images"] == 3
    assert "was the image changed" in result.stderr
    assert json.loads(call("preview", "stage", "-o", "p.png", "--json", code=1).stdout)["failures"].keys() == {
        "cat/b.png"
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["review", "gone"], "no such file"),
        (["review", "photos"], "no stage"),
        (["review", "stage", "stage"], "one at a time"),
        (["review", "stage", "-o", "page.txt"], "must end in .html"),
        (["review", "stage", "--apply", "gone.json"], "cannot be read"),
        (["review", "stage", "--apply", "gone.json", "-o", "page.html"], "the stage itself is changed"),
        (["preview", "stage", "-o", "sheet.jpg"], "must end in .png"),
        (["review", "empty/stage"], "holds no masks yet"),
        (["preview", "empty/stage"], "holds no masks yet"),
    ],
)
def test_wrong_usage_is_one_line(folder: Path, arguments: list[str], said: str) -> None:
    make_stage(folder, IDS)
    make_stage(folder / "empty", [])
    result = call(*arguments, code=2)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_apply_prints_the_stage_for_the_next_command(folder: Path) -> None:
    stage = make_stage(folder, IDS)
    drawn = png(strokes(black=disc(16)))
    file = write_decisions(
        stage, entry(stage, "a.png", decision="rejected"), entry(stage, "cat/b.png", scribbles=drawn)
    )
    result = call("review", "stage", "--apply", file)
    assert result.stdout == "stage\n"
    assert "a.png: rejected in review" in result.stderr
    assert "0 accepted, 1 rejected, 1 made anew from scribbles, 0 failed" in result.stderr
    summary = json.loads(call("review", "stage", "--apply", file, "--json").stdout)
    assert summary == {
        "stage": "stage", "accepted": [], "rejected": ["a.png"], "redone": ["cat/b.png"],
        "flagged": {"a.png": "rejected in review"}, "failures": {},
    }  # fmt: skip


def test_scribbles_of_the_hints_folder_are_on_the_page(folder: Path) -> None:
    for number, name in enumerate(IDS):
        write_image(folder / "photos" / name, scene(number))
    write_image(folder / "hints/cat/b.png", strokes(black=disc(16)))
    call("--hints", "hints", "--upscale", "0", "photos", "-o", "stage")
    call("review", "stage", "-o", "page.html")
    assert [image["scribbled"] for image in embedded(folder / "page.html")["about"]["images"]] == [
        name == "cat/b.png" for name in IDS
    ]


def test_the_wheel_holds_the_page() -> None:
    from importlib.resources import files

    for name in ("review.html", "review.css", "review.js"):
        assert (files("pixelsem.report") / name).is_file()
    packages = (ROOT / "pyproject.toml").read_text()
    assert 'packages = ["pixelsem"]' in packages  # hatch takes every file below


# The contact sheet


def test_preview_shows_every_image_with_its_mask(folder: Path) -> None:
    make_stage(folder, IDS, a_png=SMALL)
    result = call("preview", "stage", "-o", "sheet.png", "--columns", "2", "--size", "120", "--json")
    summary = json.loads(result.stdout)
    assert [image["id"] for image in summary["images"]] == IDS
    assert [image["flagged"] for image in summary["images"]] == [True, False, False, False]
    sheet = read_image(folder / "sheet.png")
    assert sheet.shape == (2 * (120 + 38) + 3 * 14, 2 * 120 + 3 * 14, 3)
    # 60 × 44 pixels are shown twice as large in the middle of the cell.
    top, left = 14 + (120 - 88) // 2, 14 + 120 + 14
    shown = sheet[top : top + 88, left : left + 120]
    expected = draw_binary(fitted(scene(1), 120), fitted_mask(disc(16) | disc(44), 120) != 0)
    assert (shown == expected).all()


def test_preview_of_a_part_and_of_very_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_stage(folder, IDS)

    def shown(*options: str) -> list[str]:
        return [
            i["id"] for i in json.loads(call("preview", "stage", "-o", "s.png", "--json", *options).stdout)["images"]
        ]

    assert shown("--limit", "2") == IDS[:2]
    assert len(shown("--sample", "2")) == 2
    assert shown("--sample", "2") == shown("--sample", "2")
    monkeypatch.setattr(segment_review, "SHEET", 3)
    assert "3 of 4 images are shown" in call("preview", "stage", "-o", "s.png").stderr
    assert shown("--limit", "4") == IDS


@pytest.mark.parametrize("method", ["slic", "u2net"])
def test_preview_of_other_kinds_of_mask(folder: Path, method: str) -> None:
    values = np.where(disc(16), 3, 1).astype(np.uint8) if method == "slic" else (disc(16) * np.uint16(65535))
    make_stage(folder, ["a.png"], method=method, a_png=values)
    call("preview", "stage", "-o", "s.png", "--size", "60")
    tile = read_image(folder / "s.png")[14 + 8 : 14 + 52, 14:74]
    draw = draw_labels if method == "slic" else draw_soft
    assert (tile == draw(scene(0), values)).all()
    call("review", "stage", "-o", "page.html")
    assert (embedded(folder / "page.html")["about"]["images"][0]["drawn"] is None) == (method == "slic")


def test_binary_overlay_tints_inside_outlines_and_fades_outside() -> None:
    image = np.full((20, 20, 3), 100, np.uint8)
    foreground = np.zeros((20, 20), bool)
    foreground[5:15, 5:15] = True
    shown = draw_binary(image, foreground)
    assert tuple(shown[5, 9]) == BLUE
    assert tuple(shown[4, 9]) == (255, 255, 255)
    assert (shown[8:12, 8:12] == np.rint(0.72 * 100 + 0.28 * np.array(BLUE))).all()
    assert (shown[:3] > 150).all()


def test_labels_have_colours_of_their_own_and_the_same_everywhere() -> None:
    colours = label_colours(np.arange(0, 60).reshape(1, -1))[0]
    assert len({tuple(colour) for colour in colours.tolist()}) > 50
    assert (np.abs(np.diff(colours.astype(int), axis=0)).sum(axis=1) > 40).all()
    assert (label_colours(np.full((2, 2), 7)) == colours[7]).all()


def test_soft_overlay_is_warmer_where_the_mask_is_stronger_and_lined_at_the_threshold() -> None:
    heat = np.tile(np.linspace(0, 65535, 40).astype(np.uint16), (10, 1))
    shown = draw_soft(np.full((10, 40, 3), 100, np.uint8), heat, threshold=0.75).astype(int)
    assert shown[5, 1, 2] > shown[5, 1, 0]
    assert shown[5, 38, 0] > shown[5, 38, 2]
    (white,) = np.nonzero((shown[5] == 255).all(axis=1))
    assert white[0] == np.argmax(heat[0] >= 0.75 * 65535)


def test_a_sheet_is_about_square_and_long_names_are_cut() -> None:
    tile = Tile(np.zeros((40, 60, 3), np.uint8), "a/very/long/name/of/an/image/that/does/not/fit.png", "12 %")
    sheet = draw_sheet([tile] * 30, side=64)
    assert 0.6 < sheet.shape[0] / sheet.shape[1] < 1.7
    assert (sheet[:, :14] == 255).all()  # nothing is written over the margin
    with pytest.raises(ValueError, match="no tiles"):
        draw_sheet([])
