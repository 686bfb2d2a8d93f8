"""The steps of the chain, in order. Only it moves what is current. It imports the stages, as ``indexing`` does.

A *step* is a function that a command runs because the user asked for it: it makes its artifacts current, so that later
commands follow them, and says so. The other functions (``cache_pages``, ``search``, ``rerank_run``,
``judge_runs``, ...) move nothing, so experiments use those.

A function imports its stage itself: ``mmrr eval`` would otherwise wait for torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mmrr.config import Model, Prune, Render, Rerank, Retrieve
from mmrr.context import Context
from mmrr.errors import MmrrError
from mmrr.evaluation.stored_runs import exact_run, first_stage_of
from mmrr.evaluation.trec import read_queries
from mmrr.indexing import Indexing
from mmrr.modeling import families
from mmrr.types import Query, Run
from mmrr.workspace import changes, manifests, metadata
from mmrr.workspace.changes import Changes
from mmrr.workspace.files import digest
from mmrr.workspace.pages import Collection, page_row, read_image
from mmrr.workspace.store import Manifest

if TYPE_CHECKING:
    from PIL import Image

    from mmrr.scorers import minireranker
    from mmrr.stages.evaluate import Judgement
    from mmrr.stages.precache import Family, Plan
    from mmrr.stages.rerank import Rescored


@dataclass(frozen=True)
class Scoring:
    """A reranker, and how it makes its caches."""

    family: str
    model: Model
    options: Mapping[str, str]
    keep: float | None = None  # share of kept tokens; None: 0.5 where there are page vectors and the family prunes

    @property
    def prunes(self) -> bool:
        """Whether it needs an embedder's attention."""
        return self.keep != 1 and families.load("scorers", self.family).SPEC.accepts_pruning


@dataclass(frozen=True)
class Chain:
    """The settings of every stage, for commands that run all of them."""

    render: Render = field(default_factory=Render)
    indexing: Indexing = field(default_factory=Indexing)
    retrieve: Retrieve = field(default_factory=Retrieve)
    search_options: Mapping[str, str] = field(default_factory=dict)
    scoring: Scoring | None = None  # None: the first stage alone
    rerank: Rerank = field(default_factory=Rerank)
    score_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Collected:
    """A collection after a command, and what the command changed in it."""

    manifest: Manifest  # pages
    changes: Changes


@dataclass(frozen=True)
class Ranking:
    """The result of a search: the first stage's run and, if it was reranked, the final run."""

    collection: Collection
    queries: list[Query]
    retrieved: Manifest
    first: Run
    reranked: Manifest | None = None
    final: Run | None = None

    @property
    def manifest(self) -> Manifest:
        """The artifact of the final run."""
        return self.reranked or self.retrieved

    @property
    def run(self) -> Run:
        """The final run."""
        return self.first if self.final is None else self.final


def make_current(context: Context, *made: Manifest) -> None:
    """Make these artifacts the ones that later commands follow, and say which of them changed."""
    moved = context.workspace.set_current(*made)
    if moved:
        context.notice("current: " + ", ".join(f"{one.stage}/{one.fingerprint}" for one in moved))


# Documents


