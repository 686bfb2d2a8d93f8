"""The sample collection of ``data/``: judgements, text layers, size, and the generator that writes it."""

import json
import os
import subprocess
import sys
import zlib
from importlib.metadata import version
from pathlib import Path

import pypdfium2
import pytest
from PIL import Image, ImageChops, ImageStat

DATA = Path(__file__).resolve().parent.parent / "data"
SAMPLE = DATA / "sample"
SCANNED = "council-minutes-1974.pdf"
# Versions of the libraries that wrote the committed PDFs. Other versions compress the same pages to other bytes.
WRITTEN_WITH = {"reportlab": "5.1.0", "zlib": "1.2.13"}

Pages = dict[str, str]  # page id -> text layer


def read_pages(folder: Path) -> Pages:
    """The text of every page, with plain apostrophes and single spaces."""
    pages = {}
    for path in sorted(folder.glob("*.pdf")):
        with pypdfium2.PdfDocument(path) as document:
            for number, page in enumerate(document, 1):
                text = page.get_textpage().get_text_range().replace("\u2019", "'")
                pages[f"{path.name}/{number:04d}"] = " ".join(text.split())
    return pages


def read_images(path: Path) -> list[Image.Image]:
    with pypdfium2.PdfDocument(path) as document:
        return [page.render(scale=0.5, grayscale=True).to_pil() for page in document]


@pytest.fixture(scope="module")
def pages() -> Pages:
    return read_pages(SAMPLE)


@pytest.fixture(scope="module")
def queries() -> list[dict[str, str]]:
    return [json.loads(line) for line in (SAMPLE / "queries.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def judged() -> list[tuple[str, str]]:
    lines = [line.split() for line in (SAMPLE / "qrels.trec").read_text(encoding="utf-8").splitlines()]
    assert all(len(line) == 4 and line[1] == "0" and line[3] == "1" for line in lines)
    return [(line[0], line[2]) for line in lines]


def test_eight_small_documents(pages: Pages) -> None:
    documents = {page_id.split("/")[0] for page_id in pages}
    assert len(documents) == 8
    assert len(pages) == 62
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 1_500_000


def test_ids_are_unique_and_every_query_is_judged(queries: list[dict[str, str]], judged: list[tuple[str, str]]) -> None:
    query_ids = [query["query_id"] for query in queries]
    assert len(set(query_ids)) == len(query_ids)
    assert len({query["text"] for query in queries}) == len(queries)
    assert len(set(judged)) == len(judged)
    assert {query_id for query_id, _ in judged} == set(query_ids)


def test_judged_pages_exist(pages: Pages, judged: list[tuple[str, str]]) -> None:
    assert [page_id for _, page_id in judged if page_id not in pages] == []


def test_answers_are_on_the_judged_pages(
    pages: Pages, queries: list[dict[str, str]], judged: list[tuple[str, str]]
) -> None:
    by_id = {query["query_id"]: query for query in queries}
    written = [
        (query_id, page_id) for query_id, page_id in judged if by_id[query_id]["kind"] in ("text", "table", "chart")
    ]
    missing = [(query_id, page_id) for query_id, page_id in written if by_id[query_id]["answer"] not in pages[page_id]]
    assert written
    assert missing == []


def test_only_the_scanned_document_lacks_a_text_layer(
    pages: Pages, queries: list[dict[str, str]], judged: list[tuple[str, str]]
) -> None:
    without = {page_id for page_id, text in pages.items() if not text}
    assert without == {page_id for page_id in pages if page_id.startswith(SCANNED)}
    kinds = {query["query_id"]: query["kind"] for query in queries}
    assert all((kinds[query_id] == "scan") == (page_id in without) for query_id, page_id in judged)


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with PDFs that the generator has written again."""
    pytest.importorskip("reportlab", reason="reportlab is needed to write the sample PDFs")
    folder = tmp_path_factory.mktemp("sample")
    # make_sample.py imports from its own folder, which PYTHONSAFEPATH (make test-wheel) keeps off the path.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, DATA / "make_sample.py", folder]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return folder


def test_generator_reproduces_the_pages(rewritten: Path, pages: Pages) -> None:
    assert read_pages(rewritten) == pages
    for old, new in zip(read_images(SAMPLE / SCANNED), read_images(rewritten / SCANNED), strict=True):
        assert old.size == new.size
        assert ImageStat.Stat(ImageChops.difference(old, new)).mean[0] < 4  # grey levels of 255, per pixel


def test_generator_reproduces_the_bytes(rewritten: Path) -> None:
    installed = {"reportlab": version("reportlab"), "zlib": zlib.ZLIB_RUNTIME_VERSION}
    if installed != WRITTEN_WITH:
        pytest.skip(f"the sample was written with {WRITTEN_WITH}, installed are {installed}")
    for path in sorted(SAMPLE.glob("*.pdf")):
        if path.name != SCANNED:  # its bytes depend on the fonts of PDFium and on a JPEG encoder
            assert (rewritten / path.name).read_bytes() == path.read_bytes(), path.name
