"""What a report shows: runs and how they were made, their costs, queries by gain and loss, and failures with pages.

This module reads the workspace and measures. It writes nothing and knows no HTML: ``page`` draws what it returns.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmrr import __version__
from mmrr.context import Context
from mmrr.evaluation import ids
from mmrr.evaluation.comparison import Comparison, compare_runs
from mmrr.evaluation.metrics import MEASURES
from mmrr.evaluation.stored_runs import NamedRun
from mmrr.reporting.failures import Failing, Failure, Place, find_failures
from mmrr.reporting.made import RunInfo, run_info
from mmrr.types import Qrels, Query, Run
from mmrr.workspace.pages import Collection, load

#: The depth of a failure where the first measure has no cutoff.
_DEPTH = 5


@dataclass(frozen=True)
class Asked:
    """What a report is about. The first run is the baseline."""

    runs: Sequence[NamedRun]
    queries: Sequence[Query]
    qrels: Qrels
    measures: Sequence[str] = MEASURES
    fields: Mapping[str, Mapping[str, str]] | None = None  # {field: {query_id: value}}
    most_failures: int = 30  # that are shown with thumbnails


@dataclass(frozen=True)
class Row:
    """A judged query in the table of queries."""

    query_id: str
    text: str
    values: dict[str, float]  # {run: the first measure}
    ranks: dict[str, int | None]  # {run: rank of the first wanted page, from 1; None: not in the run}
    difference: float | None  # of the subject to the baseline; None: there is one run


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    comparison: Comparison
    subject: str  # the run whose queries and failures are shown: the best that is not the baseline
    runs: list[RunInfo]
    rows: list[Row]  # the largest gain first, the largest loss last
    failures: list[Failure]  # the first ones
    n_failures: int
    depth: int  # a failure has no wanted page among this many
    notes: list[str]  # what the ids of runs and judgements lack
    workspace: str  # the folder's name
    pages: int | None  # of the collection that the thumbnails are from
    created: str
    version: str

    @property
    def measure(self) -> str:
        """The first measure: of plots, queries and failures."""
        return self.comparison.measures[0]


def gather(context: Context, asked: Asked) -> Report:
    """Measure the runs and collect what the report shows.

    Raises MmrrError with ids of both kinds if a run answers no judged query or has no judged page, and as ``evaluate``
    does.
    """
    collection = _collection(context, asked.runs)
    notes = _check(asked, collection)
    runs = {one.label: one.run for one in asked.runs}
    compared = compare_runs(runs, asked.qrels, asked.measures, fields=asked.fields)
    subject, depth = compared.best, _depth(compared.measures[0])
    rows = _rows(asked, compared, runs)
    failing = [row for row in reversed(rows) if _fails(row.ranks[subject], depth, asked.qrels[row.query_id])]
    lost = [Failing(row.query_id, row.text, asked.qrels[row.query_id], row.ranks) for row in failing]
    place = Place(subject, compared.baseline, runs[subject], depth)
    shown = find_failures(context, collection, lost[: asked.most_failures], place)
    return Report(
        comparison=compared,
        subject=subject,
        runs=[run_info(context.workspace, one) for one in asked.runs],
        rows=rows,
        failures=shown,
        n_failures=len(failing),
        depth=depth,
        notes=notes,
        workspace=context.workspace.root.name,
        pages=len(collection.whole_pages()) if collection else None,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )


def _collection(context: Context, runs: Sequence[NamedRun]) -> Collection | None:
    """The pages of the last run that was made here, else the current ones; None if there are none."""
    made = [one.made for one in runs if one.made]
    current = context.find_current("pages")
    for fingerprint in [*(one.inputs["pages"] for one in reversed(made)), *([current.fingerprint] if current else [])]:
        pages = context.workspace.find("pages", fingerprint)
        if pages:
            return load(context.workspace, pages)
    return None


def _check(asked: Asked, collection: Collection | None) -> list[str]:
    """What the runs and the judgements lack, in sentences."""
    notes: list[str] = []
    known = set(collection.images) if collection else set()
    judged = {page_id for pages in asked.qrels.values() for page_id in pages}
    for one in asked.runs:
        ids.check_queries(one.label, one.run, asked.qrels)
        other = ids.check_pages(one.label, one.run, asked.qrels, known)
        missing = [query_id for query_id in asked.qrels if not one.run.get(query_id)]
        if other:
            notes.append(
                f"{one.label}: {len(other)} judged pages are in the run under another id and count as not found, "
                f"such as {', '.join(list(other)[:3])}."
            )
        if missing:
            notes.append(
                f"{one.label}: {len(missing)} of {len(asked.qrels)} judged queries are not in the run and count as 0: "
                f"{ids.some(missing)}."
            )
    if known and (unknown := sorted(judged - known)):
        notes.append(f"{len(unknown)} judged pages are not in the index, such as {ids.some(unknown)}.")
    return notes


def _rows(asked: Asked, compared: Comparison, runs: Mapping[str, Run]) -> list[Row]:
    texts = {query.query_id: " ".join(_parts(query)) for query in asked.queries}
    measure, subject = compared.measures[0], compared.best
    places = {
        label: {query: {hit.page_id: i for i, hit in enumerate(hits, 1)} for query, hits in run.items()}
        for label, run in runs.items()
    }
    rows = []
    for query_id, judged in asked.qrels.items():
        values = {label: one.per_query[query_id][measure] for label, one in compared.evaluations.items()}
        wanted = [page_id for page_id, grade in judged.items() if grade > 0]
        ranks = {}
        for label in compared.evaluations:
            own = places[label].get(query_id, {})
            ranks[label] = min((own[page_id] for page_id in wanted if page_id in own), default=None)
        difference = values[subject] - values[compared.baseline] if compared.against else None
        rows.append(Row(query_id, texts.get(query_id, ""), values, ranks, difference))
    if not compared.against:
        return sorted(rows, key=lambda row: -row.values[subject])
    return sorted(rows, key=lambda row: (-(row.difference or 0), -row.values[subject]))


def _parts(query: Query) -> list[str]:
    """The text of a query, and the name of its image."""
    return [*([query.text] if query.text else []), *([f"[image: {query.image.name}]"] if query.image else [])]


def _fails(rank: int | None, depth: int, judged: Mapping[str, int]) -> bool:
    """Whether no wanted page is among the first. A query without a wanted page cannot fail."""
    return any(grade > 0 for grade in judged.values()) and (rank is None or rank > depth)


def _depth(measure: str) -> int:
    cutoff = re.search(r"@(\d+)$", measure)
    return int(cutoff[1]) if cutoff else _DEPTH