def render_documents(
    context: Context,
    inputs: Sequence[Path],
    options: Render,
    *,
    replace: bool = False,
    check: Callable[[], None] = lambda: None,
    described: Path | None = None,
) -> Collected:
    """Step: documents -> ``pages``.

    The documents are added to the current collection. A folder or file that was named before is synchronised: its
    deleted documents leave the collection. Documents of other folders stay. With ``replace`` the collection becomes
    what is named. ``check`` is called after the documents were found, before they are rendered. ``described``: the file
    with their metadata, besides ``metadata.csv`` and ``metadata.jsonl`` in the named folders.
    Raises MmrrError if rendered documents cannot be added to the current collection.
    """
    from mmrr.stages import render

    render.check(context, options)
    brought = metadata.given(inputs, described)
    while True:
        before = context.workspace.current("pages")
        base = None if replace else before
        if base:
            can_change(context, base)
        documents = render.find_documents(context, inputs, before, replace=replace, convert=options.convert)
        check()
        if base and (said := render.changed_options(context, base, options)):
            context.notice(said)
        made = render.render(context, documents.sources, options, documents.staying)
        entries = manifests.documents(made)
        made = render.record_origins(context, made, base, inputs, documents)
        made, unknown = metadata.record(context.workspace, made, base, brought)
        if replace or context.workspace.replace_current(before, made):
            break  # else another command changed the collection meanwhile: add to what it made
    if replace:
        make_current(context, made)
    elif before is None or before.fingerprint != made.fingerprint:
        context.notice(f"current: pages/{made.fingerprint}")
    if before and manifests.content(before, "pages").get("by_ocr") and options.ocr == "never":
        context.notice("the text that OCR read before is left out; pass --ocr auto to keep it")
    if before and manifests.content(before, "pages").get("tiles") and not options.tiles:
        context.notice("the tiles that were cut before are left out; pass --tiles to keep them")
    if unknown:
        context.notice(f"metadata: {len(unknown)} of its names are no documents: {', '.join(unknown[:3])}")
    return Collected(made, changes.compare(manifests.documents(before) if before else [], entries))


def can_change(context: Context, pages: Manifest) -> None:
    """Raise MmrrError if no document can be added to or taken from a collection."""
    if "file" in manifests.config(pages, "pages"):
        raise MmrrError(
            f"the collection in {context.workspace.root} is {_published(pages)}'s published pages, which cannot be "
            "changed; use another --work, or make a new collection here with --replace"
        )


def _published(pages: Manifest) -> str:
    """What the pages of a benchmark were read from."""
    return "MMDocIR" if manifests.config(pages, "pages")["file"].startswith("MMDocIR") else "a benchmark"


# Index


def index_pages(context: Context, pages: Manifest, indexing: Indexing) -> Manifest:
    """Step: ``pages`` -> (``embed``, with an embedder) -> (``embed_text``, with a text embedder) -> ``index``."""
    from mmrr.indexing import build

    made = build(context, pages, indexing)
    make_current(context, *made)
    newest = context.workspace.current("pages")
    if newest and newest.fingerprint != pages.fingerprint:
        context.notice("another command changed the collection meanwhile; run mmrr index again to index its documents")
    return made[-1]


# Caches


def prune_pages(context: Context, options: Prune) -> Manifest:
    """Step: ``embed`` -> ``prune``, on Qwen3-VL's grid for the pages as rendered."""
    made = _prune(context, options, context.current("index"))
    make_current(context, made)
    return made


def _prune(
    context: Context, options: Prune, indexed: Manifest, page_grid: tuple[int, int | None] | None = None
) -> Manifest:
    from mmrr.stages import prune

    collection = context.collection(indexed)
    embedded = context.workspace.find("embed", indexed.inputs["embed"]) if "embed" in indexed.inputs else None
    if embedded is None:
        raise MmrrError(
            "pruning uses the embedder's attention, and this index has none; run mmrr index with --embedder"
        )
    if page_grid is None:
        return prune.prune(context, collection, embedded, options)
    return prune.prune(context, collection, embedded, options, page_grid)


def precache_pages(context: Context, scoring: Scoring, report: Callable[[Plan], None] = lambda plan: None) -> Manifest:
    """Step: ``pages`` -> (``prune``) -> ``precache``.

    Without a share of kept tokens it follows the chosen or current ``prune`` artifact of the index, and says which.
    """
    indexed = context.current("index")
    made = cache_pages(context, scoring, indexed, report, followed_pruning(context, scoring, indexed))
    make_current(context, *made)
    return made[-1]


def cache_pages(
    context: Context,
    scoring: Scoring,
    indexed: Manifest,
    report: Callable[[Plan], None] = lambda plan: None,
    pruning: Prune | None = None,
) -> list[Manifest]:
    """``pages`` -> (``prune``) -> ``precache``; the artifacts in this order.

    ``pruning`` is used where ``scoring`` names no share; None: the default share.
    """
    from mmrr.stages import precache

    family, pruned = family_and_pruning(context, scoring, indexed, pruning)
    made = precache.precache(context, context.collection(indexed), pruned, family, report)
    return [pruned, made] if pruned else [made]


