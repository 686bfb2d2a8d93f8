"""Stage ``embed``: page images -> vectors and a saliency map of each page, one shard per shard of pages."""

from __future__ import annotations

import dataclasses
import time

from mmrr import families
from mmrr.artifacts import Manifest, Spec, Workspace
from mmrr.checkpoints import resolve
from mmrr.collection import Collection, read_image
from mmrr.config import Machine, Model
from mmrr.devices import dtype_name, resolve_device, resolve_dtype
from mmrr.shards import write_embeddings
from mmrr.types import Progress, silent


def embed(
    workspace: Workspace,
    collection: Collection,
    model: Model,
    options: dict[str, str],
    machine: Machine,
    progress: Progress = silent,
) -> Manifest:
    """Embed the pages that no shard has yet. ``options`` are the embedder family's ``Prepare`` by name."""
    checkpoint = resolve(model.name, model.revision, workspace.hashes, families.names("embedders"))
    name = families.embedder(checkpoint.config())
    family = families.load("embedders", name)
    prepare = families.parse_options(family.Prepare, options)
    device = resolve_device(machine.device)
    dtype = resolve_dtype(machine.dtype, device)
    spec = Spec(
        "embed",
        2,
        {"family": name, "options": dataclasses.asdict(prepare)},
        {"pages": collection.manifest.fingerprint},
        checkpoint.identity(dtype_name(dtype)),
    )
    if done := workspace.done(spec):
        return done
    shards = {pages_key: spec.shard_key(pages_key) for pages_key in collection.by_shard}
    missing = {pages: key for pages, key in shards.items() if not workspace.has_shard("embed", key)}
    pages_computed = sum(len(collection.by_shard[pages]) for pages in missing)
    started = time.perf_counter()
    if missing:
        embedder = family.Embedder(checkpoint, prepare, device, dtype)
        started = time.perf_counter()
        with progress("embed", pages_computed) as advance:
            for pages_key, key in missing.items():
                embeddings = {}
                for page in collection.by_shard[pages_key]:
                    (embeddings[page.number],) = embedder.embed_pages([read_image(workspace, page)])
                    advance(1)
                folder = workspace.scratch()
                write_embeddings(folder, embeddings)
                workspace.commit_shard("embed", key, folder, {})
    content = {"pages": len(collection.pages), "shards": shards}
    timing = {"pages_computed": pages_computed, "seconds": round(time.perf_counter() - started, 3)}
    return workspace.commit(spec, content, workspace.shard_bytes("embed", shards.values()), timing)
