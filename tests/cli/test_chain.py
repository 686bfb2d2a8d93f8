"""The commands one after the other, on tiny random checkpoints: what they print, write, reuse and refuse."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrr import context
from mmrr.evaluation.trec import read_run
from mmrr.search.fusion import blend
from mmrr.stages import rerank
from mmrr.stages.rerank import _ahead, _portions, _together
from mmrr.types import PageCache, Query, rank
from mmrr.workspace.tensors import PageCacheReader
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
from tests.tiny import late

LAYERS = 6  # of the tiny reranker
QUESTION = "When is the thesis due?"


@dataclass(frozen=True)
class Chain:
    """A workspace on which index, precache, rerank and eval have run."""

    root: Path
    embedder: Path
    reranker: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def docs(self) -> Path:
        return self.root / "docs"

    @property
    def queries(self) -> Path:
        return self.root / "queries.jsonl"

    @property
    def qrels(self) -> Path:
        return self.root / "qrels.trec"

    def index(self, *args: object) -> Path:
        options = ("--embedder", self.embedder, *INDEX, *FP32)
        return artifact(mmrr("index", self.docs, "--work", self.work, *options, *args))

    def precache(self, *args: object) -> Path:
        return artifact(mmrr("precache", "--work", self.work, "--scorer-model", self.reranker, *FP32, *args))

    def rerank(self, *args: object) -> Path:
        return artifact(mmrr("rerank", "--queries", self.queries, "--work", self.work, *args))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path, tiny_embedder_path: Path) -> Chain:
    """Made once, never changed: a test that changes it takes ``chain``."""
    chain = Chain(tmp_path_factory.mktemp("chain"), tiny_embedder_path, tiny_path)
    write_documents(chain.docs, thesis=THESIS, soil=SOIL)
    write_queries(
        chain.queries,
        ("q1", QUESTION, "thesis.pdf"),
        ("q2", "rainfall by month in spring", "soil.pdf"),
        ("q3", "sensors of soil moisture", "soil.pdf"),
    )
    chain.qrels.write_text("q1 0 thesis.pdf/0001 1\nq2 0 soil.pdf/0002 1\nq2 0 soil.pdf/0001 1\nq3 0 soil.pdf/0003 1\n")
    chain.index()
    chain.precache()
    chain.rerank("--output", chain.root / "run.trec")
    mmrr("eval", "--work", chain.work, "--qrels", chain.qrels)
    return chain


@pytest.fixture
def chain(made: Chain, tmp_path: Path) -> Chain:
    """A copy to change."""
    shutil.copytree(made.root, tmp_path / "copy")
    return Chain(tmp_path / "copy", made.embedder, made.reranker)


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model is loaded."""

    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded for work that was done before")

    monkeypatch.setattr("mmrr.embedders.qwen3_vl.Embedder.__init__", loaded)
    monkeypatch.setattr("mmrr.scorers.minireranker.Scorer.__init__", loaded)


# What each command prints and writes


def test_index_reports_documents_and_prints_its_artifact(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    result = mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    assert artifact(result).parent == tmp_path / "w" / "index"
    assert result.stdout.count("\n") == 1
    assert "5 pages of 2 documents (2 ok)" in result.stderr
    assert "BM25" in result.stderr  # said, not silently chosen


def test_precache_says_what_it_will_write_before_it_does(chain: Chain) -> None:
    result = mmrr("precache", "--work", chain.work, "--scorer-model", chain.reranker, *FP32, "--keep", "0.25")
    (plan,) = [line for line in result.stderr.splitlines() if "a page" in line]
    assert plan.startswith("5 pages, 5 to read; ")
    assert plan.endswith(" free")
    assert artifact(result).parent == chain.work / "precache"
    assert manifest(artifact(result))["content"]["keep"] == 0.25


def test_a_query_on_the_command_line_gives_a_table_and_the_artifact(made: Chain) -> None:
    result = mmrr("rerank", QUESTION, "--work", made.work, "--top-k", 2)
    *table, last = result.stdout.splitlines()
    assert Path(last).parent == made.work / "rerank"
    assert table[0].strip() == QUESTION
    header = [cell.strip() for cell in table[2].strip("┃").split("┃")]
    assert header == ["rank", "document", "page", "score", "logit", "first stage"]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table if line.startswith("│")]
    assert [row[0] for row in rows] == ["1", "2"]
    run = run_lines(Path(last) / "run.trec")["query"]
    for row, (page_id, logit) in zip(rows, run, strict=False):
        doc_id, number = page_id.split("/")
        assert row[1:3] == [doc_id, str(int(number))]
        assert float(row[3]) == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-4)
        assert float(row[4]) == pytest.approx(logit, abs=1e-3)


