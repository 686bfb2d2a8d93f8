"""Stage ``retrieve``: queries -> the first stage's run.

It has up to three channels: ``words`` (BM25), ``meaning`` (vectors of the text) and ``sight`` (vectors of the page
image). Several are added by score fusion.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmrr.config import Retrieve
from mmrr.context import Context
from mmrr.contracts import Options
from mmrr.errors import MmrrError
from mmrr.evaluation.trec import save_run
from mmrr.modeling import families
from mmrr.queries import fingerprinted, write_queries
from mmrr.search import channels
from mmrr.search.fusion import fuse_all
from mmrr.search.indexes import (
    DENSE,
    SIZES,
    TEXT,
    VECTORS,
    WINDOW_COUNTS,
    WINDOWS,
    DenseIndex,
    TextIndex,
    WindowIndex,
    read_languages,
)
from mmrr.search.late_interaction import max_sim
from mmrr.stages._query_vectors import Encoded, encode_for_text, encode_queries
from mmrr.stages._visual import check_channels
from mmrr.types import Query, Run, best_of_pages, rank
from mmrr.workspace import changes, manifests
from mmrr.workspace.files import digest
from mmrr.workspace.manifests import RetrieveContent
from mmrr.workspace.pages import Collection, read_stored_texts
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensors import read_vectors, read_windows

#: The fewest pages of each ranking that score fusion standardises over.
FUSION_DEPTH = 100


@dataclass(frozen=True)
class _Search:
    """One search: the workspace, the index and the queries, and how deep to rank."""

    workspace: Workspace
    collection: Collection
    indexed: Manifest
    queries: list[Query]
    options: Retrieve
    depth: int
    within: Set[int] | None = None  # rows of the pages that may be found; None: all

    @property
    def n_images(self) -> int:
        """The number of best images among which the ``depth`` best pages are; with ``within`` all may be needed."""
        if self.within is not None:
            return len(self.collection.pages)
        return self.depth * self.collection.most_images

    def ranked(self, query: Query, rows: Sequence[int], scores: Sequence[float]) -> Run:
        """The ranking of one query from the scores of the pages at ``rows``.

        Raises MmrrError for a score that is not finite: an older mmrr stored page vectors that hold NaN.
        """
        for row, score in zip(rows, scores, strict=True):
            if not math.isfinite(score):
                raise MmrrError(
                    f"query {query.query_id}: the score of page {self.collection.pages[row].page_id} is not finite; "
                    "run mmrr index again with other weights or --dtype float32"
                )
        found = zip(rows, scores, strict=True)
        if self.within is None:
            of_page = best_of_pages((self.collection.pages[row].page_id, score) for row, score in found)
        else:
            of_page = best_of_pages(
                (self.collection.pages[row].page_id, score) for row, score in found if row in self.within
            )
        return {query.query_id: rank(of_page, self.depth)}


def retrieve(
    context: Context,
    collection: Collection,
    indexed: Manifest,
    queries: list[Query],
    options: Retrieve,
    search_options: Mapping[str, str],
    within: Set[int] | None = None,
) -> Manifest:
    """Rank pages for each query. ``search_options`` are fields of the embedder family's ``Search``, as text.

    The parameters are those of a search. ``within``: the rows of the pages that may be found, with the scores that they
    have in the whole collection; None: all. Raises MmrrError if the search needs page vectors and the index has none,
    and if the document of a query is not in the index.
    """
    plan = _plan(context, collection, indexed, queries, options, search_options)
    if within is not None:
        pages = digest(sorted(collection.pages[row].page_id for row in within))
        spec = dataclasses.replace(plan.spec, config={**plan.spec.config, "within": pages})
        plan = dataclasses.replace(plan, search=dataclasses.replace(plan.search, within=within), spec=spec)
    if done := context.workspace.done(plan.spec):
        return done
    started = time.perf_counter()
    run, shards = _found(context, plan, kept=True)
    search_ms = 1000 * (time.perf_counter() - started)
    return _commit(plan.search, plan.spec, run, shards, search_ms)


def rank_pages(
    context: Context,
    collection: Collection,
    indexed: Manifest,
    queries: list[Query],
    options: Retrieve,
    search_options: Mapping[str, str],
    within: Set[int] | None = None,
) -> Run:
    """The run of ``retrieve``, computed in memory: nothing is written, and no earlier result is read.

    The parameters are those of ``retrieve``, and ``within``: the rows of the pages that may be found. Their scores are
    those of a search in the whole collection. Raises MmrrError as ``retrieve`` does.
    """
    plan = _plan(context, collection, indexed, queries, options, search_options)
    if within is not None:
        plan = dataclasses.replace(plan, search=dataclasses.replace(plan.search, within=within))
    run, _ = _found(context, plan, kept=False)
    return run


@dataclass(frozen=True)
class _Plan:
    """What a search does, and the Spec of its artifact."""

    search: _Search
    spec: Spec
    weights: dict[str, float]  # by channel
    vectors: dict[str, Manifest]  # of the channels that have vectors
    options: Options | None  # the embedder family's ``Search``, with the channel ``sight``


def _plan(
    context: Context,
    collection: Collection,
    indexed: Manifest,
    queries: list[Query],
    options: Retrieve,
    search_options: Mapping[str, str],
) -> _Plan:
    workspace = context.workspace
    made = _vectors(workspace, indexed)
    weights = channels.weights(options.first_stage, options.channels, {"words", *made})
    queries = _checked(queries, options, collection)
    check_channels(context, queries, weights, made.get("sight"))
    config: dict[str, object] = {
        "first_stage": channels.stored_name(weights),
        "scope": options.scope,
        "depth": options.depth,
    }
    if not channels.is_former_sum(weights):
        config["channels"] = weights
    search = None
    if "sight" in weights:
        search = _search_options(made["sight"], search_options)
        config["search"] = families.stored_options(search)
    elif search_options:
        raise MmrrError(
            f"--search-option {', '.join(search_options)} is an option of the embedder, and this search uses text alone"
        )
    inputs = {
        "pages": collection.manifest.fingerprint,
        "index": indexed.fingerprint,
        "queries": digest(fingerprinted(queries)),
    }
    # Fusion standardises scores over the pages found, so it needs enough of them for a mean and a deviation.
    depth = max(options.depth, FUSION_DEPTH) if len(weights) > 1 else options.depth
    one = _Search(workspace, collection, indexed, queries, options, depth)
    return _Plan(one, Spec("retrieve", 5, config, inputs), weights, made, search)


def _found(context: Context, plan: _Plan, *, kept: bool) -> tuple[Run, list[str]]:
    """The run, and the shards of the queries' vectors. ``kept``: the vectors are read from shards and stored there."""
    one, weights = plan.search, plan.weights
    runs: list[tuple[Run, float]] = []
    shards: list[str] = []
    if "sight" in weights:
        assert plan.options
        own, encoded = encode_queries(
            context, one.collection, plan.vectors["sight"], plan.options, one.queries, kept=kept
        )
        shards += own
        runs.append((_dense(context, one, plan.vectors["sight"], encoded), weights["sight"]))
    # An image without a text is found by sight alone.
    one = dataclasses.replace(one, queries=[query for query in one.queries if query.text.strip()])
    if "words" in weights:
        runs.append((_text(context, one), weights["words"]))
    if "meaning" in weights and one.queries:
        own, vectors = encode_for_text(context, plan.vectors["meaning"], one.queries, kept=kept)
        shards += own
        runs.append((_meaning(context, one, plan.vectors["meaning"], vectors), weights["meaning"]))
    if "words" in weights and len(runs) > 1:
        runs = _with_zeros(one, runs, place=int("sight" in weights))
    found = runs[0][0] if len(runs) == 1 else fuse_all(runs)
    return {query_id: hits[: one.options.depth] for query_id, hits in found.items()}, shards


