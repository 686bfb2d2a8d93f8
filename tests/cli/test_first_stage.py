"""``mmrr retrieve``: dense, text and hybrid search, and what the reranker gets from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmrr import context
from mmrr.evaluation.trec import read_run
from mmrr.search.fusion import fuse
from mmrr.types import rank
from tests.cli.chain import QUESTION, Chain
from tests.console import (
    FP32,
    INDEX,
    artifact,
    manifest,
    mmrr,
    refused,
    run_lines,
    shards,
)
from tests.tiny import late


def test_without_an_embedder_the_chain_runs_on_text(made: Chain, tmp_path: Path) -> None:
    work = tmp_path / "w"
    mmrr("index", made.docs, "--work", work, "--first-stage", "bm25", "--embedder", made.embedder, *INDEX)
    assert not shards(work, "embed")
    cached = artifact(mmrr("precache", "--work", work, "--scorer-model", made.reranker, *FP32))
    assert manifest(cached)["content"]["keep"] == 1.0
    assert not shards(work, "prune")
    document = json.loads(mmrr("rerank", QUESTION, "--work", work, "--json").stdout)
    # Only pages that share a word with the question.
    assert {row["page_id"] for row in document["queries"][0]["results"]} == {"thesis.pdf/0001", "thesis.pdf/0002"}
    assert "mmrr index with --embedder" in refused("prune", "--work", work)
    assert "mmrr index with --embedder" in refused("rerank", QUESTION, "--work", work, "--first-stage", "dense")
    cold = mmrr("rerank", "xylophone", "--work", work)
    assert "no page shares a word" in cold.stderr


def retrieved(made: Chain, *args: object) -> dict[str, list[tuple[str, float]]]:
    return run_lines(artifact(mmrr("retrieve", "--queries", made.queries, "--work", made.work, *args)) / "run.trec")


def test_hybrid_is_the_score_fusion_of_dense_and_text(chain: Chain) -> None:
    dense, text = (retrieved(chain, "--first-stage", name) for name in ("dense", "bm25"))
    hybrid = retrieved(chain)
    assert retrieved(chain, "--first-stage", "hybrid") == hybrid
    first, second = ({query_id: rank(dict(hits)) for query_id, hits in run.items()} for run in (dense, text))
    for query_id, hits in first.items():  # a page without a word of the query has the score 0 by words
        second[query_id] = rank({hit.page_id: 0.0 for hit in hits} | dict(second[query_id]))
    expected = fuse(first, second, weight=1.0)
    for query_id, hits in hybrid.items():
        assert [page_id for page_id, _ in hits] == [hit.page_id for hit in expected[query_id]]
        assert dict(hits) == pytest.approx(dict(expected[query_id]))
        assert len(dense[query_id]) == 5 > len(text[query_id]) > 0
    few = retrieved(chain, "--candidates", 2)
    assert few == {
        query_id: hits[:2] for query_id, hits in hybrid.items()
    }  # fusion does not depend on the number of candidates
    assert text["q1"][0][0] == "thesis.pdf/0001"


def test_a_query_file_names_documents_as_their_files_are_called(chain: Chain, tmp_path: Path) -> None:
    (chain.docs / "soil.pdf").rename(chain.docs / "the soil.pdf")
    mmrr("index", chain.docs, "--work", chain.work, *INDEX, "--first-stage", "words")
    queries = tmp_path / "queries.jsonl"
    lines = [{"query_id": f"q{i}", "text": "soil", "doc_id": name} for i, name in enumerate(("the soil.pdf", "thesis"))]
    queries.write_text("".join(json.dumps(line) + "\n" for line in lines))
    search = ("retrieve", "--work", chain.work, "--queries", queries, "--scope", "document", "--json")
    found = json.loads(mmrr(*search).stdout)["queries"]
    assert [{row["doc_id"] for row in one["results"]} for one in found] == [{"the_soil.pdf"}, {"thesis.pdf"}]
    lines[0]["doc_id"] = "the soul"
    queries.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "query q0: no document 'the soul'" in refused(*search[:-1])


def test_a_document_can_be_searched_alone(chain: Chain) -> None:
    for name in ("dense", "bm25", "hybrid"):
        run = retrieved(chain, "--scope", "document", "--first-stage", name)
        for query_id, document in (("q1", "thesis.pdf"), ("q2", "soil.pdf")):
            assert {page_id.split("/")[0] for page_id, _ in run[query_id]} == {document}, name
    # A dense score does not depend on the scope.
    alone, all_pages = (
        dict(retrieved(chain, "--first-stage", "dense", "--scope", scope)["q1"]) for scope in ("document", "corpus")
    )
    assert alone == pytest.approx({page_id: all_pages[page_id] for page_id in alone}, abs=1e-6)
    result = mmrr("rerank", QUESTION, "--work", chain.work, "--scope", "document", "--document", "soil.pdf", "--json")
    results = json.loads(result.stdout)["queries"][0]["results"]
    assert {row["doc_id"] for row in results} == {"soil.pdf"}
    assert len(results) == 3
    assert "needs its doc_id" in refused("rerank", QUESTION, "--work", chain.work, "--scope", "document")
    missing = ("--scope", "document", "--document", "none.pdf")
    assert "error: no document 'none.pdf' in the collection" in refused(
        "rerank", QUESTION, "--work", chain.work, *missing
    )


@pytest.mark.slow
def test_a_vector_for_each_token_finds_pages(chain: Chain, tmp_path: Path) -> None:
    """The index of the collection gives the same scores as exact products in a document; the caches use its pruning."""
    work = tmp_path / "late"
    model = late(Path(chain.embedder), tmp_path / "model")
    mmrr("index", chain.docs, "--work", work, "--embedder", model, *INDEX, *FP32)
    queries = ("--queries", chain.queries, "--first-stage", "dense", "--work", work)
    alone, everywhere = (
        dict(run_lines(artifact(mmrr("retrieve", *queries, "--scope", scope)) / "run.trec")["q1"])
        for scope in ("document", "corpus")
    )
    assert len(everywhere) == 5
    assert alone == pytest.approx({page_id: everywhere[page_id] for page_id in alone}, abs=1e-5)
    single = dict(retrieved(chain, "--first-stage", "dense")["q1"])
    assert any(abs(everywhere[page_id] - score) > 1e-4 for page_id, score in single.items())
    mmrr("index", chain.docs, "--work", work, "--embedder", model, "--faiss-factory", "SQfp16", *INDEX, *FP32)
    approximate = dict(run_lines(artifact(mmrr("retrieve", *queries)) / "run.trec")["q1"])
    assert approximate == pytest.approx(everywhere, abs=1e-5)  # the index is approximate, the scores are exact
    mmrr("precache", "--work", work, "--scorer-model", chain.reranker, *FP32)  # pruned by its attention
    reranked = run_lines(artifact(mmrr("rerank", *queries)) / "run.trec")["q1"]
    assert {hit[0] for hit in reranked} == set(everywhere)
    assert "largest difference" in mmrr("verify", "--work", work, "--rescore", 3).stdout


@pytest.mark.slow
def test_soft_idf_weighs_words(chain: Chain, tmp_path: Path) -> None:
    """Soft IDF is used if the checkpoint has a temperature and rarity is not false, in a document too."""
    plain = late(Path(chain.embedder), tmp_path / "plain", words=True)
    model = tmp_path / "model"
    shutil.copytree(plain, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"word_temperature": 0.1}))
    command = ("--queries", chain.queries, "--first-stage", "dense", "--work")

    def found(work: str, *args: object) -> dict[str, float]:
        return dict(run_lines(artifact(mmrr("retrieve", *command, tmp_path / work, *args)) / "run.trec")["q1"])

    for work, checkpoint in (("without", plain), ("with", model)):
        mmrr("index", chain.docs, "--work", tmp_path / work, "--embedder", checkpoint, *INDEX, *FP32)
    for scope in (("--scope", "corpus"), ("--scope", "document")):
        without = found("without", *scope)
        assert found("with", *scope, "--search-option", "soft_idf=false") == pytest.approx(without, abs=1e-6)
        weighed = found("with", *scope)
        assert set(weighed) == set(without)
        assert weighed != pytest.approx(without, abs=1e-2)
        assert (
            found("without", *scope, "--search-option", "soft_idf=true") == without
        )  # without a temperature there is no soft IDF


def test_vectors_of_an_earlier_version_are_refused(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(context._VECTORS_SINCE, "index", 5)
    said = refused("retrieve", "--queries", chain.queries, "--work", chain.work)
    assert "was built by an earlier mmrr, with an older vector format; run: mmrr index" in said


def test_candidates_bound_what_is_reranked(chain: Chain) -> None:
    first = retrieved(chain, "--candidates", 2)
    reranked = run_lines(chain.rerank("--candidates", 2) / "run.trec")
    for query_id, hits in first.items():
        assert len(hits) == 2
        assert {hit[0] for hit in reranked[query_id]} == {hit[0] for hit in hits}


def test_score_fusion_with_the_first_stage(chain: Chain) -> None:
    """The result is the score fusion of the two runs; no page is scored again."""
    alone = chain.rerank()
    before = shards(chain.work, "rerank")
    made = chain.rerank("--blend", 1.5)
    assert made.name != alone.name
    assert shards(chain.work, "rerank") == before
    first = read_run(artifact(mmrr("retrieve", "--queries", chain.queries, "--work", chain.work)) / "run.trec")
    expected = fuse(first, read_run(alone / "run.trec"), 1.5)
    assert read_run(made / "run.trec") == expected
    said = json.loads(mmrr("rerank", QUESTION, "--work", chain.work, "--blend", 1.5, "--json").stdout)
    assert all("logit" not in row for row in said["queries"][0]["results"])
