"""Experiments with the chain: several scorers over the same candidates, and the MMDocIR benchmark.

Nothing here moves what later commands follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrr.config import Rerank, Retrieve, Scope
from mmrr.context import Context
from mmrr.documents.discovery import find_sources
from mmrr.errors import MmrrError
from mmrr.evaluation import ids, mmdocir, stored_runs
from mmrr.evaluation.comparison import Comparison, compare_runs
from mmrr.evaluation.mmdocir import Benchmark, Text
from mmrr.indexing import build
from mmrr.pipeline import Chain, Ranking, Scoring, cache_pages, rerank_run, search
from mmrr.search import channels
from mmrr.stages import evaluate, import_mmdocir, render, retrieve
from mmrr.stages._visual import check_scorer
from mmrr.stages.evaluate import LayoutRun
from mmrr.stages.precache import Plan
from mmrr.types import Qrels, Query, Run
from mmrr.workspace import manifests
from mmrr.workspace.changes import Place
from mmrr.workspace.files import digest
from mmrr.workspace.store import Manifest

#: The measures that scorers are compared by.
COMPARED = ("R@1", "R@3", "R@5", "nDCG@5")


@dataclass(frozen=True)
class Compared:
    """One way of ranking, measured."""

    name: str  # of the scorer and its model; "first stage"
    metrics: dict[str, float]  # fractions
    page_bytes: int = 0  # of a page's cache
    pages_per_second: float | None = None  # of precaching; None: no cache was computed for the artifact
    query_ms: float | None = None  # median time to score a query's candidates from the caches
    reranked: Manifest | None = None  # the artifact of the run; None: the first stage


@dataclass(frozen=True)
class ComparedScorers:
    """Several scorers over the same candidates, measured and compared with the first stage."""

    rows: list[Compared]
    runs: dict[str, Run]  # by name, as in ``rows``
    comparison: Comparison
    retrieved: Manifest  # the first stage


def compare(
    context: Context,
    queries: list[Query],
    qrels: Qrels,
    options: Retrieve,
    scorings: Mapping[str, Scoring],
    rerank_options: Rerank,
    report: Callable[[Plan], None] = lambda plan: None,
    fields: Mapping[str, Mapping[str, str]] | None = None,
) -> ComparedScorers:
    """The first stage, and each scorer over its candidates, on the current index. Missing caches are computed.

    A scorer without a share of kept tokens keeps the default share, whatever is current. ``fields``: {field: {query_id:
    value}}, for groups of queries. Eight parameters: the questions and the settings of three stages, which vary
    independently. Raises MmrrError if the index has none of the
    judged pages.
    """
    indexed = context.current("index")
    ids.unknown_pages(qrels, context.collection(indexed).row_of, "the judgements")
    for scoring in scorings.values():
        check_scorer(scoring.family, queries)
    ranking = search(context, queries, options, {}, indexed)
    runs = {"first stage": ranking.first}
    found: dict[str, tuple[int, float | None, float | None, Manifest]] = {}
    for name, scoring in scorings.items():
        *_, cached = cache_pages(context, scoring, indexed, report)
        reranked = rerank_run(context, ranking, rerank_options, {}, cached)
        assert reranked.reranked
        assert reranked.final is not None
        runs[name] = reranked.final
        found[name] = (*_costs(context, cached, reranked.reranked), reranked.reranked)
    inputs = {"pages": indexed.inputs["pages"], "runs": digest(runs)}
    _, compared = evaluate.judge(context, runs, qrels, inputs, COMPARED, fields)
    rows = [Compared(name, compared.evaluations[name].mean, *found.get(name, ())) for name in runs]
    return ComparedScorers(rows, runs, compared, ranking.retrieved)


def _costs(context: Context, cached: Manifest, reranked: Manifest) -> tuple[int, float | None, float | None]:
    """Bytes per page, pages per second of precaching, and the median time of a query in milliseconds."""
    timing = manifests.provenance(cached, "precache")
    made, seconds = timing["pages_computed"], timing["seconds"]
    per_second = made / seconds if made and seconds else None
    query_ms = stored_runs.query_ms(context.workspace, reranked)
    return manifests.content(cached, "precache")["page_bytes"], per_second, query_ms


def by_channel(
    context: Context,
    queries: list[Query],
    qrels: Qrels,
    measures: Sequence[str],
    scope: Scope = "corpus",
    fields: Mapping[str, Mapping[str, str]] | None = None,
) -> Comparison:
    """Each channel of the current index alone, each sum of them with the default weights, and the current reranking.

    The first channel is the baseline. ``fields``: {field: {query_id: value}}, for groups of queries. The
    reranking is left out if it is of other pages or answers none of the judged queries. Six parameters: what is
    searched and how it is measured. Raises MmrrError if the index has none of the judged pages.
    """
    indexed = context.current("index")
    ids.unknown_pages(qrels, context.collection(indexed).row_of, "the judgements")
    runs: dict[str, Run] = {}
    for names in channels.sums(retrieve.available(context.workspace, indexed)):
        weights = channels.default(names)
        label = " + ".join(name if weights[name] == 1 else f"{weights[name]:g} {name}" for name in names)
        options = Retrieve(scope=scope, channels=weights)
        runs[label] = search(context, queries, options, {}, indexed).first
    reranked = context.workspace.current("rerank")
    if reranked and reranked.inputs["pages"] == indexed.inputs["pages"]:
        run = stored_runs.exact_run(context.workspace, reranked)
        config = manifests.config(reranked, "rerank")
        fused = f" (fused {config['blend']:g})" if "blend" in config else ""
        if run.keys() & qrels.keys():
            runs[f"reranked by {config['family']}{fused}"] = run
    return compare_runs(runs, qrels, measures, fields=fields)


@dataclass(frozen=True)
class BenchmarkResult:
    """MMDocIR, judged."""

    benchmark: Benchmark
    ranking: Ranking
    metrics: Manifest
    steps: list[Manifest]  # the artifacts of the chain over the pages, in order, for a command to make current

    @property
    def run_path(self) -> Path:
        """The TREC run that was judged."""
        return self.ranking.manifest.path / "run.trec"


def mmdocir_benchmark(
    context: Context,
    data: str,
    text: Text,
    chain: Chain,
    report: Callable[[Plan], None] = lambda plan: None,
    *,
    with_layouts: bool = False,
) -> BenchmarkResult:
    """MMDocIR from its parquet files or its PDFs to its own metric, inside each question's own document.

    ``with_layouts`` ranks the published layouts too, with the same chain over their crops. Raises MmrrError for options
    that the form of the data does not allow.
    """
    benchmark = mmdocir.open_benchmark(data)
    if with_layouts and benchmark.form != "published":
        raise MmrrError("layouts come with the published parquet files; the PDFs and annotations hold none to rank")
    if chain.render.ocr != "never" and benchmark.form == "published":
        raise MmrrError("the published parquet files come with their pages' text (--text): leave out --ocr")
    chain = dataclasses.replace(chain, retrieve=dataclasses.replace(chain.retrieve, scope="document"))
    layouts = None
    layout_inputs = {}
    if with_layouts:
        crops = import_mmdocir.read_layouts(context, benchmark, chain.render.max_tokens, text)
        table = {layout.layout_id: layout for layout in mmdocir.iter_layouts(benchmark, text, images=False)}
        ranked, _ = _rank(context, benchmark.queries(), crops, chain, report)
        layouts = LayoutRun(ranked.run, table)
        layout_inputs = {"layouts": ranked.manifest.fingerprint}
    pages = _pages(context, benchmark, text, chain)
    ranking, steps = _rank(context, benchmark.queries(), pages, chain, report)
    inputs = {"pages": pages.fingerprint, ranking.manifest.stage: ranking.manifest.fingerprint, **layout_inputs}
    judged = evaluate.judge_mmdocir(context, ranking.run, benchmark.questions, inputs, layouts)
    return BenchmarkResult(benchmark, ranking, judged, [pages, *steps, judged])


def _pages(context: Context, benchmark: Benchmark, text: Text, chain: Chain) -> Manifest:
    """The benchmark's pages: the published images, or rendered from the PDFs."""
    if benchmark.form == "published":
        return import_mmdocir.read_pages(context, benchmark, chain.render.max_tokens, text)
    sources = [
        dataclasses.replace(find_sources([document.pdf])[0], doc_id=document.doc_id)
        for document in benchmark.documents
        if document.pdf
    ]
    pages = render.render(context, sources, chain.render)
    origins = {source.doc_id: Place(source.path, source.path).stored() for source in sources}
    return context.workspace.annotate(pages, sources=origins)


def _rank(
    context: Context, queries: list[Query], pages: Manifest, chain: Chain, report: Callable[[Plan], None]
) -> tuple[Ranking, list[Manifest]]:
    """The ranking of the questions over these pages, and the artifacts of its steps."""
    steps = build(context, pages, chain.indexing)
    indexed = steps[-1]
    ranking = search(context, queries, chain.retrieve, chain.search_options, indexed)
    steps.append(ranking.retrieved)
    if chain.scoring:
        cached = cache_pages(context, chain.scoring, indexed, report)
        ranking = rerank_run(context, ranking, chain.rerank, chain.score_options, cached[-1])
        assert ranking.reranked
        steps += [*cached, ranking.reranked]
    return ranking, steps
