"""What goes in is accounted for: every file of a folder is indexed or named, with the reason."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmrr.documents import office
from tests.cli.conftest import Prepared
from tests.console import INDEX, SOIL, THESIS, artifact, misused, mmrr, refused, shards, write_documents
from tests.documents.files import fake_program, needs_poppler, write
from tests.pdfs import make_pdf

#: A LibreOffice that copies the file ``pdf`` of its folder, notes its arguments, and fails for a file "broken".
SOFFICE = """#!/bin/sh
here=$(dirname "$0")
echo "$@" >> "$here/log"
for last; do out="$next"; next="$last"; done
grep -q broken "$last" && { echo "Error: source file could not be loaded"; exit 0; }
grep -q endless "$last" && sleep 60
mkdir -p "$out" && cp "$here/pdf" "$out/document.pdf"
"""


def listed(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(mmrr("ls", "--documents", "--json", "--work", work).stdout)
    return found


def render(*args: object) -> str:
    return mmrr("render", *args, *INDEX).stderr


def test_every_file_of_a_folder_is_indexed_or_named(tmp_path: Path) -> None:
    docs, work = write_documents(tmp_path / "docs", thesis=THESIS), tmp_path / "w"
    for name in ("a.docx", "b.docx", "page.html", "sub/notes.txt", "sub/picture.svg", ".hidden", "README"):
        write(docs / name, b"text")
    (docs / "again.pdf").symlink_to("thesis.pdf")
    (docs / "sub" / "loop").symlink_to(docs)
    os.mkfifo(docs / "pipe.pdf")
    made = artifact(mmrr("render", docs, "--work", work, *INDEX))
    found = listed(work)
    names = {row["file"]: row["reason"] for row in found["skipped"]}
    assert names == {
        "a.docx": "unsupported: .docx; with --convert, LibreOffice reads it",
        "b.docx": "unsupported: .docx; with --convert, LibreOffice reads it",
        "page.html": "unsupported: .html",
        "pipe.pdf": "no regular file",
        "README": "unsupported: no ending",
        "sub/notes.txt": "unsupported: .txt",
        "sub/picture.svg": "unsupported: .svg",
        "sub/loop": "a link to a folder that is read under another name",
        "thesis.pdf": f"the same file as {docs / 'again.pdf'}",
    }
    assert found["hidden"] == {str(docs): 1}
    shown = mmrr("ls", "--documents", "--work", work).stdout
    assert all(name in shown for name in names)

    (docs / "sub" / "notes.txt").unlink()
    write(docs / "c.docx", b"text")
    again = mmrr("render", docs, "--work", work, *INDEX)
    assert artifact(again) == made  # what is no document changes nothing
    assert "1 document: 1 unchanged; " in again.stderr
    assert "skipped: 3 .docx (a.docx, b.docx, c.docx; with --convert, LibreOffice reads it), " in again.stderr
    assert "1 hidden; see: mmrr ls --documents" in again.stderr
    assert "sub/notes.txt" not in {row["file"] for row in listed(work)["skipped"]}

    other = write_documents(tmp_path / "other", soil=SOIL)
    write(other / "table.csv", b"text")
    render(other, "--work", work)
    assert {"a.docx", "table.csv"} <= {row["file"] for row in listed(work)["skipped"]}
    mmrr("rm", "--document", "soil.pdf", "--work", work)
    assert {"a.docx", "table.csv"} <= {row["file"] for row in listed(work)["skipped"]}
    render(other, "--work", work, "--replace")
    assert {row["file"] for row in listed(work)["skipped"]} == {"table.csv"}


def test_a_workspace_in_a_folder_holds_no_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_documents(tmp_path / "docs", thesis=THESIS))
    made = artifact(mmrr("render", ".", "--work", "w", *INDEX))
    again = mmrr("render", ".", "--work", "w", *INDEX)
    assert artifact(again) == made
    assert "skipped: w (a workspace of mmrr); " in again.stderr


def test_a_folder_without_documents_names_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.docx", "b.docx", "c.txt"):
        write(tmp_path / "docs" / name, b"text")
    message = refused("render", tmp_path / "docs", "--work", tmp_path / "w")
    assert "(found: 2 .docx; with --convert, LibreOffice reads it, 1 .txt); expected PDF files or images" in message


def test_other_files_in_a_folder_of_page_images_are_named_and_change_nothing(tmp_path: Path) -> None:
    docs = tmp_path / "scan"
    docs.mkdir()
    Image.new("RGB", (64, 96), "navy").save(docs / "1.png")
    made = artifact(mmrr("render", docs, "--work", tmp_path / "w", *INDEX))
    write(docs / "notes.txt", b"text")
    assert artifact(mmrr("render", docs, "--work", tmp_path / "w", *INDEX)) == made
    assert listed(tmp_path / "w")["skipped"] == [{"file": "notes.txt", "reason": "unsupported: .txt"}]


@pytest.mark.parametrize(
    "command",
    [
        ("index", "s3://bucket/x"),
        ("render", "docs", "--work", "gs://bucket/x"),
        ("run", "docs", "--queries", "https://host/q.jsonl", "--work", "w"),
        ("rerank", "words", "--output", "s3://bucket/run.trec"),
        ("eval", "--run", "s3://bucket/run.trec", "--qrels", "q.trec"),
        ("eval", "--qrels", "file:///tmp/q.trec"),
        ("fuse", "a.trec", "http://host/b.trec", "--output", "c.trec"),
        ("view", "a.pdf/0001", "--output", "s3://bucket/x.png"),
    ],
)
def test_a_url_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    assert "found a URL, expected a path" in misused(*command)
    assert not list(tmp_path.iterdir())


def test_a_url_in_the_environment_is_no_path_and_in_a_question_it_is_text(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mmrr("retrieve", "thesis at https://host/x", "--work", prepared.work)
    monkeypatch.setenv("MMRR_WORK", "s3://bucket/w")
    assert "--work s3://bucket/w: found a URL" in misused("ls")
    assert not list(tmp_path.iterdir())


# Passwords


def locked(folder: Path, name: str = "two words.pdf", password: str = "a Geheim") -> Path:
    return write(folder / name, make_pdf(["A hidden harbour", "Another page"], user_password=password))


def test_a_password_opens_a_file_and_is_not_stored(tmp_path: Path) -> None:
    docs, work = write_documents(tmp_path / "docs", thesis=THESIS), tmp_path / "w"
    locked(docs)
    assert "two_words.pdf: password_required (the PDF is encrypted; pass --password FILE)" in render(
        docs, "--work", work
    )
    wrong = write(tmp_path / "wrong.txt", b"two words.pdf other\n")
    said = render(docs, "--work", work, "--password", wrong)
    assert "two_words.pdf: password_required (the PDF is encrypted, and the password that --password has for" in said
    given = write(tmp_path / "pw.txt", "\ufefftwo words.pdf a Geheim\r\nnobody.pdf x\r\n".encode())
    said = render(docs, "--work", work, "--password", given)
    assert "2 documents: 2 unchanged; 4 pages of 2 documents (2 ok)" in said
    assert "--password: no document is named by line 2" in said
    assert not [path for path in work.rglob("*") if path.is_file() and b"Geheim" in path.read_bytes()]
    assert not [path for path in (work / "tmp").rglob("*") if path.is_file()]

    assert "4 pages of 2 documents (2 ok)" in render(docs, "--work", work)  # its content is known
    larger = ("--work", work, *INDEX[:2], "--max-tokens", "100")
    said = mmrr("render", docs, *larger).stderr
    assert "two_words.pdf: not_rendered (pages 1-2: the PDF is encrypted; pass --password FILE" in said
    assert "4 pages of 2 documents (2 ok)" in mmrr("render", docs, *larger, "--password", given).stderr


def test_one_password_for_all_and_a_wrong_one(tmp_path: Path) -> None:
    locked(tmp_path / "docs", "a.pdf", "x1")
    locked(tmp_path / "docs", "b.pdf", "x1")
    given = write(tmp_path / "pw.txt", b"x1\n")
    assert "(2 ok)" in render(tmp_path / "docs", "--work", tmp_path / "w", "--password", given)
    given.write_text("* other word\na.pdf\tx1\n")
    said = render(tmp_path / "docs", "--work", tmp_path / "w2", "--password", given)
    assert "b.pdf: password_required (the PDF is encrypted, and the password that --password has for it does" in said
    assert "(1 ok, 1 password_required)" in said
    assert "other word" not in said
    for text, problem in (
        (b"", "found no password"),
        (b"a b\nsecret", "line 2: found no password"),
        (b"\xff", "UTF-8"),
    ):
        given.write_bytes(text)
        message = refused("render", tmp_path / "docs", "--work", tmp_path / "w3", "--password", given)
        assert problem in message
        assert "secret" not in message


@needs_poppler
@pytest.mark.renderer
def test_a_password_is_on_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pdftoppm", "pdfinfo"):
        fake_program(name, tmp_path / "bin", monkeypatch, f'echo "$0 $@" >> {tmp_path}/log; exec "$REAL" "$@"')
    given = write(tmp_path / "pw.txt", b"Geheim")
    path = locked(tmp_path / "docs", password="Geheim")
    said = mmrr("render", path, "--work", tmp_path / "w", "--renderer", "poppler", "--password", given).stderr
    assert "2 pages of 1 document (1 ok)" in said
    calls = (tmp_path / "log").read_text()
    assert "pdftoppm" in calls
    assert "Geheim" not in calls


# Office files


@pytest.fixture
def soffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a LibreOffice that is on PATH."""
    folder = tmp_path / "bin"
    write(folder / "soffice", SOFFICE.encode()).chmod(0o755)
    write(folder / "pdf", make_pdf(["A letter about the harbour crane"]))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_office_files_are_converted_and_kept(tmp_path: Path, soffice: Path) -> None:
    docs, work = write_documents(tmp_path / "docs", thesis=THESIS), tmp_path / "w"
    write(docs / "a letter.docx", b"one")
    write(docs / "broken.xlsx", b"broken")
    write(docs / "page.html", b"html")
    before = sorted(path.name for path in docs.iterdir())
    said = render(docs, "--work", work, "--convert")
    assert "broken.xlsx: unreadable (LibreOffice made no PDF of it (Error: source file could not be loaded)" in said
    assert "3 pages of 3 documents (2 ok, 1 unreadable)" in said
    assert sorted(path.name for path in docs.iterdir()) == before
    calls = (soffice / "log").read_text().splitlines()
    assert len(calls) == 2
    assert all(f"-env:UserInstallation=file://{work}/tmp/" in call and str(docs) not in call for call in calls)

    (docs / "broken.xlsx").unlink()
    write(docs / "copy.odt", b"one")  # the same content: it is not converted again
    assert "3 documents: 1 added, 1 removed, 2 unchanged" in render(docs, "--work", work, "--convert")
    assert "3 documents: 3 unchanged" in render(docs, "--work", work)  # what is known stays without --convert
    assert len((soffice / "log").read_text().splitlines()) == 2
    mmrr("rm", "--work", work)
    (converted,) = (work / "converted").iterdir()
    write(docs / "a letter.docx", b"two")
    assert "a_letter.docx: unreadable (LibreOffice has to convert it; pass --convert" in render(docs, "--work", work)
    mmrr("rm", "--document", "a_letter.docx", "--document", "copy.odt", "--work", work)
    assert not converted.exists()


