"""Stage ``index``: vectors of pages and of their text -> FAISS indexes, text -> a BM25 index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmrr.config import Index
from mmrr.context import Context
from mmrr.modeling import families
from mmrr.search import languages
from mmrr.search.indexes import BM25, TEXT, TextIndex, build_dense, build_windows, check_factory, check_vectors
from mmrr.workspace import manifests
from mmrr.workspace.manifests import IndexConfig, IndexContent
from mmrr.workspace.pages import Collection, read_stored_texts
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensors import read_vectors, read_windows

if TYPE_CHECKING:
    import torch

#: Pages whose vectors are in memory together.
_BATCH_PAGES = 256
#: Reads the vectors of the pages at these rows from an artifact.
_Read = Callable[[Workspace, Manifest, Collection, Sequence[int]], list["torch.Tensor"]]


def check(options: Index) -> None:
    """Raise MmrrError as ``check_factory`` does."""
    check_factory(options.faiss_factory)


def check_size(options: Index, n_vectors: int) -> None:
    """Raise MmrrError if the index needs more vectors than there are."""
    check_vectors(options.faiss_factory, n_vectors)


def options_of(indexed: Manifest) -> Index:
    """The options that an index was made with."""
    config = manifests.config(indexed, "index")
    given: dict[str, Any] = {key: config[key] for key in ("faiss_factory", "language") if key in config}
    return Index(**given)


def build(
    context: Context,
    collection: Collection,
    embedded: Manifest | None,
    text_embedded: Manifest | None,
    options: Index,
) -> Manifest:
    """Index the pages: the words of their text, with ``embedded`` their vectors, with the other those of their text."""
    workspace = context.workspace
    inputs = {"pages": collection.manifest.fingerprint}
    config: IndexConfig = {"bm25": dict(BM25), "language": options.language}
    if embedded:
        inputs["embed"] = embedded.fingerprint
        config["faiss_factory"] = options.faiss_factory
    if text_embedded:
        inputs["embed_text"] = text_embedded.fingerprint
    spec = Spec("index", 4, config, inputs)
    if done := workspace.done(spec):
        return done
    texts = read_stored_texts(workspace, collection)
    of_pages = languages.of_pages(texts, options.language)

    def write(folder: Path) -> None:
        with context.progress("index", len(collection.pages)) as advance:
            TextIndex.build(texts, of_pages).save(folder / TEXT)
            if embedded:
                several = families.load("embedders", manifests.config(embedded, "embed")["family"]).SPEC.multi_vector
                vectors = _vectors(workspace, collection, embedded, read_vectors)
                build_dense(vectors, options.faiss_factory, folder, several=several)
            if text_embedded:
                build_windows(_vectors(workspace, collection, text_embedded, read_windows), folder)
            advance(len(collection.pages))

    content: IndexContent = {
        "pages": len(collection.pages),
        "pages_with_text": sum(bool(text.strip()) for text in texts),
        "languages": dict(Counter(of_pages).most_common()),
    }
    return workspace.commit(spec, content, 0, write=write)


def _vectors(
    workspace: Workspace, collection: Collection, embedded: Manifest, read: _Read
) -> Iterator[NDArray[np.float32]]:
    """The vectors of each page in turn, read ``_BATCH_PAGES`` pages at a time."""
    for start in range(0, len(collection.pages), _BATCH_PAGES):
        rows = range(start, min(start + _BATCH_PAGES, len(collection.pages)))
        yield from (of_page.numpy() for of_page in read(workspace, embedded, collection, rows))
