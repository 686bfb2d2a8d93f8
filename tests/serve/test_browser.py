"""The web page in a real browser, at a real server."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mmrr
from tests.console import copy_workspace
from tests.pdfs import make_pdf
from tests.serve.browser import Seen, started
from tests.serve.conftest import MACHINE, QUERY, RENDER
from tests.serve.test_process import Process

pytestmark = [pytest.mark.browser, pytest.mark.slow]
KEY = "a-key-of-the-browser"
OPTIONS = ("--dtype", "float32", "--device", "cpu", "--max-tokens", "64")


@dataclass
class Site:
    """A server, and a browser for it."""

    url: str
    browser: Any
    page: Any = None
    seen: Any = None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def open(self, path: str = "/", **context: Any) -> Any:
        """A page of a new profile at this address."""
        self.seen = Seen(self.url)
        self.page = self.browser.new_context(**context).new_page()
        self.page.set_default_timeout(20_000)
        self.seen.watch(self.page)
        self.page.goto(self.url + path)
        return self.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as opened:
        yield opened


@pytest.fixture(scope="module")
def works(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two workspaces: one that reranks, and one that has words alone."""
    folder = tmp_path_factory.mktemp("browser")
    copy = copy_workspace(made, folder / "served")
    with mmrr.Workspace(folder / "plain", create=True, machine=MACHINE) as workspace:
        workspace.index(copy / "documents", text_embedder="none", render=RENDER)
    return {"work": copy / "work", "plain": folder / "plain"}


@pytest.fixture(scope="module")
def server(browser: Any, works: dict[str, Path]) -> Iterator[str]:
    process = Process(*(f"--work={name}={path}" for name, path in works.items()), *OPTIONS)
    assert process.url, process.lines
    yield process.url
    process.process.kill()
    process.process.wait()


@pytest.fixture
def site(browser: Any, server: str) -> Iterator[Site]:
    """Afterwards nothing was asked of another host, and nothing was complained of."""
    opened = Site(server, browser)
    yield opened
    for context in browser.contexts:
        context.close()
    assert opened.seen.elsewhere == []
    assert opened.seen.errors == []


def settled(page: Any) -> None:
    """Wait until the search has ended and the thumbnails on the screen are drawn."""
    page.wait_for_function("() => !document.querySelector('#results').hasAttribute('aria-busy')")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.thumbnail')].slice(0, 3).every((i) => i.naturalWidth)"
    )


def search(page: Any, query: str = QUERY) -> None:
    page.fill("#q", query)
    page.press("#q", "Enter")
    page.wait_for_selector(".hit a, .message h2")
    settled(page)


def titles(page: Any) -> list[str]:
    found: list[str] = page.locator(".hit h2").all_inner_texts()
    return found


def test_search(site: Site):
    page = site.open()
    page.wait_for_selector(".message h2")
    assert "5 pages of 2 documents" in page.inner_text("#message")
    search(page)
    assert page.locator(".hit").count() == 5
    expected = site.get("/v1/documents")
    assert {title.split()[0] for title in titles(page)} == {row["id"] for row in expected["documents"]}
    assert "thesis.pdf page 1" in titles(page)
    assert re.search(r"5 pages, reranked by \S+, \d+ ms", page.inner_text("#status"))
    one = page.locator(".hit", has_text="thesis.pdf page 1")
    assert one.locator("mark").all_inner_texts() == ["thesis", "due"]
    assert re.fullmatch(r"score -?\d+\.\d{3}", one.locator(".score").inner_text())
    moved = page.locator(".movement").all_inner_texts()
    assert len(moved) == 5
    assert all(re.match(r"(▲ \d+|▼ \d+|=)", text) for text in moved)
    assert page.title() == f"{QUERY} · mmrr"
    assert site.seen.refused == []
    page.check("input[name=rank][value=first]")
    settled(page)
    assert "by the first stage" in page.inner_text("#status")
    assert page.locator(".movement").count() == 0
    assert "rank=first" in page.url


