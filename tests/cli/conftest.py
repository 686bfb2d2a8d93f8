"""Fixtures of the command tests: a finished workspace, a copy to change, and a guard against loading models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.chain import QUESTION, Chain
from tests.console import SOIL, THESIS, copy_workspace, mmrr, write_documents, write_queries


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path, tiny_embedder_path: Path) -> Chain:
    """Made once. A test that changes it takes ``chain``."""
    chain = Chain(tmp_path_factory.mktemp("chain"), tiny_embedder_path, tiny_path)
    write_documents(chain.docs, thesis=THESIS, soil=SOIL)
    write_queries(
        chain.queries,
        ("q1", QUESTION, "thesis.pdf"),
        ("q2", "rainfall by month in spring", "soil.pdf"),
        ("q3", "sensors of soil moisture", "soil.pdf"),
    )
    chain.qrels.write_text("q1 0 thesis.pdf/0001 1\nq2 0 soil.pdf/0002 1\nq2 0 soil.pdf/0001 1\nq3 0 soil.pdf/0003 1\n")
    chain.index()
    chain.precache()
    chain.rerank("--output", chain.root / "run.trec")
    mmrr("eval", "--work", chain.work, "--qrels", chain.qrels)
    return chain


@pytest.fixture
def chain(made: Chain, tmp_path: Path) -> Chain:
    """A copy to change."""
    copy_workspace(made.root, tmp_path / "copy")
    return Chain(tmp_path / "copy", made.embedder, made.reranker)


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model is loaded."""

    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded for work that was done before")

    monkeypatch.setattr("mmrr.embedders.qwen3_vl.Embedder.__init__", loaded)
    monkeypatch.setattr("mmrr.scorers.minireranker.Scorer.__init__", loaded)