def test_a_file_of_queries_gives_a_trec_run(made: Chain) -> None:
    result = mmrr("rerank", "--queries", made.queries, "--work", made.work)
    assert result.stdout == f"{artifact(result)}\n"  # the tables are for people: stderr
    assert QUESTION in result.stderr
    written = (made.root / "run.trec").read_bytes()
    assert written == (artifact(result) / "run.trec").read_bytes()
    run = run_lines(made.root / "run.trec")
    assert list(run) == ["q1", "q2", "q3"]
    for hits in run.values():
        assert hits == sorted(hits, key=lambda hit: (-hit[1], hit[0]))
        assert len(hits) == 5


def test_json_is_one_document(made: Chain, tmp_path: Path) -> None:
    work = ("--work", made.work)
    for command in (
        ["rerank", QUESTION, *work],
        ["rerank", "--queries", made.queries, *work],
        ["retrieve", QUESTION, *work],
        ["eval", "--qrels", made.qrels, *work],
        ["ls", *work],
        ["ls", "--documents", *work],
        ["models"],
        ["doctor", *work],
    ):
        document = json.loads(mmrr(*command, "--json").stdout)
        assert isinstance(document, dict), command
        if "artifact" in document:
            assert Path(document["artifact"]).is_dir(), command


def test_json_of_a_ranking(made: Chain) -> None:
    document = json.loads(mmrr("rerank", "--queries", made.queries, "--work", made.work, "--json").stdout)
    run = run_lines(Path(document["artifact"]) / "run.trec")
    assert [answer["query_id"] for answer in document["queries"]] == ["q1", "q2", "q3"]
    for answer in document["queries"]:
        hits = [(row["page_id"], row["logit"]) for row in answer["results"]]
        assert hits == run[answer["query_id"]]
        assert sorted(row["first_stage_rank"] for row in answer["results"]) == [1, 2, 3, 4, 5]
        assert all(0 < row["score"] < 1 for row in answer["results"])


def test_ls_shows_how_everything_was_made(made: Chain) -> None:
    listed = json.loads(mmrr("ls", "--work", made.work, "--json").stdout)["artifacts"]
    stages = [row["name"].split("/")[0] for row in listed]
    assert set(stages) == {"pages", "embed", "index", "retrieve", "prune", "precache", "rerank", "eval"}
    for row in listed:
        assert (made.work / row["name"] / "manifest.json").exists()
        assert row["bytes"] > 0
    by_stage = {row["name"].split("/")[0]: row for row in listed if row["head"]}
    assert "keep 0.5" in by_stage["prune"]["how"]
    assert "float32" in by_stage["precache"]["how"]
    assert by_stage["index"]["made_of"][0] == by_stage["pages"]["name"]
    table = mmrr("ls", "--work", made.work).stdout
    assert all(row["name"] in table for row in listed)


def test_models_and_doctor() -> None:
    families = json.loads(mmrr("models", "--json").stdout)["families"]
    assert {(row["kind"], row["family"]) for row in families} >= {
        ("embedder", "qwen3_vl"),
        ("scorer", "minireranker"),
    }
    assert "band" in mmrr("models").stdout
    facts = json.loads(mmrr("doctor", "--json").stdout)
    assert "offline" in facts["Hub"]
    assert {"device", "renderer", "free disk", "number format"} <= set(facts)


# Evaluation


def by_hand(run: dict[str, list[tuple[str, float]]], relevant: dict[str, set[str]]) -> dict[str, float]:
    """The measures from their definitions, for binary judgements."""
    values: dict[str, list[float]] = {}
    for query_id, good in relevant.items():
        gains = [float(page_id in good) for page_id, _ in run.get(query_id, [])]
        for k in (5, 10):
            best = sum(1 / math.log2(i + 2) for i in range(min(k, len(good))))
            dcg = sum(gain / math.log2(i + 2) for i, gain in enumerate(gains[:k]))
            values.setdefault(f"nDCG@{k}", []).append(dcg / best)
        for k in (1, 3, 5):
            values.setdefault(f"R@{k}", []).append(sum(gains[:k]) / len(good))
        values.setdefault("RR", []).append(1 / (gains.index(1) + 1) if 1 in gains else 0.0)
    return {name: sum(row) / len(row) for name, row in values.items()}


