"""Experiments over the pipeline: several scorers over the same candidates, the MMDocIR benchmark.

Nothing here moves what later commands follow.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmrr.config import Index, Model, Render, Rerank, Retrieve
from mmrr.context import Context
from mmrr.documents.discovery import find_sources
from mmrr.errors import MmrrError
from mmrr.evaluation import mmdocir
from mmrr.evaluation.mmdocir import Benchmark, Text
from mmrr.pipeline import Ranking, Scoring, index_pages, precache_pages, remember, rerank_run, search
from mmrr.stages import evaluate, import_mmdocir, render
from mmrr.stages.precache import Plan
from mmrr.types import Qrels, Query
from mmrr.workspace.files import digest
from mmrr.workspace.store import Manifest

#: What scorers are compared by.
COMPARED = ("R@1", "R@3", "R@5", "nDCG@5")


@dataclass(frozen=True)
class Compared:
    """One way of ranking, measured."""

    name: str  # of the scorer and its model; "first stage"
    metrics: dict[str, float]  # fractions
    page_bytes: int = 0  # of a page's cache
    pages_per_second: float | None = None  # of precaching, when the caches were made; None: it was done by others
    query_ms: float | None = None  # median, from the caches


def compare(
    session: Context,
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
    session: Context,
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
        crops = import_mmdocir.read_layouts(session.workspace, benchmark, options.max_tokens, text, session.progress)
        table = {layout.layout_id: layout for layout in mmdocir.iter_layouts(benchmark, text, images=False)}
        ranked = rank_items(crops)
        layouts = (ranked.run, table)
        layout_inputs = {"layouts": ranked.manifest.fingerprint}
    if benchmark.form == "published":
        pages = import_mmdocir.read_pages(session.workspace, benchmark, options.max_tokens, text, session.progress)
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
