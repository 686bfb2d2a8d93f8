"""A PDF or a page that one renderer does not open and the other does: it is rendered all the same."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmrr.documents.discovery import Inspection, inspect
from tests.console import THESIS, mmrr, refused, write_documents
from tests.documents.files import NO_PAGES, is_dark, needs_poppler, render, source, write
from tests.pdfs import make_pdf

pytestmark = [pytest.mark.renderer, pytest.mark.usefixtures("own_temp")]

#: Poppler as far as mmrr uses it, for a document of two pages of 288 x 288 points with black images: pdfinfo reports
#: the two pages whatever the file is, unless its name begins with "bad".
PDFINFO = """#!/bin/sh
case "$*" in *bad*) exit 1;; esac
echo "Pages:          2"
echo "Page    1 size: 288 x 144 pts"
echo "Page    1 rot:  0"
echo "Page    2 size: 288 x 144 pts"
echo "Page    2 rot:  0"
"""
PDFTOPPM = """#!{python}
import sys
if "-v" in sys.argv:
    sys.exit()
value = lambda name: int(sys.argv[sys.argv.index(name) + 1])
prefix = [arg for arg in sys.argv if arg.startswith("/")][-1]
width, height = value("-scale-to-x"), value("-scale-to-y")
for number in range(value("-f"), value("-l") + 1):
    with open(f"{{prefix}}-{{number}}.ppm", "wb") as file:
        file.write(b"P6 %d %d 255\\n" % (width, height) + bytes(3 * width * height))
"""
PDFTOTEXT = '#!/bin/sh\nprintf "words of page $2\\n\\f"\n'


@pytest.fixture
def fake_poppler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = {"pdfinfo": PDFINFO, "pdftoppm": PDFTOPPM.format(python=sys.executable), "pdftotext": PDFTOTEXT}
    for name, script in programs.items():
        write(tmp_path / "bin" / name, script.encode()).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin"


@pytest.mark.parametrize("renderer", ["pdfium", "poppler"])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"%PDF-1.7\n" + b"garbage " * 100, id="corrupt"),
        pytest.param(b"\x00\x01 no document", id="not_a_document"),
        pytest.param(make_pdf(["x"], user_password="secret"), id="password_required"),
        pytest.param(NO_PAGES, id="no_pages"),
    ],
)
def test_a_pdf_that_only_poppler_opens(tmp_path: Path, fake_poppler: Path, data: bytes, renderer: str) -> None:
    path = source(write(tmp_path / "a.pdf", data))
    assert inspect(path) == Inspection("ok", 2, "")
    pages = render(path, tmp_path / "out", renderer, last=2)
    assert [(page.status, page.text) for page in pages] == [("ok", "words of page 1"), ("ok", "words of page 2")]
    assert all(page.detail.endswith("; drawn with poppler") for page in pages)
    assert {(page.width_px, page.height_px) for page in pages} == {(608, 288)}
    assert is_dark(Image.open(tmp_path / "out" / pages[1].file), 0.5, 0.5)


def test_a_pdf_that_neither_opens_keeps_the_status_of_pdfium(tmp_path: Path, fake_poppler: Path) -> None:
    for name, data, status in (
        ("bad1.pdf", b"%PDF-1.7\n", "corrupt"),
        ("bad2.pdf", b"text", "not_a_document"),
        ("bad3.pdf", b"", "empty"),
        ("bad4.pdf", make_pdf(["x"], user_password="secret"), "password_required"),
        ("bad5.pdf", NO_PAGES, "no_pages"),
    ):
        found = inspect(source(write(tmp_path / name, data)))
        assert (found.status, found.n_pages, bool(found.detail)) == (status, 0, True)
        (page,) = render(source(tmp_path / name), tmp_path / "out")
        assert page.status == "failed"
        assert page.detail


def test_without_pdftotext_the_page_is_drawn_and_says_so(
    tmp_path: Path, fake_poppler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fake_poppler / "pdftotext").write_text("#!/bin/sh\nexit 1\n")
    (page, _) = render(source(write(tmp_path / "a.pdf", b"%PDF-1.7\n")), tmp_path / "out", last=2)
    assert (page.status, page.text) == ("ok", "")
    assert page.detail.startswith("the text layer could not be read; PDFium cannot open the PDF")


def test_a_page_that_poppler_cannot_draw_either_says_why(tmp_path: Path, fake_poppler: Path) -> None:
    (fake_poppler / "pdftoppm").write_text("#!/bin/sh\nexit 1\n")
    (page,) = render(source(write(tmp_path / "a.pdf", b"%PDF-1.7\n")), tmp_path / "out")
    assert page.status == "failed"
    assert page.detail.startswith("PDFium cannot open the PDF: ")
    assert page.detail.endswith("; poppler drew no image")


def test_a_page_that_only_poppler_opens(tmp_path: Path, fake_poppler: Path) -> None:
    """The document opens in both, and they count the same pages. PDFium does not find the second."""
    path = source(write(tmp_path / "a.pdf", make_pdf(["one"], size=(288, 144)).replace(b"/Count 1", b"/Count 2")))
    first, second = render(path, tmp_path / "out", last=2)
    assert (first.status, first.detail, first.text.strip()) == ("ok", "", "one")
    assert (second.status, second.text) == ("ok", "words of page 2")
    assert second.detail.startswith("page 2 of 2: ")
    assert second.detail.endswith("; drawn with poppler")
    other = source(write(tmp_path / "b.pdf", make_pdf(["one"]).replace(b"/Count 1", b"/Count 3")))
    assert render(other, tmp_path / "other", first=2, last=2)[0].status == "failed"  # poppler counts 2 pages


def test_a_collection_with_such_a_pdf(tmp_path: Path, fake_poppler: Path) -> None:
    docs = write_documents(tmp_path / "docs", good=THESIS)
    (docs / "odd.pdf").write_bytes(b"%PDF-1.7\n")
    (docs / "bad.pdf").write_bytes(b"%PDF-1.7\n")
    command = ("index", docs, "--renderer", "pdfium", "--max-tokens", "64", "--workers", "1")
    assert "4 pages of 3 documents (2 ok, 1 corrupt)" in mmrr(*command, "--work", tmp_path / "w").stderr
    assert "odd.pdf" in mmrr("retrieve", "words of page 2", "--work", tmp_path / "w").stdout
    for path in docs.glob("*d.pdf"):
        if path.name != "bad.pdf":
            path.unlink()
    assert "no document could be opened: bad.pdf: corrupt" in refused(*command, "--work", tmp_path / "other")


@needs_poppler
@pytest.mark.parametrize("renderer", ["pdfium", "poppler"])
def test_a_real_pdf_with_junk_before_its_header(tmp_path: Path, renderer: str) -> None:
    """PDFium looks for the header in the first 1,024 bytes, poppler finds the pages by their objects."""
    data = b"junk\n" * 400 + make_pdf(["found by poppler"], size=(600, 900), rotate=90)
    path = source(write(tmp_path / "a.pdf", data))
    assert inspect(path) == Inspection("ok", 1, "")
    (page,) = render(path, tmp_path / "out", renderer)
    assert (page.status, page.text.strip()) == ("ok", "found by poppler")
    assert page.detail.endswith("; drawn with poppler")
    plain = source(write(tmp_path / "plain.pdf", make_pdf(["found by poppler"], size=(600, 900), rotate=90)))
    (expected,) = render(plain, tmp_path / "plain", "poppler")
    assert (page.width_px, page.height_px, page.sha256) == (expected.width_px, expected.height_px, expected.sha256)
