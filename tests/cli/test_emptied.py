"""What mmrr index finds before it renders: emptied folders, ids that stay with --replace, wrong names and options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.console import INDEX, mmrr, refused, write_documents


def documents(work: Path) -> list[str]:
    listed = json.loads(mmrr("ls", "--documents", "--work", work, "--json").stdout)["documents"]
    return [entry["doc_id"] for entry in listed]


def test_the_documents_of_an_emptied_folder_are_removed(tmp_path: Path) -> None:
    work = tmp_path / "w"
    one = write_documents(tmp_path / "one", anchor=["An anchor"])
    two = write_documents(tmp_path / "two", badger=["A badger"], candle=["A candle"])
    mmrr("index", one, two, "--work", work, *INDEX)
    for file in two.iterdir():
        file.unlink()
    assert "1 document: 2 removed, 1 unchanged; " in mmrr("index", two, "--work", work, *INDEX).stderr
    assert documents(work) == ["anchor.pdf"]
    (one / "anchor.pdf").unlink()
    assert "no document is left, and the collection would be empty" in refused("index", one, "--work", work, *INDEX)
    assert documents(work) == ["anchor.pdf"]
    (tmp_path / "other").mkdir()
    assert "no document in" in refused("index", tmp_path / "other", "--work", work, *INDEX)


def test_a_document_keeps_its_id_with_replace(tmp_path: Path) -> None:
    work = tmp_path / "w"
    one = write_documents(tmp_path / "p1", h=["An anchor"])
    two = write_documents(tmp_path / "p2", h=["A badger"])
    for folder in (one, two):
        mmrr("index", folder, "--work", work, *INDEX)
    first, second = documents(work)
    assert (first, second[:6]) == ("h.pdf", "h.pdf~")
    assert "1 document: 1 removed, 1 unchanged; " in mmrr("index", two, "--replace", "--work", work, *INDEX).stderr
    assert documents(work) == [second]
    three = write_documents(tmp_path / "p3", h=["A candle"])
    mmrr("index", three, "--replace", "--work", work, *INDEX)
    assert documents(work) == ["h.pdf"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--embedder", "nothing-here"], "found no folder 'nothing-here'"),
        (["--embed-option", "colour=red"], "unknown option colour"),
        (["--device", "gpu9"], "gpu9"),
        (["--faiss-factory", "Nonsense"], "FAISS cannot build 'Nonsense'; expected a factory string such as Flat"),
    ],
)
def test_wrong_names_and_options_are_found_before_rendering(
    tmp_path: Path, tiny_embedder_path: Path, options: list[str], says: str
) -> None:
    docs = write_documents(tmp_path / "docs", anchor=["An anchor"])
    wrong = ("index", docs, "--work", tmp_path / "w", *INDEX, "--embedder", tiny_embedder_path, *options)
    assert says in refused(*wrong)
    assert not (tmp_path / "w").exists()
