"""Training pairs: a query, a page image, and whether the page is relevant. Knows files, not models.

JSON Lines or parquet with ``query``, ``image`` and ``relevant``; other fields are ignored. See docs/training.md.
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
    """One line of the file. ``image`` is an absolute path of an existing file."""

    query: str
    image: Path
    relevant: bool


def read_pairs(path: Path, images: Path | None = None) -> list[Pair]:
    """Read the pairs in order, without duplicates.

    ``images``: the folder that image paths are relative to; default: the folder of the file.

    Raises:
        MmrrError: A field is missing or has another type, an image does not exist or is outside the folder, or a pair
            is both relevant and not relevant. The message has the number of the line or the parquet row.
    """
    root = (images or path.parent).resolve()
    known: dict[Path, Path] = {}
    pairs: dict[tuple[str, Path], Pair] = {}
    for place, record in _records(path):
        if not isinstance(record, Mapping):
            raise MmrrError(f"{place}: found {type(record).__name__}, expected an object with {', '.join(FIELDS)}")
        missing = [name for name in FIELDS if record.get(name) is None]
        if missing:
            raise MmrrError(f"{place}: found no {missing[0]}, expected {', '.join(FIELDS)}")
        query, image, relevant = (record[name] for name in FIELDS)
        if not isinstance(query, str) or not query.strip():
            raise MmrrError(f"{place}: query = {query!r}, expected a text")
        if any(unicodedata.category(character) == "Cs" for character in query):
            raise MmrrError(f"{place}: the query has an unpaired surrogate, expected Unicode text")
        if not isinstance(image, str) or not image:
            raise MmrrError(f"{place}: image = {image!r}, expected the path of a page image")
        if not isinstance(relevant, bool):
            raise MmrrError(f"{place}: relevant = {relevant!r}, expected true or false")
        relative = Path(image)
        if relative not in known:
            known[relative] = image_inside(root, relative, place)
        pair = Pair(query, known[relative], relevant)
        before = pairs.setdefault((query, pair.image), pair)
        if before.relevant != relevant:
            raise MmrrError(
                f"{place}: {image} is both relevant and not relevant to {query[:60]!r}, expected one of the two"
            )
    return list(pairs.values())


def open_image(path: Path) -> Image.Image:
    """A page image (RGB). Raises MmrrError if the file cannot be opened as an image."""
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise MmrrError(f"{path} cannot be opened as an image: {error}") from error


def image_inside(root: Path, relative: Path, place: str) -> Path:
    """The absolute path of an existing image in the folder ``root``. Raises MmrrError; ``place``: its first words."""
    try:
        found = (root / relative).resolve()
        exists = found.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise MmrrError(f"{place}: {str(relative)!r} is not a valid path: {error}") from error
    if not found.is_relative_to(root):
        raise MmrrError(f"{place}: {relative} is outside {root}; name the folder of the images with `images`")
    if not exists:
        raise MmrrError(f"{place}: there is no image {found}; paths are relative to {root}")
    return found


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """The place (file name and line or row) of each record, and the record."""
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    for n, line in lines(path):
        place = f"{path.name}, line {n}"
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MmrrError(f"{place}: invalid JSON ({error}), expected {', '.join(FIELDS)}") from error


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
class JudgedPage:
    """A page and the queries whose relevance is computed in one pass."""

    path: Path
    image: Image.Image
    queries: tuple[str, ...]
    relevant: tuple[bool, ...]


class Groups(Generic[T]):
    """Groups of items of one page. Each item comes once an epoch; the order depends on the seed and the epoch only."""

    def __init__(self, items: Sequence[T], page: Callable[[T], Hashable], seed: int, most: int) -> None:
        """``page``: the page of an item. ``most``: items of a group; a page may have several groups."""
        self.seed, self.most = seed, most
        self.by_page: dict[Hashable, list[T]] = {}
        for item in items:
            self.by_page.setdefault(page(item), []).append(item)
        #: Groups of an epoch.
        self.an_epoch = sum(-(-len(group) // most) for group in self.by_page.values())
        self._order: tuple[int, list[list[T]]] | None = None

    def order(self, epoch: int) -> list[list[T]]:
        """The groups of an epoch in its order."""
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
        """``size`` groups of batch ``number``, counted over all epochs."""
        places = range(number * size, (number + 1) * size)
        return [self.order(place // self.an_epoch)[place % self.an_epoch] for place in places]


class JudgedPages:
    """Batch number -> pages, each with its queries. A page is encoded once for all its queries."""

    def __init__(self, pairs: Sequence[Pair], seed: int, pages: int, queries: int) -> None:
        """``pages``: of a batch. ``queries``: of a page, at most."""
        self.groups, self.pages = Groups(pairs, lambda pair: pair.image, seed, queries), pages

    def __call__(self, number: int) -> list[JudgedPage]:
        return [_judged(group) for group in self.groups.batch(number, self.pages)]


def _judged(group: Sequence[Pair]) -> JudgedPage:
    queries, relevant = tuple(pair.query for pair in group), tuple(pair.relevant for pair in group)
    return JudgedPage(group[0].image, open_image(group[0].image), queries, relevant)


@dataclass(frozen=True, slots=True)
class ContrastiveBatch:
    """Queries and the pages that they are compared with: a relevant page of each query, and hard negatives."""

    queries: tuple[str, ...]
    answers: tuple[int, ...]  # for each query, the row of its page in ``pages``
    pages: tuple[Image.Image, ...]
    also_relevant: tuple[tuple[int, ...], ...]  # for each query, other relevant rows, which are no negatives


@dataclass(frozen=True)
class ContrastiveBatches:
    """Batch number -> queries, each with one relevant page and hard negatives."""

    pairs: Sequence[Pair]
    seed: int
    queries: int  # of a batch
    negatives: int  # of a query
    _orders: dict[int, list[Pair]] = field(default_factory=dict)

    @cached_property
    def positives(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.relevant]

    @cached_property
    def by_query(self) -> dict[str, tuple[list[Path], list[Path]]]:
        """Query -> its relevant pages and its other pages."""
        found: dict[str, tuple[list[Path], list[Path]]] = {}
        for pair in self.pairs:
            found.setdefault(pair.query, ([], []))[0 if pair.relevant else 1].append(pair.image)
        return found

    @property
    def an_epoch(self) -> int:
        """Queries of an epoch: the relevant pairs."""
        return len(self.positives)

    def order(self, epoch: int) -> list[Pair]:
        """The relevant pairs in the order of an epoch."""
        if epoch not in self._orders:
            self._orders.clear()
            rng = random.Random(f"{self.seed}/epoch/{epoch}")
            self._orders[epoch] = rng.sample(self.positives, len(self.positives))
        return self._orders[epoch]

    def __call__(self, number: int) -> ContrastiveBatch:
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
        also_relevant = tuple(
            tuple(rows[path] for path in self.by_query[pair.query][0] if path in rows and path != pair.image)
            for pair in chosen
        )
        return ContrastiveBatch(
            tuple(pair.query for pair in chosen), answers, tuple(map(open_image, rows)), also_relevant
        )
