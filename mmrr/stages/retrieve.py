"""Stage ``retrieve``: queries -> the first stage's run, by page vectors, by text, or by both blended."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from mmrr.config import Machine, Retrieve, Scope
from mmrr.contracts import Options
from mmrr.errors import MmrrError
from mmrr.evaluation.trec import write_run
from mmrr.modeling import families
from mmrr.modeling.checkpoints import recorded
from mmrr.modeling.devices import resolve_device, resolve_dtype
from mmrr.search.fusion import fuse
from mmrr.search.indexes import DENSE, SIZES, TEXT, VECTORS, TextIndex, search_dense
from mmrr.search.late_interaction import max_sim
from mmrr.types import Progress, Query, Run, rank, silent
from mmrr.workspace.files import digest, save_tensors
from mmrr.workspace.pages import Collection, read_texts
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensors import read_vectors

#: Pages of either ranking, at least, that are added up.
BLENDED = 100
#: A query's vectors and their temperature, in its shard.
_VECTORS = "vectors.safetensors"


def retrieve(
    workspace: Workspace,
    collection: Collection,
    indexed: Manifest,
    queries: list[Query],
    options: Retrieve,
    search_options: dict[str, str],
    machine: Machine,
    progress: Progress = silent,
) -> Manifest:
    """Rank pages for each query. ``search_options`` are the embedder family's ``Search`` by name.

    Raises MmrrError where there are no page vectors to search, and for a query whose document is not in the index.
    """
    embedded = workspace.find("embed", indexed.inputs["embed"]) if "embed" in indexed.inputs else None
    first_stage = options.first_stage or ("hybrid" if embedded else "bm25")
    if first_stage != "bm25" and embedded is None:
        raise MmrrError(
            f"--first-stage {first_stage} needs page vectors, and this index has none; "
            "run mmrr index with --embedder, or use --first-stage bm25"
        )
    _check(queries, options, collection)
    config: dict[str, Any] = {**dataclasses.asdict(options), "first_stage": first_stage}
    search = None
    if embedded and first_stage != "bm25":
        family = families.load("embedders", embedded.config["family"])
        search = families.parse_options(family.Search, search_options)
        config["search"] = families.stored_options(search)
    elif search_options:
        raise MmrrError(f"--search-option {', '.join(search_options)} is of the embedder; this search is by text alone")
    spec = Spec(
        "retrieve",
        4,
        config,
        {
            "pages": collection.manifest.fingerprint,
            "index": indexed.fingerprint,
            "queries": digest([dataclasses.astuple(query) for query in queries]),
        },
    )
    if done := workspace.done(spec):
        return done

    runs: list[Run] = []
    shards: list[str] = []
    # What is added up is standardised over the pages found, so there must be enough of them to say what is usual.
    depth = max(options.depth, BLENDED) if first_stage == "hybrid" else options.depth
    started = time.perf_counter()
    if embedded and search:
        shards, asked = _asked(workspace, embedded, search, queries, machine, progress)
        runs.append(_dense(workspace, collection, indexed, embedded, asked, queries, options.scope, depth))
    if first_stage != "dense":
        runs.append(_text(workspace, collection, indexed, queries, options.scope, depth))
    found = runs[0] if len(runs) == 1 else fuse(runs[0], runs[1], weight=1.0)
    run = {query_id: hits[: options.depth] for query_id, hits in found.items()}
    search_ms = 1000 * (time.perf_counter() - started)

    def write(folder: Path) -> None:
        with (folder / "run.trec").open("w", encoding="utf-8", newline="\n") as file:
            write_run(run, file)
        lines = (json.dumps(dataclasses.asdict(query), ensure_ascii=False) + "\n" for query in queries)
        (folder / "queries.jsonl").write_text("".join(lines), "utf-8")

    content = {"queries": len(queries), "candidates": sum(map(len, run.values())), "shards": shards}
    return workspace.commit(spec, content, 0, {"search_ms": round(search_ms, 1)}, write)


def _check(queries: list[Query], options: Retrieve, collection: Collection) -> None:
    if options.depth < 1:
        raise MmrrError(f"--candidates {options.depth}: expected 1 or more")
    for query in queries if options.scope == "document" else []:
        if query.doc_id is None:
            raise MmrrError(f"query {query.query_id} names no document; --scope document needs its doc_id")
        if query.doc_id not in collection.rows:
            raise MmrrError(
                f"query {query.query_id}: document {query.doc_id} is not in the index; see: mmrr ls --documents"
            )


@dataclass(frozen=True, slots=True)
class _Asked:
    """Queries as the embedder has them."""

    vectors: list[NDArray[np.float32]]  # (M, D) of each
    temperature: float  # as ``late.max_sim`` takes it


def _asked(
    workspace: Workspace,
    embedded: Manifest,
    search: Options,
    queries: list[Query],
    machine: Machine,
    progress: Progress,
) -> tuple[list[str], _Asked]:
    """Shards, and what they hold, one a query: what was asked before is not embedded again."""
    assert embedded.model
    spec = Spec("retrieve", 3, {**embedded.config, "search": families.stored_options(search)}, {}, embedded.model)
    keys = [spec.shard_key("query", query.text) for query in queries]
    missing = {
        key: query.text for key, query in zip(keys, queries, strict=True) if not workspace.has_shard("retrieve", key)
    }
    if missing:
        family = families.load("embedders", embedded.config["family"])
        device = resolve_device(machine.device)
        dtype = resolve_dtype(embedded.model["dtype"], device)
        checkpoint = recorded(embedded.model, workspace.hashes, families.names("embedders"))
        embedder = family.load(
            checkpoint, families.make_options(family.Prepare, embedded.config["options"]), device, dtype
        )
        temperature = torch.tensor(embedder.temperature(search))
        with progress("embed queries", len(missing)) as advance:
            for key, text in missing.items():
                folder = workspace.scratch()
                (vectors,) = embedder.embed_queries([text], search)
                save_tensors({"vectors": vectors, "temperature": temperature}, folder / _VECTORS)
                workspace.commit_shard("retrieve", key, folder, {})
                advance(1)
    found = [load(workspace.read_shard_file("retrieve", key, _VECTORS)) for key in keys]
    temperature = found[0]["temperature"] if found else torch.tensor(0.0)  # one embedder's, so all have the same
    return keys, _Asked([of_query["vectors"].numpy() for of_query in found], temperature.item())


def _dense(
    workspace: Workspace,
    collection: Collection,
    indexed: Manifest,
    embedded: Manifest,
    asked: _Asked,
    queries: list[Query],
    scope: Scope,
    depth: int,
) -> Run:
    if scope == "corpus":
        names = (name for name in (DENSE, VECTORS, SIZES) if name in indexed.files)
        files = {name: workspace.own_file(indexed, name) for name in names}
        found = search_dense(files, asked.vectors, depth, asked.temperature)
        return {
            query.query_id: rank({collection.pages[row].page_id: score for row, score in pages.items()}, depth)
            for query, pages in zip(queries, found, strict=True)
        }
    # One document is a few pages: exact products, whatever the index of the whole collection approximates.
    cached: dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
    ranked: Run = {}
    for query, of_query in zip(queries, asked.vectors, strict=True):
        assert query.doc_id
        rows = collection.rows[query.doc_id]
        if query.doc_id not in cached:
            pages = [of_page.numpy() for of_page in read_vectors(workspace, embedded, collection, rows)]
            cached[query.doc_id] = np.concatenate(pages), np.array([len(page) for page in pages])
        scores = max_sim([of_query], *cached[query.doc_id], asked.temperature)[0].tolist()
        of_pages = zip(rows, scores, strict=True)
        ranked[query.query_id] = rank({collection.pages[row].page_id: score for row, score in of_pages}, depth)
    return ranked


def best_by_text(index: TextIndex, query: str, depth: int) -> list[tuple[int, float]]:
    """Rows and scores of the pages that share a word, the best ``depth`` and ties at the edge, in no order."""
    scores = index.scores(query)
    edge = np.partition(scores, -depth)[-depth] if len(scores) > depth else 0.0
    return [(int(row), float(scores[row])) for row in np.flatnonzero((scores > 0) & (scores >= edge))]


def _text(
    workspace: Workspace, collection: Collection, indexed: Manifest, queries: list[Query], scope: Scope, depth: int
) -> Run:
    """By text. In a collection only pages that share a word; in one document all its pages, for the reranker to see."""
    ranked: Run = {}
    if scope == "corpus":
        index = TextIndex.load(workspace.own_file(indexed, TEXT), len(collection.pages))
        for query in queries:
            found = best_by_text(index, query.text, depth)
            ranked[query.query_id] = rank({collection.pages[row].page_id: score for row, score in found}, depth)
        return ranked
    cached: dict[str, TextIndex] = {}
    for query in queries:
        assert query.doc_id
        rows = collection.rows[query.doc_id]
        if query.doc_id not in cached:
            cached[query.doc_id] = TextIndex.build(read_texts(workspace, collection, rows))
        scores = cached[query.doc_id].scores(query.text)
        pairs = zip(rows, scores.tolist(), strict=True)
        ranked[query.query_id] = rank({collection.pages[row].page_id: score for row, score in pairs}, depth)
    return ranked
