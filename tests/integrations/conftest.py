"""A workspace and a reranker that the tests of all adapters share."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

import mmrr
from mmrr.config import Machine, Render
from tests.console import SOIL, THESIS, write_documents

# Tests never use the network. Haystack reports its use to its makers otherwise.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

QUERY = "When is the thesis due?"
EXAMPLES = Path(__file__).parents[2] / "examples"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that name a library in ``framework`` are skipped where it is not installed. Nothing is imported here."""
    for item in items:
        marker = item.get_closest_marker("framework")
        for library in marker.args if marker else ():
            if importlib.util.find_spec(library) is None:
                item.add_marker(pytest.mark.skip(reason=f"{library} is not installed; make test-framework installs it"))


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Path:
    """The folder of a workspace with five pages, an index of words and page caches."""
    place = tmp_path_factory.mktemp("frameworks")
    write_documents(place / "docs", thesis=THESIS, soil=SOIL)
    with mmrr.Workspace(place / "work", create=True, machine=Machine("cpu", "float32", workers=1)) as made:
        made.index(place / "docs", text_embedder="none", render=Render("pdfium", max_tokens=64))
        made.precache(str(tiny_path))
    return place / "work"


@pytest.fixture(scope="session")
def workspace(work: Path) -> Iterator[mmrr.Workspace]:
    with mmrr.open(work, device="cpu", dtype="float32") as opened:
        yield opened


@pytest.fixture(scope="session")
def reranker(tiny_path: Path) -> mmrr.Reranker:
    return mmrr.Reranker(str(tiny_path), device="cpu", dtype="float32", max_tokens=64)


@pytest.fixture(scope="session")
def best(workspace: mmrr.Workspace) -> list[mmrr.Hit]:
    """What the workspace itself finds for QUERY."""
    return workspace.search(QUERY, top_k=3)


@pytest.fixture(scope="session")
def ranked(reranker: mmrr.Reranker, workspace: mmrr.Workspace) -> list[tuple[str, float]]:
    """(page_id, score) of every page for QUERY, as the reranker itself ranks the page images."""
    pages = [page.page_id for page in workspace.pages()]
    found = reranker.rank(QUERY, [workspace.image(page_id) for page_id in pages])
    return [(pages[one["corpus_id"]], one["score"]) for one in found]


@pytest.fixture
def images(page_images: list[Image.Image], tmp_path: Path) -> list[Path]:
    """Files of page images."""
    paths = [tmp_path / f"{i}.png" for i in range(len(page_images))]
    for image, path in zip(page_images, paths, strict=True):
        image.save(path)
    return paths


@pytest.fixture
def example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., list[str]]:
    """Runs a file of examples/ in an empty folder; returns the lines that it printed."""

    def run(name: str, *arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run
