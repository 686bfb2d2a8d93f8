"""Training pairs: a query, a page image, and whether the page is relevant. Knows files, not models.

JSON Lines or parquet with ``query``, ``image``, ``relevant`` and, from a teacher, ``probability``; other fields are
ignored. See docs/training.md.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from mmrr.errors import MmrrError
from mmrr.training.data.records import EpochOrder, image_inside, is_text, is_unicode, open_image, read_json_lines

T = TypeVar("T")

FIELDS = ("query", "image", "relevant")


@dataclass(frozen=True, slots=True)
class Pair:
    """One line of the file. ``image`` is an absolute path of an existing file."""

    query: str
    image: Path
    relevant: bool
    probability: float | None = None  # of a teacher; None: 1 for a relevant page, else 0

    @property
    def target(self) -> float:
        """What a yes/no reranker learns: the probability of yes."""
        return float(self.relevant) if self.probability is None else self.probability


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
        missing = [name for name in FIELDS if record.get(name) is None]
        if missing:
            raise MmrrError(f"{place}: found no {missing[0]}, expected {', '.join(FIELDS)}")
        query, image, relevant = (record[name] for name in FIELDS)
        if not is_text(query):
            raise MmrrError(f"{place}: query = {query!r}, expected a text")
        if not is_unicode(query):
            raise MmrrError(f"{place}: the query has an unpaired surrogate, expected Unicode text")
        if not isinstance(image, str) or not image:
            raise MmrrError(f"{place}: image = {image!r}, expected the path of a page image")
        if not isinstance(relevant, bool):
            raise MmrrError(f"{place}: relevant = {relevant!r}, expected true or false")
        relative = Path(image)
        if relative not in known:
            known[relative] = image_inside(root, relative, place)
        pair = Pair(query, known[relative], relevant, _probability(record, place))
        before = pairs.setdefault((query, pair.image), pair)
        if before.relevant != relevant:
            raise MmrrError(
                f"{place}: {image} is both relevant and not relevant to {query[:60]!r}, expected one of the two"
            )
    return list(pairs.values())


def _probability(record: Mapping[str, Any], place: str) -> float | None:
    value = record.get("probability")
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise MmrrError(f"{place}: probability = {value!r}, expected a number from 0 to 1")
    return float(value)


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The place (file name and line or row) of each record, and the record."""
    return _parquet(path) if path.suffix == ".parquet" else read_json_lines(path, ", ".join(FIELDS))


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    n = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            missing = [name for name in FIELDS if name not in file.schema_arrow.names]
            if missing:
                raise MmrrError(f"{path.name}: found no column {', '.join(missing)}, expected {', '.join(FIELDS)}")
            columns = [name for name in (*FIELDS, "probability") if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
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
    targets: tuple[float, ...]  # the probability of yes for each query


class Groups(EpochOrder[list[T]]):
    """Groups of items of one page, mixed again each epoch. Each item comes once an epoch."""

    def __init__(self, items: Sequence[T], page: Callable[[T], Hashable], seed: int, most: int) -> None:
        """``page``: the page of an item. ``most``: items of a group; a page may have several groups."""
        super().__init__([], seed)
        self.most = most
        self.by_page: dict[Hashable, list[T]] = {}
        for item in items:
            self.by_page.setdefault(page(item), []).append(item)
        #: Groups of an epoch.
        self.an_epoch = sum(-(-len(group) // most) for group in self.by_page.values())

    def __len__(self) -> int:
        return self.an_epoch

    def _shuffled(self, rng: random.Random) -> list[list[T]]:
        groups = []
        for group in self.by_page.values():
            mixed = rng.sample(group, len(group))
            groups += [mixed[at : at + self.most] for at in range(0, len(mixed), self.most)]
        rng.shuffle(groups)
        return groups


class JudgedPages:
    """Batch number -> pages, each with its queries. A page is encoded once for all its queries."""

    def __init__(self, pairs: Sequence[Pair], seed: int, pages: int, queries: int) -> None:
        """``pages``: of a batch. ``queries``: of a page, at most."""
        self.groups, self.pages = Groups(pairs, lambda pair: pair.image, seed, queries), pages

    def __call__(self, number: int) -> list[JudgedPage]:
        return [_judged(group) for group in self.groups.batch(number, self.pages)]


def _judged(group: Sequence[Pair]) -> JudgedPage:
    queries, relevant = tuple(pair.query for pair in group), tuple(pair.relevant for pair in group)
    return JudgedPage(
        group[0].image, open_image(group[0].image), queries, relevant, tuple(pair.target for pair in group)
    )


@dataclass(frozen=True, slots=True)
class ContrastiveBatch:
    """Queries and the pages that they are compared with: a relevant page of each query, and hard negatives."""

    queries: tuple[str, ...]
    answers: tuple[int, ...]  # for each query, the row of its page in ``pages``
    pages: tuple[Image.Image, ...]
    also_relevant: tuple[tuple[int, ...], ...]  # for each query, other relevant rows, which are no negatives


class ContrastiveBatches:
    """Batch number -> queries, each with one relevant page and hard negatives."""

    def __init__(self, pairs: Sequence[Pair], seed: int, queries: int, negatives: int) -> None:
        """``queries``: of a batch. ``negatives``: of a query, at most."""
        self.seed, self.queries, self.negatives = seed, queries, negatives
        self.positives = [pair for pair in pairs if pair.relevant]
        #: Query -> its relevant pages and its other pages.
        self.by_query: dict[str, tuple[list[Path], list[Path]]] = {}
        for pair in pairs:
            self.by_query.setdefault(pair.query, ([], []))[0 if pair.relevant else 1].append(pair.image)
        self._order = EpochOrder(self.positives, seed)

    @property
    def an_epoch(self) -> int:
        """Queries of an epoch: the relevant pairs."""
        return len(self.positives)

    def __call__(self, number: int) -> ContrastiveBatch:
        rng = random.Random(f"{self.seed}/negatives/{number}")
        chosen = self._order.batch(number, self.queries)
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
