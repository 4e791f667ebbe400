from __future__ import annotations

import dataclasses
import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import typer
from attack_stages import info, prediction, record, write_stage
from conftest import problem
from matplotlib.patches import Circle
from PIL import Image
from typer.testing import CliRunner, Result

from pixelsem.cli import evaluate_panels
from pixelsem.cli.attack_stages import AttackStages
from pixelsem.cli.groups import RootGroup
from pixelsem.cli.options import expand
from pixelsem.images import write_image
from pixelsem.report.figures import save_figure
from pixelsem.report.panels import (
    DPI,
    Attacked,
    PanelRow,
    amplified,
    draw_panels,
    overlay,
    region_colours,
)

REGIONS = ("original", "foreground", "background")


def noise(*, seed: int = 0, height: int = 10, width: int = 10) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def half_mask(height: int = 10, width: int = 10) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[:, : width // 2] = True
    return mask


def change(image: np.ndarray, *places: tuple[int, int]) -> np.ndarray:
    changed = image.copy()
    for x, y in places:
        changed[y, x] = 255 - changed[y, x]
    return changed


def make_row(name: str = "cat/1.png", regions: tuple[str, ...] = REGIONS, **changes) -> PanelRow:
    clean = noise()
    places = {region: ((1 + i, 2), (7, 3 + i)) for i, region in enumerate(regions)}
    attacked = {r: Attacked(change(clean, *p), "→ dog 60 %", True, p) for r, p in places.items()}
    masks = {"foreground": half_mask(), "background": ~half_mask()}
    row = PanelRow(name, clean, "cat 90 %", attacked, {r: mask for r, mask in masks.items() if r in regions})
    return dataclasses.replace(row, **changes)


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def pixels_of(figure, tmp_path: Path) -> np.ndarray:
    save_figure(figure, tmp_path / "figure.png")
    return np.asarray(Image.open(tmp_path / "figure.png").convert("RGB"))


class TestDrawing:
    @pytest.mark.parametrize(
        ("regions", "difference", "columns"),
        [(REGIONS, True, 8), (REGIONS, False, 5), (("original",), True, 3), (("foreground",), True, 4)],
    )
    def test_columns(self, regions, difference, columns):
        figure = draw_panels([make_row(regions=regions)] * 3, difference=difference)
        assert len(figure.axes) == 3 * columns

    def test_circles_are_around_the_changed_pixels(self):
        row = make_row()
        panels = draw_panels([row]).axes[2:]  # attacked images, then differences
        for region, axes in zip(REGIONS * 2, panels, strict=True):
            circles = [patch for patch in axes.patches if isinstance(patch, Circle)]
            assert sorted(circle.center for circle in circles) == sorted(row.attacked[region].pixels)
            assert all(circle.radius > np.sqrt(0.5) for circle in circles)  # the pixel itself stays free
            assert axes.get_xlim() == (-0.5, 9.5)
            assert axes.get_ylim() == (9.5, -0.5)

    def test_says_what_is_shown(self):
        held = Attacked(noise(), "still cat 80 %", False)
        row = make_row()
        row = dataclasses.replace(row, attacked={**row.attacked, "background": held})
        figure = draw_panels([row], attacked="2 pixels changed", gain=3)
        written = texts(figure)
        for text in ("original", "regions", "cat/1.png", "cat 90 %", "→ dog 60 %", "still cat 80 %", "difference × 3"):
            assert text in written
        assert written.count("2 pixels changed") == 3
        assert written.count("50 %") == 2
        fooled = next(text for text in figure.texts if text.get_text() == "→ dog 60 %")
        safe = next(text for text in figure.texts if text.get_text() == "still cat 80 %")
        assert fooled.get_color() != safe.get_color()
        assert (fooled.get_weight(), safe.get_weight()) == ("bold", "normal")

    def test_every_pixel_is_a_sharp_square(self, tmp_path):
        row = make_row(regions=("original",))
        for shape in ((10, 10), (7, 13)):
            clean = noise(height=shape[0], width=shape[1])
            plain = dataclasses.replace(row, clean=clean, attacked={"original": Attacked(clean, "", False)})
            figure = draw_panels([plain], size=100, difference=False)
            seen = pixels_of(figure, tmp_path)
            factor = 100 // max(shape)
            wanted = np.kron(clean, np.ones((factor, factor, 1), dtype=np.uint8))
            for axes in figure.axes:
                box = axes.get_window_extent()
                left, top = round(box.x0), round(seen.shape[0] - box.y1)
                found = seen[top : top + wanted.shape[0], left : left + wanted.shape[1]]
                assert np.array_equal(found, wanted)

    def test_no_ring_hides_another_changed_pixel(self, tmp_path):
        places = tuple((x, y) for x in (3, 4, 5) for y in (4, 5))
        attacked = change(noise(), *places)
        row = PanelRow("a", noise(), "", {"original": Attacked(attacked, "", True, places)})
        figure = draw_panels([row], size=100, difference=False)
        seen = pixels_of(figure, tmp_path)
        box = figure.axes[1].get_window_extent()
        left, top = round(box.x0), round(seen.shape[0] - box.y1)
        for x, y in places:
            square = seen[top + 10 * y : top + 10 * (y + 1), left + 10 * x : left + 10 * (x + 1)]
            assert (square == attacked[y, x]).all()

    def test_large_images_are_not_made_smaller(self):
        clean = noise(height=60, width=60)
        row = PanelRow("a", clean, "", {"original": Attacked(clean, "", False)})
        assert round(draw_panels([row], size=32).axes[0].get_window_extent().width) == 60

    def test_rows_of_several_sizes_share_their_columns(self):
        rows = [
            PanelRow("a", noise(height=h, width=w), "", {"original": Attacked(noise(height=h, width=w), "", False)})
            for h, w in ((10, 10), (30, 20))
        ]
        boxes = [axes.get_window_extent() for axes in draw_panels(rows, size=120, difference=False).axes]
        assert [(round(box.width), round(box.height)) for box in boxes] == [(120, 120)] * 2 + [(80, 120)] * 2
        middles = [box.x0 + box.width / 2 for box in boxes]
        assert middles[0] == pytest.approx(middles[2], abs=0.51)

    def test_missing_pictures_leave_their_place_empty(self):
        row = make_row(attacked={"original": Attacked(None, "not attacked", False)}, masks={})
        figure = draw_panels([row, make_row()])
        assert len(figure.axes) == 16
        assert [len(axes.images) for axes in figure.axes[:8]] == [1, 0, 0, 0, 0, 0, 0, 0]
        assert "not attacked" in texts(figure)

    def test_long_names_are_shortened_and_no_formula_is_read(self, tmp_path):
        long = "class $a_b^c " * 30
        row = make_row(name=long, text=r"$\frac{1$ 90 %", attacked={"original": Attacked(None, long + "90 %", True)})
        figure = draw_panels([row])
        save_figure(figure, tmp_path / "figure.svg")
        assert r"$\frac{1$ 90 %" in texts(figure)
        cut = [text for text in texts(figure) if text.startswith("class $a")]
        assert len(cut) == 2
        assert all("…" in text and len(text) < 60 for text in cut)
        assert any(text.endswith("90 %") for text in cut)

    @pytest.mark.parametrize("field", ["clean", "mask", "attacked", "place"])
    def test_refuses_what_does_not_fit_together(self, field):
        row = make_row()
        wrong = {
            "clean": {"clean": row.clean.astype(np.float32)},
            "mask": {"masks": {"foreground": half_mask(9, 10)}},
            "attacked": {"attacked": {"original": Attacked(noise(width=11), "", False)}},
            "place": {"attacked": {"original": Attacked(row.clean, "", False, ((10, 0),))}},
        }[field]
        with pytest.raises(ValueError, match=r"cat/1\.png"):
            dataclasses.replace(row, **wrong)

    def test_refuses_an_empty_figure(self):
        with pytest.raises(ValueError, match="no rows"):
            draw_panels([])


class TestPictures:
    def test_difference_is_around_mid_grey_and_cut(self):
        clean, attacked = np.full((1, 3, 3), 100, np.uint8), np.full((1, 3, 3), 100, np.uint8)
        attacked[0, 1], attacked[0, 2] = 103, 0
        assert amplified(clean, attacked, 10)[0, :, 0].tolist() == [128, 158, 0]

    @pytest.mark.parametrize(("change", "gain"), [(2, 63), (127, 1), (200, 1), (0, 127)])
    def test_gain_fits_the_largest_difference(self, change, gain):
        clean = np.zeros((4, 4, 3), np.uint8)
        attacked = clean.copy()
        attacked[0, 0, 1] = change
        figure = draw_panels([PanelRow("a", clean, "", {"original": Attacked(attacked, "", False)})])
        assert f"difference × {gain}" in texts(figure)

    def test_overlay_tells_regions_apart_in_grey(self):
        image = np.full((4, 4, 3), 128, np.uint8)
        masks = {"foreground": np.zeros((4, 4), bool), "background": np.zeros((4, 4), bool)}
        masks["foreground"][0], masks["background"][1] = True, True
        grey = overlay(image, masks, region_colours(list(masks))) @ np.array([0.299, 0.587, 0.114])
        levels = [grey[0, 0], grey[1, 0], grey[2, 0]]  # foreground, background, neither
        assert levels == sorted(levels)
        assert min(np.diff(levels)) > 25

    def test_colours_differ(self):
        regions = ["original", "foreground", "background", "label:1", "label:2"]
        assert len(set(region_colours(regions).values())) == len(regions)


def make_app() -> typer.Typer:
    app = typer.Typer(cls=RootGroup, pretty_exceptions_enable=False)
    app.command("panels")(expand(evaluate_panels.evaluate_panels))
    app.command("other")(lambda: None)
    return app


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(make_app(), ["panels", *map(str, arguments)], input="")

    return run


def fill(stage: Path, records: list) -> None:
    """Write the files that records name."""
    for one in records:
        clean = noise()
        write_image(stage / one.clean, clean)
        if one.mask:
            write_image(stage / one.mask, half_mask() if one.region == "foreground" else ~half_mask())
        if one.adversarial:
            changed = clean.copy()
            for pixel in one.pixels:
                changed[pixel.y, pixel.x] = pixel.to
            write_image(stage / one.adversarial, changed)


def make_stage(path: Path, records: list, region: str = "all", **options) -> Path:
    write_stage(path, info(region, **options), *records)
    fill(path, records)
    return path


@pytest.fixture
def stage(tmp_path) -> Path:
    """Four images: fooled in no region, in all, in one, and not attacked."""
    hits = {1: (), 2: REGIONS, 3: ("foreground",)}
    records = [
        record(f"cat/{n}.png", region, to="dog" if region in hits[n] else None) for n in hits for region in REGIONS
    ]
    records += [record("cat/4.png", region, outcome="misclassified") for region in REGIONS]
    return make_stage(tmp_path / "run" / "attack", records)


def make_attack(path: Path, attack: str, levels: dict[str, int], **options) -> Path:
    """Write a stage of a gradient attack whose images, black before, have one level of grey throughout."""
    records = [record(image, to="dog", pixels=[]) for image in levels]
    about = dataclasses.replace(info(pixels=None, constraint=None, **options), command=f"attack {attack}")
    write_stage(path, about, *records)
    for one in records:
        write_image(path / one.clean, np.zeros((10, 10, 3), np.uint8))
        write_image(path / str(one.adversarial), np.full((10, 10, 3), levels[one.id], np.uint8))
    return path


def loaded(stage: Path, **options) -> list[PanelRow]:
    asked = evaluate_panels.PanelOptions(**options)
    lines = evaluate_panels._FigureData(AttackStages([stage])).choose(asked)
    return evaluate_panels._load(lines, asked.rows, asked.l2, {})[1]


def rows_of(call, *arguments: object) -> list[str]:
    result = call(*arguments, "--json", "-q")
    assert result.exit_code == 0, result.stderr
    return [row["id"] for row in json.loads(result.stdout)["rows"]]


class TestCommand:
    def test_png(self, call, stage):
        result = call(stage, "--rows", 2, "-o", "out/figure.png")
        assert result.exit_code == 0, result.stderr
        assert result.stdout == "out/figure.png\n"
        assert "2 of 3 rows" in result.stderr
        width, height = Image.open("out/figure.png").size
        assert width > 8 * 190
        assert height > 2 * 190
        assert len(np.unique(np.asarray(Image.open("out/figure.png")))) > 50

    def test_size_is_as_drawn(self, tmp_path):
        figure = draw_panels([make_row()])
        height, width = pixels_of(figure, tmp_path).shape[:2]
        assert (width, height) == tuple(np.rint(figure.get_size_inches() * DPI).astype(int))

    def test_svg_and_pdf(self, call, stage):
        for name in ("a.svg", "b.svg", "c.pdf", "d.PDF"):
            assert call(stage, "-o", name).exit_code == 0
        assert ElementTree.parse("a.svg").getroot().tag.endswith("svg")
        assert Path("a.svg").read_bytes() == Path("b.svg").read_bytes()
        assert Path("c.pdf").read_bytes() == Path("d.PDF").read_bytes()
        assert Path("c.pdf").read_bytes().startswith(b"%PDF")

    def test_default_place_depends_on_what_is_shown(self, call, stage):
        calls = [call("--run", "run"), call(stage, "--run", "run"), call("--run", "run", "--rows", 1)]
        first, again, other = (result.stdout.strip() for result in calls)
        assert first == again != other
        assert Path(first).parent == Path("run")
        assert Path(first).is_file()
        assert Path(other).is_file()

    def test_most_fooled_come_first(self, call, stage):
        assert rows_of(call, stage) == ["cat/2.png", "cat/3.png", "cat/1.png"]
        assert rows_of(call, stage, "--only", "success") == ["cat/2.png", "cat/3.png"]
        assert rows_of(call, stage, "--rows", 1) == ["cat/2.png"]

    def test_named_images_in_their_order(self, call, stage):
        assert rows_of(call, stage, "--image", "cat/1.png", "--image", "cat/2.png") == ["cat/1.png", "cat/2.png"]
        for missing in ("cat/9.png", "cat/4.png"):  # the last was not attacked
            result = call(stage, "--image", missing)
            assert result.exit_code == 2
            assert f"--image {missing}: not among" in problem(result)

    def test_order_of_the_manifest_does_not_matter(self, call, tmp_path, stage):
        from pixelsem.stage import Stage

        backwards = list(Stage.open(stage).attack_records())[::-1]
        other = make_stage(tmp_path / "backwards", backwards)
        assert call(stage, "-o", "a.png").exit_code == call(other, "-o", "b.png").exit_code == 0
        assert Path("a.png").read_bytes() == Path("b.png").read_bytes()

    def test_every_image_before_any_ones_second_target(self, call, tmp_path):
        records = [record(f"cat/{n}.png", target=t, to=t) for n in (1, 2) for t in ("dog", "ship")]
        stage = make_stage(tmp_path / "targeted", records, "original")
        result = json.loads(call(stage, "--json").stdout)
        assert Path(result["figure"]).parent == stage.parent  # beside its stage
        seen = [(row["id"], row["target"]) for row in result["rows"]]
        assert seen == [("cat/1.png", "dog"), ("cat/2.png", "dog"), ("cat/1.png", "ship"), ("cat/2.png", "ship")]

    def test_first_repeat_is_shown(self, call, tmp_path):
        records = [record(repeat=1, to="dog"), record(repeat=0)]
        stage = make_stage(tmp_path / "repeats", records, "original")
        result = json.loads(call(stage, "--json").stdout)
        assert result["rows"] == [{"id": "cat/1.png", "target": None, "search": None, "success": {"original": False}}]

    def test_stages_of_one_search_share_rows(self, call, tmp_path):
        stages = [make_stage(tmp_path / r, [record(region=r, to="dog")], r) for r in REGIONS]
        rows = json.loads(call(*stages, "--json").stdout)["rows"]
        assert [list(row["success"]) for row in rows] == [list(REGIONS)]

    def test_several_searches_stand_below_each_other(self, call, tmp_path):
        one = make_stage(tmp_path / "one", [record(to="dog"), record("cat/2.png")], "original")
        three = make_stage(tmp_path / "three", [record(), record("cat/2.png")], "original", pixels=3)
        rows = json.loads(call(one, three, one, "--json").stdout)["rows"]
        assert [(row["id"], row["search"]) for row in rows] == [
            ("cat/1.png", "1 px"), ("cat/1.png", "3 px"),
            ("cat/2.png", "1 px"), ("cat/2.png", "3 px"),
        ]  # fmt: skip

    def test_a_constraint_that_is_not_the_usual_one_is_told(self, call, tmp_path):
        made = [make_stage(tmp_path / c, [record(to="dog")], "original", constraint=c) for c in ("encode", "revert")]
        rows = json.loads(call(*made, "--json").stdout)["rows"]
        assert [row["search"] for row in rows] == ["1 px", "1 px constraint=revert"]

    def test_distances_are_stated(self, call, tmp_path):
        stage = make_attack(tmp_path / "a", "pgd", {"cat/1.png": 51})
        (row,) = loaded(stage, l2=True)
        assert (
            row.attacked["original"].note == f"L2 {0.2 * 300**0.5:.2f}"
        )  # 300 values by 51 of 255; too small for SSIM
        figure = draw_panels([row])
        assert "L2 3.46" in texts(figure)
        behind = draw_panels([row], difference=False)
        assert any(text.endswith("L2 3.46") for text in texts(behind))
        assert "L2 3.46" not in texts(draw_panels(loaded(stage)))

    def test_matching_picks_the_searches_of_nearest_l2(self, call, tmp_path):
        stages = [
            make_attack(tmp_path / "pgd-2", "pgd", {"cat/1.png": 20, "cat/2.png": 90}, epsilon=2),
            make_attack(tmp_path / "pgd-8", "pgd", {"cat/1.png": 60, "cat/2.png": 30}, epsilon=8),
            make_attack(tmp_path / "cfr", "cfr", {"cat/1.png": 66, "cat/2.png": 31, "cat/3.png": 5}),
        ]
        done = call(*stages, "--match-l2", "--json", "-o", "figure.png")
        assert done.exit_code == 0, done.stderr
        rows = [(row["id"], row["search"]) for row in json.loads(done.stdout)["rows"]]
        assert [image for image, _ in rows] == ["cat/2.png"] * 2 + ["cat/1.png"] * 2  # 31/30 before 66/60
        assert {name for _, name in rows} == {"cfr", "pgd epsilon=8"}

    def test_matching_needs_two_attacks(self, call, tmp_path):
        result = call(make_attack(tmp_path / "pgd", "pgd", {"cat/1.png": 20}), "--match-l2")
        assert result.exit_code == 2
        assert "--match-l2: no image was successfully attacked in two ways" in problem(result)

    def test_failed_tries_are_drawn_from_their_pixels(self, tmp_path):
        pixels = [{"x": 3, "y": 4, "from": [0, 0, 0], "to": [9, 8, 7]}]
        after = prediction("cat", 0.7) | {"of_before_top5": [["cat", 0.7, 1]]}
        tried = record(after=after, pixels=pixels)
        stage = make_stage(tmp_path / "tried", [tried], "original")
        row = evaluate_panels._read(evaluate_panels._FigureData(AttackStages([stage])).choose(
            evaluate_panels.PanelOptions())[0])  # fmt: skip
        found = row.attacked["original"]
        assert found.image is not None
        assert (found.image != row.clean).any(axis=2).sum() == 1
        assert found.image[4, 3].tolist() == [9, 8, 7]
        assert (found.text, found.fooled, found.pixels) == ("still cat 70 %", False, ((3, 4),))

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"to": "dog"}, "→ dog 60 %"),
            ({}, "still cat 60 %"),
            ({"target": "dog"}, "still cat 60 %, not dog"),
            ({"target": "ship", "to": "dog", "success": False}, "dog 60 %, not ship"),
            ({"outcome": "empty-region"}, "not attacked: empty region"),
        ],
    )
    def test_verdicts(self, changes, text):
        assert evaluate_panels._verdict(record(**changes)) == text


