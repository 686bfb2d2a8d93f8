"""``mmrr serve``: search and reranking over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from mmrr.config import Machine, Render
from mmrr.errors import MmrrError

from . import options as o
from .context import memory_size
from .terminal import note

_SERVER, _LIMITS = "Server", "Limits"
#: The environment variable with the API key. It is no option, because other users of a machine see a command's options.
KEY_VARIABLE = "MMRR_API_KEY"

Works = Annotated[
    Optional[list[str]],
    typer.Option(
        "--work",
        metavar="[NAME=]PATH",
        help="A workspace to serve. Repeatable; the first one is the default. Default: MMRR_WORK, else mmrr-work; with "
        "--scorer-model and neither of them, the server scores only documents that a request brings.",
        show_default=False,
    ),
]
Host = Annotated[
    str,
    typer.Option("--host", help="Address. Any but this machine's own needs an API key.", rich_help_panel=_SERVER),
]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="0: a free one.", rich_help_panel=_SERVER)]
KeyFile = Annotated[
    Optional[Path],
    typer.Option(
        "--api-key-file",
        help=f"File with API keys, one a line. Default: the key in the environment variable {KEY_VARIABLE}.",
        rich_help_panel=_SERVER,
        show_default=False,
    ),
]
ReadOnly = Annotated[
    bool,
    typer.Option(
        "--read-only",
        help="Write nothing into the workspace, and refuse uploads and removals. Several servers can share it.",
        rich_help_panel=_SERVER,
    ),
]
FetchHosts = Annotated[
    Optional[list[str]],
    typer.Option(
        "--fetch-host",
        metavar="HOST",
        help="Fetch images in requests from this host. Repeatable. Default: nothing is fetched.",
        rich_help_panel=_SERVER,
        show_default=False,
    ),
]
ImageCache = Annotated[
    Optional[Path],
    typer.Option(
        "--image-cache",
        metavar="FOLDER",
        help="Keep the caches of images in requests in this folder too. Default: in memory alone.",
        rich_help_panel=_SERVER,
        show_default=False,
    ),
]
MaxBody = Annotated[str, typer.Option("--max-body", metavar="SIZE", help="Of a request.", rich_help_panel=_LIMITS)]
MaxUpload = Annotated[str, typer.Option("--max-upload", metavar="SIZE", help="Of a file.", rich_help_panel=_LIMITS)]
MaxPages = Annotated[int, typer.Option("--max-pages", min=1, help="Of an uploaded document.", rich_help_panel=_LIMITS)]
MaxDocuments = Annotated[
    int, typer.Option("--max-documents", min=1, help="Documents in one rerank request.", rich_help_panel=_LIMITS)
]
MaxCandidates = Annotated[
    int, typer.Option("--max-candidates", min=1, help="Pages that one search may rerank.", rich_help_panel=_LIMITS)
]
MaxQueue = Annotated[
    int,
    typer.Option(
        "--max-queue", min=1, help="Requests that may wait. Further ones are answered 429.", rich_help_panel=_LIMITS
    ),
]
TimeLimit = Annotated[
    float,
    typer.Option(
        "--time-limit",
        min=0.1,
        max=3600,
        metavar="SECONDS",
        help="Of a request. After it the answer is 504.",
        rich_help_panel=_LIMITS,
    ),
]


# One parameter per option.
def serve(
    work: Works = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: KeyFile = None,
    read_only: ReadOnly = False,
    fetch_host: FetchHosts = None,
    image_cache: ImageCache = None,
    scorer_model: o.ScorerModel = None,
    scorer_revision: o.ScorerRevision = None,
    scorer: o.Scorer = o.SCORER,
    max_tokens: o.MaxTokens = o.RENDER.max_tokens,
    ocr: o.Ocr = o.RENDER.ocr,
    ocr_language: o.OcrLanguage = o.RENDER.ocr_language,
    max_body: MaxBody = "32MiB",
    max_upload: MaxUpload = "256MiB",
    max_pages: MaxPages = 5000,
    max_documents: MaxDocuments = 256,
    max_candidates: MaxCandidates = 200,
    max_queue: MaxQueue = 128,
    time_limit: TimeLimit = 60.0,
    memory_budget: o.MemoryBudget = o.MEMORY_BUDGET,
    resident: o.Resident = "1GiB",
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.DTYPE,
    workers: o.Workers = o.MACHINE.workers,
) -> None:
    """Search and rerank over HTTP.

    Loads the models once and answers `POST /v1/search`, `POST /v1/rerank` and others; `docs/http.md` and `/docs` of
    the server list them. Needs: `pip install 'mmrr[serve]'`. Stop it with Ctrl-C.

    Example: `mmrr serve --work mmrr-work --port 8000`
    """
    from mmrr.serve.settings import Limits, Settings, parse_workspaces, read_keys

    # Click would cut the value of a variable at blanks, because the option is repeatable.
    variable = os.environ.get("MMRR_WORK")
    folders = work or ([variable] if variable else [] if scorer_model else [str(o.WORK)])
    limits = Limits(
        body_bytes=memory_size("--max-body", max_body),
        upload_bytes=memory_size("--max-upload", max_upload),
        pages=max_pages,
        documents=max_documents,
        candidates=max_candidates,
        queue=max_queue,
        seconds=time_limit,
    )
    budget, cached = memory_size("--memory-budget", memory_budget), memory_size("--resident", resident)
    settings = Settings(
        workspaces=parse_workspaces(folders),
        scorer_model=scorer_model,
        scorer=scorer,
        scorer_revision=scorer_revision,
        image_cache=image_cache,
        machine=Machine(device, dtype, workers, budget, cached),
        render=Render(max_tokens=max_tokens, ocr=ocr, ocr_language=ocr_language),
        host=host,
        port=port,
        keys=read_keys(api_key_file, os.environ.get(KEY_VARIABLE)),
        read_only=read_only,
        fetch_hosts=frozenset(name.lower() for name in fetch_host or []),
        limits=limits,
    )
    settings.check()
    try:
        from mmrr.serve.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "mmrr":
            raise
        raise MmrrError(f"mmrr serve needs the package {error.name}; run: pip install 'mmrr[serve]'") from error
    run(
        settings,
        lambda url: note(f"serving {', '.join(settings.workspaces) or scorer_model} at {url}; routes: {url}/docs"),
    )
