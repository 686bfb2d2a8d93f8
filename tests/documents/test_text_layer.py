"""The text of PDF pages: what is drawn and nothing else, hyphens at the ends of lines, labels, and notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrr.documents.garbled import is_garbled
from mmrr.documents.rendering import RenderedPage
from mmrr.workspace.pages import load, read_stored_texts, read_texts
from mmrr.workspace.store import Workspace
from tests.console import INDEX, artifact, mmrr, write_documents
from tests.documents.files import render, source, write
from tests.documents.layered import one_page, scan, with_fields, with_layers, with_wrong_letters, words
from tests.pdfs import make_pdf

pytestmark = pytest.mark.renderer

PROSE = (
    "The lighthouse keeper counts the ships that pass the harbour in the evening, and writes the number of sails into "
    "a book that lies beside the lamp. In winter the crane is repaired and nobody passes."
)


def drawn(tmp_path: Path, data: bytes) -> RenderedPage:
    (page,) = render(source(write(tmp_path / "a.pdf", data)), tmp_path / "out")
    assert page.status == "ok"
    return page


def test_hyphens_at_line_ends_are_kept_for_those_who_ask(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", hyphens=["The landlord of the photo-\nsynthesis is well-\nknown"])
    pages = artifact(mmrr("render", docs, "--work", tmp_path / "w", *INDEX))
    workspace = Workspace(tmp_path / "w")
    found = workspace.find("pages", pages.name)
    assert found
    collection = load(workspace, found)
    (stored,) = read_stored_texts(workspace, collection)
    assert stored == "The landlord of the photo\xad\nsynthesis is well\xad\nknown"
    assert read_texts(workspace, collection) == ["The landlord of the photosynthesis is wellknown"]


def test_fields_and_annotations_that_are_drawn_are_text(tmp_path: Path) -> None:
    assert drawn(tmp_path, with_fields()).text.split() == ["Surname", "Zimmerwald", "Ouagadougou"]


def test_a_field_without_an_appearance_is_text_as_it_is_drawn(tmp_path: Path) -> None:
    field = b"<</Type/Annot/Subtype/Widget/Rect[20 20 180 40]/F 4/FT/Tx/T(f)/V(Zimmerwald)/DA(/F1 12 Tf 0 g)>>"
    catalog = b"/AcroForm<</Fields[6 0 R]/DR<</Font<</F1 3 0 R>>>>/DA(/F1 12 Tf 0 g)/NeedAppearances true>>"
    page = drawn(tmp_path, one_page(words("City", 100), page=b"/Annots[6 0 R]", catalog=catalog, others=(field,)))
    assert page.text.split() == ["City", "Zimmerwald"]


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        (b"", "first second firstform secondform both always"),
        (b"/OFF[7 0 R]", "first firstform always"),
        (b"/BaseState/OFF/ON[7 0 R]", "second secondform always"),
        (b"/OFF[6 0 R 7 0 R]", "always"),
    ],
)
def test_text_on_layers_that_are_off_is_no_text(tmp_path: Path, default: bytes, expected: str) -> None:
    page = drawn(tmp_path, with_layers(default))
    assert sorted(page.text.split()) == sorted(expected.split())
    assert page.detail == ""


def test_labels_stand_beside_page_numbers(tmp_path: Path) -> None:
    labels = b"/PageLabels<</Nums[0<</S/r>>2<</S/D/P(A-)>>]>>"
    data = make_pdf(["Preface of lamps", "Contents of lamps", "Chapter of lamps"])
    docs = write(tmp_path / "docs" / "book.pdf", data.replace(b"/Type/Catalog", b"/Type/Catalog" + labels))
    work = ("--work", tmp_path / "w")
    mmrr("index", docs, *work, *INDEX)
    (answer,) = json.loads(mmrr("retrieve", "lamps", *work, "--first-stage", "bm25", "--json").stdout)["queries"]
    assert {row["page"]: row["label"] for row in answer["results"]} == {1: "i", 2: "ii", 3: "A-1"}
    table = mmrr("retrieve", "lamps", *work, "--first-stage", "bm25").stdout
    assert all(cell in table for cell in ("1 (i)", "2 (ii)", "3 (A-1)"))


def test_a_label_that_is_the_number_is_left_out(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", plain=["Lamps"])
    mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    found = mmrr("retrieve", "lamps", "--work", tmp_path / "w", "--first-stage", "bm25", "--json")
    assert json.loads(found.stdout)["queries"][0]["results"][0]["label"] == ""


# Notes


@pytest.mark.parametrize(
    ("text", "xfa", "notes"),
    [
        ("Please wait... your PDF viewer may not be able to display this.", True, ("xfa",)),
        ("Bitte warten...", True, ("xfa",)),
        ("Application for a lamp", True, ()),  # a dynamic form with the pages that another program drew
        ("Please wait for the keeper.", False, ()),
    ],
)
def test_an_xfa_form_that_shows_its_notice_is_named(
    tmp_path: Path, text: str, xfa: bool, notes: tuple[str, ...]
) -> None:
    catalog = b"/AcroForm<</Fields[]/XFA 6 0 R>>/NeedsRendering true" if xfa else b""
    data = one_page(words(text, 100), catalog=catalog, others=(b"<</Length 6>>stream\n<xdp/>\nendstream",))
    assert drawn(tmp_path, data).notes == notes


def test_an_image_with_few_words_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdf", make_pdf([scan(99, "Scanned by X"), scan(99), scan(99, PROSE), "Words alone"]))
    pages = render(source(path), tmp_path / "out", last=4)
    assert [page.notes for page in pages] == [("little_text",), (), (), ()]


@pytest.mark.parametrize("shift", [1, 13, -3, 31, 0x100, 0xE000 - 0x20])
def test_wrong_letters_are_named(tmp_path: Path, shift: int) -> None:
    page = drawn(tmp_path, with_wrong_letters(PROSE, shift=shift))
    assert "lighthouse" not in page.text
    assert page.notes == ("garbled",)


@pytest.mark.parametrize(
    "text",
    [
        PROSE,
        "Der Vermieter haftet nicht für Schäden, die durch Feuer, Rauch oder Wasser entstehen, es sei denn, dass er "
        "sie vorsätzlich oder grob fahrlässig verursacht hat; Änderungen bedürfen der Schriftform.",
        "Każdy człowiek ma prawo do życia, wolności i bezpieczeństwa swojej osoby. Nikt nie może być trzymany w "
        "niewolnictwie lub poddaństwie; niewolnictwo i handel niewolnikami są zakazane.",
        "Mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi. Mọi con người đều được tạo hoá ban "
        "cho lý trí và lương tâm và cần phải đối xử với nhau trong tình anh em.",
        "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
        "公司的员工人数在本年度有所增加。详情请见 www.example.com 和 www.example.org 上的年度报告全文。" * 2,
        "1,204 3.5 % 17 (4) 12,500 99.1 2,001 7 7 8 11.50 12.00 6.50 8.00 " * 4,
        "1 Introduction . . . . . . . . . . . . . 1\n2 Methods ............................... 17\n" * 6,
        "MCS-51 PSEN/ ALE RD WR P0.7 A15 XTAL1 VCC VSS INT0 T0 T1 RXD TXD 8051 8751 TLHLL TAVLL TLLAX " * 2,
    ],
)
def test_text_of_any_language_and_tables_are_not_garbled(text: str) -> None:
    assert not is_garbled(text)
    assert not is_garbled(text.upper())


def test_wrong_letters_without_any_letters_are_garbled() -> None:
    codes: dict[str, str] = {}
    for first in ("\x01", "!", "A"):  # fonts that number their shapes in the order of their first use
        codes.clear()
        text = "".join(c if c == " " else codes.setdefault(c, chr(ord(first) + len(codes))) for c in PROSE)
        assert is_garbled(text), first
