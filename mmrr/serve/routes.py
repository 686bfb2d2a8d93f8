"""The routes that answer questions: rerank and search."""

from __future__ import annotations

import math
import uuid
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from mmrr import config
from mmrr.api import Search, Workspace
from mmrr.errors import MmrrError
from mmrr.search.passages import Passage
from mmrr.serve.errors import RefusedError
from mmrr.serve.inputs import Given, read_documents, read_query
from mmrr.serve.models import Found, RankTask, SearchTask
from mmrr.serve.schemas import (
    ErrorResponse,
    Name,
    RerankRequest,
    RerankResponse,
    RerankResult,
    SearchRequest,
    SearchResponse,
    SearchResult,
    Snippet,
    SnippetPart,
)
from mmrr.serve.service import service_of

ERRORS: dict[int | str, dict[str, Any]] = {  # Any: a schema of OpenAPI
    status: {"model": ErrorResponse} for status in (400, 401, 404, 413, 422, 429, 503, 504)
}
router = APIRouter(responses=ERRORS)
WorkspaceName = Annotated[Name | None, Query(description="Default: the first workspace of the server.")]


@router.post("/v1/rerank")
@router.post("/rerank")
@router.post("/v2/rerank")
async def rerank(asked: RerankRequest, request: Request) -> RerankResponse:
    """Order documents by their relevance for a query: the request that Cohere, Jina, vLLM and SGLang share."""
    service = service_of(request)
    limits, settings = service.settings.limits, service.settings
    query = await run_in_threadpool(read_query, asked.query, limits, settings.fetch_hosts)
    given = await run_in_threadpool(read_documents, asked.documents, limits, settings.fetch_hosts)
    name, workspace = "", None
    if any(one.kind == "page" for one in given) or asked.workspace is not None:
        name, workspace = service.models.workspace(asked.workspace)
        await run_in_threadpool(_check_pages, workspace, given)
    # Requests of one workspace share the pages that they name; others share the images that they bring.
    logits: list[float] = await service.batcher.answer(
        "rerank",
        ("rerank", name),
        service.models.ranking(workspace),
        RankTask(query, tuple(given)),
        cost=len(given),
        client=service.client(request),
    )
    order = sorted(range(len(given)), key=lambda i: -logits[i])[: asked.top_n]
    documents = asked.documents if isinstance(asked.documents, list) else asked.documents.content
    results = []
    for i in order:
        one = documents[i]
        shown = None
        if asked.return_documents:
            shown = {"text": one} if isinstance(one, str) else one.model_dump(exclude_none=True)
        results.append(RerankResult(index=i, relevance_score=_sigmoid(logits[i]), logit=logits[i], document=shown))
    return RerankResponse(id=f"rerank-{uuid.uuid4().hex}", model=service.models.name, results=results)


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def _check_pages(workspace: Workspace, given: list[Given]) -> None:
    known = _known_pages(workspace)
    for i, one in enumerate(given):
        if one.kind == "page" and one.value not in known:
            raise RefusedError(404, f"documents.{i}: no page of that id in the workspace")


def _known_pages(workspace: Workspace) -> Any:
    """A container of the page ids of a workspace. Raises RefusedError if it has no index."""
    try:
        return workspace.page_ids()
    except MmrrError as error:
        raise RefusedError(409, "the workspace has no index; its operator runs mmrr index") from error


@router.post("/v1/search")
async def search(asked: SearchRequest, request: Request) -> SearchResponse:
    """Find the pages of a workspace that answer a question."""
    service = service_of(request)
    limits = service.settings.limits
    query = await run_in_threadpool(read_query, asked.query, limits, service.settings.fetch_hosts)
    name, workspace = service.models.workspace(asked.workspace)
    for what, value in (("candidates", asked.candidates), ("top_k", asked.top_k)):
        if value > limits.candidates and (what == "top_k" or asked.rerank is not False):
            raise RefusedError(422, f"{what}: found {value}; expected at most {limits.candidates}")
    stages = get_args(config.FirstStage)
    if asked.first_stage is not None and asked.first_stage not in stages:
        raise RefusedError(422, f"first_stage: found another name; expected one of {', '.join(stages)}")
    await run_in_threadpool(_check_documents, workspace, asked.documents)
    await run_in_threadpool(_check_where, workspace, asked.where)
    options = Search(
        top_k=asked.top_k,
        candidates=asked.candidates,
        first_stage=asked.first_stage,
        rerank=asked.rerank,
        fuse=asked.fuse,
        channels=asked.channels,
        documents=None if asked.documents is None else sorted(set(asked.documents)),
        where=asked.where,
    )
    key = ("search", name, repr(options))  # requests with the same options are searched together
    found: Found = await service.batcher.answer(
        "search",
        key,
        service.models.searching(workspace, options),
        SearchTask(query, asked.return_text, asked.return_snippets),
        cost=options.candidates,
        client=service.client(request),
    )
    results = [
        SearchResult(
            page_id=hit.page_id,
            document=hit.document,
            page=hit.page,
            label=hit.label,
            score=hit.score,
            rank=hit.rank,
            first_stage_rank=hit.first_stage_rank,
            width_px=page.width_px,
            height_px=page.height_px,
            sha256=page.sha256,
            metadata=dict(hit.metadata),
            text=text,
            snippet=_snippet(passage) if passage else None,
        )
        for hit, text, passage, page in zip(found.hits, found.texts, found.passages, found.pages, strict=True)
    ]
    reranked = any(hit.first_stage_rank is not None for hit in found.hits)
    return SearchResponse(id=f"search-{uuid.uuid4().hex}", workspace=name, reranked=reranked, results=results)


def _snippet(passage: Passage) -> Snippet:
    parts, end = [], 0
    for start, stop in passage.marks:
        parts += [SnippetPart(text=passage.text[end:start], match=False)] if start > end else []
        parts.append(SnippetPart(text=passage.text[start:stop], match=True))
        end = stop
    if end < len(passage.text):
        parts.append(SnippetPart(text=passage.text[end:], match=False))
    before, after = passage.cut
    return Snippet(parts=parts, before=before, after=after)


def _check_documents(workspace: Workspace, documents: list[str] | None) -> None:
    """Only exact ids count: other names would be compared with paths of the server."""
    known = _known_documents(workspace)
    for i, name in enumerate(documents or []):
        if name not in known:
            raise RefusedError(404, f"documents.{i}: no document of that id in the workspace")


def _check_where(workspace: Workspace, where: str | None) -> None:
    if where is None:
        return
    try:
        workspace.documents_where(where)
    except MmrrError as error:
        text = str(error).replace("--where", "where").partition("; pass --metadata")[0]
        raise RefusedError(400, text) from None


def _known_documents(workspace: Workspace) -> set[str]:
    try:
        return {entry["doc_id"] for entry in workspace.documents()}
    except MmrrError as error:
        raise RefusedError(409, "the workspace has no index; its operator runs mmrr index") from error


def expect_page(workspace: Workspace, page_id: str) -> None:
    """Raise RefusedError for a page that the workspace does not have."""
    if page_id not in _known_pages(workspace):
        raise RefusedError(404, "no page of that id in the workspace")
