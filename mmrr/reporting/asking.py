"""What a report is asked for: runs, questions and judgements by their files, or the current ones of the workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrr.context import Context
from mmrr.errors import MmrrError
from mmrr.evaluation import query_fields
from mmrr.evaluation.metrics import MEASURES
from mmrr.evaluation.stored_runs import NamedRun, by_label, exact_run, first_stage_of, named_runs
from mmrr.evaluation.trec import read_qrels, read_queries
from mmrr.reporting.gather import Asked
from mmrr.types import Query


@dataclass(frozen=True)
class Files:
    """The files of a report, as the options of ``mmrr report`` name them."""

    qrels: Path
    queries: Path | None = None  # None: those that the rankings were made for
    runs: Sequence[Path] = ()  # TREC files or artifacts; empty: the current ranking and its first stage
    baseline: Path | None = None  # None: the first run


def ask(context: Context, files: Files, measures: Sequence[str] | None = None, most_failures: int = 30) -> Asked:
    """Read what a report is about. ``most_failures``: that are shown with thumbnails.

    Raises MmrrError as the readers of these files do, for queries without a judged one, and for a baseline alone.
    """
    if files.runs:
        named = named_runs(context.workspace, [*filter(None, [files.baseline]), *files.runs])
        runs = [*by_label(named).values()]
    elif files.baseline:
        raise MmrrError("--baseline needs --run, the run to compare it with")
    else:
        runs = _current_runs(context)
    qrels = read_qrels(files.qrels)
    fields: dict[str, dict[str, str]] = {}
    if files.queries is None:
        queries = _asked_queries(context, runs)
    else:
        queries = read_queries(files.queries, images=True)
        query_fields.check_judged(files.queries, queries, qrels)
        fields = query_fields.read_fields(files.queries, queries)
    return Asked(runs, queries, qrels, measures or MEASURES, fields, most_failures)


def _current_runs(context: Context) -> list[NamedRun]:
    """The current reranking and its first stage, or the current first stage where nothing was reranked.

    Raises MmrrError with the command to run first if there is no ranking.
    """
    newest = context.find_current("rerank") if "retrieve" not in context.chosen else None
    if newest is None and "rerank" in context.chosen:
        newest = context.current("rerank")
    newest = newest or context.current("retrieve")
    made = [first_stage_of(context.workspace, newest), *([newest] if newest.stage == "rerank" else [])]
    labels = {"retrieve": "first stage", "rerank": "reranked"}
    return [NamedRun(labels[one.stage], exact_run(context.workspace, one), one) for one in made]


def _asked_queries(context: Context, runs: Sequence[NamedRun]) -> list[Query]:
    """The queries that the runs of this workspace were made for. Raises MmrrError if no run is of this workspace."""
    found: dict[str, Query] = {}
    for one in runs:
        if one.made:
            first = first_stage_of(context.workspace, one.made)
            stored = read_queries(context.workspace.own_file(first, "queries.jsonl"), images=True)
            found |= {query.query_id: query for query in stored}
    if not found:
        raise MmrrError(
            "these runs were made elsewhere, without their questions; pass the questions with --queries FILE"
        )
    return list(found.values())
