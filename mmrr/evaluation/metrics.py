"""Numbers from runs: standard measures through ir_measures, and MMDocIR's own recall of pages and layouts.

Knows nothing of files, stages or models. ``evaluate`` gives fractions (0 to 1), ``page_recall`` and ``layout_recall``
give per cent, as the MMDocIR tables do. A judged query that is absent from the run scores 0 everywhere.
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

#: The measures that ``evaluate`` computes unless told otherwise, by their ir_measures names.
MEASURES = ("nDCG@5", "nDCG@10", "R@1", "R@3", "R@5", "RR")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A run judged against qrels. Every value is a fraction, except for measures that count (such as NumRel)."""

    mean: dict[str, float]  # {measure: mean over the judged queries}
    per_query: dict[
        str, dict[str, float]
    ]  # {query_id: {measure: value}}, every judged query, in the order of the qrels


class Recall(TypedDict):
    """MMDocIR's recall at one depth, in per cent."""

    macro: float  # mean of the domains' means
    micro: float  # mean over the questions
    domains: dict[str, float]  # {domain: mean over its questions}, by name


def evaluate(run: Run, qrels: Qrels, measures: Sequence[str] = MEASURES) -> Evaluation:
    """Score ``run`` against ``qrels`` with ir_measures (trec_eval's definitions).

    The order that counts is the project's: highest score first, equal scores by ascending page id. trec_eval would
    narrow scores to float32 and break ties by descending id, so it is handed scores made from our ranks instead.
    Queries without judgements are ignored; a judged query that the run lacks counts with 0.

    Raises MmrrError for measure names that ir_measures cannot parse or compute (all of them listed), for empty
    qrels, and for a score that is not a number.
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
    """Set two evaluations of the same queries side by side: ``{measure: (base, new, new - base)}``.

    Raises MmrrError if they were not made with the same measures and over the same queries: the difference would
    mix what the run changed with what was asked of it.
    """
    if base.mean.keys() != new.mean.keys():
        raise MmrrError(f"the evaluations have different measures: {', '.join(base.mean)} and {', '.join(new.mean)}")
    if base.per_query.keys() != new.per_query.keys():
        odd = sorted(base.per_query.keys() ^ new.per_query.keys())
        raise MmrrError(f"the evaluations judge different queries: {len(odd)} are in only one, such as {odd[0]}")
    return {name: (value, new.mean[name], new.mean[name] - value) for name, value in base.mean.items()}


@dataclass(frozen=True, slots=True)
class Change:
    """What one run has over another, with 95 % bootstrap intervals (low, high)."""

    difference: float  # new - base
    difference_interval: tuple[float, float]
    kept: float  # new / base; not a number where base is 0
    kept_interval: tuple[float, float]


def bootstrap(
    base: Evaluation, new: Evaluation, group_of: Mapping[str, str], samples: int = 2000, seed: int = 0
) -> dict[str, Change]:
    """``{measure: Change}``. ``group_of``: the document of each query; documents are drawn with replacement.

    The questions of one document stand or fall together, so an interval over questions would be too narrow. Raises
    MmrrError as ``compare`` does.
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


def kendall_tau(base: Run, new: Run) -> float:
    """How alike two runs order what both hold: 1 the same order, -1 the opposite; mean over queries, NaN if none."""
    found = []
    for query_id in base.keys() & new.keys():
        place = {hit.page_id: i for i, hit in enumerate(new[query_id])}
        places = np.array([place[hit.page_id] for hit in base[query_id] if hit.page_id in place])
        if len(places) > 1:
            above = np.triu_indices(len(places), 1)
            found.append(float(np.sign(places[above[1]] - places[above[0]]).mean()))
    return math.fsum(found) / len(found) if found else math.nan


def _interval(values: np.ndarray) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (math.nan, math.nan)
    return float(low), float(high)


def page_recall(run: Run, questions: Mapping[str, Question], ks: Sequence[int] = (1, 3, 5)) -> dict[str, Recall]:
    """MMDocIR's page recall in per cent: of a question's evidence pages, the share among the first k pages.

    Equals the official scorer (MMDocRAG/MMDocIR, ``metric_eval.py``) on the whole benchmark. That scorer divides the
    macro mean by all ten domains, with 0 for a domain without questions; here the macro mean is over the domains
    present, which is the same number whenever all ten are. A question without evidence scores 0, as there. The
    official search stays inside the question's document: a run over a whole collection is scored as it stands, with
    the pages of other documents taking up places among the first k.

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
    """MMDocIR's layout recall in per cent: the evidence area that the first k layouts cover.

    ``run`` ranks layout ids; ``layouts`` is ``{layout_id: Layout}``. A question's value is the sum, over the first k
    layouts and over the evidence boxes, of their intersection on the same page of the same document, divided by the
    summed area of the evidence boxes (0 if that is 0).

    This is the official rule (MMDocRAG/MMDocIR, ``metric_eval.py``), including what is odd about it: ground that two
    retrieved layouts both cover counts twice, so that a question can exceed 100; evidence boxes that overlap weigh
    twice; and ``page_size`` plays no part, both sides being in PDF points. ``cap`` limits every question to 100,
    which makes the number a proper share but no longer the official one. For the macro mean see ``page_recall``.

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
                raise MmrrError(f"query {question.query_id}: the run has the layout {hit.page_id}, which is unknown")
            if layout.doc_id == question.doc_id:
                area += sum(_overlap(layout.bbox, box.bbox) for box in question.boxes if box.page == layout.page)
        return min(area / total, 1.0) if cap else area / total

    return _recall(run, questions, ks, covered)


def _recall(
    run: Run, questions: Mapping[str, Question], ks: Sequence[int], value: Callable[[Question, Sequence[Hit]], float]
) -> dict[str, Recall]:
    """Mean of ``value(question, first k hits)`` over the questions and over the domains, for each k."""
    if not questions:
        raise MmrrError("found no questions to score")
    if any(k < 1 for k in ks):
        raise MmrrError(f"recall needs a depth of 1 or more, found {min(ks)}")
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
    """The hits in the one order that counts, whatever order they came in."""
    for hit in hits:
        if math.isnan(hit.score):
            raise MmrrError(f"query {query_id}: the score of {hit.page_id} is not a number, so it has no rank")
    return sorted(hits, key=lambda hit: (-hit.score, hit.page_id))


def _parse(measures: Sequence[str]) -> tuple[ir_measures.Provider, dict[str, ir_measures.Measure]]:
    """What computes the measures, and ``{name as ir_measures prints it: measure}`` in the order given."""
    import ir_measures as ir  # here, not above: it sets up a logger when imported

    # Not ir_measures' own list of providers: one of them runs perl scripts, and fails where there is no perl.
    inside = [ir.pytrec_eval, ir.cwl_eval, ir.compat, ir.pyndeval, ir.judged, ir.msmarco, ir.accuracy]
    provider = ir.providers.FallbackProvider(inside)  # type: ignore[no-untyped-call]
    parsed, bad = {}, []
    for name in measures:
        try:
            measure = ir.parse_measure(name)
            cutoff = measure.params.get("cutoff", 1)
            # trec_eval aborts the process on a cutoff of 0, so such a name must not reach it.
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
