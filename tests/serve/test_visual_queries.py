"""Queries with images over HTTP, in every form, and never mixed with others. Tolerance of scores: |dz| <= 1e-4."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

import mmrr
from mmrr.api import Search
from mmrr.queries import query_image
from mmrr.serve.inputs import Given
from mmrr.serve.models import RankTask, SearchTask
from mmrr.types import Query
from tests.serve.conftest import QUERY, data_uri, png

PAGES = ["thesis.pdf/0001", "soil.pdf/0002", "soil.pdf/0001"]


def picture(colour: str) -> Image.Image:
    image = Image.new("RGB", (160, 96), "white")
    ImageDraw.Draw(image).ellipse((20, 10, 120, 90), fill=colour)
    return image


RED, BLUE = picture("red"), picture("blue")


def part(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_uri(image)}}


@pytest.fixture(scope="module", autouse=True)
def warm(client: TestClient) -> None:
    """The server has loaded its models: transformers cannot load in two threads at once."""
    assert client.post("/v1/search", json={"query": QUERY}).status_code == 200


def answers(compute: Generator[None, None, Sequence[Any]]) -> Sequence[Any]:
    try:
        while True:
            next(compute)
    except StopIteration as end:
        found: Sequence[Any] = end.value
        return found


def test_both_shapes_give_the_scores_of_the_library(client: TestClient, workspace: mmrr.Workspace) -> None:
    for image, text in [(RED, QUERY), (BLUE, QUERY), (RED, "")]:
        (expected,) = workspace.score_many([({"text": text, "image": image}, PAGES)])
        hits = [hit.page_id for hit in workspace.search({"text": text, "image": png(image)}, top_k=3)]
        texts = [{"type": "text", "text": text}] * bool(text)
        for query in ({"text": text, "image": data_uri(image)}, {"content": [part(image), *texts]}):
            body = {"query": query, "documents": [{"page_id": one} for one in PAGES]}
            answer = client.post("/v1/rerank", json=body)
            assert answer.status_code == 200, answer.text
            results = sorted(answer.json()["results"], key=lambda one: int(one["index"]))
            assert [one["logit"] for one in results] == pytest.approx(expected, abs=1e-4)
            answer = client.post("/v1/search", json={"query": query, "top_k": 3})
            assert [one["page_id"] for one in answer.json()["results"]] == hits


def test_requests_that_differ_in_the_image_alone_are_never_mixed(client: TestClient, workspace: mmrr.Workspace) -> None:
    models = client.app.state.service.models  # type: ignore[attr-defined]
    queries = [Query("query", QUERY, image=query_image(image)) for image in (RED, BLUE, RED)] + [Query("query", QUERY)]
    _, served = models.workspace(None)
    given = (*(Given("page", one) for one in PAGES), Given("image", png(BLUE)))
    ranked = answers(models.ranking(served)([RankTask(query, given) for query in queries]))
    alone = [answers(models.ranking(served)([RankTask(query, given)]))[0] for query in queries]
    for together, one in zip(ranked, alone, strict=True):
        assert together == pytest.approx(one, abs=1e-4)
    assert ranked[0] == pytest.approx(ranked[2], abs=1e-4)
    for a, b in [(0, 1), (0, 3), (1, 3)]:
        assert max(abs(x - y) for x, y in zip(ranked[a], ranked[b], strict=True)) > 1e-3
    found = answers(models.searching(served, Search(top_k=3))([SearchTask(query, False) for query in queries]))
    for one, query in zip(found, queries, strict=True):
        hits = workspace.search(query, top_k=3)
        assert [hit.page_id for hit in one.hits] == [hit.page_id for hit in hits]
        assert [hit.score for hit in one.hits] == pytest.approx([hit.score for hit in hits], abs=1e-4)
    # One that cannot be answered leaves the others alone.
    words = Search(top_k=3, first_stage="words")
    refused, fine = answers(
        models.searching(served, words)(
            [SearchTask(Query("query", "", image=query_image(RED)), False), SearchTask(Query("query", QUERY), False)]
        )
    )
    assert refused.status == 400
    assert "this search uses words alone" in refused.message
    assert fine.hits


@pytest.mark.parametrize(
    ("query", "status", "problem"),
    [
        ({"image": "https://example.org/a.png"}, 400, "a remote URL is not fetched"),
        ({"image": "/etc/passwd"}, 400, "expected data:image/"),
        ({"image": "data:image/png;base64,aGVsbG8="}, 400, "that are no image"),
        ({"image": data_uri(Image.new("1", (9000, 9000)))}, 413, "more than 64000000 pixels"),
        ({"content": [part(RED), part(BLUE)]}, 422, "two parts of one type"),
        ({"content": [part(RED)], "text": "x"}, 422, "expected content alone"),
        ({}, 422, "it is empty; expected a question, some words or an image"),
        ({"content": []}, 422, "it is empty"),
    ],
)
def test_bad_images_are_refused(client: TestClient, query: dict[str, Any], status: int, problem: str) -> None:
    for route, more in (("/v1/rerank", {"documents": [{"page_id": PAGES[0]}]}), ("/v1/search", {})):
        answer = client.post(route, json={"query": query, **more})
        assert answer.status_code == status, answer.text
        assert "query" in answer.json()["error"]["message"]
        assert problem in answer.json()["error"]["message"]
