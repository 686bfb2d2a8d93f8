"""Stage ``import_run``: a run of another system -> ``retrieve``, in the place of the first stage."""

from __future__ import annotations

from pathlib import Path

from mmrr.context import Context
from mmrr.evaluation.trec import save_run
from mmrr.queries import fingerprinted, write_queries
from mmrr.types import Query, Run
from mmrr.workspace.files import digest
from mmrr.workspace.manifests import RetrieveConfig, RetrieveContent
from mmrr.workspace.pages import Collection
from mmrr.workspace.store import Manifest, Spec


def import_run(context: Context, collection: Collection, queries: list[Query], run: Run) -> Manifest:
    """Store a run over pages of a collection. It depends on the run and the queries, not on an index."""
    config: RetrieveConfig = {
        "first_stage": "run",
        "scope": "corpus",
        "depth": max(map(len, run.values()), default=0),
    }
    inputs = {
        "pages": collection.manifest.fingerprint,
        "queries": digest(fingerprinted(queries)),
        "run": digest({query_id: [tuple(hit) for hit in hits] for query_id, hits in run.items()}),
    }
    spec = Spec("retrieve", 5, config, inputs)
    if done := context.workspace.done(spec):
        return done

    def write(folder: Path) -> None:
        save_run(run, folder)
        write_queries(queries, folder)

    content: RetrieveContent = {"queries": len(queries), "candidates": sum(map(len, run.values())), "shards": []}
    return context.workspace.commit(spec, content, 0, {"search_ms": 0.0}, write)
