"""Batches for embedder and reranker: a few pages, each with queries, from pages whose features are on disk."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.training.data.queries import LabelledQuery, cross_queries, labelled_queries, own_queries, phrase, usable
from mmrr.training.data.tower_features import Key, Keys, ReadPage, TowerFeatures

#: (queries of a page, the page) -> for each query the pages that an embedder finds for it, best first.
Mine = Callable[[Sequence[str], Key], list[Keys]]
#: Rows of cells in a strip of a page.
STRIP_ROWS = 8
#: Attempts to draw a batch; a page with a few words has no queries.
_ATTEMPTS = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """A few pages, each with its queries."""

    pages: list[ReadPage]
    queries: list[list[LabelledQuery]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """What a batch holds.

    ``kind`` says which queries a page gets. ``answered``: ``queries`` queries that it answers. ``labelled``:
    ``queries`` queries, about half of them answered. ``crossed``: its own queries and those of the other pages,
    ``queries`` in all.
    """

    pages: int
    queries: int
    kind: Literal["answered", "labelled", "crossed"]
    strips: int = 0  # first steps that use strips of pages: several times cheaper, and enough to learn matching
    rows: int = STRIP_ROWS  # rows of cells in a strip
    mine: Mine | None = None  # with it, the pages after the first are negatives found for the first page's queries


class BatchMaker:
    """Step number -> Batch.

    Without ``mine``, half of a batch's pages are neighbours of one report and the others are drawn from all reports.
    With it, the pages after the first are found by the queries of the first page; where pages are ``crossed``, those
    queries are half of all. Mining begins behind the strips.
    """

    def __init__(self, features: TowerFeatures, keys: Sequence[Key], seed: str, plan: BatchPlan) -> None:
        """``keys``: (report, page), in order, so that neighbours in the list are pages of one report."""
        self.features, self.keys, self.seed, self.plan = features, list(keys), seed, plan

    def __call__(self, step: int) -> Batch:
        """Raises MmrrError if no page drawn has enough words for a query."""
        rng = random.Random(f"{self.seed}/batch/{step}")
        for _ in range(_ATTEMPTS):
            pages, queries = self._draw(rng, strips=step < self.plan.strips)
            chosen = [(page, its) for page, its in zip(pages, queries, strict=True) if its]
            if chosen:
                return Batch([page for page, _ in chosen], [its for _, its in chosen])
        raise MmrrError(f"found no words for a query on any of {_ATTEMPTS} drawn pages; expected longer texts")

    def _draw(self, rng: random.Random, *, strips: bool) -> tuple[list[ReadPage], list[list[LabelledQuery]]]:
        first = rng.randrange(len(self.keys))
        if self.plan.mine and not strips:
            return self._mined(self.plan.mine, self.keys[first], rng)
        # Neighbours in the list are pages of one report, which resemble each other.
        near = [self.keys[(first + i) % len(self.keys)] for i in range(max(2, self.plan.pages // 2))]
        far = [rng.choice(self.keys) for _ in range(self.plan.pages - len(near))]
        pages = [self.features.load(*key) for key in dict.fromkeys(near + far)]
        if strips:
            pages = [page.part(self.plan.rows, rng) for page in pages]
        return pages, self._queries(pages, rng)

    def _queries(self, pages: Sequence[ReadPage], rng: random.Random) -> list[list[LabelledQuery]]:
        n = self.plan.queries
        if self.plan.kind == "crossed":
            return cross_queries(pages, [own_queries(page, max(1, n // len(pages)), rng) for page in pages])
        if self.plan.kind == "answered":
            return [self._answered(page, rng) for page in pages]
        return [labelled_queries(page, [other for other in pages if other is not page], n, rng) for page in pages]

    def _mined(self, mine: Mine, key: Key, rng: random.Random) -> tuple[list[ReadPage], list[list[LabelledQuery]]]:
        """A page and the pages found for its queries, taken from each query in turn."""
        crosses = self.plan.kind == "crossed"
        page = self.features.load(*key)
        made = own_queries(page, self.plan.queries // 2, rng) if crosses else []
        answered = [] if crosses else self._answered(page, rng)
        texts = [query.text for query in made or answered]
        found = mine(texts, key) if texts else []
        keys = [key]
        for of_query in itertools.cycle(found):
            if len(keys) == self.plan.pages or not set().union(*found) - set(keys):
                break
            if left := [other for other in of_query if other not in keys]:
                keys.append(rng.choice(left))
        others = [self.features.load(*other) for other in keys[1:]]
        if not crosses:
            return [page, *others], [answered, *(self._answered(other, rng) for other in others)]
        each = max(1, (self.plan.queries - len(made)) // max(1, len(others)))
        queries = [made, *(own_queries(other, each, rng) for other in others)]
        return [page, *others], cross_queries([page, *others], queries)

    def _answered(self, page: ReadPage, rng: random.Random) -> list[LabelledQuery]:
        """Queries that the page answers: at most half are its questions, the others are phrases."""
        questions = [question.text for question in page.questions if usable(question.text)]
        rng.shuffle(questions)
        texts = questions[: self.plan.queries // 2]
        for _ in range(self.plan.queries - len(texts)):
            text = phrase(page, rng, 2, 8)
            if text:
                texts.append(text.lower() if rng.random() < 0.5 else text)
        return [LabelledQuery(text, True) for text in texts]


def batch_seed(seed: int, start: Checkpoint | None) -> str:
    """The seed of the batches. ``start``: the trained weights that a run starts from.

    With the config's seed alone, every stage of a training would repeat the batches of the first stage.
    """
    return f"{seed}/{start.revision}" if start else str(seed)
