"""MCP: start `mmrr mcp` and call its tools, as an assistant does.

    python examples/mcp_client.py WORK "a question"

WORK is a workspace that `mmrr index` made. The text and the image of the best page are read too.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import sys
from pathlib import Path

from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

work, question = sys.argv[1:3]
command = shutil.which("mmrr") or "mmrr"


async def main() -> None:
    async with Client(stdio_client(StdioServerParameters(command=command, args=["mcp", "--work", work]))) as client:
        found = await client.call_tool("search", {"query": question, "top_k": 3})
        results = found.structured_content["result"]
        for one in results:
            print(one["rank"], one["page_id"], f"{one['score']:.3f}")
        page = {"page_id": results[0]["page_id"]}
        print((await client.call_tool("page_text", page)).content[0].text)
        image = (await client.call_tool("page_image", page)).content[0]
        Path("best.png").write_bytes(base64.b64decode(image.data))


asyncio.run(main())
