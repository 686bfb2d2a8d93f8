"""Fixtures of the tests of documents."""

from __future__ import annotations

import tempfile

import pytest


@pytest.fixture
def own_temp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> object:
    """A separate folder for temporary files, which must be empty at the end of the test."""
    folder = tmp_path_factory.mktemp("temp")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []
