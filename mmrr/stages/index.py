"""Stage ``index``: vectors -> FAISS, text layer -> BM25."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmrr.config import Index
from mmrr.modeling import families
from mmrr.search.indexes import BM25, TEXT, TextIndex, build_dense
from mmrr.types import Progress, silent
from mmrr.workspace.pages import Collection, read_texts
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensors import read_vectors

#: Pages whose vectors are read at once.
_TOGETHER = 256


def build(
    workspace: Workspace, collection: Collection, embedded: Manifest | None, options: Index, progress: Progress = silent
) -> Manifest:
    """Index the pages; without ``embedded`` by their text alone. Makes the result the head."""
    inputs = {"pages": collection.manifest.fingerprint}
    config: dict[str, object] = {"bm25": BM25}
    if embedded:
        inputs["embed"] = embedded.fingerprint
        config["faiss_factory"] = options.faiss_factory
    spec = Spec("index", 3, config, inputs)
    manifest = workspace.done(spec)
    if manifest is None:
        texts = read_texts(workspace, collection)

        def write(folder: Path) -> None:
            with progress("index", len(collection.pages)) as advance:
                TextIndex.build(texts).save(folder / TEXT)
                if embedded:
                    several = families.load("embedders", embedded.config["family"]).SPEC.multi_vector
                    build_dense(
                        _vectors(workspace, collection, embedded), options.faiss_factory, folder, several=several
                    )
                advance(len(collection.pages))

        content = {"pages": len(collection.pages), "pages_with_text": sum(bool(text.strip()) for text in texts)}
        manifest = workspace.commit(spec, content, 0, write=write)
    workspace.set_current(*filter(None, (collection.manifest, embedded, manifest)))
    return manifest


def _vectors(workspace: Workspace, collection: Collection, embedded: Manifest) -> Iterator[NDArray[np.float32]]:
    """Each page's, a few at a time."""
    for start in range(0, len(collection.pages), _TOGETHER):
        rows = range(start, min(start + _TOGETHER, len(collection.pages)))
        yield from (of_page.numpy() for of_page in read_vectors(workspace, embedded, collection, rows))
