"""Source documents in JSON Lines, plain or gzipped, one a line. Knows blocks and questions, not pages."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrr.errors import MmrrError

KINDS = ("text", "heading", "list", "code", "table")


@dataclass(frozen=True, slots=True)
class Block:
    """One part of a document: text, a heading, a list (one item a line), code, or a table (``rows``)."""

    kind: str
    text: str = ""
    rows: tuple[tuple[str, ...], ...] = ()
    level: int = 1


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a document. ``block``: index of the block that answers it; None: unknown."""

    text: str
    answer: str
    block: int | None


@dataclass(frozen=True, slots=True)
class Document:
    """One source document."""

    id: str
    source: str
    title: str
    blocks: tuple[Block, ...]
    questions: tuple[Question, ...]


def read_documents(path: Path) -> list[Document]:
    """Read a JSON-lines file of documents, plain or gzipped.

    Each line has ``id``, ``source``, ``title``, ``blocks`` (``type`` text | heading | list | code with ``text``, or
    table with ``rows``) and ``questions`` (``q``, ``a``, ``block``). Blank lines are skipped.

    Raises:
        MmrrError: The file cannot be read or has no documents, a line is not a document, or an id occurs twice. The
            message has the line's number.
    """
    documents = []
    seen: dict[str, int] = {}
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            document = _document(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"no field {error}" if isinstance(error, KeyError) else error
            raise MmrrError(
                f"{path}, line {number}: not a document ({problem}); expected the fields of docs/training.md"
            ) from error
        if document.id in seen:
            raise MmrrError(
                f"{path}, line {number}: id {document.id!r} is also on line {seen[document.id]}; expected unique ids"
            )
        seen[document.id] = number
        documents.append(document)
    if not documents:
        raise MmrrError(f"{path} has no documents; expected one JSON object a line")
    return documents


def split(documents: list[Document], held_out: float, seed: int = 0) -> tuple[list[Document], list[Document]]:
    """Split documents into training and held-out ones. ``held_out``: the share of each source that is held out."""
    rng = random.Random(seed)
    order = sorted(documents, key=lambda document: document.id)
    rng.shuffle(order)
    by_source: dict[str, list[Document]] = {}
    for document in order:
        by_source.setdefault(document.source, []).append(document)
    train, test = [], []
    for source in sorted(by_source):
        group = by_source[source]
        n = round(len(group) * held_out)
        test += group[:n]
        train += group[n:]
    return train, test


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8") as file:
                yield from enumerate(file, 1)
        else:
            with path.open(encoding="utf-8") as file:
                yield from enumerate(file, 1)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise MmrrError(f"{path} cannot be read: {error}") from error


def _document(record: dict[str, Any]) -> Document:
    if not isinstance(record, dict):
        raise TypeError(f"found {type(record).__name__}, expected an object")
    blocks = []
    for block in record["blocks"]:
        kind = block["type"]
        if kind not in KINDS:
            raise ValueError(f"block type {kind!r}, expected one of {', '.join(KINDS)}")
        rows = tuple(tuple("" if cell is None else str(cell) for cell in row) for row in block.get("rows") or ())
        blocks.append(Block(kind, _text(block, "text"), rows, int(block.get("level", 1))))
    questions = tuple(_question(question) for question in record.get("questions") or ())
    if record["id"] is None:
        raise ValueError("id is null, expected a text or a number")
    return Document(str(record["id"]), _text(record, "source"), _text(record, "title"), tuple(blocks), questions)


def _question(record: dict[str, Any]) -> Question:
    text, answer, block = record["q"], record.get("a"), record.get("block")
    if not isinstance(text, str):
        raise TypeError(f"q is {text!r}, expected a text")
    if block is not None and type(block) is not int:
        raise TypeError(f"block is {block!r}, expected an integer or null")
    return Question(text, "" if answer is None else str(answer), block)


def _text(record: dict[str, Any], key: str) -> str:
    """The text of a field; empty if the field is missing or null."""
    value = record.get(key)
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}, expected a text or null")
    return value or ""
