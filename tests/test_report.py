"""The report's page, without a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from attack_stages import info, record, write_stage
from numpy.typing import NDArray
from PIL import Image
from report_runs import make_run, mask_of, scene, search, write_pictures
from typer.testing import CliRunner, Result

from pixelsem.cli import evaluate
from pixelsem.cli.attack_stages import AttackStages
from pixelsem.cli.groups import RootGroup
from pixelsem.metrics.intervals import Rate, wilson
from pixelsem.report import gallery
from pixelsem.report.html_tables import to_html
from pixelsem.report.page_charts import Bar, flow_chart, query_chart, rate_chart
from pixelsem.report.tables import Column, Table, write_tables
from pixelsem.stage import Stage, StageInfo


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIXELSEM_RUN", raising=False)
    return tmp_path


def call(*arguments: object, code: int = 0, stdin: str = "") -> Result:
    app = typer.Typer(cls=RootGroup, pretty_exceptions_enable=False)
    evaluate.register(app)
    app.command("other")(lambda: None)
    result = CliRunner().invoke(app, ["evaluate", "report", *map(str, arguments)], input=stdin)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def data_of(page: Path) -> dict[str, Any]:
    parts = re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', page.read_text(), re.DOTALL)
    data = {name: json.loads(text) for name, text in parts}
    return data | {"items": [item for number in range(data["about"]["blocks"]) for item in data[f"i{number}"]]}


def tile(data: dict[str, Any], place: list[int]) -> NDArray[np.uint8]:
    """Return the picture at [sheet, place], as the page cuts it out."""
    sheet = data[f"s{place[0]}"]
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(sheet["source"].partition(",")[2]))))
    y, x = (place[1] // sheet["columns"]) * sheet["height"], (place[1] % sheet["columns"]) * sheet["width"]
    return pixels[y : y + sheet["height"], x : x + sheet["width"]]


class Texts(HTMLParser):
    """All text of a page outside of script and style, and every tag."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self._skip = 0
        self.feed(page.read_text())
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self._skip += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._skip -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.words.append(data)


def test_the_answer_names_the_region_the_rates_and_the_test(folder: Path) -> None:
    make_run(folder / "run")
    result = call("run", "-o", "page.html")
    assert result.stdout == "page.html\n"
    text = Texts(Path("page.html")).text
    assert "Where is allconv fragile: in the object or around it?" in text
    assert "The foreground is more fragile" in text
    low, high = wilson(8, 12)
    assert f"66.7 % (8 of 12; 95 % interval {100 * low:.1f} to {100 * high:.1f})" in text
    assert "8.3 % (1 of 12;" in text
    assert "The difference is +58.3 points" in text
    assert "p = 0.016" in text  # 7 against 0: 2 × 0.5⁷
    assert "From attack-background (attack de, seed 0), attack-foreground (attack de, seed 0)" in text
    assert "pixelsem attack de --config attack-foreground/stage.yaml" in text


@pytest.mark.parametrize(
    ("front", "back", "verdict"),
    [
        (set(), set(range(1, 9)), "The background is more fragile"),
        ({1, 2}, {2, 3}, "No difference between foreground and background is shown"),
    ],
)
def test_the_verdict_follows_the_test(folder: Path, front: set[int], back: set[int], verdict: str) -> None:
    make_run(folder / "run", hits={"foreground": front, "background": back})
    call("run")
    assert verdict in Texts(next(Path("run").glob("evaluate-report-*.html"))).text


def test_one_region_alone_has_an_answer(folder: Path) -> None:
    path = write_stage(folder / "run" / "a", info("original"), search(1, "original", hit=True))
    write_pictures(path, search(1, "original", hit=True), 1)
    call("run/a", "-o", "page.html")
    text = Texts(Path("page.html")).text
    assert "allconv is fooled anywhere in the image on 100.0 % of the images" in text
    assert "was not finished" in text


