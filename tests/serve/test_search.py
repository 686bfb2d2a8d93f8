"""POST /v1/search and GET /v1/pages: what the workspace finds, and what is refused."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

import mmrr
from tests.serve.conftest import QUERY

THESIS_PAGE = "thesis.pdf/0001"


def search(client: TestClient, status: int = 200, **body: Any) -> Any:
    answer = client.post("/v1/search", json={"query": QUERY, **body})
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 2}, {"rerank": False}, {"fuse": 0.5}, {"first_stage": "words", "rerank": False}, {"candidates": 2}],
)
def test_search_finds_what_the_workspace_finds(client: TestClient, workspace: mmrr.Workspace, options: dict[str, Any]):
    found = search(client, **options)
    expected = workspace.search(QUERY, **options)
    assert [(one["page_id"], one["rank"], one["first_stage_rank"]) for one in found["results"]] == [
        (hit.page_id, hit.rank, hit.first_stage_rank) for hit in expected
    ]
    assert [one["score"] for one in found["results"]] == pytest.approx([hit.score for hit in expected], abs=1e-4)
    assert found["reranked"] == (options.get("rerank") is not False)
    assert found["workspace"] == "work"


@pytest.mark.parametrize("rerank", [False, True])
def test_search_in_documents_with_text(client: TestClient, rerank: bool):
    found = search(client, documents=["soil.pdf"], return_text=True, rerank=rerank, candidates=3)["results"]
    assert {one["document"] for one in found} == {"soil.pdf"}
    assert len(found) == 3, "pages of other documents take no place among the candidates"
    assert any("Rainfall" in one["text"] for one in found)
    everywhere = {one["page_id"]: one["score"] for one in search(client, rerank=True)["results"]}
    if rerank:
        assert [one["score"] for one in found] == pytest.approx([everywhere[one["page_id"]] for one in found], abs=1e-4)
    both = search(client, documents=["soil.pdf", "thesis.pdf"], rerank=rerank)["results"]
    assert [one["page_id"] for one in both] == [one["page_id"] for one in search(client, rerank=rerank)["results"]]
    assert search(client, documents=[], rerank=rerank)["results"] == []


@pytest.mark.parametrize("rerank", [False, True])
def test_search_where_the_metadata_fits(client: TestClient, workspace: mmrr.Workspace, rerank: bool):
    found = search(client, where="year>=2020 and kind=report", rerank=rerank)["results"]
    assert found == search(client, documents=["soil.pdf"], rerank=rerank)["results"]
    assert {one["metadata"]["year"] for one in found} == {2021}
    hits = workspace.search(QUERY, where="not (year>=2020)", rerank=rerank)
    assert {(hit.document, hit.metadata["kind"]) for hit in hits} == {("thesis.pdf", "rules")}
    assert search(client, where="year>3000", rerank=rerank)["results"] == []
    assert workspace.search(QUERY, where="year>3000", rerank=rerank) == []
    assert client.get(f"/v1/pages/{THESIS_PAGE}").json()["metadata"] == {"year": 2019, "kind": "rules"}
    assert workspace.documents_where("year=2019") == ["thesis.pdf"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/search", rb'{"query": "\ud800"}'),
        ("/v1/rerank", rb'{"query": "thesis", "documents": ["\udfff"]}'),
    ],
)
def test_half_of_a_surrogate_pair_is_no_text(client: TestClient, path: str, body: bytes):
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "found half of a surrogate pair" in answer.text


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"where": "year>="}, 400, "found the end"),
        ({"where": "year>" * 300}, 422, "where"),
        ({"query": " "}, 422, "empty"),
        ({"query": "x" * 5000}, 413, "expected at most 1000"),
        ({"query": 3}, 422, "query"),
        ({"top_k": 0}, 422, "top_k"),
        ({"top_k": 10**6}, 422, "expected at most 200"),
        ({"candidates": 100_000}, 422, "expected at most 200"),
        ({"documents": ["none.pdf"]}, 404, "no document of that id"),
        ({"documents": ["../thesis.pdf"]}, 404, "no document of that id"),
        ({"first_stage": "smell"}, 422, "expected one of"),
        ({"first_stage": "meaning"}, 400, "needs vectors of the pages' text"),
        ({"channels": {"smell": 1}}, 400, "no channel 'smell'"),
        ({"channels": {"words": -1}}, 422, "channels"),
        ({"fuse": -1}, 422, "fuse"),
        ({"workspace": "other"}, 404, "this server has work"),
    ],
)
def test_a_wrong_search_is_one_line(client: TestClient, body: dict[str, Any], status: int, says: str):
    assert says in search(client, status, **body)["error"]["message"]


def test_a_page(client: TestClient):
    page = client.get(f"/v1/pages/{THESIS_PAGE}").json()
    assert (page["page_id"], page["document"], page["page"]) == (THESIS_PAGE, "thesis.pdf", 1)
    assert "last Friday" in page["text"]
    image = client.get(f"/v1/pages/{THESIS_PAGE}/image")
    assert image.headers["content-type"] == "image/png"
    opened = Image.open(io.BytesIO(image.content))
    assert opened.size == (page["width_px"], page["height_px"])
    small = client.get(f"/v1/pages/{THESIS_PAGE}/image", params={"width": 32}).content
    assert Image.open(io.BytesIO(small)).width == 32
    assert client.get(f"/v1/pages/{THESIS_PAGE}/image", params={"width": 9}).status_code == 422
    assert hashlib.sha256(small).hexdigest() != page["sha256"]


@pytest.mark.parametrize(
    "page_id",
    [
        "thesis.pdf/9999",
        "../../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "..%2f..%2fmmrr.json",
        "thesis.pdf/0001/../../mmrr.json",
        "%00",
        "%ff%fe",
        "thesis.pdf/0001/x",
    ],
)
def test_an_id_is_no_path(client: TestClient, page_id: str):
    for path in (f"/v1/pages/{page_id}", f"/v1/pages/{page_id}/image", f"/v1/documents/{page_id}"):
        answer = client.request("DELETE" if "documents" in path else "GET", path)
        assert answer.status_code in (404, 405), (path, answer.text)
        assert answer.json()["error"]["type"] in ("not_found", "method_not_allowed")


def test_documents_and_state(client: TestClient):
    listed = client.get("/v1/documents").json()
    assert [(row["id"], row["status"], row["pages"]) for row in listed["documents"]] == [
        ("soil.pdf", "ok", 3),
        ("thesis.pdf", "ok", 2),
    ]
    assert client.get("/health").json()["status"] == "ok"
    search(client)
    assert client.get("/ready").json()["workspaces"] == ["work"]
    text = client.get("/metrics").text
    assert 'mmrr_requests_total{method="POST",route="/v1/search",status="200"}' in text
    assert "mmrr_queue_requests 0.0" in text


def test_docs_load_nothing_from_elsewhere(client: TestClient):
    page = client.get("/docs")
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "<script" not in page.text
    assert "POST /v1/rerank" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    schema = client.get("/openapi.json").json()
    assert {"/v1/rerank", "/v1/search", "/v1/documents", "/v1/pages/{page_id}/image"} <= schema["paths"].keys()


def test_a_search_writes_nothing(client: TestClient, made: Any):
    search(client)
    before = {path: path.stat().st_mtime_ns for path in (made / "work").rglob("*")}
    search(client, query="a question that nobody asked before")
    assert {path: path.stat().st_mtime_ns for path in (made / "work").rglob("*")} == before
