"""A collection that grows and shrinks: adding never loses a document, and each step computes the new pages alone."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmrr.stages import render
from mmrr.workspace.files import seal, unseal
from tests.cli.chain import Chain
from tests.console import FP32, INDEX, artifact, files, manifest, mmrr, refused, run_lines, shards, write_documents

#: A word for each document that no other has; BM25 finds a page by it.
WORDS = [
    "anchor",
    "badger",
    "candle",
    "dolphin",
    "engine",
    "falcon",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kettle",
    "ladder",
    "magnet",
    "needle",
    "orchid",
    "parrot",
    "quartz",
    "ribbon",
    "saddle",
    "tunnel",
    "umbrella",
    "velvet",
    "walnut",
    "yogurt",
]


@dataclass(frozen=True)
class Collection:
    """A workspace with an index, and the folder that it was made of."""

    root: Path
    embedder: Path
    scorer: Path

    @property
    def docs(self) -> Path:
        return self.root / "docs"

    @property
    def work(self) -> Path:
        return self.root / "work"

    def write(self, *words: str, folder: str = "docs") -> None:
        for word in words:
            write_documents(self.root / folder, **{word: [f"This page of the report is about a {word}."]})

    def index(self, *documents: object, model: bool = True) -> str:
        """Index, by default the folder; the summary line."""
        embedder = ("--embedder", self.embedder, *FP32) if model else ()
        result = mmrr("index", *(documents or (self.docs,)), "--work", self.work, *embedder, *INDEX)
        (line,) = [line for line in result.stderr.splitlines() if re.match(r"\d+ documents?: ", line)]
        return line

    def documents(self) -> list[str]:
        listed = json.loads(mmrr("ls", "--documents", "--work", self.work, "--json").stdout)["documents"]
        return [entry["doc_id"] for entry in listed]

    def found(self, word: str) -> list[str]:
        """The pages that a search for a word finds by text."""
        command = ("retrieve", word, "--first-stage", "bm25", "--work", self.work, "--json")
        return [row["page_id"] for row in json.loads(mmrr(*command).stdout)["queries"][0]["results"]]

    def computed(self, stage: str) -> int:
        """Pages that the current artifact of a stage computed."""
        name = json.loads((self.work / "head.json").read_text())[stage]
        return int(manifest(self.work / stage / name)["provenance"]["pages_computed"])


@pytest.fixture
def empty(tmp_path: Path, tiny_embedder_path: Path, tiny_path: Path) -> Collection:
    return Collection(tmp_path, tiny_embedder_path, tiny_path)


@pytest.fixture
def small(empty: Collection) -> Collection:
    """Three documents, indexed by text."""
    empty.write("anchor", "badger", "candle")
    empty.index(model=False)
    return empty


@pytest.mark.slow
def test_twenty_documents_grow_shrink_and_change_their_names(empty: Collection) -> None:
    """After each step only the new pages were computed, and every search finds its page."""

    def caches() -> int:
        command = ("precache", "--work", empty.work, "--scorer-model", empty.scorer, *FP32)
        mmrr(*command)
        return empty.computed("precache")

    def check(*words: str, **renamed: str) -> None:
        names = {word: f"{renamed.get(word, word)}.pdf" for word in words}
        assert empty.documents() == sorted(names.values())
        for word, name in names.items():
            assert empty.found(word) == [f"{name}/0001"]

    first = WORDS[:20]
    empty.write(*first)
    assert empty.index().startswith("20 documents: 20 added; 20 pages of 20 documents (20 ok)")
    assert (empty.computed("pages"), empty.computed("embed"), caches()) == (20, 20, 20)
    check(*first)

    empty.write(*WORDS[20:23])
    assert empty.index().startswith("23 documents: 3 added, 20 unchanged; ")
    assert (empty.computed("pages"), empty.computed("embed"), caches()) == (3, 3, 3)
    check(*first, *WORDS[20:23])

    for word in WORDS[:2]:
        (empty.docs / f"{word}.pdf").unlink()
    before = files(empty.work)
    assert empty.index().startswith("21 documents: 2 removed, 21 unchanged; ")
    assert (empty.computed("pages"), empty.computed("embed"), caches()) == (0, 0, 0)
    assert {name for name in files(empty.work) if name.startswith("shards/")} <= set(before)
    check(*WORDS[2:23])
    assert empty.found(WORDS[0]) == []

    (empty.docs / f"{WORDS[5]}.pdf").rename(empty.docs / "renamed.pdf")
    assert empty.index().startswith("21 documents: 1 renamed, 20 unchanged; ")
    assert (empty.computed("pages"), empty.computed("embed"), caches()) == (0, 0, 0)
    check(*WORDS[2:23], **{WORDS[5]: "renamed"})

    empty.write(WORDS[23], folder="more")
    assert empty.index(empty.root / "more").startswith("22 documents: 1 added, 21 unchanged; ")
    assert (empty.computed("pages"), empty.computed("embed"), caches()) == (1, 1, 1)
    check(*WORDS[2:24], **{WORDS[5]: "renamed"})


def test_all_changes_in_one_command_are_counted(small: Collection) -> None:
    small.write("dolphin")
    (small.docs / "anchor.pdf").unlink()
    (small.docs / "badger.pdf").rename(small.docs / "other.pdf")
    write_documents(small.docs, candle=["A new text about a lantern"])
    assert small.index(model=False).startswith("3 documents: 1 added, 1 changed, 1 removed, 1 renamed; 3 pages")
    assert small.found("lantern") == ["candle.pdf/0001"]
    assert small.found("badger") == ["other.pdf/0001"]
    assert small.index(model=False).startswith("3 documents: 3 unchanged; ")


def test_replace_makes_the_collection_what_is_named(small: Collection) -> None:
    small.write("engine", folder="more")
    assert small.index(small.root / "more", "--replace", model=False).startswith("1 document: 1 added, 3 removed; ")
    assert small.documents() == ["engine.pdf"]
    assert small.found("anchor") == []
    mmrr("render", small.docs, "--replace", "--work", small.work, *INDEX)
    assert small.documents() == ["anchor.pdf", "badger.pdf", "candle.pdf"]


def test_render_adds_as_index_does(small: Collection) -> None:
    small.write("engine", folder="more")
    result = mmrr("render", small.root / "more", "--work", small.work, *INDEX)
    assert "4 documents: 1 added, 3 unchanged; " in result.stderr
    assert "current: pages/" in result.stderr


def test_documents_are_taken_out_by_id_or_file_name(empty: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    empty.write("anchor", "badger", "candle", "dolphin", folder="docs/animals and things")
    empty.index()
    before = shards(empty.work, "pages"), shards(empty.work, "embed")
    monkeypatch.setattr("mmrr.embedders.qwen3_vl.Embedder.__init__", None)
    monkeypatch.setattr(render, "draw", None)
    names = ("--document", "animals_and_things/anchor.pdf", "--document", "badger.pdf")
    result = mmrr("rm", *names, "--work", empty.work)
    assert "2 documents: 2 removed, 2 unchanged; 2 pages of 2 documents (2 ok)" in result.stderr
    assert artifact(result).parent.name == "pages"
    left = shards(empty.work, "pages"), shards(empty.work, "embed")
    assert all(some < all_ and len(some) == 2 for some, all_ in zip(left, before, strict=True))
    assert empty.found("anchor") == []
    assert empty.found("candle") == ["animals_and_things/candle.pdf/0001"]
    wrong = refused("rm", "--document", "candel.pdf", "--work", empty.work)
    assert "no document 'candel.pdf' in the collection; the nearest are animals_and_things/candle.pdf" in wrong
    both = ("--document", "candle.pdf", "--document", "dolphin.pdf")
    assert "no document that opens would be left" in refused("rm", *both, "--work", empty.work)
    assert "leave out artifacts and --cascade" in refused("rm", *both, "--cascade", "--work", empty.work)
    # The vectors that are left are those of the pages that are left.
    monkeypatch.undo()
    query = ("retrieve", "a candle", "--first-stage", "dense", "--work", empty.work)
    (run,) = run_lines(artifact(mmrr(*query)) / "run.trec").values()
    assert len(run) == 2


def test_a_document_that_was_taken_out_comes_back_with_its_folder(small: Collection) -> None:
    mmrr("rm", "--document", "anchor.pdf", "--work", small.work)
    assert small.index().startswith("3 documents: 1 added, 2 unchanged; ")
    assert small.computed("pages") == 1  # its data was deleted, that of the others was not


def test_files_of_one_name_from_two_folders_are_two_documents(small: Collection) -> None:
    for folder in ("one", "two"):
        write_documents(small.root / folder, anchor=[f"Another text about {folder} falcon"])
        assert small.index(small.root / folder, model=False).split(" documents: ")[1].startswith("1 added, ")
    ids = small.documents()
    assert len(ids) == len(set(ids)) == 5
    copies = [doc_id for doc_id in ids if doc_id.startswith("anchor.pdf")]
    assert copies[0] == "anchor.pdf"
    assert all(doc_id.startswith("anchor.pdf~") for doc_id in copies[1:])
    assert small.found("anchor") == ["anchor.pdf/0001"]
    for folder in ("two", "one"):  # the order of later commands changes no id
        assert small.index(small.root / folder, model=False).startswith("5 documents: 5 unchanged; ")
    assert small.documents() == ids


def test_a_single_file_given_twice_is_one_document(small: Collection) -> None:
    more = small.root / "more"
    small.write("engine", "falcon", folder="more")
    assert small.index(more / "engine.pdf", model=False).startswith("4 documents: 1 added, 3 unchanged; ")
    assert small.index(more / "engine.pdf", model=False).startswith("4 documents: 4 unchanged; ")
    (small.root / "link").symlink_to(more)
    assert small.index(small.root / "link" / "engine.pdf", model=False).startswith("4 documents: 4 unchanged; ")
    assert small.index(more, model=False).startswith("5 documents: 1 added, 4 unchanged; ")
    assert small.documents().count("engine.pdf") == 1
    (more / "engine.pdf").unlink()
    assert small.index(small.docs, model=False).startswith("5 documents: 5 unchanged; ")  # its folder is not named
    assert small.found("engine") == ["engine.pdf/0001"]
    assert small.index(small.root / "link", model=False).startswith("4 documents: 1 removed, 4 unchanged; ")


def test_other_rendering_options_render_what_stays_too(small: Collection) -> None:
    small.write("engine", folder="more")
    assert small.index(small.root / "more", "--dpi", 90, model=False).startswith("4 documents: 1 added, 3 unchanged; ")
    assert small.computed("pages") == 4
    shutil.rmtree(small.docs)
    said = refused("index", small.root / "more", "--work", small.work, *INDEX, "--dpi", "70")
    assert "3 documents added earlier have to be rendered again and their files are gone or changed" in said
    assert "anchor.pdf" in said
    assert len(small.documents()) == 4
    assert small.index(small.root / "more", "--dpi", 90, model=False).startswith("4 documents: 4 unchanged; ")


def test_an_interrupted_command_loses_nothing(small: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    small.write("engine", "falcon", folder="more")
    commit = render.commit_pages
    left = [1]

    def interrupted(*args: object) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        commit(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(render, "commit_pages", interrupted)
    mmrr("index", small.root / "more", "--work", small.work, *INDEX, code=130)
    assert small.documents() == ["anchor.pdf", "badger.pdf", "candle.pdf"]
    assert small.found("anchor") == ["anchor.pdf/0001"]
    monkeypatch.undo()
    assert small.index(small.root / "more", model=False).startswith("5 documents: 2 added, 3 unchanged; ")
    assert small.computed("pages") == 1  # the other was finished


def test_two_commands_that_add_at_the_same_time_both_count(small: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other command ends while this one renders."""
    small.write("engine", folder="one")
    small.write("falcon", folder="two")
    whole = render.render
    ran = []

    def slow(*args: object) -> object:
        if not ran:
            ran.append(True)
            small.index(small.root / "two", model=False)
        return whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(render, "render", slow)
    assert small.index(small.root / "one", model=False).startswith("5 documents: 1 added, 4 unchanged; ")
    assert small.found("falcon") == ["falcon.pdf/0001"]
    assert small.found("engine") == ["engine.pdf/0001"]


