"""Lists to learn ranking from: a query, candidate pages and their order. From files, or of drawn pages. No models.

JSON Lines with ``query``, ``images`` or ``passages``, ``order`` and ``relevant``; other fields are skipped. See
docs/ziprerank.md, "Training".
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mmrr.errors import MmrrError
from mmrr.evaluation.trec import lines
from mmrr.training.data.cell_targets import fold
from mmrr.training.data.pairs import open_image
from mmrr.training.data.passage_images import draw_passage
from mmrr.training.data.queries import loosen, phrase, usable
from mmrr.training.data.tower_features import Features, ReadPage

FIELDS = "query, images or passages, order, relevant"
#: Telling is a word that stands on at most this share of the pages, measured on so many of them.
RARE, COUNTED = 0.05, 300


@dataclass(frozen=True, slots=True)
class Ranked:
    """One line. ``order`` and ``relevant`` are places among the candidates, counted from 0."""

    query: str
    candidates: tuple[Path | str, ...]  # image files, absolute; or passages of text
    order: tuple[int, ...]  # best first; those it leaves out come behind it
    relevant: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a page in a list, and the query's words (folded) that stand in it."""

    page: int
    cell: int
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """A list as the model is shown it: everything in the order of the letters."""

    query: str
    pages: tuple[Any, ...]  # images, or pages whose features are known
    ranking: tuple[int, ...]  # places of ``pages``, best first, all of them
    relevant: tuple[int, ...]
    holding: tuple[Cell, ...] = ()  # all cells of the pages in which words of the query stand
    telling: frozenset[str] = frozenset()  # those of its words, folded, that say something about pages


def read_lists(path: Path, images: Path | None = None) -> list[Ranked]:
    """Read lists in order. Image paths count from ``images``, by default the file's own folder, and stay inside it.

    Raises MmrrError with the line's number: a field that is missing or of another kind, fewer than two candidates, an
    index that is not one of theirs or comes twice, neither order nor relevant page, an image that is not there.
    """
    root = (images or path.parent).resolve()
    found = []
    for number, line in lines(path):
        place = f"{path.name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MmrrError(f"{place}: no valid JSON ({error}), expected {FIELDS}") from error
        if not isinstance(record, Mapping):
            raise MmrrError(f"{place}: found no object, expected one with {FIELDS}")
        query = record.get("query")
        if not isinstance(query, str) or not query.strip() or not _is_unicode(query):
            raise MmrrError(f"{place}: query = {query!r}, expected a text")
        candidates = _candidates(record, root, place)
        order, relevant = (_places(record, name, len(candidates), place) for name in ("order", "relevant"))
        if not order and not relevant:
            raise MmrrError(f"{place}: neither order nor relevant says which candidate is better")
        found.append(Ranked(query, candidates, order, relevant))
    return found


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _candidates(record: Mapping[str, Any], root: Path, place: str) -> tuple[Path | str, ...]:
    images, passages = record.get("images"), record.get("passages")
    if (images is None) == (passages is None):
        raise MmrrError(f"{place}: found {'both' if images else 'neither'} of images and passages, expected one")
    name, values = ("passages", passages) if images is None else ("images", images)
    if not isinstance(values, list) or len(values) < 2:
        raise MmrrError(f"{place}: {name} is no list of two or more")
    for value in values:
        if not isinstance(value, str) or not value.strip() or not _is_unicode(value):
            raise MmrrError(f"{place}: {name} holds {value!r}, expected {'a text' if images is None else 'a path'}")
    if images is None:
        return tuple(values)
    return tuple(_inside(root, value, place) for value in values)


def _inside(root: Path, written: str, place: str) -> Path:
    try:
        found = (root / written).resolve()
        there = found.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise MmrrError(f"{place}: {written!r} is no path: {error}") from error
    if not found.is_relative_to(root):
        raise MmrrError(f"{place}: {written} is outside {root}; say where the images lie with `images`")
    if not there:
        raise MmrrError(f"{place}: there is no image {found}; paths count from {root}")
    return found


def _places(record: Mapping[str, Any], name: str, n: int, place: str) -> tuple[int, ...]:
    values = record.get(name)
    if values is None:
        return ()
    if not isinstance(values, list) or any(type(value) is not int or not 0 <= value < n for value in values):
        raise MmrrError(f"{place}: {name} = {values!r}, expected indices of the candidates, 0 to {n - 1}")
    if len(set(values)) < len(values):
        raise MmrrError(f"{place}: {name} = {values!r} names a candidate twice")
    return tuple(values)


def ranking(n: int, order: Sequence[int], relevant: Collection[int]) -> list[int]:
    """All of the first ``n`` candidates, best first: the relevant ones, then as ``order`` says, then the others.

    Relevant ones, and those that ``order`` leaves out, keep the candidates' own order. Candidates from ``n`` on are
    left out of ``order`` as well; its length is no matter, so that a late place among many is still a place.
    """
    first = sorted(place for place in relevant if place < n)
    ordered = [place for place in order if place < n]
    return list(dict.fromkeys([*first, *ordered, *range(n)]))


