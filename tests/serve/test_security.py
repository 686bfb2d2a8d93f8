"""Who may ask, how much, and what an answer tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from mmrr.errors import MmrrError
from mmrr.serve.settings import Limits, Settings, is_loopback, parse_workspaces, read_keys
from tests.serve.conftest import QUERY, serving

KEY = "a-key-of-the-tests"
SEARCH = {"query": QUERY, "rerank": False}


def test_another_address_needs_a_key(settings: Settings):
    settings.check()
    replace(settings, host="::1").check()
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        with pytest.raises(MmrrError, match="there is no API key"):
            replace(settings, host=host).check()
        replace(settings, host=host, keys=(KEY,)).check()
    assert not is_loopback("127.0.0.1.example.org")
    with pytest.raises(MmrrError, match="nothing to serve"):
        replace(settings, workspaces={}).check()


@pytest.fixture(scope="module")
def guarded(settings: Settings) -> Iterator[TestClient]:
    with serving(replace(settings, host="0.0.0.0", keys=("another-key", KEY))) as client:
        yield client


@pytest.mark.parametrize("header", ["", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ", "Bearer ü", f"Bearer{KEY}"])
def test_a_wrong_key_is_refused(guarded: TestClient, header: str):
    for method, path in (("POST", "/v1/search"), ("GET", "/v1/documents"), ("GET", "/metrics"), ("GET", "/docs")):
        answer = guarded.request(method, path, headers={"Authorization": header.encode("latin-1")})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "unauthorized"
    assert guarded.get("/health").status_code == 200


def test_the_right_key(guarded: TestClient):
    for key in (KEY, "another-key"):
        answer = guarded.post("/v1/search", json=SEARCH, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200


def test_without_a_key_only_this_machine_and_no_website_may_ask(client: TestClient):
    assert client.post("/v1/search", json=SEARCH, headers={"Host": "localhost:8000"}).status_code == 200
    for host in ("example.org", "127.0.0.1.example.org", "", "[::", "[::1"):
        assert client.get("/v1/documents", headers={"Host": host}).status_code == 403
    same, other = {"Origin": "http://127.0.0.1:8000"}, {"Origin": "http://example.org"}
    assert client.post("/v1/search", json=SEARCH, headers=same).status_code == 200
    for origin in (other, {"Origin": "null"}):
        assert client.post("/v1/search", json=SEARCH, headers=origin).status_code == 403


def test_a_large_body_is_refused(settings: Settings):
    with serving(replace(settings, limits=Limits(body_bytes=1000, upload_bytes=2000))) as client:
        answer = client.post("/v1/search", content=b"x" * 1001)
        assert (answer.status_code, answer.json()["error"]["type"]) == (413, "too_large")

        def parts() -> Iterator[bytes]:  # without a Content-Length
            for _ in range(20):
                yield b"x" * 100

        answer = client.post("/v1/search", content=parts(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
        assert client.post("/v1/documents", files={"file": ("a.pdf", b"x" * 3000)}).status_code == 413
        assert client.post("/v1/search", json=SEARCH).status_code == 200


def test_a_bug_tells_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    service = client.app.state.service  # type: ignore[attr-defined]

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(service.models, "searching", fail)
    answer = client.post("/v1/search", json=SEARCH)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text

    def gone(*_: object) -> None:
        raise MmrrError("/a/path/of/the/server is gone")

    monkeypatch.setattr(service.models, "searching", gone)
    answer = client.post("/v1/search", json=SEARCH)
    assert answer.status_code == 503
    assert "/a/path" not in answer.text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/none", 404), ("GET", "/v1/rerank", 405)])
def test_other_routes_are_json_errors(client: TestClient, method: str, path: str, status: int):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_keys_and_workspaces_from_the_command_line(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text(f"# for the tests\n{KEY}\n\nsecond-key\n")
    assert read_keys(file, "ignored-key") == (KEY, "second-key")
    assert read_keys(None, KEY) == (KEY,)
    assert read_keys(None, None) == ()
    file.write_text("short\n")
    for wrong in (file, tmp_path / "none"):
        with pytest.raises(MmrrError):
            read_keys(wrong, None)
    assert parse_workspaces(["a=/x/b", "/x/c"]) == {"a": Path("/x/b"), "c": Path("/x/c")}
    with pytest.raises(MmrrError, match="two workspaces 'a'"):
        parse_workspaces(["a=/x", "a=/y"])
