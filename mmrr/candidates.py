"""Candidates of another system: their ids become pages, and the caches of these pages alone are computed.

These functions move nothing that later commands follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from mmrr.context import Context
from mmrr.errors import MmrrError
from mmrr.evaluation.ids import queries_of, to_pages
from mmrr.evaluation.run_files import ExternalRun
from mmrr.modeling import families
from mmrr.pipeline import Ranking, Scoring, family_and_pruning, followed_pruning
from mmrr.stages import import_run, precache
from mmrr.stages._visual import check_scorer
from mmrr.types import Query
from mmrr.workspace import manifests
from mmrr.workspace.pages import Collection, load
from mmrr.workspace.store import Manifest


@dataclass(frozen=True)
class Imported:
    """A run of another system as a ranking, and what of it was left out."""

    ranking: Ranking
    unknown: list[str]  # ids without a page
    cut: int  # candidates beyond the depth
    without_text: list[str]  # queries of the run without a text
    without_candidates: list[str]  # queries that the run lacks


def pages_of(context: Context) -> Collection:
    """The pages of the index, or the rendered ones where there is no index. Raises MmrrError if there are none."""
    indexed = context.current("index") if "index" in context.chosen else context.workspace.current("index")
    return context.collection(indexed) if indexed else load(context.workspace, context.current("pages"))


def import_external(
    context: Context,
    found: ExternalRun,
    queries: list[Query],
    ids: Mapping[str, str],
    depth: int,
    within: Set[int] | None = None,
) -> Imported:
    """The ``depth`` best candidates of another system -> ``retrieve``. ``ids``: {id of the run: page id}.

    ``within``: the rows of the candidates that stay; None: all. Raises MmrrError with ids of both kinds if no query or
    no page fits.
    """
    collection = pages_of(context)
    without_text, without_candidates = queries_of(found.run, queries, "--run")
    run, unknown = to_pages(found.run, collection.row_of, ids, "--run")
    fitting = {
        query.query_id: [
            hit for hit in run.get(query.query_id, []) if within is None or collection.row_of[hit.page_id] in within
        ]
        for query in queries
    }
    cut = sum(max(0, len(hits) - depth) for hits in fitting.values())
    run = {query_id: hits[:depth] for query_id, hits in fitting.items()}
    retrieved = import_run.import_run(context, collection, queries, run)
    return Imported(Ranking(collection, queries, retrieved, run), unknown, cut, without_text, without_candidates)


def candidate_caches(context: Context, scoring: Scoring, ranking: Ranking, *, build: bool = True) -> Manifest:
    """The caches of the candidates of a ranking; of these alone, the missing ones are computed and kept.

    If the current caches are of this scorer and these pages, they are returned. With ``build`` False none is computed,
    for ``Rerank.dense``. The manifest is that of ``precache.prepare_pages``.
    """
    collection = ranking.collection
    check_scorer(scoring.family, ranking.queries)
    if found := _current_caches(context, scoring, collection):
        return found
    indexed = context.workspace.current("index") if "index" not in context.chosen else context.current("index")
    if build and indexed and indexed.inputs["pages"] == collection.manifest.fingerprint:
        family, pruned = family_and_pruning(context, scoring, indexed, followed_pruning(context, scoring, indexed))
    else:
        if build and scoring.keep not in (None, 1):
            raise MmrrError(f"--keep {scoring.keep} needs an index with page vectors; run mmrr index with --embedder")
        family = precache.family_of(context.workspace.hashes, scoring.family, scoring.model, scoring.options)
        pruned = None
    rows = list(dict.fromkeys(collection.row_of[hit.page_id] for hits in ranking.first.values() for hit in hits))
    return precache.prepare_pages(context, collection, pruned, family, rows, build=build)


def _current_caches(context: Context, scoring: Scoring, collection: Collection) -> Manifest | None:
    """The current caches, if every setting that ``scoring`` names is theirs."""
    found = context.workspace.current("precache")
    if found is None or found.inputs["pages"] != collection.manifest.fingerprint:
        return None
    config, model = manifests.config(found, "precache"), found.model or {}
    family = precache.family_of(context.workspace.hashes, scoring.family, scoring.model, scoring.options)
    options = families.stored_options(family.prepare)
    same = (
        config["family"] == scoring.family
        and model.get("revision") == family.checkpoint.revision
        and context.machine.dtype in ("auto", model.get("dtype"))
        and scoring.keep in (None, manifests.content(found, "precache")["keep"])
        and all(config["options"].get(name) == options.get(name) for name in scoring.options)
    )
    return found if same else None