def _with_zeros(one: _Search, runs: list[tuple[Run, float]], place: int) -> list[tuple[Run, float]]:
    """The same runs. That of the words, at ``place``, also lists what the others found without a word of the query.

    Their score by words is 0. Without them a page that alone has the word would be the only score of its run, which
    says nothing when it is standardised.
    """
    words, weight = runs[place]
    filled: Run = {}
    for query_id, hits in words.items():
        known = {hit.page_id for hit in hits}
        found = {hit.page_id: 0.0 for run, _ in runs for hit in run.get(query_id, ()) if hit.page_id not in known}
        # A full ranking was cut off: the scores of the pages behind it are not known.
        filled[query_id] = hits if len(hits) >= one.depth else [*hits, *rank(found)]
    return [*runs[:place], (filled, weight), *runs[place + 1 :]]


def available(workspace: Workspace, indexed: Manifest) -> set[str]:
    """The channels of an index."""
    return {"words", *_vectors(workspace, indexed)}


def _vectors(workspace: Workspace, indexed: Manifest) -> dict[str, Manifest]:
    """The artifact with the vectors of each channel of an index that has vectors."""
    stages = {"sight": "embed", "meaning": "embed_text"}
    found = {
        name: workspace.find(stage, indexed.inputs[stage]) for name, stage in stages.items() if stage in indexed.inputs
    }
    return {name: manifest for name, manifest in found.items() if manifest}


