"""Pages of published data as a collection of the stage ``pages``, for the stages that import them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from mmrr.context import Context
from mmrr.documents.rendering import RenderedPage, render_image
from mmrr.workspace.manifests import DocumentEntry
from mmrr.workspace.pages import commit_pages, list_pages
from mmrr.workspace.store import SHARD_PAGES, Manifest, Spec, Workspace

#: Pages of a shard that have no image: a text takes a thousandth of the room of an image.
TEXT_SHARD_PAGES = 128


class Item(NamedTuple):
    """A page or a layout. ``image``: of a page that is text alone None, of a broken one empty."""

    doc_id: str
    number: int
    image: bytes | None
    text: str


@dataclass(frozen=True, slots=True)
class Import:
    """What is imported: the Spec of the collection, its documents, and the content hash of the data."""

    spec: Spec
    content: str
    config: Mapping[str, object]  # what the pages themselves depend on
    page_name: str  # format of a page's number in its id
    max_tokens: int
    label: str  # of the progress
    total: int  # documents, or pages with ``by_page``
    by_page: bool = False


def collect(context: Context, plan: Import, items: Iterable[Item]) -> Manifest:
    """The items as a collection. They are read once, those of one shard at a time; shards that are there stay."""
    workspace = context.workspace
    of_shards = Spec("pages", 1, {**plan.config, "documents": []}, {})
    entries: dict[str, DocumentEntry] = {}
    with context.progress(f"read {plan.label}", plan.total) as advance:
        for doc_id, group in groupby(items, key=lambda item: item.doc_id):
            entry = entries.setdefault(doc_id, _entry(doc_id, plan.content))
            for chunk in _chunks(group):
                key = of_shards.shard_key(plan.content, doc_id, _range(chunk))
                entry["n_pages"] += len(chunk)
                entry["shards"].append(key)
                if not workspace.has_shard("pages", key):
                    _write(workspace, key, chunk, plan.max_tokens)
                advance(len(chunk) if plan.by_page else 0)
            advance(0 if plan.by_page else 1)
    return list_pages(workspace, plan.spec, list(entries.values()), plan.page_name)


def _entry(doc_id: str, content: str) -> DocumentEntry:
    return {"doc_id": doc_id, "sha256": content, "status": "ok", "n_pages": 0, "detail": "", "shards": []}


def _range(chunk: list[Item]) -> str:
    """The numbers of a chunk: its ends, or all of them where some are left out."""
    first, last = chunk[0].number, chunk[-1].number
    return f"{first}-{last}" if last - first + 1 == len(chunk) else ",".join(str(item.number) for item in chunk)


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Up to ``SHARD_PAGES`` images at a time, or ``TEXT_SHARD_PAGES`` texts."""
    chunk: list[Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == (TEXT_SHARD_PAGES if all(one.image is None for one in chunk) else SHARD_PAGES):
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _write(workspace: Workspace, key: str, chunk: list[Item], max_tokens: int) -> None:
    folder, raw = workspace.scratch(), workspace.scratch() / "image"
    pages = []
    for item in chunk:
        if item.image is None:
            # Its hash tells texts apart, where the hash of an image tells pages apart.
            sha256 = hashlib.sha256(item.text.encode()).hexdigest()
            pages.append(RenderedPage(item.number, "ok", "", 0, 0, sha256, "", item.text))
            continue
        raw.write_bytes(item.image)
        pages.append(render_image(raw, item.number, item.text, folder, max_tokens))
    commit_pages(workspace, key, folder, pages)
