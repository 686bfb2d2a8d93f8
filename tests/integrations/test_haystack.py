"""The Haystack components, in a Haystack pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mmrr
from tests.integrations.conftest import QUERY

pytestmark = pytest.mark.framework("haystack")


def test_a_pipeline_finds_and_ranks_and_can_be_saved(
    work: Path,
    tiny_path: Path,
    workspace: mmrr.Workspace,
    ranked: list[tuple[str, float]],
    monkeypatch: pytest.MonkeyPatch,
):
    from haystack import Pipeline

    from mmrr.integrations.haystack import PageRanker, PageRetriever

    pipeline = Pipeline()
    pipeline.add_component("retriever", PageRetriever(str(work), options={"document": "soil.pdf"}, device="cpu"))
    pipeline.add_component("ranker", PageRanker(str(tiny_path), str(work), device="cpu"))
    pipeline.connect("retriever.documents", "ranker.documents")
    monkeypatch.setenv("HAYSTACK_DESERIALIZATION_ALLOWLIST", "mmrr.integrations.haystack")
    pipeline = Pipeline.loads(pipeline.dumps())
    data = {"retriever": {"query": QUERY}, "ranker": {"query": QUERY}}
    found = pipeline.run(data, include_outputs_from={"retriever"})
    first = workspace.search(QUERY, document="soil.pdf")
    assert [(one.id, one.content, one.score) for one in found["retriever"]["documents"]] == [
        (hit.page_id, hit.text(), pytest.approx(hit.score, abs=1e-5)) for hit in first
    ]
    assert [(one.id, one.score) for one in found["ranker"]["documents"]] == [
        (page_id, pytest.approx(score, abs=1e-5)) for page_id, score in ranked if page_id.startswith("soil")
    ]
    data["retriever"]["top_k"], data["ranker"]["top_k"] = 2, 1
    assert len(pipeline.run(data)["ranker"]["documents"]) == 1


def test_the_ranker_takes_images(tiny_path: Path, images: list[Path], reranker: mmrr.Reranker):
    from haystack import Document
    from haystack.dataclasses import ByteStream

    from mmrr.integrations.haystack import PageRanker

    given = [Document(blob=ByteStream.from_file_path(images[0])), Document(meta={"image": str(images[1])})]
    found = PageRanker(str(tiny_path), device="cpu").run(QUERY, given)["documents"]
    # The component reads pages at the default resolution; the fixture's reranker does not.
    expected = mmrr.Reranker(str(tiny_path), device="cpu").rank(QUERY, images[:2])
    assert [(one.id, one.score) for one in found] == [
        (given[one["corpus_id"]].id, pytest.approx(one["score"], abs=1e-6)) for one in expected
    ]
    with pytest.raises(mmrr.MmrrError, match="document 0 has no image"):
        PageRanker(str(tiny_path), device="cpu").run(QUERY, [Document(content="no image")])


def test_the_example(example: Callable[..., list[str]], work: Path, tiny_path: Path):
    shown = example("haystack_pages.py", work, tiny_path, QUERY)
    assert shown
    assert all(line.startswith("thesis.pdf/") for line in shown)
