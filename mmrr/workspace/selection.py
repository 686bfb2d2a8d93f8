"""Chooses pages of a collection: by document, by page number, and by a table of metadata of the documents."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from mmrr.errors import MmrrError
from mmrr.workspace import changes, metadata
from mmrr.workspace.metadata import Value
from mmrr.workspace.pages import Collection

_RANGE = re.compile(r"\s*(\d{1,9})?\s*(-)?\s*(\d{1,9})?\s*")
_TOKEN = re.compile(
    r"""\s*(?:(?P<op><=|>=|!=|=|<|>|~|\(|\))|"(?P<q>[^"]*)"|'(?P<s>[^']*)'|(?P<word>[^\s=!<>~()"']+))"""
)
_OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "~")
_EXPECTED = "expected conditions such as year>=2020 and kind=report, with and, or, not and parentheses"
#: The deepest nesting of parentheses and ``not``.
_DEEPEST = 50


@dataclass(frozen=True)
class Filters:
    """Which pages may be found. Each field that is not empty narrows the choice."""

    documents: tuple[str, ...] = ()  # names as ``changes.find`` takes them, or patterns with * ? [
    pages: str = ""  # numbers and ranges: 3-20,25
    where: str = ""  # conditions on the metadata
    metadata: Path | None = None  # CSV or JSON Lines with a line for each document; None: what the index has


def rows_of(collection: Collection, filters: Filters) -> set[int] | None:
    """The rows of the pages that fit; None if there is no filter.

    Raises MmrrError for a filter that is not valid, for a document that is not there, and if no page fits.
    """
    if filters == Filters():
        return None
    if filters.metadata is not None and not filters.where:
        raise MmrrError("--metadata has the values for the conditions of --where; pass both, or leave --metadata out")
    ids = set(collection.rows)
    if filters.documents:
        ids &= {doc_id for name in filters.documents for doc_id in _matching(collection, name)}
    if filters.where:
        ids &= set(documents_where(collection, filters.where, filters.metadata))
    numbers = _numbers(filters.pages) if filters.pages else None
    rows = {
        row for doc_id in ids for row in collection.rows[doc_id] if not numbers or numbers(collection.pages[row].number)
    }
    if not rows:
        raise MmrrError(f"no page of the {len(collection.pages)} in the index fits --document, --pages and --where")
    return rows


def documents_where(collection: Collection, where: str, file: Path | None = None) -> list[str]:
    """The documents whose metadata fits the conditions: that of a file, or that of the index.

    Raises MmrrError for conditions that are not valid, and if there is no metadata.
    """
    fits = parse(where)
    if file is None:
        of_document = metadata.of(collection.manifest)
        if not of_document:
            raise MmrrError(
                f"--where {where[:60]!r} needs metadata, and the index has none; pass --metadata FILE, or put a "
                "metadata.csv into the folder of the documents and run mmrr index again"
            )
    else:
        values = metadata.read(file)
        of_document, _ = metadata.by_document(collection.manifest, values)
        if not of_document:
            some = ", ".join(list(values)[:3])
            raise MmrrError(f"{file.name}: none of its documents is in the index (found: {some})")
    return [doc_id for doc_id in collection.rows if fits(of_document.get(doc_id, {}))]


def is_pattern(name: str, collection: Collection) -> bool:
    """Whether a name is a pattern: it has one of * ? [ and is not the name of a document."""
    return any(char in name for char in "*?[") and not _known(collection, name)


def _matching(collection: Collection, name: str) -> list[str]:
    if not is_pattern(name, collection):
        return [changes.find(collection.manifest, name)]
    known = changes.places(collection.manifest)
    found = []
    for doc_id in collection.rows:
        paths = [doc_id, *([str(known[doc_id].path)] if doc_id in known else [])]
        names = [*paths, *(PurePath(path).name for path in paths)]
        if any(fnmatch.fnmatchcase(one, name) for one in names):
            found.append(doc_id)
    if not found:
        raise MmrrError(f"no document fits '{name}'; see: mmrr ls --documents")
    return found


def _known(collection: Collection, name: str) -> list[str]:
    try:
        found = changes.find(collection.manifest, name)
    except MmrrError:
        return []
    return [found] if found in collection.rows else []


