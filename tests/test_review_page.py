"""The review page as it is used in a browser (headless Chromium)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from review_stages import SIZE, disc, entry, make_stage, png, records, strokes, write_decisions
from test_cli_segment_review import IDS, SMALL, call

from pixelsem.images import read_hints, read_image

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Callable[..., Any]]:
    """Open a page of a stage; whatever the browser complains about fails the test, as any request does."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    problems: list[str] = []

    def watched(page: Any) -> Any:
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("data:", "file:", "blob:")) or problems.append(request.url),
        )
        return page

    def open_(make: bool = True) -> Any:
        if make:
            call("review", "stage", "-o", "page.html", "-q")
        page = watched(context.new_page())
        page.goto((folder / "page.html").as_uri())
        settled(page)
        return page

    yield open_
    context.close()
    assert problems == []


def settled(page: Any) -> None:
    page.wait_for_selector('html[data-ready="yes"]', state="attached")


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)
        settled(page)


def title(page: Any) -> str:
    return str(page.locator("#title").inner_text())


def exported(page: Any, path: Path) -> dict[str, Any]:
    with page.expect_download() as download:
        page.keyboard.press("d")
    assert download.value.suggested_filename == "stage-decisions.json"
    download.value.save_as(path)
    return dict(json.loads(path.read_text()))


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a straight stroke between two places in pixels of the image."""
    box = page.locator("#scribbles").bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"] / SIZE[1], box["y"] + y * box["height"] / SIZE[0]

    page.mouse.move(*at(*start))
    page.mouse.down()
    page.mouse.move(*at(*end), steps=5)
    page.mouse.up()


def test_keys_decide_and_the_export_is_applied(visit: Callable[..., Any], folder: Path) -> None:
    stage = make_stage(folder, IDS, a_png=SMALL)
    page = visit()
    assert title(page) == "a.png"
    assert "degenerate-foreground" in page.locator("#flags").inner_text()
    press(page, "a")
    assert title(page) == "cat/b.png"
    press(page, "r", "ArrowRight", "ArrowLeft", "r", "ArrowLeft", "r", "u")  # c: again takes it back; that undone
    assert title(page) == "cat/c.png"
    bar = page.locator("#bar")
    assert (bar.get_attribute("aria-valuenow"), bar.get_attribute("aria-valuemax")) == ("3", "4")
    press(page, "u")
    assert bar.get_attribute("aria-valuenow") == "2"
    assert page.locator("#live").inner_text() == "Undone: cat/c.png is open"
    decisions = exported(page, folder / "d.json")
    assert [(item["id"], item["decision"]) for item in decisions["images"]] == [
        ("a.png", "accepted"), ("cat/b.png", "rejected"),
    ]  # fmt: skip
    call("review", "stage", "--apply", "d.json")
    assert {name: record.flags for name, record in records(stage).items()} == {
        "a.png": [], "cat/b.png": ["rejected in review"], "cat/c.png": [], "dog/d.png": [],
    }  # fmt: skip
    again = visit()  # of the changed stage: it starts from what was decided
    assert again.locator("#counts").inner_text() == "2 of 4 decided · 1 accepted · 1 rejected"
    assert exported(again, folder / "e.json")["images"] == []
    press(again, "Home", "a")
    assert [item["decision"] for item in exported(again, folder / "e.json")["images"]] == [None]


def test_brushes_paint_what_is_applied(visit: Callable[..., Any], folder: Path) -> None:
    stage = make_stage(folder, IDS)
    page = visit()
    press(page, "ArrowRight", "f")
    page.locator("#brush").fill("20")  # 3 pixels
    drag(page, (12.5, 22.5), (20.5, 22.5))
    press(page, "b")
    drag(page, (40.5, 22.5), (48.5, 22.5))
    drag(page, (5.5, 5.5), (5.5, 9.5))
    press(page, "e")
    drag(page, (5.5, 3.5), (5.5, 12.5))
    assert page.locator("#state").inner_text() == "to be cut again"
    decisions = exported(page, folder / "d.json")
    assert [sorted(item) for item in decisions["images"]] == [["id", "mask", "scribbles"]]
    call("review", "stage", "--apply", "d.json", "-q")
    record = records(stage)["cat/b.png"]
    assert record.scribbles is not None
    levels = read_hints(stage.path / record.scribbles)
    expected = np.full(SIZE, 128, np.uint8)
    for left, level in ((12, 255), (40, 0)):
        expected[21:24, left - 1 : left + 10] = level
    assert (levels == expected).all()
    mask = read_image(stage.path / record.mask)[:, :, 0] > 0
    assert mask[levels == 255].all()
    assert not mask[levels == 0].any()
    assert (mask & disc(16)).sum() / (mask | disc(16)).sum() > 0.9


def test_strokes_are_undone_and_cleared(visit: Callable[..., Any], folder: Path) -> None:
    make_stage(folder, IDS)
    page = visit()
    press(page, "r", "ArrowLeft", "f")
    drag(page, (10, 10), (30, 10))
    assert page.locator("#state").inner_text() == "to be cut again"  # another mask than the rejected one
    drag(page, (10, 20), (30, 20))
    two = exported(page, folder / "d.json")["images"][0]["scribbles"]
    press(page, "Control+z")
    one = exported(page, folder / "d.json")["images"][0]["scribbles"]
    assert one != two
    press(page, "x")
    assert exported(page, folder / "d.json")["images"] == []
    press(page, "u", "u")
    assert exported(page, folder / "d.json")["images"][0]["decision"] == "rejected"


def test_cleared_scribbles_of_an_earlier_review(visit: Callable[..., Any], folder: Path) -> None:
    stage = make_stage(folder, IDS)
    before = records(stage)["a.png"]
    call("review", "stage", "--apply", write_decisions(stage, entry(stage, "a.png", scribbles=png(strokes(disc(16))))))
    page = visit()
    press(page, "x")
    assert exported(page, folder / "d.json")["images"][0]["scribbles"] is None
    call("review", "stage", "--apply", "d.json", "-q")
    assert records(stage)["a.png"] == before


def test_what_was_done_outlives_the_tab(visit: Callable[..., Any], folder: Path) -> None:
    stage = make_stage(folder, IDS)
    page = visit()
    press(page, "a", "b")
    drag(page, (40, 20), (48, 24))
    press(page, "ArrowRight", "t")
    theme = page.locator("html").get_attribute("data-theme")
    first = exported(page, folder / "d.json")
    page.close()
    again = visit(make=False)
    assert title(again) == "cat/c.png"
    assert exported(again, folder / "e.json") == first
    assert again.locator("html").get_attribute("data-theme") == theme
    again.close()
    call("review", "stage", "--apply", write_decisions(stage, entry(stage, "dog/d.png", decision="rejected")))
    other = visit()  # the stage is another now, and so is what belongs to it
    assert other.locator("#counts").inner_text().startswith("1 of 4 decided")


def test_filters_list_what_they_say(visit: Callable[..., Any], folder: Path) -> None:
    make_stage(folder, IDS, cat_c_png=SMALL)
    page = visit()

    def listed() -> list[str]:
        found = page.locator("#strip li:not([hidden]) button")
        return [found.nth(number).get_attribute("title") for number in range(found.count())]

    press(page, "2")
    assert (listed(), title(page)) == (["cat/c.png"], "cat/c.png")
    press(page, "1", "Home", "r", "3")
    assert listed() == IDS[1:]
    press(page, "a")  # it leaves the list, and the next one is shown
    assert (listed(), title(page)) == (IDS[2:], "cat/c.png")
    press(page, "4")
    assert (listed(), title(page)) == (IDS[:1], "a.png")
    page.keyboard.press("r")  # not rejected any more
    page.keyboard.press("4")
    page.wait_for_selector("#nothing", state="visible")
    assert listed() == []
    page.keyboard.press("1")
    settled(page)
    assert listed() == IDS


def test_works_by_keyboard_and_says_what_happens(visit: Callable[..., Any], folder: Path) -> None:
    make_stage(folder, IDS)
    page = visit()
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("a")  # no key of the page behind it
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    assert page.locator("#bar").get_attribute("aria-valuenow") == "0"
    page.locator("#accept").focus()
    page.keyboard.press("Enter")
    settled(page)
    assert page.locator("#live").inner_text().startswith("a.png accepted. 1 of 4 decided")
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input')].filter(e => e.offsetParent && "
        "!(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label')?.textContent.trim())).length"
    )
    assert nameless == 0
    assert page.locator("#strip button[aria-current=true]").get_attribute("title") == "cat/b.png"
    assert page.locator("#strip button").first.get_attribute("aria-label") == "a.png: accepted"
    for view in ("cut", "outline", "none", "tint"):
        press(page, "m")
        assert page.locator("#views button[aria-pressed=true]").get_attribute("data-view") == view
        painted = page.evaluate(
            "(() => { const c = document.getElementById('overlay'); const d = c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data; return d.some((v, i) => i % 4 === 3 && v > 0) })()"
        )
        assert painted == (view != "none")


def test_names_are_text_whatever_they_hold(visit: Callable[..., Any], folder: Path) -> None:
    name = "<img src=x onerror=alert(1)>&amp;.png"
    stage = make_stage(folder, [name])
    page = visit()
    assert title(page) == name
    press(page, "r")
    exported(page, folder / "d.json")
    call("review", "stage", "--apply", "d.json", "-q")
    assert records(stage)[name].flags == ["rejected in review"]
    assert page.evaluate("document.querySelectorAll('img[src=\"x\"]').length") == 0


def test_hundreds_of_images_do_not_choke(visit: Callable[..., Any], folder: Path) -> None:
    make_stage(folder, [f"{number:04}.png" for number in range(400)])
    page = visit()
    assert page.locator("#counts").inner_text() == "0 of 400 decided"
    press(page, "End")
    assert title(page) == "0399.png"
    press(page, "Home", *["a"] * 30)
    assert title(page) == "0030.png"
    unpacked = page.evaluate("document.querySelectorAll('#strip img[src]').length")
    assert 0 < unpacked < 200
