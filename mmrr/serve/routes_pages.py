"""The routes of a page: what is known of it, its image, its kept tokens, the places of its words."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from mmrr.serve.errors import RefusedError
from mmrr.serve.routes import ERRORS, WorkspaceName, expect_page
from mmrr.serve.schemas import Box, KeptResponse, PageResponse, WordsResponse
from mmrr.serve.service import service_of
from mmrr.serve.thumbnails import Format

router = APIRouter(responses=ERRORS)
Width = Annotated[int | None, Query(ge=16, le=4096, description="Pixels. Default: as it was indexed.")]
ImageFormat = Annotated[Format, Query(alias="format")]
Version = Annotated[
    str,
    Query(max_length=64, description="The page's sha256 or its start: the answer to such an address may be kept."),
]
Asked = Annotated[str, Query(max_length=100_000, description="A question, whose words are marked.")]


@router.get(
    "/v1/pages/{page_id:path}/image",
    response_class=Response,
    responses={200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}}},
)
def page_image(
    page_id: str,
    request: Request,
    workspace: WorkspaceName = None,
    width: Width = None,
    wanted: ImageFormat = "png",
    v: Version = "",
) -> Response:
    """The image of a page as PNG, JPEG or WebP."""
    service = service_of(request)
    _, opened = service.models.workspace(workspace)
    expect_page(opened, page_id)
    sha256 = opened.page(page_id).sha256
    tag = f'"{sha256[:32]}-{width or ""}-{wanted}"'
    # A page's image changes when its document is replaced, and then its hash changes too.
    kept = "max-age=31536000, immutable" if len(v) >= 8 and sha256.startswith(v) else "no-cache"
    headers = {"ETag": tag, "Cache-Control": f"private, {kept}"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    key = (sha256, width, wanted)
    content = service.thumbnails.find(key)
    if content is None:
        content = opened.image_file(page_id)
        if width is not None or wanted != "png":
            content = service.thumbnails.make(key, content)
    return Response(content, media_type=f"image/{wanted}", headers=headers)


@router.get("/v1/pages/{page_id:path}/kept")
def kept(page_id: str, request: Request, workspace: WorkspaceName = None) -> KeptResponse:
    """The visual tokens of a page that pruning kept; 404 if no token was pruned."""
    _, opened = service_of(request).models.workspace(workspace)
    expect_page(opened, page_id)
    found = opened.kept(page_id)
    if found is None:
        raise RefusedError(404, "no visual token of this page was pruned: the reranker reads all of them")
    rows, columns = found.grid
    chosen = set(found.indices.tolist())
    return KeptResponse(grid=(rows, columns), kept=[i in chosen for i in range(rows * columns)])


@router.get("/v1/pages/{page_id:path}/words")
def words(page_id: str, request: Request, workspace: WorkspaceName = None, q: Asked = "") -> WordsResponse:
    """The words of a page's text layer and where they are, if the document's file is where it was indexed."""
    service = service_of(request)
    if len(q) > service.settings.limits.query_chars:
        raise RefusedError(413, f"q: {len(q)} characters; expected at most {service.settings.limits.query_chars}")
    _, opened = service.models.workspace(workspace)
    expect_page(opened, page_id)
    page, found = opened.page(page_id), opened.words(page_id, q)
    boxes = [
        Box(
            text=box.text,
            left=round(box.left, 5),
            top=round(box.top, 5),
            width=round(box.width, 5),
            height=round(box.height, 5),
            match=match,
        )
        for box, match in found.boxes
    ]
    return WordsResponse(width=page.width_px, height=page.height_px, boxes=boxes, reason=found.reason)


@router.get("/v1/pages/{page_id:path}")
def page(page_id: str, request: Request, workspace: WorkspaceName = None) -> PageResponse:
    """What is known of a page, with its text."""
    _, opened = service_of(request).models.workspace(workspace)
    expect_page(opened, page_id)
    found = opened.page(page_id)
    return PageResponse(
        page_id=page_id,
        document=found.doc_id,
        page=found.number,
        label=getattr(found, "label", ""),
        width_px=found.width_px,
        height_px=found.height_px,
        sha256=found.sha256,
        text=opened.text(page_id),
        metadata=opened.metadata(found.doc_id),
    )
