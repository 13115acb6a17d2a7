"""The page, as a browser shows it: a real one, which asks a real server that draws with the shipped model."""

import http.client
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

import sfumato
from sfumato.core.config import fields
from sfumato.core.request import Request
from sfumato.tasks.pipeline import Pipeline
from tests.serving.live import live

CHROMIUM = shutil.which("chromium")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 30_000
"""Milliseconds for what takes one at most on an idle machine."""
DONE = ".tile[data-state=done]"
SHEET = "#large.sheet[src^='blob:']"
THERE = f"{DONE} img[src^='blob:']"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return sfumato.load(device="cpu")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium here, and none is downloaded for a test")
    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def url(pipeline: Pipeline) -> Iterator[str]:
    with live(pipeline) as at:
        yield at


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with opened(browser, url) as shown:
        expect(shown.locator("#front .field")).to_have_count(8)
        yield shown


class opened:
    """A page in a browser that knows nothing yet; in the end it has asked no other host, and made no mistake."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.url, self.context = url, browser.new_context(viewport={"width": 1200, "height": 800})
        self.context.set_default_timeout(PATIENCE)
        self.asked: list[str] = []
        self.wrong: list[str] = []

    def __enter__(self) -> Page:
        page = self.context.new_page()
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda problem: self.wrong.append(str(problem)))
        page.on("console", lambda said: self.wrong.append(said.text) if "Security Policy" in said.text else None)
        page.goto(self.url)
        return page

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.context.close()
        if kind is None:
            others = [asked for asked in self.asked if not asked.startswith((f"{self.url}/", "data:", "blob:"))]
            assert not others
            assert not self.wrong


expect.set_options(timeout=PATIENCE)


def field(name: str) -> str:
    """Where a field of the request is typed."""
    return f"#form [name={name}]"


def draw(page: Page, prompt: str, **settings: Any) -> None:
    for name, value in {"steps": 2, **settings}.items():
        page.fill(field(name), str(value))
    page.fill("#prompt", prompt)
    page.keyboard.press("Control+Enter")


def known(url: str) -> list[dict[str, Any]]:
    """What the server tells of all requests."""
    with urlopen(f"{url}/api/requests") as answer:
        return list(json.load(answer))


def pixels(url: str, work: dict[str, Any]) -> NDArray[np.uint8]:
    with urlopen(url + work["pictures"][0]["url"]) as answer:
        return np.array(Image.open(io.BytesIO(answer.read())))


def width(image: Locator) -> int:
    return int(image.evaluate("image => image.decode().then(() => image.naturalWidth)"))


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A picture of 64 x 64 pixels of which no two are alike."""
    made = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(made).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_what_is_asked_for_is_drawn_and_shown(page: Page, url: str) -> None:
    expect(page.locator("#empty")).to_be_visible()
    assert page.get_attribute(field("steps"), "placeholder") == "25"
    shown = page.locator("#form [name]").evaluate_all("fields => fields.map((field) => field.name)")
    nothing = {"crop", "loras", "noise_level", "original_size", "refiner_start"}  # to this model
    nothing |= {"control", "control_scale", "control_start", "control_end"}
    apart = {"task", "image", "mask", "depth"}  # what pictures bring
    assert set(shown) == {one.name for one in fields(Request)} - nothing - apart
    seed = 2**64 - 3  # more than a number of JavaScript's holds
    page.click("#more summary")
    draw(page, "rocket", seed=seed, steps=3, count=2, guidance_rescale=0.5)
    expect(page.locator(DONE)).to_have_count(2)
    expect(page.locator("#empty")).to_be_hidden()
    expect(page.locator(DONE).first).to_contain_text(f"seed {seed}")
    assert width(page.locator(THERE).nth(1)) == 64
    [work] = known(url)
    told = {"prompt": "rocket", "seed": seed, "steps": 3, "count": 2, "guidance_rescale": 0.5, "sampler": "euler"}
    assert told.items() <= work["request"].items()


