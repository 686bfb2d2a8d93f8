"""Paths that are empty, and file names that are not UTF-8."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from mmrr.workspace.files import digest
from tests.console import THESIS, misused, mmrr, write_documents

RENDER = ("--renderer", "pdfium", "--max-tokens", "64", "--workers", "1")


# Not UTF-8


def picture(path: bytes) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            Image.new("RGB", (64, 96), "navy").save(file, "PNG")
    except (OSError, UnicodeError):
        pytest.skip("this file system refuses the name")


def test_a_folder_of_images_whose_names_are_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/docs/scan\xe9/"
    for name in (b"page\xe9 1.png", b"page\xe9 2.png", b"page 3.png"):
        picture(folder + name)
    with open(folder + b"bad\xe9.png", "wb") as file:
        file.write(b"\x89PNG but no image")
    write_documents(tmp_path / "docs", good=THESIS)
    result = mmrr("render", tmp_path / "docs", "--work", tmp_path / "w", *RENDER)
    assert "scan_: partial (1 of 4 pages could not be drawn)" in result.stderr
    (entry,) = (
        entry
        for entry in json.loads(mmrr("ls", "--documents", "--work", tmp_path / "w", "--json").stdout)["documents"]
        if entry["doc_id"] == "scan_"
    )
    (detail,) = entry["failed_pages"].values()
    assert detail.startswith("bad\\udce9.png: ")
    assert "all as written" in mmrr("verify", "--work", tmp_path / "w").stdout
    assert mmrr("render", tmp_path / "docs", "--work", tmp_path / "w", *RENDER).stdout == result.stdout


def test_names_that_are_not_utf8_count_with_their_bytes_and_others_as_before() -> None:
    assert digest(["a\udce9"]) != digest(["a\udce8"])
    assert digest(["caf\u00e9", 1]) == "d544e1cbc4839f3c7a5b4e37770216e763097ef461958480fe5dbdbef7c654e5"


# Empty


@pytest.mark.parametrize(
    "command",
    [
        ("render", ""),
        ("index", ""),
        ("render", "a.pdf", ""),
        ("render", "a.pdf", "--work", ""),
        ("render", "a.pdf", "--work="),
        ("retrieve", "words", "--queries", ""),
        ("eval", "--qrels", ""),
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    write_documents(tmp_path, a=THESIS)
    monkeypatch.chdir(tmp_path)
    assert "found an empty argument, expected a text or a path" in misused(*command)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pdf"]