@dataclass(frozen=True)
class RankedLists:
    """Batch number -> a few lists, their images opened or drawn.

    Every list comes once an epoch, in an order that depends on the seed and the epoch alone; with ``shuffle`` its
    candidates stand in an order of the batch's own, or in the file's.
    """

    lists: Sequence[Ranked]
    seed: int
    size: int  # lists a batch
    candidates: int  # a list, at most
    shuffle: bool
    _orders: dict[int, list[int]] = field(default_factory=dict)

    def order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            self._orders.clear()
            rng = random.Random(f"{self.seed}/epoch/{epoch}")
            self._orders[epoch] = rng.sample(range(len(self.lists)), len(self.lists))
        return self._orders[epoch]

    def __call__(self, number: int) -> list[Shown]:
        shown = []
        for place in range(number * self.size, (number + 1) * self.size):
            one = self.lists[self.order(place // len(self.lists))[place % len(self.lists)]]
            n = min(len(one.candidates), self.candidates)
            stand = list(range(n))  # which candidate stands at each place
            if self.shuffle:
                random.Random(f"{self.seed}/shuffle/{place}").shuffle(stand)
            now = {candidate: at for at, candidate in enumerate(stand)}
            best = tuple(now[candidate] for candidate in ranking(n, one.order, one.relevant))
            relevant = tuple(sorted(now[candidate] for candidate in one.relevant if candidate < n))
            shown.append(Shown(one.query, tuple(_image(one.candidates[i]) for i in stand), best, relevant))
        return shown


def _image(candidate: Path | str) -> Image.Image:
    return open_image(candidate) if isinstance(candidate, Path) else draw_passage(candidate)


# Of drawn pages


class DrawnLists:
    """Step number -> lists of drawn pages whose features are on disk: a page that answers, and distractors.

    Half of the distractors are neighbours in the same report. Relevant is every page that is known to answer the
    question, or that holds all words of the phrase; the others follow by how many of its words they hold, rare ones
    counting more, equal ones by lot.
    """

    def __init__(
        self,
        features: Features,
        keys: Sequence[tuple[int, int]],
        seed: str,
        *,
        lists: int,
        candidates: int,
        strips: int = 0,
        rows: int = 4,
    ) -> None:
        """``keys``: (report, page), ordered.

        The first ``strips`` steps are on strips of pages, ``rows`` rows of cells each: several times cheaper.
        """
        self.features, self.keys, self.seed, self.strips, self.rows = features, list(keys), seed, strips, rows
        self.lists, self.candidates = lists, candidates
        counted = self.keys[:: max(1, len(self.keys) // COUNTED)]
        self.pages_with = Counter(word for key in counted for word in set(features.load(*key).folded))
        self.rare = RARE * len(counted)

    def __call__(self, step: int) -> list[Shown]:
        rng = random.Random(f"{self.seed}/lists/{step}")
        made: list[Shown] = []
        while len(made) < self.lists:
            shown = self._list(rng, strips=step < self.strips)
            if shown:
                made.append(shown)
        return made

    def _list(self, rng: random.Random, *, strips: bool) -> Shown | None:
        n = min(rng.randint(max(2, self.candidates // 2), self.candidates), len(self.keys))
        first = rng.randrange(len(self.keys))
        near = [self.keys[(first + i) % len(self.keys)] for i in range((n + 1) // 2)]
        others = [key for key in rng.sample(self.keys, min(2 * n, len(self.keys))) if key not in near]
        pages = [self.features.load(*key) for key in [*near, *others[: n - len(near)]]]
        if strips:
            pages = [page.part(self.rows, rng) for page in pages]
        target = pages[0]
        asked = [question.text for question in target.questions if usable(question.text)]
        if asked and rng.random() < 0.4:
            text = rng.choice(asked)
            right = [any(question.text == text for question in page.questions) for page in pages]
        else:
            found = phrase(target, rng, 2, 7)
            if found is None:
                return None
            text = loosen(found, rng)
            right = [set(map(fold, found.split())) <= set(page.folded) for page in pages]
        rng.shuffle(places := list(range(n := len(pages))))
        pages, right = [pages[i] for i in places], [right[i] for i in places]
        words = {word for word in map(fold, text.split()) if len(word) >= 3}
        relevant = tuple(i for i in range(n) if right[i])
        held = [words & set(page.folded) for page in pages]
        worth = {word: 1 / sum(word in some for some in held) for word in set().union(*held)}
        lot = rng.sample(range(n), n)
        order = sorted(range(n), key=lambda i: (-sum(worth[word] for word in sorted(held[i])), lot[i]))
        best = [*sorted(relevant, key=lot.__getitem__), *(i for i in order if not right[i])]
        holding = tuple(_holding(pages, words))
        return Shown(text, tuple(pages), tuple(best), relevant, holding, self.telling(words))

    def telling(self, words: Collection[str]) -> frozenset[str]:
        """Those of a query's words that stand on few pages, or the one that stands on the fewest.

        Which page holds a query's common words says nothing: nearly all of them do.
        """
        rare = {word for word in words if self.pages_with[word] <= self.rare}
        return frozenset(rare or sorted(words, key=lambda word: (self.pages_with[word], word))[:1])


def _holding(pages: Sequence[ReadPage], words: Collection[str]) -> Iterator[Cell]:
    for at, page in enumerate(pages):
        found: dict[int, set[str]] = {}
        for word, cells in zip(page.folded, page.cells, strict=True):
            if word in words:
                for cell in cells:
                    found.setdefault(cell, set()).add(word)
        yield from (Cell(at, cell, tuple(sorted(found[cell]))) for cell in sorted(found))
