"""Answers in memory: the computations of ``retrieve`` and ``rerank`` without artifacts. Nothing is written."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmrr.config import Rerank, Retrieve
from mmrr.context import Context
from mmrr.stages import rerank, retrieve
from mmrr.stages.rerank import Candidates
from mmrr.types import Query, Run, page_of
from mmrr.workspace.pages import Collection, page_row


@dataclass(frozen=True)
class Answer:
    """The result of a search in memory."""

    collection: Collection
    first: Run
    final: Run | None = None

    @property
    def run(self) -> Run:
        """The final run."""
        return self.first if self.final is None else self.final


def answer(
    context: Context,
    queries: list[Query],
    options: Retrieve,
    search_options: Mapping[str, str],
    rerank_options: Rerank | None,
    score_options: Mapping[str, str],
    documents: Sequence[str] | None = None,
) -> Answer:
    """The runs of ``pipeline.search`` and ``pipeline.rerank_run``: the same computations, without artifacts.

    The parameters are theirs. ``rerank_options`` None: the first stage alone. ``documents``: the ids of the documents
    whose pages may be found, with the scores that they have in the whole collection; None: all.
    """
    indexed = context.current("index")
    collection = context.collection(indexed)
    within = None if documents is None else {row for doc_id in documents for row in collection.rows.get(doc_id, [])}
    found = retrieve.rank_pages(context, collection, indexed, queries, options, search_options, within)
    first = {query.query_id: found.get(query.query_id, []) for query in queries}
    if rerank_options is None:
        return Answer(collection, first)
    cached = context.same_pages(context.current("precache"), collection)
    candidates = Candidates(collection, queries, None, first)
    return Answer(collection, first, rerank.rerank_pages(context, candidates, cached, rerank_options, score_options))


def scores(context: Context, asked: Sequence[tuple[Query, Sequence[str]]]) -> list[list[float]]:
    """The current reranker's logit of each page for its query, from the page caches. Nothing is written.

    ``asked`` has the page ids of each query. Raises MmrrError for a page that is not in the index.
    """
    collection = context.collection(context.current("index"))
    cached = context.same_pages(context.current("precache"), collection)
    # A page with tiles has the score of its best image.
    images = [[collection.images[_page(collection, page_id)] for page_id in page_ids] for _, page_ids in asked]
    rows = [(query, [row for page in pages for row in page]) for (query, _), pages in zip(asked, images, strict=True)]
    found = rerank.score_pages(context, collection, cached, rows)
    best = []
    for pages, logits in zip(images, found, strict=True):
        of_image = iter(logits.tolist())
        best.append([max(itertools.islice(of_image, len(page))) for page in pages])
    return best


def _page(collection: Collection, page_id: str) -> str:
    return page_of(collection.pages[page_row(collection, page_id)].page_id)
