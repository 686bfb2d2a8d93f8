"""Rendering when the machine fails: what happened to a process or to the memory is never stored as a fact of a file."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmrr.documents import discovery, image_pages, rendering
from mmrr.documents.discovery import Source, inspect
from mmrr.documents.rendering import RenderOptions, render_pages
from mmrr.stages import _opening
from tests.console import SOIL, THESIS, mmrr, refused, shards, write_documents
from tests.documents.files import picture, write
from tests.pdfs import make_pdf

POPPLER = ("--renderer", "poppler", "--max-tokens", "64", "--workers", "2")
PDFIUM = ("--renderer", "pdfium", "--max-tokens", "64", "--workers", "1")


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of triggers. The process that draws ``x.pdf`` dies while the folder has a file ``x.pdf``."""
    triggers = tmp_path / "triggers"
    triggers.mkdir()
    script = f'#!/bin/sh\nfor a; do [ -f "{triggers}/${{a##*/}}" ] && kill -9 $PPID; done\n'
    for name in ("pdfinfo", "pdftoppm"):
        write(tmp_path / "bin" / name, f"{script}exit 1\n".encode()).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return triggers


def documents(work: Path) -> dict[str, dict[str, Any]]:
    listed = json.loads(mmrr("ls", "--documents", "--work", work, "--json").stdout)["documents"]
    return {entry["doc_id"]: entry for entry in listed}


def test_a_document_whose_process_died_is_rendered_by_the_next_command(tmp_path: Path, deadly: Path) -> None:
    docs = write_documents(tmp_path / "docs", a=THESIS, b=SOIL, c=["one page"])
    (deadly / "b.pdf").touch()
    result = mmrr("render", docs, "--work", tmp_path / "w", *POPPLER)
    assert "b.pdf: not_rendered (pages 1-3: the process that draws them died; run the command again)" in result.stderr
    assert "3 pages of 3 documents (2 ok, 1 not_rendered)" in result.stderr
    assert len(shards(tmp_path / "w", "pages")) == 2
    assert mmrr("verify", "--work", tmp_path / "w").exit_code == 0
    kept = shards(tmp_path / "w", "pages")

    (deadly / "b.pdf").unlink()
    again = mmrr("render", docs, "--work", tmp_path / "w", *POPPLER)
    assert "6 pages of 3 documents (3 ok)" in again.stderr
    assert shards(tmp_path / "w", "pages") > kept
    undisturbed = mmrr("render", docs, "--work", tmp_path / "other", *POPPLER)
    assert Path(again.stdout.split()[-1]).name == Path(undisturbed.stdout.split()[-1]).name


def test_pages_of_a_long_document_that_were_rendered_are_listed(tmp_path: Path, deadly: Path) -> None:
    """The trigger takes effect after the first shard: pages 17 and later have another text."""
    docs = write_documents(tmp_path / "docs", long=[f"page {n}" for n in range(1, 21)])
    script = (tmp_path / "bin" / "pdftoppm").read_text()
    (tmp_path / "bin" / "pdftoppm").write_text(
        script.replace("for a", 'case "$*" in *"-f 17 "*) ;; *) exit 1;; esac\nfor a')
    )
    sizes = "".join(f"Page {n} size: 612 x 792 pts\nPage {n} rot: 0\n" for n in range(1, 21))
    (tmp_path / "bin" / "pdfinfo").write_text(f"#!/bin/sh\ncat <<END\nPages: 20\n{sizes}END\n")
    (deadly / "long.pdf").touch()
    result = mmrr("render", docs, "--work", tmp_path / "w", *POPPLER)
    assert "long.pdf: not_rendered (pages 17-20: the process that draws them died" in result.stderr
    assert "16 pages of 1 document (1 not_rendered)" in result.stderr
    assert documents(tmp_path / "w")["long.pdf"]["n_pages"] == 20
    (deadly / "long.pdf").unlink()
    result = mmrr("render", docs, "--work", tmp_path / "w", *POPPLER)
    assert "20 pages of 1 document (1 ok)" in result.stderr


def test_a_later_command_for_another_folder_renders_what_is_left(tmp_path: Path, deadly: Path) -> None:
    first = write_documents(tmp_path / "first", a=THESIS, b=SOIL)
    second = write_documents(tmp_path / "second", c=["one page"])
    (deadly / "b.pdf").touch()
    mmrr("render", first, "--work", tmp_path / "w", *POPPLER)
    assert "3 documents (2 ok, 1 not_rendered)" in mmrr("render", second, "--work", tmp_path / "w", *POPPLER).stderr
    (deadly / "b.pdf").unlink()
    assert "6 pages of 3 documents (3 ok)" in mmrr("render", second, "--work", tmp_path / "w", *POPPLER).stderr