class TestBadInput:
    @pytest.mark.parametrize("name", ["figure", "figure.jpg", "figure.png.txt"])
    def test_suffix(self, call, stage, name):
        result = call(stage, "-o", name)
        assert result.exit_code == 2
        assert ".png, .svg or .pdf" in problem(result)

    def test_folder_in_the_way(self, call, stage):
        Path("figure.png").mkdir()
        result = call(stage, "-o", "figure.png")
        assert result.exit_code == 2
        assert "a folder" in problem(result)

    def test_unwritable(self, call, stage):
        Path("file").touch()
        result = call(stage, "-o", "file/figure.png")
        assert result.exit_code == 1
        assert "cannot be written" in problem(result)

    def test_nothing_attacked(self, call, tmp_path):
        empty = make_stage(tmp_path / "empty", [])
        assert "nothing attacked yet" in problem(call(empty))
        skipped = make_stage(tmp_path / "skipped", [record(outcome="misclassified")], "original")
        assert "no image was attacked" in problem(call(skipped))

    def test_no_success(self, call, tmp_path):
        stage = make_stage(tmp_path / "none", [record()], "original")
        result = call(stage, "--only", "success")
        assert result.exit_code == 2
        assert "--only all" in problem(result)

    def test_a_damaged_image_leaves_the_others(self, call, stage):
        (stage / "clean/cat/2.png").write_bytes(b"\x89PNG nothing")
        result = call(stage, "--json", "-o", "figure.png")
        assert result.exit_code == 1
        assert "2.png" in problem(result)
        assert [row["id"] for row in json.loads(result.stdout)["rows"]] == ["cat/3.png", "cat/1.png"]
        assert Path("figure.png").is_file()

    def test_all_images_gone(self, call, stage):
        for path in (stage / "clean" / "cat").iterdir():
            path.unlink()
        result = call(stage, "-o", "figure.png")
        assert result.exit_code == 2
        assert ".png" in problem(result)
        assert not Path("figure.png").exists()

    @pytest.mark.parametrize("folder", ["clean", "masks/foreground", "images/foreground"])
    def test_another_size_than_in_the_manifest(self, call, stage, folder):
        path = stage / folder / "cat/2.png"
        write_image(path, half_mask(8, 9) if "masks" in folder else noise(height=8, width=9))
        result = call(stage)
        assert result.exit_code == 1
        assert "is 9×8; the manifest says 10×10" in problem(result)

    def test_pixel_outside_the_image(self, call, tmp_path):
        pixels = [{"x": 10, "y": 0, "from": [0, 0, 0], "to": [1, 1, 1]}]
        stage = make_stage(tmp_path / "outside", [record()], "original")
        bad = make_stage(tmp_path / "bad", [], "original")
        fill(bad, [record()])
        (bad / "manifest.jsonl").write_bytes(
            (stage / "manifest.jsonl").read_bytes().replace(b'"pixels":[]', f'"pixels":{json.dumps(pixels)}'.encode())
        )
        assert "outside the image" in problem(call(bad))

    def test_without_matplotlib(self, call, stage, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        result = call(stage)
        assert result.exit_code == 2
        assert "pip install 'pixelsem[report]'" in problem(result)


def test_help_imports_nothing_heavy(python):
    code = (
        "import sys; from pixelsem.cli import evaluate_panels; "
        "print([m for m in ('numpy', 'matplotlib', 'torch', 'cv2') if m in sys.modules])"
    )
    assert python("-c", code).stdout.strip() == "[]"
