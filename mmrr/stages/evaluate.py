"""Stage ``eval``: runs and judgements -> measures, stored with what they were measured on."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrr.context import Context
from mmrr.evaluation import ids
from mmrr.evaluation.comparison import Comparison, compare_runs
from mmrr.evaluation.metrics import MEASURES, bootstrap, evaluate, layout_recall, page_recall
from mmrr.evaluation.mmdocir import Layout, Question
from mmrr.evaluation.trec import read_qrels
from mmrr.types import Qrels, Run
from mmrr.workspace.files import digest
from mmrr.workspace.manifests import EvalContent
from mmrr.workspace.pages import load
from mmrr.workspace.store import Manifest, Spec


@dataclass(frozen=True)
class Judgement:
    """The measures of a run, and what the judgements name in vain: all of it counts as not found."""

    metrics: Manifest
    comparison: Comparison
    unknown: list[str]  # judged pages that the index does not have
    missing: list[str]  # judged queries that the run lacks, or one of two runs
    other: dict[str, str]  # {judged page: its probable id in the run}


def judge_ids(
    context: Context,
    runs: Mapping[str, Run],
    qrels_path: Path,
    measures: Sequence[str] | None,
    inputs: Mapping[str, str],
    fields: Mapping[str, Mapping[str, str]] | None = None,
) -> Judgement:
    """Measure runs against the judgements of a file, and compare the ids of both. The first run is the baseline.

    ``fields``: {field: {query_id: value}}; each value becomes a group of the comparison. Six parameters: what is
    measured, and by what. Raises MmrrError with ids of both kinds if no judged page is in the index, if a run answers
    no judged query, and if it has no judged page under its id.
    """
    qrels = read_qrels(qrels_path)
    pages = context.workspace.find("pages", inputs["pages"]) if "pages" in inputs else None
    current = pages or context.workspace.current("pages")
    known = set(load(context.workspace, current).row_of) if current else set()
    # The run of a file may be of other pages than the index; if one judged page is there, the others should be.
    unknown = ids.unknown_pages(qrels, known, str(qrels_path)) if pages else ids.lacking(qrels, known)
    manifest, compared = judge(context, runs, qrels, inputs, measures or MEASURES, fields)
    other: dict[str, str] = {}
    for name, run in runs.items():
        other |= ids.check_pages(name.replace("_", " "), run, qrels, known)
    missing = sorted(query_id for query_id in qrels if not all(run.get(query_id) for run in runs.values()))
    return Judgement(manifest, compared, unknown, missing, other)


def judge(
    context: Context,
    runs: Mapping[str, Run],
    qrels: Qrels,
    inputs: Mapping[str, str],
    measures: Sequence[str] = MEASURES,
    fields: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[Manifest, Comparison]:
    """Standard measures of ``runs``, stored, and their comparison with the first. Parameters as in ``judge_ids``.

    Raises MmrrError if a run answers none of the judged queries.
    """
    for name, run in runs.items():
        ids.check_queries(name.replace("_", " "), run, qrels)
    compared = compare_runs(runs, qrels, measures, fields=fields)
    return _store(context, compared, qrels, inputs, measures), compared


def _store(
    context: Context, compared: Comparison, qrels: Qrels, inputs: Mapping[str, str], measures: Sequence[str]
) -> Manifest:
    """The artifact of measures: the mean of each run, and of two runs such as first stage and reranked the change."""
    results = compared.evaluations
    metrics: dict[str, Any] = {name: result.mean for name, result in results.items()}
    if len(results) == 2:
        ((new, against),) = compared.against.items()
        changes = {measure: one.change for measure, one in against.items()}
        metrics["difference"] = {name: change.difference for name, change in changes.items()}
        metrics["interval"] = {name: list(change.difference_interval) for name, change in changes.items()}
        metrics["kept"] = {name: _number(change.kept) for name, change in changes.items()}
        metrics["kendall_tau"] = _number(compared.taus[new][compared.baseline])
        metrics["kept_interval"] = {name: [*map(_number, change.kept_interval)] for name, change in changes.items()}
    per_query = [
        {"query_id": query_id, **{name: result.per_query[query_id] for name, result in results.items()}}
        for query_id in sorted(qrels)
    ]
    spec = Spec("eval", 3, {"measures": list(measures)}, {**inputs, "qrels": digest(qrels)})
    return _commit(context, spec, {"queries": len(qrels), "metrics": metrics}, per_query)


def judge_benchmark(
    context: Context,
    runs: Mapping[str, Run],
    qrels: Qrels,
    inputs: Mapping[str, str],
    measures: Sequence[str],
    group_of: Mapping[str, str],
    config_of: Mapping[str, str],
) -> Manifest:
    """Standard measures of a benchmark: of all queries, and of each part of it with the mean of the parts.

    The parameters: ``group_of``, what the bootstrap draws, by query; ``config_of``, the part of each query. With two
    runs, ``difference`` and ``interval`` compare the second with the first.
    """
    results = {name: evaluate(run, qrels, measures) for name, run in runs.items()}
    metrics: dict[str, Any] = {name: result.mean for name, result in results.items()}
    if len(results) == 2:
        base, new = results.values()
        changes = bootstrap(base, new, group_of)
        metrics["difference"] = {name: change.difference for name, change in changes.items()}
        metrics["interval"] = {name: list(change.difference_interval) for name, change in changes.items()}
    configs = sorted(set(config_of.values()))
    if len(configs) > 1:
        last = list(results.values())[-1]
        parts = {
            config: {
                name: statistics.fmean(row[name] for query, row in last.per_query.items() if config_of[query] == config)
                for name in measures
            }
            for config in configs
        }
        means = {name: statistics.fmean(part[name] for part in parts.values()) for name in measures}
        metrics["configs"] = {**parts, "mean": means}
    per_query = [
        {"query_id": query_id, **{name: result.per_query[query_id] for name, result in results.items()}}
        for query_id in sorted(qrels)
    ]
    spec = Spec("eval", 1, {"measures": list(measures), "benchmark": "published"}, {**inputs, "qrels": digest(qrels)})
    return _commit(context, spec, {"queries": len(qrels), "metrics": metrics}, per_query)


@dataclass(frozen=True, slots=True)
class LayoutRun:
    """A run over MMDocIR's layouts, and the layouts by id."""

    run: Run
    layouts: Mapping[str, Layout]


