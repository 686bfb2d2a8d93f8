"""What the adapters share: the page image or text of a framework's document, and its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from mmrr.api import Hit, Workspace
from mmrr.documents.image_input import PageImage
from mmrr.errors import MmrrError
from mmrr.reranker import Ranked, Reranker


@dataclass(frozen=True, slots=True)
class Candidate:
    """One document of a framework, which a reranker scores."""

    text: str
    #: Read: "image" (what ``Reranker.rank`` takes) and "page_id". Any: a framework allows values of all types.
    metadata: Mapping[str, Any] = field(default_factory=dict)
    image: PageImage | None = None  # an image that the framework itself stores with a document


def rank(
    reranker: Reranker | None,
    workspace: Workspace | None,
    query: str,
    candidates: Sequence[Candidate],
    top_k: int | None,
) -> list[Ranked]:
    """The candidates from the best to the worst, at most ``top_k``; equal logits in the given order.

    Raises MmrrError as ``logits``, and for ``top_k`` below 1.
    """
    if top_k is not None and top_k < 1:
        raise MmrrError(f"top_k is {top_k}; expected 1 or more")
    found = logits(reranker, workspace, query, candidates)
    scores = torch.sigmoid(torch.tensor(found)).tolist()
    order = sorted(range(len(found)), key=lambda i: -found[i])[:top_k]
    return [{"corpus_id": i, "score": scores[i], "logit": found[i]} for i in order]


def logits(
    reranker: Reranker | None, workspace: Workspace | None, query: str, candidates: Sequence[Candidate]
) -> list[float]:
    """The score of each candidate.

    Without a reranker it is computed from the page caches of the workspace, by ``metadata["page_id"]``. A reranker
    that reads images gets the candidate's image: its own, else ``metadata["image"]``, else that of its page in the
    workspace. A reranker that reads text gets the text. Raises MmrrError for a candidate that has none of them.
    """
    if not candidates:
        return []
    if reranker is not None:
        contents = [_content(i, candidate, workspace, reranker.reads) for i, candidate in enumerate(candidates)]
        scores: list[float] = reranker.predict([(query, content) for content in contents], logits=True).tolist()
        return scores
    if workspace is None:
        raise MmrrError("nothing to rank with; pass a reranker, or a workspace with page caches")
    pages = [_page_id(i, candidate) for i, candidate in enumerate(candidates)]
    once = list(dict.fromkeys(pages))
    (of_pages,) = workspace.score_many([(query, once)])
    by_page = dict(zip(once, of_pages, strict=True))
    return [by_page[page_id] for page_id in pages]


def _content(i: int, candidate: Candidate, workspace: Workspace | None, reads: Literal["image", "text"]) -> PageImage:
    if reads == "text":
        return candidate.text
    image: PageImage | None = candidate.image if candidate.image is not None else candidate.metadata.get("image")
    if image is not None:
        return image
    page_id = _page_id(i, candidate)
    if workspace is None:
        raise MmrrError(f"document {i} is page {page_id}; pass the workspace that holds it")
    return workspace.image(page_id)


def _page_id(i: int, candidate: Candidate) -> str:
    page_id = candidate.metadata.get("page_id")
    if page_id is None:
        raise MmrrError(f"document {i} has no image; expected 'image' or 'page_id' in its metadata")
    return str(page_id)


def metadata(hit: Hit) -> dict[str, str | int | float]:
    """A hit as the metadata of a framework's document."""
    return {
        "page_id": hit.page_id,
        "document": hit.document,
        "page": hit.page,
        "label": hit.label,
        "score": hit.score,
        "rank": hit.rank,
    }
