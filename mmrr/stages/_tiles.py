"""Tiles for the stage ``pages``: images of the parts of pages with small print, in shards of their own.

The images of whole pages, and everything that was made from them, stay when tiles are added.
"""

from __future__ import annotations

from collections.abc import Callable
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
    find: Callable[[DocumentEntry], Source | None],
    options: RenderOptions,
    workers: int,
) -> None:
    """Draw the tiles that are missing; each document's ``tiles`` says in which shard they are.

    ``find`` gives the file of a document. A document whose file is gone or changed gets none.
    """
    workspace = context.workspace
    missing: dict[str, tuple[Source, list[int]]] = {}
    for entry in entries:
        for key in entry["shards"]:
            pages = manifests.shard_record(workspace, "pages", key)["pages"]
            small = [page["number"] for page in pages if SMALL_PRINT in page.get("notes", ())]
            name = spec.shard_key(key)
            if small and not workspace.has_shard("pages", name):
                source = find(entry)
                if source is None:
                    continue
                missing[name] = source, small
            if small:
                entry.setdefault("tiles", {})[key] = name
    if not missing:
        return
    n_pages = sum(len(small) for _, small in missing.values())
    try:
        with helpers(min(workers, n_pages)) as pool, context.progress("tiles", n_pages) as advance:
            for name, (source, small) in missing.items():
                folder = workspace.scratch()
                drawn = pool.map(draw_tiles, repeat(source), small, repeat(folder), repeat(options))
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
