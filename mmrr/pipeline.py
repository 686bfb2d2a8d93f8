"""Runs the stages in order. The only module that imports more than one stage, and that follows the head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmrr import plots
from mmrr.config import Index, Model, Prune, Render, Rerank, Retrieve
from mmrr.context import Context
from mmrr.contracts import Scorer
from mmrr.documents.discovery import find_sources
from mmrr.documents.page_grid import CELL_PX
from mmrr.errors import MmrrError
from mmrr.evaluation.trec import read_qrels, read_queries, read_run
from mmrr.modeling import families
from mmrr.modeling.devices import resolve_device, resolve_dtype
from mmrr.stages import embed, evaluate, precache, prune, render, rerank, retrieve
from mmrr.stages import index as index_stage
from mmrr.stages.precache import Plan
from mmrr.stages.rerank import Rescored
from mmrr.types import Query, Run
from mmrr.workspace.files import digest
from mmrr.workspace.pages import Collection, load, read_image
from mmrr.workspace.store import Manifest
from mmrr.workspace.tensors import read_kept_tokens


@dataclass(frozen=True)
class Scoring:
    """Which reranker, and how it makes its caches."""

    family: str
    model: Model
    options: dict[str, str]
    keep: float | None = None  # None: the head's pruning, else 0.5 where there is an embedder, else all

    @property
    def prunes(self) -> bool:
        """Whether an embedder's attention is of use to it."""
        return self.keep != 1 and families.load("scorers", self.family).SPEC.accepts_pruning


@dataclass(frozen=True)
class Ranking:
    """What a search gives: the first stage's run and, if reranked, the final one."""

    collection: Collection
    queries: list[Query]
    retrieved: Manifest
    first: Run
    reranked: Manifest | None = None
    final: Run | None = None

    @property
    def manifest(self) -> Manifest:
        return self.reranked or self.retrieved

    @property
    def run(self) -> Run:
        return self.first if self.final is None else self.final


def render_documents(session: Context, inputs: list[Path], options: Render) -> Manifest:
    """Documents -> ``pages``."""
    return render.render(session.workspace, find_sources(inputs), options, session.machine, session.progress)


def index_pages(
    session: Context, pages: Manifest, embedder: Model | None, embed_options: dict[str, str], options: Index
) -> Manifest:
    """``pages`` -> ``embed`` (with an embedder) -> ``index``."""
    collection = load(session.workspace, pages)
    embedded = None
    if embedder:
        embedded = embed.embed(
            session.workspace, collection, embedder, embed_options, session.machine, session.progress
        )
    return index_stage.build(session.workspace, collection, embedded, options, session.progress)


def prune_pages(
    session: Context, options: Prune, geometry: tuple[int, int | None] | None = None, indexed: Manifest | None = None
) -> Manifest:
    """``embed`` -> ``prune``, on the grid of a scorer's ``geometry`` (by default Qwen3-VL's, pages as rendered)."""
    indexed = indexed or session.current("index")
    collection = session.collection(indexed)
    embedded = session.workspace.find("embed", indexed.inputs["embed"]) if "embed" in indexed.inputs else None
    if embedded is None:
        raise MmrrError(
            "pruning follows the embedder's attention, and this index has none; run mmrr index with --embedder"
        )
    cell_px, max_tokens = geometry or (CELL_PX, None)
    return prune.prune(session.workspace, collection, embedded, options, cell_px, max_tokens, progress=session.progress)


def precache_pages(
    session: Context,
    scoring: Scoring,
    report: Callable[[Plan], None] = lambda plan: None,
    indexed: Manifest | None = None,
) -> Manifest:
    """``pages`` -> (``prune``) -> ``precache``."""
    indexed = indexed or session.current("index")
    collection = session.collection(indexed)
    family = precache.family_of(session.workspace.hashes, scoring.family, scoring.model, scoring.options)
    pruned = None
    options = _pruning(session, scoring, indexed) if family.module.SPEC.accepts_pruning else Prune(1.0)
    if scoring.keep is not None and not family.module.SPEC.accepts_pruning:
        raise MmrrError(f"{scoring.family} caches whole pages: leave out --keep")
    if options.keep < 1:
        pruned = prune_pages(session, options, family.pruning_grid, indexed)
    return precache.precache(session.workspace, collection, pruned, family, session.machine, report, session.progress)


def _pruning(session: Context, scoring: Scoring, indexed: Manifest) -> Prune:
    if scoring.keep is not None:
        if not 0 < scoring.keep <= 1:
            raise MmrrError(f"--keep {scoring.keep}: expected a share of the tokens, above 0 and at most 1")
        if scoring.keep < 1 and "embed" not in indexed.inputs:
            raise MmrrError(
                f"--keep {scoring.keep} needs the embedder's attention, and this index has no page vectors; "
                "run mmrr index with --embedder, or leave --keep out to keep every token"
            )
        return Prune(scoring.keep)
    if "embed" not in indexed.inputs:
        return Prune(1.0)
    head = session.workspace.current("prune")
    if head and head.inputs["embed"] == indexed.inputs["embed"]:
        return Prune(float(head.config["keep"]), head.config["by"])
    return Prune()


def kept_picture(session: Context, page_id: str, chosen: Manifest | None = None) -> Image.Image:
    """A page with the tokens that pruning dropped faded out. Raises MmrrError for a page that is not there."""
    pruned = chosen or session.current("prune")
    collection = session.collection(pruned)
    if page_id not in collection.row_of:
        raise MmrrError(f"no page {page_id} in the index; its pages are named like {collection.pages[0].page_id}")
    row = collection.row_of[page_id]
    page, shard = collection.pages[row], pruned.content["shards"][collection.shards[row]]
    keep = read_kept_tokens(session.workspace, shard)[page.number]
    return plots.kept_tokens(read_image(session.workspace, page), keep)


