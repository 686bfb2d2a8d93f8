"""The options of how pages are drawn, besides those in options.py, which gives them to the commands."""

from __future__ import annotations

from typing import Annotated

import typer

Tiles = Annotated[
    bool,
    typer.Option(
        "--tiles/--no-tiles",
        help="Cut PDF pages whose print is too small for --max-tokens into several images, which rank as one page.",
        rich_help_panel="Pages",
    ),
]
PageTimeout = Annotated[
    float,
    typer.Option(
        "--page-timeout",
        metavar="SECONDS",
        envvar="MMRR_PAGE_TIMEOUT",
        help="Most seconds in which a renderer may draw one page. A page past it is left out and named.",
        rich_help_panel="Machine",
    ),
]
PageMemory = Annotated[
    str,
    typer.Option(
        "--page-memory",
        metavar="SIZE",
        envvar="MMRR_PAGE_MEMORY",
        help="Most memory of each process that draws pages, e.g. 2GiB. A page past it is left out and named.",
        rich_help_panel="Machine",
    ),
]
