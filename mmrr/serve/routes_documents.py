"""The routes of a workspace's documents: list, upload, remove, and the state of an upload."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Form, Request, UploadFile
from starlette.concurrency import run_in_threadpool

from mmrr.api import Workspace
from mmrr.errors import MmrrError
from mmrr.serve.errors import RefusedError
from mmrr.serve.jobs import Job, safe_name, upload_folder
from mmrr.serve.routes import ERRORS, WorkspaceName
from mmrr.serve.schemas import DocumentRow, DocumentsResponse, JobResponse, Name
from mmrr.serve.service import Service, service_of

router = APIRouter(responses=ERRORS)


@router.get("/v1/documents")
def documents(request: Request, workspace: WorkspaceName = None) -> DocumentsResponse:
    """The documents of a workspace, each with its status."""
    name, opened = service_of(request).models.workspace(workspace)
    return DocumentsResponse(workspace=name, documents=_rows(opened))


def _rows(workspace: Workspace) -> list[DocumentRow]:
    try:
        entries = workspace.documents()
    except MmrrError:
        return []  # no index yet: an upload makes one
    return [
        DocumentRow(id=entry["doc_id"], status=entry["status"], detail=entry["detail"], pages=entry["n_pages"])
        for entry in entries
    ]


@router.post("/v1/documents", status_code=202)
async def upload(request: Request, file: UploadFile, workspace: Annotated[Name | None, Form()] = None) -> JobResponse:
    """Add a PDF or an image. It is rendered, indexed and cached in the background; the answer has the job's id.

    A file with the name of an earlier upload replaces it.
    """
    service = _writable(request)
    name, opened = service.models.workspace(workspace)
    service.jobs.check_room()
    document = safe_name(file.filename or "")
    return _shown(await run_in_threadpool(_keep, service, name, opened, document, file))


def _keep(service: Service, name: str, workspace: Workspace, document: str, file: UploadFile) -> Job:
    """Write the file beside its final place, and queue the job."""
    handle, path = tempfile.mkstemp(prefix=".", suffix=Path(document).suffix, dir=upload_folder(workspace))
    kept = Path(path)
    try:
        with os.fdopen(handle, "wb") as out:
            while part := file.file.read(1 << 20):
                out.write(part)
        return service.jobs.upload(name, document, kept)
    except OSError as error:
        kept.unlink(missing_ok=True)
        raise RefusedError(503, f"the file could not be kept: {error.strerror}") from error
    except RefusedError:
        kept.unlink(missing_ok=True)
        raise


@router.get("/v1/documents/jobs/{job_id}")
def job(job_id: str, request: Request) -> JobResponse:
    """The state of an upload or a removal."""
    return _shown(service_of(request).jobs.get(job_id))


@router.delete("/v1/documents/{document_id:path}", status_code=202)
def delete(document_id: str, request: Request, workspace: WorkspaceName = None) -> JobResponse:
    """Remove a document. Its pages are not found any more when the job is done."""
    service = _writable(request)
    name, opened = service.models.workspace(workspace)
    if document_id not in {row.id for row in _rows(opened)}:
        raise RefusedError(404, "no document of that id in the workspace")
    return _shown(service.jobs.delete(name, document_id))


def _writable(request: Request) -> Service:
    service = service_of(request)
    if service.settings.read_only:
        raise RefusedError(403, "this server is read-only; add and remove documents where the workspace is written")
    return service


def _shown(one: Job) -> JobResponse:
    return JobResponse(**dataclasses.asdict(one))
