"""Fixtures of the command-line tests: a small workspace that several test files share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.console import FP32, INDEX, SOIL, THESIS, files, manifest, mmrr, write_documents


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
    return Prepared(tmp_path / "copy", tmp_path / "docs", prepared.model)
