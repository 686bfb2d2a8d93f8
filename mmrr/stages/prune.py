"""Stage ``prune``: saliency maps -> the visual tokens of each page that are kept, on the grid the scorer will use."""

from __future__ import annotations

import dataclasses

import torch

from mmrr.config import Prune
from mmrr.documents.page_grid import CELL_PX, snap
from mmrr.errors import MmrrError
from mmrr.modeling.saliency import choose
from mmrr.types import Embedding, Grid, Page, Progress, silent
from mmrr.workspace.pages import Collection
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensors import read_embeddings, write_kept_tokens


def prune(
    workspace: Workspace,
    collection: Collection,
    embedded: Manifest,
    options: Prune,
    cell_px: int = CELL_PX,
    max_tokens: int | None = None,
    progress: Progress = silent,
) -> Manifest:
    """Keep each page's most looked-at tokens. ``cell_px`` and ``max_tokens`` say how the scorer cuts a page.

    Raises MmrrError for a share outside (0, 1].
    """
    if not 0 < options.keep <= 1:
        raise MmrrError(f"keep {options.keep}: expected a share of the tokens, above 0 and at most 1")
    spec = Spec(
        "prune",
        1,
        {"keep": options.keep, "by": options.by, "cell_px": cell_px, "max_tokens": max_tokens},
        {"pages": collection.manifest.fingerprint, "embed": embedded.fingerprint},
    )
    if done := workspace.done(spec):
        return done
    embed_shards = embedded.content["shards"]
    shards = {pages: spec.shard_key(pages, embed_shards[pages]) for pages in collection.by_shard}
    missing = {pages: key for pages, key in shards.items() if not workspace.has_shard("prune", key)}
    with progress("prune", len(missing)) as advance:
        for pages_key, key in missing.items():
            pages = collection.by_shard[pages_key]
            embeddings = read_embeddings(workspace, embed_shards[pages_key])
            grids = [_grid(page, cell_px, max_tokens) for page in pages]
            keeps = {
                page.number: choose(_seen(embeddings[page.number], page, options), grid, options.keep)
                for page, grid in zip(pages, grids, strict=True)
            }
            resampled = sum(embeddings[page.number].grid != keeps[page.number].grid for page in pages)
            folder = workspace.scratch()
            write_kept_tokens(folder, keeps)
            kept = sum(len(keep.indices) for keep in keeps.values())
            record = {"resampled": resampled, "kept": kept, "tokens": sum(h * w for h, w in grids)}
            workspace.commit_shard("prune", key, folder, record)
            advance(1)
    records = [workspace.shard_record("prune", key) for key in shards.values()]
    content = {
        "pages": len(collection.pages),
        "shards": shards,
        **{name: sum(record[name] for record in records) for name in ("tokens", "kept", "resampled")},
    }
    return workspace.commit(spec, content, workspace.shard_bytes("prune", shards.values()))


def _seen(embedding: Embedding, page: Page, options: Prune) -> Embedding:
    """The embedding whose saliency chooses: the page's own, or random numbers that a page always gets again."""
    if options.by == "attention":
        return embedding
    generator = torch.Generator().manual_seed(int(page.sha256[:15], 16))
    return dataclasses.replace(embedding, saliency=torch.rand(len(embedding.saliency), generator=generator))


def _grid(page: Page, cell_px: int, max_tokens: int | None) -> Grid:
    width, height = snap(page.width_px, page.height_px, cell_px, max_tokens)
    return height // cell_px, width // cell_px
