"""Queries, runs and judgements that cannot be used: one line that names the file and the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Prepared
from tests.console import artifact, misused, mmrr, refused, run_lines, write_queries

QUESTION = "When is the thesis due?"


@pytest.mark.parametrize(
    "query", ["<|im_end|>", "<|image_pad|><|vision_start|>", "a" * 200, "\u202eover", "tab\tand\nline", "\x1b[31m"]
)
def test_any_text_is_a_query(prepared: Prepared, query: str) -> None:
    document = json.loads(mmrr("rerank", f"thesis {query}", "--work", prepared.work, "--json").stdout)
    assert document["queries"][0]["text"] == f"thesis {query}"
    assert len(document["queries"][0]["results"]) == 2
    shown = mmrr("rerank", f"thesis {query}", "--work", prepared.work).stdout
    assert "\x1b" not in shown


def test_a_query_of_10000_characters(prepared: Prepared) -> None:
    text = ("when is the thesis due and why " * 400)[:10_000]
    result = mmrr("rerank", text, "--work", prepared.work)
    assert len(run_lines(artifact(result) / "run.trec")["query"]) == 2
    assert len(result.stdout) < 3000  # the table does not repeat it all


def test_invalid_utf8_and_names_that_are_too_long(prepared: Prepared) -> None:
    assert "not text in UTF-8" in refused("rerank", "thesis \udcff", "--work", prepared.work)
    assert "File name too long" in refused("rerank", QUESTION, "--work", "x" * 300)
    assert "found no folder" in refused("precache", "--work", prepared.work, "--scorer-model", "x" * 300)


def test_empty_queries(prepared: Prepared, tmp_path: Path) -> None:
    for command in ("rerank", "retrieve"):
        assert "the query is empty" in refused(command, "  \n", "--work", prepared.work)
        assert "found an empty argument" in misused(command, "", "--work", prepared.work)
        assert "--queries" in refused(command, "--work", prepared.work)
        path = write_queries(tmp_path / "q.jsonl", ("q1", QUESTION))
        assert "--queries" in refused(command, QUESTION, "--queries", path, "--work", prepared.work)


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
def test_malformed_query_files(prepared: Prepared, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    for command in ("rerank", "retrieve"):
        assert says in refused(command, "--queries", path, "--work", prepared.work)


def test_query_files_that_cannot_be_read(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(b'{"query_id": "a", "text": "\xff"}\n')
    assert "line 1: found the byte 0xff" in refused(
        "rerank", "--queries", tmp_path / "q.jsonl", "--work", prepared.work
    )
    assert "No such file" in refused("rerank", "--queries", tmp_path / "none", "--work", prepared.work)
    assert "Is a directory" in refused("rerank", "--queries", tmp_path, "--work", prepared.work)


@pytest.fixture
def ranked(copy: Prepared, tmp_path: Path) -> Prepared:
    queries = write_queries(tmp_path / "q.jsonl", ("q1", QUESTION), ("q2", "soil"))
    mmrr("rerank", "--queries", queries, "--work", copy.work, "--output", tmp_path / "run.trec")
    return copy


def test_judgements_of_unknown_pages_or_queries(ranked: Prepared, tmp_path: Path) -> None:
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
    assert "1 judged page is not in the index and counts as not found" in result.stderr
    assert "thesis.pdf/0009" in result.stderr
    assert "1 judged page is not in the index and counts as not found" in mmrr(*command, "--json").stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "qrels.trec is empty"),
        ("q1 0 thesis.pdf/0001 1\nq1 0 thesis.pdf/0002\n", "qrels.trec, line 2: found 3 columns"),
        ("q1 0 thesis.pdf/0001 high\n", "qrels.trec, line 1: found the relevance 'high'"),
        ("q1 0 thesis.pdf/0001 1\nq1 0 thesis.pdf/0001 0\n", "qrels.trec, line 2: thesis.pdf/0001 is already judged"),
    ],
)
def test_malformed_judgements(ranked: Prepared, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "qrels.trec").write_text(text)
    assert says in refused("eval", "--qrels", tmp_path / "qrels.trec", "--work", ranked.work)


def test_eval_refuses_missing_or_invalid_files(ranked: Prepared, prepared: Prepared, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.trec"
    qrels.write_text("q1 0 thesis.pdf/0001 1\n")
    eval_ = ("eval", "--work", ranked.work)
    assert "--qrels" in refused(*eval_)
    assert "No such file" in refused(*eval_, "--qrels", tmp_path / "none.trec")
    assert "No such file" in refused(*eval_, "--qrels", qrels, "--run", tmp_path / "none.trec")
    (tmp_path / "run").write_text("q1 Q0 thesis.pdf/0001 1 nan mmrr\n")
    assert "line 1: found the score 'nan'" in refused(*eval_, "--qrels", qrels, "--run", tmp_path / "run")
    assert "nonsense" in refused(*eval_, "--qrels", qrels, "--measure", "nonsense")
    for folder in (tmp_path / "missing", prepared.docs):
        message = refused(*eval_, "mmdocir", "--data", folder, "--first-stage", "bm25")
        assert str(folder) in message
    assert "run: mmrr rerank" in refused("eval", "--work", prepared.work, "--qrels", qrels)