def test_keys(site: Site):
    page = site.open()
    page.keyboard.press("/")  # the empty box has the focus
    assert page.input_value("#q") == ""
    page.mouse.click(600, 500)
    page.keyboard.press("/")
    page.keyboard.type("rainfall by month")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit a")
    settled(page)
    names = page.locator(".hit a").evaluate_all("(links) => links.map((link) => link.dataset.page)")
    focused = "document.activeElement.dataset.page"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == names[0]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == names[1]
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer[open]")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"() => new URLSearchParams(location.search).get('page') === '{names[2]}'")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"() => new URLSearchParams(location.search).get('page') === '{names[0]}'")
    assert page.is_disabled("#previous")
    page.keyboard.press("Escape")
    page.wait_for_function("() => !document.querySelector('#viewer').open")
    assert "page=" not in page.url
    assert page.evaluate(focused) == names[0]
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == names[1]
    # The key can be switched off: some people's software types it.
    page.click("#help")
    page.uncheck("#slash")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") != "q"


def alpha(page: Any, layer: str) -> list[int]:
    """The opacity of each cell of a layer."""
    found: list[int] = page.evaluate(
        """(id) => { const c = document.getElementById(id);
        const all = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        return Array.from({length: all.length / 4}, (_, i) => all[4 * i + 3]); }""",
        layer,
    )
    return found


def test_kept_tokens_and_words(site: Site):
    page = site.open(f"/?q={QUERY.replace(' ', '+')}&page=thesis.pdf/0001")
    page.wait_for_selector("#layer-words:not([hidden])")
    assert page.is_checked("#show-words")
    words = site.get("/v1/pages/thesis.pdf/0001/words?q=When+is+the+thesis+due")
    assert page.locator("rect.word").count() == len(words["boxes"])
    assert page.locator("rect.match title").all_text_contents() == ["thesis", "due"]
    box = next(one for one in words["boxes"] if one["text"] == "due")
    image, drawn = (page.locator(one).bounding_box() for one in ("#page-image", "rect.match >> nth=1"))
    assert (drawn["x"] - image["x"]) / image["width"] == pytest.approx(box["left"], abs=0.01)
    assert (drawn["y"] - image["y"]) / image["height"] == pytest.approx(box["top"], abs=0.01)
    assert page.locator("#layer-kept").is_hidden()
    page.check("#show-kept")
    page.wait_for_selector("#layer-kept:not([hidden])")
    kept = site.get("/v1/pages/thesis.pdf/0001/kept")
    assert [opacity == 0 for opacity in alpha(page, "layer-kept")] == kept["kept"]
    assert f"{sum(kept['kept'])} of {len(kept['kept'])}" in page.inner_text("#note-kept")
    page.uncheck("#show-words")
    assert page.locator("#layer-words").is_hidden()
    # The choice stays for the next page.
    page.click("#next")
    page.wait_for_function("() => !document.querySelector('#viewer-title').textContent.startsWith('thesis.pdf page 1')")
    page.wait_for_selector("#layer-kept:not([hidden])")
    assert page.locator("#layer-words").is_hidden()
    assert page.evaluate("document.querySelector('#page-image').naturalWidth") > 0
    page.click("text=Text of the page")
    page.wait_for_function("() => document.querySelector('#text').textContent.length > 5")
    page.click("#zoom")
    assert page.get_attribute("#zoom", "aria-pressed") == "true"


def test_evidence(site: Site):
    page = site.open(f"/?q={QUERY.replace(' ', '+')}&page=thesis.pdf/0001")
    page.click("#show-evidence")
    if "/v1/pages/{page_id}/evidence" not in site.get("/openapi.json")["paths"]:
        page.wait_for_function("() => document.querySelector('#show-evidence').disabled")
        assert page.inner_text("#note-evidence")
        return
    page.wait_for_selector("#layer-evidence:not([hidden])")
    whole = alpha(page, "layer-evidence")
    assert max(whole) > 100
    chips = page.locator(".chip")
    assert chips.count() > 3
    with page.expect_response(lambda answer: "word=" in answer.url):
        chips.nth(chips.count() - 1).click()
    page.wait_for_function("() => document.querySelectorAll('.chip input:checked').length === 1")
    page.uncheck("#show-evidence")
    assert page.locator("#layer-evidence").is_hidden()


def test_a_workspace_without_caches_says_why(site: Site):
    page = site.open("/?workspace=plain&q=thesis&page=thesis.pdf/0001")
    page.click("#show-kept")
    page.wait_for_function("() => document.querySelector('#show-kept').disabled")
    assert "pruned" in page.inner_text("#note-kept")
    assert not page.is_checked("#show-kept")


