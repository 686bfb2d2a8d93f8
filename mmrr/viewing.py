"""What people look at on a page of an answer: its passage, its kept tokens, where its words are. Nothing is written."""

from __future__ import annotations

import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmrr.config import Machine
from mmrr.context import Context
from mmrr.documents import word_boxes
from mmrr.documents.discovery import source_at
from mmrr.documents.limits import Limits, PastLimitError, past_memory, past_time
from mmrr.documents.word_boxes import WordBox
from mmrr.search import languages
from mmrr.search.indexes import TEXT, read_languages
from mmrr.search.passages import Marker, Passage
from mmrr.search.words import Words
from mmrr.workers import Helper
from mmrr.workspace import changes, manifests
from mmrr.workspace.manifests import DocumentEntry
from mmrr.workspace.pages import Collection, page_row, read_texts
from mmrr.workspace.store import Manifest
from mmrr.workspace.tensors import read_kept_tokens

if TYPE_CHECKING:
    from mmrr.types import KeptTokens

#: Pages whose word boxes stay in memory.
_REMEMBERED = 64
#: People wait for a page's words.
MOST_SECONDS = 20.0
#: Between two looks at the process that reads a page, in seconds.
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class PageWords:
    """The words of a page and where they are on its image."""

    boxes: list[tuple[WordBox, bool]]  # each with whether it is a word of the query
    reason: str = ""  # why there are none


# Passages


def passages(context: Context, query: str, page_ids: Sequence[str]) -> list[Passage]:
    """The passage of each page that answers the query best. Raises MmrrError for a page that is not in the index."""
    indexed = context.current("index")
    collection = context.collection(indexed)
    rows = [page_row(collection, page_id) for page_id in page_ids]
    of_pages, marker = _marker(context, indexed, collection, query)
    texts = read_texts(context.workspace, collection, rows)
    return [marker.passage(text, of_pages[row]) for row, text in zip(rows, texts, strict=True)]


def _marker(context: Context, indexed: Manifest, collection: Collection, query: str) -> tuple[list[str], Marker]:
    """The language of each page, as the index has it, and what finds the words of a query."""

    def read() -> tuple[list[str], list[str], Words]:
        of_pages = read_languages(context.workspace.own_file(indexed, TEXT), len(collection.pages))
        frequent = languages.by_frequency(of_pages)
        return of_pages, frequent, Words(frequent)

    of_pages, frequent, words = context.kept("words of pages", indexed, read)
    return of_pages, Marker(query, frequent, words)


# Kept tokens


def kept(context: Context, page_id: str) -> KeptTokens | None:
    """The visual tokens of a page that pruning kept; None if nothing was pruned.

    They are those of the current page caches, else of the current pruning. Raises MmrrError for a page that is not in
    the index.
    """
    collection = context.collection(context.current("index"))
    row = page_row(collection, page_id)
    pruned = _pruning(context, collection)
    shard = manifests.content(pruned, "prune")["shards"].get(collection.shards[row]) if pruned else None
    if shard is None:
        return None
    return read_kept_tokens(context.workspace, shard)[collection.pages[row].number]


def _pruning(context: Context, collection: Collection) -> Manifest | None:
    cached = context.find_current("precache")
    if cached and cached.inputs["pages"] == collection.manifest.fingerprint:
        return context.workspace.find("prune", cached.inputs["prune"]) if "prune" in cached.inputs else None
    pruned = context.find_current("prune")
    return pruned if pruned and pruned.inputs["pages"] == collection.manifest.fingerprint else None


# Words


def words(context: Context, reader: WordReader, page_id: str, query: str) -> PageWords:
    """The words of a page's text layer and where they are; a reason where the file or the place is not known.

    Raises MmrrError for a page that is not in the index.
    """
    indexed = context.current("index")
    collection = context.collection(indexed)
    row = page_row(collection, page_id)
    page = collection.pages[row]
    if collection.text_shards[row] != collection.shards[row] and _by_ocr(context, collection, row):
        return PageWords([], "OCR read this page, and the places of its words are not stored")
    entry = next(one for one in manifests.documents(collection.manifest) if one["doc_id"] == page.doc_id)
    path = _file(context, collection, entry)
    if isinstance(path, str):
        return PageWords([], path)
    found = reader.read(path, page.number, (page.width_px, page.height_px), entry["sha256"])
    if isinstance(found, str):
        return PageWords([], found)
    if not found:
        return PageWords([], "the page has no text layer")
    of_pages, marker = _marker(context, indexed, collection, query)
    is_match = functools.cache(lambda text: bool(marker.places(text, of_pages[row])))
    return PageWords([(box, is_match(box.text)) for box in found])


def _by_ocr(context: Context, collection: Collection, row: int) -> bool:
    """Whether OCR read the text of a page: its shard holds only the pages that it read."""
    records = manifests.shard_record(context.workspace, "ocr", collection.text_shards[row])["pages"]
    return any(one["number"] == collection.pages[row].number for one in records)


def _file(context: Context, collection: Collection, entry: DocumentEntry) -> Path | str:
    """The PDF that a document was read from, or why it cannot be read now."""
    place = changes.places(collection.manifest).get(entry["doc_id"])
    source = source_at(entry["doc_id"], place.path) if place else None
    if place is None or source is None:
        return "the document's file is no longer where it was indexed"
    if source.kind != "pdf":
        return "an image has no text layer"
    try:
        same = context.workspace.hashes.sha256(place.path) == entry["sha256"]
    except OSError as error:
        return f"the document's file cannot be read: {error.strerror}"
    if not same:
        return "the document's file changed after it was indexed"
    if not source.is_office:
        return place.path
    converted = context.workspace.converted(entry["sha256"])
    return converted if converted.is_file() else "the PDF that was made of the document is no longer in the workspace"


class WordReader:
    """Reads word boxes in a helper process: a damaged file, or one made to do harm, ends that process alone."""

    def __init__(self, machine: Machine) -> None:
        self._limits = Limits(min(machine.page_seconds, MOST_SECONDS), machine.page_memory)
        self._helper: Helper | None = None
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, int], list[WordBox] | str] = OrderedDict()

    def read(self, path: Path, number: int, canvas: tuple[int, int], sha256: str) -> list[WordBox] | str:
        """The words of a page of the file with this content hash, or why they cannot be read."""
        key = (f"{sha256}{canvas}", number)
        with self._lock:
            if key not in self._known:
                self._known[key] = self._ask(path, number, canvas)
            self._known.move_to_end(key)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            return self._known[key]

    def _ask(self, path: Path, number: int, canvas: tuple[int, int]) -> list[WordBox] | str:
        if self._helper is None:
            self._helper = Helper(word_boxes.serve)
        helper, limits = self._helper, self._limits
        started = time.monotonic()
        try:
            helper.connection.send((path, number, canvas))
            while not helper.connection.poll(_LOOK_S):
                if time.monotonic() - started > limits.seconds:
                    raise past_time(limits, "PDFium")
                if helper.memory() > limits.memory:
                    raise past_memory(limits, "PDFium")
            found: list[WordBox] | str = helper.connection.recv()
            return found
        except (EOFError, OSError):
            self.close()
            return "the process that reads the text layer died"
        except PastLimitError as error:
            self.close()
            return str(error)

    def close(self) -> None:
        """End the process."""
        if self._helper:
            with suppress(OSError):
                self._helper.kill()
        self._helper = None
