"""Runs compared with a baseline: the test against SciPy's, Holm's correction, groups, and the tables as files."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random

import numpy as np
import pytest
from scipy import stats

from mmrr.errors import MmrrError
from mmrr.evaluation import tables
from mmrr.evaluation.comparison import EXACT, PERMUTATIONS, Comparison, compare_runs, holm, paired_tests
from mmrr.types import Qrels, Run, rank


def scipy_p(column: np.ndarray, resamples: float) -> float:
    found = stats.permutation_test(
        (column,),
        lambda values, axis: values.mean(axis),
        permutation_type="samples",
        n_resamples=resamples,
        vectorized=True,
        rng=np.random.default_rng(1),
    )
    return float(found.pvalue)


def test_few_queries_that_differ_are_tested_exactly_and_ties_change_nothing() -> None:
    rng = np.random.default_rng(0)
    differing = rng.choice([-1.0, -0.5, 0.25, 0.63092975], 9)
    column = np.concatenate([differing, np.zeros(300)])
    (test,) = paired_tests(column[:, None])
    assert test.exact
    assert test.p == pytest.approx(scipy_p(differing, np.inf))
    by_hand = [
        abs(np.dot(signs, differing)) >= abs(differing.sum()) - 1e-9 for signs in itertools.product((-1, 1), repeat=9)
    ]
    assert test.p == pytest.approx(np.mean(by_hand))
    assert (test.wins, test.ties, test.losses) == ((column > 0).sum(), 300, (column < 0).sum())
    assert paired_tests(np.zeros((5, 1)))[0].p == 1


def test_many_queries_are_tested_by_the_same_random_exchanges_every_time() -> None:
    rng = np.random.default_rng(0)
    columns = rng.normal([0.0, 0.25, 2.0], 1.0, (60, 3))
    found = paired_tests(columns)
    assert not any(test.exact for test in found)
    for test, column in zip(found[:2], columns.T, strict=False):
        assert test.p == pytest.approx(scipy_p(column, 9999), abs=0.02)
    assert found[2].p == 1 / (PERMUTATIONS + 1)
    assert paired_tests(columns) == found
    assert paired_tests(columns[:, 1:]) == found[1:]  # the other runs do not matter
    assert paired_tests(columns[:EXACT, :1])[0].exact


def test_a_test_of_nothing_is_below_five_per_cent_five_times_in_a_hundred() -> None:
    rng = np.random.default_rng(3)
    columns = rng.choice([-0.37, 0.0, 0.0, 0.5, -0.5, 0.37], (40, 400))
    below = np.mean([test.p < 0.05 for test in paired_tests(columns)])
    assert 0.02 < below < 0.085


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


MEASURES = ("R@1", "nDCG@5")
ODD = "50%_&|<b>"


@pytest.fixture(scope="module")
def compared() -> Comparison:
    """40 queries of 8 documents: ``good`` finds the page first, ``base`` at random places."""
    rng = random.Random(0)
    qrels: Qrels = {f"q{i}": {f"d{i % 8}.pdf/0001": 1} for i in range(40)}
    runs: dict[str, Run] = {"good": {}, "base": {}, ODD: {}}
    for query_id, judged in qrels.items():
        pages = [f"d{i}.pdf/0001" for i in range(8)]
        runs["good"][query_id] = rank({page: float(page in judged) + 1 for page in pages})
        runs["base"][query_id] = rank({page: rng.random() for page in pages})
        runs[ODD][query_id] = runs["base"][query_id]
    fields = {"language": {f"q{i}": "fr" if i % 2 else "=1+1" for i in range(39)}}
    return compare_runs(runs, qrels, MEASURES, "base", fields)


def test_runs_against_a_baseline(compared: Comparison) -> None:
    assert list(compared.evaluations) == ["base", "good", ODD]
    assert compared.best == "good"
    assert (compared.queries, compared.documents) == (40, 8)
    base, good = (compared.evaluations[run].per_query for run in ("base", "good"))
    for measure in MEASURES:
        one = compared.against["good"][measure]
        assert one.test.wins == sum(good[query][measure] > base[query][measure] for query in base)
        assert one.p_holm == pytest.approx(2 * one.test.p)
        assert one.significant
        same = compared.against[ODD][measure]
        assert (same.test.p, same.p_holm, same.test.ties, same.change.difference) == (1, 1, 40, 0)
    assert compared.taus[ODD]["base"] == 1
    assert compared.taus["good"]["base"] == compared.taus["base"]["good"]
    document = json.loads(json.dumps(compared.as_json(), allow_nan=False))
    assert document["runs"]["good"]["against"]["R@1"]["p_holm"] == compared.against["good"]["R@1"].p_holm


def test_groups_are_the_means_of_their_queries(compared: Comparison) -> None:
    assert [(group.name, group.queries) for group in compared.groups] == [("=1+1", 20), ("fr", 19), ("not given", 1)]
    total = sum(group.queries * group.means["base"]["nDCG@5"] for group in compared.groups)
    assert total / 40 == pytest.approx(compared.evaluations["base"].mean["nDCG@5"])
    with pytest.raises(MmrrError, match="no judged query has the field domain"):
        compare_runs({"a": {"q": []}}, {"q": {"d/1": 1}}, MEASURES, fields={"domain": {"other": "x"}})


def test_the_csv_file_has_every_number_and_no_formula(compared: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(compared))))
    whole = {(row["run"], row["measure"]): row for row in rows if not row["field"]}
    good = compared.against["good"]["R@1"]
    assert float(whole["good", "R@1"]["value"]) == compared.evaluations["good"].mean["R@1"]
    assert float(whole["good", "R@1"]["p_holm"]) == good.p_holm
    assert float(whole["good", "R@1"]["difference_low"]) == good.change.difference_interval[0]
    assert whole["base", "R@1"]["p"] == ""
    assert {row["group"] for row in rows} == {"", "'=1+1", "fr", "not given"}


def test_names_do_not_break_latex_or_markdown(compared: Comparison) -> None:
    latex = tables.latex_text(compared)
    assert r"50\%\_\&|\textless{}b\textgreater{}" in latex
    assert latex.count("\\begin{tabular}") == latex.count("\\bottomrule") == 3
    for block in latex.split("\\begin{tabular}{")[1:]:
        columns = len(block.split("}")[0])
        body = block.split("\\toprule\n")[1].split("\\bottomrule")[0].replace("\\midrule\n", "")
        assert {line.replace(r"\&", "").count("&") for line in body.splitlines()} == {columns - 1}
    assert r"\textbf{1.0000*}" in latex
    shown = tables.markdown_text(compared)
    assert "**1.0000\\***" in shown
    assert r"50%\_&\|\<b\>" in shown
    assert "<b>" not in shown