def _commit(one: _Search, spec: Spec, run: Run, shards: list[str], search_ms: float) -> Manifest:
    def write(folder: Path) -> None:
        save_run(run, folder)
        write_queries(one.queries, folder)

    content: RetrieveContent = {
        "queries": len(one.queries),
        "candidates": sum(map(len, run.values())),
        "shards": shards,
    }
    return one.workspace.commit(spec, content, 0, {"search_ms": round(search_ms, 1)}, write)


def _checked(queries: list[Query], options: Retrieve, collection: Collection) -> list[Query]:
    """The queries; with the scope ``document``, each with the id of the document that its ``doc_id`` names."""
    if options.depth < 1:
        raise MmrrError(f"--candidates {options.depth}: expected 1 or more")
    if options.scope != "document":
        return queries
    return [_in_document(query, collection, alone=len(queries) == 1) for query in queries]


def _in_document(query: Query, collection: Collection, *, alone: bool) -> Query:
    if query.doc_id is None:
        raise MmrrError(f"query {query.query_id} names no document; --scope document needs its doc_id")
    if query.doc_id in collection.rows:
        return query
    # A query from the command line has no id of its own.
    which = "" if alone else f"query {query.query_id}: "
    try:
        doc_id = changes.find(collection.manifest, query.doc_id)
    except MmrrError as error:
        raise MmrrError(f"{which}{error}") from None
    if doc_id not in collection.rows:
        raise MmrrError(f"{which}no page of document {doc_id} is in the index; see: mmrr ls --documents")
    return dataclasses.replace(query, doc_id=doc_id)


def _search_options(embedded: Manifest, options: Mapping[str, str]) -> Options:
    """The embedder family's ``Search``."""
    family = families.load("embedders", manifests.config(embedded, "embed")["family"])
    return families.parse_options(family.Search, dict(options))


def _dense(context: Context, one: _Search, embedded: Manifest, encoded: Encoded) -> Run:
    """Rank by vectors: the whole collection through its index, one document by exact products."""
    if one.options.scope == "corpus":
        index = _dense_index(context, one.indexed)
        found = index.search(encoded.vectors, one.n_images, encoded.temperature)
        ranked: Run = {}
        for query, pages in zip(one.queries, found, strict=True):
            ranked |= one.ranked(query, list(pages), list(pages.values()))
        return ranked
    # A document has few pages, so its products are exact whatever the index of the collection approximates.
    cached: dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
    ranked = {}
    for query, of_query in zip(one.queries, encoded.vectors, strict=True):
        assert query.doc_id
        rows = one.collection.rows[query.doc_id]
        if query.doc_id not in cached:
            vectors = read_vectors(one.workspace, embedded, one.collection, rows)
            of_pages = [of_page.numpy() for of_page in vectors]
            cached[query.doc_id] = np.concatenate(of_pages), np.array([len(of_page) for of_page in of_pages])
        scores = max_sim([of_query], *cached[query.doc_id], encoded.temperature)[0].tolist()
        ranked |= one.ranked(query, rows, scores)
    return ranked


