"""The application: routes, errors, guard, and the page at /docs."""

from __future__ import annotations

import asyncio
import html
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from mmrr import __version__
from mmrr.errors import MmrrError
from mmrr.serve import errors, routes, routes_documents, routes_evidence, routes_pages, web
from mmrr.serve.errors import RefusedError
from mmrr.serve.schemas import StatusResponse
from mmrr.serve.security import Guard
from mmrr.serve.service import Service, service_of
from mmrr.serve.settings import Settings

#: The page at /docs loads nothing from another host, and runs no script.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}code{background:#eee}"


def create_app(settings: Settings) -> FastAPI:
    """The application of a server. Raises MmrrError if a workspace cannot be opened or the settings are not safe."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        warming = asyncio.create_task(service.warm_up())
        try:
            yield
        finally:
            warming.cancel()
            await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="mmrr",
        version=__version__,
        summary="Find and rerank pages of documents by their images.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    errors.install(app)
    app.include_router(routes_documents.router)
    app.include_router(routes_evidence.router)  # before the routes of pages, whose ids contain slashes
    app.include_router(routes.router)
    app.include_router(routes_pages.router)  # its last route has every address below /v1/pages
    web.install(app)
    _add_status_routes(app)
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)  # type: ignore[arg-type]  # its receive type
    return app


def _add_status_routes(app: FastAPI) -> None:
    @app.get("/health")
    def health() -> StatusResponse:
        """Whether the process answers."""
        return StatusResponse(status="ok", version=__version__)

    @app.get("/ready")
    def ready(request: Request) -> StatusResponse:
        """Whether the models are loaded."""
        service = service_of(request)
        if not service.ready.is_set():
            raise RefusedError(503, "the models are not loaded yet", retry_after=5)
        workspaces = list(service.settings.workspaces)
        return StatusResponse(status="ready", version=__version__, model=service.models.name, workspaces=workspaces)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics(request: Request) -> Response:
        """Counters in the text format of Prometheus."""
        return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(_page(request.app.openapi()), headers={"Content-Security-Policy": _POLICY})


def _page(schema: dict[str, Any]) -> str:
    """The routes of an OpenAPI schema as a page that needs no script. Any: JSON."""
    rows = []
    for path, methods in schema["paths"].items():
        for method, route in methods.items():
            told = html.escape(route.get("description") or route.get("summary") or "")
            rows.append(f"<h3><code>{method.upper()} {html.escape(path)}</code></h3><p>{told}</p>")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>mmrr</title><style>{_STYLE}</style>"
        f"<h1>mmrr {html.escape(schema['info']['version'])}</h1><p>The schema of requests and answers is at "
        f'<a href="openapi.json">openapi.json</a> (OpenAPI {html.escape(schema["openapi"])}); Swagger UI and other '
        f"tools read it.</p>{''.join(rows)}</html>"
    )


def run(settings: Settings, started: Callable[[str], None] = lambda url: None) -> None:
    """Serve until the process gets SIGTERM or Ctrl-C. ``started`` gets the address.

    Raises MmrrError if the address is in use or is none of this machine's.
    """
    settings.check()
    # It writes a line for every malformed upload, which the answer tells already.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    listening = _listen(settings.host, settings.port)
    with listening:
        app = create_app(settings)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        started(f"http://{host}:{listening.getsockname()[1]}")
        config = uvicorn.Config(
            app,
            server_header=False,
            access_log=False,
            log_level="warning",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=10,
        )
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise MmrrError(f"{host}:{port} cannot be used: {error.strerror}; choose another --host or --port") from error
