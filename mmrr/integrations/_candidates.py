"""What the adapters share: the page image or text of a framework's document, and its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    reranker: Reranker, workspace: Workspace | None, query: str, candidates: Sequence[Candidate], top_k: int | None
) -> list[Ranked]:
    """The candidates from the best to the worst, at most ``top_k``.

    A scorer that reads images gets the candidate's image: its own, else ``metadata["image"]``, else the page
    ``metadata["page_id"]`` of the workspace. A scorer that reads text gets the text. Raises MmrrError for a candidate
    that has none of them.
    """
    return reranker.rank(query, contents(reranker, workspace, candidates), top_k)


def contents(reranker: Reranker, workspace: Workspace | None, candidates: Sequence[Candidate]) -> list[PageImage]:
    """What the scorer reads of each candidate. Raises MmrrError as ``rank``."""
    if reranker.reads == "text":
        return [candidate.text for candidate in candidates]
    return [_image(i, candidate, workspace) for i, candidate in enumerate(candidates)]


def _image(i: int, candidate: Candidate, workspace: Workspace | None) -> PageImage:
    if candidate.image is not None:
        return candidate.image
    image: PageImage | None = candidate.metadata.get("image")
    if image is not None:
        return image
    page_id = candidate.metadata.get("page_id")
    if page_id is None:
        raise MmrrError(f"document {i} has no image; expected 'image' or 'page_id' in its metadata")
    if workspace is None:
        raise MmrrError(f"document {i} is page {page_id}; pass the workspace that holds it")
    return workspace.image(str(page_id))


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
