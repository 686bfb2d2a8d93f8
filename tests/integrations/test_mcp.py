"""The MCP server, called by the client of the mcp package: in memory, and as the command over stdio."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mmrr
from tests.console import files, refused
from tests.integrations.conftest import QUERY
from tests.test_examples import LAUNCHER

pytestmark = pytest.mark.framework("mcp")


def call(server: Any, *calls: tuple[str, dict[str, object]]) -> list[Any]:
    """The results of calls of tools, by the library's client."""
    from mcp.client import Client

    async def run() -> list[Any]:
        async with Client(server) as client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(run())


def test_the_tools_give_what_the_workspace_gives(workspace: mmrr.Workspace, best: list[mmrr.Hit]):
    from mmrr.integrations.mcp import server

    page = {"page_id": best[0].page_id}
    found, text, image, small = call(
        server(workspace),
        ("search", {"query": QUERY, "top_k": 3}),
        ("page_text", page),
        ("page_image", page),
        ("page_image", page | {"width": 64}),
    )
    assert [one["page_id"] for one in found.structured_content["result"]] == [hit.page_id for hit in best]
    assert set(found.structured_content["result"][0]) == {
        *("page_id", "document", "page", "label", "score", "rank", "text")
    }
    assert text.content[0].text == best[0].text()
    assert image.content[0].mime_type == "image/png"
    drawn = Image.open(io.BytesIO(base64.b64decode(image.content[0].data)))
    assert drawn.tobytes() == best[0].image().tobytes()
    assert Image.open(io.BytesIO(base64.b64decode(small.content[0].data))).width == 64


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("search", {"query": " "}, "question 1: the query is empty"),
        ("search", {"query": QUERY, "document": "thesiss.pdf"}, "the nearest are thesis.pdf"),
        ("search", {"query": QUERY, "top_k": 0}, "greater than or equal to 1"),
        ("page_text", {"page_id": "../../etc/passwd"}, "../../etc/passwd"),
        ("page_image", {"page_id": "none.pdf/0001"}, "no document 'none.pdf' in the collection"),
    ],
)
def test_a_wrong_call_is_an_error_that_the_assistant_can_read(
    workspace: mmrr.Workspace, name: str, arguments: dict[str, object], expected: str
):
    from mmrr.integrations.mcp import server

    (found,) = call(server(workspace), (name, arguments))
    assert found.is_error
    assert expected in found.content[0].text


def test_a_folder_without_an_index_is_refused(tmp_path: Path):
    assert "no workspace at" in refused("mcp", "--work", tmp_path / "none")
    mmrr.open(tmp_path / "empty", create=True).close()
    assert "mmrr index" in refused("mcp", "--work", tmp_path / "empty")


@pytest.mark.slow
def test_the_example_starts_the_command(
    example: Callable[..., list[str]],
    work: Path,
    best: list[mmrr.Hit],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    launcher = tmp_path / "bin" / "mmrr"
    launcher.parent.mkdir()
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    monkeypatch.setenv("PATH", f"{launcher.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)  # the client passes it to the server, which needs a real file
    before = files(work)
    shown = example("mcp_client.py", work, QUERY)
    assert files(work) == before
    assert [line.split()[1] for line in shown[: len(best)]] == [hit.page_id for hit in best]
    assert " ".join(best[0].text().split()) in " ".join(shown)
    assert Image.open(tmp_path / "best.png").size == best[0].image().size
