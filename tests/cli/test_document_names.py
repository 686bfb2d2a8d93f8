"""``--document`` and page names take a document as its file is called."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from pathlib import Path

import pytest

from mmrr.errors import MmrrError
from mmrr.workspace.pages import load, page_row
from mmrr.workspace.store import Workspace
from tests.console import INDEX, mmrr, refused
from tests.pdfs import make_pdf

NAMES = {
    'docs/An "odd" report\'s  name.pdf': 'An_"odd"_report\'s_name.pdf',
    "docs/sub folder/Jahresbericht Köln.pdf": "sub_folder/Jahresbericht_Köln.pdf",
    "docs/a/same.pdf": "a/same.pdf",
    "docs/b/same.pdf": "b/same.pdf",
    "docs/plain.pdf": "plain.pdf",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("names")
    for n, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(make_pdf([f"words of number {n}", "words of another page"]))
    mmrr("index", root / "docs", "--work", root / "w", *INDEX)
    return root / "w"


@pytest.mark.parametrize(
    ("name", "doc_id"),
    [
        ('An "odd" report\'s  name.pdf', 'An_"odd"_report\'s_name.pdf'),
        ('An "odd" report\'s  name', 'An_"odd"_report\'s_name.pdf'),
        ("sub folder/Jahresbericht Köln.pdf", "sub_folder/Jahresbericht_Köln.pdf"),
        ("Jahresbericht Köln.pdf", "sub_folder/Jahresbericht_Köln.pdf"),
        (unicodedata.normalize("NFD", "Jahresbericht Köln"), "sub_folder/Jahresbericht_Köln.pdf"),
        ("jahresbericht_köln", "sub_folder/Jahresbericht_Köln.pdf"),
        ("docs/plain", "plain.pdf"),
        ("a/same", "a/same.pdf"),
    ],
)
def test_a_document_by_the_name_of_its_file(work: Path, name: str, doc_id: str) -> None:
    found = mmrr("retrieve", "words", "--document", name, "--work", work, "--json")
    pages = {row["doc_id"] for row in json.loads(found.stdout)["queries"][0]["results"]}
    assert pages == {doc_id}


def test_by_its_path(work: Path) -> None:
    path = work.parent / "docs/b/same.pdf"
    found = mmrr("retrieve", "words", "--document", path, "--work", work, "--json")
    assert {row["doc_id"] for row in json.loads(found.stdout)["queries"][0]["results"]} == {"b/same.pdf"}


def test_a_name_that_fits_none_or_several(work: Path) -> None:
    command = ("retrieve", "words", "--work", work, "--document")
    assert "no document 'Jahresbericht Bonn' in the collection; the nearest are sub_folder/Jahresbericht_Köln.pdf" in (
        refused(*command, "Jahresbericht Bonn")
    )
    several = refused(*command, "same.pdf")
    assert "document 'same.pdf': several have that name (a/same.pdf, b/same.pdf); give one of these ids" in several


def test_a_document_for_every_query_of_a_file(work: Path) -> None:
    queries = work.parent / "q.txt"
    queries.write_text("words\n")
    found = mmrr("retrieve", "--queries", queries, "--document", "plain", "--work", work, "--json")
    assert {row["doc_id"] for row in json.loads(found.stdout)["queries"][0]["results"]} == {"plain.pdf"}


def test_a_page_by_its_number(work: Path) -> None:
    with Workspace.open(work) as opened:
        pages = opened.current("pages")
        assert pages
        collection = load(opened, pages)
        assert collection.pages[page_row(collection, "plain/2")].page_id == "plain.pdf/0002"
        with pytest.raises(MmrrError, match=r"plain.pdf has 2 pages: plain.pdf/0001 to plain.pdf/0002"):
            page_row(collection, "plain/3")
        with pytest.raises(MmrrError, match="no document 'a/nothing'"):
            page_row(collection, "a/nothing")


def test_a_page_by_the_label_of_the_document(work: Path) -> None:
    """A label of several pages names none of them, and a number is a number."""
    with Workspace.open(work) as workspace:
        pages = workspace.current("pages")
        assert pages
        collection = load(workspace, pages)
        rows = collection.rows["plain.pdf"]
        labels = {rows[0]: "iv", rows[1]: "1"} | dict.fromkeys(collection.rows["a/same.pdf"], "x")
        named = [dataclasses.replace(page, label=labels.get(row, "")) for row, page in enumerate(collection.pages)]
        collection = dataclasses.replace(collection, pages=named)
        assert page_row(collection, "plain/iv") == rows[0]
        assert page_row(collection, "plain.pdf/1") == rows[0]
        for unknown in ("a/same.pdf/x", "plain.pdf/v"):
            with pytest.raises(MmrrError):
                page_row(collection, unknown)


def test_the_same_names_for_a_document_to_remove(work: Path) -> None:
    left = mmrr("rm", "--document", "Jahresbericht Köln", "--work", work)
    assert "1 removed, 4 unchanged" in left.stderr
