"""Ranked lists to train on: a query, candidate pages and their order, from files or from drawn pages. No models.

JSON Lines with ``query``, ``images`` or ``passages``, ``order`` and ``relevant``; other fields are ignored. See
docs/ziprerank.md, "Training".
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mmrr.errors import MmrrError
from mmrr.training.data.cell_targets import fold
from mmrr.training.data.passage_images import draw_passage
from mmrr.training.data.queries import phrase, usable, vary
from mmrr.training.data.records import EpochOrder, image_inside, is_text, is_unicode, open_image, read_json_lines
from mmrr.training.data.tower_features import Keys, ReadPage, TowerFeatures

FIELDS = "query, images or passages, order, relevant"
#: A rare word is on at most this share of the pages. The share is estimated from this number of pages.
RARE, COUNTED = 0.05, 300


@dataclass(frozen=True, slots=True)
class RankedList:
    """One line of the file. ``order`` and ``relevant`` are indices of the candidates, counted from 0."""

    query: str
    candidates: tuple[Path | str, ...]  # absolute paths of images, or passages of text
    order: tuple[int, ...]  # best first; candidates that it leaves out are ranked last
    relevant: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WordCell:
    """A cell of a page in a list, and the query's words (folded) that are in it."""

    page: int
    cell: int
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListSample:
    """A list as the model sees it. All indices are those of ``pages``, in the order in which they are shown."""

    query: str
    pages: tuple[Any, ...]  # images, or pages whose features are known
    ranking: tuple[int, ...]  # all indices, best first
    relevant: tuple[int, ...]
    word_cells: tuple[WordCell, ...] = ()  # all cells of the pages that contain words of the query
    rare_words: frozenset[str] = frozenset()  # the words of the query (folded) that distinguish pages


def read_lists(path: Path, images: Path | None = None) -> list[RankedList]:
    """Read the lists in order.

    ``images``: the folder that image paths are relative to and must be in; default: the folder of the file.

    Raises:
        MmrrError: A field is missing or has another type, there are fewer than two candidates, an index is out of
            range or occurs twice, neither ``order`` nor ``relevant`` is given, or an image does not exist. The message
            has the line's number.
    """
    root = (images or path.parent).resolve()
    found = []
    for place, record in read_json_lines(path, FIELDS):
        query = record.get("query")
        if not is_text(query) or not is_unicode(query):
            raise MmrrError(f"{place}: query = {query!r}, expected a text")
        candidates = _candidates(record, root, place)
        order, relevant = (_indices(record, name, len(candidates), place) for name in ("order", "relevant"))
        if not order and not relevant:
            raise MmrrError(f"{place}: order and relevant are both empty, expected at least one of them")
        found.append(RankedList(query, candidates, order, relevant))
    return found


def _candidates(record: Mapping[str, Any], root: Path, place: str) -> tuple[Path | str, ...]:
    images, passages = record.get("images"), record.get("passages")
    if (images is None) == (passages is None):
        raise MmrrError(f"{place}: found {'both' if images else 'neither'} of images and passages, expected one")
    name, values = ("passages", passages) if images is None else ("images", images)
    if not isinstance(values, list) or len(values) < 2:
        raise MmrrError(f"{place}: {name} = {values!r}, expected a list of two or more")
    for value in values:
        if not is_text(value) or not is_unicode(value):
            raise MmrrError(f"{place}: {name} holds {value!r}, expected {'a text' if images is None else 'a path'}")
    if images is None:
        return tuple(values)
    return tuple(image_inside(root, Path(value), place) for value in values)


def _indices(record: Mapping[str, Any], name: str, n: int, place: str) -> tuple[int, ...]:
    values = record.get(name)
    if values is None:
        return ()
    if not isinstance(values, list) or any(type(value) is not int or not 0 <= value < n for value in values):
        raise MmrrError(f"{place}: {name} = {values!r}, expected indices of the candidates, 0 to {n - 1}")
    if len(set(values)) < len(values):
        raise MmrrError(f"{place}: {name} = {values!r}, expected each candidate once at most")
    return tuple(values)


def ranking(n: int, order: Sequence[int], relevant: Collection[int]) -> list[int]:
    """The first ``n`` candidates, best first: the relevant ones, then those of ``order``, then the others.

    The relevant candidates, and those that ``order`` leaves out, keep the order in which they are given. ``order`` may
    name candidates from ``n`` on; they are skipped.
    """
    first = sorted(index for index in relevant if index < n)
    ordered = [index for index in order if index < n]
    return list(dict.fromkeys([*first, *ordered, *range(n)]))


class RankedLists:
    """Batch number -> lists with their images.

    Every list comes once an epoch. The order of the lists depends on the seed and the epoch only.
    """

    def __init__(self, lists: Sequence[RankedList], seed: int, size: int, candidates: int, shuffle: bool) -> None:
        """``size``: lists of a batch. ``candidates``: of a list, at most.

        ``shuffle``: show the candidates in a new random order each time; otherwise in the order of the file.
        """
        self.seed, self.size, self.candidates, self.shuffle = seed, size, candidates, shuffle
        self.lists = EpochOrder(lists, seed)

    def __call__(self, number: int) -> list[ListSample]:
        return [self._sample(place) for place in range(number * self.size, (number + 1) * self.size)]

    def _sample(self, place: int) -> ListSample:
        """The list at ``place``, counted over all epochs."""
        one = self.lists[place]
        n = min(len(one.candidates), self.candidates)
        shown = list(range(n))  # position -> candidate
        if self.shuffle:
            random.Random(f"{self.seed}/shuffle/{place}").shuffle(shown)
        position = {candidate: at for at, candidate in enumerate(shown)}
        best = tuple(position[candidate] for candidate in ranking(n, one.order, one.relevant))
        relevant = tuple(sorted(position[candidate] for candidate in one.relevant if candidate < n))
        pages = tuple(_image(one.candidates[candidate]) for candidate in shown)
        return ListSample(one.query, pages, best, relevant)


