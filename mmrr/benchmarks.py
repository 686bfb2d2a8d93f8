"""Published benchmarks: from the files of the Hub to the official measure. Moves nothing; a command does.

The candidates come from the first stage, from the benchmark itself, or from the run of another system.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrr.context import Context
from mmrr.errors import MmrrError
from mmrr.evaluation import export, ids
from mmrr.evaluation.comparison import document_of
from mmrr.evaluation.published import Published
from mmrr.evaluation.run_files import ExternalRun
from mmrr.indexing import build
from mmrr.modeling import families
from mmrr.pipeline import Chain, Ranking, Scoring, cache_pages, family_and_pruning, rerank_run, search
from mmrr.stages import evaluate, import_benchmark, import_run, precache
from mmrr.stages.precache import Plan
from mmrr.workspace import manifests
from mmrr.workspace.files import digest, write_atomically
from mmrr.workspace.pages import Collection, load, read_image_file
from mmrr.workspace.store import Manifest

#: The measures of a benchmark, besides its official one.
MEASURES = ("nDCG@5", "nDCG@10", "R@1", "R@5", "R@10", "RR@10")
_BY_TEXT = ("words", "bm25", "meaning")


@dataclass(frozen=True)
class Result:
    """A published benchmark, judged."""

    published: Published
    ranking: Ranking
    metrics: Manifest
    steps: list[Manifest]  # the artifacts of the chain, in order, for a command to make current
    fixed: str  # where fixed candidates come from; "": the first stage found them
    unknown: list[str]  # candidates that are no document of the set

    @property
    def run_path(self) -> Path:
        """The TREC run that was judged."""
        return self.ranking.manifest.path / "run.trec"


def run(
    context: Context,
    published: Published,
    chain: Chain,
    given: ExternalRun | None = None,
    report: Callable[[Plan], None] = lambda plan: None,
) -> Result:
    """A benchmark from its published files to its official measure, by page ids.

    The candidates are those of the first stage, of ``given``, or of the set itself. ``given`` is a run by ids of the
    set or page ids. Raises MmrrError for a model of page images where the documents are texts.
    """
    _check_models(published, chain)
    pages = import_benchmark.read_pages(context, published, chain.render.max_tokens)
    collection = load(context.workspace, pages)
    queries, steps = list(published.queries), [pages]
    fixed, candidates, unknown = "", published.candidate_run(), list[str]()
    if given:
        fixed = "--run"
        found, unknown = ids.to_pages(given.run, collection.row_of, published.page_ids, "--run")
        candidates = {query.query_id: found.get(query.query_id, []) for query in queries}
    elif published.candidates is not None:
        fixed = "the benchmark"
    chain = _with_instruction(context, chain, published.entry.instruction)
    needs_index = not fixed or (chain.scoring is not None and chain.scoring.prunes and chain.indexing.embedder)
    built = build(context, pages, chain.indexing) if needs_index else []
    if fixed:
        retrieved = import_run.import_run(context, collection, queries, candidates)
        ranking = Ranking(collection, queries, retrieved, candidates)
    else:
        options = _search_options(context, chain, built, published.entry.instruction)
        ranking = search(context, queries, chain.retrieve, options, built[-1])
    steps += [*built, ranking.retrieved]
    if chain.scoring:
        cached = _caches(context, chain.scoring, ranking, built, report)
        ranking = rerank_run(context, ranking, chain.rerank, chain.score_options, cached[-1])
        assert ranking.reranked
        steps += [*(one for one in cached if one.path.name), ranking.reranked]
    judged = _judge(context, published, ranking)
    return Result(published, ranking, judged, [*steps, judged], fixed, unknown)


def _check_models(published: Published, chain: Chain) -> None:
    name = published.entry.name
    if published.has_images:
        return
    if chain.indexing.embedder:
        raise MmrrError(f"{name} has texts and no images: leave out --embedder; --text-embedder reads texts")
    if chain.scoring:
        module = families.load("scorers", chain.scoring.family)
        if module.page_input(families.parse_options(module.Prepare, dict(chain.scoring.options))) != "text":
            raise MmrrError(f"{name} has texts and no images: use --scorer kalm or crossencoder, which read text")


def _with_instruction(context: Context, chain: Chain, instruction: str) -> Chain:
    """The chain with the benchmark's instruction, where the scorer takes one and the user gave none."""
    if not instruction or chain.scoring is None:
        return chain
    module, scoring = families.load("scorers", chain.scoring.family), chain.scoring
    if "instruction" in {*scoring.options, *chain.score_options}:
        return chain
    if _takes_instruction(module.Prepare):
        scoring = dataclasses.replace(scoring, options={**scoring.options, "instruction": instruction})
        chain = dataclasses.replace(chain, scoring=scoring)
    elif _takes_instruction(module.Score):
        chain = dataclasses.replace(chain, score_options={**chain.score_options, "instruction": instruction})
    else:
        return chain
    context.notice(f"instruction of the benchmark: {instruction} (--option instruction=... chooses another)")
    return chain