def test_a_picture_is_seen_large_and_its_settings_are_used_again(page: Page) -> None:
    draw(page, "blue heart", seed=5, cfg_scale=2.5)
    draw(page, "snowman", seed=6)
    expect(page.locator(DONE)).to_have_count(2)
    page.locator(f"{DONE} .picture").first.click()
    view = page.locator("#view")
    expect(view.locator("h2")).to_have_text("snowman")
    page.keyboard.press("ArrowRight")
    expect(view.locator("h2")).to_have_text("blue heart")
    assert page.get_attribute("#download", "download") == "blue-heart-5.png"
    recipe = dict(zip(view.locator("dt").all_text_contents(), view.locator("dd").all_text_contents(), strict=True))
    assert recipe["cfg scale"] == "2.5"
    assert recipe["seed"] == "5"
    page.keyboard.press("Escape")
    expect(view).to_be_hidden()
    page.locator(f"{DONE} .picture").nth(1).click()
    page.click("#use")
    expect(view).to_be_hidden()
    assert [page.input_value(field(name)) for name in ("prompt", "seed", "cfg_scale")] == ["blue heart", "5", "2.5"]
    assert page.input_value(field("width")) == ""  # as the model does unasked


def test_words_are_explained(page: Page) -> None:
    draw(page, "red apple")
    page.locator(f"{DONE} .picture").click()
    page.click("#explain")
    expect(page.locator(SHEET)).to_be_visible()
    expect(page.locator("#recipe")).to_contain_text(re.compile(r"red .* %, apple .* %"))
    assert width(page.locator(SHEET)) > 256


def test_a_request_is_stopped(page: Page, url: str) -> None:
    draw(page, "rocket", steps=900)
    expect(page.locator(".tile img[src^='data:image/jpeg']")).to_be_visible()
    expect(page.locator(".tile")).to_contain_text(re.compile(r"step \d+ of 900"))
    draw(page, "a second one", steps=900)
    expect(page.locator(".tile")).to_have_count(2)
    for left in (1, 0):
        page.locator(".stop").first.click()
        expect(page.locator(".tile")).to_have_count(left)
    expect(page.locator("#status")).to_have_text("stopped")
    assert [work["state"] for work in known(url)] == ["cancelled"] * 2


def test_what_the_server_refuses_is_said(page: Page) -> None:
    draw(page, "rocket", cfg_scale=2000)
    expect(page.locator("#error")).to_have_text("cfg_scale = 2000.0: must be from 0 to 1000.")
    draw(page, "rocket", cfg_scale="")
    expect(page.locator("#error")).to_have_text("")
    expect(page.locator(DONE)).to_have_count(1)


def test_drawing_begins_from_a_picture(page: Page, url: str, noise: Path) -> None:
    page.set_input_files("#file", noise)
    expect(page.locator("#from")).to_be_visible()
    page.fill(field("strength"), "0.5")
    draw(page, "rocket", steps=4)
    expect(page.locator(DONE)).to_have_count(1)
    [work] = known(url)
    assert work["request"]["task"] == "image_to_image"
    assert work["request"]["strength"] == 0.5
    page.locator(f"{DONE} .picture").click()
    page.click("#use")  # what it began from is still here
    page.click("#draw")
    expect(page.locator(DONE)).to_have_count(2)
    first, again = known(url)
    assert first["request"] == again["request"]
    assert np.array_equal(pixels(url, first), pixels(url, again))


def test_settings_are_read_from_a_picture_that_is_dropped(page: Page, url: str) -> None:
    draw(page, "snowman", seed=77, steps=3)
    expect(page.locator(DONE)).to_have_count(1)
    place = known(url)[0]["pictures"][0]["url"]
    page.fill("#prompt", "")
    page.fill(field("seed"), "")
    dropped = page.evaluate_handle(
        """async (place) => {
            const carried = new DataTransfer();
            carried.items.add(new File([await (await fetch(place)).blob()], "it.png"));
            return carried;
        }""",
        place,
    )
    page.dispatch_event("body", "drop", {"dataTransfer": dropped})
    page.click("#use_read")
    assert [page.input_value(field(name)) for name in ("prompt", "seed", "steps")] == ["snowman", "77", "3"]
    page.dispatch_event("body", "drop", {"dataTransfer": page.evaluate_handle(
        "() => { const d = new DataTransfer(); d.items.add(new File(['no picture'], 'it.png')); return d; }"
    )})  # fmt: skip
    expect(page.locator("#error")).to_contain_text("is not a PNG, JPEG or WebP")


