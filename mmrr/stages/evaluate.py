"""Stage ``eval``: runs and judgements -> measures, stored with what they were measured on."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrr.context import Context
from mmrr.errors import MmrrError
from mmrr.evaluation.metrics import MEASURES, bootstrap, evaluate, kendall_tau, layout_recall, page_recall
from mmrr.evaluation.mmdocir import Layout, Question
from mmrr.types import Qrels, Run
from mmrr.workspace.files import digest
from mmrr.workspace.manifests import EvalContent
from mmrr.workspace.store import Manifest, Spec


def judge(
    context: Context,
    runs: Mapping[str, Run],
    qrels: Qrels,
    inputs: Mapping[str, str],
    measures: Sequence[str] = MEASURES,
) -> Manifest:
    """Standard measures of ``runs``: one run, or two such as ``{"first_stage": ..., "reranked": ...}`` to compare.

    Raises MmrrError if a run answers none of the judged queries.
    """
    for name, run in runs.items():
        if not set(qrels) & set(run):
            raise MmrrError(
                f"the {name.replace('_', ' ')} run answers none of the {len(qrels)} judged queries "
                f"(run: {_some(run)}; judged: {_some(qrels)})"
            )
    results = {name: evaluate(run, qrels, measures) for name, run in runs.items()}
    metrics: dict[str, Any] = {name: result.mean for name, result in results.items()}
    if len(results) == 2:
        base, new = results.values()
        changes = bootstrap(base, new, {query_id: _document(row) for query_id, row in qrels.items()})
        metrics["difference"] = {name: change.difference for name, change in changes.items()}
        metrics["interval"] = {name: list(change.difference_interval) for name, change in changes.items()}
        metrics["kept"] = {name: _number(change.kept) for name, change in changes.items()}
        metrics["kendall_tau"] = _number(kendall_tau(*runs.values()))
        metrics["kept_interval"] = {name: [*map(_number, change.kept_interval)] for name, change in changes.items()}
    per_query = [
        {"query_id": query_id, **{name: result.per_query[query_id] for name, result in results.items()}}
        for query_id in sorted(qrels)
    ]
    spec = Spec("eval", 3, {"measures": list(measures)}, {**inputs, "qrels": digest(qrels)})
    return _commit(context, spec, {"queries": len(qrels), "metrics": metrics}, per_query)


def missing_queries(runs: Mapping[str, Run], qrels: Qrels) -> list[str]:
    """The judged queries that at least one of the runs lacks. They count as 0 there."""
    return sorted(query_id for query_id in qrels if not all(run.get(query_id) for run in runs.values()))


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


def _document(judged: Mapping[str, int]) -> str:
    """The document of the first relevant page, by page id; of the first judged page if none is relevant."""
    pages = [page_id for page_id, grade in judged.items() if grade > 0] or list(judged)
    return min(pages).rpartition("/")[0]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _some(ids: Mapping[str, object]) -> str:
    names = list(ids)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"