def search(
    session: Context,
    queries: list[Query],
    options: Retrieve,
    search_options: dict[str, str],
    indexed: Manifest | None = None,
) -> Ranking:
    """Queries -> ``retrieve``."""
    indexed = indexed or session.current("index")
    collection = session.collection(indexed)
    retrieved = retrieve.retrieve(
        session.workspace, collection, indexed, queries, options, search_options, session.machine, session.progress
    )
    return Ranking(collection, queries, retrieved, _read_run(session, retrieved, queries))


def rerank_run(
    session: Context,
    ranking: Ranking,
    options: Rerank,
    score_options: dict[str, str],
    cached: Manifest | None = None,
) -> Ranking:
    """``retrieve`` + ``precache`` -> ``rerank``."""
    cached = session.same_pages(cached or session.current("precache"), ranking.collection)
    reranked = rerank.rerank(
        session.workspace,
        ranking.collection,
        cached,
        ranking.retrieved,
        ranking.first,
        ranking.queries,
        options,
        score_options,
        session.machine,
        session.progress,
    )
    final = _read_run(session, reranked, ranking.queries)
    return dataclasses.replace(ranking, reranked=reranked, final=final)


def rescore(session: Context, n: int) -> Rescored:
    """Compare ``n`` scores of the newest caches, on the newest queries, with plain forwards."""
    cached, retrieved = session.current("precache"), session.current("retrieve")
    collection = session.collection(session.same_pages(retrieved, session.collection(cached)))
    pruned = session.workspace.find("prune", cached.inputs["prune"]) if "prune" in cached.inputs else None
    queries = read_queries(session.workspace.own_file(retrieved, "queries.jsonl"))
    run = _read_run(session, retrieved, queries)
    return rerank.rescore(
        session.workspace, collection, cached, pruned, run, queries, n, session.machine, session.progress
    )


def load_scorer(session: Context, name: str, revision: str | None) -> Scorer:
    """A miniReranker with its default options, for probing."""
    family = precache.family_of(session.workspace.hashes, "minireranker", Model(name, revision), {})
    device = resolve_device(session.machine.device)
    return family.module.load(family.checkpoint, family.prepare, device, resolve_dtype(session.machine.dtype, device))


def remember(session: Context, ranking: Ranking) -> None:
    """Make a ranking the head, for ``mmrr eval`` to follow."""
    session.workspace.set_current(*filter(None, (ranking.retrieved, ranking.reranked)))


def _read_run(session: Context, manifest: Manifest, queries: list[Query]) -> Run:
    """The run of an artifact, a query without hits included."""
    path = session.workspace.own_file(manifest, "run.trec")
    found = read_run(path) if manifest.content["candidates"] else {}
    return {query.query_id: found.get(query.query_id, []) for query in queries}


@dataclass(frozen=True)
class Judgement:
    """A run, judged. ``unknown``: judged pages that the index does not have; they count as not found."""

    metrics: Manifest
    unknown: list[str]


def judge_head(session: Context, qrels_path: Path, measures: list[str] | None, *, reranked: bool) -> Judgement:
    """The head's run against judgements: first stage and reranked, or with ``reranked`` False the first stage alone."""
    newest = session.current("rerank" if reranked else "retrieve")
    runs, inputs = {}, {}
    for name, manifest in (("first_stage", _first_stage(session, newest)), ("reranked", newest if reranked else None)):
        if manifest:
            path = session.workspace.own_file(manifest, "run.trec")
            runs[name] = read_run(path) if manifest.content["candidates"] else {}
            inputs[manifest.stage] = manifest.fingerprint
    return _judge(session, runs, qrels_path, measures, {"pages": newest.inputs["pages"], **inputs})


def judge_file(
    session: Context, run_path: Path, qrels_path: Path, measures: list[str] | None, baseline: Path | None = None
) -> Judgement:
    """Any TREC run against judgements, perhaps beside another."""
    paths = ({"baseline": baseline} if baseline else {}) | {"run": run_path}
    runs = {name: read_run(path) for name, path in paths.items()}
    return _judge(session, runs, qrels_path, measures, {name: digest(run) for name, run in runs.items()})


def _judge(
    session: Context, runs: dict[str, Run], qrels_path: Path, measures: list[str] | None, inputs: dict[str, str]
) -> Judgement:
    qrels = read_qrels(qrels_path)
    unknown: list[str] = []
    pages = session.workspace.find("pages", inputs["pages"]) if "pages" in inputs else None
    if pages:
        known = load(session.workspace, pages).row_of
        judged = {page_id for row in qrels.values() for page_id in row}
        unknown = sorted(judged - set(known))
        if len(unknown) == len(judged):
            raise MmrrError(
                f"{qrels_path}: none of the {len(judged)} judged pages is in the index "
                f"(judged: {min(judged)}; indexed: {next(iter(known))})"
            )
    manifest = evaluate.judge(session.workspace, runs, qrels, inputs, *([measures] if measures else []))
    return Judgement(manifest, unknown)


def _first_stage(session: Context, manifest: Manifest) -> Manifest:
    if manifest.stage == "retrieve":
        return manifest
    found = session.workspace.find("retrieve", manifest.inputs["retrieve"])
    if found is None:
        raise MmrrError(f"the first stage of rerank/{manifest.fingerprint} was removed; run mmrr rerank again")
    return found
