"""POST /v1/rerank: the documents in every form, and what is refused. Tolerance of scores: |dz| <= 1e-4."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

import mmrr
from mmrr.serve.settings import Limits, Settings
from tests.serve.conftest import QUERY, data_uri, png, serving

PAGES = ["thesis.pdf/0001", "soil.pdf/0002", "soil.pdf/0001"]


def rerank(client: TestClient, documents: Any, **more: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/rerank", json={"model": "any", "query": QUERY, "documents": documents, **more})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def logits(results: list[dict[str, Any]]) -> list[float]:
    """In the order of the request."""
    return [one["logit"] for one in sorted(results, key=lambda one: int(one["index"]))]


def refused(client: TestClient, status: int, **body: Any) -> str:
    answer = client.post("/v1/rerank", json={"query": QUERY, **body})
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    message: str = answer.json()["error"]["message"]
    assert "\n" not in message
    return message


@pytest.mark.parametrize("route", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_pages_have_the_scores_of_their_caches(client: TestClient, workspace: mmrr.Workspace, route: str):
    body = {"query": QUERY, "documents": [{"page_id": one} for one in PAGES], "top_n": 2, "return_documents": True}
    answer = client.post(route, json=body).json()
    assert answer.keys() == {"id", "model", "results"}
    (expected,) = workspace.score_many([(QUERY, PAGES)])
    order = sorted(range(3), key=lambda i: -expected[i])[:2]
    assert [one["index"] for one in answer["results"]] == order
    for one in answer["results"]:
        assert one["logit"] == pytest.approx(expected[one["index"]], abs=1e-4)
        assert 0 < one["relevance_score"] < 1
        assert one["document"] == {"page_id": PAGES[one["index"]]}


def test_scores_of_pages_are_those_of_a_search(client: TestClient, workspace: mmrr.Workspace):
    for hit in workspace.search(QUERY):
        (one,) = rerank(client, [{"page_id": hit.page_id}])
        assert one["logit"] == pytest.approx(hit.score, abs=1e-4)


def test_images_in_every_form_and_the_reranker_agree(
    client: TestClient, page_images: list[Image.Image], workspace: mmrr.Workspace
):
    uris = [data_uri(image) for image in page_images]
    forms: list[Any] = [
        [{"image": uri} for uri in uris],
        [{"content": [{"type": "image_url", "image_url": {"url": uri}}]} for uri in uris],
        [{"content": [{"type": "image_url", "image_url": uri}]} for uri in uris],
        {"content": [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]},
        uris,
    ]
    found = [logits(rerank(client, form)) for form in forms]
    cached = workspace.cached_as()
    assert cached
    reranker = mmrr.Reranker(cached.scoring.model.name, device="cpu", dtype="float32", max_tokens=64)
    expected = reranker.predict([(QUERY, image) for image in page_images], logits=True).tolist()
    for one in found:
        assert one == pytest.approx(expected, abs=1e-4)


def test_pages_and_images_in_one_request(client: TestClient, page_images: list[Image.Image]):
    documents = [{"image": data_uri(page_images[0])}, {"page_id": PAGES[0]}, {"image": data_uri(page_images[1])}]
    together = logits(rerank(client, documents))
    assert together == pytest.approx([logits(rerank(client, [one]))[0] for one in documents], abs=1e-4)


def test_an_image_is_prepared_once(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    documents = [{"image": data_uri(Image.new("RGB", (96, 128), color))} for color in ("red", "green")]
    first = rerank(client, documents)
    reranker = client.app.state.service.models.reranker()  # type: ignore[attr-defined]

    def fail(*_: object) -> None:
        raise AssertionError("an image was read again")

    monkeypatch.setattr(reranker._scorer, "prepare", fail)
    again = rerank(client, list(reversed(documents)))
    assert logits(again) == pytest.approx(list(reversed(logits(first))), abs=1e-4)


@pytest.mark.parametrize(
    ("documents", "status", "says"),
    [
        ([], 422, "the list is empty"),
        (["some text"], 400, "documents.0: found text, and the model of this server"),
        ([{"text": "some text"}], 400, "reads page images"),
        (["/etc/passwd"], 400, "found text"),
        ([{"page_id": "none.pdf/0001"}], 404, "no page of that id"),
        ([{"page_id": "../../etc/passwd"}], 404, "no page of that id"),
        ([{"image": "/etc/passwd"}], 400, "expected data:image/...;base64,..."),
        ([{"image": "file:///etc/passwd"}], 400, "expected data:image/...;base64,..."),
        ([{"image": "https://example.org/page.png"}], 400, "a remote URL is not fetched"),
        ([{"image": "data:text/html;base64,AAAA"}], 400, "another kind"),
        ([{"image": "data:image/png;base64,!!"}], 400, "not base64"),
        ([{"image": "data:image/png;base64,AAAA"}], 400, "no image"),
        ([{}], 422, "found nothing; expected one of page_id, text, image, content"),
        ([{"page_id": "a", "text": "b"}], 422, "found page_id and text"),
        ([{"content": []}], 422, "content has 0 parts"),
        ([{"content": [{"type": "image_url"}]}], 422, "has no image_url"),
    ],
)
def test_a_document_that_cannot_be_scored_is_one_line(client: TestClient, documents: Any, status: int, says: str):
    assert says in refused(client, status, documents=documents)


def test_a_truncated_image_names_its_place(client: TestClient, page_images: list[Image.Image]):
    import base64

    cut = "data:image/png;base64," + base64.b64encode(png(page_images[0])[:-600]).decode()
    documents = [{"image": data_uri(page_images[1])}] * 9 + [{"image": cut}]
    assert "documents.9: the image cannot be read" in refused(client, 400, documents=documents)


def test_limits(settings: Settings, page_images: list[Image.Image]):
    limits = Limits(documents=2, query_chars=30, image_pixels=1000, text_chars=10)
    with serving(replace(settings, limits=limits)) as client:
        page = {"page_id": PAGES[0]}
        assert "3 documents; expected at most 2" in refused(client, 413, documents=[page] * 3)
        assert "expected at most 30" in refused(client, 413, documents=[page], query="x" * 31)
        assert "more than 1000 pixels" in refused(client, 413, documents=[{"image": data_uri(page_images[0])}])
        assert "expected at most 10" in refused(client, 413, documents=["x" * 11])


@pytest.fixture
def image_server(page_images: list[Image.Image]) -> Iterator[int]:
    """A website on this machine that has one image."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name of the library
            self.send_response(200 if self.path == "/page.png" else 302)
            self.send_header("Location", "/page.png")
            self.end_headers()
            if self.path == "/page.png":
                self.wfile.write(png(page_images[0]))

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


def test_only_named_hosts_are_fetched_from(settings: Settings, image_server: int, page_images: list[Image.Image]):
    with serving(replace(settings, fetch_hosts=frozenset({"localhost"}))) as client:
        (fetched,) = rerank(client, [{"image": f"http://localhost:{image_server}/page.png"}])
        (sent,) = rerank(client, [{"image": data_uri(page_images[0])}])
        assert fetched["logit"] == pytest.approx(sent["logit"], abs=1e-4)
        other = [{"image": f"http://127.0.0.1:{image_server}/page.png"}]
        assert "not fetched" in refused(client, 400, documents=other)
        moved = [{"image": f"http://localhost:{image_server}/moved"}]
        assert "status 302" in refused(client, 400, documents=moved)


def test_a_server_without_a_workspace(tiny_path: Any, settings: Settings, page_images: list[Image.Image]):
    alone = replace(settings, workspaces={}, scorer_model=str(tiny_path))
    with serving(alone) as client:
        assert len(rerank(client, [{"image": data_uri(image)} for image in page_images])) == len(page_images)
        assert "no workspace" in refused(client, 404, documents=[{"page_id": PAGES[0]}])
        assert client.post("/v1/search", json={"query": QUERY}).status_code == 404