def _image(candidate: Path | str) -> Image.Image:
    return open_image(candidate) if isinstance(candidate, Path) else draw_passage(candidate)


# Drawn pages


@dataclass(frozen=True, slots=True)
class ListSize:
    """What a batch of drawn lists has.

    The first ``strips`` steps use strips of ``rows`` rows of cells instead of whole pages; they are several times
    cheaper.
    """

    lists: int
    candidates: int  # of a list, at most; at least half of them
    strips: int = 0
    rows: int = 4


class DrawnLists:
    """Step number -> lists of drawn pages whose features are on disk: a relevant page and distractors.

    Half of the distractors are the next pages of the same report. The query is a question or a phrase of the first
    page. Relevant are all pages that are known to answer the question, or that contain all words of the phrase. The
    other pages are ranked by the query's words that they contain, each weighted by 1 / (pages of the list that contain
    it); ties are broken at random.
    """

    def __init__(self, features: TowerFeatures, keys: Sequence[tuple[int, int]], seed: str, size: ListSize) -> None:
        """``keys``: (report, page), in order."""
        self.features, self.keys, self.seed, self.size = features, list(keys), seed, size
        counted = self.keys[:: max(1, len(self.keys) // COUNTED)]
        self.page_counts = Counter(word for key in counted for word in set(features.load(*key).folded))
        self.rare_count = RARE * len(counted)

    def __call__(self, step: int) -> list[ListSample]:
        rng = random.Random(f"{self.seed}/lists/{step}")
        samples: list[ListSample] = []
        while len(samples) < self.size.lists:
            sample = self._sample(rng, strips=step < self.size.strips)
            if sample:
                samples.append(sample)
        return samples

    def _sample(self, rng: random.Random, *, strips: bool) -> ListSample | None:
        """One list; None if its first page has no usable phrase."""
        pages = [self.features.load(*key) for key in self._draw_keys(rng)]
        if strips:
            pages = [page.part(self.size.rows, rng) for page in pages]
        query = _draw_query(pages, rng)
        if query is None:
            return None
        text, answers = query
        n = len(pages)
        rng.shuffle(shown := list(range(n)))
        pages, answers = [pages[i] for i in shown], [answers[i] for i in shown]
        words = {word for word in map(fold, text.split()) if len(word) >= 3}
        relevant = tuple(i for i in range(n) if answers[i])
        contained = [words & set(page.folded) for page in pages]
        weight = {word: 1 / sum(word in of_page for of_page in contained) for word in set().union(*contained)}
        lot = rng.sample(range(n), n)  # breaks ties
        order = sorted(range(n), key=lambda i: (-sum(weight[word] for word in sorted(contained[i])), lot[i]))
        best = [*sorted(relevant, key=lot.__getitem__), *(i for i in order if not answers[i])]
        word_cells = tuple(_word_cells(pages, words))
        return ListSample(text, tuple(pages), tuple(best), relevant, word_cells, self.rare_words(words))

    def _draw_keys(self, rng: random.Random) -> Keys:
        """A page, the pages behind it, and as many random ones."""
        most = self.size.candidates
        n = min(rng.randint(max(2, most // 2), most), len(self.keys))
        first = rng.randrange(len(self.keys))
        near = [self.keys[(first + i) % len(self.keys)] for i in range((n + 1) // 2)]
        others = [key for key in rng.sample(self.keys, min(2 * n, len(self.keys))) if key not in near]
        return [*near, *others[: n - len(near)]]

    def rare_words(self, words: Collection[str]) -> frozenset[str]:
        """The rare words of a query. If there are none: the word that is on the fewest pages.

        Frequent words do not distinguish pages, since nearly all pages contain them.
        """
        rare = {word for word in words if self.page_counts[word] <= self.rare_count}
        return frozenset(rare or sorted(words, key=lambda word: (self.page_counts[word], word))[:1])


def _draw_query(pages: Sequence[ReadPage], rng: random.Random) -> tuple[str, list[bool]] | None:
    """A question or phrase of the first page, and for each page whether it is relevant. None: no usable phrase."""
    questions = [question.text for question in pages[0].questions if usable(question.text)]
    if questions and rng.random() < 0.4:
        text = rng.choice(questions)
        return text, [any(question.text == text for question in page.questions) for page in pages]
    exact = phrase(pages[0], rng, 2, 7)
    if exact is None:
        return None
    text, words = vary(exact, rng), set(map(fold, exact.split()))
    return text, [words <= set(page.folded) for page in pages]


def _word_cells(pages: Sequence[ReadPage], words: Collection[str]) -> Iterator[WordCell]:
    for at, page in enumerate(pages):
        found: dict[int, set[str]] = {}
        for word, cells in zip(page.folded, page.cells, strict=True):
            if word in words:
                for cell in cells:
                    found.setdefault(cell, set()).add(word)
        yield from (WordCell(at, cell, tuple(sorted(found[cell]))) for cell in sorted(found))
