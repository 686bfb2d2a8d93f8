"""Malformed HTTP requests for ``mmrr serve``, the same for the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_STRANGE: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, 10**30, "", " ", "x" * 5000, "\0", "\u202e", "𝔘", "../../etc/passwd", [], {}, [[]],
    [None], {"a": 1}, "data:image/png;base64,", "data:image/png;base64,AAAA", "http://127.0.0.1/", "file:///etc/passwd",
]  # fmt: skip
_TINY_PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
_PATHS = [
    "/v1/rerank", "/rerank", "/v2/rerank", "/v1/search", "/v1/documents", "/v1/documents/jobs/x", "/v1/pages/x/0001",
    "/v1/pages/x/0001/image", "/v1/pages/", "/health", "/ready", "/metrics", "/openapi.json", "/docs", "/", "/v1",
]  # fmt: skip
_SEGMENTS = [
    "..",
    "%2e%2e",
    "%2f",
    "%00",
    "%ff",
    "etc",
    "passwd",
    "mmrr.json",
    "a" * 300,
    "%0d%0aX:%20y",
    "~",
    "*",
    ";",
]


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def requests(seed: int, n: int) -> Iterator[Asked]:
    """``n`` requests: valid ones with wrong values, damaged JSON, wrong headers, ids that look like paths."""
    draw = random.Random(seed)
    for _ in range(n):
        yield draw.choice((_wrong_values, _damaged_json, _path, _headers, _upload))(draw)


def _valid(draw: random.Random) -> tuple[str, dict[str, Any]]:
    if draw.random() < 0.5:
        return "/v1/search", {
            "query": "When is the thesis due?", "top_k": 3, "candidates": 5, "rerank": False, "first_stage": "words",
            "documents": ["thesis.pdf"], "fuse": 0.5, "return_text": True, "workspace": "work",
        }  # fmt: skip
    documents = [{"page_id": "thesis.pdf/0001"}, {"image": _TINY_PNG}, {"content": [{"type": "text", "text": "x"}]}]
    body = {"model": "m", "query": "thesis", "documents": documents, "top_n": 2, "return_documents": True}
    return draw.choice(_PATHS[:3]), body


def _wrong_values(draw: random.Random) -> Asked:
    path, body = _valid(draw)
    for _ in range(draw.randint(1, 3)):
        _change(draw, body)
    return Asked("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})


def _change(draw: random.Random, value: Any) -> None:
    """Replace, remove or add something at a random depth."""
    while True:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = draw.choice(keys)
        inner = value[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.6:
            value = inner
            continue
        how = draw.random()
        if how < 0.2 and isinstance(value, dict):
            del value[key]
        elif how < 0.3 and isinstance(value, dict):
            value[draw.choice(["", "page_id", "text", "image", "x" * 100])] = draw.choice(_STRANGE)
        elif how < 0.4:
            value[key] = [inner] * draw.choice((0, 2, 300))
        else:
            value[key] = draw.choice(_STRANGE)
        return


def _damaged_json(draw: random.Random) -> Asked:
    path, body = _valid(draw)
    data = bytearray(json.dumps(body).encode())
    how = draw.randrange(5)
    if how == 0:
        data = data[: draw.randrange(len(data))]
    elif how == 1:
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif how == 2:
        data = bytearray(b"[" * draw.choice((10, 1000, 100_000)))
    elif how == 3:
        wrong = draw.choice(("NaN", "Infinity", "-Infinity", "1" * 5000, '"\\ud800"', "1e999", "nul"))
        data = bytearray(f'{{"query": "x", "top_k": {wrong}, "documents": [{wrong}]}}'.encode())
    else:
        data = bytearray(draw.randbytes(draw.randrange(2000)))
    return Asked("POST", path, bytes(data), {"Content-Type": "application/json"})


def _path(draw: random.Random) -> Asked:
    start = draw.choice(("/v1/pages/", "/v1/documents/", "/v1/documents/jobs/", "/"))
    path = start + "/".join(draw.choice(_SEGMENTS) for _ in range(draw.randint(1, 5)))
    if draw.random() < 0.3:
        path += "/image"
    if draw.random() < 0.3:
        path += "?" + draw.choice(
            ("width=0", "width=x", "width=99999999", "workspace=..", "workspace=", "%ff=%00", "&&=")
        )
    return Asked(draw.choice(("GET", "DELETE", "POST", "PUT", "HEAD", "OPTIONS", "PATCH")), path, b"")


def _headers(draw: random.Random) -> Asked:
    path, body = _valid(draw)
    name, value = draw.choice(
        [
            ("Content-Type", "text/plain"), ("Content-Type", "multipart/form-data"), ("Content-Type", "x" * 500),
            ("Content-Type", "application/json; charset=utf-16"), ("Authorization", "Bearer x"),
            ("Origin", "http://x"),
            ("Host", "example.org"), ("Host", "[::"), ("Accept", "*/*;q=x"), ("Cookie", "a=b" * 50),
            ("Range", "bytes=x"),
        ]
    )  # fmt: skip
    return Asked(draw.choice(("POST", "GET")), draw.choice([path, *_PATHS]), json.dumps(body).encode(), {name: value})


def _upload(draw: random.Random) -> Asked:
    edge = "edge"
    name = draw.choice(['file"; filename="x.exe', 'file"; filename="../x', 'other"; filename="x.pdf', "file", ""])
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{"x" * draw.randrange(50)}\r\n',
        f"--{edge}\r\n\r\n\r\n",
        f'--{edge}\r\nContent-Disposition: form-data; name="workspace"\r\n\r\n..\r\n',
        f"--{edge}--\r\n",
        "garbage",
    ]
    body = "".join(draw.choices(parts, k=draw.randint(0, 4))).encode()
    return Asked(
        "POST", "/v1/documents", body, {"Content-Type": f"multipart/form-data; boundary={draw.choice((edge, ''))}"}
    )
