"""What stands before every request: the API key, the body's size, other websites; and its entry in the metrics."""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from mmrr.serve.errors import RefusedError, refusal
from mmrr.serve.metrics import Metrics
from mmrr.serve.settings import Settings, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Routes that need no key and tell nothing of the contents: for the probes of an orchestrator, and the web page, which
#: asks for the key.
OPEN, OPEN_FOLDER = ("/", "/health", "/ready"), "/static/"
UPLOAD = "/v1/documents"
#: Of every answer. Another website cannot show a page image of this server, nor learn its size.
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin"))


class Guard:
    """Refuses a request before the application reads it, and counts every answer."""

    def __init__(self, app: App, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._inside = 0
        self._keys = [key.encode() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        self._inside += 1
        try:
            if self._inside > self._settings.limits.requests:
                raise RefusedError(429, "too many requests at once; ask again later", retry_after=1)
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            self._check(scope, headers)
            limited = self._limited(scope, headers, receive)
            await self._app(scope, limited, counted)
        except RefusedError as error:
            if not status:
                await refusal(error)(scope, receive, counted)
        finally:
            self._inside -= 1
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(scope["method"], route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.monotonic() - started)

    def _check(self, scope: Scope, headers: dict[bytes, str]) -> None:
        host = headers.get(b"host", "")
        # Without a key only this machine may ask. A page of a website that the user has open must not ask for it.
        if not self._keys and not is_loopback(_hostname(host)):
            raise RefusedError(403, "the host of the request is not this machine; expected localhost or 127.0.0.1")
        origin = headers.get(b"origin")
        if origin and not self._keys and origin.partition("://")[2] != host:
            raise RefusedError(403, "a website may not use a server without an API key")
        if self._keys and scope["path"] not in OPEN and not scope["path"].startswith(OPEN_FOLDER):
            scheme, _, key = headers.get(b"authorization", "").partition(" ")
            given = key.strip().encode("latin-1", "replace")
            # Every key is compared, so that the time does not tell which one is near.
            same = [hmac.compare_digest(given, one) for one in self._keys]
            if scheme.lower() != "bearer" or not any(same):
                raise RefusedError(
                    401, "the API key is missing or wrong; expected the header Authorization: Bearer KEY"
                )

    def _limited(self, scope: Scope, headers: dict[bytes, str], receive: Receive) -> Receive:
        """``receive``, which raises an error as soon as the body is longer than its limit."""
        limits = self._settings.limits
        most = limits.upload_bytes if scope["path"] == UPLOAD else limits.body_bytes
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and len(length) < 20 and int(length) <= most:
            seen = 0
        else:
            raise RefusedError(413, f"the body is too large; expected at most {most} bytes")

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                # FastAPI passes on no other exception of a body.
                raise HTTPException(413, f"the body is too large; expected at most {most} bytes")
            return message

        return limited


def _hostname(host: str) -> str:
    """The name in a Host header, without its port; "" if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
