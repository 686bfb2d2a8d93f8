"""The Python API: a workspace, and what it finds. The command line does the same with the same artifacts.

Nothing here prints, sets up logging or changes the state of torch.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from mmrr import adding, answering, evidence, pipeline, removal, viewing
from mmrr.config import Index, Machine, Model, Render, Rerank, Retrieve, Scope
from mmrr.context import Context
from mmrr.errors import MmrrError
from mmrr.evaluation.comparison import Comparison
from mmrr.evidence import Evidence as Evidence
from mmrr.hits import Hit as Hit
from mmrr.hits import Hits as Hits
from mmrr.hits import hits_of
from mmrr.indexing import Indexing, text_embedding
from mmrr.indexing import check as check_indexing
from mmrr.modeling.loaded import Loaded
from mmrr.queries import QueryLike, as_query
from mmrr.search.passages import Passage
from mmrr.search_options import Search as Search
from mmrr.types import KeptTokens, Page, Progress, Query, silent
from mmrr.viewing import PageWords, WordReader
from mmrr.workspace import changes, manifests, selection, store
from mmrr.workspace import metadata as described
from mmrr.workspace.changes import Changes
from mmrr.workspace.manifests import DocumentEntry
from mmrr.workspace.pages import Collection, page_row, read_image, read_image_file, read_texts
from mmrr.workspace.read_only import ReadOnlyWorkspace
from mmrr.workspace.store import Manifest

#: Bytes of page caches that stay in memory between the searches of a workspace, unless a ``Machine`` says otherwise.
RESIDENT = 1 << 30


@dataclass(frozen=True, slots=True)
class Indexed:
    """The collection after ``Workspace.index``."""

    pages: int
    documents: list[DocumentEntry]  # each with its status; "ok" if it was read completely
    changes: Changes


class Workspace:
    """An open workspace. Models and indexes stay in memory until it is closed.

    Methods may be called from several threads; they run one after another.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        create: bool = False,
        machine: Machine | None = None,
        progress: Progress = silent,
        notice: Callable[[str], None] = lambda line: None,
        loaded: Loaded | None = None,
        steady: bool = False,
        read_only: bool = False,
    ) -> None:
        """Open a workspace, or make one with ``create``.

        The parameters ``progress`` and ``notice`` get what a command shows. Workspaces and rerankers with the same
        ``loaded`` share their models; one thread at a time may then use them. With ``steady``, searches follow the
        newest index whose pages have caches: while another command adds documents, they find the collection as it was.
        With ``read_only`` nothing is written into the folder. Raises MmrrError if there is no workspace.
        """
        self._stack = ExitStack()
        found = store.Workspace.open(Path(folder), create=create and not read_only)
        opened = self._stack.enter_context(ReadOnlyWorkspace(found.root, notice) if read_only else found)
        self._context = Context(opened, machine or Machine(resident=RESIDENT), progress, {}, notice, loaded or Loaded())
        self._shares, self._steady = loaded is not None, steady
        self._last: dict[str, str] = {}  # with ``steady``: the artifacts that searches follow
        self._lock = threading.RLock()
        self._words = WordReader(self._context.machine)
        self._stack.callback(self._words.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if not self._shares:
            self._context.loaded.clear()

    def close(self) -> None:
        """Free the models. A later call of another method fails."""
        self.__exit__(None, None, None)

    def beside(self, progress: Progress = silent) -> Workspace:
        """Another handle of this open workspace, for another thread. Closing it closes nothing.

        Both use the same models: the caller sees to it that one thread at a time runs them.
        """
        other = copy.copy(self)
        other._context = dataclasses.replace(self._context, progress=progress)
        other._stack, other._lock = ExitStack(), threading.RLock()
        other._shares, other._steady = True, False
        return other

    # What is in it

    @property
    def path(self) -> Path:
        """The workspace's folder."""
        return self._context.workspace.root

    def documents(self) -> list[DocumentEntry]:
        """The documents of the index, each with its status. Raises MmrrError if there is no index."""
        return manifests.documents(self._collection().manifest)

    def pages(self, document: str | None = None) -> list[Page]:
        """The pages of the index, or of one document, in their order."""
        collection = self._collection()
        if document is None:
            return collection.whole_pages()
        return collection.whole_pages(self._document(collection, document))

    def page_ids(self) -> KeysView[str]:
        """The ids of all pages; ``in`` takes no time."""
        return self._collection().images.keys()

    def page(self, page_id: str) -> Page:
        """A page. Raises MmrrError for a page that is not in the index."""
        collection = self._collection()
        return collection.pages[page_row(collection, page_id)]

    def metadata(self, document: str) -> dict[str, str | int | float]:
        """What ``index`` stored about a document, such as ``{"year": 2021}``."""
        collection = self._collection()
        doc_id = self._document(collection, document)
        return described.shown(described.of(collection.manifest).get(doc_id, {}))

    def documents_where(self, where: str) -> list[str]:
        """The ids of the documents whose metadata fits conditions such as ``year>=2020``.

        Raises MmrrError for conditions that are not valid, and if the index has no metadata.
        """
        return selection.documents_where(self._collection(), where)

    def image(self, page_id: str) -> Image.Image:
        """A page image in RGB. Raises MmrrError for a page that is not in the index."""
        collection = self._collection()
        return read_image(self._context.workspace, collection.pages[page_row(collection, page_id)])

    def text(self, page_id: str) -> str:
        """A page's text. Raises MmrrError for a page that is not in the index."""
        collection = self._collection()
        return read_texts(self._context.workspace, collection, [page_row(collection, page_id)])[0]

    def image_file(self, page_id: str) -> bytes:
        """The PNG file of a page image, checked against its hash. Raises MmrrError as ``image`` does."""
        collection = self._collection()
        return read_image_file(self._context.workspace, collection.pages[page_row(collection, page_id)])

    def passages(self, query: str, page_ids: Sequence[str]) -> list[Passage]:
        """The passage of each page's text that answers a query best. Raises MmrrError for an unknown page."""
        return viewing.passages(self._now(), query, page_ids)

    def kept(self, page_id: str) -> KeptTokens | None:
        """The visual tokens of a page that pruning kept for the reranker; None if nothing was pruned."""
        return viewing.kept(self._now(), page_id)

    def words(self, page_id: str, query: str = "") -> PageWords:
        """The words of a page's text layer, where they are on its image, and which of them are words of the query.

        The document's own file is read in a helper process, if it is still there and unchanged; else there is a reason.
        """
        return viewing.words(self._now(), self._words, page_id, query)

    # What is made

    def index(
        self,
        *documents: str | Path,
        embedder: str | None = None,
        embedder_revision: str | None = None,
        embed_options: Mapping[str, object] | None = None,
        text_embedder: str | None = None,
        text_options: Mapping[str, object] | None = None,
        render: Render | None = None,
        index: Index | None = None,
        metadata: str | Path | None = None,
        replace: bool = False,
    ) -> Indexed:
        """Add documents as ``mmrr index`` does. The parameters are its options; None: its defaults.

        Without ``text_embedder`` it is that of the current index, else minilm where it is installed; "none" for none.
        Raises MmrrError as the command does. An interrupted call continues where it stopped.
        """
        model = Model(embedder, embedder_revision) if embedder else None
        with self._lock:
            text = text_embedding(self._context, text_embedder, options=_texts(text_options))
            indexing = Indexing(model, _texts(embed_options), text.model, text.options, index or Index())
            found = pipeline.render_documents(
                self._context,
                [Path(one) for one in documents],
                render or Render(),
                replace=replace,
                check=lambda: check_indexing(self._context, indexing),
                described=None if metadata is None else Path(metadata),
            )
            pipeline.index_pages(self._context, found.manifest, indexing)
        content = manifests.content(found.manifest, "pages")
        return Indexed(content["pages"], content["documents"], found.changes)

    def precache(
        self,
        scorer_model: str,
        *,
        scorer: str = "minireranker",
        scorer_revision: str | None = None,
        keep: float | None = None,
        options: Mapping[str, object] | None = None,
    ) -> Path:
        """Read every page once with the reranker, as ``mmrr precache`` does. Returns the artifact's folder."""
        scoring = pipeline.Scoring(scorer, Model(scorer_model, scorer_revision), _texts(options), keep)
        with self._lock:
            return pipeline.precache_pages(self._context, scoring).path

    def add(self, *documents: str | Path, render: Render | None = None) -> Indexed:
        """Add documents with the models of the current index and page caches.

        Searches of other processes find the collection as it was until pages, index and page caches are complete; then
        all of them change together. Raises MmrrError as ``index`` and ``precache`` do.
        """
        with self._lock:
            found = adding.add_documents(self._context, [Path(one) for one in documents], render or Render())
        content = manifests.content(found.manifest, "pages")
        return Indexed(content["pages"], content["documents"], found.changes)

    def remove(self, *documents: str) -> Changes:
        """Take documents out of the collection, the index and the page caches. No model runs.

        Raises MmrrError for a name that is not in the collection, and if no document would be left.
        """
        with self._lock:
            return removal.remove_documents(self._context, documents).collected.changes

    def document_at(self, path: Path) -> str | None:
        """The id of the document that was read from this file or folder."""
        pages = self._context.workspace.current("pages")
        known = changes.places(pages).items()
        return next((doc_id for doc_id, place in known if place.path == path.absolute()), None)

    def file_of(self, document: str) -> Path | None:
        """The file or folder that the document with this id was read from; None if it is not recorded."""
        found = changes.places(self._context.workspace.current("pages")).get(document)
        return found.path if found else None

    def cached_as(self) -> adding.Cached | None:
        """How the page caches were made; None if there are none."""
        return adding.cached_as(self._now())

    def caches_of(self, made: Callable[[Manifest], bool]) -> bool:
        """Whether the pages of the index have caches for which ``made`` is true, such as ``Reranker.made``."""
        context = self._now()
        cached = context.find_current("precache")
        return cached is not None and self._has_caches(context) and made(cached)

    # What is found

    def search(self, query: QueryLike, options: Search | None = None, **named: object) -> Hits:
        """The best pages for a question. ``named`` are fields of ``Search``: ``ws.search("...", top_k=5)``.

        A question is a text, an image (a path, the bytes of a file or a Pillow image), or both:
        ``ws.search({"text": "the same for 2021", "image": "table.png"})``. Raises MmrrError for an unknown option, an
        empty question, an image that cannot be read or searched for, and a missing index.
        """
        return self.search_many([query], options, **named)[0]

    def search_many(self, queries: Sequence[QueryLike], options: Search | None = None, **named: object) -> list[Hits]:
        """The best pages of each question, in order. Questions are scored together, so that a page is read once."""
        how = (options or Search()).updated(named)
        if not queries:
            return []
        with self._lock:
            asked = list(self._asked(queries, how.document))
            scope: Scope = "document" if how.document is not None else "corpus"
            context = self._now()
            reranks = how.rerank or (how.rerank is None and self._has_caches(context))
            answer = answering.answer(
                context,
                asked,
                Retrieve(how.first_stage, scope, how.candidates, how.channels),  # type: ignore[arg-type]  # checked by _with
                _texts(how.search_options),
                Rerank(fuse=how.fuse) if reranks else None,
                _texts(how.score_options),
                self._documents(context, how.documents, how.where),
            )
            return [hits_of(self, answer, query)[: how.top_k] for query in asked]

    def score_many(self, asked: Sequence[tuple[QueryLike, Sequence[str]]]) -> list[list[float]]:
        """The logits of the pages with these ids for each (question, page ids), from the page caches.

        A page that several questions share is read once. Raises MmrrError for a page that is not in the index and if
        there are no page caches.
        """
        # Ids are made unique here: those of the caller may repeat.
        pairs = [(dataclasses.replace(as_query(one), query_id=f"q{i}"), ids) for i, (one, ids) in enumerate(asked)]
        with self._lock:
            return answering.scores(self._now(), pairs)

    def explain(
        self,
        query: str | Query,
        page_id: str,
        *,
        word: int | str | None = None,
        source: str | None = None,
        layer: int | None = None,
    ) -> Evidence:
        """Where a page's score comes from: a heat map over its visual tokens. Nothing is written.

        ``word``: the number of a word of the query, from 0, or the word; None: the whole query. ``source``:
        ``embedder`` or ``reranker``; None: the reranker if its page caches have evidence. ``layer``: of the reranker's
        layers that see the page, from 0; None: their sum. Raises MmrrError for a page that is not in the index, and if
        the workspace has no such source, word or layer, and for a query with an image.
        """
        if isinstance(query, Query) and query.image:
            raise MmrrError("found a query with an image; expected a text: evidence is of words")
        text = query.text if isinstance(query, Query) else query
        if isinstance(query, Query) and query.image is not None:
            raise MmrrError("found a query with an image; expected text: evidence belongs to the words of a query")
        with self._lock:
            return evidence.explain(self._now(), text, page_id, word=word, source=source, layer=layer)

    def report(
        self,
        output: str | Path,
        qrels: str | Path,
        *,
        queries: str | Path | None = None,
        runs: Sequence[str | Path] = (),
        measures: Sequence[str] | None = None,
        failures: int = 30,
    ) -> Comparison:
        """Write one HTML file on rankings, as ``mmrr report`` does. Returns the measures that it shows.

        The parameters are its options. The first of ``runs`` is the baseline; without runs, the current ranking is
        compared with its first stage. Raises MmrrError as the command does.
        """
        from mmrr.reporting import asking, page  # imported here because Jinja and SciPy take half a second

        with self._lock:
            files = asking.Files(Path(qrels), Path(queries) if queries else None, [Path(one) for one in runs])
            found, _ = page.write(self._context, asking.ask(self._context, files, measures, failures), Path(output))
        return found.comparison

    def _asked(self, queries: Sequence[QueryLike], document: str | None) -> Iterator[Query]:
        doc_id = self._document(self._collection(), document) if document is not None else None
        for i, query in enumerate(queries):
            try:
                one = as_query(query)
            except MmrrError as error:
                raise MmrrError(f"question {i + 1}: {error}") from error
            # Ids are made unique here: those of the caller may repeat.
            yield dataclasses.replace(one, query_id=f"q{i}", doc_id=doc_id or one.doc_id)

    @staticmethod
    def _has_caches(context: Context) -> bool:
        cached = context.find_current("precache")
        return cached is not None and cached.inputs["pages"] == context.current("index").inputs["pages"]

    def _collection(self) -> Collection:
        context = self._now()
        return context.collection(context.current("index"))

    def _now(self) -> Context:
        """The context of a call: with ``steady``, the newest index whose pages have caches, if there was one."""
        if not self._steady:
            return self._context
        index, cached = (self._context.find_current(stage) for stage in ("index", "precache"))
        if index and cached and index.inputs["pages"] == cached.inputs["pages"]:
            self._last = {"index": index.fingerprint, "precache": cached.fingerprint}
        return dataclasses.replace(self._context, chosen=self._last)

    def _documents(self, context: Context, names: Sequence[str] | None, where: str | None) -> list[str] | None:
        if names is None and where is None:
            return None
        collection = context.collection(context.current("index"))
        found = list(collection.rows) if names is None else [self._document(collection, name) for name in names]
        if where is None:
            return found
        fit = set(selection.documents_where(collection, where))
        return [doc_id for doc_id in found if doc_id in fit]

    @staticmethod
    def _document(collection: Collection, name: str) -> str:
        return changes.find(collection.manifest, name)


def open(  # mmrr.open is the name that users expect
    folder: str | Path,
    *,
    create: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    resident: int = RESIDENT,
    progress: Progress = silent,
) -> Workspace:
    """Open a workspace folder. With ``create`` one is made where there is none.

    The parameter ``resident`` is the most bytes of page caches that stay in memory between searches (0: none).
    Raises MmrrError if there is no workspace, or if ``create`` would write into a folder that holds other files.
    """
    return Workspace(folder, create=create, machine=Machine(device, dtype, resident=resident), progress=progress)


def _texts(options: Mapping[str, object] | None) -> dict[str, str]:
    return {name: str(value) for name, value in (options or {}).items()}
