"""Compares runs over the same judged queries: intervals, a paired test, wins and losses, rank correlation, groups.

One run is the baseline. The interval of a mean or of a difference is a bootstrap over documents. The unit of the test
is the query: under its hypothesis the two values of a query could as well be exchanged. This module knows no files,
stages or models.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrr.errors import MmrrError
from mmrr.evaluation.metrics import MEASURES, Change, Evaluation, bootstrap, evaluate, intervals, kendall_tau
from mmrr.types import Qrels, Run

#: With at most this many queries that differ, the test enumerates all 2^n exchanges: 16,384.
EXACT = 14
#: Random exchanges with more queries. The smallest p is 1 / (PERMUTATIONS + 1).
PERMUTATIONS, SEED = 20_000, 0
_BLOCK = 1000
#: Differences of means below this are equal: sums of float64 in another order differ by less.
_ROUNDING = 1e-12
#: The name of the group of queries whose field is absent.
NOT_GIVEN = "not given"
#: From this p on, corrected, a difference counts as chance in tables.
SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A paired randomisation test, and how often either run is better."""

    p: float  # two-sided
    exact: bool  # all exchanges were enumerated
    wins: int  # queries on which the run is better than the baseline
    ties: int
    losses: int


@dataclass(frozen=True, slots=True)
class Against:
    """A run against the baseline in one measure."""

    change: Change
    test: PairedTest
    p_holm: float  # p, corrected over the other runs

    @property
    def significant(self) -> bool:
        """Whether the corrected p is below 0.05."""
        return self.p_holm < SIGNIFICANT


@dataclass(frozen=True, slots=True)
class Group:
    """The judged queries that have the same value in a field."""

    field: str  # such as domain or language
    name: str
    queries: int
    means: dict[str, dict[str, float]]  # {run: {measure: mean}}


@dataclass(frozen=True)
class Comparison:
    """Runs over the same judged queries."""

    baseline: str
    evaluations: dict[str, Evaluation]  # by run; the baseline is the first
    intervals: dict[str, dict[str, tuple[float, float]]]  # {run: {measure: 95 % interval of the mean}}
    against: dict[str, dict[str, Against]]  # {run: {measure: ...}}, without the baseline
    taus: dict[str, dict[str, float]]  # {run: {another run: Kendall's tau}}
    groups: list[Group]
    documents: int  # that the bootstrap draws from

    @property
    def measures(self) -> list[str]:
        """The names of the measures, in order."""
        return list(self.evaluations[self.baseline].mean)

    @property
    def queries(self) -> int:
        """The number of judged queries."""
        return len(self.evaluations[self.baseline].per_query)

    @property
    def best(self) -> str:
        """The run with the highest value of the first measure, of those that are not the baseline, if there are any."""
        runs = list(self.against) or [self.baseline]
        return max(runs, key=lambda run: self.evaluations[run].mean[self.measures[0]])

    def as_json(self) -> dict[str, Any]:
        """JSON values; None for what is not a number."""
        runs = {
            run: {
                "metrics": found.mean,
                "intervals": self.intervals[run],
                "kendall_tau": self.taus[run],
                "against": {
                    measure: {
                        **dataclasses.asdict(one.change),
                        **dataclasses.asdict(one.test),
                        "p_holm": one.p_holm,
                    }
                    for measure, one in self.against.get(run, {}).items()
                },
            }
            for run, found in self.evaluations.items()
        }
        found = {
            "baseline": self.baseline,
            "documents": self.documents,
            "unit_of_the_test": "query",
            "permutations": PERMUTATIONS,
            "seed": SEED,
            "runs": runs,
            "groups": [dataclasses.asdict(group) for group in self.groups],
        }
        return _without_nan(found)


def compare_runs(
    runs: Mapping[str, Run],
    qrels: Qrels,
    measures: Sequence[str] = MEASURES,
    baseline: str | None = None,
    fields: Mapping[str, Mapping[str, str]] | None = None,
    group_of: Mapping[str, str] | None = None,
) -> Comparison:
    """Measure runs, and compare each with the baseline (default: the first).

    ``fields``: {field: {query_id: value}}; each value becomes a group of queries. ``group_of``: {query_id: what the
    bootstrap draws}; None: the document of its relevant page. Six parameters: what is measured, and how it is split.
    Raises MmrrError as ``evaluate`` does.
    """
    baseline = baseline if baseline is not None else next(iter(runs))
    ordered = {baseline: runs[baseline], **runs}
    found = {name: evaluate(run, qrels, measures) for name, run in ordered.items()}
    group_of = group_of or {query_id: document_of(judged) for query_id, judged in qrels.items()}
    changes = {name: bootstrap(found[baseline], one, group_of) for name, one in found.items() if name != baseline}
    return Comparison(
        baseline,
        found,
        {name: intervals(one, group_of) for name, one in found.items()},
        _against(found, baseline, changes),
        _taus(ordered),
        [group for field, values in (fields or {}).items() for group in _groups(field, values, found, qrels)],
        len({group_of[query_id] for query_id in qrels}),
    )