def _numbers(text: str) -> Callable[[int], bool]:
    """``3-20,25`` -> whether a page number is in it."""
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        first, dash, last = match.groups() if match else (None, None, None)
        if not (first or last) or (last and not dash):
            raise MmrrError(f"--pages {text[:40]}: expected page numbers and ranges from 1, such as 3-20,25 or 7-")
        low = int(first or 1)
        high = int(last) if last else (10**9 if dash else low)
        if not 1 <= low <= high:
            raise MmrrError(f"--pages {text[:40]}: {part.strip()} is no range of page numbers from 1")
        ranges.append((low, high))
    return lambda number: any(low <= number <= high for low, high in ranges)


def parse(text: str) -> Callable[[Mapping[str, Value]], bool]:
    """Conditions -> whether the metadata of a document fits them. Nothing of the text is executed.

    ``name OP value``, joined by ``and``, ``or``, ``not`` and parentheses. OP is one of = != < <= > >= and ~ (contains,
    without regard to capitals). Numbers compare as numbers, and a value that is none does not fit them; other values
    compare as text. A name that the metadata lacks fits no condition. Raises MmrrError for anything else.
    """
    tokens = []
    place = 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None:
            raise MmrrError(f"--where {text[:60]!r}: found {text[place:].strip()[:20]!r}, {_EXPECTED}")
        quoted = match["q"] if match["q"] is not None else match["s"]
        kind = "op" if match["op"] else "word" if match["word"] else "quoted"
        tokens.append((kind, match["op"] or match["word"] or quoted or ""))
        place = match.end()
    parser = _Parser(text, tokens)
    found = parser.either(0)
    if parser.left:
        parser.fail()
    return found


@dataclass
class _Parser:
    """Recursive descent over the tokens (kind, text) of conditions."""

    text: str
    left: list[tuple[str, str]]

    def fail(self) -> None:
        found = repr(self.left[0][1][:20]) if self.left else "the end"
        raise MmrrError(f"--where {self.text[:60]!r}: found {found}, {_EXPECTED}")

    def takes(self, kind: str, word: str) -> bool:
        if self.left and self.left[0][0] == kind and self.left[0][1].lower() == word:
            self.left.pop(0)
            return True
        return False

    def either(self, depth: int) -> Callable[[Mapping[str, Value]], bool]:
        parts = [self.both(depth)]
        while self.takes("word", "or"):
            parts.append(self.both(depth))
        return lambda values: any(part(values) for part in parts)

    def both(self, depth: int) -> Callable[[Mapping[str, Value]], bool]:
        parts = [self.one(depth)]
        while self.takes("word", "and"):
            parts.append(self.one(depth))
        return lambda values: all(part(values) for part in parts)

    def one(self, depth: int) -> Callable[[Mapping[str, Value]], bool]:
        if depth > _DEEPEST:
            raise MmrrError(f"--where: found more than {_DEEPEST} nested conditions, expected fewer")
        if self.takes("word", "not"):
            inner = self.one(depth + 1)
            return lambda values: not inner(values)
        if self.takes("op", "("):
            inside = self.either(depth + 1)
            if not self.takes("op", ")"):
                self.fail()
            return inside
        return self.comparison()

    def comparison(self) -> Callable[[Mapping[str, Value]], bool]:
        name = self.expect(("word", "quoted"))
        operator = self.expect(("op",), _OPERATORS)
        wanted = self.expect(("word", "quoted"))
        return lambda values: name in values and _fits(values[name], operator, wanted)

    def expect(self, kinds: Sequence[str], words: Sequence[str] = ()) -> str:
        if not self.left or self.left[0][0] not in kinds or (words and self.left[0][1] not in words):
            self.fail()
        return self.left.pop(0)[1]


def _fits(value: Value, operator: str, text: str) -> bool:
    if operator == "~":
        return text.casefold() in _as_text(value).casefold()
    wanted = metadata.value_of(text)
    if isinstance(wanted, float) != isinstance(value, float):
        return operator == "!=" if isinstance(wanted, float) else _compare(_as_text(value), operator, text)
    return _compare(value, operator, wanted)


def _as_text(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else value


def _compare(value: Value, operator: str, wanted: Value) -> bool:
    if operator in ("=", "!="):
        return (value == wanted) == (operator == "=")
    above, same = value > wanted, value == wanted  # type: ignore[operator]  # both are numbers, or both are texts
    return {"<": not above and not same, "<=": not above, ">": above, ">=": above or same}[operator]
