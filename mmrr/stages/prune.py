"""Stage ``prune``: saliency maps -> the kept visual tokens of each page, on the scorer's grid."""

from __future__ import annotations

import dataclasses

import torch

from mmrr.config import Prune
from mmrr.context import Context
from mmrr.documents.page_grid import CELL_PX, snap
from mmrr.errors import MmrrError
from mmrr.modeling.saliency import choose
from mmrr.types import Embedding, Grid, Page
from mmrr.workspace import manifests
from mmrr.workspace.manifests import PageShards, PruneConfig, PruneContent, PruneShard
from mmrr.workspace.pages import Collection
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensors import read_embeddings, write_kept_tokens

#: How a scorer cuts a page into visual tokens: the side of a cell in pixels, and the most tokens (None: no limit).
PageGrid = tuple[int, int | None]


def prune(
    context: Context,
    collection: Collection,
    embedded: Manifest,
    options: Prune,
    page_grid: PageGrid = (CELL_PX, None),
) -> Manifest:
    """Keep the most salient tokens of each page. Raises MmrrError for a share outside (0, 1]."""
    if not 0 < options.keep <= 1:
        raise MmrrError(f"--keep {options.keep}: expected a share of the tokens, above 0 and at most 1")
    workspace = context.workspace
    config: PruneConfig = {
        "keep": options.keep,
        "by": options.by,
        "cell_px": page_grid[0],
        "max_tokens": page_grid[1],
    }
    inputs = {"pages": collection.manifest.fingerprint, "embed": embedded.fingerprint}
    spec = Spec("prune", 1, config, inputs)
    if done := workspace.done(spec):
        return done
    embed_shards = manifests.content(embedded, "embed")["shards"]
    shards = {pages: spec.shard_key(pages, embed_shards[pages]) for pages in collection.by_shard}
    missing = {pages: key for pages, key in shards.items() if not workspace.has_shard("prune", key)}
    with context.progress("prune", len(missing)) as advance:
        for pages_key, key in missing.items():
            pages = collection.by_shard[pages_key]
            _prune_shard(context, key, pages, read_embeddings(workspace, embed_shards[pages_key]), config)
            advance(1)
    return _commit(workspace, spec, collection, shards)


def keep_pruned(context: Context, pruned: Manifest, collection: Collection, inputs: dict[str, str]) -> Manifest:
    """The ``prune`` artifact of a part of the pages of another one. Nothing is computed."""
    spec = Spec("prune", pruned.schema, pruned.config, inputs)
    known = manifests.content(pruned, "prune")["shards"]
    shards = {pages_key: known[pages_key] for pages_key in collection.by_shard}
    return context.workspace.done(spec) or _commit(context.workspace, spec, collection, shards)


def _commit(workspace: Workspace, spec: Spec, collection: Collection, shards: PageShards) -> Manifest:
    records = [manifests.shard_record(workspace, "prune", key) for key in shards.values()]
    content: PruneContent = {
        "pages": len(collection.pages),
        "shards": shards,
        "tokens": sum(record["tokens"] for record in records),
        "kept": sum(record["kept"] for record in records),
        "resampled": sum(record["resampled"] for record in records),
    }
    return workspace.commit(spec, content, workspace.shard_bytes("prune", shards.values()))


def _prune_shard(
    context: Context, key: str, pages: list[Page], embeddings: dict[int, Embedding], config: PruneConfig
) -> None:
    grids = [_grid(page, config) for page in pages]
    kept = {
        page.number: choose(_saliency(embeddings[page.number], page, config), grid, config["keep"])
        for page, grid in zip(pages, grids, strict=True)
    }
    record: PruneShard = {
        "resampled": sum(embeddings[page.number].grid != kept[page.number].grid for page in pages),
        "kept": sum(len(of_page.indices) for of_page in kept.values()),
        "tokens": sum(h * w for h, w in grids),
    }
    folder = context.workspace.scratch()
    write_kept_tokens(folder, kept)
    context.workspace.commit_shard("prune", key, folder, dict(record))


def _saliency(embedding: Embedding, page: Page, config: PruneConfig) -> Embedding:
    """The embedding whose saliency chooses: the page's own, or random numbers that depend on the page alone."""
    if config["by"] == "attention":
        return embedding
    generator = torch.Generator().manual_seed(int(page.sha256[:15], 16))
    return dataclasses.replace(embedding, saliency=torch.rand(len(embedding.saliency), generator=generator))


def _grid(page: Page, config: PruneConfig) -> Grid:
    cell_px = config["cell_px"]
    width, height = snap(page.width_px, page.height_px, cell_px, config["max_tokens"])
    return height // cell_px, width // cell_px
