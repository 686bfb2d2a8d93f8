"""``mmrr eval``: the measures follow from the run files and the judgements."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.cli.chain import Chain
from tests.console import INDEX, artifact, manifest, mmrr, refused, run_lines, write_documents, write_queries


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
    # The first page of the first stage and one other page are relevant, so that the two runs differ.
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
    command = ("eval", "--work", made.work, "--qrels", qrels, "--baseline", made.root / "run.trec")
    same = json.loads(mmrr(*command, "--run", made.root / "run.trec", "--json").stdout)["metrics"]
    assert same["baseline"] == same["run"] == metrics["reranked"]
    for name, value in same["run"].items():
        assert same["interval"][name] == [0.0, 0.0]
        assert same["kept"][name] == (1.0 if value else None)
    assert "--baseline needs --run" in refused(*command)


def test_a_judged_query_that_was_not_asked_counts_as_nothing(made: Chain, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.trec"
    qrels.write_text("q1 0 thesis.pdf/0001 1\nnever-asked 0 soil.pdf/0001 1\n")
    found = mmrr("eval", "--work", made.work, "--qrels", qrels, "--json")
    assert "1 of 2 judged queries are not in the run; they count as 0: never-asked" in found.stderr.splitlines()
    document = json.loads(found.stdout)
    assert document["queries"] == 2
    assert document["queries_not_in_the_run"] == ["never-asked"]
    assert document["metrics"]["reranked"]["R@5"] == 0.5
    whole = mmrr("eval", "--work", made.work, "--qrels", made.qrels, "--json")
    assert json.loads(whole.stdout)["queries_not_in_the_run"] == []
    assert "not in the run" not in whole.stderr


def test_a_query_on_the_command_line_is_not_what_eval_follows(chain: Chain) -> None:
    command = ("eval", "--work", chain.work, "--qrels", chain.qrels)
    before = artifact(mmrr(*command))
    mmrr("rerank", "another question about a cover", "--work", chain.work)
    mmrr("retrieve", "yet another question", "--work", chain.work)
    assert artifact(mmrr(*command)) == before


def test_judged_pages_that_the_index_lacks_are_named_for_a_run_of_a_file_too(made: Chain, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.trec"
    qrels.write_text(made.qrels.read_text() + "q1 0 thesis.pdf/0099 1\n")
    command = ("eval", "--run", made.root / "run.trec", "--qrels", qrels, "--work", made.work)
    assert "thesis.pdf/0099" in mmrr(*command).stderr
    assert json.loads(mmrr(*command, "--json").stdout)["pages_not_in_the_index"] == ["thesis.pdf/0099"]


def test_a_run_with_other_ids_is_an_error(made: Chain, tmp_path: Path) -> None:
    run = tmp_path / "run.trec"
    command = ("eval", "--work", made.work, "--qrels", made.qrels, "--run", run)
    run.write_text("q1 Q0 thesis.pdf/1 1 2.0 other\nq2 Q0 soil.pdf/2 1 2.0 other\n")
    message = refused(*command)
    assert (
        "none of the 4 judged pages is in the run run (run: soil.pdf/2, thesis.pdf/1; judged: soil.pdf/0001" in message
    )
    assert message.endswith("soil.pdf/0002 is probably soil.pdf/2: write the same ids in both")
    made_run = (made.root / "run.trec").read_text()
    run.write_text("\n".join(line.replace("pdf/0001", "pdf/1") for line in made_run.splitlines()))
    found = mmrr(*command, "--json")
    spelt = {"soil.pdf/0001": "soil.pdf/1", "thesis.pdf/0001": "thesis.pdf/1"}
    assert json.loads(found.stdout)["pages_under_another_id"] == spelt
    note = "2 judged pages are in the run under another id and count as not found: soil.pdf/1 for soil.pdf/0001, "
    assert note in found.stderr


def test_fusion_and_eval_use_the_scores_that_were_computed(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", a=["the same words"] * 4)
    mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    queries = write_queries(tmp_path / "q.jsonl", ("q1", "same words"))
    command = ("retrieve", "--queries", queries, "--work", tmp_path / "w")
    found = artifact(mmrr(*command, "--output", tmp_path / "out.trec"))
    assert (tmp_path / "out.trec").read_text() == (found / "run.trec").read_text()
    scores = [score for _, score in run_lines(found / "run.trec")["q1"]]
    assert scores == sorted(set(scores), reverse=True)
    assert len({score for _, score in run_lines(found / "scores.trec")["q1"]}) == 1
    shown = json.loads(mmrr(*command, "--json").stdout)["queries"][0]["results"]
    assert len({row["score"] for row in shown}) == 1
    assert mmrr("verify", "--work", tmp_path / "w")
