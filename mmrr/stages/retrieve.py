"""Stage ``retrieve``: queries -> the first stage's run, by page vectors, by text, or by score fusion of both."""

from __future__ import annotations

import dataclasses
import json
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
from mmrr.contracts import Embedder, Options
from mmrr.errors import MmrrError
from mmrr.evaluation.trec import save_run
from mmrr.modeling import families
from mmrr.modeling.checkpoints import recorded
from mmrr.modeling.devices import resolve_device, resolve_dtype
from mmrr.search.fusion import fuse
from mmrr.search.indexes import DENSE, SIZES, TEXT, VECTORS, TextIndex, search_dense
from mmrr.search.late_interaction import max_sim
from mmrr.types import Query, Run, rank
from mmrr.workspace import manifests
from mmrr.workspace.files import digest
from mmrr.workspace.manifests import RetrieveContent
from mmrr.workspace.pages import Collection, read_texts
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensor_files import save_tensors
from mmrr.workspace.tensors import read_vectors

#: The fewest pages of each ranking that score fusion standardises over.
FUSION_DEPTH = 100
#: The file of a query's shard: its vectors and their temperature.
_VECTORS = "vectors.safetensors"


@dataclass(frozen=True)
class _Search:
    """One search: the workspace, the index and the queries, and how deep to rank."""

    workspace: Workspace
    collection: Collection
    indexed: Manifest
    queries: list[Query]
    options: Retrieve
    depth: int

    def ranked(self, query: Query, rows: Sequence[int], scores: Sequence[float]) -> Run:
        """The ranking of one query from the scores of the pages at ``rows``."""
        of_page = {self.collection.pages[row].page_id: score for row, score in zip(rows, scores, strict=True)}
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
    embedded = workspace.find("embed", indexed.inputs["embed"]) if "embed" in indexed.inputs else None
    first_stage = options.first_stage or ("hybrid" if embedded else "bm25")
    if first_stage != "bm25" and embedded is None:
        raise MmrrError(
            f"--first-stage {first_stage} needs page vectors, and this index has none; "
            "run mmrr index with --embedder, or use --first-stage bm25"
        )
    _check(queries, options, collection)
    config: dict[str, object] = {**dataclasses.asdict(options), "first_stage": first_stage}
    search = None
    if embedded and first_stage != "bm25":
        search = _search_options(embedded, search_options)
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

    runs: list[Run] = []
    shards: list[str] = []
    # Fusion standardises scores over the pages found, so it needs enough of them for a mean and a deviation.
    depth = max(options.depth, FUSION_DEPTH) if first_stage == "hybrid" else options.depth
    one = _Search(workspace, collection, indexed, queries, options, depth)
    started = time.perf_counter()
    if embedded and search:
        shards, encoded = _encode_queries(context, embedded, search, queries)
        runs.append(_dense(one, embedded, encoded))
    if first_stage != "dense":
        runs.append(_text(one))
    found = runs[0] if len(runs) == 1 else fuse(runs[0], runs[1], weight=1.0)
    run = {query_id: hits[: options.depth] for query_id, hits in found.items()}
    search_ms = 1000 * (time.perf_counter() - started)
    return _commit(one, spec, run, shards, search_ms)


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
        found = search_dense(files, encoded.vectors, one.depth, encoded.temperature)
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
    if one.options.scope == "corpus":
        index = TextIndex.load(one.workspace.own_file(one.indexed, TEXT), len(one.collection.pages))
        for query in one.queries:
            found = best_by_text(index, query.text, one.depth)
            ranked |= one.ranked(query, [row for row, _ in found], [score for _, score in found])
        return ranked
    cached: dict[str, TextIndex] = {}
    for query in one.queries:
        assert query.doc_id
        rows = one.collection.rows[query.doc_id]
        if query.doc_id not in cached:
            cached[query.doc_id] = TextIndex.build(read_texts(one.workspace, one.collection, rows))
        ranked |= one.ranked(query, rows, cached[query.doc_id].scores(query.text).tolist())
    return ranked
