"""The report as it is used in a browser (headless Chromium)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attack_stages import info, write_stage
from PIL import Image
from report_runs import make_run, scene, search, write_pictures
from test_report import call
from test_review_page import browser  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Callable[..., Any]]:  # noqa: F811
    """Open page.html; whatever the browser complains about fails the test, as any request does."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(300_000)  # the machine may do much else
    problems: list[str] = []

    def open_() -> Any:
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("data:", "file:")) or problems.append(request.url))
        page.goto((folder / "page.html").as_uri())
        page.wait_for_selector('html[data-ready="yes"]', state="attached")
        return page

    yield open_
    context.close()
    assert problems == []


def ids(page: Any) -> list[str]:
    return list(page.locator("#grid .id").all_inner_texts())


def pixel(page: Any) -> str:
    return " ".join(page.locator("#pixel").inner_text().split())


def spent(page: Any) -> float:
    """Return the seconds of CPU that the page's thread took: they do not depend on what else the machine does."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    return next(
        one["value"] for one in session.send("Performance.getMetrics")["metrics"] if one["name"] == "ThreadTime"
    )


def viewed(page: Any) -> None:
    page.wait_for_selector('html[data-viewer="yes"]', state="attached")


def test_filters_search_and_order(visit: Callable[..., Any], folder: Path) -> None:
    make_run(folder / "run")
    call("run", "-o", "page.html")
    page = visit()
    assert page.locator("#count").inner_text() == "24 of 24 searches, on 12 images"
    page.select_option("#by-outcome", "success")
    assert page.locator("#count").inner_text() == "9 of 24 searches, on 8 images"
    page.select_option("#by-region", "background")
    assert ids(page) == ["cat/1.png"]
    page.locator("#clear").click()
    assert page.locator("#count").inner_text() == "24 of 24 searches, on 12 images"
    page.select_option("#by-region", "foreground")
    page.select_option("#sort", "queries")
    assert ids(page) == [f"cat/{n}.png" for n in range(1, 13)]
    page.locator("#reverse").click()
    assert ids(page)[:2] == ["cat/12.png", "cat/11.png"]
    page.locator("#find").fill("CAT 1")
    assert ids(page) == ["cat/12.png", "cat/11.png", "cat/10.png", "cat/1.png"]
    page.locator("#find").fill("nowhere")
    assert page.locator("#nothing").is_visible()


def test_keys_alone_reach_every_image_and_pixel(visit: Callable[..., Any], folder: Path) -> None:
    make_run(folder / "run")
    call("run", "-o", "page.html")
    page = visit()
    page.keyboard.press("/")
    page.keyboard.type("3.png")
    assert ids(page) == ["cat/3.png"] * 2
    page.keyboard.press("Escape")
    page.keyboard.press("x")
    page.select_option("#sort", "id")
    page.select_option("#by-region", "foreground")
    page.locator("#grid button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.title") == "cat/9.png"
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    viewed(page)
    assert page.locator("#viewer-title").inner_text() == "cat/1.png"
    clean = scene(1)
    page.keyboard.press("p")
    red, green, blue = clean[2, 1].tolist()
    assert pixel(page).startswith(f"x 1, y 2 clean {red} {green} {blue} attacked 255 0 7 change")
    page.keyboard.press("Shift+ArrowRight")
    assert f"x 2, y 2 clean {' '.join(map(str, clean[2, 2]))}" in pixel(page)
    assert "unchanged" in pixel(page)
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#viewer-title:text-is('cat/10.png')")
    viewed(page)
    page.keyboard.press("Escape")
    page.wait_for_selector("#grid button[title='cat/10.png']:focus")


def test_zoom_is_pixel_exact(visit: Callable[..., Any], folder: Path) -> None:
    one = search(3, "original", hit=True)
    path = write_stage(folder / "run" / "a", info("original", counts={"searches": 1}), one)
    write_pictures(path, one, 3, noise=True)
    call("run", "-o", "page.html")
    page = visit()
    page.locator("#grid button").first.click()
    viewed(page)
    page.keyboard.press("c")  # no circles

    def shown(name: str) -> Any:
        """Return the middle of every pixel of the image as it is on the screen."""
        canvas = page.locator(f"#{name}")
        step = int(page.locator("#zoom").inner_text().split()[0])
        pixels = np.array(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"))
        middles = [(np.arange(10) - 5) * step + size // 2 + step // 2 for size in pixels.shape[:2]]
        return pixels[np.ix_(*middles)]

    attacked = scene(3) + np.uint8(1)
    attacked[2, 1] = (255, 0, 7)
    for keys in ("", "-", "-"):
        if keys:
            page.keyboard.press(keys)
        assert (shown("left") == scene(3)).all()
        assert (shown("right") == attacked).all()
    page.keyboard.press("d")
    page.select_option("#gain", "4")
    assert (shown("right") == np.minimum(255, 4 * np.abs(attacked.astype(int) - scene(3)))).all()
    box = page.locator("#left").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 3)
    assert f"x 5, y 5 clean {' '.join(map(str, scene(3)[5, 5]))}" in pixel(page)


def test_large_images_come_from_the_runs_folder(visit: Callable[..., Any], folder: Path) -> None:
    make_run(folder / "run", images=2, side=120)
    call("run", "-o", "page.html")
    page = visit()
    files: list[str] = []
    page.on("request", lambda request: files.append(request.url))
    page.locator("#grid button").first.click()
    viewed(page)
    stage = (folder / "run" / "attack-background").as_uri()
    assert sorted(files) == [f"{stage}/clean/cat/1.png", f"{stage}/masks/background/cat/1.png"]
    assert page.locator("#zoom").inner_text() == "3 ×"
    page.keyboard.press("p")
    assert pixel(page).startswith("x 1, y 2 clean")  # a listed change is known, though files cannot be read


def test_thousands_of_images_leave_few_elements(visit: Callable[..., Any], folder: Path) -> None:
    make_run(folder / "run", images=600, hits={"foreground": {600}, "background": set()})
    call("run", "-o", "page.html")
    page = visit()
    assert page.locator("#grid li").count() < 80
    page.locator("#grid button").first.focus()
    page.select_option("#sort", "queries")
    page.locator("#grid button").first.focus()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.title") == "cat/600.png"
    assert page.locator("#grid li").count() < 80
    assert page.locator("#grid li").last.get_attribute("aria-posinset") == "1200"


def test_two_thousand_attacked_images_open_at_once(visit: Callable[..., Any], folder: Path) -> None:
    found = [search(n, "original", hit=True, side=32) for n in range(2000)]
    path = write_stage(folder / "run" / "a", info("original", counts={"searches": 2000}), *found)
    for n, one in enumerate(found):
        write_pictures(path, one, n, noise=True)  # the worst: nothing can be said by a list of pixels
    call("run", "-o", "page.html")
    assert (folder / "page.html").stat().st_size < 30e6
    page = visit()
    assert spent(page) < 2
    assert page.locator("#count").inner_text() == "2,000 of 2,000 searches, on 2,000 images"
    assert page.locator("#grid canvas").first.evaluate("canvas => canvas.width") > 32


def test_light_dark_and_print(visit: Callable[..., Any], folder: Path) -> None:
    make_run(folder / "run", images=60)
    call("run", "-o", "page.html")
    page = visit()
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "light"
    page.emulate_media(color_scheme="dark")
    page.wait_for_selector("html[data-theme='dark']", state="attached")
    page.keyboard.press("t")
    assert page.evaluate(theme) == "light"
    page.emulate_media(color_scheme="light", media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("#controls").is_hidden()
    shown = page.locator("#grid li").count()
    assert page.locator("#printed").inner_text() == f"{shown} of 120 searches; the others are in the page."
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
