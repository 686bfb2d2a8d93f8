"""What the scoring thread computes: searches in a workspace, and scores of documents for a query."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from mmrr.api import Hit, Search, Workspace
from mmrr.documents.image_input import read_image
from mmrr.errors import MmrrError, UnsupportedQueryError
from mmrr.modeling.loaded import Loaded
from mmrr.reranker import Reranker
from mmrr.search.passages import Passage
from mmrr.serve.errors import RefusedError, log
from mmrr.serve.inputs import Given
from mmrr.serve.settings import Settings
from mmrr.types import Page, Query


@dataclass(frozen=True, slots=True)
class RankTask:
    """A query and the documents to score for it."""

    query: Query
    documents: tuple[Given, ...]


@dataclass(frozen=True, slots=True)
class SearchTask:
    """A question. All tasks of a group have the same workspace and the same options."""

    query: Query
    with_text: bool
    with_snippets: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a question."""

    hits: list[Hit]
    texts: list[str | None] = field(default_factory=list)  # of each hit
    passages: list[Passage | None] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)


class Models:
    """The workspaces and the reranker of a server. Its generators run in the scoring thread."""

    def __init__(self, settings: Settings, workspaces: dict[str, Workspace], loaded: Loaded) -> None:
        self._settings, self._workspaces, self._loaded = settings, workspaces, loaded
        self._reranker: Reranker | None = None
        self._stack = ExitStack()

    def close(self) -> None:
        """Close the folder of the images' caches."""
        self._stack.close()

    def workspace(self, name: str | None) -> tuple[str, Workspace]:
        """A workspace by its name; None: the default one. Raises RefusedError for an unknown name."""
        if not self._workspaces:
            raise RefusedError(404, "this server has no workspace; it only scores documents that a request brings")
        chosen = next(iter(self._workspaces)) if name is None else name
        if chosen not in self._workspaces:
            raise RefusedError(404, f"no workspace of that name; this server has {', '.join(self._workspaces)}")
        return chosen, self._workspaces[chosen]

    @property
    def name(self) -> str:
        """The name of the reranker's checkpoint; "" before it is known."""
        return self._reranker.model if self._reranker else self._settings.scorer_model or ""

    def warm_up(self, _: Sequence[None]) -> Generator[None, None, Sequence[None]]:
        """Load what the first requests need."""
        for name, workspace in self._workspaces.items():
            try:
                workspace.search("warm-up", top_k=1)
            except MmrrError as error:
                log.warning("workspace %s: %s", name, error)
            yield
        try:
            self.reranker()
        except RefusedError as error:
            log.warning("%s", error.message)
        return [None]

    def reranker(self) -> Reranker:
        """The reranker, loaded once. Raises RefusedError if there is none."""
        if self._reranker is None:
            settings = self._settings
            model, scorer, revision = settings.scorer_model, settings.scorer, settings.scorer_revision
            options: dict[str, object] = {}
            dtype = settings.machine.dtype
            if model is None:
                cached = next(iter(self._workspaces.values())).cached_as() if self._workspaces else None
                if cached is None:
                    raise RefusedError(
                        409, "this server has no reranker; its operator runs mmrr precache or passes --scorer-model"
                    )
                scoring, dtype = cached.scoring, cached.dtype
                model, revision, scorer = scoring.model.name, scoring.model.revision, scoring.family
                options = dict(scoring.options)
            self._reranker = Reranker(
                model,
                scorer=scorer,
                revision=revision,
                device=settings.machine.device,
                dtype=dtype,
                options=options,
                memory=settings.machine.resident or 1 << 30,
                max_tokens=settings.render.max_tokens,
                loaded=self._loaded,
            )
            if settings.image_cache:
                self._stack.enter_context(self._reranker.cache(settings.image_cache))
        return self._reranker

    # Searches

    def searching(self, workspace: Workspace, options: Search) -> Any:
        """The computation of ``SearchTask`` with these options. Any: a ``batching.Compute``."""

        def compute(tasks: Sequence[SearchTask]) -> Generator[None, None, Sequence[Found | Exception]]:
            together = _search(workspace, options, list(dict.fromkeys(task.query for task in tasks)))
            if any(isinstance(found, MmrrError) for found in together.values()) and len(together) > 1:
                for query in together:  # each alone: one of them is refused
                    yield
                    together |= _search(workspace, options, [query])
            yield from ()
            return [_found(workspace, together[task.query], task) for task in tasks]

        return compute

    # Scores

    def ranking(self, workspace: Workspace | None) -> Any:
        """The computation of ``RankTask``: the logits of its documents. Any: a ``batching.Compute``."""

        def compute(tasks: Sequence[RankTask]) -> Generator[None, None, Sequence[list[float] | Exception]]:
            reranker = self.reranker()
            refused = [reranker.refusal(task.query) for task in tasks]
            able = [task for task, error in zip(tasks, refused, strict=True) if error is None]
            cached = iter(self._cached(workspace, reranker, able))
            yield
            answers: list[list[float] | Exception] = []
            for task, error in zip(tasks, refused, strict=True):
                if error:
                    answers.append(RefusedError(400, f"query: {error}"))
                    continue
                known = next(cached)
                try:
                    answers.append((yield from self._score(reranker, workspace, task, dict(known))))
                except (MmrrError, RefusedError) as problem:
                    answers.append(problem)
            return answers

        return compute

    def _cached(
        self, workspace: Workspace | None, reranker: Reranker, tasks: Sequence[RankTask]
    ) -> list[dict[int, float]]:
        """The logits of the documents that are pages with caches of this reranker, by their place in the request.

        Pages that several requests share are read once. A listwise scorer scores a list as a whole.
        """
        none: list[dict[int, float]] = [{} for _ in tasks]
        if workspace is None or not workspace.caches_of(reranker.made):
            return none
        asked = []
        for task in tasks:
            places = [i for i, given in enumerate(task.documents) if given.kind == "page"]
            asked.append([] if reranker.listwise and len(places) < len(task.documents) else places)
        pairs = [
            (task.query, [str(task.documents[i].value) for i in places])
            for task, places in zip(tasks, asked, strict=True)
        ]
        try:
            scores = workspace.score_many(pairs)
        except MmrrError as error:  # a damaged cache was set aside: the pages are read instead
            log.warning("%s", error)
            return none
        return [dict(zip(places, found, strict=True)) for places, found in zip(asked, scores, strict=True)]

    def _score(
        self, reranker: Reranker, workspace: Workspace | None, task: RankTask, known: dict[int, float]
    ) -> Generator[None, None, list[float]]:
        places = [i for i in range(len(task.documents)) if i not in known]
        step = self._settings.limits.step
        pages: dict[int, Image.Image | str] = {}
        for first in range(0, len(places), step):
            some = places[first : first + step]
            read = {i: _page(task.documents[i], i, reranker, workspace) for i in some}
            if reranker.listwise:
                reranker.prepare(list(read.values()))
                pages |= read
            else:
                scores = reranker.predict([(task.query, page) for page in read.values()], logits=True)
                known |= zip(some, scores.tolist(), strict=True)
            yield
        if pages:
            scores = reranker.predict([(task.query, page) for page in pages.values()], logits=True)
            known |= zip(pages, scores.tolist(), strict=True)
        return [known[i] for i in range(len(task.documents))]


