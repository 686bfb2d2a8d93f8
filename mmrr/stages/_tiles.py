"""Tiles for the stage ``pages``: images of the parts of pages with small print, in shards of their own.

The images of whole pages, and everything that was made from them, stay when tiles are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat

from mmrr.context import Context
from mmrr.documents.discovery import Source
from mmrr.documents.drawn import RenderOptions
from mmrr.documents.page_notes import SMALL_PRINT
from mmrr.documents.tiles import draw_tiles
from mmrr.errors import MmrrError
from mmrr.workers import helpers
from mmrr.workspace import manifests
from mmrr.workspace.manifests import DocumentEntry
from mmrr.workspace.pages import commit_pages
from mmrr.workspace.store import Spec

#: In the config of the pages: how they are cut.
TILING = "of small print, 1"


def cut_pages(
    context: Context,
    spec: Spec,
    entries: list[DocumentEntry],
    sources: Mapping[str, Source | None],
    options: RenderOptions,
    workers: int,
) -> None:
    """Draw the tiles that are missing; each document's ``tiles`` says in which shard they are.

    A document whose file is gone gets none.
    """
    workspace = context.workspace
    missing: dict[str, tuple[DocumentEntry, str, list[int]]] = {}
    for entry in entries:
        for key in entry["shards"]:
            pages = manifests.shard_record(workspace, "pages", key)["pages"]
            small = [page["number"] for page in pages if SMALL_PRINT in page.get("notes", ())]
            name = spec.shard_key(key)
            if small and not workspace.has_shard("pages", name):
                if sources.get(entry["sha256"]) is None:
                    continue
                missing[name] = entry, key, small
            if small:
                entry.setdefault("tiles", {})[key] = name
    if not missing:
        return
    n_pages = sum(len(small) for _, _, small in missing.values())
    try:
        with helpers(min(workers, n_pages)) as pool, context.progress("tiles", n_pages) as advance:
            for name, (entry, _, small) in missing.items():
                folder = workspace.scratch()
                drawn = pool.map(draw_tiles, repeat(sources[entry["sha256"]]), small, repeat(folder), repeat(options))
                tiles = []
                for of_page in drawn:
                    tiles += of_page
                    advance(1)
                commit_pages(workspace, name, folder, tiles)
    except BrokenProcessPool:
        raise MmrrError(
            "a process that cut pages into tiles died, perhaps because memory ran out; run the command again with "
            "--workers 1, or without --tiles"
        ) from None