def test_pictures_are_in_the_page_bit_by_bit_and_once(folder: Path) -> None:
    make_run(folder / "run")
    call("run", "-o", "page.html")
    data = data_of(Path("page.html"))
    items = data["items"]
    assert len(items) == 24
    assert [name for name in data if name.startswith("s")] == ["s0", "s1"]  # images, masks
    for item in items:
        n = int(item["id"].removesuffix(".png").removeprefix("cat/"))
        assert (tile(data, item["clean"]) == scene(n)).all()
        assert ((tile(data, item["mask"]) > 0) == mask_of(item["region"])).all()
        # A few changed pixels need no picture of their own.
        assert (item["painted"], item["attacked"]) == (item["success"], None)
    assert len({tuple(item["clean"]) for item in items}) == 12


def test_a_page_is_written_block_by_block(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(folder / "run")
    call("run", "-o", "whole.html")
    whole = data_of(Path("whole.html"))
    monkeypatch.setattr(gallery, "_ITEMS", 7)
    monkeypatch.setattr(gallery, "_PICTURES", 2)
    call("run", "-o", "page.html")
    data = data_of(Path("page.html"))
    assert [len(data[f"i{number}"]) for number in range(data["about"]["blocks"])] == [7, 7, 7, 3]
    assert len([name for name in data if name.startswith("s")]) > 3
    for item, expected in zip(data["items"], whole["items"], strict=True):
        for name in ("clean", "mask"):
            assert (tile(data, item[name]) == tile(whole, expected[name])).all()
        assert item | {"clean": 0, "mask": 0} == expected | {"clean": 0, "mask": 0}


def test_a_record_that_changed_while_the_page_was_made_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(folder / "run", images=1)
    manifest = folder / "run/attack-background/manifest.jsonl"
    read = AttackStages.__init__

    def read_and_change(self: AttackStages, *arguments: Any, **options: Any) -> None:
        read(self, *arguments, **options)
        manifest.write_bytes(b"\n" + manifest.read_bytes())

    monkeypatch.setattr(AttackStages, "__init__", read_and_change)
    result = call("run", "-o", "page.html", code=1)
    assert "was changed meanwhile; try again" in result.stderr
    assert {item["region"] for item in data_of(Path("page.html"))["items"]} == {"foreground"}


def test_an_attacked_image_that_its_pixels_do_not_explain_is_in_the_page(folder: Path) -> None:
    one = search(3, "original", hit=True)
    path = write_stage(folder / "run" / "a", info("original", counts={"searches": 1}), one)
    write_pictures(path, one, 3, noise=True)
    call("run", "-o", "page.html")
    data = data_of(Path("page.html"))
    item = data["items"][0]
    assert item["painted"] is False
    attacked = tile(data, item["attacked"])
    assert attacked[2, 1].tolist() == [255, 0, 7]
    assert (np.delete(attacked.reshape(-1, 3), 21, axis=0) == np.delete(scene(3).reshape(-1, 3) + 1, 21, axis=0)).all()
    difference = attacked.astype(int) - scene(3)
    assert item["distortion"] == {
        "pixels": 100, "l2": round(float(np.sqrt((difference**2).sum())), 2), "most": abs(difference).max(),
    }  # fmt: skip


def test_large_images_are_small_in_the_page_and_linked_from_where_it_lies(folder: Path) -> None:
    make_run(folder / "run", images=1, side=120)
    call("run", "-o", "elsewhere/page.html")
    data = data_of(Path("elsewhere/page.html"))
    item = data["items"][0]
    assert item["whole"] is False
    assert tile(data, item["clean"]).shape == (112, 112, 3)
    assert (folder / "elsewhere" / item["links"]["clean"]).resolve() == folder / "run/attack-background/clean/cat/1.png"
    call("run", "-o", "all.html", "--embed", 120)
    data = data_of(Path("all.html"))
    item = data["items"][0]
    assert (item["whole"], item["links"]) == (True, None)
    assert (tile(data, item["clean"]) == scene(1, 120)).all()


def test_names_cannot_break_out_of_the_page(folder: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>.png"
    one = record(evil, "original", clean="clean/1.png", label="<b>cat</b>")
    run = folder / "<i>run & co"
    path = write_stage(run / "attack-<u>x", info(name="<s>net</s>", counts={"searches": 1}), one)
    write_pictures(path, one, 1)
    call(run, "-o", "page.html")
    page = Texts(Path("page.html"))
    assert not {"b", "i", "u", "s", "img"} & (set(page.tags) - set(Texts(_plain_page(folder)).tags))
    assert page.tags.count("script") == Texts(_plain_page(folder)).tags.count("script")
    assert "<s>net</s>" in page.text
    assert data_of(Path("page.html"))["items"][0]["id"] == evil


def _plain_page(folder: Path) -> Path:
    """Return a page of one image with harmless names."""
    page = folder / "plain.html"
    if not page.exists():
        one = record("cat/1.png", "original")
        path = write_stage(folder / "plain" / "attack", info(counts={"searches": 1}), one)
        write_pictures(path, one, 1)
        call(folder / "plain", "-o", page)
    return page


def test_the_page_asks_for_nothing_from_a_network(folder: Path) -> None:
    text = _plain_page(folder).read_text()
    assert re.findall(r"https?:", text) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")


def test_what_cannot_be_used_is_said_and_the_rest_is_reported(folder: Path) -> None:
    run = make_run(folder / "run")
    Stage.create(run / "segment", StageInfo("segment", "segment images", "ab" * 32, {}, {}))
    write_stage(run / "attack-empty", info("original"))
    write_stage(run / "attack-bad", info("original", population=7), search(1, "original", hit=False))
    (run / "attack-bad" / "manifest.jsonl").write_text("{}\n")
    (run / "attack-foreground" / "clean" / "cat" / "3.png").write_bytes(b"no image")
    result = call("run", "run/attack-foreground", "run/segment", "-o", "page.html", "--json", code=1)
    summary = json.loads(result.stdout)
    assert (summary["searches"], len(summary["failures"])) == (23, 1)
    assert [note.removeprefix("run/") for note in summary["notes"][-4:]] != []
    notes = "\n".join(summary["notes"])
    assert "run/attack-empty: holds no records yet; left out" in notes
    assert "run/attack-bad/manifest.jsonl, line 1:" in notes
    assert "run/attack-foreground: given twice; counted once" in notes
    assert "run/segment: given twice" in notes
    assert "3.png" in result.stderr
    assert "8.3 % (1 of 12;" in Texts(Path("page.html")).text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing: no such file or folder"),
        (["empty"], "empty: is no stage and holds none; run an attack"),
        (["run/segment"], "run/segment: is a stage of 'segment images', not of an attack; run an attack"),
        (["run", "-o", "page.pdf"], "-o page.pdf: its name must end in .html"),
        (["run", "-o", "folder.html"], "-o folder.html: a folder, not a file"),
    ],
)
def test_bad_input_is_one_line(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "folder.html").mkdir()
    Stage.create(folder / "run" / "segment", StageInfo("segment", "segment images", "ab" * 32, {}, {}))
    result = call(*arguments, code=2)
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1
    assert message in lines[0]
    assert list(folder.rglob("*.html")) == [folder / "folder.html"]


