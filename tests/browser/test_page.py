"""The page in a real browser: every way in, what is shown, errors, keyboard, download."""

import base64
import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

pytestmark = pytest.mark.browser

TASKS = ["segmentation", "depth", "normals", "saliency"]


@pytest.fixture(scope="session")
def photo_file(tmp_path_factory: pytest.TempPathFactory, photo_jpeg: bytes) -> str:
    path = tmp_path_factory.mktemp("photo") / "room.jpg"
    path.write_bytes(photo_jpeg)
    return str(path)


@pytest.fixture
def shown(page, photo_file: str):
    """The page with a photo and its maps."""
    page.set_input_files("#file", photo_file)
    page.wait_for_selector("#result:not([hidden])")
    return page


def give(page, kind: str, photo: bytes) -> None:
    """Drop or paste `photo` as the browser would."""
    script = """([kind, text]) => {
        const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "photo.jpg", {type: "image/jpeg"}));
        const event = kind === "drop" ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
          : new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
        document.body.dispatchEvent(event);
    }"""
    page.evaluate(script, [kind, base64.b64encode(photo).decode()])


def maps(url: str, photo: bytes) -> dict[str, np.ndarray]:
    answer = httpx.post(
        f"{url}/v1/predict?format=npz&size=model", content=photo, headers={"Content-Type": "image/jpeg"}
    )
    with np.load(io.BytesIO(answer.content)) as file:
        return dict(file)


def values(page) -> dict[str, str]:
    """What stands under each picture."""
    return page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('figure')].map((f) =>"
        "[f.querySelector('.picture').dataset.name, f.querySelector('.value').textContent]))"
    )


def test_photo_and_four_maps_stand_side_by_side(shown) -> None:
    names = shown.eval_on_selector_all(".picture", "all => all.map((one) => one.dataset.name)")
    assert names == ["photo", *TASKS]
    assert shown.eval_on_selector_all("canvas.scale", "all => all.length") == 2
    assert shown.eval_on_selector(".picture img", "image => image.naturalWidth") == 320
    assert "Done: 320 × 240" in shown.text_content("#status")
    assert re.search(
        r"ms in all: decode \d+ ms, queue \d+ ms, model \d+ ms, encode \d+ ms", shown.text_content("#timing")
    )


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_photo_can_be_dropped_and_pasted(page, photo_jpeg: bytes, kind: str) -> None:
    give(page, kind, photo_jpeg)
    page.wait_for_selector("#result:not([hidden])")


def test_page_says_what_the_maps_are_not_good_for(page) -> None:
    page.wait_for_function("document.querySelector('#notes').textContent === 'Rooms only.'")


def test_values_under_the_cursor_are_those_of_the_maps(shown, url: str, photo_jpeg: bytes) -> None:
    expected = maps(url, photo_jpeg)
    area = shown.locator(".picture[data-name=depth]").bounding_box()
    shown.mouse.move(area["x"] + 0.8 * area["width"], area["y"] + 0.3 * area["height"])
    row, column = int(0.3 * 48), int(0.8 * 64)
    found = values(shown)
    assert found["depth"] == f"{expected['depth'][row, column]:.2f} m"
    vector = [float(part) for part in found["normals"].strip("()").split(",")]
    np.testing.assert_allclose(vector, expected["normals"][row, column], atol=0.0051)
    assert found["saliency"] == f"{100 * expected['saliency'][row, column]:.0f} %"
    classes = httpx.get(f"{url}/v1/models").json()["models"][0]["tasks"][0]["classes"]
    assert found["segmentation"] == classes[expected["segmentation"][row, column]]


def test_legend_lists_classes_present_with_their_shares(shown, url: str, photo_jpeg: bytes) -> None:
    indices, counts = np.unique(maps(url, photo_jpeg)["segmentation"], return_counts=True)
    classes = httpx.get(f"{url}/v1/models").json()["models"][0]["tasks"][0]["classes"]
    texts = shown.eval_on_selector_all(".legend li", "all => all.map((one) => one.textContent)")
    shares = 100 * counts / counts.sum()
    listed = {
        f"{classes[i]} {f'{share:.1f}' if share >= 0.1 else '< 0.1'} %"
        for i, share in zip(indices, shares, strict=True)
    }
    assert set(texts) == listed


def test_depth_legend_is_in_metres(shown) -> None:
    ends = shown.eval_on_selector_all("figure:nth-child(3) .ends span", "all => all.map((one) => one.textContent)")
    metres = [float(re.fullmatch(r"([\d.]+) m", end)[1]) for end in ends]
    assert metres == sorted(metres)
    assert len(metres) == 3


def test_colours_are_those_of_the_server(shown, url: str, photo_jpeg: bytes) -> None:
    from PIL import Image

    for number, task in enumerate(TASKS):
        answer = httpx.post(f"{url}/v1/predict/{task}?render=color&size=model", content=photo_jpeg)
        server = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)
        drawn = shown.evaluate(
            "n => { const c = document.querySelectorAll('.picture canvas')[n];"
            "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data] }",
            number,
        )
        page = np.array(drawn).reshape(48, 64, 4)[..., :3]
        assert np.percentile(np.abs(page - server), 95) <= 8, task


def test_class_is_highlighted_by_click_and_by_keyboard(shown) -> None:
    button = shown.locator(".legend button").first
    pixels = "document.querySelector('.picture[data-name=segmentation] canvas').toDataURL()"
    before = shown.evaluate(pixels)
    button.focus()
    shown.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert shown.evaluate(pixels) == before


