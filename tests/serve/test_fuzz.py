"""Malformed requests: every answer is a 2xx, or a 4xx with a JSON error."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from benchmarks.fuzz_requests import Asked, requests

_STATUS = (200, 202, 400, 401, 403, 404, 405, 409, 413, 415, 422)


@pytest.fixture(autouse=True)
def warm(client: TestClient) -> None:
    client.post("/v1/search", json={"query": "warm"})


def test_300_malformed_requests(client: TestClient):
    seen: dict[int, int] = {}
    for i, asked in enumerate(requests(seed=7, n=300)):
        answer = client.request(asked.method, asked.path, content=asked.body, headers=asked.headers)
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        assert answer.status_code in _STATUS, (i, asked, answer.text)
        assert "Traceback" not in answer.text
        assert "root:" not in answer.text
        if answer.status_code >= 400 and asked.method != "HEAD":
            error = answer.json()["error"]
            assert error.keys() == {"type", "message"}, (asked, answer.text)
            assert "\n" not in error["message"]
    assert len(seen) > 4, seen


def test_requests_are_the_same_for_a_seed():
    assert list(requests(1, 20)) == list(requests(1, 20))
    assert isinstance(next(requests(1, 1)), Asked)