def test_an_unfinished_document_whose_file_is_gone_stops_no_command(tmp_path: Path, deadly: Path) -> None:
    first = write_documents(tmp_path / "first", a=THESIS, b=SOIL)
    second = write_documents(tmp_path / "second", c=["one page"])
    (deadly / "b.pdf").touch()
    mmrr("render", first, "--work", tmp_path / "w", *POPPLER)
    (first / "b.pdf").unlink()
    result = mmrr("render", second, "--work", tmp_path / "w", *POPPLER)
    assert "b.pdf: not_rendered (pages 1-3: the file is gone or changed; run the command again)" in result.stderr
    assert "3 pages of 3 documents (2 ok, 1 not_rendered)" in result.stderr
    result = mmrr("rm", "--document", "a.pdf", "--work", tmp_path / "w")
    assert documents(tmp_path / "w")["b.pdf"]["status"] == "not_rendered"


def test_when_every_process_dies_nothing_is_stored(tmp_path: Path, deadly: Path) -> None:
    docs = write_documents(tmp_path / "docs", a=THESIS)
    (deadly / "a.pdf").touch()
    message = refused("render", docs, "--work", tmp_path / "w", *POPPLER)
    assert "a.pdf: not_rendered (pages 1-2: the process that draws them died; run the command again)" in message
    assert not (tmp_path / "w").exists()


def test_processes_that_do_not_start_are_not_tried_for_each_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = write_documents(tmp_path / "docs", **{f"d{n}": [f"page {n}"] for n in range(9)})
    starts = tmp_path / "starts"
    write(
        tmp_path / "site/sitecustomize.py", f"import os\nopen({str(starts)!r}, 'a').write('x')\nos._exit(9)\n".encode()
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    message = refused("render", docs, "--work", tmp_path / "w", *PDFIUM)
    assert "d0.pdf: not_rendered (pages 1-1: the process that draws them died" in message
    assert "d4.pdf: not_rendered (pages 1-1: the processes that render do not start; run the command again)" in message
    assert len(starts.read_text()) <= 4  # two for the first document
    monkeypatch.undo()
    assert "9 pages of 9 documents (9 ok)" in mmrr("render", docs, "--work", tmp_path / "w", *PDFIUM).stderr


# Errors of the machine that a process survives


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_an_error_of_the_machine_is_no_property_of_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    source = Source("a.png", picture(tmp_path / "a.png"), "image")

    def fail(path: Path) -> Image.Image:
        raise error

    monkeypatch.setattr(image_pages, "open_image", fail)
    with pytest.raises(type(error)):
        render_pages(source, 1, 1, tmp_path, RenderOptions("pdfium"))
    with pytest.raises(type(error)):
        rendering.render_image(source.path, 1, "", tmp_path, 64)
    monkeypatch.setattr(discovery, "open_image", fail)
    assert inspect(source).status == "unreadable"
    assert inspect(Source("in", tmp_path, "images")).status in ("ok", "unreadable")  # a PNG has one frame: not opened


def test_a_file_that_could_not_be_read_for_a_moment_is_read_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content is known from an earlier command, so the failure must not be stored under that content."""
    docs = write_documents(tmp_path / "docs", a=THESIS, b=SOIL)

    def fail(source: Source) -> discovery.Inspection:
        broken = source.doc_id == "b.pdf"
        return discovery.Inspection("unreadable", 0, "Input/output error") if broken else inspect(source)

    monkeypatch.setattr(_opening, "inspect", fail)
    result = mmrr("render", docs, "--work", tmp_path / "w", *PDFIUM)
    assert "b.pdf: unreadable (Input/output error; run the command again)" in result.stderr
    monkeypatch.undo()
    assert "5 pages of 2 documents (2 ok)" in mmrr("render", docs, "--work", tmp_path / "w", *PDFIUM).stderr


def test_a_page_that_the_renderer_cannot_draw_is_still_stored(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", a=THESIS)
    (docs / "b.pdf").write_bytes(make_pdf(["one"]).replace(b"/Count 1", b"/Count 2"))
    result = mmrr("render", docs, "--work", tmp_path / "w", *PDFIUM)
    assert "b.pdf: partial (1 of 2 pages could not be drawn)" in result.stderr
    assert len(shards(tmp_path / "w", "pages")) == 2