def test_arrow_keys_move_the_place_in_all_pictures(shown) -> None:
    picture = shown.locator(".picture[data-name=depth]")
    picture.focus()
    before = values(shown)["photo"]
    for _ in range(3):
        shown.keyboard.press("Shift+ArrowRight")
    shown.keyboard.press("ArrowUp")
    x, y = (int(part) for part in values(shown)["photo"].split(","))
    x0, y0 = (int(part) for part in before.split(","))
    assert (x - x0, y - y0) == (96, -3) or abs(x - x0 - 96) + abs(y - y0 + 3) <= 2
    assert "depth: " in picture.get_attribute("aria-label")
    assert shown.eval_on_selector_all(".cross", "all => new Set(all.map((one) => one.style.left)).size") == 1


def test_whole_page_is_reached_by_tab(page) -> None:
    reached = set()
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"file", "A"} <= reached


def test_download_is_the_raw_zip_at_the_photos_size(shown, tmp_path: Path) -> None:
    from PIL import Image

    with shown.expect_download() as waiting:
        shown.click("#download")
    waiting.value.save_as(tmp_path / "maps.zip")
    with zipfile.ZipFile(tmp_path / "maps.zip") as file:
        assert file.namelist() == [*(f"{task}.png" for task in TASKS), "meta.json"]
        with Image.open(io.BytesIO(file.read("depth.png"))) as image:
            assert image.size == (320, 240)


def test_refusal_is_told_in_words_and_the_next_photo_works(shown, photo_file: str, tmp_path: Path) -> None:
    bad = tmp_path / "notes.txt"
    bad.write_text("no photo")
    shown.set_input_files("#file", str(bad))
    shown.wait_for_selector("#error:not([hidden])")
    assert shown.text_content("#error-title") == "The image cannot be decoded"
    assert "no image" in shown.text_content("#error-detail")
    assert re.fullmatch(r"[0-9a-f]{16}", shown.text_content("#error-id"))
    assert not shown.is_visible("#result")
    shown.set_input_files("#file", photo_file)
    shown.wait_for_selector("#result:not([hidden])")
    assert not shown.is_visible("#error")


def test_file_name_cannot_become_markup(page, tmp_path: Path, photo_jpeg: bytes) -> None:
    path = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    path.write_bytes(photo_jpeg)
    page.set_input_files("#file", str(path))
    page.wait_for_selector("#result:not([hidden])")
    assert "onerror" not in page.content()


def test_server_with_a_key_asks_for_it(browser, serve, photo_file: str) -> None:
    with serve(PTSA_API_KEY="open-sesame") as url:
        page = browser.new_page()
        page.goto(f"{url}/ui")
        page.wait_for_selector("#keyform:not([hidden])")
        page.fill("#key", "open-sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("#model:has-text('ptsa-tiny')")
        page.set_input_files("#file", photo_file)
        page.wait_for_selector("#result:not([hidden])")
        page.close()


def test_page_says_when_the_server_is_gone(browser, serve, photo_file: str) -> None:
    with serve() as url:
        page = browser.new_page()
        page.goto(f"{url}/ui")
        page.wait_for_selector("#model:has-text('ptsa-tiny')")
    page.set_input_files("#file", photo_file)
    page.wait_for_selector("#error:not([hidden])")
    assert "cannot be reached" in page.text_content("#error-title")
    page.close()


def test_dark_mode_has_contrast(browser, url: str) -> None:
    def brightness(text: str) -> float:
        return sum(int(part) for part in re.findall(r"\d+", text)[:3]) / 3

    for scheme, dark in (("light", False), ("dark", True)):
        page = browser.new_page(color_scheme=scheme)
        page.goto(f"{url}/ui")
        back, fore = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        assert (brightness(back) < 60) == dark
        assert abs(brightness(back) - brightness(fore)) > 180
        page.close()


def test_narrow_screen_has_no_sideways_scroll(browser, url: str, photo_file: str) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 700})
    page.goto(f"{url}/ui")
    page.set_input_files("#file", photo_file)
    page.wait_for_selector("#result:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()


@pytest.mark.parametrize("path", ["ui", "ui/", ""])
def test_page_works_below_a_prefix_of_a_proxy(browser, running, url: str, photo_file: str, path: str) -> None:
    with prefix_proxy(running, url, "/vision") as (front, strays):
        page = browser.new_page()
        page.goto(f"{front}/vision/{path}")
        page.wait_for_selector("#model:has-text('ptsa-tiny')")
        page.wait_for_selector("#samples img")
        page.set_input_files("#file", photo_file)
        page.wait_for_selector("#result:not([hidden])")
        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename == "maps.zip"
        page.close()
        assert strays == []


@contextmanager
def prefix_proxy(running, url: str, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """An address that hands `prefix`/x on as x, and the paths outside of the prefix that were asked for."""
    strays: list[str] = []

    async def forward(request: Request) -> Response:
        path = request.url.path
        if not path.startswith(f"{prefix}/"):
            # Browsers ask for this of themselves, wherever the page's own icon is.
            strays.extend([path] if path != "/favicon.ico" else [])
            return Response(status_code=404)
        target = f"{url}{path.removeprefix(prefix)}?{request.url.query}"
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "content-length")}
        async with httpx.AsyncClient() as client:
            answer = await client.request(request.method, target, headers=headers, content=await request.body())
        kept = {name: value for name, value in answer.headers.items() if name != "content-encoding"}
        return Response(answer.content, answer.status_code, kept)

    app = Starlette(routes=[Route("/{path:path}", forward, methods=["GET", "POST"])])
    with running(app) as front:
        yield front, strays