def test_only_what_is_painted_changes(page: Page, url: str, noise: Path) -> None:
    page.set_input_files("#file", noise)
    page.click("#paint")
    page.fill("#size", "30")
    page.locator("#mask").scroll_into_view_if_needed()
    box = page.locator("#mask").bounding_box()
    assert box is not None
    for x in (0.75, 0.1):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + 0.1 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + x * box["width"], box["y"] + 0.9 * box["height"], steps=3)
        page.mouse.up()
    page.click("#undo")
    page.fill(field("mask_blur"), "0")
    draw(page, "rocket")
    expect(page.locator(DONE)).to_have_count(1)
    [work] = known(url)
    assert work["request"]["task"] == "inpaint"
    assert work["request"]["strength"] == 1  # where inpainting begins unless told otherwise
    before, after = np.array(Image.open(noise)), pixels(url, work)
    assert np.array_equal(before[:, :36], after[:, :36])
    assert (before[10:54, 42:54] != after[10:54, 42:54]).any(-1).mean() > 0.9


def test_a_reload_loses_nothing(page: Page, url: str, noise: Path) -> None:
    page.set_input_files("#file", noise)
    expect(page.locator("#from")).to_be_visible()
    page.fill(field("negative_prompt"), "text")
    page.select_option(field("sampler"), "heun")
    draw(page, "rocket", seed=4)
    expect(page.locator(DONE)).to_have_count(1)
    draw(page, "snowman", steps=900)
    expect(page.locator(".tile")).to_have_count(2)
    page.reload()
    expect(page.locator(DONE)).to_have_count(1)
    expect(page.locator(".tile").first).to_contain_text("snowman")
    expect(page.locator(".tile .told").first).to_contain_text("of 675")  # of 900, at strength 0.75
    expect(page.locator("#from")).to_be_visible()
    kept = [page.input_value(field(name)) for name in ("prompt", "negative_prompt", "seed", "steps", "sampler")]
    assert kept == ["snowman", "text", "4", "900", "heun"]
    page.click(".stop")
    expect(page.locator(".tile")).to_have_count(1)


def test_a_key_is_asked_for(browser: Browser, pipeline: Pipeline) -> None:
    with live(pipeline, key="open-sesame") as url, opened(browser, url) as page:
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#ask_why")).to_have_text("That is not the key of this server.")
        page.fill("#key", "open-sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#ask")).to_be_hidden()
        draw(page, "rocket")
        assert width(page.locator(THERE)) == 64
        page.reload()
        expect(page.locator(DONE)).to_have_count(1)
        expect(page.locator("#ask")).to_be_hidden()


def test_a_prompt_is_nothing_but_words(page: Page) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    draw(page, hostile, negative_prompt=hostile)
    page.locator(f"{DONE} .picture").click()
    expect(page.locator("#title")).to_have_text(hostile)
    expect(page.locator("#recipe")).to_contain_text(hostile)
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == "sfumato"


def test_it_fits_a_small_screen(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    draw(page, "a prompt that is far too long to fit into a line of so small a screen", count=3)
    expect(page.locator(DONE)).to_have_count(3)
    page.locator(f"{DONE} .picture").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.locator("#download")).to_be_in_viewport()


def test_its_files_are_served_and_no_others(url: str) -> None:
    def get(path: str, **headers: str) -> http.client.HTTPResponse:
        line = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        line.putrequest("GET", path)
        for name, value in headers.items():
            line.putheader(name.replace("_", "-"), value)
        line.endheaders()
        return line.getresponse()

    index = get("/")
    assert index.status == 200
    assert index.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = index.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "img-src 'self' data: blob:" in policy
    assert "unsafe" not in policy
    text = index.read().decode()
    assert not re.findall(r"https?://", text)
    named = re.findall(r'(?:src|href)="(page/[^"]+)"', text)
    assert len(named) == 3
    for name in named:
        assert get(f"/{name}").status == 200
    assert get("/page/api.js").headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert get("/", If_None_Match=index.headers["ETag"]).status == 304
    for path in ("__init__.py", "../native.py", "%2e%2e/native.py", "..%2fnative.py", "/etc/passwd", "", "no.js"):
        assert get(f"/page/{path}").status == 404, path