def _search(
    workspace: Workspace, options: Search, queries: list[Query]
) -> dict[Query, list[Hit] | MmrrError | RefusedError]:
    try:
        return dict(zip(queries, workspace.search_many(queries, options), strict=True))
    except MmrrError as error:
        if len(queries) > 1 and any(query.image for query in queries):
            return dict.fromkeys(queries, error)  # each is asked alone: it may be refused for its image
        if options.first_stage is not None or options.channels is not None or isinstance(error, UnsupportedQueryError):
            text = str(error).replace(str(workspace.path), "the workspace")
            return dict.fromkeys(queries, RefusedError(400, text))
        return dict.fromkeys(queries, error)


def _found(workspace: Workspace, hits: list[Hit] | Exception, task: SearchTask) -> Found | Exception:
    if isinstance(hits, Exception):
        return hits
    ids = [hit.page_id for hit in hits]
    try:
        return Found(
            hits,
            [workspace.text(page_id) if task.with_text else None for page_id in ids],
            list(workspace.passages(task.query.text, ids)) if task.with_snippets else [None] * len(ids),
            [workspace.page(page_id) for page_id in ids],
        )
    except MmrrError as error:
        return error


def _page(given: Given, i: int, reranker: Reranker, workspace: Workspace | None) -> Image.Image | str:
    """What the reranker reads of a document. Raises RefusedError for a document that it cannot read."""
    if given.kind == "page":
        if workspace is None:
            raise RefusedError(404, f"documents.{i}: this server has no workspace, so it knows no page")
        page_id = str(given.value)
        return workspace.text(page_id) if reranker.reads == "text" else workspace.image(page_id)
    if given.kind != reranker.reads:
        wanted = "page images" if reranker.reads == "image" else "texts of pages"
        raise RefusedError(
            400, f"documents.{i}: found {given.kind}, and the model of this server, {reranker.model}, reads {wanted}"
        )
    if isinstance(given.value, str):
        return given.value
    try:
        return read_image(given.value, reranker.max_tokens)
    except MmrrError as error:
        raise RefusedError(400, f"documents.{i}: {error}") from None
