"""Notes on pages: blank, print that is too small, drawn by the other renderer; and how a command tells of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmrr.documents import page_notes, pdf_pages
from mmrr.documents.drawn import Job, RenderOptions
from mmrr.documents.image_pages import draw_image
from mmrr.documents.limits import Limits
from mmrr.documents.pdf_pages import OpenPdfs
from mmrr.documents.rendering import draw_pages
from tests.console import mmrr, shards, write_documents
from tests.documents.files import fake_program, needs_poppler, picture, render, source, write
from tests.pdfs import join_objects, make_pdf

pytestmark = [pytest.mark.renderer, pytest.mark.usefixtures("own_temp")]

#: A ticked box whose appearance is drawn by the renderer; the page has no object.
TICKED = join_objects(
    [
        b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[4 0 R]/NeedAppearances true/DR<</Font<</F1 5 0 R>>>>>>>>",
        b"<</Type/Pages/Count 1/Kids[3 0 R]>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 400 400]/Annots[4 0 R]>>",
        b"<</Type/Annot/Subtype/Widget/FT/Btn/T(n)/V/Yes/AS/Yes/Rect[50 50 350 350]/DA(/F1 60 Tf 0 g)/MK<</CA(4)>>>>",
        b"<</Type/Font/Subtype/Type1/BaseFont/ZapfDingbats>>",
    ]
)
WHITE = b"1 1 1 rg 0 0 99 99 re f"
#: The text of the page is Chinese (ToUnicode maps A), its letters are white.
CHINESE = join_objects(
    [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Count 1/Kids[3 0 R]>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length 41>>stream\n1 1 1 rg BT /F1 20 Tf 50 50 Td (AA) Tj ET \nendstream",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/ToUnicode 6 0 R>>",
        b"<</Length 124>>stream\n/CIDInit/ProcSet findresource begin begincmap 1 begincodespacerange <00> <FF> "
        b"endcodespacerange 1 beginbfchar <41> <5458>\nendbfchar endcmap\nendstream",
    ]
)


@needs_poppler
def test_a_page_without_objects_that_poppler_draws_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source(write(tmp_path / "a.pdf", TICKED))
    blank = write(tmp_path / "blank.pdf", make_pdf([""], size=(400, 400)))
    fake_program("pdftoppm", tmp_path / "bin", monkeypatch, f'exec $REAL $(echo "$@" | sed s,{path.path},{blank},)')
    (page,) = render(path, tmp_path / "out", "poppler")
    assert (page.detail, page.notes) == ("poppler drew a blank page; drawn with PDFium", ("other_renderer",))
    assert Image.open(tmp_path / "out/0001.png").convert("L").getextrema()[0] < 128  # type: ignore[operator]


@needs_poppler
def test_a_page_that_pdfium_draws_blank_is_drawn_with_poppler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source(write(tmp_path / "a.pdf", make_pdf(["one", ""])))
    draw = pdf_pages._draw_with_pdfium
    monkeypatch.setattr(pdf_pages, "_draw_with_pdfium", lambda plan: Image.new("RGB", draw(plan).size, "white"))
    first, second = render(path, tmp_path / "out", "pdfium", last=2)
    assert (first.detail, first.notes) == ("PDFium drew a blank page; drawn with poppler", ("other_renderer",))
    assert Image.open(tmp_path / "out/0001.png").convert("L").getextrema()[0] < 128  # type: ignore[operator]
    assert (second.detail, second.notes) == ("", ())


def test_blank_pages_with_content_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    link = join_objects(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Count 1/Kids[3 0 R]>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Annots[<</Subtype/Link/Rect[0 0 9 9]/Border[0 0 0]>>]>>",
        ]
    )
    for data, notes in ((make_pdf([WHITE]), ("blank",)), (CHINESE, ("blank", "cjk_font")), (link, ())):
        (page,) = render(source(write(tmp_path / "a.pdf", data)), tmp_path / "out")
        assert page.notes == notes


def test_print_that_is_too_small(tmp_path: Path) -> None:
    def words(points: float) -> bytes:
        return b"BT /F1 %d Tf 20 %d TL 30 700 Td " % (points, points) + b"(some words of a line) Tj T* " * 9 + b"ET"

    sideways = b"BT /F1 1 Tf 0 16 -16 0 300 300 Tm (some words of a line) Tj ET"
    for name, size, content, small in (
        ("a4", (595, 842), words(10), False),
        ("a4 notes", (595, 842), words(3), True),
        ("a0", (2384, 3370), words(16), True),
        ("a0 large print", (2384, 3370), words(40), False),
        ("a0 sideways", (2384, 3370), sideways, True),
        ("a0 without text", (2384, 3370), b"0 g 99 99 99 99 re f", True),
        ("a2 without text", (1191, 1684), b"0 g 99 99 99 99 re f", False),
        ("endless", (595, 14400), words(12), True),
    ):
        (page,) = render(source(write(tmp_path / "a.pdf", make_pdf([content], size=size))), tmp_path / "out")
        assert (page.notes == ("small_print",)) == small, name


def test_print_of_images(tmp_path: Path) -> None:
    for size, small in (((2480, 3508), False), ((1000, 6000), True), ((800, 1000), False)):
        picture(tmp_path / "a.png", size, mode="L", colour=128)
        assert draw_image(tmp_path / "a.png", 0, 1280, Limits())[1] == small
    Image.new("L", (2480, 3508)).save(tmp_path / "a.png", dpi=(75, 75))  # a page of 84 x 119 cm
    assert draw_image(tmp_path / "a.png", 0, 1280, Limits())[1]


def test_strips_give_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = Image.linear_gradient("L").resize((700, 300))
    for mode in ("L", "RGB", "RGBA", "LA", "P", "1", "I;16"):
        image = (
            gradient.convert("I").point(lambda v: v * 257).convert(mode) if mode == "I;16" else gradient.convert(mode)
        )
        image.save(tmp_path / "a.png")
        whole, _ = draw_image(tmp_path / "a.png", 0, 64, Limits())
        with monkeypatch.context() as patch:
            patch.setattr("mmrr.documents.image_pages._STRIP_PX", 7000)
            strips, _ = draw_image(tmp_path / "a.png", 0, 64, Limits())
        assert strips.tobytes() == whole.tobytes(), mode


def test_a_pdf_stays_open_between_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    open_pdf = pdf_pages.open_pdf
    monkeypatch.setattr(pdf_pages, "open_pdf", lambda path: opened.append(path) or open_pdf(path))
    path = write(tmp_path / "a.pdf", make_pdf([f"page {n}" for n in range(4)]))
    pdfs, options = OpenPdfs(), RenderOptions("pdfium", max_tokens=16)

    def texts(*numbers: int) -> list[str]:
        return [page.text.strip() for page in draw_pages(source(path), Job(numbers, options), tmp_path, pdfs)]

    assert texts(1, 2) + texts(3, 4) == ["page 0", "page 1", "page 2", "page 3"]
    assert len(opened) == 1
    write(path, make_pdf(["another file"]))
    assert texts(1) == ["another file"]
    assert len(opened) == 2
    pdfs.close()


def test_a_command_counts_and_lists_noted_pages(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", a=["one", WHITE, WHITE, "four", WHITE])
    write(docs / "zh.pdf", CHINESE)
    options = ("--work", tmp_path / "w", "--renderer", "pdfium", "--max-tokens", "64", "--workers", "1")
    result = mmrr("index", docs, *options)
    assert "4 pages came out blank although they have content; 1 page lacks a font: install a CJK font" in result.stderr
    listed = json.loads(mmrr("ls", "--documents", "--work", tmp_path / "w", "--json").stdout)["documents"]
    assert [entry["notes"]["blank"] for entry in listed] == [[2, 3, 5], [1]]
    assert listed[1]["notes"]["cjk_font"] == [1]
    assert "blank: pages 2-3, 5" in mmrr("ls", "--documents", "--work", tmp_path / "w").stdout
    again = mmrr("index", docs, *options)
    assert "2 unchanged" in again.stderr
    assert "4 pages came out blank" in again.stderr


def test_a_missing_font_is_no_property_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard of a blank page is drawn again when the machine has other fonts."""
    from mmrr.stages import _provisional

    docs = write_documents(tmp_path / "docs", a=["one"])
    write(docs / "zh.pdf", CHINESE)
    options = ("--work", tmp_path / "w", "--renderer", "pdfium", "--max-tokens", "64", "--workers", "1")

    def stored() -> int:
        mmrr("render", docs, *options)
        return len(shards(tmp_path / "w", "pages"))

    assert [stored(), stored()] == [2, 2]
    monkeypatch.setattr(_provisional, "_fonts", lambda: ["NotoSansCJK-Regular.ttc"])
    assert stored() == 3


def test_clauses() -> None:
    assert page_notes.summary({"xfa": 1, "new": 2}) == [
        "1 page is an XFA form, which shows its notice alone: print it to PDF with Adobe Reader",
        "2 pages noted new",
    ]
    assert all(len(both) == 2 for both in page_notes.MEANINGS.values())
