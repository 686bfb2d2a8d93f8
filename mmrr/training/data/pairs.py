"""Pairs to learn from: a query, a page image, and whether the page answers it. Knows files, not models.

JSON Lines or parquet with ``query``, ``image`` and ``relevant``; other fields are skipped. See docs/training.md.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from PIL import Image

from mmrr.errors import MmrrError
from mmrr.evaluation.trec import lines

T = TypeVar("T")

FIELDS = ("query", "image", "relevant")


@dataclass(frozen=True, slots=True)
class Pair:
    """One line. ``image`` is absolute and exists."""

    query: str
    image: Path
    relevant: bool


def read_pairs(path: Path, images: Path | None = None) -> list[Pair]:
    """Read pairs in order, each once. Image paths count from ``images``, by default the file's own folder.

    Raises MmrrError with the line's (in parquet the row's) number: a field that is missing or of another kind, an
    image that is not there or lies outside that folder, and a pair that is said to be both relevant and not.
    """
    root = (images or path.parent).resolve()
    known: dict[Path, Path] = {}
    pairs: dict[tuple[str, Path], Pair] = {}
    for place, record in _records(path):
        if not isinstance(record, Mapping):
            raise MmrrError(f"{place}: found no object, expected one with {', '.join(FIELDS)}")
        missing = [name for name in FIELDS if record.get(name) is None]
        if missing:
            raise MmrrError(f"{place}: found no {missing[0]}, expected {', '.join(FIELDS)}")
        query, image, relevant = (record[name] for name in FIELDS)
        if not isinstance(query, str) or not query.strip():
            raise MmrrError(f"{place}: query = {query!r}, expected a text")
        if any(unicodedata.category(character) == "Cs" for character in query):
            raise MmrrError(f"{place}: the query has half of a surrogate pair, expected Unicode text")
        if not isinstance(image, str) or not image:
            raise MmrrError(f"{place}: image = {image!r}, expected the path of a page image")
        if not isinstance(relevant, bool):
            raise MmrrError(f"{place}: relevant = {relevant!r}, expected true or false")
        written = Path(image)
        if written not in known:
            known[written] = _inside(root, written, place)
        pair = Pair(query, known[written], relevant)
        before = pairs.setdefault((query, pair.image), pair)
        if before.relevant != relevant:
            raise MmrrError(f"{place}: {image} is said to be relevant and not relevant to {query[:60]!r}")
    return list(pairs.values())


def open_image(path: Path) -> Image.Image:
    """A page image (RGB). Raises MmrrError if it does not open."""
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise MmrrError(f"{path} does not open as an image: {error}") from error


def _inside(root: Path, written: Path, place: str) -> Path:
    try:
        found = (root / written).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise MmrrError(f"{place}: {written} is no path: {error}") from error
    if not found.is_relative_to(root):
        raise MmrrError(f"{place}: {written} is outside {root}; say where the images lie with `images`")
    if not found.is_file():
        raise MmrrError(f"{place}: there is no image {found}; paths count from {root}")
    return found


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each record stands, and the record."""
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    for n, line in lines(path):
        place = f"{path.name}, line {n}"
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MmrrError(f"{place}: no valid JSON ({error}), expected {', '.join(FIELDS)}") from error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    n = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            missing = [name for name in FIELDS if name not in file.schema_arrow.names]
            if missing:
                raise MmrrError(f"{path.name}: found no column {', '.join(missing)}, expected {', '.join(FIELDS)}")
            for batch in file.iter_batches(columns=list(FIELDS)):
                for record in batch.to_pylist():
                    n += 1
                    yield f"{path.name}, row {n}", record
    except (OSError, pyarrow.ArrowException) as error:
        raise MmrrError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    if not n:
        raise MmrrError(f"{path.name} is empty, expected at least one row")


# Batches


@dataclass(frozen=True, slots=True)
class Judged:
    """A page and the queries it is judged for together."""

    path: Path
    image: Image.Image
    queries: tuple[str, ...]
    relevant: tuple[bool, ...]