def vector_weights(
    context: Context, indexed: Manifest, query: NDArray[np.float32], temperature: float
) -> NDArray[np.float32]:
    """The weight (M,) of each vector of a query (M, D): its soft IDF among all pages of a late-interaction index.

    ``temperature`` 0: all weights are 1.
    """
    if not temperature:
        return np.ones(len(query), dtype=np.float32)
    return _dense_index(context, indexed).weights(query, temperature)


def _dense_index(context: Context, indexed: Manifest) -> DenseIndex:
    def load() -> DenseIndex:
        names = (name for name in (DENSE, VECTORS, SIZES) if name in indexed.files)
        return DenseIndex.load({name: context.workspace.own_file(indexed, name) for name in names})

    return context.kept("page vectors", indexed, load)


def best_by_text(index: TextIndex, query: str, depth: int) -> list[tuple[int, float]]:
    """(row, score) of the ``depth`` best pages that share a word with the query and of their ties, unordered."""
    scores = index.scores(query)
    edge = np.partition(scores, -depth)[-depth] if len(scores) > depth else 0.0
    return [(int(row), float(scores[row])) for row in np.flatnonzero((scores > 0) & (scores >= edge))]


def _text(context: Context, one: _Search) -> Run:
    """Rank by text: in the collection the pages that share a word with the query, in one document all its pages."""
    ranked: Run = {}
    if one.options.scope == "corpus" and one.queries:
        index = context.kept("words", one.indexed, lambda: _open_text(one))
        for query in one.queries:
            found = best_by_text(index, query.text, one.n_images)
            ranked |= one.ranked(query, [row for row, _ in found], [score for _, score in found])
        return ranked
    of_pages = read_languages(one.workspace.own_file(one.indexed, TEXT), len(one.collection.pages))
    cached: dict[str, TextIndex] = {}
    for query in one.queries:
        assert query.doc_id
        rows = one.collection.rows[query.doc_id]
        if query.doc_id not in cached:
            texts = read_stored_texts(one.workspace, one.collection, rows)
            cached[query.doc_id] = TextIndex.build(texts, [of_pages[row] for row in rows])
        ranked |= one.ranked(query, rows, cached[query.doc_id].scores(query.text).tolist())
    return ranked


def _open_text(one: _Search) -> TextIndex:
    return TextIndex.load(one.workspace.own_file(one.indexed, TEXT), len(one.collection.pages))


def _meaning(context: Context, one: _Search, embedded: Manifest, vectors: list[NDArray[np.float32]]) -> Run:
    """Rank by the best window of each page: in the collection the pages with text, in one document all its pages."""
    ranked: Run = {}
    if one.options.scope == "corpus":
        index = context.kept("windows", one.indexed, lambda: _windows(one))
        for query, vector in zip(one.queries, vectors, strict=True):
            found = index.search(vector, one.n_images)
            ranked |= one.ranked(query, list(found), list(found.values()))
        return ranked
    cached: dict[str, list[NDArray[np.float32]]] = {}
    for query, vector in zip(one.queries, vectors, strict=True):
        assert query.doc_id
        rows = one.collection.rows[query.doc_id]
        if query.doc_id not in cached:
            cached[query.doc_id] = [w.numpy() for w in read_windows(one.workspace, embedded, one.collection, rows)]
        best = [float((windows @ vector).max()) if len(windows) else None for windows in cached[query.doc_id]]
        lowest = min((score for score in best if score is not None), default=0.0)  # of a page without text
        ranked |= one.ranked(query, rows, [lowest if score is None else score for score in best])
    return ranked


def _windows(one: _Search) -> WindowIndex:
    names = (name for name in (WINDOWS, WINDOW_COUNTS) if name in one.indexed.files)
    return WindowIndex.load({name: one.workspace.own_file(one.indexed, name) for name in names})
