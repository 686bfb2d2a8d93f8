"""Files of runs, qrels and queries: the TREC formats, BEIR's, JSON Lines, and a question a line.

An error names the file, the line, what was found and what was expected. No reader guesses. Text is data: a query keeps
all its characters, including strings that look like control tokens of a model.
"""

from __future__ import annotations

import json
import math
import struct
import unicodedata
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from mmrr.errors import MmrrError
from mmrr.types import Hit, Qrels, Query, QueryImage, Run, rank

#: The files of a run in an artifact. ``EXACT`` exists only where ``RUN`` has other scores than mmrr computed.
RUN, EXACT = "run.trec", "scores.trec"

_ID_KEYS = ("query_id", "_id", "qid", "id")
_TEXT_KEYS = ("text", "query")
_BOM = "\ufeff"
_BEIR = ["query-id", "corpus-id", "score"]
_JUDGEMENT = "query_id 0 page_id relevance"
#: Endings that say JSON, whatever the file contains.
_JSON_ENDINGS = (".jsonl", ".json", ".ndjson")
_JSON_OBJECT = "expected an object with query_id and text"


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


def write_run(run: Run, file: TextIO, tag: str = "mmrr", *, exact: bool = False) -> bool:
    """Write a TREC run with ranks from 1. Returns whether scores were moved apart.

    trec_eval reads scores as float32 and orders equal ones by descending page id, mmrr by ascending page id. So scores
    that are equal in float32 are moved apart: each becomes the next lower float32 after the one above it. The ranking
    stays the same. The n-th of n equal scores changes most, by n - 1 steps of float32 (1.2e-7 of the score each).
    Other scores have full precision (``repr``). With ``exact`` all scores are written as they are: ``read_run`` then
    returns the same run.

    Raises MmrrError for an id or tag with whitespace, for a score that is not a number, and for equal scores below the
    range of float32.
    """
    _check_id(tag, "tag")
    moved = False
    for query_id, hits in run.items():
        _check_query_id(query_id)
        for hit in hits:
            _check_id(hit.page_id, "page_id")
            if math.isnan(hit.score):
                raise MmrrError(f"query {query_id}: the score of {hit.page_id} is NaN, expected a number")
        ordered = sorted(hits, key=lambda hit: (-hit.score, hit.page_id))
        scores = [float(hit.score) for hit in ordered] if exact else _descending(query_id, ordered)
        moved |= any(hit.score != score for hit, score in zip(ordered, scores, strict=True))
        file.writelines(
            f"{query_id} Q0 {hit.page_id} {position} {score!r} {tag}\n"
            for position, (hit, score) in enumerate(zip(ordered, scores, strict=True), 1)
        )
    return moved


def _descending(query_id: str, ordered: list[Hit]) -> list[float]:
    """The scores of a ranking, strictly descending in float32."""
    scores = [float(hit.score) for hit in ordered]
    single = array("f", scores)  # infinite beyond the range
    for i in range(1, len(scores)):
        if single[i] >= single[i - 1]:
            if single[i - 1] == -math.inf:
                raise MmrrError(f"query {query_id}: found equal scores below -3.4e38, expected scores within float32")
            scores[i] = single[i] = _next_lower(single[i - 1])
    return scores


def _next_lower(value: float) -> float:
    """The largest float32 below ``value``, a float32."""
    if value == 0:
        bits = 0x80000001
    else:
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        bits += -1 if value > 0 else 1
    (lower,) = struct.unpack("<f", struct.pack("<I", bits))
    return float(lower)


def save_run(run: Run, folder: Path) -> None:
    """Write a run into an artifact's folder: ``RUN`` for other tools and, where its scores differ, ``EXACT``."""
    with (folder / RUN).open("w", encoding="utf-8", newline="\n") as file:
        moved = write_run(run, file)
    if moved:
        with (folder / EXACT).open("w", encoding="utf-8", newline="\n") as file:
            write_run(run, file, exact=True)


def read_qrels(path: Path) -> Qrels:
    """Read judgements: TREC's, ``query_id 0 page_id relevance``, or BEIR's.

    BEIR's have three columns and the header ``query-id corpus-id score``. The relevance is a whole number; above 0
    means relevant.

    Raises MmrrError as ``read_run`` does.
    """
    qrels: Qrels = {}
    beir = separator = None
    for n, line in lines(path):
        if beir is None:
            beir = [name.lower().replace("_", "-") for name in line.split()] == _BEIR
            separator = "\t" if beir and "\t" in line else None
            if beir:
                continue
        if beir:
            query_id, page_id, relevance = _beir_columns(path, n, line, separator)
        else:
            query_id, _, page_id, relevance = _columns(path, n, line, _JUDGEMENT)
        pages = qrels.setdefault(query_id, {})
        if page_id in pages:
            _fail(path, n, f"{page_id} is already judged for query {query_id}; expected each page once")
        pages[page_id] = _relevance(path, n, relevance)
    if not qrels:
        raise MmrrError(f"{path.name}: found a header and no judgement, expected at least one")
    return qrels


