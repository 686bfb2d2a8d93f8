"""Fixtures of the workspace tests: an empty workspace, closed and open."""

from __future__ import annotations

import pytest

from mmrr.workspace.store import Workspace


@pytest.fixture
def root(tmp_path):
    with Workspace.open(tmp_path / "work", create=True):
        pass
    return tmp_path / "work"


@pytest.fixture
def workspace(root):
    with Workspace.open(root) as workspace:
        yield workspace
