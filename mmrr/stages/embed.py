"""Stage ``embed``: page images -> vectors and a saliency map of each page, one shard per shard of pages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import torch

from mmrr.config import Model
from mmrr.context import Context
from mmrr.contracts import Options
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.checkpoints import Checkpoint, expect_kind, recorded, resolve
from mmrr.modeling.devices import dtype_name, resolve_devices, resolve_dtype
from mmrr.modeling.finite import expect_finite
from mmrr.modeling.loaded import Loaded, LoadsEachTime
from mmrr.types import Page
from mmrr.workers import Work, on_devices
from mmrr.workspace import manifests
from mmrr.workspace.manifests import EmbedConfig, EmbedContent, PageShards, Timing
from mmrr.workspace.pages import Collection, read_image
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensors import write_embeddings


def embed(context: Context, collection: Collection, model: Model, options: Mapping[str, str]) -> Manifest:
    """Embed the pages that have no shard yet. ``options`` are fields of the embedder family's ``Prepare``, as text."""
    workspace = context.workspace
    checkpoint, name, prepare = _resolved(workspace, model, options)
    devices = resolve_devices(context.machine.device)
    dtype = resolve_dtype(context.machine.dtype, devices[0])
    config: EmbedConfig = {"family": name, "options": families.stored_options(prepare)}
    if limits := families.load("embedders", name).pixel_limits(checkpoint, prepare):
        config["pixel_limits"] = list(limits)
    spec = Spec(
        "embed",
        2,
        config,
        {"pages": collection.manifest.fingerprint},
        checkpoint.identity(dtype_name(dtype)),
    )
    if done := workspace.done(spec):
        return done
    shards = {pages_key: spec.shard_key(pages_key) for pages_key in collection.by_shard}
    missing = [
        (collection.by_shard[pages], key) for pages, key in shards.items() if not workspace.has_shard("embed", key)
    ]
    pages_computed = sum(len(pages) for pages, _ in missing)
    seconds = 0.0
    if missing:
        # Helper processes of several devices load their own.
        loaded = context.loaded if len(devices) == 1 else None
        load = partial(_load, workspace, name, checkpoint, prepare, dtype, loaded)
        seconds = on_devices(devices, load, missing, context.progress("embed", pages_computed))
    return _commit(
        workspace, spec, collection, shards, {"pages_computed": pages_computed, "seconds": round(seconds, 3)}
    )


def check(context: Context, model: Model, options: Mapping[str, str]) -> None:
    """Raise the MmrrError that ``embed`` raises for a wrong checkpoint, option or device. Loads no weights."""
    checkpoint, name, prepare = _resolved(context.workspace, model, options)
    families.load("embedders", name).check(checkpoint, prepare)
    resolve_dtype(context.machine.dtype, resolve_devices(context.machine.device)[0])


def is_multi_vector(context: Context, model: Model, options: Mapping[str, str]) -> bool:
    """Whether an embedder gives a page several vectors."""
    _, name, _ = _resolved(context.workspace, model, options)
    return families.load("embedders", name).SPEC.multi_vector


def _resolved(workspace: Workspace, model: Model, options: Mapping[str, str]) -> tuple[Checkpoint, str, Options]:
    """The checkpoint, the name of its family, and the family's options."""
    expect_kind("embedders", model.name)
    checkpoint = resolve(model.name, model.revision, workspace.hashes, families.names("embedders"))
    name = families.embedder(checkpoint.config())
    return checkpoint, name, families.parse_options(families.load("embedders", name).Prepare, dict(options))


def followed(workspace: Workspace, indexed: Manifest | None) -> tuple[Model, dict[str, str]] | None:
    """The embedder of an index and its options, as text; None if the index has no page vectors.

    Raises MmrrError if the vectors were removed, or if the checkpoint is not found or has changed.
    """
    if indexed is None or "embed" not in indexed.inputs:
        return None
    embedded = workspace.find("embed", indexed.inputs["embed"])
    if embedded is None or embedded.model is None:
        raise MmrrError(
            f"the vectors of index/{indexed.fingerprint} were removed, so its embedder is not known; "
            "pass --embedder, or --first-stage bm25 to index text only"
        )
    recorded(embedded.model, workspace.hashes, families.names("embedders"))
    commit, _, _ = embedded.model["revision"].partition("+")
    model = Model(embedded.model["id"], None if commit.startswith("sha256:") else commit)
    config = manifests.config(embedded, "embed")
    prepare = families.make_options(families.load("embedders", config["family"]).Prepare, config["options"])
    return model, {name: str(value) for name, value in dataclasses.asdict(prepare).items()}


def keep_embedded(context: Context, embedded: Manifest, collection: Collection) -> Manifest:
    """The ``embed`` artifact of a part of the pages of another one. Nothing is computed."""
    assert embedded.model
    inputs = {"pages": collection.manifest.fingerprint}
    spec = Spec("embed", embedded.schema, embedded.config, inputs, embedded.model)
    if done := context.workspace.done(spec):
        return done
    known = manifests.content(embedded, "embed")["shards"]
    shards = {pages_key: known[pages_key] for pages_key in collection.by_shard}
    return _commit(context.workspace, spec, collection, shards, {"pages_computed": 0, "seconds": 0.0})


def _commit(workspace: Workspace, spec: Spec, collection: Collection, shards: PageShards, timing: Timing) -> Manifest:
    content: EmbedContent = {"pages": len(collection.pages), "shards": shards}
    return workspace.commit(spec, content, workspace.shard_bytes("embed", shards.values()), timing)


def _load(
    workspace: Workspace,
    family: str,
    checkpoint: Checkpoint,
    prepare: Options,
    dtype: torch.dtype,
    loaded: Loaded | None,
    device: torch.device,
) -> Work:
    """Load the embedder on a device. The parameters before ``device`` are the same for all devices."""
    key = ("embedder", family, checkpoint.revision, prepare, str(device), dtype)
    module = families.load("embedders", family)
    embedder = (loaded or LoadsEachTime()).get(key, lambda: module.load(checkpoint, prepare, device, dtype))

    def embed_shard(task: tuple[list[Page], str], advance: Callable[[int], None]) -> None:
        pages, key = task
        embeddings = {}
        for page in pages:
            (found,) = embedder.embed_pages([read_image(workspace, page)])
            parts = {"vectors": found.vectors, "saliency values": found.saliency}
            expect_finite(f"page {page.page_id}", checkpoint.id, parts)
            embeddings[page.number] = found
            advance(1)
        folder = workspace.scratch()
        write_embeddings(folder, embeddings)
        workspace.commit_shard("embed", key, folder, {})

    return embed_shard