def test_filter_by_document(site: Site):
    page = site.open()
    search(page)
    page.check("#documents label:has-text('soil.pdf')")
    page.wait_for_function("() => document.querySelectorAll('.hit').length === 3")
    settled(page)
    assert {title.split()[0] for title in titles(page)} == {"soil.pdf"}
    assert "doc=soil.pdf" in page.url
    page.click("text=Search in all documents")
    page.wait_for_function("() => document.querySelectorAll('.hit').length === 5")
    page.go_back()
    page.wait_for_function("() => document.querySelectorAll('.hit').length === 3")
    assert page.is_checked("#documents label:has-text('soil.pdf') input")


def test_addresses(site: Site):
    page = site.open()
    search(page, "soil moisture")
    search(page, QUERY)
    page.click(".hit >> nth=1")
    page.wait_for_selector("#viewer[open]")
    opened, title = page.url, page.inner_text("#viewer-title")
    page.go_back()
    page.wait_for_function("() => !document.querySelector('#viewer').open")
    page.go_back()
    page.wait_for_function("() => document.querySelector('#q').value === 'soil moisture'")
    page.go_forward()
    page.go_forward()
    page.wait_for_selector("#viewer[open]")
    assert page.url == opened
    page.reload()
    page.wait_for_selector("#viewer[open]")
    settled(page)
    assert page.inner_text("#viewer-title") == title
    assert "Place" in page.inner_text("#facts")
    page.goto(f"{site.url}/?page=soil.pdf/0002")
    page.wait_for_function("() => document.querySelector('#page-image').naturalWidth > 0")
    assert page.inner_text("#viewer-title") == "soil.pdf page 2"
    page.click("#close")
    page.wait_for_function("() => !document.querySelector('#viewer').open")
    page.goto(f"{site.url}/?page=none.pdf/0001")
    page.wait_for_selector("#page-problem:not([hidden])")
    assert "no such page" in page.inner_text("#page-problem")
    page.goto(f"{site.url}/?q=soil&n=2.5&rank=-5")  # wrong values are read as if they were not there
    settled(page)
    assert "The search failed" not in page.inner_text("body")


@pytest.mark.parametrize("query", ["<script>window.ran = 1</script>", '"><img src=x onerror="window.ran = 1">'])
def test_a_query_is_text(site: Site, query: str):
    page = site.open("/?workspace=plain")
    search(page, query)
    assert page.inner_text(".message h2") == "No page was found"
    assert query in page.inner_text(".message")
    assert query in page.title()
    page.reload()
    page.wait_for_selector(".message h2")
    assert page.input_value("#q") == query
    assert page.evaluate("window.ran") is None
    assert page.locator("#results img, #results script").count() == 0


def test_upload(site: Site, tmp_path: Path):
    page = site.open()
    hostile = "zebra <img src=x onerror='window.ran = 1'>"
    (tmp_path / "Zebra care.pdf").write_bytes(make_pdf([hostile, "Stripes"]))
    (tmp_path / "page.exe").write_bytes(b"MZ")
    page.set_input_files("#files", [tmp_path / "Zebra care.pdf", tmp_path / "page.exe"])
    page.wait_for_selector(".job.failed")
    assert "No document" in page.inner_text(".job.failed")
    page.wait_for_selector(".job.added", timeout=60_000)
    page.wait_for_selector("#documents label:has-text('Zebra_care.pdf')")
    search(page, "zebra onerror")
    one = page.locator(".hit", has_text="Zebra_care.pdf page 1")
    assert one.locator(".snippet").inner_text() == hostile
    assert page.evaluate("window.ran") is None
    # By drag and drop, of a file that is no document inside.
    drop = """(type) => { const data = new DataTransfer();
      data.items.add(new File(['nothing'], 'broken.pdf'));
      document.body.dispatchEvent(new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true})); }"""
    page.evaluate(drop, "dragenter")
    assert page.locator("#drop").is_visible()
    page.evaluate(drop, "drop")
    assert page.locator("#drop").is_hidden()
    page.wait_for_selector(".job.failed:has-text('broken.pdf')", timeout=60_000)
    page.wait_for_function("() => /not_a_document/.test(document.querySelector('#jobs').textContent)")


