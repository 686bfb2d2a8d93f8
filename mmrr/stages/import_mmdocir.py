"""Stage ``pages`` from MMDocIR's published files: the parquet's page images (or layout crops) and their text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mmrr.context import Context
from mmrr.evaluation import mmdocir
from mmrr.evaluation.mmdocir import Benchmark, Text
from mmrr.stages._imported import Import, Item, collect
from mmrr.workspace.store import Manifest, Spec

#: Page ids of layouts are ``<document>/L00012``: the layout's position in its document, from 0.
LAYOUT_NAME = "L{:05d}"


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
    pages = (Item(page.doc_id, page.number, page.image, page.text) for page in mmdocir.iter_pages(benchmark, text))
    return _read(context, _File(benchmark, mmdocir.PAGES, "{:04d}", max_tokens, text), pages)


def read_layouts(context: Context, benchmark: Benchmark, max_tokens: int, text: Text) -> Manifest:
    """The published layouts as a separate collection. The image of each "page" is the crop of a layout."""

    def items() -> Iterator[Item]:
        for layout in mmdocir.iter_layouts(benchmark, text):
            number = int(layout.layout_id.rsplit("/L", 1)[1])
            yield Item(layout.doc_id, number, layout.image or b"", layout.text)

    return _read(context, _File(benchmark, mmdocir.LAYOUTS, LAYOUT_NAME, max_tokens, text), items())


def _read(context: Context, file: _File, items: Iterable[Item]) -> Manifest:
    content = mmdocir.content_id(file.benchmark, file.name, context.workspace.hashes.sha256)
    config = {"file": file.name, "max_tokens": file.max_tokens, "text": file.text}
    documents = sorted(document.doc_id for document in file.benchmark.documents)
    spec = Spec("pages", 1, {**config, "documents": documents}, {"documents": content})
    if done := context.workspace.done(spec):
        return done
    plan = Import(spec, content, config, file.page_name, file.max_tokens, file.name, len(documents))
    return collect(context, plan, items)