def test_eval_numbers_follow_from_the_run_files(made: Chain, tmp_path: Path) -> None:
    inputs = manifest(artifact(mmrr("eval", "--work", made.work, "--qrels", made.qrels)))["inputs"]
    runs = [run_lines(made.work / stage / inputs[stage] / "run.trec") for stage in ("retrieve", "rerank")]
    # Judged so that the two differ: right is what the first stage has first, and one page more.
    relevant = {query_id: {hits[0][0], hits[2][0]} for query_id, hits in runs[0].items()}
    qrels = tmp_path / "qrels.trec"
    judged = [f"{query_id} 0 {page_id} 1\n" for query_id, pages in relevant.items() for page_id in sorted(pages)]
    qrels.write_text("".join(judged))
    document = json.loads(mmrr("eval", "--work", made.work, "--qrels", qrels, "--json").stdout)
    metrics = document["metrics"]
    first, reranked = (by_hand(run, relevant) for run in runs)
    assert first != reranked
    for name, value in reranked.items():
        assert metrics["first_stage"][name] == pytest.approx(first[name]), name
        assert metrics["reranked"][name] == pytest.approx(value), name
        assert metrics["difference"][name] == pytest.approx(value - first[name]), name
    alone = json.loads(mmrr("eval", "--work", made.work, "--qrels", qrels, "--no-rerank", "--json").stdout)
    assert alone["metrics"] == {"first_stage": metrics["first_stage"]}
    other = json.loads(
        mmrr("eval", "--work", made.work, "--qrels", qrels, "--run", made.root / "run.trec", "--json").stdout
    )
    assert other["metrics"] == {"run": metrics["reranked"]}
    ask = ("eval", "--work", made.work, "--qrels", qrels, "--baseline", made.root / "run.trec")
    same = json.loads(mmrr(*ask, "--run", made.root / "run.trec", "--json").stdout)["metrics"]
    assert same["baseline"] == same["run"] == metrics["reranked"]
    for name, value in same["run"].items():
        assert same["interval"][name] == [0.0, 0.0]
        assert same["kept"][name] == (1.0 if value else None)
    assert "--baseline goes with --run" in refused(*ask)


