"""Stage ``pages``, from MMDocIR as it is published: the parquet's page images (or layout crops) and their text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

from mmrr.documents.rendering import render_image
from mmrr.evaluation import mmdocir
from mmrr.evaluation.mmdocir import Benchmark, Text
from mmrr.types import Progress, silent
from mmrr.workspace.pages import commit_pages, list_pages
from mmrr.workspace.store import SHARD_PAGES, Manifest, Spec, Workspace

#: Page ids of layouts: ``<document>/L00012``, the layout's place in its document, from 0.
LAYOUT_NAME = "L{:05d}"


class _Item(NamedTuple):
    doc_id: str
    number: int
    image: bytes | None
    text: str


def read_pages(
    workspace: Workspace, benchmark: Benchmark, max_tokens: int, text: Text, progress: Progress = silent
) -> Manifest:
    """The published pages as a collection. One pass through the file, a shard's pages in memory."""
    pages = (_Item(page.doc_id, page.number, page.image, page.text) for page in mmdocir.iter_pages(benchmark, text))
    return _read(workspace, benchmark, mmdocir.PAGES, pages, max_tokens, text, "{:04d}", progress)


def read_layouts(
    workspace: Workspace, benchmark: Benchmark, max_tokens: int, text: Text, progress: Progress = silent
) -> Manifest:
    """The published layouts as a collection of their own, a page image each being the layout's crop."""

    def items() -> Iterator[_Item]:
        for layout in mmdocir.iter_layouts(benchmark, text):
            number = int(layout.layout_id.rsplit("/L", 1)[1])
            yield _Item(layout.doc_id, number, layout.image, layout.text)

    return _read(workspace, benchmark, mmdocir.LAYOUTS, items(), max_tokens, text, LAYOUT_NAME, progress)


def _read(
    workspace: Workspace,
    benchmark: Benchmark,
    name: str,
    items: Iterable[_Item],
    max_tokens: int,
    text: Text,
    page_name: str,
    progress: Progress,
) -> Manifest:
    content = mmdocir.content_id(benchmark, name, workspace.hashes.sha256)
    documents = sorted(document.doc_id for document in benchmark.documents)
    config = {"file": name, "max_tokens": max_tokens, "text": text, "documents": documents}
    spec = Spec("pages", 1, config, {"documents": content})
    if done := workspace.done(spec):
        return done
    entries: dict[str, dict[str, Any]] = {}
    with progress(f"read {name}", len(benchmark.documents)) as advance:
        for doc_id, group in groupby(items, key=lambda item: item.doc_id):
            new = {"doc_id": doc_id, "sha256": content, "status": "ok", "n_pages": 0, "detail": "", "shards": []}
            entry = entries.setdefault(doc_id, new)
            for chunk in _chunks(group):
                key = Spec("pages", 1, {**config, "documents": []}, {}).shard_key(
                    content, doc_id, f"{chunk[0].number}-{chunk[-1].number}"
                )
                entry["n_pages"] += len(chunk)
                entry["shards"].append(key)
                if not workspace.has_shard("pages", key):
                    _write(workspace, key, chunk, max_tokens)
            advance(1)
    return list_pages(workspace, spec, list(entries.values()), page_name)


def _chunks(items: Iterable[_Item]) -> Iterator[list[_Item]]:
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
