"""``mmrr eval``: the measures follow from the run files and the judgements."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.cli.chain import Chain
from tests.console import (
    artifact,
    manifest,
    mmrr,
    refused,
    run_lines,
)


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
