"""Fixtures of the command-line tests: a small workspace that several test files share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.chain import QUESTION, Chain
from tests.console import (
    FP32,
    INDEX,
    SOIL,
    THESIS,
    copy_workspace,
    files,
    manifest,
    mmrr,
    move_documents,
    write_documents,
    write_queries,
)


class Prepared(NamedTuple):
    """A workspace after ``mmrr index`` without an embedder and ``mmrr precache``."""

    work: Path
    docs: Path
    model: Path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Iterator[Prepared]:
    """Made once for all tests. No test may damage it: its shards and pages are checked at the end."""
    root = tmp_path_factory.mktemp("prepared")
    docs = write_documents(root / "docs", thesis=THESIS, soil=SOIL)
    mmrr("index", docs, "--work", root / "w", *INDEX)
    mmrr("precache", "--work", root / "w", "--scorer-model", tiny_path, *FP32)
    before = {name: stamp for name, stamp in files(root / "w").items() if name.startswith(("shards", "pages", "index"))}
    yield Prepared(root / "w", docs, tiny_path)
    after = files(root / "w")
    assert {name: after.get(name) for name in before} == before
    (cached,) = (root / "w" / "precache").glob("*/")
    assert manifest(cached)["content"]["pages"] == 5


@pytest.fixture
def copy(prepared: Prepared, tmp_path: Path) -> Prepared:
    """A copy of the shared workspace, for a test that changes it."""
    shutil.copytree(prepared.work, tmp_path / "copy")
    shutil.copytree(prepared.docs, tmp_path / "docs")
    move_documents(tmp_path / "copy", prepared.docs, tmp_path / "docs")
    return Prepared(tmp_path / "copy", tmp_path / "docs", prepared.model)


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