def test_a_conversion_has_a_time_limit(tmp_path: Path, soffice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = write_documents(tmp_path / "docs", thesis=THESIS)
    write(docs / "slow.pptx", b"endless")
    monkeypatch.setattr(office, "TIMEOUT_S", 0.3)
    assert "slow.pptx: unreadable (LibreOffice took more than 0.3 s" in render(
        docs, "--work", tmp_path / "w", "--convert"
    )


def test_without_libreoffice_office_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = write_documents(tmp_path / "docs", thesis=THESIS)
    write(docs / "a.docx", b"text")
    monkeypatch.setattr(office, "program", lambda: None)
    said = render(docs, "--work", tmp_path / "w", "--convert")
    assert "--convert: LibreOffice (soffice) is not installed; office files are skipped" in said
    assert "skipped: 1 .docx (a.docx" in said


def test_conversion_and_removal_follow_no_link(tmp_path: Path, soffice: Path) -> None:
    docs, work, outside = write_documents(tmp_path / "docs", thesis=THESIS), tmp_path / "w", tmp_path / "outside"
    write(docs / "a.docx", b"one")
    render(docs, "--work", work, "--convert")
    shutil.move(work / "converted", outside)
    (work / "converted").symlink_to(outside)
    before = sorted(outside.iterdir())
    for command in (("render", docs, "--convert"), ("rm",), ("rm", "--document", "a.docx")):
        assert "found a symbolic link, expected a folder; remove the link" in refused(*command, "--work", work)
    assert sorted(outside.iterdir()) == before
    (work / "converted").unlink()
    (work / "converted").mkdir()
    own = work / "converted" / before[0].name
    own.symlink_to(before[0])
    mmrr("rm", "--document", "a.docx", "--work", work)
    assert not own.is_symlink()
    assert sorted(outside.iterdir()) == before
    assert shards(work, "pages")
