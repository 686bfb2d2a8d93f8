"""Fields of a file of queries by which measures are split: the domain and the language of each question."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mmrr.errors import MmrrError
from mmrr.evaluation import ids
from mmrr.evaluation.trec import lines, read_queries
from mmrr.types import Query

#: The fields, in the order of the tables.
FIELDS = ("domain", "language")
_ID_KEYS = ("query_id", "_id", "qid", "id")
_MOST_CHARS = 80


def read_fields(path: Path, queries: Sequence[Query] | None = None) -> dict[str, dict[str, str]]:
    """{field: {query_id: value}} for the fields of ``FIELDS`` that JSON Lines have; {} for a file in another format.

    ``queries``: those of the file, if they are read already. Raises MmrrError as ``read_queries`` does, and for a value
    that is not a short text.
    """
    if not (queries if queries is not None else read_queries(path, images=True)):
        return {}
    found: dict[str, dict[str, str]] = {}
    for n, line in lines(path):
        try:
            record = json.loads(line)
        except ValueError:
            return {}  # no JSON Lines: a plain text or TSV, which has no fields
        if not isinstance(record, dict):
            return {}
        for field in FIELDS:
            if record.get(field) is not None:
                found.setdefault(field, {})[_id(record)] = _value(f"{path.name}, line {n}", field, record[field])
    return {field: found[field] for field in FIELDS if field in found}


def check_judged(path: Path, queries: Sequence[Query], judged: Collection[str]) -> None:
    """Raise MmrrError with ids of both kinds if none of the judged queries is in the file of queries."""
    found = [query.query_id for query in queries]
    if not set(found) & set(judged):
        raise MmrrError(
            f"{path.name}: none of the {len(judged)} judged queries is in the file of queries "
            f"(queries: {ids.some(found)}; judged: {ids.some(judged)})"
        )


def _id(record: dict[str, Any]) -> str:  # Any: JSON
    nested = record.get("query")
    source = nested if isinstance(nested, dict) else record
    return next(str(source[key]) for key in _ID_KEYS if source.get(key) is not None)


def _value(where: str, field: str, value: object) -> str:
    text = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text or len(text) > _MOST_CHARS or not text.isprintable():
        raise MmrrError(f"{where}: expected a text of 1 to {_MOST_CHARS} characters under {field}")
    return text
