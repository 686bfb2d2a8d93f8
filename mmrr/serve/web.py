"""The web page at ``/`` and what it is told of the server. Its files lie in ``static/``; nothing builds them."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response

from mmrr import __version__
from mmrr.api import Workspace
from mmrr.documents.formats import image_suffixes
from mmrr.errors import MmrrError
from mmrr.serve.errors import RefusedError
from mmrr.serve.routes import ERRORS
from mmrr.serve.schemas import InfoResponse, WorkspaceRow
from mmrr.serve.service import service_of

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
#: The page asks this server alone. It has no script and no style but its files, and no other page may frame it.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "Referrer-Policy": "no-referrer",  # the address has the query
    "Cache-Control": "no-cache",
}
router = APIRouter(responses=ERRORS)


@cache
def _files() -> dict[str, tuple[bytes, str, str]]:
    """{name: content, media type, ETag} of the page's files. They are read once; a name is never a path."""
    found = {}
    for file in files("mmrr.serve").joinpath("static").iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind:
            content = file.read_bytes()
            found[file.name] = content, f"{kind}; charset=utf-8", f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return found


def install(app: FastAPI) -> None:
    """Serve the page. It shows nothing of a workspace before it has asked for it, so its files need no key."""

    @app.get("/", include_in_schema=False)
    def index(request: Request) -> Response:
        return _file("index.html", request)

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: str, request: Request) -> Response:
        return _file(name, request)

    app.include_router(router)


def _file(name: str, request: Request) -> Response:
    if name not in _files():
        raise RefusedError(404, "no file of that name")
    content, kind, tag = _files()[name]
    headers = {**_HEADERS, "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=kind, headers=headers)


@router.get("/v1/info")
def info(request: Request) -> InfoResponse:
    """The workspaces of the server, and what it allows."""
    service = service_of(request)
    settings = service.settings
    rows = [_row(name, service.models.workspace(name)[1]) for name in settings.workspaces]
    return InfoResponse(
        version=__version__,
        model=service.models.name,
        read_only=settings.read_only,
        upload_bytes=settings.limits.upload_bytes,
        upload_endings=sorted({".pdf", *image_suffixes()}),
        query_chars=settings.limits.query_chars,
        workspaces=rows,
    )


def _row(name: str, workspace: Workspace) -> WorkspaceRow:
    try:
        documents, pages = len(workspace.documents()), len(workspace.page_ids())
        cached = workspace.cached_as() if workspace.caches_of(lambda _: True) else None
    except MmrrError:  # no index yet: an upload makes one
        return WorkspaceRow(name=name, documents=0, pages=0, reranker="")
    # A checkpoint of this machine is recorded by its path, which is nobody's business.
    reranker = cached.scoring.model.name if cached else ""
    if PurePath(reranker).is_absolute():
        reranker = PurePath(reranker).name
    return WorkspaceRow(name=name, documents=documents, pages=pages, reranker=reranker)
