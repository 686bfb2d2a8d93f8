"""The LangChain adapter, with LangChain."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path

import pytest

import mmrr
from tests.integrations.conftest import QUERY

pytestmark = pytest.mark.framework("langchain_core")


def test_the_retriever_finds_what_the_workspace_finds(workspace: mmrr.Workspace, best: list[mmrr.Hit]):
    from langchain_core.retrievers import BaseRetriever

    from mmrr.integrations.langchain import PageRetriever

    retriever = PageRetriever(workspace=workspace, top_k=3)
    assert isinstance(retriever, BaseRetriever)
    found = retriever.invoke(QUERY)
    assert [(one.id, one.page_content, one.metadata["score"]) for one in found] == [
        (hit.page_id, hit.text(), hit.score) for hit in best
    ]
    assert found[0].metadata == {
        "page_id": best[0].page_id,
        "document": best[0].document,
        "page": best[0].page,
        "label": best[0].label,
        "score": best[0].score,
        "rank": 1,
    }
    assert asyncio.run(retriever.ainvoke(QUERY)) == found
    assert len(PageRetriever(workspace=workspace, options={"document": "thesis.pdf"}).invoke(QUERY)) == 2


def test_the_compressor_ranks_as_the_reranker(
    workspace: mmrr.Workspace, reranker: mmrr.Reranker, ranked: list[tuple[str, float]]
):
    from langchain_core.documents import Document
    from langchain_core.runnables import RunnableLambda

    from mmrr.integrations.langchain import PageReranker, PageRetriever

    given = [Document(page_content="", metadata={"page_id": page.page_id}) for page in workspace.pages()]
    compressor = PageReranker(reranker=reranker, workspace=workspace)
    found = compressor.compress_documents(given, QUERY)
    scores = [(one.metadata["page_id"], one.metadata["relevance_score"]) for one in found]
    assert scores == [(page_id, pytest.approx(score, abs=1e-6)) for page_id, score in ranked]
    assert all("relevance_score" not in one.metadata for one in given)
    # As a step of a chain, after the retriever.
    retriever = PageRetriever(workspace=workspace, top_k=5, options={"document": "soil.pdf"})
    chain = RunnableLambda(lambda query: compressor.compress_documents(retriever.invoke(query), query))
    assert [one.id for one in chain.invoke(QUERY)] == [page_id for page_id, _ in ranked if page_id.startswith("soil")]
    assert compressor.compress_documents([], QUERY) == []


def test_the_compressor_takes_images(reranker: mmrr.Reranker, images: list[Path]):
    from langchain_core.documents import Document

    from mmrr.integrations.langchain import PageReranker

    uri = "data:image/png;base64," + base64.b64encode(images[1].read_bytes()).decode()
    given = [Document(page_content=str(i), metadata={"image": one}) for i, one in enumerate([str(images[0]), uri])]
    found = PageReranker(reranker=reranker, top_k=1).compress_documents(given, QUERY)
    (expected,) = reranker.rank(QUERY, images[:2], top_k=1)
    assert [(one.page_content, one.metadata["relevance_score"]) for one in found] == [
        (str(expected["corpus_id"]), expected["score"])
    ]


def test_the_example(example: Callable[..., list[str]], work: Path, tiny_path: Path):
    shown = example("langchain_pages.py", work, tiny_path, QUERY)
    assert shown
    assert all(line.split()[0].startswith("thesis.pdf/") for line in shown)
