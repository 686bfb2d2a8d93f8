"""A small workspace, served in this process."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

import mmrr
from mmrr.config import Machine, Render
from mmrr.serve.app import create_app
from mmrr.serve.settings import Settings
from tests.console import SOIL, THESIS, copy_workspace, write_documents

QUERY = "When is the thesis due?"
MACHINE = Machine("cpu", "float32", workers=1)
RENDER = Render("pdfium", max_tokens=64)
LOCAL = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path, tiny_embedder_path: Path) -> Path:
    """A folder with documents and their workspace ``work``."""
    folder = tmp_path_factory.mktemp("served")
    write_documents(folder / "documents", thesis=THESIS, soil=SOIL)
    (folder / "documents" / "metadata.csv").write_text("document,year,kind\nsoil.pdf,2021,report\nthesis,2019,rules\n")
    with mmrr.Workspace(folder / "work", create=True, machine=MACHINE) as workspace:
        workspace.index(folder / "documents", embedder=str(tiny_embedder_path), text_embedder="none", render=RENDER)
        workspace.precache(str(tiny_path))
    return folder


@pytest.fixture(scope="session")
def settings(made: Path) -> Settings:
    return Settings({"work": made / "work"}, machine=MACHINE, render=RENDER)


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[TestClient]:
    """A server that no test changes."""
    with serving(settings) as opened:
        # Two servers of one process must not load models at the same time: transformers changes torch meanwhile.
        opened.post("/v1/search", json={"query": QUERY})
        yield opened


@pytest.fixture(scope="session")
def workspace(made: Path) -> Iterator[mmrr.Workspace]:
    """The same workspace without a server."""
    with mmrr.Workspace(made / "work", machine=MACHINE) as opened:
        yield opened


@pytest.fixture
def own(made: Path, settings: Settings, tmp_path: Path) -> Settings:
    """Settings for a copy of the workspace, which the test may change."""
    copy = copy_workspace(made, tmp_path / "served")
    return replace(settings, workspaces={"work": copy / "work"})


def serving(settings: Settings) -> TestClient:
    return TestClient(create_app(settings), base_url=LOCAL, raise_server_exceptions=False)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()
