"""Haystack: a retriever over a workspace, and a ranker of pages. Both can be saved with a pipeline."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import mmrr.api
from mmrr.api import Workspace
from mmrr.integrations._candidates import Candidate, metadata, rank
from mmrr.integrations._library import needs
from mmrr.reranker import Reranker

with needs("haystack", "haystack"):
    from haystack import Document, component


@component
class PageRetriever:
    """Finds pages of a workspace. A document is a page: its text, and in ``meta`` what a ``Hit`` has."""

    def __init__(
        self, workspace: str, top_k: int = 10, options: dict[str, Any] | None = None, device: str = "auto"
    ) -> None:
        """``workspace``: its folder. ``options``: fields of ``mmrr.Search``, such as ``{"candidates": 50}``."""
        self.workspace, self.top_k, self.options, self.device = workspace, top_k, options, device
        self._opened: Workspace | None = None

    def warm_up(self) -> None:
        """Open the workspace. Raises MmrrError if there is none."""
        if self._opened is None:
            self._opened = mmrr.api.open(self.workspace, device=self.device)

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        """The best pages for a question."""
        self.warm_up()
        assert self._opened
        how = {**(self.options or {}), "top_k": self.top_k if top_k is None else top_k}
        hits = self._opened.search(query, **how)
        return {
            "documents": [
                Document(id=hit.page_id, content=hit.text(), meta=metadata(hit), score=hit.score) for hit in hits
            ]
        }


@component
class PageRanker:
    """Ranks documents by page image, or by text for a reranker that reads text.

    The image of a document is its ``blob``, or ``meta["image"]`` (a path, a data URI, bytes or a Pillow image), or the
    page ``meta["page_id"]`` of the workspace. The score of a result is 0 to 1.
    """

    def __init__(
        self,
        model: str | None = None,
        workspace: str | None = None,
        top_k: int | None = None,
        scorer: str = "minireranker",
        device: str = "auto",
        options: dict[str, Any] | None = None,
    ) -> None:
        """The parameters ``model``, ``scorer``, ``device`` and ``options`` are those of ``mmrr.Reranker``.

        ``model`` None: pages are scored from the page caches of the workspace. ``top_k`` None: all documents.
        """
        self.model, self.workspace, self.top_k = model, workspace, top_k
        self.scorer, self.device, self.options = scorer, device, options
        self._reranker: Reranker | None = None
        self._opened: Workspace | None = None

    def warm_up(self) -> None:
        """Load the model and open the workspace. Raises MmrrError if one is not found."""
        if self._reranker is None and self.model is not None:
            self._reranker = Reranker(self.model, scorer=self.scorer, device=self.device, options=self.options)
        if self.workspace is not None and self._opened is None:
            self._opened = mmrr.api.open(Path(self.workspace), device=self.device)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """The documents from the best to the worst. Raises MmrrError if one has no image."""
        self.warm_up()
        candidates = [Candidate(one.content or "", one.meta, one.blob.data if one.blob else None) for one in documents]
        ranked = rank(self._reranker, self._opened, query, candidates, self.top_k if top_k is None else top_k)
        return {"documents": [dataclasses.replace(documents[one["corpus_id"]], score=one["score"]) for one in ranked]}
