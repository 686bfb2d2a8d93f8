"""``mmrr mine`` writes every relevant page, hard negatives and random negatives to a folder that needs no workspace."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmrr.training.data.pairs import read_pairs
from tests.console import FP32, INDEX, SOIL, THESIS, mmrr, refused, write_documents, write_queries
from tests.pdfs import make_pdf

MORE = ["The thesis of soil", "A table of rainfall for a thesis", "Spring moisture on the cover", "Sensors by month"]
QUESTIONS = (("q1", "When is the thesis due?", "thesis.pdf"), ("q2", "rainfall table by month in spring", "soil.pdf"))
QRELS = "q1 0 thesis.pdf/0001 1\nq1 0 more.pdf/0001 0\nq2 0 soil.pdf/0002 2\nq2 0 soil.pdf/0001 1\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace without page vectors, and the files of queries and judgements."""
    root = tmp_path_factory.mktemp("mine")
    write_documents(root / "docs", thesis=THESIS, soil=SOIL, more=MORE)
    write_queries(root / "queries.jsonl", *QUESTIONS)
    (root / "qrels.trec").write_text(QRELS)
    mmrr("index", root / "docs", "--work", root / "work", *INDEX)
    return root


def command(root: Path, out: Path) -> tuple[object, ...]:
    queries, qrels = root / "queries.jsonl", root / "qrels.trec"
    return ("mine", "--work", root / "work", "--queries", queries, "--qrels", qrels, "--output", out)


def records(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "pairs.jsonl").read_text("utf-8").splitlines()]


def pages(out: Path, query_id: str, *, relevant: bool) -> list[str]:
    chosen = [one for one in records(out) if one["query_id"] == query_id and one["relevant"] is relevant]
    return [str(one["page_id"]) for one in chosen]


def test_pairs_need_no_workspace(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "made")
    out = tmp_path / "pairs"
    result = mmrr(*command(tmp_path / "made", out), "--negatives", 2)
    assert result.stdout == f"{out / 'pairs.jsonl'}\n"
    assert "2 queries: 3 relevant, 4 hard, 2 random" in result.stderr
    shutil.rmtree(tmp_path / "made")
    moved = out.rename(tmp_path / "moved")
    found = read_pairs(moved / "pairs.jsonl")
    assert len(found) == 9
    assert {pair.image for pair in found} == set((moved / "images").iterdir())
    assert pages(moved, "q1", relevant=True) == ["thesis.pdf/0001"]
    assert sorted(pages(moved, "q2", relevant=True)) == ["soil.pdf/0001", "soil.pdf/0002"]


def test_hard_negatives_are_wrong_first_stage_candidates(made: Path, tmp_path: Path) -> None:
    run = mmrr("retrieve", QUESTIONS[0][1], "--work", made / "work", "--json", "--top-k", 50)
    ranked = [hit["page_id"] for hit in json.loads(run.stdout)["queries"][0]["results"]]
    wrong = [page for page in ranked if page != "thesis.pdf/0001"]
    assert len(wrong) >= 3
    few = tmp_path / "few"
    mmrr(*command(made, few), "--negatives", 50, "--top-k", 50, "--random", 0)
    assert sorted(pages(few, "q1", relevant=False)) == sorted(wrong)
    skipped = tmp_path / "skipped"
    mmrr(*command(made, skipped), "--negatives", 49, "--top-k", 50, "--skip", 1, "--random", 0)
    assert sorted(pages(skipped, "q1", relevant=False)) == sorted(wrong[1:])
    best = tmp_path / "best"
    mmrr(*command(made, best), "--negatives", 1, "--top-k", 2, "--random", 0)
    assert set(pages(best, "q1", relevant=False)) <= set(ranked[:2])


def test_the_seed_decides_which_negatives_are_sampled(made: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 2), ("e", 3)):
        mmrr(*command(made, tmp_path / name), "--negatives", 1, "--seed", seed)
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert any(records(tmp_path / "a") != records(tmp_path / name) for name in "cde")
    # Other queries in the file do not change a query's pages.
    alone = write_queries(tmp_path / "one.jsonl", QUESTIONS[1])
    mmrr(*command(made, tmp_path / "f"), "--negatives", 1, "--queries", alone)
    assert records(tmp_path / "f") == [one for one in records(tmp_path / "a") if one["query_id"] == "q2"]