def document_of(judged: Mapping[str, int]) -> str:
    """The document of the first relevant page, by page id; of the first judged page if none is relevant."""
    pages = [page_id for page_id, grade in judged.items() if grade > 0] or list(judged)
    return min(pages).rpartition("/")[0]


def _taus(runs: Mapping[str, Run]) -> dict[str, dict[str, float]]:
    taus: dict[str, dict[str, float]] = {name: {} for name in runs}
    for one, other in itertools.combinations(runs, 2):
        taus[one][other] = taus[other][one] = kendall_tau(runs[one], runs[other])
    return taus


def _against(
    found: Mapping[str, Evaluation], baseline: str, changes: Mapping[str, Mapping[str, Change]]
) -> dict[str, dict[str, Against]]:
    base = found[baseline]
    tests: dict[str, dict[str, PairedTest]] = {name: {} for name in changes}
    corrected: dict[str, dict[str, float]] = {name: {} for name in changes}
    for measure in base.mean:
        columns = [
            [found[name].per_query[query_id][measure] - row[measure] for query_id, row in base.per_query.items()]
            for name in changes
        ]
        made = paired_tests(np.array(columns).T) if columns else []
        for name, test, p in zip(changes, made, holm([test.p for test in made]), strict=True):
            tests[name][measure], corrected[name][measure] = test, p
    return {
        name: {
            measure: Against(change, tests[name][measure], corrected[name][measure]) for measure, change in row.items()
        }
        for name, row in changes.items()
    }


def paired_tests(differences: np.ndarray) -> list[PairedTest]:
    """The two-sided paired randomisation test of each column of differences (queries, runs).

    The statistic is the mean. p is the share of sign patterns whose mean is at least as far from 0 as the observed one:
    of all patterns if at most ``EXACT`` queries differ, else of ``PERMUTATIONS`` random ones and the observed one. The
    same signs serve every column. SciPy's ``permutation_test`` gives the same exact p; at 1,658 queries it takes 1.4 s
    for a column.
    """
    n_queries, n_runs = differences.shape
    observed = np.abs(differences.mean(0)) - _ROUNDING
    at_least, generator = np.zeros(n_runs, dtype=np.int64), np.random.default_rng(SEED)
    few = [int(np.count_nonzero(column)) <= EXACT for column in differences.T]
    for _ in range(0, 0 if all(few) else PERMUTATIONS, _BLOCK):
        signs = 1.0 - 2.0 * generator.integers(0, 2, (_BLOCK, n_queries), dtype=np.int8)
        at_least += (np.abs(signs @ differences) / n_queries >= observed).sum(0)
    tests = []
    for column, is_few, count in zip(differences.T, few, at_least, strict=True):
        p = _exact(column[column != 0], n_queries) if is_few else (1 + count) / (1 + PERMUTATIONS)
        wins, losses = int((column > 0).sum()), int((column < 0).sum())
        tests.append(PairedTest(float(p), is_few, wins, n_queries - wins - losses, losses))
    return tests


def _exact(differing: np.ndarray, n_queries: int) -> float:
    patterns = np.arange(2 ** len(differing))[:, None] >> np.arange(len(differing)) & 1
    means = np.abs((1.0 - 2.0 * patterns) @ differing) / n_queries
    return float((means >= abs(differing.sum()) / n_queries - _ROUNDING).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values, in the order given."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _groups(field: str, values: Mapping[str, str], found: Mapping[str, Evaluation], qrels: Qrels) -> list[Group]:
    members: dict[str, list[str]] = {}
    for query_id in qrels:
        members.setdefault(values.get(query_id, NOT_GIVEN), []).append(query_id)
    if members.keys() <= {NOT_GIVEN}:
        raise MmrrError(f"no judged query has the field {field} in the file of queries; expected at least one")
    return [
        Group(field, name, len(members[name]), {run: _means(one, members[name]) for run, one in found.items()})
        for name in sorted(members, key=lambda name: (name == NOT_GIVEN, name))
    ]


def _means(found: Evaluation, query_ids: Sequence[str]) -> dict[str, float]:
    rows = [found.per_query[query_id] for query_id in query_ids]
    return {measure: math.fsum(row[measure] for row in rows) / len(rows) for measure in found.mean}


def _without_nan(value: Any) -> Any:  # Any: JSON
    """JSON has no NaN."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value
