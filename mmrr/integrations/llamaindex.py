"""LlamaIndex: a retriever over a workspace, and a node postprocessor that reranks pages."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from mmrr.api import Workspace
from mmrr.documents.image_input import PageImage
from mmrr.errors import MmrrError
from mmrr.integrations._candidates import Candidate, metadata, rank
from mmrr.integrations._library import needs
from mmrr.reranker import Reranker

with needs("llamaindex", "llama_index"):
    from llama_index.core.bridge.pydantic import Field
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import BaseNode, ImageNode, MetadataMode, NodeWithScore, QueryBundle, TextNode


class PageRetriever(BaseRetriever):
    """Finds pages of a workspace. A node is a page: its text, and in its metadata what a ``Hit`` has."""

    def __init__(self, workspace: Workspace, top_k: int = 10, **options: object) -> None:
        """``options`` are fields of ``mmrr.Search``, such as ``candidates=50``."""
        super().__init__()
        self._workspace = workspace
        self._options: dict[str, Any] = {"top_k": top_k, **options}

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        nodes = []
        for hit in self._workspace.search(query_bundle.query_str, **self._options):
            found = metadata(hit)
            # A language model is shown the page's text, its document and its page number.
            hidden = sorted(found.keys() - {"document", "page"})
            node = TextNode(
                id_=hit.page_id,
                text=hit.text(),
                metadata=found,
                excluded_llm_metadata_keys=hidden,
                excluded_embed_metadata_keys=sorted(found),
            )
            nodes.append(NodeWithScore(node=node, score=hit.score))
        return nodes


class PageReranker(BaseNodePostprocessor):
    """Reranks nodes by page image, or by text for a reranker that reads text.

    The image of a node is that of an ``ImageNode``, or ``metadata["image"]`` (a path, a data URI, bytes or a Pillow
    image), or the page ``metadata["page_id"]`` of ``workspace``. The score of a result is 0 to 1.
    """

    # None: pages are scored from the page caches of ``workspace``.
    reranker: Reranker | None = Field(default=None, exclude=True)
    workspace: Workspace | None = Field(default=None, exclude=True)
    top_k: int | None = None  # None: all nodes

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores."""
        return "MmrrPageReranker"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise MmrrError("the reranker got no query; pass query_str or query_bundle")
        candidates = [
            Candidate(one.node.get_content(MetadataMode.NONE), one.node.metadata, _image(one.node)) for one in nodes
        ]
        ranked = rank(self.reranker, self.workspace, query_bundle.query_str, candidates, self.top_k)
        return [NodeWithScore(node=nodes[one["corpus_id"]].node, score=one["score"]) for one in ranked]


def _image(node: BaseNode) -> PageImage | None:
    """The image that LlamaIndex stores in a node. Raises MmrrError for one that is not base64."""
    resource: Any = getattr(node, "image_resource", None)
    data = node.image if isinstance(node, ImageNode) else getattr(resource, "data", None)
    path = node.image_path if isinstance(node, ImageNode) else getattr(resource, "path", None)
    if data:
        try:
            return base64.b64decode(data, validate=True)
        except (ValueError, binascii.Error) as error:
            raise MmrrError(f"the image of node {node.node_id} is not base64") from error
    return path or None
