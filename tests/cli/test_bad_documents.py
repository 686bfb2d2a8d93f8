"""Documents that are damaged, missing or unusual: each is named, and the others are indexed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Prepared
from tests.console import FP32, INDEX, SOIL, THESIS, artifact, mmrr, refused, run_lines, write_documents, write_queries
from tests.pdfs import join_objects, make_pdf

QUESTION = "When is the thesis due?"


NO_PAGES = join_objects([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Count 0/Kids[]>>"])
BAD = {
    "password_required": make_pdf(["secret"], user_password="x"),
    "corrupt": b"%PDF-1.4\nthis is no document\n",
    "empty": b"",
    "no_pages": NO_PAGES,
    "not_a_document": b"only some words\n",
}


@pytest.mark.parametrize("status", BAD)
def test_a_bad_document_alone_cannot_be_indexed(tmp_path: Path, status: str) -> None:
    path = tmp_path / "bad.pdf"
    path.write_bytes(BAD[status])
    message = refused("index", path, "--work", tmp_path / "w", *INDEX)
    assert "no document could be opened" in message
    assert f"bad.pdf: {status}" in message


def test_bad_documents_are_named_counted_and_skipped(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", good=THESIS)
    for status, data in BAD.items():
        (docs / f"{status}.pdf").write_bytes(data)
    result = mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    for status in BAD:
        assert f"{status}.pdf: {status}" in result.stderr
    counts = ", ".join(f"1 {status}" for status in sorted(BAD))
    assert f"2 pages of 6 documents (1 ok, {counts})" in result.stderr
    listed = json.loads(mmrr("ls", "--documents", "--work", tmp_path / "w", "--json").stdout)["documents"]
    assert {entry["doc_id"]: entry["status"] for entry in listed} == {
        "good.pdf": "ok",
        **{f"{status}.pdf": status for status in BAD},
    }
    shown = mmrr("ls", "--documents", "--work", tmp_path / "w").stdout
    assert all(status in shown for status in BAD)
    assert run_lines(artifact(mmrr("retrieve", "thesis", "--work", tmp_path / "w")) / "run.trec")["query"]


def test_a_repaired_document_is_indexed(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", good=THESIS)
    (docs / "late.pdf").write_bytes(b"")
    mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    write_documents(docs, late=["Now it has a page"])
    assert "3 pages of 2 documents (2 ok)" in mmrr("index", docs, "--work", tmp_path / "w", *INDEX).stderr


def test_a_truncated_pdf_is_reported_or_repaired_never_a_crash(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", good=THESIS)
    whole = make_pdf(["one", "two", "three"])
    for share in (0.1, 0.5, 0.9):
        (docs / f"cut{share}.pdf").write_bytes(whole[: int(len(whole) * share)])
    result = mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    listed = json.loads(mmrr("ls", "--documents", "--work", tmp_path / "w", "--json").stdout)["documents"]
    for entry in listed:
        assert entry["status"] in ("ok", "corrupt", "partial", "no_pages")
        if entry["status"] != "ok":
            assert f"{entry['doc_id']}: {entry['status']}" in result.stderr
    assert {entry["status"] for entry in listed} > {"ok"}


def test_a_document_with_only_an_owner_password_opens(tmp_path: Path) -> None:
    (tmp_path / "owned.pdf").write_bytes(make_pdf(["readable"], owner_password="o"))
    result = mmrr("index", tmp_path / "owned.pdf", "--work", tmp_path / "w", *INDEX)
    assert "1 page of 1 document (1 ok)" in result.stderr


def test_rotated_large_and_textless_pages_go_through_the_chain(tmp_path: Path, tiny_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "turned.pdf").write_bytes(make_pdf(["sideways words"], rotate=90))
    (docs / "giant.pdf").write_bytes(make_pdf(["poster words"], size=(14400, 14400)))
    (docs / "strip.pdf").write_bytes(make_pdf(["strip words"], size=(14000, 30)))
    (docs / "blank.pdf").write_bytes(make_pdf([""]))
    Image.new("RGB", (90, 120), "white").save(docs / "scan.png")
    work = tmp_path / "w"
    assert "5 pages of 5 documents (5 ok)" in mmrr("index", docs, "--work", work, *INDEX).stderr
    mmrr("precache", "--work", work, "--scorer-model", tiny_path, *FP32)
    queries = write_queries(tmp_path / "q.jsonl", *[(name, "words", name) for name in ("turned.pdf", "scan.png")])
    run = run_lines(artifact(mmrr("rerank", "--queries", queries, "--scope", "document", "--work", work)) / "run.trec")
    assert {name: hits[0][0] for name, hits in run.items()} == {
        "turned.pdf": "turned.pdf/0001",
        "scan.png": "scan.png/0001",
    }


def test_text_search_in_a_collection_without_text_says_why_nothing_is_found(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", blank=["", ""])
    mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    result = mmrr("retrieve", QUESTION, "--work", tmp_path / "w")
    assert "no page shares a word" in result.stderr


def test_unusual_file_names_stay_distinct(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    names = ["naïve résumé.pdf", "报告.pdf", "a b.pdf", "a_b.pdf", "-o.pdf", "100%.pdf"]
    write_documents(docs, **{Path(name).stem: [f"words of number {i}"] for i, name in enumerate(names)})
    write_documents(docs / "sub", same=["in a folder"])
    write_documents(docs / "other", same=["in another folder"])
    mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    run = run_lines(artifact(mmrr("retrieve", "words folder", "--work", tmp_path / "w")) / "run.trec")["query"]
    pages = {page_id for page_id, _ in run}
    assert len(pages) == len(names) + 2
    assert {"报告.pdf/0001", "naïve_résumé.pdf/0001", "sub/same.pdf/0001", "other/same.pdf/0001"} <= pages


def test_missing_documents(tmp_path: Path) -> None:
    work = tmp_path / "w"
    assert "gone.pdf does not exist" in refused("index", tmp_path / "gone.pdf", "--work", work)
    (tmp_path / "none").mkdir()
    assert "no document in" in refused("index", tmp_path / "none", "--work", work)
    mmrr("index", code=2)


def test_a_document_is_not_needed_after_indexing(copy: Prepared) -> None:
    shutil.rmtree(copy.docs)
    mmrr("rerank", QUESTION, "--work", copy.work)
    mmrr("precache", "--work", copy.work, "--scorer-model", copy.model, *FP32, "--band", "0:2")


def test_a_document_deleted_while_it_is_rendered_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = write_documents(tmp_path / "docs", a=THESIS, b=SOIL)
    from mmrr.stages import _opening

    inspect = _opening.inspect

    def inspect_and_lose(source: _opening.Source) -> object:
        found = inspect(source)
        if source.doc_id == "b.pdf":
            source.path.unlink()
        return found

    monkeypatch.setattr(_opening, "inspect", inspect_and_lose)
    result = mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    assert "b.pdf: unreadable (it changed or went away while it was read; run the command again)" in result.stderr
    assert "2 pages of 2 documents (1 ok, 1 unreadable)" in result.stderr
    monkeypatch.undo()
    write_documents(docs, b=SOIL)  # the same bytes as before
    assert "5 pages of 2 documents (2 ok)" in mmrr("index", docs, "--work", tmp_path / "w", *INDEX).stderr


def test_a_changed_page_image_is_named_and_made_again(copy: Prepared) -> None:
    image = next((copy.work / "shards" / "pages").glob("*/0001.png"))
    whole = image.read_bytes()
    image.write_bytes(whole[:-1] + b"x")
    command = ("precache", "--work", copy.work, "--scorer-model", copy.model, *FP32, "--band", "0:2")
    message = refused(*command)
    assert "0001.png does not match its hash" in message
    assert "run the index command again" in message
    mmrr("index", copy.docs, "--work", copy.work, *INDEX)
    assert image.read_bytes() == whole
    mmrr(*command)


def test_a_document_changed_while_it_is_rendered_is_not_stored_under_its_old_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = write_documents(tmp_path / "docs", a=THESIS, b=SOIL)
    from mmrr.stages import _opening

    inspect = _opening.inspect

    def inspect_and_change(source: _opening.Source) -> object:
        found = inspect(source)
        if source.doc_id == "b.pdf":
            write_documents(docs, b=["Other", "words", "altogether"])
        return found

    monkeypatch.setattr(_opening, "inspect", inspect_and_change)
    result = mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    assert "b.pdf: unreadable" in result.stderr
    monkeypatch.undo()
    mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    found = json.loads(mmrr("retrieve", "altogether", "--work", tmp_path / "w", "--json").stdout)
    assert [row["page_id"] for row in found["queries"][0]["results"]] == ["b.pdf/0003"]