@pytest.mark.parametrize("named", ["run", "run/attack"])
def test_damage_to_the_only_stage_is_all_that_is_said(folder: Path, named: str) -> None:
    (write_stage(folder / "run" / "attack", info("original")) / "manifest.jsonl").write_text("[]\n")
    result = call(named, code=2)
    assert result.stderr == "pixelsem: run/attack/manifest.jsonl, line 1: Expected `object`, got `array`\n"


def test_a_change_outside_of_its_image_is_said(folder: Path) -> None:
    one = search(1, "original", hit=True)
    far = search(2, "original", hit=True, pixels=[{"x": 10, "y": 0, "from": [0, 0, 0], "to": [1, 1, 1]}])
    path = write_stage(folder / "run" / "a", info("original", counts={"searches": 2}), one, far)
    write_pictures(path, one, 1)
    for name in (far.clean, str(far.adversarial)):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes((path / one.clean).read_bytes())
    result = call("run", "-o", "page.html", code=1)
    assert "a changed pixel of 'cat/2.png' lies outside the image" in result.stderr
    assert len(data_of(Path("page.html"))["items"]) == 1


def test_the_gallery_has_room_for_successes_first(folder: Path) -> None:
    make_run(folder / "run")
    result = call("run", "-o", "page.html", "--gallery", 10)
    assert "The gallery holds 10 of 24 searches" in result.stderr
    items = data_of(Path("page.html"))["items"]
    assert sum(item["success"] for item in items) == 9
    assert len(items) == 10