def judge_mmdocir(
    context: Context,
    pages: Run,
    questions: Sequence[Question],
    inputs: Mapping[str, str],
    layouts: LayoutRun | None = None,
) -> Manifest:
    """MMDocIR's own recall of pages and, with ``layouts``, of layouts; in per cent."""
    by_id = {question.query_id: question for question in questions}
    metrics = {
        "page": page_recall(pages, by_id),
        "layout": layout_recall(layouts.run, by_id, layouts.layouts) if layouts else None,
    }
    per_query = [
        {"query_id": name, **{k: recall["micro"] for k, recall in page_recall(pages, {name: question}).items()}}
        for name, question in by_id.items()
    ]
    hashed = digest([dataclasses.asdict(question) for question in questions])
    spec = Spec("eval", 1, {"benchmark": "mmdocir"}, {**inputs, "questions": hashed})
    return _commit(context, spec, {"queries": len(by_id), "metrics": metrics}, per_query)


def _commit(context: Context, spec: Spec, content: EvalContent, per_query: list[dict[str, Any]]) -> Manifest:
    def write(folder: Path) -> None:
        (folder / "metrics.json").write_text(json.dumps(content["metrics"], indent=1, ensure_ascii=False), "utf-8")
        (folder / "per_query.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in per_query), "utf-8"
        )

    return context.workspace.done(spec) or context.workspace.commit(spec, content, 0, write=write)


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value
