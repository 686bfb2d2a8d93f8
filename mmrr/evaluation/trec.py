"""Files of runs, qrels and queries: the two TREC formats and JSON Lines.

An error names the file, the line, what was found and what was expected. No reader guesses. Text is data: a query keeps
all its characters, including strings that look like control tokens of a model.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from mmrr.errors import MmrrError
from mmrr.types import Qrels, Query, Run, rank

_ID_KEYS = ("query_id", "_id", "qid", "id")
_TEXT_KEYS = ("text", "query")
_BOM = "\ufeff"


def read_run(path: Path) -> Run:
    """Read a TREC run: ``query_id Q0 page_id rank score tag``, separated by whitespace.

    Hits are sorted by score, ties by page id. The rank must be a number but is not used, as in trec_eval. Queries keep
    the order of their first line.

    Raises MmrrError for a file that is missing, empty or not UTF-8, for a line with another number of columns, for a
    rank or score that is not a number, and for a page that occurs twice in a query.
    """
    scores: dict[str, dict[str, float]] = {}
    for n, line in lines(path):
        query_id, _, page_id, position, number, _ = _columns(path, n, line, "query_id Q0 page_id rank score tag")
        _number(path, n, "rank", position)
        score = _number(path, n, "score", number)
        pages = scores.setdefault(query_id, {})
        if page_id in pages:
            _fail(path, n, f"{page_id} is already ranked for query {query_id}; expected each page once")
        pages[page_id] = score
    return {query_id: rank(pages) for query_id, pages in scores.items()}


def write_run(run: Run, file: TextIO, tag: str = "mmrr") -> None:
    """Write a TREC run with ranks from 1. Scores have full precision (``repr``): ``read_run`` returns the same run.

    Raises MmrrError for an id or tag with whitespace and for a score that is not a number.
    """
    _check_id(tag, "tag")
    for query_id, hits in run.items():
        _check_query_id(query_id)
        for hit in hits:
            _check_id(hit.page_id, "page_id")
            if math.isnan(hit.score):
                raise MmrrError(f"query {query_id}: the score of {hit.page_id} is NaN, expected a number")
        ordered = sorted(hits, key=lambda hit: (-hit.score, hit.page_id))
        file.writelines(
            f"{query_id} Q0 {page_id} {position} {float(score)!r} {tag}\n"
            for position, (page_id, score) in enumerate(ordered, 1)
        )


def read_qrels(path: Path) -> Qrels:
    """Read TREC judgements: ``query_id 0 page_id relevance``, relevance a whole number; above 0 means relevant.

    Raises MmrrError as ``read_run`` does.
    """
    qrels: Qrels = {}
    for n, line in lines(path):
        query_id, _, page_id, relevance = _columns(path, n, line, "query_id 0 page_id relevance")
        pages = qrels.setdefault(query_id, {})
        if page_id in pages:
            _fail(path, n, f"{page_id} is already judged for query {query_id}; expected each page once")
        try:
            pages[page_id] = int(relevance)
        except ValueError:
            _fail(path, n, f"found the relevance {relevance!r}, expected a whole number")
    return qrels


def write_qrels(qrels: Qrels, file: TextIO) -> None:
    """Write TREC judgements. Raises MmrrError for an id with whitespace."""
    for query_id, pages in qrels.items():
        _check_query_id(query_id)
        for page_id, relevance in pages.items():
            _check_id(page_id, "page_id")
            file.write(f"{query_id} 0 {page_id} {relevance}\n")


def read_queries(path: Path) -> list[Query]:
    """Read queries from JSON Lines, in order: one object per line with ``query_id``, ``text`` and optional ``doc_id``.

    Also accepted: ``_id``, ``qid`` or ``id`` for the id (numbers become strings), ``query`` for the text, and the
    format of RankLLM, ``{"query": {"qid": ..., "text": ...}}``. Other keys and blank lines are ignored.

    Raises MmrrError for a file that is missing, empty or not UTF-8, for a line that is not such an object, for an
    empty text, and for an id that is empty, occurs twice, or contains whitespace or control characters.
    """
    queries: dict[str, Query] = {}
    for n, line in lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            _fail(path, n, f"found no valid JSON ({error}), expected an object with query_id and text")
        if not isinstance(record, dict):
            _fail(path, n, f"found {_kind(record)}, expected an object with query_id and text")
        nested = record.get("query")
        source = nested if isinstance(nested, dict) else record
        query_id = _id(path, n, source, _ID_KEYS)
        if query_id is None:
            _fail(path, n, f"found no id, expected one of the keys {', '.join(_ID_KEYS)}")
        if query_id in queries:
            _fail(path, n, f"the id {query_id} is already used, expected each id once")
        text = next((source[key] for key in _TEXT_KEYS if source.get(key) is not None), None)
        if not isinstance(text, str) or not text.strip():
            what = "no text" if text is None else "an empty text" if isinstance(text, str) else _kind(text)
            _fail(path, n, f"found {what} for query {query_id}, expected a string under text (or query)")
        if any(unicodedata.category(char) == "Cs" for char in text):
            _fail(path, n, f"the text of query {query_id} has half of a surrogate pair, expected Unicode text")
        queries[query_id] = Query(query_id, text, _id(path, n, record, ("doc_id",)))
    return list(queries.values())


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, with the lines that are not blank. Only a line feed ends a line.

    Raises MmrrError for a file that is missing, empty or not UTF-8.
    """
    empty = True
    try:
        with path.open("rb") as file:
            for n, raw in enumerate(file, 1):
                try:
                    line = raw.decode("utf-8-sig" if n == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    _fail(path, n, f"found the byte 0x{raw[error.start]:02x}, expected text in UTF-8")
                if line.strip():
                    empty = False
                    yield n, line
    except OSError as error:
        raise MmrrError(f"cannot read {path}: {error.strerror or error}") from error
    if empty:
        raise MmrrError(f"{path.name} is empty, expected at least one line")


def _columns(path: Path, n: int, line: str, expected: str) -> list[str]:
    columns = line.split()
    if len(columns) != len(expected.split()):
        found = f"{len(columns)} column{'s' * (len(columns) != 1)}"
        _fail(path, n, f"found {found}, expected {len(expected.split())}: {expected}")
    if columns[0].startswith(_BOM):
        _fail(path, n, f"found the query_id {columns[0]!r}, expected one without a byte order mark")
    return columns


def _number(path: Path, n: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        _fail(path, n, f"found the {name} {text!r}, expected a number")
    return value


def _id(path: Path, n: int, record: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """The value of the first of ``keys`` that ``record`` has, as a string. None: it has none of them."""
    for key in keys:
        value = record.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            _fail(path, n, f"found {_kind(value)} under {key}, expected a string")
        try:
            return _check_query_id(str(value), key) if keys == _ID_KEYS else _check_id(str(value), key)
        except MmrrError as error:
            _fail(path, n, str(error))
    return None


def _check_id(value: str, name: str) -> str:
    if not value:
        raise MmrrError(f"found an empty {name}, expected a string without spaces")
    if any(char.isspace() or unicodedata.category(char) in ("Cc", "Cs") for char in value):
        raise MmrrError(f"found the {name} {value!r}, expected one without spaces and control characters")
    return value


def _check_query_id(value: str, name: str = "query_id") -> str:
    """Also refuse a byte order mark at its start: at the start of a file it would not be read as a part of the id."""
    if value.startswith(_BOM):
        raise MmrrError(f"found the {name} {value!r}, expected one without a byte order mark (U+FEFF) at its start")
    return _check_id(value, name)


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _fail(path: Path, n: int, problem: str) -> NoReturn:
    raise MmrrError(f"{path.name}, line {n}: {problem}")
