"""``mmrr mcp``: a workspace as tools of an assistant."""

from __future__ import annotations

from mmrr.config import Machine

from . import options as o
from .terminal import note


def mcp(work: o.Work = o.WORK, device: o.Device = o.MACHINE.device, dtype: o.Dtype = o.DTYPE) -> None:
    """Serve a workspace to an assistant over MCP, by stdio.

    The server speaks the Model Context Protocol. Its tools are search, page_image and page_text. Searches use what the
    index has, and rerank if there are page caches. Nothing is written into the workspace, and other commands may add
    documents to it meanwhile. stdin and stdout belong to the protocol; notes go to stderr. Needs
    `pip install 'mmrr[mcp]'`.

    Example: `mmrr mcp --work work`
    """
    from mmrr.api import Workspace
    from mmrr.integrations.mcp import server

    machine = Machine(device, dtype)
    with Workspace(work, machine=machine, notice=note, steady=True, read_only=True) as workspace:
        workspace.documents()  # a workspace without an index is refused before a client waits
        note(f"serving {work} over stdio; stop with Ctrl-C or by closing stdin")
        server(workspace).run("stdio")
