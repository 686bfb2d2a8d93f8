"""The LlamaIndex adapter, with LlamaIndex."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

import mmrr
from tests.integrations.conftest import QUERY

pytestmark = pytest.mark.framework("llama_index")


def test_the_retriever_finds_what_the_workspace_finds(workspace: mmrr.Workspace, best: list[mmrr.Hit]):
    from llama_index.core.schema import MetadataMode

    from mmrr.integrations.llamaindex import PageRetriever

    found = PageRetriever(workspace, top_k=3).retrieve(QUERY)
    assert [(one.node.node_id, one.score) for one in found] == [(hit.page_id, hit.score) for hit in best]
    assert found[0].node.metadata["page"] == best[0].page
    shown = found[0].node.get_content(MetadataMode.LLM)
    assert f"document: {best[0].document}" in shown
    assert best[0].text() in shown
    assert "score" not in shown


def test_the_postprocessor_ranks_as_the_reranker(
    workspace: mmrr.Workspace, reranker: mmrr.Reranker, ranked: list[tuple[str, float]]
):
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    from mmrr.integrations.llamaindex import PageReranker

    given = [NodeWithScore(node=TextNode(text="", metadata={"page_id": page.page_id})) for page in workspace.pages()]
    postprocessor = PageReranker(reranker=reranker, workspace=workspace, top_k=4)
    found = postprocessor.postprocess_nodes(given, QueryBundle(QUERY))
    assert [(one.node.metadata["page_id"], one.score) for one in found] == [
        (page_id, pytest.approx(score, abs=1e-6)) for page_id, score in ranked[:4]
    ]
    with pytest.raises(mmrr.MmrrError, match="the reranker got no query"):
        postprocessor.postprocess_nodes(given)


def test_the_postprocessor_takes_image_nodes(reranker: mmrr.Reranker, images: list[Path]):
    from llama_index.core.schema import ImageDocument, ImageNode, NodeWithScore

    from mmrr.integrations.llamaindex import PageReranker

    data = [base64.b64encode(image.read_bytes()).decode() for image in images]
    nodes = [ImageNode(image_path=str(images[0])), ImageNode(image=data[1]), ImageDocument(image=data[2])]
    found = PageReranker(reranker=reranker).postprocess_nodes([NodeWithScore(node=one) for one in nodes], None, QUERY)
    expected = reranker.rank(QUERY, images[:3])
    assert [(one.node, one.score) for one in found] == [(nodes[one["corpus_id"]], one["score"]) for one in expected]


def test_a_query_engine_takes_both(workspace: mmrr.Workspace, reranker: mmrr.Reranker):
    from llama_index.core.llms import MockLLM
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.response_synthesizers import get_response_synthesizer

    from mmrr.integrations.llamaindex import PageReranker, PageRetriever

    engine = RetrieverQueryEngine(
        PageRetriever(workspace, top_k=5, document="soil.pdf"),
        get_response_synthesizer(llm=MockLLM()),
        [PageReranker(reranker=reranker, workspace=workspace, top_k=2)],
    )
    response = engine.query(QUERY)
    assert len(response.source_nodes) == 2
    assert response.source_nodes[0].text in str(response)


def test_the_example(example: Callable[..., list[str]], work: Path, tiny_path: Path):
    shown = example("llamaindex_pages.py", work, tiny_path, QUERY)
    assert shown
    assert all(line.startswith("thesis.pdf/") for line in shown)