class Groups(Generic[T]):
    """What belongs to one page, together: each item once an epoch, in an order of the seed and the epoch alone."""

    def __init__(self, items: Sequence[T], page: Callable[[T], Hashable], seed: int, most: int) -> None:
        """``page``: which page an item belongs to; ``most``: items a group, so that a page may have several groups."""
        self.seed, self.most = seed, most
        self.by_page: dict[Hashable, list[T]] = {}
        for item in items:
            self.by_page.setdefault(page(item), []).append(item)
        #: How many groups an epoch has.
        self.an_epoch = sum(-(-len(group) // most) for group in self.by_page.values())
        self._order: tuple[int, list[list[T]]] | None = None

    def order(self, epoch: int) -> list[list[T]]:
        if self._order is None or self._order[0] != epoch:
            rng = random.Random(f"{self.seed}/epoch/{epoch}")
            groups = []
            for group in self.by_page.values():
                mixed = rng.sample(group, len(group))
                groups += [mixed[at : at + self.most] for at in range(0, len(mixed), self.most)]
            rng.shuffle(groups)
            self._order = epoch, groups
        return self._order[1]

    def batch(self, number: int, size: int) -> list[list[T]]:
        """``size`` groups; epochs follow one another."""
        places = range(number * size, (number + 1) * size)
        return [self.order(place // self.an_epoch)[place % self.an_epoch] for place in places]


class JudgedPages:
    """Batch number -> a few pages, each with its queries: a page is read once for all of them."""

    def __init__(self, pairs: Sequence[Pair], seed: int, pages: int, queries: int) -> None:
        """``pages`` a batch, ``queries`` a page at most."""
        self.groups, self.pages = Groups(pairs, lambda pair: pair.image, seed, queries), pages

    def __call__(self, number: int) -> list[Judged]:
        return [_judged(group) for group in self.groups.batch(number, self.pages)]


def _judged(group: Sequence[Pair]) -> Judged:
    queries, relevant = tuple(pair.query for pair in group), tuple(pair.relevant for pair in group)
    return Judged(group[0].image, open_image(group[0].image), queries, relevant)


@dataclass(frozen=True, slots=True)
class Searches:
    """Queries and the pages they are searched among: their own, and some that are known to be wrong."""

    queries: tuple[str, ...]
    answers: tuple[int, ...]  # of each query, a row of ``pages``
    pages: tuple[Image.Image, ...]
    excused: tuple[tuple[int, ...], ...]  # of each query, rows that answer it too: no wrong answers


@dataclass(frozen=True)
class SearchBatches:
    """Batch number -> queries with a page each and hard negatives, for contrast."""

    pairs: Sequence[Pair]
    seed: int
    queries: int  # a batch
    negatives: int  # a query
    _orders: dict[int, list[Pair]] = field(default_factory=dict)

    @cached_property
    def positives(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.relevant]

    @cached_property
    def by_query(self) -> dict[str, tuple[list[Path], list[Path]]]:
        """Of each query, the pages that answer it and those that do not."""
        found: dict[str, tuple[list[Path], list[Path]]] = {}
        for pair in self.pairs:
            found.setdefault(pair.query, ([], []))[0 if pair.relevant else 1].append(pair.image)
        return found

    @property
    def an_epoch(self) -> int:
        return len(self.positives)

    def order(self, epoch: int) -> list[Pair]:
        if epoch not in self._orders:
            self._orders.clear()
            rng = random.Random(f"{self.seed}/epoch/{epoch}")
            self._orders[epoch] = rng.sample(self.positives, len(self.positives))
        return self._orders[epoch]

    def __call__(self, number: int) -> Searches:
        rng = random.Random(f"{self.seed}/negatives/{number}")
        places = range(number * self.queries, (number + 1) * self.queries)
        chosen = [self.order(place // self.an_epoch)[place % self.an_epoch] for place in places]
        rows: dict[Path, int] = {}
        for pair in chosen:
            rows.setdefault(pair.image, len(rows))
        for pair in chosen:
            wrong = self.by_query[pair.query][1]
            for path in rng.sample(wrong, min(self.negatives, len(wrong))):
                rows.setdefault(path, len(rows))
        answers = tuple(rows[pair.image] for pair in chosen)
        excused = tuple(
            tuple(rows[path] for path in self.by_query[pair.query][0] if path in rows and path != pair.image)
            for pair in chosen
        )
        return Searches(tuple(pair.query for pair in chosen), answers, tuple(map(open_image, rows)), excused)
