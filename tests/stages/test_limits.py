"""Limits of one page: a page past one has a status of its own, the rest goes on, and a larger limit draws it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmrr.documents import poppler
from mmrr.documents.limits import Limits
from tests.console import THESIS, mmrr, shards, write_documents
from tests.documents.files import needs_poppler, write
from tests.pdfs import join_objects

PDFIUM = ("--renderer", "pdfium", "--max-tokens", "64", "--workers", "1")


def nested_forms(levels: int = 9, pages: int = 1) -> bytes:
    """A PDF whose last page draws a line 10 ** levels times; the other pages are empty."""
    first_form = 3 + pages
    kids = " ".join(f"{3 + i} 0 R" for i in range(pages))
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", f"<</Type/Pages/Count {pages}/Kids[{kids}]>>".encode()]
    page = "<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]{}>>"
    objects += [page.format("").encode()] * (pages - 1)
    contents = first_form + levels
    objects.append(page.format(f"/Resources<</XObject<</F {first_form} 0 R>>>>/Contents {contents} 0 R").encode())
    for level in range(levels):
        inner = b"0 0 m 9 9 l S" if level == levels - 1 else b"/F Do " * 10
        resources = "" if level == levels - 1 else f"/Resources<</XObject<</F {first_form + level + 1} 0 R>>>>"
        header = f"<</Type/XObject/Subtype/Form/BBox[0 0 200 200]{resources}/Length {len(inner)}>>".encode()
        objects.append(header + b"stream\n" + inner + b"\nendstream")
    objects.append(b"<</Length 25>>stream\n" + b"/F Do /F Do /F Do /F Do  \nendstream")
    return join_objects(objects)


def documents(work: Path) -> dict[str, dict[str, Any]]:
    listed = json.loads(mmrr("ls", "--documents", "--work", work, "--json").stdout)["documents"]
    return {entry["doc_id"]: entry for entry in listed}


@pytest.fixture
def without_poppler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("without_poppler")
def test_a_page_without_end_has_a_status_and_the_rest_goes_on(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", a=THESIS)
    write(docs / "nested.pdf", nested_forms())
    write(docs / "partly.pdf", nested_forms(pages=2))
    result = mmrr("render", docs, "--work", tmp_path / "w", *PDFIUM, "--page-timeout", "0.7")
    assert "3 pages of 3 documents (1 ok, 1 partial, 1 time_limit)" in result.stderr
    assert (
        "nested.pdf: time_limit (1 of 1 pages could not be drawn; page 1: PDFium took more than 0.7 s;" in result.stderr
    )
    assert "2 pages took longer than --page-timeout" in result.stderr
    found = documents(tmp_path / "w")
    assert found["partly.pdf"]["notes"] == {"no_text": [1], "time_limit": [2]}
    assert "partly.pdf" in mmrr("ls", "--documents", "--work", tmp_path / "w").stdout
    assert mmrr("verify", "--work", tmp_path / "w").exit_code == 0
    # The same limit does not wait for the same page again; another document is added.
    stored = shards(tmp_path / "w", "pages")
    again = mmrr("render", docs, "--work", tmp_path / "w", *PDFIUM, "--page-timeout", "0.7")
    assert shards(tmp_path / "w", "pages") == stored
    assert "3 unchanged; 3 pages of 3 documents (1 ok, 1 partial, 1 time_limit)" in again.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("without_poppler")
def test_a_larger_limit_draws_the_page(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    Image.new("P", (7400, 7400)).save(docs / "large.png", compress_level=1)
    Image.new("P", (74, 74)).save(docs / "small.png")
    (tmp_path / "in").mkdir()
    shutil.copy(docs / "large.png", tmp_path / "in" / "1.png")
    shutil.copy(docs / "small.png", tmp_path / "in" / "2.png")
    small = ("--page-memory", "256MiB")
    (docs / "large.png").rename(tmp_path / "large.png")
    result = mmrr("render", tmp_path / "in", "--work", tmp_path / "w", *PDFIUM, *small)
    assert "1 page of 1 document (1 partial)" in result.stderr
    assert "an image of 7400 x 7400 pixels needs more than 256 MiB of memory; --page-memory SIZE" in result.stderr
    assert documents(tmp_path / "w")["in"]["notes"] == {"memory_limit": [1], "no_text": [2]}
    # A command for another folder, under the same and under other conditions, once the file is gone.
    (tmp_path / "in").rename(tmp_path / "gone")
    for options in (small, ()):
        kept = mmrr("render", tmp_path / "docs", "--work", tmp_path / "w", *PDFIUM, *options)
        assert "2 pages of 2 documents (1 ok, 1 partial)" in kept.stderr
    (tmp_path / "gone").rename(tmp_path / "in")
    larger = mmrr("render", tmp_path / "in", "--work", tmp_path / "w", *PDFIUM)
    assert "3 pages of 2 documents (2 ok)" in larger.stderr
    assert (
        "notes" not in documents(tmp_path / "w")["in"] or "memory_limit" not in documents(tmp_path / "w")["in"]["notes"]
    )
    assert "3 pages of 2 documents (2 ok)" in mmrr("render", docs, "--work", tmp_path / "w", *PDFIUM, *small).stderr


@needs_poppler
def test_poppler_draws_a_page_on_which_pdfium_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = write_documents(tmp_path / "docs")
    write(docs / "nested.pdf", nested_forms())
    real = shutil.which("pdftoppm")
    picture = write_documents(tmp_path / "other", a=["one"]) / "a.pdf"
    script = f'#!/bin/sh\nexec {real} $(echo "$@" | sed s,{docs}/nested.pdf,{picture},)\n'
    write(tmp_path / "bin" / "pdftoppm", script.encode()).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    result = mmrr("render", docs, "--work", tmp_path / "w", *PDFIUM, "--page-timeout", "0.7")
    assert "1 page of 1 document (1 ok); 1 without text; 1 page was drawn by the other renderer" in result.stderr


@needs_poppler
def test_poppler_has_limits_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "nested.pdf", nested_forms())
    slow = poppler.draw(path, 1, 1, (64, 64), tmp_path, Limits(0.5))
    assert slow.past
    assert (slow.files, slow.past.status) == ({}, "time_limit")
    large = write_documents(tmp_path, a=["one"]) / "a.pdf"
    wide = poppler.draw(large, 1, 1, (20_000, 20_000), tmp_path, Limits(memory=300 << 20))
    assert wide.past
    assert wide.past.status == "memory_limit"
    assert all(file.stat().st_size < 100 for file in wide.files.values())  # an image of one pixel