def test_a_judged_query_that_was_not_asked_counts_as_nothing(made: Chain, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.trec"
    qrels.write_text("q1 0 thesis.pdf/0001 1\nnever-asked 0 soil.pdf/0001 1\n")
    document = json.loads(mmrr("eval", "--work", made.work, "--qrels", qrels, "--json").stdout)
    assert document["queries"] == 2
    assert document["metrics"]["reranked"]["R@5"] == 0.5


def test_a_query_on_the_command_line_is_not_what_eval_follows(chain: Chain) -> None:
    command = ("eval", "--work", chain.work, "--qrels", chain.qrels)
    before = artifact(mmrr(*command))
    mmrr("rerank", "another question about a cover", "--work", chain.work)
    mmrr("retrieve", "yet another question", "--work", chain.work)
    assert artifact(mmrr(*command)) == before


# Doing the work once


def test_every_command_twice_does_the_work_once(chain: Chain, no_models: None) -> None:
    mmrr("ls", "--work", chain.work)
    before = files(chain.work)
    chain.index()
    chain.precache()
    chain.rerank()
    mmrr("rerank", "--queries", chain.queries, "--work", chain.work, "--json")
    mmrr("retrieve", "--queries", chain.queries, "--work", chain.work)
    mmrr("prune", "--work", chain.work)
    mmrr("render", chain.docs, "--work", chain.work, *INDEX)
    mmrr("eval", "--work", chain.work, "--qrels", chain.qrels)
    assert files(chain.work) == before


def test_a_question_asked_in_a_file_is_not_scored_again_on_the_command_line(chain: Chain, no_models: None) -> None:
    before = shards(chain.work, "rerank")
    path = artifact(mmrr("rerank", QUESTION, "--work", chain.work))
    assert shards(chain.work, "rerank") == before
    assert run_lines(path / "run.trec")["query"] == run_lines(chain.root / "run.trec")["q1"]


def test_adding_a_document_works_on_that_document(chain: Chain) -> None:
    stages = ("pages", "embed", "prune", "precache")
    before, counts = files(chain.work), {stage: len(shards(chain.work, stage)) for stage in stages}
    write_documents(chain.docs, new=["A new report on tides"])
    chain.index()
    result = mmrr("precache", "--work", chain.work, "--scorer-model", chain.reranker, *FP32)
    assert "6 pages, 1 to read" in result.stderr
    after = files(chain.work)
    assert {name: after[name] for name in before} == before
    assert {stage: len(shards(chain.work, stage)) - counts[stage] for stage in stages} == dict.fromkeys(stages, 1)
    assert {hit[0] for hit in run_lines(chain.rerank() / "run.trec")["q1"]} >= {"new.pdf/0001", "thesis.pdf/0001"}


def test_removing_a_document_computes_nothing(chain: Chain, no_models: None) -> None:
    before = files(chain.work)
    (chain.docs / "soil.pdf").unlink()
    chain.index()
    path = chain.precache()
    after = files(chain.work)
    assert {name: after[name] for name in before} == before
    assert not {name for name in set(after) - set(before) if name.startswith("shards/")}
    assert manifest(path)["content"]["pages"] == 2


def test_a_renamed_document_keeps_its_shards(chain: Chain, no_models: None) -> None:
    (chain.docs / "thesis.pdf").rename(chain.docs / "renamed.pdf")
    before = {stage: shards(chain.work, stage) for stage in ("pages", "embed", "prune", "precache")}
    chain.index()
    chain.precache()
    assert {stage: shards(chain.work, stage) for stage in before} == before
    listed = json.loads(mmrr("ls", "--documents", "--work", chain.work, "--json").stdout)["documents"]
    assert [entry["doc_id"] for entry in listed] == ["renamed.pdf", "soil.pdf"]


def test_the_order_of_arguments_changes_nothing(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    one, two = docs / "thesis.pdf", docs / "soil.pdf"
    first = artifact(mmrr("index", one, two, "--work", tmp_path / "w", *INDEX))
    assert artifact(mmrr("index", two, one, two, "--work", tmp_path / "w", *INDEX)) == first


def test_copies_of_a_document_share_shards_and_are_both_found(chain: Chain, no_models: None) -> None:
    shutil.copy(chain.docs / "thesis.pdf", chain.docs / "copy.pdf")
    before = {stage: shards(chain.work, stage) for stage in ("pages", "embed", "prune", "precache")}
    chain.index()
    result = mmrr("precache", "--work", chain.work, "--scorer-model", chain.reranker, *FP32)
    assert "7 pages, 0 to read" in result.stderr
    assert {stage: shards(chain.work, stage) for stage in before} == before


def test_copies_of_a_document_score_the_same(chain: Chain) -> None:
    shutil.copy(chain.docs / "thesis.pdf", chain.docs / "copy.pdf")
    chain.index()
    chain.precache()
    scores = dict(run_lines(chain.rerank() / "run.trec")["q1"])
    assert len(scores) == 7
    for page in ("0001", "0002"):
        assert scores[f"copy.pdf/{page}"] == scores[f"thesis.pdf/{page}"]


def test_run_is_the_same_chain(chain: Chain) -> None:
    """Every artifact of ``run`` has the name that the commands one by one gave it."""
    options = ("--embedder", chain.embedder, "--scorer-model", chain.reranker, *INDEX, *FP32)
    command = ("run", chain.docs, "--queries", chain.queries, *options)
    result = mmrr(*command, "--work", chain.root / "other", "--output", chain.root / "other.trec")
    assert artifact(result).parent == chain.root / "other" / "rerank"
    assert (chain.root / "other.trec").read_bytes() == (chain.root / "run.trec").read_bytes()
    names = {path.relative_to(chain.root / "other").as_posix() for path in (chain.root / "other").glob("*/*/")}
    for name in names - {"shards", "tmp"}:
        if not name.startswith(("shards/", "tmp/")):
            assert (chain.work / name).exists(), name
    result = mmrr(*command, "--work", chain.work, "--qrels", chain.qrels)
    assert artifact(result).parent == chain.work / "eval"
    assert "nDCG@5" in result.stdout
    mmrr(*command, "--work", chain.root / "short", "--embed-option", "dim=16")
    (embedded,) = (chain.root / "short" / "embed").glob("*/")
    assert manifest(embedded)["config"]["options"]["dim"] == 16


# The first stage


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


def test_hybrid_is_dense_and_text_blended(chain: Chain) -> None:
    dense, text = (retrieved(chain, "--first-stage", name) for name in ("dense", "bm25"))
    hybrid = retrieved(chain)
    assert retrieved(chain, "--first-stage", "hybrid") == hybrid
    first, second = ({query_id: rank(dict(hits)) for query_id, hits in run.items()} for run in (dense, text))
    expected = blend(first, second, weight=1.0)
    for query_id, hits in hybrid.items():
        assert [page_id for page_id, _ in hits] == [hit.page_id for hit in expected[query_id]]
        assert dict(hits) == pytest.approx(dict(expected[query_id]))
        assert len(dense[query_id]) == 5 > len(text[query_id]) > 0
    few = retrieved(chain, "--candidates", 2)
    assert few == {query_id: hits[:2] for query_id, hits in hybrid.items()}  # however few are asked for
    assert text["q1"][0][0] == "thesis.pdf/0001"


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
    assert "none.pdf is not in the index" in refused("rerank", QUESTION, "--work", chain.work, *missing)


def test_a_vector_for_each_token_finds_pages(chain: Chain, tmp_path: Path) -> None:
    """By the index of the collection as by exact products in a document; what it keeps is cached and reranked."""
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
    assert approximate == pytest.approx(everywhere, abs=1e-5)  # found by float16, scored by what is stored
    mmrr("precache", "--work", work, "--scorer-model", chain.reranker, *FP32)  # pruned by its attention
    reranked = run_lines(artifact(mmrr("rerank", *queries)) / "run.trec")["q1"]
    assert {hit[0] for hit in reranked} == set(everywhere)
    assert "largest difference" in mmrr("verify", "--work", work, "--rescore", 3).stdout


def test_words_count_by_how_few_pages_have_them(chain: Chain, tmp_path: Path) -> None:
    """If the checkpoint says how products become logits, and unless told otherwise; within a document, too."""
    plain = late(Path(chain.embedder), tmp_path / "plain", words=True)
    model = tmp_path / "model"
    shutil.copytree(plain, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"word_temperature": 0.1}))
    asked = ("--queries", chain.queries, "--first-stage", "dense", "--work")

    def found(work: str, *args: object) -> dict[str, float]:
        return dict(run_lines(artifact(mmrr("retrieve", *asked, tmp_path / work, *args)) / "run.trec")["q1"])

    for work, checkpoint in (("without", plain), ("with", model)):
        mmrr("index", chain.docs, "--work", tmp_path / work, "--embedder", checkpoint, *INDEX, *FP32)
    for scope in (("--scope", "corpus"), ("--scope", "document")):
        without = found("without", *scope)
        assert found("with", *scope, "--search-option", "rarity=false") == pytest.approx(without, abs=1e-6)
        weighed = found("with", *scope)
        assert set(weighed) == set(without)
        assert weighed != pytest.approx(without, abs=1e-2)
        assert found("without", *scope, "--search-option", "rarity=true") == without  # nothing known, nothing weighed