def _beir_columns(path: Path, n: int, line: str, separator: str | None) -> list[str]:
    columns = [column.strip() for column in line.split(separator)]
    if len(columns) != len(_BEIR):
        _fail(path, n, f"found {len(columns)} columns, expected 3 as in the header: {' '.join(_BEIR)}")
    try:
        return [_check_query_id(columns[0]), _check_id(columns[1], "corpus-id"), columns[2]]
    except MmrrError as error:
        _fail(path, n, str(error))


def _relevance(path: Path, n: int, text: str) -> int:
    try:
        relevance = int(text)
    except ValueError:
        relevance = None
    if relevance is None or not -(2**31) <= relevance < 2**31:
        _fail(path, n, f"found the relevance {_short(text)!r}, expected a whole number of at most 10 digits")
    return relevance


def write_qrels(qrels: Qrels, file: TextIO) -> None:
    """Write TREC judgements. Raises MmrrError for an id with whitespace."""
    for query_id, pages in qrels.items():
        _check_query_id(query_id)
        for page_id, relevance in pages.items():
            _check_id(page_id, "page_id")
            file.write(f"{query_id} 0 {page_id} {relevance}\n")


def read_queries(path: Path, *, images: bool = False) -> list[Query]:
    """Read queries, in order: JSON Lines with ``query_id``, ``text`` and maybe ``doc_id``, TSV, or a question a line.

    With ``images`` JSON Lines may have ``image`` too, and then need no text: a data URI, or a path in the file's
    folder, to which it is relative. Without, this key is ignored.

    JSON Lines also accept ``_id``, ``qid`` or ``id`` for the id (numbers become strings), ``query`` for the text, and
    the format of RankLLM, ``{"query": {"qid": ..., "text": ...}}``. Other keys and blank lines are ignored. A plain
    text has the line numbers as ids; white space around a question is left out.

    A file whose name ends in .tsv has two columns, the id and the text; a header with these names is left out.

    Another file is JSON Lines if its name ends in .jsonl, .json or .ndjson, or if a line begins with a brace or the
    first line with a bracket. So a damaged line of JSON Lines is an error and never a question.

    Raises MmrrError for a file that is missing, empty or not UTF-8, for a line that is not such an object, for an
    empty text, for an image that cannot be read or is outside the folder, for an id that is empty, occurs twice, or
    contains whitespace or control characters, and for a plain text that looks like a table, a run or judgements.
    """
    numbered = list(lines(path))
    if path.suffix.lower() == ".tsv":
        return _tsv_queries(path, numbered)
    starts = [line.lstrip()[:1] for _, line in numbered]
    if path.suffix.lower() in _JSON_ENDINGS or "{" in starts or starts[0] == "[":
        return _json_queries(path, numbered, images=images)
    _refuse_tables(path, numbered)
    return [Query(str(n), line.strip()) for n, line in numbered]


def _json_queries(path: Path, numbered: list[tuple[int, str]], *, images: bool) -> list[Query]:
    queries: dict[str, Query] = {}
    for n, line in numbered:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            _fail(path, n, f"found no valid JSON ({error}), {_JSON_OBJECT}")
        if not isinstance(record, dict):
            _fail(path, n, f"found {_kind(record)}, {_JSON_OBJECT}")
        nested = record.get("query")
        source = nested if isinstance(nested, dict) else record
        query_id = _id(path, n, source, _ID_KEYS)
        if query_id is None:
            _fail(path, n, f"found no id, expected one of the keys {', '.join(_ID_KEYS)}")
        if query_id in queries:
            _fail(path, n, f"the id {query_id} is already used, expected each id once")
        text = next((source[key] for key in _TEXT_KEYS if source.get(key) is not None), None)
        image = _image(path, n, source["image"]) if images and source.get("image") is not None else None
        if image and text is None:
            text = ""
        if not isinstance(text, str) or (not text.strip() and image is None):
            what = "no text" if text is None else "an empty text" if isinstance(text, str) else _kind(text)
            _fail(path, n, f"found {what} for query {query_id}, expected a string under text (or query)")
        if any(unicodedata.category(char) == "Cs" for char in text):
            _fail(path, n, f"the text of query {query_id} has half of a surrogate pair, expected Unicode text")
        queries[query_id] = Query(query_id, text, _document(path, n, record), image)
    return list(queries.values())


