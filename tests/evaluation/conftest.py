"""Fixtures: MMDocIR in its two forms."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from mmrr.evaluation import mmdocir
from tests.evaluation.mmdocir_files import layouts_table, pages_table, write_annotations


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "pub[1] *"  # patterns in a path must not be expanded
    write_annotations(folder)
    pq.write_table(pages_table(), folder / mmdocir.PAGES)
    pq.write_table(layouts_table(), folder / mmdocir.LAYOUTS)
    return folder


@pytest.fixture
def pdfs(tmp_path: Path) -> Path:
    folder = tmp_path / "pdfs"
    write_annotations(folder, name="annotations.jsonl")
    (folder / "documents").mkdir()
    (folder / "documents" / "a.pdf").write_bytes(b"%PDF-1.4")
    (folder / "b report.PDF").write_bytes(b"%PDF-1.4")
    return folder
