"""Runs the stages in order. The only module that imports more than one stage, and that follows the head."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mmrr import families, mmdocir, picture
from mmrr.artifacts import Manifest, Workspace, command
from mmrr.collection import Collection, load, read_image
from mmrr.config import Index, Machine, Model, Prune, Render, Rerank, Retrieve
from mmrr.devices import resolve_device, resolve_dtype
from mmrr.documents import find_sources
from mmrr.errors import MmrrError
from mmrr.files import digest
from mmrr.geometry import CELL_PX
from mmrr.mmdocir import Benchmark, Text
from mmrr.shards import read_keeps
from mmrr.stages import build, corpus, embed, evaluate, precache, prune, render, rerank, retrieve
from mmrr.stages.precache import Plan
from mmrr.stages.rerank import Rescored
from mmrr.trec import read_qrels, read_queries, read_run
from mmrr.types import Progress, Qrels, Query, Run, silent

#: What scorers are compared by.
COMPARED = ("R@1", "R@3", "R@5", "nDCG@5")


#: The schemas since which pages' vectors are kept as they are now.
_VECTORS_SINCE = {"embed": 2, "index": 3}


@dataclass(frozen=True)
class Session:
    """What every step needs: where, on what, and how to tell of it."""

    workspace: Workspace
    machine: Machine = field(default_factory=Machine)
    progress: Progress = silent
    chosen: Mapping[str, str] = field(default_factory=dict)  # stage -> fingerprint, instead of the head

    def current(self, stage: str) -> Manifest:
        """The chosen artifact of a stage, or the head. Raises MmrrError naming the command to run first."""
        work = self.workspace.root
        if stage in self.chosen:
            found = self.workspace.find(stage, self.chosen[stage])
            if found is None:
                raise MmrrError(f"no {stage}/{self.chosen[stage]} in {work}; see: mmrr ls --work {work}")
        else:
            found = self.workspace.head(stage)
        if found is None:
            raise MmrrError(f"{work} has no {stage} yet; run: mmrr {command(stage)} --work {work}")
        if found.schema < _VECTORS_SINCE.get(stage, 0):
            raise MmrrError(
                f"{stage}/{found.fingerprint} was made by an earlier mmrr, which kept vectors otherwise; "
                f"run: mmrr index --work {work}, with the same documents"
            )
        return found

    def collection(self, manifest: Manifest) -> Collection:
        """The pages an artifact was made of."""
        pages = self.workspace.find("pages", manifest.inputs["pages"])
        if pages is None:
            raise MmrrError(f"the pages of {manifest.stage}/{manifest.fingerprint} were removed; run mmrr index again")
        return load(self.workspace, pages)

    def same_pages(self, manifest: Manifest, collection: Collection) -> Manifest:
        """``manifest``, if it descends from the collection. Raises MmrrError naming the command to run."""
        if manifest.inputs["pages"] != collection.manifest.fingerprint:
            raise MmrrError(
                f"{manifest.stage}/{manifest.fingerprint} was made of other pages than the index; "
                f"run: mmrr {command(manifest.stage)} --work {self.workspace.root}"
            )
        return manifest


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
        return self.keep != 1 and bool(families.load("scorers", self.family).PRUNES)


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


def render_documents(session: Session, inputs: list[Path], options: Render) -> Manifest:
    """Documents -> ``pages``."""
    return render.render(session.workspace, find_sources(inputs), options, session.machine, session.progress)


def index_pages(
    session: Session, pages: Manifest, embedder: Model | None, embed_options: dict[str, str], options: Index
) -> Manifest:
    """``pages`` -> ``embed`` (with an embedder) -> ``index``."""
    collection = load(session.workspace, pages)
    embedded = None
    if embedder:
        embedded = embed.embed(
            session.workspace, collection, embedder, embed_options, session.machine, session.progress
        )
    return build.build(session.workspace, collection, embedded, options, session.progress)


def prune_pages(
    session: Session, options: Prune, geometry: tuple[int, int | None] | None = None, indexed: Manifest | None = None
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
    session: Session,
    scoring: Scoring,
    report: Callable[[Plan], None] = lambda plan: None,
    indexed: Manifest | None = None,
) -> Manifest:
    """``pages`` -> (``prune``) -> ``precache``."""
    indexed = indexed or session.current("index")
    collection = session.collection(indexed)
    family = precache.family_of(session.workspace.hashes, scoring.family, scoring.model, scoring.options)
    pruned = None
    options = _pruning(session, scoring, indexed) if family.module.PRUNES else Prune(1.0)
    if scoring.keep is not None and not family.module.PRUNES:
        raise MmrrError(f"{scoring.family} caches whole pages: leave out --keep")
    if options.keep < 1:
        pruned = prune_pages(session, options, family.geometry, indexed)
    return precache.precache(session.workspace, collection, pruned, family, session.machine, report, session.progress)


def _pruning(session: Session, scoring: Scoring, indexed: Manifest) -> Prune:
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
    head = session.workspace.head("prune")
    if head and head.inputs["embed"] == indexed.inputs["embed"]:
        return Prune(float(head.config["keep"]), head.config["by"])
    return Prune()


def kept_picture(session: Session, page_id: str, chosen: Manifest | None = None) -> Image.Image:
    """A page with the tokens that pruning dropped faded out. Raises MmrrError for a page that is not there."""
    pruned = chosen or session.current("prune")
    collection = session.collection(pruned)
    if page_id not in collection.row_of:
        raise MmrrError(f"no page {page_id} in the index; its pages are named like {collection.pages[0].page_id}")
    row = collection.row_of[page_id]
    page, shard = collection.pages[row], pruned.content["shards"][collection.shards[row]]
    keep = read_keeps(session.workspace, shard)[page.number]
    return picture.kept_tokens(read_image(session.workspace, page), keep)


def search(
    session: Session,
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
    session: Session,
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


def rescore(session: Session, n: int) -> Rescored:
    """Compare ``n`` scores of the newest caches, on the newest queries, with plain forwards."""
    cached, retrieved = session.current("precache"), session.current("retrieve")
    collection = session.collection(session.same_pages(retrieved, session.collection(cached)))
    pruned = session.workspace.find("prune", cached.inputs["prune"]) if "prune" in cached.inputs else None
    queries = read_queries(session.workspace.own_file(retrieved, "queries.jsonl"))
    run = _read_run(session, retrieved, queries)
    return rerank.rescore(
        session.workspace, collection, cached, pruned, run, queries, n, session.machine, session.progress
    )


def load_scorer(session: Session, name: str, revision: str | None) -> Any:
    """A miniReranker with its default options, for probing."""
    family = precache.family_of(session.workspace.hashes, "minireranker", Model(name, revision), {})
    device = resolve_device(session.machine.device)
    return family.module.Scorer(family.checkpoint, family.prepare, device, resolve_dtype(session.machine.dtype, device))


def remember(session: Session, ranking: Ranking) -> None:
    """Make a ranking the head, for ``mmrr eval`` to follow."""
    session.workspace.set_head(*filter(None, (ranking.retrieved, ranking.reranked)))


def _read_run(session: Session, manifest: Manifest, queries: list[Query]) -> Run:
    """The run of an artifact, a query without hits included."""
    path = session.workspace.own_file(manifest, "run.trec")
    found = read_run(path) if manifest.content["candidates"] else {}
    return {query.query_id: found.get(query.query_id, []) for query in queries}


@dataclass(frozen=True)
class Judgement:
    """A run, judged. ``unknown``: judged pages that the index does not have; they count as not found."""

    metrics: Manifest
    unknown: list[str]


def judge_head(session: Session, qrels_path: Path, measures: list[str] | None, *, reranked: bool) -> Judgement:
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
    session: Session, run_path: Path, qrels_path: Path, measures: list[str] | None, baseline: Path | None = None
) -> Judgement:
    """Any TREC run against judgements, perhaps beside another."""
    paths = ({"baseline": baseline} if baseline else {}) | {"run": run_path}
    runs = {name: read_run(path) for name, path in paths.items()}
    return _judge(session, runs, qrels_path, measures, {name: digest(run) for name, run in runs.items()})


def _judge(
    session: Session, runs: dict[str, Run], qrels_path: Path, measures: list[str] | None, inputs: dict[str, str]
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


def _first_stage(session: Session, manifest: Manifest) -> Manifest:
    if manifest.stage == "retrieve":
        return manifest
    found = session.workspace.find("retrieve", manifest.inputs["retrieve"])
    if found is None:
        raise MmrrError(f"the first stage of rerank/{manifest.fingerprint} was removed; run mmrr rerank again")
    return found


@dataclass(frozen=True)
class Compared:
    """One way of ranking, measured."""

    name: str  # of the scorer and its model; "first stage"
    metrics: dict[str, float]  # fractions
    page_bytes: int = 0  # of a page's cache
    pages_per_second: float | None = None  # of precaching, when the caches were made; None: it was done by others
    query_ms: float | None = None  # median, from the caches


def compare(
    session: Session,
    queries: list[Query],
    qrels: Qrels,
    options: Retrieve,
    scorings: Mapping[str, Scoring],
    rerank_options: Rerank,
    report: Callable[[Plan], None] = lambda plan: None,
) -> list[Compared]:
    """The first stage and each scorer over its candidates, on the newest index. The caches are made where missing."""
    indexed = session.current("index")
    ranking = search(session, queries, options, {}, indexed)
    runs = {"first stage": ranking.first}
    found: dict[str, tuple[int, float | None, float | None]] = {}
    for name, scoring in scorings.items():
        cached = precache_pages(session, scoring, report, indexed)
        reranked = rerank_run(session, ranking, rerank_options, {}, cached)
        assert reranked.reranked
        assert reranked.final is not None
        runs[name] = reranked.final
        lines = session.workspace.own_file(reranked.reranked, "timings.jsonl").read_text("utf-8").splitlines()
        made, seconds = cached.provenance["pages_computed"], cached.provenance["seconds"]
        per_second = made / seconds if made and seconds else None
        query_ms = statistics.median(json.loads(line)["score_ms"] for line in lines) if lines else None
        found[name] = (int(cached.content["page_bytes"]), per_second, query_ms)
    inputs = {"pages": indexed.inputs["pages"], "runs": digest(runs)}
    metrics = evaluate.judge(session.workspace, runs, qrels, inputs, COMPARED).content["metrics"]
    return [Compared(name, metrics[name], *found.get(name, ())) for name in runs]


@dataclass(frozen=True)
class BenchmarkResult:
    """MMDocIR, judged."""

    benchmark: Benchmark
    ranking: Ranking
    metrics: Manifest

    @property
    def run_path(self) -> Path:
        return self.ranking.manifest.path / "run.trec"


def mmdocir_benchmark(
    session: Session,
    data: str,
    options: Render,
    text: Text,
    embedder: Model | None,
    embed_options: dict[str, str],
    index: Index,
    retrieve_options: Retrieve,
    search_options: dict[str, str],
    scoring: Scoring | None,
    rerank_options: Rerank,
    score_options: dict[str, str],
    report: Callable[[Plan], None] = lambda plan: None,
    *,
    with_layouts: bool = False,
) -> BenchmarkResult:
    """MMDocIR from its parquet files or its PDFs to its own metric, inside each question's own document.

    ``scoring`` None evaluates the first stage alone. ``with_layouts`` ranks the published layouts too, by the same
    chain over their crops.
    """
    benchmark = mmdocir.open_benchmark(data)
    if with_layouts and benchmark.form != "published":
        raise MmrrError("layouts come with the published parquet files; the PDFs and annotations hold none to rank")
    if options.ocr and benchmark.form == "published":
        raise MmrrError("the published parquet files come with their pages' text (--text): leave out --ocr")
    retrieve_options = dataclasses.replace(retrieve_options, scope="document")

    def rank_items(pages: Manifest) -> Ranking:
        indexed = index_pages(session, pages, embedder, embed_options, index)
        ranking = search(session, benchmark.queries(), retrieve_options, search_options, indexed)
        if scoring:
            cached = precache_pages(session, scoring, report, indexed)
            ranking = rerank_run(session, ranking, rerank_options, score_options, cached)
        return ranking

    layouts = None
    layout_inputs = {}
    if with_layouts:
        crops = corpus.read_layouts(session.workspace, benchmark, options.max_tokens, text, session.progress)
        table = {layout.layout_id: layout for layout in mmdocir.iter_layouts(benchmark, text, images=False)}
        ranked = rank_items(crops)
        layouts = (ranked.run, table)
        layout_inputs = {"layouts": ranked.manifest.fingerprint}
    if benchmark.form == "published":
        pages = corpus.read_pages(session.workspace, benchmark, options.max_tokens, text, session.progress)
    else:
        sources = [
            dataclasses.replace(find_sources([document.pdf])[0], doc_id=document.doc_id)
            for document in benchmark.documents
            if document.pdf
        ]
        pages = render.render(session.workspace, sources, options, session.machine, session.progress)
    ranking = rank_items(pages)  # last, so that the head is on the pages
    remember(session, ranking)
    inputs = {"pages": pages.fingerprint, ranking.manifest.stage: ranking.manifest.fingerprint, **layout_inputs}
    judged = evaluate.judge_mmdocir(session.workspace, ranking.run, benchmark.questions, inputs, layouts)
    return BenchmarkResult(benchmark, ranking, judged)
