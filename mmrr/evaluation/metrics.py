"""Measures of runs: standard measures through ir_measures, and MMDocIR's own recall of pages and layouts.

This module knows no files, stages or models. ``evaluate`` returns fractions (0 to 1). ``page_recall`` and
``layout_recall`` return per cent, as the MMDocIR tables do. A judged query that is missing in the run scores 0 in every
measure.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from mmrr.errors import MmrrError
from mmrr.types import Hit, Qrels, Run

if TYPE_CHECKING:
    import ir_measures

    from mmrr.evaluation.mmdocir import Layout, Question

#: The default measures of ``evaluate``, by their ir_measures names.
MEASURES = ("nDCG@5", "nDCG@10", "R@1", "R@3", "R@5", "RR")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The measures of a run. Every value is a fraction, except for measures that count (such as NumRel)."""

    mean: dict[str, float]  # {measure: mean over the judged queries}
    #: {query_id: {measure: value}} for every judged query, in the order of the qrels
    per_query: dict[str, dict[str, float]]


class Recall(TypedDict):
    """MMDocIR's recall at one depth, in per cent."""

    macro: float  # mean of the domain means
    micro: float  # mean over the questions
    domains: dict[str, float]  # {domain: mean over its questions}, sorted by name


def evaluate(run: Run, qrels: Qrels, measures: Sequence[str] = MEASURES) -> Evaluation:
    """Score ``run`` against ``qrels`` with ir_measures (trec_eval's definitions).

    Hits are ranked by descending score; equal scores are ranked by ascending page id. trec_eval would round scores to
    float32 and rank equal scores by descending id, so it gets scores that are made from these ranks.
    Queries without judgements are ignored. A judged query that is missing in the run counts as 0.

    Raises MmrrError for measure names that ir_measures cannot parse or compute (the message lists all of them), for
    empty qrels, and for a score that is not a number.
    """
    if not qrels:
        raise MmrrError("found no judged query, expected qrels with at least one line")
    provider, parsed = _parse(measures)
    by_rank = {
        query_id: {hit.page_id: float(len(hits) - i) for i, hit in enumerate(_ranked(query_id, hits))}
        for query_id, hits in run.items()
        if query_id in qrels and hits
    }
    per_query: dict[str, dict[str, float]] = {query_id: dict.fromkeys(parsed, 0.0) for query_id in qrels}
    total = {name: measure.aggregator() for name, measure in parsed.items()}
    names = {measure: name for name, measure in parsed.items()}
    for metric in provider.iter_calc(list(parsed.values()), qrels, by_rank):
        per_query[metric.query_id][names[metric.measure]] = float(metric.value)
    for values in per_query.values():
        for name, value in values.items():
            total[name].add(value)
    return Evaluation({name: float(aggregator.result()) for name, aggregator in total.items()}, per_query)


def compare(base: Evaluation, new: Evaluation) -> dict[str, tuple[float, float, float]]:
    """``{measure: (base, new, new - base)}`` for two evaluations of the same queries.

    Raises MmrrError if their measures or their queries differ: then the difference would not come from the runs alone.
    """
    if base.mean.keys() != new.mean.keys():
        raise MmrrError(f"the evaluations have different measures: {', '.join(base.mean)} and {', '.join(new.mean)}")
    if base.per_query.keys() != new.per_query.keys():
        odd = sorted(base.per_query.keys() ^ new.per_query.keys())
        raise MmrrError(f"the evaluations judge different queries: {len(odd)} are in only one, such as {odd[0]}")
    return {name: (value, new.mean[name], new.mean[name] - value) for name, value in base.mean.items()}


@dataclass(frozen=True, slots=True)
class Change:
    """The difference of two runs in one measure, with 95 % bootstrap intervals (low, high)."""

    difference: float  # new - base
    difference_interval: tuple[float, float]
    kept: float  # ratio new / base; NaN if base is 0
    kept_interval: tuple[float, float]


