"""FAISS factory strings that would end the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.console import INDEX, THESIS, refused, write_documents


@pytest.mark.parametrize("factory", ["HNSW0", "HNSW1", "IVF0,Flat", "PQ4x0", "IVF16_HNSW0,Flat"])
def test_a_factory_string_that_would_end_the_process(tmp_path: Path, tiny_embedder_path: Path, factory: str) -> None:
    docs = write_documents(tmp_path / "docs", a=THESIS)
    embedder = ("--embedder", tiny_embedder_path, "--faiss-factory", factory)
    message = refused("index", docs, "--work", tmp_path / "w", *embedder, *INDEX)
    assert f"--faiss-factory {factory}: found '" in message
    assert not (tmp_path / "w" / "shards" / "embed").exists()
