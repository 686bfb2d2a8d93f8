"""``mmrr report``: one file that shows every text as text, loads nothing, and has the numbers of ``mmrr eval``."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mmrr as library
from tests.cli.chain import Chain
from tests.console import manifest, mmrr, refused, write_queries

HOSTILE = (
    """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">' {{ 7 * 7 }} javascript:alert(1)"""
)


class Page(HTMLParser):
    """The tags of a page, the sources that a browser would load, and its texts by tag."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.words = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open, []).append(data)
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(chain: Chain, path: Path, *more: object) -> Page:
    command = ("report", "--work", chain.work, "--qrels", chain.qrels, "--measure", "R@1", "--measure", "nDCG@5")
    found = mmrr(*command, "--output", path, *more)
    assert found.stdout == f"{path}\n"
    return Page(path.read_text("utf-8"))


@pytest.fixture
def hostile(made: Chain, tmp_path: Path) -> Path:
    """The questions of the chain with text that a browser would run if it were not escaped."""
    ids = [json.loads(line)["query_id"] for line in made.queries.read_text().splitlines()]
    return write_queries(tmp_path / "hostile.jsonl", *((query_id, f"{HOSTILE} {query_id}") for query_id in ids))


@pytest.fixture
def hostile_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrr.reporting.failures.read_texts", lambda *_: [f"{HOSTILE} of the page"])


def test_the_report_of_the_current_ranking(made: Chain, tmp_path: Path) -> None:
    page = report(made, tmp_path / "report.html")
    head = json.loads((made.work / "head.json").read_text())
    inputs = manifest(made.work / "rerank" / head["rerank"])["inputs"]
    for stage in ("retrieve", "precache", "pages"):
        assert f"{stage}/{inputs[stage]}" in page.words
    assert str(made.reranker) in page.words
    command = ("eval", "--work", made.work, "--qrels", made.qrels, "--measure", "R@1", "--measure", "nDCG@5", "--json")
    metrics = json.loads(mmrr(*command).stdout)["metrics"]
    for run in ("first_stage", "reranked"):
        assert f"{metrics[run]['nDCG@5']:.4f}" in page.words
    assert "nDCG@5 less" not in page.words
    assert "R@1 over bytes a page" in page.words
    assert "R@1 over milliseconds a query" in page.words
    assert "1 first stage: a first stage keeps no page caches." in page.words
    for question in ("rainfall by month in spring", "sensors of soil moisture"):
        assert question in page.words
    assert len(page.all("tr")) > 10


def test_the_file_loads_nothing_and_shows_every_text_as_text(
    made: Chain, hostile: Path, hostile_text: None, tmp_path: Path
) -> None:
    (tmp_path / "<b>run.trec").write_bytes((made.root / "run.trec").read_bytes())
    turned = tmp_path / "turned.trec"
    turned.write_text("".join(f"{query} Q0 soil.pdf/0003 1 1.0 x\n" for query in ("q1", "q2")))
    runs = ("--run", tmp_path / "<b>run.trec", "--run", turned)
    page = report(made, tmp_path / "report.html", "--queries", hostile, *runs)
    assert f"{HOSTILE} q1" in page.words
    assert f"{HOSTILE} of the page"[:150] in page.words
    assert "<b>run" in page.words
    assert not page.all("b") or all(not attributes for attributes in page.all("b"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]
    loaded = [value or "" for _, one in page.tags for name, value in one.items() if name in ("src", "href", "data")]
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in loaded)
    script, style = ("".join(page.texts[name]) for name in ("script", "style"))
    assert len(page.all("script")) == 1
    policy = next(one["content"] or "" for one in page.all("meta") if one.get("http-equiv"))
    for source in (script, style):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert "turned: 1 of 3 judged queries are not in the run and count as 0: q3." in page.words
    assert "2 turned: a run made elsewhere: not recorded." in page.words
    images = page.all("img")
    assert images
    for one in images:
        data = base64.b64decode((one["src"] or "").split(",")[1])
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "JPEG"
            assert image.size == (int(one["width"] or 0), int(one["height"] or 0))
            assert max(image.size) <= 400


def test_runs_of_another_system_say_what_is_not_recorded(made: Chain, tmp_path: Path) -> None:
    run = tmp_path / "other.trec"
    run.write_text("q1 Q0 thesis.pdf/0002 1 2.0 x\nq2 Q0 soil.pdf/0002 1 2.0 x\nq3 Q0 gone.pdf/0001 1 1.0 x\n")
    command = ("report", "--work", made.work, "--qrels", made.qrels, "--output", tmp_path / "r.html", "--run", run)
    assert "pass the questions with --queries" in refused(*command)
    page = report(made, tmp_path / "r.html", "--run", run, "--queries", made.queries)
    assert "No plot of R@1 over bytes a page: no run has recorded bytes a page." in page.words
    assert "No plot of R@1 over milliseconds a query" in page.words
    assert "no image" in page.words  # of a page that is not in the index
    assert "gone.pdf, page 1" in page.words


def test_the_python_api_writes_the_same_report(made: Chain, tmp_path: Path) -> None:
    head = json.loads((made.work / "head.json").read_text())
    runs = [made.work / "retrieve" / head["retrieve"] / "run.trec", f"rerank/{head['rerank']}"]
    with library.open(made.work) as work:
        found = work.report(tmp_path / "r.html", made.qrels, runs=runs, measures=["R@1"])
    assert list(found.evaluations) == ["run", f"rerank/{head['rerank']}"]
    # The run file was written by the workspace, so its artifact is known.
    assert f"retrieve/{head['retrieve']}" in Page((tmp_path / "r.html").read_text("utf-8")).words


def test_what_is_refused(made: Chain, tmp_path: Path) -> None:
    command = ("report", "--work", made.work)
    assert "pass --qrels FILE" in refused(*command, "--output", tmp_path / "r.html")
    command = (*command, "--qrels", made.qrels)
    assert "does not exist" in refused(*command, "--output", tmp_path / "none" / "r.html")
    assert "--baseline needs --run" in refused(*command, "--output", tmp_path / "r.html", "--baseline", made.qrels)
    other = tmp_path / "other.trec"
    other.write_text("1 Q0 thesis.pdf/0001 1 2.0 other\n")
    command = (*command, "--queries", made.queries, "--run", other, "--output", tmp_path / "r.html")
    expected = "the other run answers none of the 3 judged queries (run: 1; judged: q1, q2, q3)"
    assert expected in refused(*command)
    other.write_text("q1 Q0 thesis_1 1 2.0 other\n")
    expected = "none of the 4 judged pages is in the other run (run: thesis_1; judged: soil.pdf/0001"
    assert expected in refused(*command)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.browser
@pytest.mark.slow
def test_in_a_browser_nothing_runs_nothing_is_loaded_and_the_table_sorts(
    made: Chain, hostile: Path, hostile_text: None, tmp_path: Path
) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on the PATH")
    report(made, tmp_path / "report.html", "--queries", hostile)
    seen: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        tab.set_default_timeout(10_000)
        tab.on("console", lambda message: seen.append(message.text))
        tab.on("pageerror", lambda error: seen.append(str(error)))
        tab.on("dialog", lambda dialog: seen.append(dialog.message))
        tab.on("request", lambda one: seen.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
        tab.goto((tmp_path / "report.html").as_uri())
        assert tab.evaluate("window.hacked") is None
        assert tab.evaluate("document.images.length") == tab.evaluate(
            "[...document.images].filter(one => one.complete && one.naturalWidth > 0).length"
        )
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        _sorts_and_filters(tab)
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            assert not _serious(tab)
        browser.close()
    assert seen == []


def _sorts_and_filters(tab: Any) -> None:  # Any: playwright is optional
    def shown() -> list[str]:
        return tab.locator("#queries tbody tr:not([hidden]) td.id").all_text_contents()

    tab.get_by_role("button", name="id", exact=True).click()
    assert shown() == ["q3", "q2", "q1"]
    tab.get_by_role("button", name="id", exact=True).press("Enter")
    assert shown() == ["q1", "q2", "q3"]
    tab.get_by_label("Search these queries").fill("Q2")
    assert shown() == ["q2"]
    assert tab.locator("#filtered").text_content() == "1 of 3 queries"


def _serious(tab: Any) -> list[str]:  # Any: playwright is optional
    """What axe-core calls serious or critical; nothing where it is not installed."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(tab).response["violations"]
    return [one["id"] for one in found if one["impact"] in ("serious", "critical")]
