"""The route of evidence: a heat map of a page for a query, as numbers that a page can draw."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from mmrr.api import Evidence, Workspace
from mmrr.errors import MmrrError
from mmrr.evidence import NoEvidenceError, WrongChoiceError
from mmrr.serve.errors import RefusedError
from mmrr.serve.inputs import read_query
from mmrr.serve.routes import ERRORS, WorkspaceName, expect_page
from mmrr.serve.schemas import EvidenceResponse, EvidenceWord
from mmrr.serve.service import service_of

router = APIRouter(responses=ERRORS)
Number = Annotated[int | None, Query(ge=0, le=1_000_000)]


@dataclass(frozen=True, slots=True)
class _Task:
    """A query and a page. All tasks of a group have the same workspace."""

    query: str
    page_id: str
    word: int | None
    source: str | None
    layer: int | None


@router.get("/v1/pages/{page_id:path}/evidence")
async def evidence(
    page_id: str,
    request: Request,
    q: Annotated[str, Query(description="The query.")],
    word: Annotated[Number, Query(description="The index of a word. Default: the whole query.")] = None,
    source: Annotated[
        Literal["embedder", "reranker"] | None, Query(description="Default: the reranker, if its caches have evidence.")
    ] = None,
    layer: Annotated[Number, Query(description="Of the reranker's layers that see the page. Default: all.")] = None,
    workspace: WorkspaceName = None,
) -> EvidenceResponse:
    """Where a page's score for a query comes from: a heat map over its visual tokens.

    The parameters are those of the query. ``heat`` and ``kept`` list the tokens row by row, from the top left.
    """
    service = service_of(request)
    query = read_query(q, service.settings.limits, frozenset()).text
    name, opened = service.models.workspace(workspace)
    expect_page(opened, page_id)
    task = _Task(query, page_id, word, source, layer)
    found: Evidence = await service.batcher.answer(
        "evidence", ("evidence", name), _computing(opened), task, client=service.client(request)
    )
    return EvidenceResponse(
        source=found.source,
        sources=list(found.sources),
        words=[EvidenceWord(text=one.text, index=one.index) for one in found.words],
        grid=found.heat.shape,
        heat=[round(value, 4) for value in found.heat.ravel().tolist()],
        kept=found.kept.ravel().tolist(),
    )


def _computing(workspace: Workspace) -> Any:
    """The computation of tasks of one workspace. Any: a ``batching.Compute``."""

    def compute(tasks: Sequence[_Task]) -> Generator[None, None, Sequence[Evidence | Exception]]:
        found: list[Evidence | Exception] = []
        for task in tasks:
            found.append(_explain(workspace, task))
            yield
        return found

    return compute


def _explain(workspace: Workspace, task: _Task) -> Evidence | Exception:
    try:
        return workspace.explain(task.query, task.page_id, word=task.word, source=task.source, layer=task.layer)
    except NoEvidenceError as error:
        return RefusedError(404, str(error))
    except WrongChoiceError as error:
        return RefusedError(422, str(error))
    except MmrrError as error:
        return error
