"""Fixtures of the tests of documents."""

from __future__ import annotations

import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from tests.documents.fake_ocr import FAKE, WORDS, Engine


@pytest.fixture
def own_temp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> object:
    """A separate folder for temporary files, which must be empty at the end of the test."""
    folder = tmp_path_factory.mktemp("temp")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The OCR package is replaced by a stand-in."""
    folder = tmp_path / "packages"
    for name in ("rapidocr", "onnxruntime", "cv2"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("setNumThreads = lambda n: None\n")
    (folder / "rapidocr" / "__init__.py").write_text(f"WORDS = {WORDS}\n{textwrap.dedent(FAKE)}")
    monkeypatch.syspath_prepend(folder)  # helper processes get this path
    for name in ("rapidocr", "onnxruntime", "cv2"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return Engine(folder)