def test_vectors_of_an_earlier_version_are_refused(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(context._VECTORS_SINCE, "index", 4)
    said = refused("retrieve", "--queries", chain.queries, "--work", chain.work)
    assert "was made by an earlier mmrr, which kept vectors otherwise; run: mmrr index" in said


def test_candidates_bound_what_is_reranked(chain: Chain) -> None:
    first = retrieved(chain, "--candidates", 2)
    reranked = run_lines(chain.rerank("--candidates", 2) / "run.trec")
    for query_id, hits in first.items():
        assert len(hits) == 2
        assert {hit[0] for hit in reranked[query_id]} == {hit[0] for hit in hits}


def test_the_reranker_blended_with_the_first_stage(chain: Chain) -> None:
    """The same as blending the two runs, from the same scores: no page is scored anew."""
    alone = chain.rerank()
    before = shards(chain.work, "rerank")
    made = chain.rerank("--blend", 1.5)
    assert made.name != alone.name
    assert shards(chain.work, "rerank") == before
    first = read_run(artifact(mmrr("retrieve", "--queries", chain.queries, "--work", chain.work)) / "run.trec")
    expected = blend(first, read_run(alone / "run.trec"), 1.5)
    assert read_run(made / "run.trec") == expected
    said = json.loads(mmrr("rerank", QUESTION, "--work", chain.work, "--blend", 1.5, "--json").stdout)
    assert all("logit" not in row for row in said["queries"][0]["results"])


# Scoring


def test_the_cache_changes_no_score(chain: Chain) -> None:
    """All layers, no pruning, no early exit, fp32: the stock forward's own numbers, to 1e-4."""
    chain.precache("--keep", "1", "--band", f"0:{LAYERS}")
    cached = run_lines(chain.rerank() / "run.trec")
    dense = run_lines(chain.rerank("--dense") / "run.trec")
    for query_id, hits in dense.items():
        assert dict(cached[query_id]) == pytest.approx(dict(hits), abs=1e-4)
        assert len({round(score, 3) for _, score in hits}) > 1  # or the comparison would prove nothing
    other = run_lines(chain.rerank("--dense", "--prompt", "query-first") / "run.trec")
    assert abs(other["q1"][0][1] - dense["q1"][0][1]) > 1e-3
    narrow = run_lines(chain.root / "run.trec")
    assert abs(dict(narrow["q1"])["thesis.pdf/0001"] - dict(dense["q1"])["thesis.pdf/0001"]) > 1e-3


def test_the_exit_layer_uses_the_same_caches(chain: Chain) -> None:
    before = shards(chain.work, "precache")
    runs = [run_lines(chain.rerank("--exit-layer", layer) / "run.trec") for layer in (4, 6)]
    assert shards(chain.work, "precache") == before
    assert dict(runs[0]["q1"]) != pytest.approx(dict(runs[1]["q1"]), abs=1e-3)


def test_the_scores_of_a_page_do_not_depend_on_the_other_candidates(chain: Chain) -> None:
    few, all_ = (dict(run_lines(chain.rerank("--candidates", n) / "run.trec")["q2"]) for n in (2, 5))
    assert few == pytest.approx({page_id: all_[page_id] for page_id in few}, abs=1e-4)


# Fingerprints


def test_what_changes_a_cache_changes_its_name(chain: Chain, tiny_embedder_path: Path) -> None:
    names = {"default": chain.precache().name}
    for key, options in {
        "keep": ("--keep", "0.25"),
        "band": ("--band", "1:3"),
        "instruction": ("-o", "instruction=Find the page."),
        "tokens": ("-o", "max_tokens=16"),
        "codec": ("--codec", "int8"),
        "model": ("--scorer-model", tiny_embedder_path, "--band", "2:3"),
        "format": ("--dtype", "bfloat16"),
    }.items():
        names[key] = chain.precache(*options).name
    assert len(set(names.values())) == len(names), names
    assert chain.precache("--keep", "0.5").name == names["default"]


def test_what_changes_pages_or_vectors_changes_their_name(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("pdfinfo", "pdftoppm"):  # this poppler draws nothing; the name changes all the same
        (tmp_path / program).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    names = {"default": chain.index().name}
    for key, options in {
        "renderer": ("--renderer", "poppler"),
        "dpi": ("--dpi", "90"),
        "tokens": ("--max-tokens", "48"),
        "model": ("--embedder", chain.reranker),
        "dim": ("--dim", "16"),
        "format": ("--dtype", "bfloat16"),
        "faiss": ("--faiss-factory", "HNSW8"),
    }.items():
        names[key] = chain.index(*options).name
    assert len(set(names.values())) == len(names), names
    assert chain.index().name == names["default"]


def test_a_changed_instruction_changes_scores(chain: Chain) -> None:
    before = run_lines(chain.root / "run.trec")["q1"]
    chain.precache("-o", "instruction=Say no to every page that has no table of rainfall.")
    assert dict(run_lines(chain.rerank() / "run.trec")["q1"]) != pytest.approx(dict(before), abs=1e-3)


def test_a_checkpoint_that_changed_is_not_used_with_old_caches(chain: Chain, tmp_path: Path) -> None:
    """Same file names and sizes, other weights: only their bytes tell."""
    model = shutil.copytree(chain.reranker, tmp_path / "model")
    mmrr("precache", "--work", chain.work, "--scorer-model", model, *FP32, "--keep", "0.75")
    (weights,) = model.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    assert "has changed" in refused("rerank", "something new", "--work", chain.work)
    mmrr("precache", "--work", chain.work, "--scorer-model", model, *FP32, "--keep", "0.75")
    mmrr("rerank", "something new", "--work", chain.work)


# The head


def test_a_cache_of_other_pages_is_refused_with_the_command_to_run(chain: Chain) -> None:
    write_documents(chain.docs, new=["A new report on tides"])
    chain.index()
    assert f"run: mmrr precache --work {chain.work}" in refused("rerank", QUESTION, "--work", chain.work)
    chain.precache()
    mmrr("rerank", QUESTION, "--work", chain.work)


def test_from_chooses_an_older_artifact(chain: Chain) -> None:
    old_index, old_cache, old_run = chain.index(), chain.precache(), chain.rerank()
    write_documents(chain.docs, new=["A new report on tides"])
    chain.index()
    new_cache = chain.precache("--keep", "0.25")
    assert chain.rerank() != old_run
    older = ("--from", f"index/{old_index.name}", "--from", f"precache/{old_cache.name}")
    assert chain.rerank(*older) == old_run
    wrong = refused("rerank", QUESTION, "--work", chain.work, "--from", f"index/{old_index.name}")
    assert new_cache.name in wrong
    assert "made of other pages" in wrong


def test_pruning_is_followed_by_precache(chain: Chain) -> None:
    pruned = artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2"))
    cached = chain.precache()
    assert manifest(cached)["inputs"]["prune"] == pruned.name
    assert manifest(pruned)["content"]["kept"] < manifest(pruned)["content"]["tokens"] / 2


def test_random_pruning_keeps_as_many_and_the_same_again(chain: Chain) -> None:
    """A baseline: as many tokens, others, no two pages alike; precache follows it."""
    by_attention = artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2"))
    at_random = artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2", "--by", "random"))
    assert at_random != by_attention
    contents = [manifest(path)["content"] for path in (by_attention, at_random)]
    assert contents[0]["kept"] == contents[1]["kept"]
    key = next(iter(contents[1]["shards"].values()))
    folder = chain.work / "shards" / "prune" / key
    chosen = {path.name: path.read_bytes() for path in folder.iterdir()}
    cached = chain.precache()
    assert manifest(cached)["inputs"]["prune"] == at_random.name
    mmrr("rm", f"prune/{at_random.name}", "--work", chain.work, "--cascade")
    artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2", "--by", "random"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == chosen
    assert "expected attention or random" in refused("prune", "--work", chain.work, "--by", "chance")


def test_a_small_memory_budget_changes_no_score(chain: Chain) -> None:
    """Page caches are then read and scored a page at a time; within 1e-5 in float32."""
    whole = run_lines(chain.rerank() / "run.trec")
    for folder in ("rerank", "shards/rerank"):
        shutil.rmtree(chain.work / folder)
    piecemeal = run_lines(chain.rerank("--memory-budget", "1KiB") / "run.trec")
    assert whole.keys() == piecemeal.keys()
    for query_id, hits in whole.items():
        assert dict(piecemeal[query_id]) == pytest.approx(dict(hits), abs=1e-5)
    for size in ("0", "much", "4 apples", "-1GiB"):
        wrong = refused("rerank", "a", "--work", chain.work, "--memory-budget", size)
        assert "expected a size such as 512MiB" in wrong


def test_pages_that_stay_on_the_device_change_no_score(chain: Chain) -> None:
    """Many queries share pages: with all of them resident, with room for some, and with none."""
    runs = []
    for size in ("1GiB", "20kB", "0"):
        runs.append(run_lines(chain.rerank("--resident", size) / "run.trec"))
        for folder in ("rerank", "shards/rerank"):
            shutil.rmtree(chain.work / folder)
    assert runs[0] == runs[1] == runs[2]
    assert "expected a size such as 512MiB" in refused("rerank", "a", "--work", chain.work, "--resident", "some")


def test_queries_that_share_pages_read_each_page_once_and_score_as_one_by_one(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-5 in float32, whether all caches fit the memory or one at a time."""
    reads: list[tuple[str, str]] = []
    read = PageCacheReader.read

    def count(self: PageCacheReader, key: str, page: str) -> PageCache:
        reads.append((key, page))
        return read(self, key, page)

    monkeypatch.setattr(PageCacheReader, "read", count)
    runs, pages = [], []
    for together in (32, 1):
        monkeypatch.setattr(rerank, "TOGETHER", together)
        for size in ("1GiB", "1KiB"):
            for folder in ("rerank", "shards/rerank"):
                shutil.rmtree(chain.work / folder)
            reads.clear()
            runs.append(run_lines(chain.rerank("--memory-budget", size) / "run.trec"))
            pages.append([place for place in reads if place[1] != "shared"])
    assert len(pages[0]) == len(pages[1]) == len(set(pages[0]))
    assert len(pages[2]) == len(pages[3]) >= 2 * len(pages[0])
    for other in runs[1:]:
        assert other.keys() == runs[0].keys()
        for query_id, hits in other.items():
            assert dict(hits) == pytest.approx(dict(runs[0][query_id]), abs=1e-5)


def test_the_order_of_reading_is_the_one_that_reads_less() -> None:
    a, b, c = (Query(name, name) for name in "abc")
    shared = [(a, [1, 2]), (b, [2, 1])]
    assert list(_together(shared, False)) == [shared]
    assert list(_together(shared, True)) == [[one] for one in shared]
    apart = [(a, [1, 2]), (b, [3, 1]), (c, [])]
    assert list(_together(apart, False)) == [[one] for one in apart]
    assert list(_together([], False)) == []


def test_page_caches_come_in_portions_that_fit_read_ahead_in_order() -> None:
    read = []

    def states() -> Iterator[tuple[int, PageCache]]:
        for i, n in enumerate((4, 4, 9, 1, 1, 1)):
            read.append(i)
            yield i, {"k": torch.full((n,), i, dtype=torch.uint8)}

    parts = []
    for part in _ahead(_portions(states(), 8)):
        assert all(int(state["k"][0]) == row for row, state in part.items())
        parts.append(list(part))
    assert parts == [[0, 1], [2], [3, 4, 5]]
    assert read == [0, 1, 2, 3, 4, 5]


def test_view_draws_the_kept_tokens(made: Chain, tmp_path: Path) -> None:
    picture = tmp_path / "kept.png"
    shown = mmrr("view", "thesis.pdf/0001", "--work", made.work, "--output", picture)
    assert shown.stdout.strip() == str(picture)
    assert Image.open(picture).size in {Image.open(page).size for page in made.work.rglob("0001.png")}


def test_view_refuses_in_one_line(made: Chain, tmp_path: Path) -> None:
    view = ("view", "--work", made.work, "--output")
    assert "no page thesis.pdf/0099 in the index" in refused(*view, tmp_path / "a.png", "thesis.pdf/0099")
    assert "expected a name that ends in .png" in refused(*view, tmp_path / "a.jpg", "thesis.pdf/0001")
    assert not list(tmp_path.glob("a.*"))


# Removing


def test_rm_takes_what_nothing_needs_and_refuses_the_rest(chain: Chain) -> None:
    cached = chain.precache("--keep", "0.25")
    heavy = shards(chain.work, "precache")
    mmrr("rm", f"precache/{cached.name}", "--work", chain.work)
    assert not cached.exists()
    assert len(shards(chain.work, "precache")) == len(heavy) - 2  # one for each document; the prefix is still used
    old = chain.rerank("--from", f"precache/{precaches(chain)[0]}")
    assert old.exists()

    name = f"precache/{precaches(chain)[0]}"
    message = refused("rm", name, "--work", chain.work)
    assert "is needed by rerank/" in message
    assert "--cascade" in message
    assert (chain.work / name).exists()
    mmrr("rm", name, "--work", chain.work, "--cascade")
    assert precaches(chain) == []
    assert shards(chain.work, "precache") == set()
    assert list((chain.work / "rerank").glob("*/")) == []
    assert "mmrr precache" in refused("rerank", QUESTION, "--work", chain.work)


def precaches(chain: Chain) -> list[str]:
    return [path.name for path in (chain.work / "precache").glob("*/")]


def test_rm_without_names_takes_only_what_nothing_lists(chain: Chain) -> None:
    before = files(chain.work)
    mmrr("rm", "--work", chain.work)
    assert files(chain.work) == before
    stray = chain.work / "shards" / "precache" / ("0" * 24)
    stray.mkdir()
    (stray / "shard.json").write_text("{}")
    assert "removed 1 shard" in mmrr("rm", "--work", chain.work).stderr
    assert files(chain.work) == before


# Names and terminals


def test_markup_in_names_and_queries_is_text(chain: Chain, tmp_path: Path) -> None:
    shutil.copy(chain.docs / "thesis.pdf", chain.docs / "[bold]red[dim].pdf")
    mmrr("index", chain.docs, "--work", tmp_path / "w", *INDEX)
    query = "[red]thesis[/red] [/] :smile: \\[due]"
    shown = mmrr("retrieve", query, "--work", tmp_path / "w").stdout
    assert query in shown
    assert "[bold]red[dim].pdf" in shown
    assert "[bold]red[dim].pdf" in mmrr("ls", "--documents", "--work", tmp_path / "w").stdout


def test_what_is_piped_has_no_colours_and_full_lines(made: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    result = mmrr("rerank", QUESTION, "--work", made.work)
    assert "\x1b[" not in result.stdout + result.stderr
    assert "thesis.pdf" in result.stdout
    assert result.stdout.splitlines()[-1] == str(artifact(result))