def family_and_pruning(
    context: Context, scoring: Scoring, indexed: Manifest, pruning: Prune | None
) -> tuple[Family, Manifest | None]:
    """The scorer family, and the kept tokens of the pages; None: all tokens."""
    from mmrr.stages import precache

    family = precache.family_of(context.workspace.hashes, scoring.family, scoring.model, scoring.options)
    if scoring.keep is not None and not family.module.SPEC.accepts_pruning:
        raise MmrrError(f"{scoring.family} caches whole pages: leave out --keep")
    options = _pruning(scoring, indexed, pruning) if family.module.SPEC.accepts_pruning else Prune(1.0)
    return family, _prune(context, options, indexed, family.pruning_grid) if options.keep < 1 else None


def _pruning(scoring: Scoring, indexed: Manifest, pruning: Prune | None) -> Prune:
    if scoring.keep is None:
        return (pruning or Prune()) if "embed" in indexed.inputs else Prune(1.0)
    if not 0 < scoring.keep <= 1:
        raise MmrrError(f"--keep {scoring.keep}: expected a share of the tokens, above 0 and at most 1")
    if scoring.keep < 1 and "embed" not in indexed.inputs:
        raise MmrrError(
            f"--keep {scoring.keep} needs the embedder's attention, and this index has no page vectors; "
            "run mmrr index with --embedder, or leave --keep out to keep every token"
        )
    return Prune(scoring.keep)


def followed_pruning(context: Context, scoring: Scoring, indexed: Manifest) -> Prune | None:
    """The pruning of the chosen or current ``prune`` artifact, if it is of this index and no share is given."""
    if scoring.keep is not None or not scoring.prunes or "embed" not in indexed.inputs:
        return None
    chosen = "prune" in context.chosen
    found = context.current("prune") if chosen else context.workspace.current("prune")
    if found is None or found.inputs["embed"] != indexed.inputs["embed"]:
        if chosen and found:
            raise MmrrError(f"prune/{found.fingerprint} is of other vectors than index/{indexed.fingerprint}")
        return None
    config = manifests.config(found, "prune")
    context.notice(
        f"kept tokens as in prune/{found.fingerprint}: {float(config['keep']):g} by {config['by']}; "
        "--keep chooses another share"
    )
    return Prune(float(config["keep"]), config["by"])


def kept_picture(context: Context, page_id: str) -> Image.Image:
    """A page with the tokens that pruning dropped faded out; the plain page where nothing was pruned.

    Raises MmrrError for a page that is not in the index.
    """
    if "prune" not in context.chosen and context.workspace.current("prune") is None:
        collection = context.collection(context.current("index"))
        context.notice("no token was pruned: the plain page is drawn")
        return read_image(context.workspace, collection.pages[page_row(collection, page_id)])
    from mmrr import plots
    from mmrr.workspace.tensors import read_kept_tokens

    pruned = context.current("prune")
    collection = context.collection(pruned)
    row = page_row(collection, page_id)
    page, shard = collection.pages[row], manifests.content(pruned, "prune")["shards"][collection.shards[row]]
    if page.label:
        context.notice(f"{page.page_id} is the page that the document calls {page.label}")
    kept = read_kept_tokens(context.workspace, shard)[page.number]
    return plots.kept_tokens(read_image(context.workspace, page), kept)


# Search


def check_scorer(family: str, queries: list[Query]) -> None:
    """Raise UnsupportedQueryError if a query has an image and the scorer family takes none."""
    from mmrr.stages import _visual

    _visual.check_scorer(family, queries)


def search(
    context: Context,
    queries: list[Query],
    options: Retrieve,
    search_options: Mapping[str, str],
    indexed: Manifest | None = None,
    within: Set[int] | None = None,
) -> Ranking:
    """Queries -> ``retrieve``, over ``indexed`` or the current index; ``within``: the rows that may be found."""
    from mmrr.stages import retrieve

    indexed = indexed or context.current("index")
    collection = context.collection(indexed)
    retrieved = retrieve.retrieve(context, collection, indexed, queries, options, search_options, within)
    return Ranking(collection, queries, retrieved, _read_run(context, retrieved, queries))


