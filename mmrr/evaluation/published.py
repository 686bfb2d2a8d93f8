"""Reading a benchmark: its documents, queries and judgements, in BEIR's shape or as pairs of a query and an image.

*BEIR's shape* has three sub-datasets: ``corpus``, ``queries`` and ``qrels``; or, for each part of a set,
``english-corpus`` and so on. *Pairs* are rows of ``query``, ``image`` and ``image_filename``, as ViDoRe v1 publishes
them. Columns are known by their published names (``corpus-id``, ``corpus_id``, ``_id``, ...).

Documents become pages of a workspace. A document of the set is page ``NAME/0007``, where NAME is its document, if
the set has a column of documents, or the name of the set. Images and texts are streamed: only a few are in memory. The
ids of a whole set are in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrr.errors import MmrrError
from mmrr.evaluation.benchmarks import Entry
from mmrr.evaluation.hub_dataset import DataSet, Table, columns_of, pictures, rows
from mmrr.evaluation.trec import read_qrels
from mmrr.types import Hit, Qrels, Query, QueryImage, Run

#: Names of columns, the first that a table has counts.
_CORPUS_ID = ("_id", "id", "corpus-id", "corpus_id", "docid")
_QUERY_ID = ("_id", "id", "query-id", "query_id", "qid")
_JUDGED_QUERY, _JUDGED_PAGE = ("query-id", "query_id", "qid"), ("corpus-id", "corpus_id", "docid")
_SCORE = ("score", "relevance")
_DOCUMENT = ("doc_id", "doc-id")
_IMAGE = ("image", "image_binary")
_TEXT = ("text", "markdown", "ocr_text", "text_description")
_QUERY_TEXT = ("text", "query", "question")
_LANGUAGE = ("language",)
_FILE = ("image_filename",)
_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
#: With a limit of N queries, at most this many documents a query are read besides the judged ones.
_OTHERS = 10

Place = tuple[str, int]  # document, number of the page from 1


@dataclass(frozen=True, slots=True)
class PublishedPage:
    """A document of the set as a page."""

    doc_id: str
    number: int  # from 1
    image: bytes | None = field(repr=False)
    text: str


@dataclass(frozen=True)
class Published:
    """An opened benchmark."""

    entry: Entry
    configs: tuple[str, ...]  # the parts that are searched; () if the set has none
    split: str
    corpus: Table
    columns: Mapping[str, bool] = field(repr=False)  # of the corpus: {column: whether it is binary}
    queries: tuple[Query, ...] = field(repr=False)
    judged: Qrels = field(repr=False)  # by ids of the set
    config_of: Mapping[str, str]  # {query_id: its part}
    places: tuple[Place | None, ...] = field(repr=False)  # of each row of the corpus; None: left out
    page_ids: Mapping[str, str] = field(repr=False)  # {id of the set: page id}
    candidates: Mapping[str, Sequence[str]] | None = field(repr=False)  # {query_id: ids of the set, best first}
    documents: bool  # whether the set says which document a page is of
    partial: str = ""  # what is left out by a limit

    @property
    def has_images(self) -> bool:
        """Whether the documents are images."""
        return _first(_IMAGE, self.columns) is not None and not self.entry.text

    @property
    def measure(self) -> str:
        """The official measure, or the usual one."""
        return self.entry.measure or ("nDCG@5" if self.has_images else "nDCG@10")

    def qrels(self) -> Qrels:
        """The judgements by page ids. Judged documents that the corpus lacks keep the id of the set: never found."""
        return {
            query_id: {self.page_ids.get(one, one): grade for one, grade in judged.items()}
            for query_id, judged in self.judged.items()
        }

    def candidate_run(self) -> Run:
        """The fixed candidates as a run by page ids, in their order."""
        found: Run = {}
        for query in self.queries:
            ids = (self.candidates or {}).get(query.query_id, ())
            pages = list(dict.fromkeys(self.page_ids[one] for one in ids if one in self.page_ids))
            found[query.query_id] = [Hit(page, float(len(pages) - at)) for at, page in enumerate(pages)]
        return found

    def pages(self) -> Iterator[PublishedPage]:
        """The documents in the order of the set, streamed.

        Raises MmrrError if a file cannot be read, and for a document with neither image nor text.
        """
        image, text = (_first(names, self.columns) for names in (_IMAGE, _TEXT))
        image = image if self.has_images else None
        title = "title" if "title" in self.columns else None
        wanted = [name for name in (text, title) if name] or [_id_column(self)]
        images = pictures(self.corpus, image) if image else itertools.repeat(None)
        for place, row, picture in zip(self.places, rows(self.corpus, wanted), images, strict=False):
            if place is None:
                continue
            parts = [str(row[name]).strip() for name in (title, text) if name and row.get(name)]
            if picture is None and not parts:
                raise MmrrError(f"{self.entry.name}: found neither image nor text of page {page_id(place)}")
            yield PublishedPage(*place, picture, "\n".join(filter(None, parts)))


def page_id(place: Place) -> str:
    """The page id of a place."""
    return f"{place[0]}/{place[1]:04d}"


def open_published(
    entry: Entry, split: str | None = None, config: str | None = None, limit: int | None = None
) -> Published:
    """Read the queries, the judgements and the ids of the documents of a benchmark.

    ``config``: the one part that is read. ``limit``: the first queries alone, over their judged documents and
    some others.
    Raises MmrrError if the set, a table or a column is missing, and for queries that are images over texts.
    """
    data = DataSet.open(entry.hub)
    split = split or entry.split
    corpus = data.table(_names("corpus", config), split)
    if corpus is None:
        return _open_pairs(entry, data, split, config, limit)
    judged = _judgements(data, split, config)
    queries, config_of = _queries(entry, data, split, config, judged)
    columns = columns_of(corpus)
    id_column = _column(corpus, columns, _CORPUS_ID)
    document = _first(_DOCUMENT, columns)
    ids = [
        (str(row[id_column]), _clean(str(row[document])) if document else "")
        for row in rows(corpus, [id_column, *([document] if document else [])])
    ]
    top = data.table(_names("top_ranked", config), split)
    candidates = _candidates(top) if top else None
    return _assembled(entry, corpus, columns, (queries, judged, config_of), ids, candidates, limit, split)


def _open_pairs(entry: Entry, data: DataSet, split: str, config: str | None, limit: int | None) -> Published:
    """A set of pairs, read as ViDoRe's own evaluation does.

    Images are distinct by their file names, queries by their text; a query that comes again is judged by its last row.
    """
    table = data.table((config,) if config else ("default",), split)
    if table is None:
        parts = ", ".join(name.removesuffix("-corpus") for name in data.names if name.endswith("-corpus"))
        if parts:
            raise MmrrError(f"{entry.name} has a corpus for each of {parts}; choose one with --config")
        raise MmrrError(
            f"{entry.name}: found no corpus, and no rows of query and image; expected sub-datasets corpus, queries and "
            f"qrels, or pairs (found: {', '.join(data.names) or 'no sub-dataset'})"
        )
    columns = columns_of(table)
    text, image, file = _column(table, columns, _QUERY_TEXT[1:]), _first(_IMAGE, columns), _first(_FILE, columns)
    if image is None:
        raise MmrrError(f"{entry.name}: found no column image in {table.name}, expected rows of query and image")
    ids: list[tuple[str, str]] = []
    queries: dict[str, Query] = {}
    judged: Qrels = {}
    for n, row in enumerate(rows(table, [text, *([file] if file else [])]), 1):
        ids.append((str(row[file]) if file else str(n), ""))
        asked = row[text]
        if isinstance(asked, str) and asked.strip():
            query = queries.setdefault(asked, Query(f"q{n}", asked))
            judged[query.query_id] = {ids[-1][0]: 1}
    return _assembled(
        entry, table, columns, (list(queries.values()), judged, {}), ids, None, limit, split, repeated=True
    )


def _assembled(
    entry: Entry,
    corpus: Table,
    columns: Mapping[str, bool],
    asked: tuple[list[Query], Qrels, dict[str, str]],
    ids: Sequence[tuple[str, str]],
    candidates: Mapping[str, Sequence[str]] | None,
    limit: int | None,
    split: str,
    *,
    repeated: bool = False,
) -> Published:
    """The benchmark of these parameters: ``asked`` are queries, judgements and parts; ``ids`` the id and the document
    of each row; ``repeated``: an id may come again, and its first row counts.
    """
    queries, judged, config_of = asked
    if not queries:
        raise MmrrError(f"{entry.name}: found no judged query in split {split}")
    n_queries, partial = len(queries), ""
    if limit is not None and limit < n_queries:
        queries = queries[:limit]
        judged = {query.query_id: judged[query.query_id] for query in queries}
        config_of = {name: config_of[name] for name in judged if name in config_of}
    kept = _kept(ids, judged, candidates, len(queries)) if limit is not None else None
    name = _clean(entry.name.rstrip("/").rpartition("/")[2]) or "set"
    places: list[Place | None] = []
    page_ids: dict[str, str] = {}
    numbers: Counter[str] = Counter()
    for one, document in ids:
        document = document or name
        numbers[document] += 0 if repeated and one in page_ids else 1
        if one in page_ids:
            if not repeated:
                raise MmrrError(f"{entry.name}: the corpus has the id {one[:80]!r} again, expected each id once")
            places.append(None)
            continue
        place = (document, numbers[document])
        page_ids[one] = page_id(place)
        places.append(place if kept is None or one in kept else None)
    if kept is not None:
        page_ids = {one: page for one, page in page_ids.items() if one in kept}
        partial = f"{len(queries)} of {n_queries} queries over {len(page_ids)} of {len(set(ids))} documents"
    if entry.text and any(query.image for query in queries):
        raise MmrrError(f"{entry.name} asks with images for texts, which no search and no scorer here ranks")
    documents = bool(ids and ids[0][1])
    configs = tuple(dict.fromkeys(config_of[query.query_id] for query in queries if query.query_id in config_of))
    head = (entry, configs, split, corpus, columns)
    parts = (tuple(queries), judged, config_of, tuple(places), page_ids)
    return Published(*head, *parts, candidates, documents, partial)


def _kept(
    ids: Sequence[tuple[str, str]], judged: Qrels, candidates: Mapping[str, Sequence[str]] | None, n: int
) -> set[str]:
    """The ids that a quick look reads: the judged ones, the candidates, and the first others."""
    kept = {one for of_query in judged.values() for one in of_query}
    for query_id in judged:
        kept.update((candidates or {}).get(query_id, ()))
    return kept | {one for one, _ in ids[: _OTHERS * n]}


def _names(kind: str, config: str | None) -> tuple[str, ...]:
    """The names that a sub-dataset may have. mteb publishes judgements as ``default``."""
    of_config = (f"{config}-{kind}", f"{kind}-{config}") if config else ()
    return (*of_config, kind, *(("default",) if kind == "qrels" else ()))


def _judgements(data: DataSet, split: str, config: str | None) -> Qrels:
    table = data.table(_names("qrels", config), split)
    if table is None:
        raise MmrrError(f"{data.data}: found no qrels, expected judgements besides the corpus")
    if table.format == "trec":
        from pathlib import Path

        return read_qrels(Path(table.files[0]))
    columns = columns_of(table)
    query, page, score = (_column(table, columns, names) for names in (_JUDGED_QUERY, _JUDGED_PAGE, _SCORE))
    qrels: Qrels = {}
    for row in rows(table, (query, page, score)):
        qrels.setdefault(_clean(str(row[query])), {})[str(row[page])] = int(row[score])
    return qrels


def _queries(
    entry: Entry, data: DataSet, split: str, config: str | None, judged: Qrels
) -> tuple[list[Query], dict[str, str]]:
    """The judged queries in the order of the set, and the part of each. Judgements of other queries are dropped."""
    table = data.table(_names("queries", config), split)
    if table is None:
        raise MmrrError(f"{entry.name}: found no queries, expected them besides the corpus")
    columns = columns_of(table)
    query_id, text = _column(table, columns, _QUERY_ID), _first(_QUERY_TEXT, columns)
    image = _first(_IMAGE, columns) if entry.image_queries or text is None else None
    if text is None and image is None:
        raise MmrrError(f"{entry.name}: found no text and no image of the queries, found {', '.join(columns)}")
    language = _first(_LANGUAGE, columns) if table.name == "queries" else None
    wanted = {config} if config else set(entry.configs)
    queries: dict[str, Query] = {}
    config_of: dict[str, str] = {}
    found: set[str] = set()
    read = rows(table, [query_id, *(name for name in (text, language) if name)])
    for row, picture in zip(read, pictures(table, image) if image else itertools.repeat(None), strict=False):
        part = str(row[language]) if language else config
        found.add(part or "")
        name = _clean(str(row[query_id]))
        if name not in judged or (language and wanted and part not in wanted):
            continue
        if name in queries:
            raise MmrrError(f"{entry.name}: the query id {name} comes again, expected each id once")
        asked = str((row[text] if text else "") or "").strip()
        shown = QueryImage(hashlib.sha256(picture).hexdigest(), picture) if picture else None
        if not asked and shown is None:
            raise MmrrError(f"{entry.name}: found neither text nor image of query {name}")
        queries[name] = Query(name, asked, image=shown)
        if part:
            config_of[name] = part
    if not queries and config:
        raise MmrrError(f"{entry.name} has no part {config}, expected one of {', '.join(sorted(found)) or 'none'}")
    for name in judged.keys() - queries.keys():
        del judged[name]
    return list(queries.values()), config_of


def _candidates(table: Table) -> dict[str, list[str]]:
    columns = columns_of(table)
    query, ranked = _column(table, columns, _JUDGED_QUERY), _column(table, columns, ("corpus-ids", "corpus_ids"))
    return {_clean(str(row[query])): [str(one) for one in row[ranked]] for row in rows(table, (query, ranked))}


def _id_column(published: Published) -> str:
    """Any column whose rows are the rows of the corpus."""
    names = (*_CORPUS_ID, *_FILE, *_QUERY_TEXT)
    return _column(published.corpus, published.columns, names)


def _first(names: Sequence[str], columns: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in columns), None)


def _column(table: Table, columns: Mapping[str, Any], names: Sequence[str]) -> str:
    found = _first(names, columns)
    if found is None:
        raise MmrrError(f"{table.name}: expected a column {' or '.join(names)}, found {', '.join(columns)}")
    return found


def _clean(name: str) -> str:
    """An id without white space."""
    return _BLANK.sub("_", name.strip())
