"""Finding and inspecting documents: order, ids, awkward names, every status."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from PIL import Image

from mmrr.documents.discovery import Inspection, find_sources, inspect
from mmrr.documents.rendering import default_renderer
from mmrr.errors import MmrrError
from tests.documents.files import NO_PAGES, RENDERERS, picture, render, source, write
from tests.pdfs import make_pdf

pytestmark = [pytest.mark.renderer, pytest.mark.usefixtures("own_temp")]


def ids(*inputs: Path) -> list[str]:
    return [found.doc_id for found in find_sources(inputs)]


# Finding


def test_folder_is_searched_recursively_in_order(tmp_path: Path) -> None:
    for name in ["b.pdf", "a/2024.PDF", "a/.hidden.pdf", ".cache/c.pdf", "a/._2024.pdf"]:
        write(tmp_path / name, make_pdf(["x"]))
    write(tmp_path / "notes.txt", b"text")
    picture(tmp_path / "cover.JPG")
    found = find_sources([tmp_path])
    assert [(s.doc_id, s.kind) for s in found] == [("a/2024.PDF", "pdf"), ("b.pdf", "pdf"), ("cover.JPG", "image")]
    assert all(s.path.is_absolute() and s.path.is_file() for s in found)


def test_folder_of_images_is_one_document_in_natural_order(tmp_path: Path) -> None:
    scan = tmp_path / "in" / "my scan"
    colours = {"page10.png": "#0a0000", "page2.png": "#020000", "Page1.PNG": "#010000"}
    for name, colour in colours.items():
        picture(scan / name, colour=colour)
    write(scan / "read me.txt", b"")
    picture(scan / ".thumbnail.png")
    write(tmp_path / "in" / "z.pdf", make_pdf(["x"]))
    inside, given = find_sources([tmp_path / "in"]), find_sources([scan])
    assert [(s.doc_id, s.kind) for s in inside] == [("my_scan", "images"), ("z.pdf", "pdf")]
    assert given == [inside[0]]
    assert inspect(given[0]) == Inspection("ok", 3, "")
    pages = render(given[0], tmp_path / "out", last=3)
    reds = [Image.open(tmp_path / "out" / page.file).getpixel((5, 5)) for page in pages]
    assert reds == [(1, 0, 0), (2, 0, 0), (10, 0, 0)]


def test_images_next_to_pdfs_or_folders_are_documents_of_one_page(tmp_path: Path) -> None:
    picture(tmp_path / "mixed/a.png")
    write(tmp_path / "mixed/b.pdf", make_pdf(["x"]))
    picture(tmp_path / "tree/c.png")
    picture(tmp_path / "tree/deep/d.png")
    assert ids(tmp_path) == ["mixed/a.png", "mixed/b.pdf", "tree/c.png", "tree/deep"]


@pytest.mark.parametrize(
    ("name", "doc_id"),
    [
        ("a b\t\n c.pdf", "a_b_c.pdf"),
        ("Cafe\u0301 \u6587\u66f8.pdf", "Caf\u00e9_\u6587\u66f8.pdf"),
        ("bell\x07\x85\u00a0\u2003x.pdf", "bell_x.pdf"),
        ("latin\udce9.pdf", "latin_.pdf"),  # a name that is not UTF-8
        ("..pdf", "pdf"),
        (" .pdf", "_.pdf"),
        ("C:\\-weird'\"$(x).pdf", "C:\\-weird'\"$(x).pdf"),
    ],
)
def test_doc_id_is_clean_and_the_file_still_opens(tmp_path: Path, name: str, doc_id: str) -> None:
    try:
        write(tmp_path / name, make_pdf(["x"]))
    except (OSError, UnicodeError):
        pytest.skip("this file system refuses the name")
    (found,) = find_sources([tmp_path / name])
    assert found.doc_id == doc_id
    found.doc_id.encode()  # it can be written as UTF-8
    assert inspect(found).status == "ok"
    for renderer in {"pdfium", default_renderer()}:
        (page,) = render(found, tmp_path / "out", renderer)
        assert (page.status, page.detail, page.file) == ("ok", "", "0001.png")


def test_equal_names_get_different_ids_in_any_order_of_arguments(tmp_path: Path) -> None:
    paths = [write(tmp_path / folder / "same.pdf", make_pdf(["x"])) for folder in "abc"]
    digests = [hashlib.sha256(os.fsencode(path)).hexdigest()[:6] for path in paths]
    expected = ["same.pdf", f"same.pdf~{digests[1]}", f"same.pdf~{digests[2]}"]
    assert ids(*paths) == ids(*reversed(paths)) == expected
    twins = [write(tmp_path / "twins" / name, make_pdf(["x"])) for name in ("x y.pdf", "x_y.pdf")]
    assert ids(tmp_path / "twins") == ["x_y.pdf", f"x_y.pdf~{hashlib.sha256(os.fsencode(twins[1])).hexdigest()[:6]}"]


def test_a_file_found_twice_counts_once(tmp_path: Path) -> None:
    real = write(tmp_path / "docs/a.pdf", make_pdf(["x"]))
    image = picture(tmp_path / "docs/scan/1.png")
    (tmp_path / "docs/link.pdf").symlink_to(real)
    assert ids(tmp_path / "docs/scan", image, real, tmp_path / "docs", real) == ["a.pdf", "scan"]


def test_loops_and_broken_links_do_not_hang_or_vanish(tmp_path: Path) -> None:
    write(tmp_path / "docs/a.pdf", make_pdf(["x"]))
    for name in ("up", "up too"):  # two links, because the number of paths doubles with every level
        (tmp_path / "docs" / name).symlink_to(tmp_path)
    (tmp_path / "docs/self.pdf").symlink_to(tmp_path / "docs/self.pdf")
    (tmp_path / "docs/gone.pdf").symlink_to(tmp_path / "nowhere.pdf")
    os.mkfifo(tmp_path / "docs/pipe.pdf")
    found = {s.doc_id: inspect(s).status for s in find_sources([tmp_path / "docs"])}
    assert found == {"a.pdf": "ok", "gone.pdf": "unreadable", "self.pdf": "unreadable"}


def test_the_content_decides_the_kind_if_the_name_is_wrong(tmp_path: Path) -> None:
    files = {
        "pdf_without_suffix": make_pdf(["x"]),
        "pdf_as.png": make_pdf(["x"]),
        "text.txt": b"just text",
        "html.pdf": b"<html>404</html>",
        "nothing.txt": b"",
    }
    paths = [write(tmp_path / name, data) for name, data in files.items()]
    paths.append(picture(tmp_path / "scan.png").rename(tmp_path / "image_without_suffix"))
    found = {s.doc_id: (s.kind, inspect(s).status) for s in find_sources(paths)}
    assert found == {
        "pdf_without_suffix": ("pdf", "ok"),
        "pdf_as.png": ("pdf", "ok"),
        "text.txt": ("pdf", "not_a_document"),
        "html.pdf": ("pdf", "not_a_document"),
        "nothing.txt": ("pdf", "empty"),
        "image_without_suffix": ("image", "ok"),
    }


def test_unusable_inputs_are_named(tmp_path: Path) -> None:
    write(tmp_path / "texts/a.txt", b"x")
    os.mkfifo(tmp_path / "pipe")
    for given in ("missing.pdf", "texts", "pipe"):
        with pytest.raises(MmrrError, match=str(tmp_path / given)):
            find_sources([tmp_path / given])


# Inspecting


def test_every_status_of_a_pdf(tmp_path: Path) -> None:
    good = make_pdf(["one", "two"])
    files = {
        "ok": good,
        "password_required": make_pdf(["x"], user_password="secret"),
        "corrupt": b"%PDF-1.7\n" + b"garbage " * 100,
        "empty": b"",
        "no_pages": NO_PAGES,
        "not_a_document": b"\x00\x01 no document",
        "unreadable": None,
    }
    for expected, data in files.items():
        path = tmp_path / f"{expected}.pdf"
        if data is not None:
            path.write_bytes(data)
        found = inspect(source(path))
        assert found.status == expected
        assert found.n_pages == (2 if expected == "ok" else 0)
        assert (found.detail == "") == (expected == "ok")
        assert "\n" not in found.detail
        (page,) = render(source(path), tmp_path / "out")
        assert page.status == ("ok" if expected == "ok" else "failed")
        assert bool(page.detail) == (expected != "ok")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["0001.png"]


def test_error_of_one_file_is_not_reported_for_the_next(tmp_path: Path) -> None:
    """PDFium keeps its last error. A file of 0 pages must not get the error of the file before it."""
    locked = write(tmp_path / "locked.pdf", make_pdf(["x"], user_password="secret"))
    empty = write(tmp_path / "empty.pdf", NO_PAGES)
    assert [inspect(source(path)).status for path in (locked, empty)] == ["password_required", "no_pages"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads files without permission")
def test_file_and_folder_without_permission_are_unreadable(tmp_path: Path) -> None:
    locked = write(tmp_path / "in/a.pdf", make_pdf(["x"]))
    (tmp_path / "in/closed").mkdir(mode=0)
    locked.chmod(0)
    assert [inspect(s).status for s in find_sources([tmp_path / "in"])] == ["unreadable", "unreadable"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_a_pdf_with_an_owner_password_only_opens(tmp_path: Path, renderer: str) -> None:
    path = write(tmp_path / "a.pdf", make_pdf(["visible words"], owner_password="owner"))
    assert inspect(source(path)) == Inspection("ok", 1, "")
    (page,) = render(source(path), tmp_path / "out", renderer)
    assert (page.status, page.detail, page.text.strip()) == ("ok", "", "visible words")
    assert Image.open(tmp_path / "out" / page.file).getextrema()[0] == (0, 255)


def test_every_status_of_an_image(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png").read_bytes()
    files = {
        "cut.png": (good[:20], "corrupt"),
        "html.jpg": (b"<html>", "not_a_document"),
        "void.gif": (b"", "empty"),
    }
    for name, (data, expected) in files.items():
        found = inspect(source(write(tmp_path / name, data), "image"))
        assert (found.status, found.n_pages, bool(found.detail)) == (expected, 0, True)
    assert inspect(source(tmp_path / "good.png", "image")) == Inspection("ok", 1, "")
    assert inspect(source(tmp_path / "none.png", "image")).status == "unreadable"
    assert inspect(source(tmp_path / "nowhere", "images")).status == "unreadable"
    (tmp_path / "bare").mkdir()
    assert inspect(source(tmp_path / "bare", "images")).status == "no_pages"
