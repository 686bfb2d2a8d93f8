"""Errors as ``{"error": {"type", "message"}}``, without a traceback and without a path of the server."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mmrr.errors import MmrrError

log = logging.getLogger("mmrr.serve")

_TYPES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "queue_full",
    500: "internal",
    503: "unavailable",
    504: "timeout",
}
_MOST_CHARS = 500


class RefusedError(Exception):
    """An answer other than 2xx. ``message`` is one line for the client."""

    def __init__(self, status: int, message: str, *, kind: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after
        self.kind = kind or _TYPES.get(status, "error")


def response(status: int, message: str, kind: str | None = None, headers: Mapping[str, str] | None = None) -> Any:
    """The JSON answer of an error. Any: a Starlette response."""
    text = message.encode("utf-8", "replace").decode()[:_MOST_CHARS]
    body = {"error": {"type": kind or _TYPES.get(status, "error"), "message": text}}
    return JSONResponse(body, status, dict(headers or {}))


def refusal(error: RefusedError) -> Any:
    """The JSON answer of a refused request. Any: a Starlette response."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return response(error.status, error.message, error.kind, headers)


def install(app: FastAPI) -> None:
    """Answer every exception of a request with JSON."""

    @app.exception_handler(RefusedError)
    def refused(_: Request, error: RefusedError) -> Any:
        return refusal(error)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Any:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
        return response(422, f"{place}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def http(_: Request, error: HTTPException) -> Any:
        return response(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(MmrrError)
    def unavailable(_: Request, error: MmrrError) -> Any:
        # Its message may name a path of the server.
        log.error("%s", error)
        return response(503, "the server cannot answer; its log has the reason")

    @app.exception_handler(Exception)
    def bug(_: Request, error: Exception) -> Any:
        log.error("a bug in mmrr: %s", type(error).__name__, exc_info=error)
        return response(500, "an error of the server; its log has the reason")
