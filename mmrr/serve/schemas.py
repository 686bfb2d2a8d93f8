"""The JSON of requests and answers. Unknown fields of a request are ignored, as clients of other servers send some."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

#: The names of a page, a document and a workspace.
Name = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Url(BaseModel):
    """The address in an ``image_url`` part."""

    url: str


class Part(BaseModel):
    """One part of a document's content: ``image_url`` or ``text``."""

    type: Literal["image_url", "text"]
    image_url: Url | str | None = None
    text: str | None = None


class Document(BaseModel):
    """A document with exactly one of these fields."""

    model_config = ConfigDict(extra="ignore")

    page_id: Name | None = None
    text: str | None = None
    image: str | None = None
    content: list[Part] | None = None


class QueryObject(BaseModel):
    """A query with a text, an image, or both; or with ``content`` alone."""

    text: str | None = None
    image: str | None = None
    content: list[Part] | None = Field(None, max_length=2)


class Contents(BaseModel):
    """All documents as the parts of one content, in the shape of vLLM."""

    content: list[Part]


class RerankRequest(BaseModel):
    """Documents to order by their relevance for a query."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "query": "When is the thesis due?",
                "documents": [{"page_id": "thesis.pdf/0001"}, {"image": "data:image/png;base64,iVBORw0KGgo="}],
                "top_n": 1,
            }
        }
    )

    model: str | None = Field(None, description="Accepted and not compared: the answer names the model that scored.")
    query: str | QueryObject
    documents: list[str | Document] | Contents
    top_n: Count | None = None
    return_documents: bool = False
    workspace: Name | None = Field(None, description="Where page ids are looked up. Default: the first workspace.")


class RerankResult(BaseModel):
    """One document of the ranking."""

    index: int = Field(description="The document's place in the request, from 0.")
    relevance_score: float = Field(description="Sigmoid of the logit, 0 to 1. It does not depend on other documents.")
    logit: float
    document: Any = Field(None, description="The document as it was given, with return_documents.")


class RerankResponse(BaseModel):
    id: str
    model: str
    results: list[RerankResult]


class SearchRequest(BaseModel):
    """A question for a workspace."""

    model_config = ConfigDict(json_schema_extra={"example": {"query": "When is the thesis due?", "top_k": 3}})

    query: str | QueryObject
    top_k: Count = 10
    candidates: Count = Field(100, description="Pages of the first stage that are reranked.")
    documents: list[Name] | None = Field(None, max_length=100, description="Ids of the documents that are searched.")
    where: str | None = Field(
        None,
        max_length=1000,
        description="Conditions on the metadata of documents: year>=2020 and kind=report.",
    )
    first_stage: Name | None = Field(None, description="words, meaning, sight or hybrid. Default: all of the index.")
    channels: dict[Name, Annotated[float, Field(ge=0, le=1e6)]] | None = Field(None, max_length=10)
    rerank: bool | None = Field(None, description="Default: if the pages have caches.")
    fuse: float | None = Field(None, ge=0, le=1e6, description="Weight of the reranker in score fusion.")
    return_text: bool = False
    return_snippets: bool = Field(False, description="Of each page the passage that answers the query best.")
    workspace: Name | None = None


class SnippetPart(BaseModel):
    """A run of a snippet's text."""

    text: str
    match: bool = Field(description="Whether it is a word of the query.")


class Snippet(BaseModel):
    """A passage of a page's text, as parts in their order."""

    parts: list[SnippetPart]
    before: bool = Field(description="Whether the page has text before it.")
    after: bool = Field(description="Whether the page has text after it.")


class SearchResult(BaseModel):
    """One page of an answer."""

    page_id: str
    document: str
    page: int
    label: str
    score: float
    rank: int
    first_stage_rank: int | None = Field(description="null: the answer was not reranked.")
    width_px: int
    height_px: int
    sha256: str = Field(description="Of the page image.")
    metadata: dict[str, str | int | float] = Field(description="Of the document, as mmrr index stored it.")
    text: str | None = None
    snippet: Snippet | None = None


class SearchResponse(BaseModel):
    id: str
    workspace: str
    reranked: bool
    results: list[SearchResult]


class PageResponse(BaseModel):
    """A page of a workspace."""

    page_id: str
    document: str
    page: int
    label: str
    width_px: int
    height_px: int
    sha256: str = Field(description="Of the PNG that GET /v1/pages/{id}/image gives without a width.")
    text: str
    metadata: dict[str, str | int | float] = Field(description="Of the document, as mmrr index stored it.")


class EvidenceWord(BaseModel):
    """A word of a query."""

    text: str
    index: int


class EvidenceResponse(BaseModel):
    """Where a page's score for a query comes from."""

    source: Literal["embedder", "reranker"]
    sources: list[Literal["embedder", "reranker"]] = Field(description="Those that the workspace has.")
    words: list[EvidenceWord]
    grid: tuple[int, int] = Field(description="Rows and columns of visual tokens.")
    heat: list[float] = Field(description="0 to 1 for each token, row by row; the largest is 1.")
    kept: list[bool] = Field(description="false: pruning dropped the token.")


class KeptResponse(BaseModel):
    """The visual tokens of a page that pruning kept."""

    grid: tuple[int, int] = Field(description="Rows and columns.")
    kept: list[bool] = Field(description="Of each token, row by row.")


class Box(BaseModel):
    """A word, or its part on one line, as fractions (0 to 1) of the page image."""

    text: str
    left: float
    top: float
    width: float
    height: float
    match: bool = Field(description="Whether it is a word of the query.")


class WordsResponse(BaseModel):
    """The words of a page's text layer, and where they are."""

    width: int = Field(description="Of the page image, in pixels.")
    height: int
    boxes: list[Box]
    reason: str = Field(description="Why there are none.")


class DocumentRow(BaseModel):
    """A document of a workspace."""

    id: str
    status: str = Field(description="ok, or what is wrong with it.")
    detail: str
    pages: int


class DocumentsResponse(BaseModel):
    workspace: str
    documents: list[DocumentRow]


class JobResponse(BaseModel):
    """An upload or a removal."""

    id: str
    kind: Literal["upload", "delete"]
    workspace: str
    document: str
    status: Literal["queued", "running", "done", "failed"]
    stage: str = Field(description="What is done now, such as render, embed, precache.")
    pages_done: int
    pages: int
    message: str


class WorkspaceRow(BaseModel):
    """A workspace of the server."""

    name: str
    documents: int
    pages: int
    reranker: str = Field(description="The model of its page caches; empty: its answers are not reranked.")


class InfoResponse(BaseModel):
    """What the server is, and what it allows."""

    version: str
    model: str
    read_only: bool
    upload_bytes: int = Field(description="The most bytes of an uploaded file.")
    upload_endings: list[str] = Field(description="The endings of files that may be uploaded.")
    query_chars: int = Field(description="The most characters of a query.")
    workspaces: list[WorkspaceRow]


class StatusResponse(BaseModel):
    status: str
    version: str
    model: str | None = None
    workspaces: list[str] = []


class ErrorBody(BaseModel):
    type: str
    message: str


class ErrorResponse(BaseModel):
    error: ErrorBody