def test_a_server_that_is_gone_or_busy(site: Site):
    page = site.open()
    page.route("**/v1/search", lambda route: route.abort())
    search(page)
    assert page.inner_text(".message h2") == "The server does not answer"
    page.unroute("**/v1/search")
    answers = iter([429])

    def busy(route: Any) -> None:
        if next(answers, None):
            body = json.dumps({"error": {"type": "queue_full", "message": "9 requests wait"}})
            route.fulfill(status=429, headers={"Retry-After": "1"}, content_type="application/json", body=body)
        else:
            route.continue_()

    page.route("**/v1/search", busy)
    page.click("text=Try again")
    page.wait_for_function("() => document.querySelector('#status').textContent.includes('busy')")
    page.wait_for_selector(".hit a")
    settled(page)
    assert page.locator(".message").count() == 0


def test_an_api_key(browser: Any, works: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MMRR_API_KEY", KEY)
    process = Process("--work", works["plain"], "--read-only", *OPTIONS)
    try:
        site = Site(process.url, browser)
        page = site.open("/?q=thesis")
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "another key")
        page.press("#key", "Enter")
        page.wait_for_selector("#key-problem:not([hidden])")
        assert "refused" in page.inner_text("#key-problem")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        page.wait_for_selector(".hit a")
        settled(page)
        assert page.locator(".thumbnail").first.get_attribute("src").startswith("blob:")
        page.click(".hit")
        page.wait_for_function("() => document.querySelector('#page-image').naturalWidth > 0")
        assert page.locator("#add").is_hidden(), "the server is read-only"
        page.reload()
        page.wait_for_function("() => document.querySelector('#page-image').naturalWidth > 0")
        assert KEY not in page.url + str(page.evaluate("JSON.stringify(localStorage)"))
        assert site.seen.errors == site.seen.elsewhere == []
    finally:
        process.process.kill()
        process.process.wait()
        for context in browser.contexts:
            context.close()


def test_workspaces(site: Site):
    page = site.open()
    search(page, "rainfall")
    page.select_option("#workspace", "plain")
    page.wait_for_function("() => location.search.includes('workspace=plain')")
    page.wait_for_selector(".hit a")
    settled(page)
    assert page.locator("#ranking").is_hidden(), "this workspace does not rerank"
    assert page.locator(".movement").count() == 0
    page.go_back()
    page.wait_for_selector(".movement")
    assert page.input_value("#workspace") == ""


STATES = {
    "welcome": "/",
    "results": "/?q=thesis",
    "nothing found": "/?q=zzzz&workspace=plain",
    "a page": "/?q=thesis&page=thesis.pdf/0001",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(site: Site, scheme: str):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = site.open(color_scheme=scheme)
    for state, path in STATES.items():
        page.goto(site.url + path)
        settled(page)
        if state == "a page":
            page.wait_for_selector("#layer-words:not([hidden])")
            page.check("#show-kept")
            page.wait_for_selector("#layer-kept:not([hidden])")
        violations = axe.Axe().run(page).response["violations"]
        found = [
            (one["id"], [node["html"] for node in one["nodes"]][:3])
            for one in violations
            if one["impact"] in ("serious", "critical")
        ]
        assert not found, (state, scheme)


def test_light_and_dark(site: Site):
    page = site.open(color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.click("#theme")
    light = page.evaluate(background)
    assert light != dark
    page.reload()
    assert page.evaluate(background) == light
    page.click("#theme")
    assert page.evaluate(background) == dark


def test_on_a_phone(site: Site):
    page = site.open("/?q=thesis", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.wait_for_selector(".hit a")
    settled(page)
    too_wide = "document.documentElement.scrollWidth > innerWidth"
    assert not page.evaluate(too_wide)
    page.tap(".hit")
    page.wait_for_function("() => document.querySelector('#page-image').naturalWidth > 0")
    assert not page.evaluate(too_wide)
    assert page.locator("#page-image").bounding_box()["width"] > 320
    page.locator("#show-kept").scroll_into_view_if_needed()
    page.check("#show-kept")
    page.wait_for_selector("#layer-kept:not([hidden])")
    page.tap("#close")
    page.wait_for_function("() => !document.querySelector('#viewer').open")
