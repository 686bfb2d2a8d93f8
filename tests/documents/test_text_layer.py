"""The text of PDF pages: what is drawn and nothing else, with hyphens at the ends of lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrr.workspace.pages import load, read_stored_texts, read_texts
from mmrr.workspace.store import Workspace
from tests.console import INDEX, artifact, mmrr, write_documents

pytestmark = pytest.mark.renderer


def test_hyphens_at_line_ends_are_kept_for_those_who_ask(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", hyphens=["The landlord of the photo-\nsynthesis is well-\nknown"])
    pages = artifact(mmrr("render", docs, "--work", tmp_path / "w", *INDEX))
    workspace = Workspace(tmp_path / "w")
    found = workspace.find("pages", pages.name)
    assert found
    collection = load(workspace, found)
    (stored,) = read_stored_texts(workspace, collection)
    assert stored == "The landlord of the photo\xad\nsynthesis is well\xad\nknown"
    assert read_texts(workspace, collection) == ["The landlord of the photosynthesis is wellknown"]
