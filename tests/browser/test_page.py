"""The page in a real browser: every control by keyboard, on a phone, without a console error; leaves screenshots.

Run by ``make browser``, which installs Chromium. Accessibility is judged by axe-core.
"""

import io
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from fakes import fake_extractors
from flow_driver import ingest
from media_factory import write_pdf
from PIL import Image
from places import Place
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright
from server_driver import API_KEY, Client, serving

from mm_assets.extractors.packs import Pack
from mm_assets.settings import Settings

SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", "build/browser"))
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
ASSETS_BUDGET_BYTES = 100_000
FOCUSABLE = "a[href], button, input:not([type=hidden]), summary, video, audio"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "Chromium is not installed; `make browser` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Iterator[Place]:
    """Give a place whose media are searchable."""
    place = Place(tmp_path_factory.mktemp("browser"), media)
    place.write_settings()
    place.add("picture0.png", "picture1.png", "picture2.png", "clip.mp4", "sound.wav", "broken.png")
    write_pdf(place.source / "pages.pdf", ["the first page", "the second page"])
    ingest(place.open())
    yield place
    place.drop_databases()


@pytest.fixture
def client(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Serve it, with fakes where search would open models."""

    def build(step: str, _pack: Pack, _params: object, _placement: object) -> Any:
        return fake_extractors(Settings(sources=[{"uri": "source", "steps": [step]}]))[step]  # type: ignore[arg-type]

    monkeypatch.setattr("mm_assets.resources.readers.build_extractor", build)
    place.write_settings()
    with serving(place.open()) as client:
        yield client


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(request: pytest.FixtureRequest, browser: Browser, client: Client) -> Iterator[Page]:
    """Open a page; nothing may reach the console, and nothing another site."""
    context = browser.new_context(viewport=request.param, base_url=f"http://127.0.0.1:{client.port}")
    page, told = context.new_page(), []

    def note(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            told.append(f"{message.text} ({message.location.get('url')})")

    page.on("console", note)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on(
        "request",
        lambda sent: (
            told.append(sent.url) if "127.0.0.1" not in sent.url and not sent.url.startswith("data:") else None
        ),
    )
    yield page
    shot(page, request.node.name)
    context.close()
    assert told == []


def shot(page: Page, name: str) -> None:
    """Leave a screenshot."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def require_accessible(page: Page) -> None:
    """Have axe-core look at names, labels, contrast, order; and at a width that fits."""
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page is wider than the screen"
    )


def reached_by_tab(page: Page) -> set[str]:
    """Press Tab until the focus comes round; returns what it reached."""
    page.evaluate(
        f"[...document.querySelectorAll({FOCUSABLE!r})].forEach((e, i) => e.setAttribute('data-number', String(i)))"
    )
    page.evaluate("document.activeElement.blur()")
    seen: set[str] = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        number = page.evaluate("document.activeElement.getAttribute('data-number')")
        if number in seen and len(seen) > 1 and number == "0":
            break
        if number is not None:
            seen.add(number)
    return seen


def visible(page: Page) -> set[str]:
    """Return what can be used with a mouse."""
    script = (
        "[...document.querySelectorAll('[data-number]')].filter(e => e.checkVisibility())"
        ".map(e => e.getAttribute('data-number'))"
    )
    return set(page.evaluate(script))


def test_words_lead_to_moments(page: Page) -> None:
    """Typing and Enter are enough; answers have pictures; all of it passes axe, and every control is reached by Tab."""
    page.goto("/")
    require_accessible(page)
    page.keyboard.type("anything")  # the field has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector("ol.grid img")
    assert page.locator("ol.grid > li").count() >= 4
    page.wait_for_function("[...document.querySelectorAll('ol.grid img')].slice(0, 2).every(i => i.complete)")
    require_accessible(page)
    assert visible(page) - reached_by_tab(page) == set()


def test_facets_narrow(page: Page) -> None:
    """A facet is chosen by keyboard and stays chosen."""
    page.goto("/?text=anything")
    page.locator("details.facets > summary").focus()
    page.keyboard.press("Enter")
    page.get_by_role("checkbox", name="video").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Search", exact=True).press("Enter")
    page.wait_for_url("**media_kind=video**")
    assert {
        page.locator("ol.grid .name").nth(n).inner_text() for n in range(page.locator("ol.grid .name").count())
    } == {"clip.mp4"}
    assert page.get_by_role("checkbox", name="video").is_checked()
    require_accessible(page)


def test_a_picture_is_asked_with(page: Page, media: Path) -> None:
    """Choosing a picture asks at once; more like an answer is one step away."""
    page.goto("/")
    with page.expect_navigation():
        page.locator("input[name=image]").set_input_files(media / "picture0.png")
    assert page.locator("ol.grid > li").count() >= 3
    page.get_by_role("link", name="More like this").first.click()
    page.wait_for_url("**like=**")
    assert page.locator("ol.grid > li").count() >= 3
    require_accessible(page)


def test_the_player_goes_to_the_second(page: Page) -> None:
    """An answer opens its object at its second; the timeline and the scenes move the player, also by keyboard."""
    page.goto("/?text=anything&media_kind=video")
    page.locator("ol.grid a[href*='/view/']").last.click()
    page.wait_for_selector("video")
    page.wait_for_function("document.getElementById('player').readyState >= 1")
    asked = float(page.locator("video").get_attribute("data-at") or "nan")
    page.wait_for_function(f"Math.abs(document.getElementById('player').currentTime - {asked}) < 0.5")
    last = page.locator("svg a").last
    wanted = float(last.get_attribute("data-at") or "nan")
    last.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.getElementById('player').currentTime >= {wanted} - 0.05")
    page.evaluate("document.getElementById('player').pause()")
    require_accessible(page)
    assert visible(page) - reached_by_tab(page) == set()


def test_what_was_not_decoded_says_why(page: Page, place: Place) -> None:
    """An object without segments has its steps and reasons."""
    [broken] = place.open().ledger.objects.find("broken.png")
    page.goto(f"/view/{broken.object_id}")
    assert page.get_by_text("corrupt").count() >= 1
    require_accessible(page)


def test_a_document_is_read_here(browser: Browser, place: Place, client: Client) -> None:
    """The browser's own viewer opens it at its page, in spite of the sandbox; it is no download."""
    [known] = place.open().ledger.objects.find("pages.pdf")
    context = browser.new_context(viewport=DESKTOP, base_url=f"http://127.0.0.1:{client.port}")
    page, told = context.new_page(), []
    page.on("download", lambda download: told.append(download.url))
    page.goto(f"/view/{known.object_id}?segment={known.object_id}-p000001")
    page.get_by_role("link", name="Open the document").click()
    page.wait_for_url(f"**/media/{known.object_id}**")
    started = time.monotonic()
    while not _is_paper_shown(page):
        assert time.monotonic() - started < 20, [frame.url for frame in page.frames]
        page.wait_for_timeout(200)
    shot(page, "document")
    assert told == []
    context.close()


def _is_paper_shown(page: Page) -> bool:
    """Whether much of the window is white; the viewer itself is dark, and tells a program nothing."""
    with Image.open(io.BytesIO(page.screenshot())) as image:
        return sum(image.convert("L").histogram()[250:]) > image.width * image.height / 10


def test_own_assets_are_light(page: Page) -> None:
    """HTML, styles and script of a page of answers stay below 100 kB."""
    sizes: list[int] = []
    page.on("response", lambda answer: sizes.append(len(answer.body())) if "/segments/" not in answer.url else None)
    page.goto("/?text=anything")
    page.wait_for_load_state("networkidle")
    assert 0 < sum(sizes) < ASSETS_BUDGET_BYTES


def test_a_person_signs_in(browser: Browser, place: Place, client: Client) -> None:
    """Where keys are set, the page asks for one, keeps it, and forgets it."""
    place.write_settings(serve={"api_keys": [API_KEY]})
    with serving(place.open()) as locked:
        context = browser.new_context(base_url=f"http://127.0.0.1:{locked.port}")
        page = context.new_page()
        page.goto("/?text=anything")
        page.get_by_label("API key").fill(API_KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("input[name=text]")
        require_accessible(page)
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/login")
        page.goto("/")
        assert page.url.endswith("/login")
        context.close()
