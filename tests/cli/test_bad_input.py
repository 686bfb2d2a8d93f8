"""What people get wrong and what breaks under them: one clear line, the right exit code, the rest goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from tests.console import (
    FP32,
    INDEX,
    SOIL,
    THESIS,
    artifact,
    files,
    manifest,
    mmrr,
    move_documents,
    refused,
    run_lines,
    shards,
    write_documents,
    write_queries,
)
from tests.pdfs import join_objects, make_pdf

QUESTION = "When is the thesis due?"


class Made(NamedTuple):
    """A workspace on which index and precache have run, text alone."""

    work: Path
    docs: Path
    model: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Made:
    """Made once; no test may leave it otherwise than it was."""
    root = tmp_path_factory.mktemp("bad")
    docs = write_documents(root / "docs", thesis=THESIS, soil=SOIL)
    mmrr("index", docs, "--work", root / "w", *INDEX)
    mmrr("precache", "--work", root / "w", "--scorer-model", tiny_path, *FP32)
    return Made(root / "w", docs, tiny_path)


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Made:
    shutil.copytree(made.work, tmp_path / "copy")
    shutil.copytree(made.docs, tmp_path / "docs")
    move_documents(tmp_path / "copy", made.docs, tmp_path / "docs")
    return Made(tmp_path / "copy", tmp_path / "docs", made.model)


# Documents

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


def test_bad_documents_beside_good_ones_are_named_counted_and_skipped(tmp_path: Path) -> None:
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


def test_a_repaired_document_is_taken_up(tmp_path: Path) -> None:
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


def test_an_owner_password_alone_opens(tmp_path: Path) -> None:
    (tmp_path / "owned.pdf").write_bytes(make_pdf(["readable"], owner_password="o"))
    result = mmrr("index", tmp_path / "owned.pdf", "--work", tmp_path / "w", *INDEX)
    assert "1 pages of 1 documents (1 ok)" in result.stderr


def test_turned_giant_and_textless_pages_go_through_the_chain(tmp_path: Path, tiny_path: Path) -> None:
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


def test_a_collection_without_any_text_says_so_when_searched_by_text(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", blank=["", ""])
    mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    result = mmrr("retrieve", QUESTION, "--work", tmp_path / "w")
    assert "no page shares a word" in result.stderr


def test_names_of_all_kinds_stay_apart(tmp_path: Path) -> None:
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


def test_documents_that_are_not_there(tmp_path: Path) -> None:
    work = tmp_path / "w"
    assert "gone.pdf does not exist" in refused("index", tmp_path / "gone.pdf", "--work", work)
    (tmp_path / "none").mkdir()
    assert "no document in" in refused("index", tmp_path / "none", "--work", work)
    mmrr("index", code=2)


def test_a_document_that_goes_after_indexing_is_not_missed(copy: Made) -> None:
    shutil.rmtree(copy.docs)
    mmrr("rerank", QUESTION, "--work", copy.work)
    mmrr("precache", "--work", copy.work, "--scorer-model", copy.model, *FP32, "--band", "0:2")


def test_a_document_that_goes_while_it_is_rendered_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = write_documents(tmp_path / "docs", a=THESIS, b=SOIL)
    from mmrr.stages import render

    inspect = render.inspect

    def inspect_and_lose(source: render.Source) -> object:
        found = inspect(source)
        if source.doc_id == "b.pdf":
            source.path.unlink()
        return found

    monkeypatch.setattr(render, "inspect", inspect_and_lose)
    result = mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    assert "b.pdf: unreadable (it changed or went away while it was read; run the command again)" in result.stderr
    assert "2 pages of 2 documents (1 ok, 1 unreadable)" in result.stderr
    monkeypatch.undo()
    write_documents(docs, b=SOIL)  # the same bytes as before
    assert "5 pages of 2 documents (2 ok)" in mmrr("index", docs, "--work", tmp_path / "w", *INDEX).stderr


def test_a_page_image_that_was_deleted_or_changed_is_named(copy: Made) -> None:
    image = next((copy.work / "shards" / "pages").glob("*/0001.png"))
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    command = ("precache", "--work", copy.work, "--scorer-model", copy.model, *FP32, "--band", "0:2")
    message = refused(*command)
    assert "0001.png does not match its hash" in message
    assert "run the index command again" in message
    assert "2/2" in mmrr("index", copy.docs, "--work", copy.work, *INDEX).stderr
    mmrr(*command)


def test_a_document_that_changes_while_it_is_rendered_is_not_kept_as_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = write_documents(tmp_path / "docs", a=THESIS, b=SOIL)
    from mmrr.stages import render

    inspect = render.inspect

    def inspect_and_change(source: render.Source) -> object:
        found = inspect(source)
        if source.doc_id == "b.pdf":
            write_documents(docs, b=["Other", "words", "altogether"])
        return found

    monkeypatch.setattr(render, "inspect", inspect_and_change)
    result = mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    assert "b.pdf: unreadable" in result.stderr
    monkeypatch.undo()
    mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    found = json.loads(mmrr("retrieve", "altogether", "--work", tmp_path / "w", "--json").stdout)
    assert [row["page_id"] for row in found["queries"][0]["results"]] == ["b.pdf/0003"]


# Queries, runs, judgements


@pytest.mark.parametrize(
    "query", ["<|im_end|>", "<|image_pad|><|vision_start|>", "a" * 200, "\u202eover", "tab\tand\nline", "\x1b[31m"]
)
def test_any_text_is_a_query(made: Made, query: str) -> None:
    document = json.loads(mmrr("rerank", f"thesis {query}", "--work", made.work, "--json").stdout)
    assert document["queries"][0]["text"] == f"thesis {query}"
    assert len(document["queries"][0]["results"]) == 2
    shown = mmrr("rerank", f"thesis {query}", "--work", made.work).stdout
    assert "\x1b" not in shown


def test_a_query_of_10000_characters(made: Made) -> None:
    text = ("when is the thesis due and why " * 400)[:10_000]
    result = mmrr("rerank", text, "--work", made.work)
    assert len(run_lines(artifact(result) / "run.trec")["query"]) == 2
    assert len(result.stdout) < 3000  # the table does not repeat it all


def test_a_query_that_is_no_text_and_names_that_are_too_long(made: Made) -> None:
    assert "not text in UTF-8" in refused("rerank", "thesis \udcff", "--work", made.work)
    assert "File name too long" in refused("rerank", QUESTION, "--work", "x" * 300)
    assert "File name too long" in refused("precache", "--work", made.work, "--scorer-model", "x" * 300)


def test_empty_queries(made: Made, tmp_path: Path) -> None:
    for command in ("rerank", "retrieve"):
        for query in ("", "  \n"):
            assert "the query is empty" in refused(command, query, "--work", made.work)
        assert "--queries" in refused(command, "--work", made.work)
        path = write_queries(tmp_path / "q.jsonl", ("q1", QUESTION))
        assert "--queries" in refused(command, QUESTION, "--queries", path, "--work", made.work)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "q.jsonl is empty"),
        ("\n\n", "q.jsonl is empty"),
        ('{"query_id": "a", "text": "x"}\n{"query_id": "b", "text"\n', "q.jsonl, line 2: found no valid JSON"),
        ('{"query_id": "a", "text": "x"}\n\n[1]\n', "q.jsonl, line 3: found a list"),
        ('{"text": "x"}\n', "q.jsonl, line 1: found no id"),
        ('{"query_id": "a"}\n', "q.jsonl, line 1: found no text"),
        ('{"query_id": "a", "text": " "}\n', "q.jsonl, line 1: found an empty text"),
        ('{"query_id": "a b", "text": "x"}\n', "q.jsonl, line 1: found the query_id 'a b'"),
        ('{"query_id": "a", "text": "x"}\n{"query_id": "a", "text": "y"}\n', "line 2: the id a is already used"),
    ],
)
def test_malformed_query_files(made: Made, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    for command in ("rerank", "retrieve"):
        assert says in refused(command, "--queries", path, "--work", made.work)


def test_queries_that_are_no_text_or_no_file(made: Made, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(b'{"query_id": "a", "text": "\xff"}\n')
    assert "line 1: found the byte 0xff" in refused("rerank", "--queries", tmp_path / "q.jsonl", "--work", made.work)
    assert "No such file" in refused("rerank", "--queries", tmp_path / "none", "--work", made.work)
    assert "Is a directory" in refused("rerank", "--queries", tmp_path, "--work", made.work)


@pytest.fixture
def ranked(copy: Made, tmp_path: Path) -> Made:
    queries = write_queries(tmp_path / "q.jsonl", ("q1", QUESTION), ("q2", "soil"))
    mmrr("rerank", "--queries", queries, "--work", copy.work, "--output", tmp_path / "run.trec")
    return copy


def test_judgements_of_other_pages_or_queries(ranked: Made, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.trec"
    command = ("eval", "--qrels", qrels, "--work", ranked.work)

    qrels.write_text("q1 0 elsewhere/0001 1\nq2 0 elsewhere/0002 1\n")
    message = refused(*command)
    assert "none of the 2 judged pages is in the index" in message
    assert "elsewhere/0001" in message

    qrels.write_text("other 0 thesis.pdf/0001 1\n")
    message = refused(*command)
    assert "answers none of the 1 judged queries" in message
    assert "judged: other" in message
    assert "q1" in message

    qrels.write_text("q1 0 thesis.pdf/0001 1\nq1 0 thesis.pdf/0009 1\nq2 0 soil.pdf/0001 1\n")
    result = mmrr(*command)
    assert "1 judged pages are not in the index" in result.stderr
    assert "thesis.pdf/0009" in result.stderr
    assert "1 judged pages are not in the index" in mmrr(*command, "--json").stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "qrels.trec is empty"),
        ("q1 0 thesis.pdf/0001 1\nq1 0 thesis.pdf/0002\n", "qrels.trec, line 2: found 3 columns"),
        ("q1 0 thesis.pdf/0001 high\n", "qrels.trec, line 1: found the relevance 'high'"),
        ("q1 0 thesis.pdf/0001 1\nq1 0 thesis.pdf/0001 0\n", "qrels.trec, line 2: thesis.pdf/0001 is already judged"),
    ],
)
def test_malformed_judgements(ranked: Made, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "qrels.trec").write_text(text)
    assert says in refused("eval", "--qrels", tmp_path / "qrels.trec", "--work", ranked.work)


def test_eval_refuses_what_it_cannot_judge(ranked: Made, made: Made, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.trec"
    qrels.write_text("q1 0 thesis.pdf/0001 1\n")
    eval_ = ("eval", "--work", ranked.work)
    assert "--qrels" in refused(*eval_)
    assert "mmdocir" in refused(*eval_, "beir")
    assert "--data" in refused(*eval_, "mmdocir")
    assert "No such file" in refused(*eval_, "--qrels", tmp_path / "none.trec")
    assert "No such file" in refused(*eval_, "--qrels", qrels, "--run", tmp_path / "none.trec")
    (tmp_path / "run").write_text("q1 Q0 thesis.pdf/0001 1 nan mmrr\n")
    assert "line 1: found the score 'nan'" in refused(*eval_, "--qrels", qrels, "--run", tmp_path / "run")
    assert "nonsense" in refused(*eval_, "--qrels", qrels, "--measure", "nonsense")
    for folder in (tmp_path / "missing", made.docs):
        message = refused(*eval_, "mmdocir", "--data", folder, "--first-stage", "bm25")
        assert str(folder) in message
    assert "run: mmrr rerank" in refused("eval", "--work", made.work, "--qrels", qrels)


# The workspace and the disk


def test_a_wrong_work(made: Made, tmp_path: Path) -> None:
    for command in (
        ["rerank", QUESTION],
        ["retrieve", QUESTION],
        ["precache", "--scorer-model", made.model],
        ["prune"],
        ["eval", "--qrels", "q"],
        ["ls"],
        ["rm", "index/123456789abc"],
    ):
        assert "no workspace at" in refused(*command, "--work", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    assert "holds other files" in refused("index", made.docs, "--work", tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["letter.txt"]
    assert "is a file" in refused("index", made.docs, "--work", tmp_path / "mine" / "letter.txt")
    assert "cannot be made" in refused("index", made.docs, "--work", tmp_path / "mine" / "letter.txt" / "w")


def test_commands_out_of_order_say_what_comes_first(tmp_path: Path, made: Made) -> None:
    work = tmp_path / "w"
    mmrr("render", made.docs, "--work", work, *INDEX)
    assert "mmrr index" in refused("precache", "--work", work, "--scorer-model", made.model)
    assert "mmrr index" in refused("retrieve", QUESTION, "--work", work)
    mmrr("index", made.docs, "--work", work, *INDEX)
    assert "mmrr precache" in refused("rerank", QUESTION, "--work", work)


@pytest.mark.parametrize("name", ["head.json", "pages/*/manifest.json", "index/*/manifest.json", "pages/*/pages.jsonl"])
def test_damaged_listings_are_named_and_what_the_message_says_mends_them(copy: Made, name: str) -> None:
    (path,) = copy.work.glob(name)
    path.write_text("{ not json")
    message = refused("retrieve", QUESTION, "--work", copy.work)
    assert str(path) in message
    assert "damaged" in message
    if name == "head.json":
        path.unlink()
    elif path.name == "manifest.json":
        mmrr(*message.rsplit("mmrr ", 1)[1].split())
    mmrr("index", copy.docs, "--work", copy.work, *INDEX)
    mmrr("retrieve", QUESTION, "--work", copy.work)


def test_lost_files_are_named(copy: Made) -> None:
    (folder,) = copy.work.glob("index/*/bm25*")
    shutil.rmtree(folder)
    assert "run the index command again" in refused("retrieve", QUESTION, "--work", copy.work)
    mmrr("index", copy.docs, "--work", copy.work, *INDEX)
    mmrr("retrieve", QUESTION, "--work", copy.work)
    shard = next((copy.work / "shards" / "precache").glob("*/"))
    shutil.rmtree(shard)
    assert "run the precache command again" in refused("rerank", "thesis soil", "--work", copy.work)
    mmrr("precache", "--work", copy.work, "--scorer-model", copy.model, *FP32)
    mmrr("rerank", "thesis soil", "--work", copy.work)


def test_a_full_disk_is_noticed_before_the_work(copy: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(copy.work)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    before = shards(copy.work, "precache")
    command = ("precache", "--work", copy.work, "--scorer-model", copy.model, *FP32, "--band", "0:6")
    result = mmrr(*command, code=1)
    assert "5 pages, 5 to read" in result.stderr
    assert "1.0 kB free" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: the caches need ")
    assert shards(copy.work, "precache") == before
    monkeypatch.undo()
    mmrr(*command)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "mmrr-test", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_stops_with_one_line_and_the_command_goes_on_from_there(
    small_disk: Path, tmp_path: Path
) -> None:
    docs = write_documents(tmp_path / "docs", **{f"doc{i}": [f"page {i} {n}" for n in range(3)] for i in range(4)})
    filler = small_disk / "w" / "filler"
    command = ("index", docs, "--work", small_disk / "w", "--max-tokens", "256", "--workers", "1")
    mmrr("index", docs / "doc0.pdf", "--work", small_disk / "w", "--max-tokens", "256", "--workers", "1")
    whole = files(small_disk / "w")
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 1024)
    result = mmrr(*command, code=1)
    assert result.stderr.splitlines()[-1].startswith("error: the disk is full")
    assert "Traceback" not in result.stderr
    assert {name: kept for name, kept in files(small_disk / "w").items() if name in whole} == whole
    filler.unlink()
    assert "12 pages of 4 documents (4 ok)" in mmrr(*command).stderr
    assert {name: kept for name, kept in files(small_disk / "w").items() if name in whole} == whole


def test_an_error_of_the_disk_while_writing_is_one_line(copy: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no small disk can be mounted: the same end, from the place where files are written."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mmrr.workspace.store.Workspace.commit_shard", full)
    message = refused("precache", "--work", copy.work, "--scorer-model", copy.model, *FP32, "--band", "0:3")
    assert "the disk is full" in message


# Models


def test_models_that_are_not_there_or_not_fit(copy: Made, tmp_path: Path) -> None:
    precache = ("precache", "--work", copy.work)
    assert "--scorer-model" in refused(*precache)
    assert "no folder 'nothing here'" in refused(*precache, "--scorer-model", "nothing here")
    assert "HF_HUB_OFFLINE" in refused(*precache, "--scorer-model", "mmrr-tests/not-there")
    assert "no config.json" in refused(*precache, "--scorer-model", copy.docs)
    assert "revision" in refused(*precache, "--scorer-model", copy.model, "--scorer-revision", "main")
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    (other / "model.safetensors").touch()
    message = refused(*precache, "--scorer-model", other)
    assert "is a 'bert' model" in message
    assert "qwen3_vl" in message
    assert "is a 'bert' model" in refused("index", copy.docs, "--work", copy.work, "--embedder", other, *INDEX)
    assert "no scorer family 'bert'" in refused(*precache, "--scorer-model", copy.model, "--scorer", "bert")
    assert "--embedder" in refused("index", copy.docs, "--work", copy.work, "--first-stage", "dense")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("harm", ["gone", "cut", "nonsense"])
def test_a_damaged_checkpoint_is_named(copy: Made, tmp_path: Path, name: str, harm: str) -> None:
    model = shutil.copytree(copy.model, tmp_path / "model")
    path = model / name
    data = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else b"nonsense")
    message = refused("precache", "--work", copy.work, "--scorer-model", model, *FP32)
    assert str(model) in message


# Options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--keep", "0"], "keep 0"),
        (["--keep", "1.5"], "keep 1.5"),
        (["--keep", "nan"], "keep nan"),
        (["--keep", "-0.5"], "keep -0.5"),
        (["--band", "nonsense"], "band 'nonsense'"),
        (["--band", "3:2"], "band 3:2"),
        (["--band", "0:7"], "band 0:7 does not fit a model of 6 layers"),
        (["--band", "-1:3"], "band"),
        (["-o", "unknown=1"], "unknown option unknown; valid options: band, codec, instruction, max_tokens"),
        (["-o", "nonsense"], "option 'nonsense': expected KEY=VALUE"),
        (["-o", "max_tokens=many"], "max_tokens=many"),
        (["-o", "max_tokens=-3"], "max_tokens"),
        (["--device", "quantum"], "device 'quantum'"),
        (["--device", "cuda:99"], "device 'cuda:99'"),
        (["--dtype", "float8"], "dtype 'float8'"),
        (["--from", "nonsense"], "--from"),
        (["--from", "index/nonsense"], "nonsense"),
        (["--from", "index/0123456789ab"], "no index/0123456789ab"),
        (["--from", "indxe/0123456789ab"], "indxe"),
        (["--from", "rerank/0123456789ab"], "rerank/0123456789ab"),
    ],
)
def test_options_of_precache(made: Made, options: list[str], says: str) -> None:
    before = files(made.work)
    assert says in refused("precache", "--work", made.work, "--scorer-model", made.model, *options)
    assert files(made.work) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--candidates", "0"], "--candidates 0"),
        (["--candidates", "-1"], "--candidates -1"),
        (["--exit-layer", "99"], "exit layer 99"),
        (["--exit-layer", "1"], "exit layer 1"),
        (["--exit-layer", "-1"], "exit layer -1"),
        (["-s", "unknown=1"], "unknown option unknown; valid options: exit_layer"),
        (["--dense", "--exit-layer", "4"], "--dense"),
        (["--dense", "--prompt", "sideways"], "--prompt sideways"),
        (["--prompt", "query-first"], "--dense"),
        (["--blend", "-1"], "--fuse -1.0: expected 0 or more"),
        (["--blend", "inf"], "--fuse inf"),
        (["--first-stage", "sparse"], "--first-stage sparse"),
        (["--first-stage", "hybrid"], "mmrr index with --embedder"),
        (["--scope", "page"], "--scope page"),
        (["--device", "quantum"], "device 'quantum'"),
        (["--from", "precache/0123456789ab"], "no precache/0123456789ab"),
        (["--search-option", "unknown=1"], "unknown"),
        (["--document", "thesis.pdf"], "--scope document"),
    ],
)
def test_options_of_rerank(made: Made, options: list[str], says: str) -> None:
    assert says in refused("rerank", f"thesis {options}", "--work", made.work, *options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--dpi", "0"], "0 dpi"),
        (["--dpi", "-10"], "-10 dpi"),
        (["--max-tokens", "0"], "0 tokens"),
        (["--renderer", "crayon"], "renderer 'crayon'"),
        (["--first-stage", "sparse"], "--first-stage sparse"),
        (["--workers", "-2"], "--workers -2"),
        (["--embed-option", "nonsense"], "expected KEY=VALUE"),
        (["--embedder", "nothing here"], "nothing here"),
    ],
)
def test_options_of_index(made: Made, tmp_path: Path, options: list[str], says: str) -> None:
    assert says in refused("index", made.docs, "--work", tmp_path / "w", *INDEX, *options)


def test_options_of_the_embedder(made: Made, tmp_path: Path, tiny_embedder_path: Path) -> None:
    command = ("index", made.docs, "--work", tmp_path / "w", *INDEX, "--embedder", tiny_embedder_path)
    assert "dim 999" in refused(*command, "--dim", "999")
    assert "dim -1" in refused(*command, "--dim", "-1")
    assert "unknown option colour" in refused(*command, "--embed-option", "colour=red")
    assert "FAISS cannot build 'Nonsense'" in refused(*command, "--faiss-factory", "Nonsense")
    assert "FAISS cannot build 'IVF64,Flat' over 5 vectors" in refused(*command, "--faiss-factory", "IVF64,Flat")


def test_usage_errors_are_exit_code_2(made: Made) -> None:
    for command in (
        ["rerank", QUESTION, "--nonsense"],
        ["rerank", QUESTION, "--top-k", "few", "--work", made.work],
        ["rerank", QUESTION, "--top-k", "0", "--work", made.work],
        ["precache", "--keep", "half", "--work", made.work],
        ["index"],
        ["run", made.docs],
        ["nonsense"],
    ):
        result = mmrr(*command, code=2)
        assert "Traceback" not in result.stderr


def test_outputs_that_cannot_be_written(made: Made, tmp_path: Path) -> None:
    before = files(made.work)
    (tmp_path / "file").write_text("keep")
    for path in (tmp_path / "no" / "folder" / "run.trec", tmp_path, tmp_path / "file" / "run.trec"):
        for command in ("rerank", "retrieve"):
            message = refused(command, "another thesis question", "--work", made.work, "--output", path)
            assert f"--output {path}" in message
    assert files(made.work) == before  # said before the work, not after it


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_without_permission(made: Made, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "--output" in refused("rerank", QUESTION, "--work", made.work, "--output", locked / "run.trec")
    assert "Permission denied" in refused("index", made.docs, "--work", locked / "w")


def test_rm_of_what_is_not_there(made: Made) -> None:
    before = files(made.work)
    for name in ("index/0123456789ab", "nonsense", "precache", "../docs", "index/../pages"):
        assert f"no artifact '{name}'" in refused("rm", name, "--work", made.work)
    assert files(made.work) == before


def test_manifest_of_what_the_tests_used_is_whole(made: Made) -> None:
    """The shared workspace is as it was made: every test above that should change nothing did not."""
    (cached,) = (made.work / "precache").glob("*/")
    assert manifest(cached)["content"]["pages"] == 5
