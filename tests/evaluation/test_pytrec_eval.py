"""Runs that mmrr writes have the same measures in trec_eval as in mmrr, whatever scores are equal."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from mmrr.evaluation.metrics import evaluate
from mmrr.evaluation.trec import read_run, write_run
from mmrr.types import Run, rank

pytrec_eval = pytest.importorskip("pytrec_eval")

#: mmrr's name -> trec_eval's
MEASURES = {"nDCG@5": "ndcg_cut_5", "nDCG@10": "ndcg_cut_10", "R@5": "recall_5", "RR": "recip_rank", "AP": "map"}


def trec_eval(run: Run, qrels: dict[str, dict[str, int]]) -> dict[str, dict[str, float]]:
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.5,10", "recall.5", "recip_rank", "map"})
    found = evaluator.evaluate({name: {hit.page_id: hit.score for hit in hits} for name, hits in run.items()})
    return {name: {ours: values[theirs] for ours, theirs in MEASURES.items()} for name, values in found.items()}


def test_nine_equal_scores(tmp_path: Path) -> None:
    ids = [f"tables.pdf/{n:04d}" for n in range(1, 10)]
    tied, qrels = {"q": rank(dict.fromkeys(ids, 0.5797829031944275))}, {"q": {ids[8]: 1}}
    assert trec_eval(tied, qrels)["q"]["RR"] == 1.0  # descending ids
    with (tmp_path / "run.trec").open("w") as file:
        write_run(tied, file)
    ours = evaluate(tied, qrels, list(MEASURES)).per_query
    assert trec_eval(read_run(tmp_path / "run.trec"), qrels) == {"q": pytest.approx(ours["q"])}
    assert ours["q"]["RR"] == pytest.approx(1 / 9)


@pytest.mark.parametrize("seed", range(5))
def test_random_runs_with_equal_scores(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    ids = [f"{name}.pdf/{n:04d}" for name in "abc" for n in range(1, 12)]
    values = [0.0, -0.0, 1.0, -1.0, 1e-12, 1e30, *(draw.gauss(0, 1) for _ in range(5))]
    values += [value * (1 + 1e-9) for value in values]  # equal in float32
    run, qrels = {}, {}
    for n in range(40):
        run[f"q{n}"] = rank({page: draw.choice(values) for page in draw.sample(ids, draw.randint(1, len(ids)))})
        qrels[f"q{n}"] = {page: draw.randint(0, 2) for page in draw.sample(ids, 6)}
    text = io.StringIO()
    write_run(run, text)
    (tmp_path / "run.trec").write_text(text.getvalue())
    written = read_run(tmp_path / "run.trec")
    for name, hits in run.items():
        assert [hit.page_id for hit in written[name]] == [hit.page_id for hit in hits]
    ours, theirs = evaluate(run, qrels, list(MEASURES)).per_query, trec_eval(written, qrels)
    for name, of_query in theirs.items():
        assert of_query == pytest.approx(ours[name]), name