def test_equal_runs_give_equal_pages(folder: Path) -> None:
    make_run(folder / "run")
    for name in ("one.html", "two.html"):
        call("run", "-o", name)
    assert Path("one.html").read_bytes() == Path("two.html").read_bytes()


def test_tables_and_figures_of_other_commands_are_taken_over(folder: Path) -> None:
    run = make_run(folder / "run")
    found = run / "evaluate-transfer-abc"
    rate = Rate(3, 4, 0.3, 0.95, 4.0)
    write_tables(found, [Table("transfer", "Transfer <x>", [Column("a", "Success", "rate")], [[rate]], ["a note"])])
    (found / "matrix.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (found / "matrix.png").write_bytes(b"the same, less sharp")
    (found / "broken.json").write_text("{")
    result = call("run", "-o", "page.html")
    page = Texts(Path("page.html"))
    assert "Transfer <x>" in page.text
    assert "75.00 % (3/4) [30.00, 95.00]" in page.text
    assert "From evaluate-transfer-abc, as it was written" in page.text
    assert page.tags.count("img") == 1
    assert "broken.json: holds no table; left out" in result.stderr


def test_rate_chart_places_marks_to_scale() -> None:
    bars = [Bar("foreground", "foreground", Rate(1, 4, 0.1, 0.4, 4.0)), Bar("<x>", "x", Rate(1, 10, 0.0, 0.4, 10.0))]
    chart = rate_chart({"": bars})
    ends = [[float(x) for x in pair] for pair in re.findall(r'class="interval" x1="([\d.]+)" x2="([\d.]+)"', chart)]
    ticks = [float(x) for x in re.findall(r'class="tick" x="([\d.]+)"', chart)]
    assert ends[0][1] == ends[1][1] == ticks[-1]  # 40 %, the end of the scale
    assert ends[1][0] == ticks[0]
    assert ends[0][0] == ticks[1]  # 10 %
    assert "&lt;x&gt;" in chart
    assert "<x>" not in chart


def test_query_chart_steps_at_every_success() -> None:
    chart = query_chart({"foreground": ([30, 10], 10), "background": ([], 5)})
    assert [path.count("V") for path in re.findall(r' d="(M[^"]+)"', chart)] == [2, 0]
    assert chart.index('class="front"') < chart.index('class="back"')


def test_flow_chart_counts() -> None:
    chart = flow_chart(["cat", "dog"], {("cat", "dog"): 3, ("dog", "cat"): 1})
    assert "<title>cat taken for dog: 3</title>" in chart
    assert re.findall(r">(\d)</text>", chart) == ["3", "1"]


def test_html_table_escapes_and_leaves_out_empty_columns() -> None:
    columns = [Column("a", "<A>", about=True), Column("b", "B", "rate"), Column("c", "C")]
    text = to_html(Table("t", "T & t", columns, [["<x>", Rate(1, 2, 0.1, 0.9, 2.0), None]], ["<note>"]))
    assert '<th scope="row">&lt;x&gt;</th>' in text
    assert '<td class="number">50.00 % <small>(1/2) [10.00, 90.00]</small></td>' in text
    assert "&lt;note&gt;" in text
    assert ">C<" not in text


def test_numbers_that_a_row_is_about_stand_below_their_head() -> None:
    text = to_html(Table("t", "T", [Column("pixels", "Pixels", "count", about=True)], [[3]]))
    assert '<th scope="col" class="number">Pixels</th>' in text
    assert '<th scope="row" class="number">3</th>' in text