def bootstrap(
    base: Evaluation, new: Evaluation, group_of: Mapping[str, str], samples: int = 2000, seed: int = 0
) -> dict[str, Change]:
    """``{measure: Change}``. ``group_of``: the document of each query. Documents are resampled with replacement.

    The questions of one document are correlated, so an interval over resampled questions would be too narrow.
    Raises MmrrError as ``compare`` does.
    """
    names = list(compare(base, new))
    groups = sorted({group_of[query_id] for query_id in base.per_query})
    row_of = {group: row for row, group in enumerate(groups)}
    sums = np.zeros((len(groups), 2, len(names)))
    counts = np.zeros(len(groups))
    for query_id in base.per_query:
        row = row_of[group_of[query_id]]
        counts[row] += 1
        for side, evaluation in enumerate((base, new)):
            sums[row, side] += [evaluation.per_query[query_id][name] for name in names]
    drawn = np.random.default_rng(seed).integers(0, len(groups), (samples, len(groups)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)[:, None, None]  # (samples, 2, measures)
    with np.errstate(invalid="ignore", divide="ignore"):
        kept = np.where(means[:, 0] > 0, means[:, 1] / means[:, 0], np.nan)
    changes = {}
    for column, name in enumerate(names):
        before, after = base.mean[name], new.mean[name]
        changes[name] = Change(
            after - before,
            _interval(means[:, 1, column] - means[:, 0, column]),
            after / before if before else math.nan,
            _interval(kept[:, column]),
        )
    return changes


def intervals(
    found: Evaluation, group_of: Mapping[str, str], samples: int = 2000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """{measure: 95 % interval of its mean}, from resampled documents as in ``bootstrap``."""
    names = list(found.mean)
    groups = sorted({group_of[query_id] for query_id in found.per_query})
    row_of = {group: row for row, group in enumerate(groups)}
    sums, counts = np.zeros((len(groups), len(names))), np.zeros(len(groups))
    for query_id, values in found.per_query.items():
        row = row_of[group_of[query_id]]
        counts[row] += 1
        sums[row] += [values[name] for name in names]
    drawn = np.random.default_rng(seed).integers(0, len(groups), (samples, len(groups)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)[:, None]
    return {name: _interval(means[:, column]) for column, name in enumerate(names)}


def kendall_tau(base: Run, new: Run) -> float:
    """Kendall's tau of the pages that both runs have, mean over queries: 1 same order, -1 opposite, NaN no query."""
    from scipy import stats  # imported here because the import takes half a second

    found = []
    for query_id in base.keys() & new.keys():
        place = {hit.page_id: i for i, hit in enumerate(new[query_id])}
        places = [place[hit.page_id] for hit in base[query_id] if hit.page_id in place]
        if len(places) > 1:
            tau = stats.kendalltau(range(len(places)), places).statistic
            found.append(round(float(tau), 12))  # SciPy multiplies roots: equal orders give 0.9999999999999998
    return math.fsum(found) / len(found) if found else math.nan


def _interval(values: np.ndarray) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (math.nan, math.nan)
    return float(low), float(high)


def page_recall(run: Run, questions: Mapping[str, Question], ks: Sequence[int] = (1, 3, 5)) -> dict[str, Recall]:
    """MMDocIR's page recall in per cent: the share of a question's evidence pages that are among the first k pages.

    Equals the official scorer (MMDocRAG/MMDocIR, ``metric_eval.py``) on the whole benchmark. The official scorer
    divides the macro mean by all ten domains and counts a domain without questions as 0. Here the macro mean is over
    the domains that have questions; both are equal if all ten have. A question without evidence scores 0 in both.
    The official search is limited to the question's document. In a run over a whole collection, pages of other
    documents take places among the first k.

    Raises MmrrError for no questions, a k below 1 and a score that is not a number.
    """

    def found(question: Question, hits: Sequence[Hit]) -> float:
        evidence = question.pages
        return len(evidence & {hit.page_id for hit in hits}) / len(question.page_id) if evidence else 0.0

    return _recall(run, questions, ks, found)


def layout_recall(
    run: Run,
    questions: Mapping[str, Question],
    layouts: Mapping[str, Layout],
    ks: Sequence[int] = (1, 5, 10),
    cap: bool = False,
) -> dict[str, Recall]:
    """MMDocIR's layout recall in per cent: the share of the evidence area that the first k layouts cover.

    ``run`` ranks layout ids; ``layouts`` is ``{layout_id: Layout}``. The value of a question is the area of the
    intersections of the first k layouts with the evidence boxes on the same page of the same document, divided by the
    summed area of the evidence boxes (0 if that is 0).

    This is the official rule (MMDocRAG/MMDocIR, ``metric_eval.py``), with its three peculiarities: an area that two
    retrieved layouts cover counts twice, so a question can exceed 100; overlapping evidence boxes count twice;
    ``page_size`` is not used, because both sides are in PDF points. ``cap`` limits every question to 100. The result
    is then a proper share but not the official number. For the macro mean see ``page_recall``.

    Raises MmrrError for no questions, a k below 1, a score that is not a number and a layout that is not in
    ``layouts``.
    """

    def covered(question: Question, hits: Sequence[Hit]) -> float:
        total = sum(_area(box.bbox) for box in question.boxes)
        if total <= 0:
            return 0.0
        area = 0.0
        for hit in hits:
            layout = layouts.get(hit.page_id)
            if layout is None:
                raise MmrrError(
                    f"query {question.query_id}: the run has the layout {hit.page_id}, which is not in the benchmark; "
                    "score a run of its layouts"
                )
            if layout.doc_id == question.doc_id:
                area += sum(_overlap(layout.bbox, box.bbox) for box in question.boxes if box.page == layout.page)
        return min(area / total, 1.0) if cap else area / total

    return _recall(run, questions, ks, covered)


def _recall(
    run: Run, questions: Mapping[str, Question], ks: Sequence[int], value: Callable[[Question, Sequence[Hit]], float]
) -> dict[str, Recall]:
    """Mean of ``value(question, first k hits)`` over the questions and over the domains, for each k."""
    if not questions:
        raise MmrrError("found no question to score, expected at least one")
    if any(k < 1 for k in ks):
        raise MmrrError(f"found recall at {min(ks)}, expected a depth of 1 or more")
    ranked = {query_id: _ranked(query_id, run.get(query_id, [])) for query_id in questions}
    result: dict[str, Recall] = {}
    for k in ks:
        domains: dict[str, list[float]] = defaultdict(list)
        for query_id, question in questions.items():
            domains[question.domain].append(value(question, ranked[query_id][:k]))
        means = {name: 100 * math.fsum(values) / len(values) for name, values in sorted(domains.items())}
        micro = 100 * math.fsum(math.fsum(values) for values in domains.values()) / len(questions)
        result[f"recall@{k}"] = Recall(macro=math.fsum(means.values()) / len(means), micro=micro, domains=means)
    return result


def _ranked(query_id: str, hits: Sequence[Hit]) -> list[Hit]:
    """The hits by descending score and ascending page id. Raises MmrrError for a score that is not a number."""
    for hit in hits:
        if math.isnan(hit.score):
            raise MmrrError(f"query {query_id}: the score of {hit.page_id} is NaN, expected a number")
    return sorted(hits, key=lambda hit: (-hit.score, hit.page_id))


def _parse(measures: Sequence[str]) -> tuple[ir_measures.Provider, dict[str, ir_measures.Measure]]:
    """The ir_measures provider and ``{canonical name: measure}`` in the given order. Raises MmrrError for bad names."""
    import ir_measures as ir  # imported here because the import configures a logger

    # Not the default providers of ir_measures: one of them runs perl scripts and fails without perl.
    inside = [ir.pytrec_eval, ir.cwl_eval, ir.compat, ir.pyndeval, ir.judged, ir.msmarco, ir.accuracy]
    provider = ir.providers.FallbackProvider(inside)  # type: ignore[no-untyped-call]
    parsed, bad = {}, []
    for name in measures:
        try:
            measure = ir.parse_measure(name)
            cutoff = measure.params.get("cutoff", 1)
            # trec_eval aborts the process for a cutoff of 0, so check it here.
            usable = not isinstance(cutoff, bool) and cutoff >= 1
            usable = usable and provider.supports(measure)  # type: ignore[no-untyped-call]
        except (ValueError, NameError, AssertionError, TypeError):
            usable = False
        if usable:
            parsed[str(measure)] = measure
        else:
            bad.append(name)
    if bad or not parsed:
        raise MmrrError(
            f"cannot compute the measure{'s' * (len(bad) > 1)} {', '.join(map(repr, bad)) or '(none given)'}; "
            "expected ir_measures names such as nDCG@10, R@5, RR, AP, P@1 or Success@5"
        )
    return provider, parsed


def _area(bbox: tuple[float, float, float, float]) -> float:
    x0, y0, x1, y1 = bbox
    return (x1 - x0) * (y1 - y0)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0