def _search_options(context: Context, chain: Chain, built: Sequence[Manifest], instruction: str) -> dict[str, str]:
    """The options of the search with the benchmark's instruction, where the embedder takes one for a query."""
    options = dict(chain.search_options)
    by_sight = chain.retrieve.first_stage not in _BY_TEXT and "sight" in (chain.retrieve.channels or {"sight": 1.0})
    embedded = next((one for one in built if one.stage == "embed"), None)
    if embedded is None or not by_sight or not instruction or "instruction" in options:
        return options
    family = families.load("embedders", manifests.config(embedded, "embed")["family"])
    return {**options, "instruction": instruction} if _takes_instruction(family.Search) else options


def _takes_instruction(options: type) -> bool:
    return "instruction" in {field.name for field in dataclasses.fields(options)}


def _caches(
    context: Context, scoring: Scoring, ranking: Ranking, built: Sequence[Manifest], report: Callable[[Plan], None]
) -> list[Manifest]:
    """The caches of all pages, or of the candidates alone where these are less than half of the pages."""
    rows = sorted({ranking.collection.row_of[hit.page_id] for hits in ranking.first.values() for hit in hits})
    if built and 2 * len(rows) >= len(ranking.collection.pages):
        return cache_pages(context, scoring, built[-1], report)
    if built:
        family, pruned = family_and_pruning(context, scoring, built[-1], None)
    else:
        if scoring.keep not in (None, 1):
            raise MmrrError(f"--keep {scoring.keep} needs --embedder: its attention prunes")
        family = precache.family_of(context.workspace.hashes, scoring.family, scoring.model, scoring.options)
        pruned = None
    cached = precache.prepare_pages(context, ranking.collection, pruned, family, rows)
    return [*([pruned] if pruned else []), cached]


def _judge(context: Context, published: Published, ranking: Ranking) -> Manifest:
    runs = {"first_stage": ranking.first, **({} if ranking.final is None else {"reranked": ranking.final})}
    if published.entry.ignore_identical:
        same = {query.query_id: published.page_ids.get(query.query_id) for query in ranking.queries}
        runs = {
            name: {query: [hit for hit in hits if hit.page_id != same[query]] for query, hits in run.items()}
            for name, run in runs.items()
        }
    qrels = published.qrels()
    measures = list(dict.fromkeys([published.measure, *MEASURES]))
    # Without documents each query is drawn alone.
    group_of = {query: document_of(row) if published.documents else query for query, row in qrels.items()}
    inputs = {
        "pages": ranking.collection.manifest.fingerprint,
        "runs": digest(runs),
        "groups": digest([group_of, published.config_of]),
    }
    return evaluate.judge_benchmark(context, runs, qrels, inputs, measures, group_of, published.config_of)


def write_export(context: Context, published: Published, collection: Collection, folder: Path) -> None:
    """Write the queries, the judgements (TREC's and BEIR's form) and the page images of a benchmark to a folder.

    ``ids.csv`` says which page an id of the set is, in the form of --map. The images are ``images/<page id>.png``.
    """
    fields = {"language": published.config_of} if published.config_of else None
    export.write_benchmark(folder, published.queries, published.qrels(), fields)
    rows = [f"{_quoted(one)},{page}\n" for one, page in published.page_ids.items()]
    write_atomically(folder / "ids.csv", "".join(["id,page_id\n", *rows]))
    pages = [page for page in collection.pages if page.width_px]
    with context.progress("export images", len(pages)) as advance:
        for page in pages:
            target = folder / "images" / f"{page.page_id}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target, read_image_file(context.workspace, page))
            advance(1)


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"' if any(char in value for char in ',"\n') else value
