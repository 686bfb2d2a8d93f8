"""Stage ``retrieve``: queries -> the first stage's run.

It has up to three channels: ``words`` (BM25), ``meaning`` (vectors of the text) and ``sight`` (vectors of the page
image). Several are added by score fusion.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from mmrr.config import Retrieve
from mmrr.context import Context
from mmrr.contracts import Embedder, Options, TextEmbedder
from mmrr.errors import MmrrError
from mmrr.evaluation.trec import save_run
from mmrr.modeling import families, text_checkpoints
from mmrr.modeling.checkpoints import recorded
from mmrr.modeling.devices import resolve_device, resolve_dtype
from mmrr.modeling.finite import expect_finite
from mmrr.search import channels
from mmrr.search.fusion import fuse_all
from mmrr.search.indexes import (
    DENSE,
    SIZES,
    TEXT,
    VECTORS,
    WINDOW_COUNTS,
    WINDOWS,
    TextIndex,
    WindowIndex,
    read_languages,
    search_dense,
)
from mmrr.search.late_interaction import max_sim
from mmrr.types import Query, Run, best_of_pages, rank
from mmrr.workspace import manifests
from mmrr.workspace.files import digest
from mmrr.workspace.manifests import RetrieveContent
from mmrr.workspace.pages import Collection, read_stored_texts
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensor_files import save_tensors
from mmrr.workspace.tensors import read_vectors, read_windows

#: The fewest pages of each ranking that score fusion standardises over.
FUSION_DEPTH = 100
#: The file of a query's shard: its vectors and their temperature.
_VECTORS = "vectors.safetensors"
#: Queries that a text embedder reads together.
_BATCH = 32


@dataclass(frozen=True)
class _Search:
    """One search: the workspace, the index and the queries, and how deep to rank."""

    workspace: Workspace
    collection: Collection
    indexed: Manifest
    queries: list[Query]
    options: Retrieve
    depth: int

    @property
    def n_images(self) -> int:
        """The number of best images among which the ``depth`` best pages are."""
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
        names = (self.collection.pages[row].page_id for row in rows)
        of_page = best_of_pages(zip(names, scores, strict=True))
        return {query.query_id: rank(of_page, self.depth)}


def retrieve(
    context: Context,
    collection: Collection,
    indexed: Manifest,
    queries: list[Query],
    options: Retrieve,
    search_options: Mapping[str, str],
) -> Manifest:
    """Rank pages for each query. ``search_options`` are fields of the embedder family's ``Search``, as text.

    Raises MmrrError if the search needs page vectors and the index has none, and if the document of a query is not in
    the index.
    """
    workspace = context.workspace
    made = _vectors(workspace, indexed)
    weights = channels.weights(options.first_stage, options.channels, {"words", *made})
    _check(queries, options, collection)
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
        "queries": digest([dataclasses.astuple(query) for query in queries]),
    }
    spec = Spec("retrieve", 4, config, inputs)
    if done := workspace.done(spec):
        return done

    # Fusion standardises scores over the pages found, so it needs enough of them for a mean and a deviation.
    depth = max(options.depth, FUSION_DEPTH) if len(weights) > 1 else options.depth
    one = _Search(workspace, collection, indexed, queries, options, depth)
    started = time.perf_counter()
    runs: list[tuple[Run, float]] = []
    shards: list[str] = []
    if search:
        own, encoded = _encode_queries(context, made["sight"], search, queries)
        shards += own
        runs.append((_dense(one, made["sight"], encoded), weights["sight"]))
    if "words" in weights:
        runs.append((_text(one), weights["words"]))
    if "meaning" in weights:
        own, vectors = _encode_for_text(context, made["meaning"], queries)
        shards += own
        runs.append((_meaning(context, one, made["meaning"], vectors), weights["meaning"]))
    found = runs[0][0] if len(runs) == 1 else fuse_all(runs)
    run = {query_id: hits[: options.depth] for query_id, hits in found.items()}
    return _commit(one, spec, run, shards, 1000 * (time.perf_counter() - started))


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
        lines = (json.dumps(dataclasses.asdict(query), ensure_ascii=False) + "\n" for query in one.queries)
        (folder / "queries.jsonl").write_text("".join(lines), "utf-8")

    content: RetrieveContent = {
        "queries": len(one.queries),
        "candidates": sum(map(len, run.values())),
        "shards": shards,
    }
    return one.workspace.commit(spec, content, 0, {"search_ms": round(search_ms, 1)}, write)


def _check(queries: list[Query], options: Retrieve, collection: Collection) -> None:
    if options.depth < 1:
        raise MmrrError(f"--candidates {options.depth}: expected 1 or more")
    for query in queries if options.scope == "document" else []:
        if query.doc_id is None:
            raise MmrrError(f"query {query.query_id} names no document; --scope document needs its doc_id")
        if query.doc_id not in collection.rows:
            # A query from the command line has no id of its own.
            which = "" if len(queries) == 1 else f"query {query.query_id}: "
            raise MmrrError(f"{which}document {query.doc_id} is not in the index; see: mmrr ls --documents")


def _search_options(embedded: Manifest, options: Mapping[str, str]) -> Options:
    """The embedder family's ``Search``."""
    family = families.load("embedders", manifests.config(embedded, "embed")["family"])
    return families.parse_options(family.Search, dict(options))


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The vectors of the queries."""

    vectors: list[NDArray[np.float32]]  # (M, D) of each query
    temperature: float  # as ``max_sim`` takes it


def _encode_queries(
    context: Context, embedded: Manifest, search: Options, queries: list[Query]
) -> tuple[list[str], _Encoded]:
    """Embed the queries that have no shard yet. Returns the shard of each query, and the vectors in them."""
    assert embedded.model
    workspace = context.workspace
    spec = Spec("retrieve", 3, {**embedded.config, "search": families.stored_options(search)}, {}, embedded.model)
    keys = [spec.shard_key("query", query.text) for query in queries]
    missing = {
        key: query.text for key, query in zip(keys, queries, strict=True) if not workspace.has_shard("retrieve", key)
    }
    if missing:
        embedder = _embedder(context, embedded)
        temperature = torch.tensor(embedder.temperature(search))
        with context.progress("embed queries", len(missing)) as advance:
            for key, text in missing.items():
                folder = workspace.scratch()
                (vectors,) = embedder.embed_queries([text], search)
                expect_finite(f"query '{text[:60]}'", embedded.model["id"], {"vectors": vectors})
                save_tensors({"vectors": vectors, "temperature": temperature}, folder / _VECTORS)
                workspace.commit_shard("retrieve", key, folder, {})
                advance(1)
    found = [load(workspace.read_shard_file("retrieve", key, _VECTORS)) for key in keys]
    temperature = found[0]["temperature"] if found else torch.tensor(0.0)  # one embedder has one temperature
    return keys, _Encoded([of_query["vectors"].numpy() for of_query in found], temperature.item())


def _embedder(context: Context, embedded: Manifest) -> Embedder:
    """The embedder that made the page vectors: the same checkpoint, options and number format."""
    assert embedded.model
    config = manifests.config(embedded, "embed")
    family = families.load("embedders", config["family"])
    device = resolve_device(context.machine.device)
    dtype = resolve_dtype(embedded.model["dtype"], device)
    checkpoint = recorded(embedded.model, context.workspace.hashes, families.names("embedders"))
    prepare = families.make_options(family.Prepare, config["options"])
    key = ("embedder", config["family"], checkpoint, prepare, str(device), dtype)
    return context.loaded.get(key, lambda: family.load(checkpoint, prepare, device, dtype))


def _dense(one: _Search, embedded: Manifest, encoded: _Encoded) -> Run:
    """Rank by vectors: the whole collection through its index, one document by exact products."""
    if one.options.scope == "corpus":
        names = (name for name in (DENSE, VECTORS, SIZES) if name in one.indexed.files)
        files = {name: one.workspace.own_file(one.indexed, name) for name in names}
        found = search_dense(files, encoded.vectors, one.n_images, encoded.temperature)
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


def best_by_text(index: TextIndex, query: str, depth: int) -> list[tuple[int, float]]:
    """(row, score) of the ``depth`` best pages that share a word with the query and of their ties, unordered."""
    scores = index.scores(query)
    edge = np.partition(scores, -depth)[-depth] if len(scores) > depth else 0.0
    return [(int(row), float(scores[row])) for row in np.flatnonzero((scores > 0) & (scores >= edge))]


def _text(one: _Search) -> Run:
    """Rank by text: in the collection the pages that share a word with the query, in one document all its pages."""
    ranked: Run = {}
    folder, n_pages = one.workspace.own_file(one.indexed, TEXT), len(one.collection.pages)
    if one.options.scope == "corpus":
        index = TextIndex.load(folder, n_pages)
        for query in one.queries:
            found = best_by_text(index, query.text, one.n_images)
            ranked |= one.ranked(query, [row for row, _ in found], [score for _, score in found])
        return ranked
    of_pages = read_languages(folder, n_pages)
    cached: dict[str, TextIndex] = {}
    for query in one.queries:
        assert query.doc_id
        rows = one.collection.rows[query.doc_id]
        if query.doc_id not in cached:
            texts = read_stored_texts(one.workspace, one.collection, rows)
            cached[query.doc_id] = TextIndex.build(texts, [of_pages[row] for row in rows])
        ranked |= one.ranked(query, rows, cached[query.doc_id].scores(query.text).tolist())
    return ranked


def _encode_for_text(
    context: Context, embedded: Manifest, queries: list[Query]
) -> tuple[list[str], list[NDArray[np.float32]]]:
    """Embed the queries that have no shard yet with the text embedder. The shard and the vector (D,) of each query."""
    assert embedded.model
    workspace = context.workspace
    spec = Spec("retrieve", 3, embedded.config, {}, embedded.model)
    keys = [spec.shard_key("query", query.text) for query in queries]
    missing = {
        key: query.text for key, query in zip(keys, queries, strict=True) if not workspace.has_shard("retrieve", key)
    }
    if missing:
        embedder = _text_embedder(context, embedded)
        todo = list(missing.items())
        with context.progress("embed queries", len(todo)) as advance:
            for first in range(0, len(todo), _BATCH):
                some = todo[first : first + _BATCH]
                for (key, _), vector in zip(some, embedder.embed_queries([text for _, text in some]), strict=True):
                    folder = workspace.scratch()
                    save_tensors({"vectors": vector[None].contiguous()}, folder / _VECTORS)
                    workspace.commit_shard("retrieve", key, folder, {})
                advance(len(some))
    found = [load(workspace.read_shard_file("retrieve", key, _VECTORS)) for key in keys]
    return keys, [of_query["vectors"][0].numpy() for of_query in found]


def _text_embedder(context: Context, embedded: Manifest) -> TextEmbedder:
    """The text embedder that made the vectors of the windows: the same checkpoint, options and number format."""
    assert embedded.model
    config = manifests.config(embedded, "embed_text")
    family = families.load("text_embedders", config["family"])
    device = resolve_device(context.machine.device)
    dtype = resolve_dtype(embedded.model["dtype"], device)
    checkpoint = text_checkpoints.recorded(embedded.model, context.workspace.hashes)
    prepare = families.make_options(family.Prepare, config["options"])
    key = ("text embedder", config["family"], checkpoint, prepare, str(device), dtype)
    return context.loaded.get(key, lambda: family.load(checkpoint, prepare, device, dtype))


def _meaning(context: Context, one: _Search, embedded: Manifest, vectors: list[NDArray[np.float32]]) -> Run:
    """Rank by the best window of each page: in the collection the pages with text, in one document all its pages."""
    ranked: Run = {}
    if one.options.scope == "corpus":
        index = context.loaded.get(("windows", one.indexed.fingerprint), lambda: _windows(one))
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
