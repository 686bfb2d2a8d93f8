"""The vectors of queries, from the embedders that made the vectors of the pages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from mmrr.context import Context
from mmrr.contracts import Embedder, EmbedsVisualQueries, Options, TextEmbedder, VisualQuery
from mmrr.modeling import families, text_checkpoints
from mmrr.modeling.checkpoints import recorded
from mmrr.modeling.devices import resolve_device, resolve_dtype
from mmrr.modeling.finite import expect_finite
from mmrr.queries import identity
from mmrr.stages._visual import asked, max_tokens
from mmrr.types import Query
from mmrr.workspace import manifests
from mmrr.workspace.pages import Collection
from mmrr.workspace.store import Manifest, Spec
from mmrr.workspace.tensor_files import save_tensors

#: The file of a query's shard: its vectors and their temperature.
_VECTORS = "vectors.safetensors"
#: Queries that a text embedder reads together.
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Encoded:
    """The vectors of the queries."""

    vectors: list[NDArray[np.float32]]  # (M, D) of each query
    temperature: float  # as ``max_sim`` takes it


def encode_queries(
    context: Context, collection: Collection, embedded: Manifest, search: Options, queries: list[Query], *, kept: bool
) -> tuple[list[str], Encoded]:
    """Embed the queries that have no shard yet. Returns the shard of each query, and the vectors in them.

    Without ``kept`` no shard is read or written.
    """
    assert embedded.model
    if not kept:
        embedder = load_embedder(context, embedded)
        found = [_embed_query(embedder, embedded, asked(query, collection), search) for query in queries]
        # In the number format of a shard.
        same = torch.tensor(embedder.temperature(search)).item()
        return [], Encoded([vectors.cpu().numpy() for vectors in found], same)
    workspace = context.workspace
    spec = Spec("retrieve", 3, {**embedded.config, "search": families.stored_options(search)}, {}, embedded.model)
    keys = [spec.shard_key("query", *identity(query, max_tokens(collection))) for query in queries]
    missing = {key: query for key, query in zip(keys, queries, strict=True) if not workspace.has_shard("retrieve", key)}
    if missing:
        embedder = load_embedder(context, embedded)
        temperature = torch.tensor(embedder.temperature(search))
        with context.progress("embed queries", len(missing)) as advance:
            for key, query in missing.items():
                folder = workspace.scratch()
                vectors = _embed_query(embedder, embedded, asked(query, collection), search)
                save_tensors({"vectors": vectors, "temperature": temperature}, folder / _VECTORS)
                workspace.commit_shard("retrieve", key, folder, {})
                advance(1)
    stored = [load(workspace.read_shard_file("retrieve", key, _VECTORS)) for key in keys]
    temperature = stored[0]["temperature"] if stored else torch.tensor(0.0)  # one embedder has one temperature
    return keys, Encoded([of_query["vectors"].numpy() for of_query in stored], temperature.item())


def _embed_query(embedder: Embedder, embedded: Manifest, query: str | VisualQuery, search: Options) -> torch.Tensor:
    assert embedded.model
    if isinstance(query, str):
        (vectors,) = embedder.embed_queries([query], search)
        name = f"query '{query[:60]}'"
    else:
        assert isinstance(embedder, EmbedsVisualQueries)  # ``check_channels`` was called
        family = families.load("embedders", manifests.config(embedded, "embed")["family"])
        given = query if family.SPEC.joint_queries else VisualQuery("", query.image)
        vectors = embedder.embed_visual_query(given, search)
        name = "the image of a query"
    expect_finite(name, embedded.model["id"], {"vectors": vectors})
    return vectors


def load_embedder(context: Context, embedded: Manifest) -> Embedder:
    """The embedder that made the page vectors: the same checkpoint, options and number format."""
    assert embedded.model
    model = embedded.model
    config = manifests.config(embedded, "embed")
    family = families.load("embedders", config["family"])
    device = resolve_device(context.machine.device)
    dtype = resolve_dtype(model["dtype"], device)
    prepare = families.make_options(family.Prepare, config["options"])

    def load() -> Embedder:
        checkpoint = recorded(model, context.workspace.hashes, families.names("embedders"))
        return family.load(checkpoint, prepare, device, dtype)

    # A checkpoint in memory is not looked for again: that may ask the Hub.
    key = ("embedder", config["family"], model["revision"], prepare, str(device), dtype)
    return context.loaded.get(key, load)


def encode_for_text(
    context: Context, embedded: Manifest, queries: list[Query], *, kept: bool
) -> tuple[list[str], list[NDArray[np.float32]]]:
    """Embed the queries that have no shard yet with the text embedder. The shard and the vector (D,) of each query.

    Without ``kept`` no shard is read or written.
    """
    assert embedded.model
    if not kept:
        texts = [query.text for query in queries]
        embedder = _text_embedder(context, embedded)
        portions = [embedder.embed_queries(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)]
        return [], [vector.cpu().numpy() for portion in portions for vector in portion]
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
    model = embedded.model
    config = manifests.config(embedded, "embed_text")
    family = families.load("text_embedders", config["family"])
    device = resolve_device(context.machine.device)
    dtype = resolve_dtype(model["dtype"], device)
    prepare = families.make_options(family.Prepare, config["options"])

    def load() -> TextEmbedder:
        checkpoint = text_checkpoints.recorded(model, context.workspace.hashes)
        return family.load(checkpoint, prepare, device, dtype)

    key = ("text embedder", config["family"], model["revision"], prepare, str(device), dtype)
    return context.loaded.get(key, load)
