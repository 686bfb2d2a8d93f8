"""LangChain: a retriever over a workspace, and a document compressor that reranks pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrr.api import Workspace
from mmrr.integrations._candidates import Candidate, metadata, rank
from mmrr.integrations._library import needs
from mmrr.reranker import Reranker

with needs("langchain", "langchain_core"):
    from langchain_core.callbacks import CallbackManagerForRetrieverRun, Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict, Field


class PageRetriever(BaseRetriever):
    """Finds pages of a workspace. A document is a page: its text, and in its metadata what a ``Hit`` has.

    ``options`` are fields of ``mmrr.Search``, such as ``{"candidates": 50}``.
    """

    workspace: Workspace
    top_k: int = 10
    options: dict[str, Any] = Field(default_factory=dict)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        hits = self.workspace.search(query, **{"top_k": self.top_k, **self.options})
        return [Document(page_content=hit.text(), metadata=metadata(hit), id=hit.page_id) for hit in hits]


class PageReranker(BaseDocumentCompressor):
    """Reranks documents by page image, or by text for a reranker that reads text.

    The image of a document is ``metadata["image"]`` (a path, a data URI, bytes or a Pillow image), or the page
    ``metadata["page_id"]`` of ``workspace``. The result has ``metadata["relevance_score"]``, 0 to 1.
    """

    reranker: Reranker | None = None  # None: pages are scored from the page caches of ``workspace``
    workspace: Workspace | None = None
    top_k: int | None = None  # None: all documents

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The documents from the best to the worst, at most ``top_k``. Raises MmrrError if one has no image."""
        candidates = [Candidate(one.page_content, one.metadata) for one in documents]
        return [
            documents[found["corpus_id"]].model_copy(
                update={"metadata": {**documents[found["corpus_id"]].metadata, "relevance_score": found["score"]}}
            )
            for found in rank(self.reranker, self.workspace, query, candidates, self.top_k)
        ]