def test_with_document_scope_hard_negatives_are_pages_of_the_document(made: Path, tmp_path: Path) -> None:
    mmrr(*command(made, tmp_path / "p"), "--scope", "document", "--random", 0)
    assert pages(tmp_path / "p", "q1", relevant=False) == ["thesis.pdf/0002"]
    assert pages(tmp_path / "p", "q2", relevant=False) == ["soil.pdf/0003"]


def test_a_copy_of_a_relevant_page_is_not_a_negative(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    (docs / "copy.pdf").write_bytes(make_pdf(THESIS))
    write_queries(tmp_path / "queries.jsonl", *QUESTIONS)
    (tmp_path / "qrels.trec").write_text(QRELS)
    mmrr("index", docs, "--work", tmp_path / "work", *INDEX)
    result = mmrr(*command(tmp_path, tmp_path / "p"), "--random", 20, "--json")
    assert "copy.pdf/0001" not in pages(tmp_path / "p", "q1", relevant=False)
    read_pairs(tmp_path / "p" / "pairs.jsonl")  # fails if a page is relevant and negative
    counts = json.loads(result.stdout)
    assert counts["queries"] == 2
    assert counts["relevant"] + counts["hard"] + counts["random"] == len(records(tmp_path / "p")) == 10
    assert counts["pages_not_in_the_index"] == []


def test_queries_and_pages_that_are_left_out_are_named(made: Path, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.trec"
    qrels.write_text("q1 0 thesis.pdf/0001 1\nq1 0 gone.pdf/0001 1\nq2 0 soil.pdf/0001 0\n")
    result = mmrr(*command(made, tmp_path / "p"), "--qrels", qrels)
    assert "1 query left out: no relevant page in the index" in result.stderr
    assert "1 relevant page not in the index: gone.pdf/0001" in result.stderr
    assert {one["query_id"] for one in records(tmp_path / "p")} == {"q1"}
    qrels.write_text("q1 0 gone.pdf/0001 1\n")
    line = refused(*command(made, tmp_path / "none"), "--qrels", qrels)
    assert "none of the 2 queries has a relevant page in the index (judged relevant: gone.pdf/0001; indexed: " in line
    assert not (tmp_path / "none").exists()


def test_impossible_options_are_refused(made: Path, tmp_path: Path) -> None:
    assert "--top-k 5: fewer than --skip 4 plus --negatives 2" in refused(
        *command(made, tmp_path / "p"), "--top-k", 5, "--skip", 4, "--negatives", 2
    )
    assert "no workspace at" in refused(*command(made, tmp_path / "p"), "--work", tmp_path)
    (tmp_path / "file").write_text("")
    assert "is a file; expected a folder" in refused(*command(made, tmp_path / "file"))
    assert "needs page vectors" in refused(*command(made, tmp_path / "p"), "--first-stage", "dense")


def test_a_damaged_page_is_not_copied(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "work", tmp_path / "work")
    for image in (tmp_path / "work" / "shards" / "pages").rglob("*.png"):
        image.write_bytes(b"damaged")
    line = refused(*command(made, tmp_path / "p"), "--work", tmp_path / "work")
    assert "does not match its hash" in line
    assert not (tmp_path / "p" / "pairs.jsonl").exists()


@pytest.mark.slow
def test_index_mine_train_and_rerank_with_the_result(tmp_path: Path, tiny_path: Path, tiny_embedder_path: Path) -> None:
    """The result of the training is a model that mmrr precache accepts."""
    docs = write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    queries = write_queries(tmp_path / "queries.jsonl", *QUESTIONS)
    (tmp_path / "qrels.trec").write_text(QRELS)
    work = tmp_path / "work"
    mmrr("index", docs, "--work", work, "--embedder", tiny_embedder_path, *INDEX, *FP32)
    mmrr(*command(tmp_path, tmp_path / "pairs"), "--first-stage", "dense", "--negatives", 2)
    (tmp_path / "train.toml").write_text(
        f'model = "{tiny_path}"\npairs = "pairs/pairs.jsonl"\nembedder = "{tiny_embedder_path}"\n'
        'dtype = "float32"\ndevice = "cpu"\nworkers = 0\naccumulate = 1\nsteps = 2\n'
    )
    made = mmrr("train", "reranker", "--config", tmp_path / "train.toml", "--run-dir", tmp_path / "run").stdout.strip()
    mmrr("precache", "--work", work, "--scorer-model", made, *FP32)
    assert "thesis.pdf/0001" in mmrr("rerank", "--queries", queries, "--work", work, "--json").stdout
