"""Stage ``pages`` from MMDocIR's published files: the parquet's page images (or layout crops) and their text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from mmrr.context import Context
from mmrr.documents.rendering import render_image
from mmrr.evaluation import mmdocir
from mmrr.evaluation.mmdocir import Benchmark, Text
from mmrr.workspace.manifests import DocumentEntry
from mmrr.workspace.pages import commit_pages, list_pages
from mmrr.workspace.store import SHARD_PAGES, Manifest, Spec, Workspace

#: Page ids of layouts are ``<document>/L00012``: the layout's position in its document, from 0.
LAYOUT_NAME = "L{:05d}"


class _Item(NamedTuple):
    """A page or a layout."""

    doc_id: str
    number: int
    image: bytes | None
    text: str


@dataclass(frozen=True, slots=True)
class _File:
    """A published file, and how its items become pages."""

    benchmark: Benchmark
    name: str
    page_name: str  # format of a page's number in its id
    max_tokens: int
    text: Text


def read_pages(context: Context, benchmark: Benchmark, max_tokens: int, text: Text) -> Manifest:
    """The published pages as a collection. The file is read once, the pages of one shard at a time."""
    pages = (_Item(page.doc_id, page.number, page.image, page.text) for page in mmdocir.iter_pages(benchmark, text))
    return _read(context, _File(benchmark, mmdocir.PAGES, "{:04d}", max_tokens, text), pages)


def read_layouts(context: Context, benchmark: Benchmark, max_tokens: int, text: Text) -> Manifest:
    """The published layouts as a separate collection. The image of each "page" is the crop of a layout."""

    def items() -> Iterator[_Item]:
        for layout in mmdocir.iter_layouts(benchmark, text):
            number = int(layout.layout_id.rsplit("/L", 1)[1])
            yield _Item(layout.doc_id, number, layout.image, layout.text)

    return _read(context, _File(benchmark, mmdocir.LAYOUTS, LAYOUT_NAME, max_tokens, text), items())


def _read(context: Context, file: _File, items: Iterable[_Item]) -> Manifest:
    workspace = context.workspace
    content = mmdocir.content_id(file.benchmark, file.name, workspace.hashes.sha256)
    config = {"file": file.name, "max_tokens": file.max_tokens, "text": file.text}
    documents = sorted(document.doc_id for document in file.benchmark.documents)
    spec = Spec("pages", 1, {**config, "documents": documents}, {"documents": content})
    if done := workspace.done(spec):
        return done
    of_shards = Spec("pages", 1, {**config, "documents": []}, {})
    entries: dict[str, DocumentEntry] = {}
    with context.progress(f"read {file.name}", len(file.benchmark.documents)) as advance:
        for doc_id, group in groupby(items, key=lambda item: item.doc_id):
            entry = entries.setdefault(doc_id, _entry(doc_id, content))
            for chunk in _chunks(group):
                key = of_shards.shard_key(content, doc_id, f"{chunk[0].number}-{chunk[-1].number}")
                entry["n_pages"] += len(chunk)
                entry["shards"].append(key)
                if not workspace.has_shard("pages", key):
                    _write(workspace, key, chunk, file.max_tokens)
            advance(1)
    return list_pages(workspace, spec, list(entries.values()), file.page_name)


def _entry(doc_id: str, content: str) -> DocumentEntry:
    return {"doc_id": doc_id, "sha256": content, "status": "ok", "n_pages": 0, "detail": "", "shards": []}


def _chunks(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    """Up to ``SHARD_PAGES`` items at a time."""
    chunk: list[_Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == SHARD_PAGES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _write(workspace: Workspace, key: str, chunk: list[_Item], max_tokens: int) -> None:
    folder, raw = workspace.scratch(), workspace.scratch() / "image"
    pages = []
    for item in chunk:
        raw.write_bytes(item.image or b"")
        pages.append(render_image(raw, item.number, item.text, folder, max_tokens))
    commit_pages(workspace, key, folder, pages)