def test_names_that_are_not_utf8_are_found_again(small: Collection) -> None:
    folder = small.root / "bytes"
    folder.mkdir()
    try:
        shutil.copy(small.docs / "anchor.pdf", folder.as_posix() + "/caf\udce9.pdf")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    assert small.index(folder, model=False).startswith("4 documents: 1 added, 3 unchanged; ")
    assert small.index(folder, model=False).startswith("4 documents: 4 unchanged; ")


def test_a_workspace_that_records_no_folders_keeps_its_documents(small: Collection) -> None:
    """mmrr 0.1 recorded none: the same file is the same document, others stay until --replace or rm."""
    (path,) = (small.work / "pages").glob("*/manifest.json")
    values = unseal(path.read_bytes())
    del values["provenance"]["sources"]
    path.write_text(seal(values, indent=1))
    (small.docs / "badger.pdf").unlink()
    small.write("engine")
    assert small.index(model=False).startswith("4 documents: 1 added, 3 unchanged; ")
    assert small.found("badger") == ["badger.pdf/0001"]
    (small.docs / "anchor.pdf").unlink()
    assert small.index(model=False).startswith("3 documents: 1 removed, 3 unchanged; ")
    assert sorted(small.documents()) == ["badger.pdf", "candle.pdf", "engine.pdf"]
    mmrr("rm", "--document", "badger.pdf", "--work", small.work)
    assert sorted(small.documents()) == ["candle.pdf", "engine.pdf"]


@pytest.mark.slow
def test_the_chain_is_the_same_whether_documents_come_in_one_command_or_two(chain: Chain, tmp_path: Path) -> None:
    options = ("--work", tmp_path / "w", "--embedder", chain.embedder, *INDEX, *FP32)
    mmrr("index", chain.docs / "thesis.pdf", *options)
    made = artifact(mmrr("index", chain.docs / "soil.pdf", *options))
    assert made.name == chain.index().name
