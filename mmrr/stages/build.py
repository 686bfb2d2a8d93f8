"""Stage ``index``: vectors -> FAISS, text layer -> BM25."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mmrr.artifacts import Manifest, Spec, Workspace
from mmrr.collection import Collection, read_texts
from mmrr.config import Index
from mmrr.index import BM25, DENSE, SIZES, TEXT, TextIndex, build_dense
from mmrr.shards import read_vectors
from mmrr.types import Progress, silent


def build(
    workspace: Workspace, collection: Collection, embedded: Manifest | None, options: Index, progress: Progress = silent
) -> Manifest:
    """Index the pages; without ``embedded`` by their text alone. Makes the result the head."""
    inputs = {"pages": collection.manifest.fingerprint}
    config: dict[str, object] = {"bm25": BM25}
    if embedded:
        inputs["embed"] = embedded.fingerprint
        config["faiss_factory"] = options.faiss_factory
    spec = Spec("index", 2, config, inputs)
    manifest = workspace.done(spec)
    if manifest is None:
        texts = read_texts(workspace, collection)

        def write(folder: Path) -> None:
            with progress("index", len(collection.pages)) as advance:
                TextIndex.build(texts).save(folder / TEXT)
                if embedded:
                    rows = list(range(len(collection.pages)))
                    vectors = read_vectors(workspace, embedded, collection, rows)
                    build_dense(torch.cat(vectors).numpy(), options.faiss_factory, folder / DENSE)
                    np.save(folder / SIZES, np.array([len(of_page) for of_page in vectors]), allow_pickle=False)
                advance(len(collection.pages))

        content = {"pages": len(collection.pages), "pages_with_text": sum(bool(text.strip()) for text in texts)}
        manifest = workspace.commit(spec, content, 0, write=write)
    workspace.set_head(*filter(None, (collection.manifest, embedded, manifest)))
    return manifest