def rerank_run(
    context: Context,
    ranking: Ranking,
    options: Rerank,
    score_options: Mapping[str, str],
    cached: Manifest | None = None,
) -> Ranking:
    """``retrieve`` + ``precache`` -> ``rerank``, with the caches ``cached`` or the current ones."""
    from mmrr.stages import rerank

    if cached is None or cached.path.name:
        cached = context.same_pages(cached or context.current("precache"), ranking.collection)
    candidates = rerank.Candidates(ranking.collection, ranking.queries, ranking.retrieved, ranking.first)
    reranked = rerank.rerank(context, candidates, cached, options, score_options)
    final = _read_run(context, reranked, ranking.queries)
    return dataclasses.replace(ranking, reranked=reranked, final=final)


def remember(context: Context, ranking: Ranking) -> None:
    """Step: make a ranking current, so that ``mmrr eval`` follows it."""
    make_current(context, *filter(None, (ranking.retrieved, ranking.reranked)))


def rescore(context: Context, n: int) -> Rescored:
    """Compare ``n`` scores from the current caches, for the current queries, with forwards that use no cache."""
    from mmrr.queries import IMAGES, QUERIES
    from mmrr.stages import rerank

    cached, retrieved = context.current("precache"), context.current("retrieve")
    collection = context.collection(context.same_pages(retrieved, context.collection(cached)))
    context.workspace.own_file(retrieved, IMAGES)
    pruned = context.workspace.find("prune", cached.inputs["prune"]) if "prune" in cached.inputs else None
    queries = read_queries(context.workspace.own_file(retrieved, QUERIES), images=True)
    run = _read_run(context, retrieved, queries)
    return rerank.rescore(context, rerank.Candidates(collection, queries, retrieved, run), cached, pruned, n)


def load_scorer(context: Context, name: str, revision: str | None) -> minireranker.Scorer:
    """A miniReranker with its default options, for probing its layers."""
    from mmrr.modeling.devices import resolve_device, resolve_dtype
    from mmrr.stages import precache

    family = precache.family_of(context.workspace.hashes, "minireranker", Model(name, revision), {})
    device = resolve_device(context.machine.device)
    scorer = family.module.load(family.checkpoint, family.prepare, device, resolve_dtype(context.machine.dtype, device))
    return cast("minireranker.Scorer", scorer)


def _read_run(context: Context, manifest: Manifest, queries: list[Query]) -> Run:
    """The run of an artifact; a query without hits has an empty ranking."""
    found = exact_run(context.workspace, manifest)
    return {query.query_id: found.get(query.query_id, []) for query in queries}


# Evaluation


def judge_current(
    context: Context,
    qrels_path: Path,
    measures: Sequence[str] | None,
    *,
    reranked: bool,
    fields: Mapping[str, Mapping[str, str]] | None = None,
) -> Judgement:
    """Step: the current run against judgements. ``fields`` are values of queries by which they are grouped.

    With ``reranked`` the first stage and the reranked run, else the first stage alone.
    """
    from mmrr.stages import evaluate

    newest = context.current("rerank" if reranked else "retrieve")
    found = {"first_stage": first_stage_of(context.workspace, newest), **({"reranked": newest} if reranked else {})}
    runs = {name: exact_run(context.workspace, manifest) for name, manifest in found.items()}
    inputs = {"pages": newest.inputs["pages"]} | {one.stage: one.fingerprint for one in found.values()}
    judged = evaluate.judge_ids(context, runs, qrels_path, measures, inputs, fields)
    make_current(context, judged.metrics)
    return judged


def judge_runs(
    context: Context,
    runs: Mapping[str, Run],
    qrels_path: Path,
    measures: Sequence[str] | None,
    fields: Mapping[str, Mapping[str, str]] | None = None,
) -> Judgement:
    """Runs against judgements. The first run is the baseline of the others."""
    from mmrr.stages import evaluate

    named = runs.keys() <= {"baseline", "run"}
    inputs = {name: digest(run) for name, run in runs.items()} if named else {"runs": digest(dict(runs))}
    return evaluate.judge_ids(context, runs, qrels_path, measures, inputs, fields)