def _image(path: Path, n: int, value: object) -> QueryImage:
    """The image of a query. A file outside the folder of the queries is not read, nor by a symbolic link."""
    from mmrr.queries import query_image  # Pillow: a file without images does not need it

    if not isinstance(value, str):
        _fail(path, n, f"found {_kind(value)} under image, expected the path of a file in {path.parent}")
    folder = path.resolve().parent
    try:
        inside = value[:5].lower() == "data:" or (folder / value).resolve().is_relative_to(folder)
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or links in a circle
        inside = False
    if not inside:
        _fail(path, n, f"found the image {_short(value)!r}, expected a file in the folder of {path.name}")
    try:
        return query_image(value if value[:5].lower() == "data:" else folder / value)
    except MmrrError as error:
        _fail(path, n, str(error).replace(f"{folder}/", ""))


def _tsv_queries(path: Path, numbered: list[tuple[int, str]]) -> list[Query]:
    queries: dict[str, Query] = {}
    for n, line in numbered:
        cells = [cell.strip() for cell in line.strip("\r\n").split("\t")]
        if len(cells) != 2 or not cells[1]:
            found = "no text" if len(cells) == 2 else f"{len(cells)} column{'s' * (len(cells) != 1)}"
            _fail(path, n, f"found {found}, expected query_id, a tab and the text")
        if n == numbered[0][0] and cells[0].replace("-", "_") in _ID_KEYS and cells[1] in _TEXT_KEYS:
            continue
        try:
            query_id = _check_query_id(cells[0])
        except MmrrError as error:
            _fail(path, n, str(error))
        if query_id in queries:
            _fail(path, n, f"the id {query_id} is already used, expected each id once")
        queries[query_id] = Query(query_id, cells[1])
    if not queries:
        raise MmrrError(f"{path.name}: found a header and no query, expected at least one")
    return list(queries.values())


def _refuse_tables(path: Path, numbered: list[tuple[int, str]]) -> None:
    """Raise MmrrError for a text that is no list of questions: with tabs or control characters, a run, judgements."""
    for n, line in numbered:
        control = next((char for char in line.strip() if unicodedata.category(char) == "Cc"), None)
        if control:
            what = "a tab" if control == "\t" else f"the control character {control!r}"
            _fail(path, n, f"found {what}, expected a question a line, or JSON Lines with query_id and text")
    rows = [line.split() for _, line in numbered]
    for columns, last, name in ((6, -2, "a TREC run"), (4, -1, "TREC judgements")):
        if all(len(row) == columns and _is_number(row[last]) and row[1] in ("0", "Q0") for row in rows):
            raise MmrrError(f"{path.name}: found {name}, expected a question a line, or JSON Lines")


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
        hint = (
            f"; 3 columns need the header line {' '.join(_BEIR)}" if (len(columns), expected) == (3, _JUDGEMENT) else ""
        )
        _fail(path, n, f"found {found}, expected {len(expected.split())}: {expected}{hint}")
    if columns[0].startswith(_BOM):
        _fail(path, n, f"found the query_id {columns[0]!r}, expected one without a byte order mark")
    return columns


def _number(path: Path, n: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        _fail(path, n, f"found the {name} {_short(text)!r}, expected a number")
    if math.isinf(value) and any(char.isdigit() for char in text):
        _fail(path, n, f"found the {name} {_short(text)!r}, which is too large, expected a number below 1.8e308")
    return value


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:30]}...({len(text)} characters)"


def _document(path: Path, n: int, record: dict[str, Any]) -> str | None:
    """The document that a query names: its id, or the name of its file, which may have blanks."""
    value = record.get("doc_id")
    if value is None or (isinstance(value, str) and value.strip() and value.isprintable()):
        return value
    return _id(path, n, record, ("doc_id",))


def _id(path: Path, n: int, record: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """The value of the first of ``keys`` that ``record`` has, as a string. None: it has none of them."""
    for key in keys:
        value = record.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            _fail(path, n, f"found {_kind(value)} under {key}, expected a string")
        if isinstance(value, float) and not math.isfinite(value):
            _fail(path, n, f"found a number that is not finite under {key}, expected a string")
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
