"""Pages of text with queries, from documents, without drawing any: what a text reranker is trained on. Seeded.

Documents are bound into reports as the page factory does, and cut into pages by their number of words.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrr.errors import MmrrError
from mmrr.evaluation.trec import lines
from mmrr.training.data.cell_targets import fold
from mmrr.training.data.pairs import Groups
from mmrr.training.data.queries import Labelled, labelled, phrase
from mmrr.training.synthetic.page_pool import Asked, answering
from mmrr.training.synthetic.page_pool import fold as spaced
from mmrr.training.synthetic.reports import BoundQuestion, bind, with_text
from mmrr.training.synthetic.sources import Block, Document

#: The most pages of a report, and the fewest words of a full page.
MAX_PAGES, LEAST_WORDS = 8, 60
#: Words a line, where lines are as long as print makes them; and the share of the reports where they are.
LINE, PRINTED = (5, 16), 0.6


@dataclass(frozen=True, slots=True)
class PageText:
    """One page. ``words``, ``folded``, ``blocks`` and ``questions`` are as ``training.queries`` asks for them."""

    text: str
    words: tuple[str, ...]
    folded: tuple[str, ...]
    blocks: tuple[int, ...]
    questions: tuple[Asked, ...]  # those answered on this page


class Reports:
    """Reports by number, of one to eight pages. The same documents and seed give the same pages."""

    def __init__(self, documents: Sequence[Document], seed: int, words: int) -> None:
        """``words``: the most of a page. A report's pages are of one length, short ones as likely as long ones.

        Raises MmrrError if no document has text.
        """
        self.documents, self.seed, self.words = with_text(documents), seed, words

    def pages(self, number: int) -> list[PageText]:
        rng = random.Random(f"{self.seed}/pages/{number}")
        least = min(LEAST_WORDS, self.words)
        n_words = round(least * (self.words / least) ** rng.random())
        line = rng.randint(*LINE) if rng.random() < PRINTED else 0
        report = bind(self.documents, number, self.seed)
        flow = [(words, i) for i, block in enumerate(report.blocks) for words in _lines(block, line)]
        pages: list[list[tuple[list[str], int]]] = [[]]
        room = n_words
        for words, block in flow:
            rest = words
            while rest:
                if not room:
                    pages.append([])
                    room = n_words
                pages[-1].append((rest[:room], block))
                rest, room = rest[room:], room - min(room, len(rest))
        cut = {block for page in pages[MAX_PAGES:] for _, block in page}
        pages = pages[:MAX_PAGES]
        asked = _asked(report, pages, cut)
        return [_page(page, [one for one in asked if n in one.pages]) for n, page in enumerate(pages)]


def _lines(block: Block, width: int) -> list[list[str]]:
    """Words of each line: a table's rows, the lines of code and lists as they are, text as wide as said (0: one)."""
    if block.kind == "table":
        return [words for row in block.rows if (words := " ".join(row).split())]
    if block.kind == "code":
        return [words for line in block.text.split("\n") if (words := line.split())]
    found = []
    for line in block.text.split("\n"):
        words = line.split()
        step = width or max(1, len(words))
        found += [words[at : at + step] for at in range(0, len(words), step)]
    return found


def _page(written: Sequence[tuple[list[str], int]], asked: Sequence[Asked]) -> PageText:
    words = tuple(word for line, _ in written for word in line)
    blocks = tuple(block for line, block in written for _ in line)
    text = "\n".join(" ".join(line) for line, _ in written)
    return PageText(text, words, tuple(map(fold, words)), blocks, tuple(asked))


def _asked(report: Document, pages: Sequence[Sequence[tuple[list[str], int]]], cut: set[int]) -> list[Asked]:
    """Questions whose pages are known, by the page factory's rule; ``cut``: blocks that are not all on the pages."""
    texts: list[dict[int, str]] = []  # of each page: block -> its words, folded
    for page in pages:
        words: dict[int, list[str]] = {}
        for line, block in page:
            words.setdefault(block, []).extend(line)
        texts.append({block: spaced(" ".join(its)) for block, its in words.items()})
    found = []
    for question in report.questions:
        assert isinstance(question, BoundQuestion)
        if numbers := answering(question, texts, question.block in cut):
            found.append(Asked(question.text, question.answer, tuple(numbers)))
    return found


# Batches


@dataclass(frozen=True, slots=True)
class Example:
    """A query and the probability of yes that it should have on its page: 0 or 1, or a teacher's."""

    query: str
    yes: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of a few pages, the queries each is judged for, and the ratios that the pages are pooled at."""

    pages: list[str]
    queries: list[list[Example]]
    ratios: tuple[int, ...] = field(default=(4,))


class BatchMaker:
    """Step number -> Batch: neighbouring pages of one report, and some of another."""

    def __init__(
        self, reports: Reports, n_reports: int, seed: int, pages: int, queries: int, ratios: Sequence[int], at_once: int
    ) -> None:
        """``queries``: a page, about half of them answered by it. ``at_once``: ratios a step, of ``ratios``; 0: all."""
        self.reports, self.n_reports, self.seed = reports, n_reports, seed
        self.n_pages, self.n_queries = pages, queries
        self.ratios, self.at_once = tuple(ratios), at_once

    def __call__(self, step: int) -> Batch:
        rng = random.Random(f"{self.seed}/texts/{step}")
        pages: list[Any] = []  # ``labelled`` reads of a page what PageText has
        for share in (2, 1):  # the hardest negatives are pages of one report
            report = self.reports.pages(rng.randrange(self.n_reports))
            n = min(len(report), max(1, self.n_pages * share // 3) if share == 2 else self.n_pages - len(pages))
            first = rng.randint(0, len(report) - n)
            pages += report[first : first + n]
        queries: list[list[Example]] = []
        for page in pages:
            others = [other for other in pages if other is not page]
            asked: list[Labelled] = labelled(page, others, self.n_queries, rng)
            queries.append([Example(one.text, float(one.relevant)) for one in asked])
        return Batch([page.text for page in pages], queries, _some(self.ratios, self.at_once, rng))


@dataclass(frozen=True, slots=True)
class Trial:
    """A report's pages and queries that are answered on some of them, but not on all."""

    pages: list[str]
    queries: list[tuple[str, frozenset[int]]]


def trials(reports: Reports, numbers: Sequence[int], queries: int) -> dict[str, list[Trial]]:
    """Of each kind of query, ``question`` and ``phrase``, reports with at most so many of it."""
    found: dict[str, list[Trial]] = {"question": [], "phrase": []}
    for number in numbers:
        rng = random.Random(f"{reports.seed}/trials/{number}")
        pages: list[Any] = reports.pages(number)
        asked = {one.text: one for page in pages for one in page.questions if len(one.pages) < len(pages)}
        chosen = rng.sample(sorted(asked), min(queries, len(asked)))
        questions = [(text, frozenset(asked[text].pages)) for text in chosen]
        folded = [f" {' '.join(page.folded)} " for page in pages]
        phrases = []
        for n, page in enumerate(pages):
            for _ in range(-(-queries // len(pages))):
                text = phrase(page, rng, 3, 6)
                words = f" {' '.join(map(fold, text.split()))} " if text else ""
                if text and [words in there for there in folded].count(True) == 1:
                    phrases.append((text, frozenset([n])))
        for kind, queries_of_kind in (("question", questions), ("phrase", phrases)):
            if len(pages) > 1 and queries_of_kind:
                found[kind].append(Trial([page.text for page in pages], queries_of_kind))
    return found


# Pairs


@dataclass(frozen=True, slots=True)
class TextPair:
    """One line: a text, a query, and the probability of yes."""

    text: str
    query: str
    yes: float


def read_text_pairs(path: Path) -> list[TextPair]:
    """Read pairs in order: ``query``, ``text``, and ``relevant`` or a ``teacher``'s P(yes), which comes first.

    Raises MmrrError with the line's number for a field that is missing or of another kind.
    """
    pairs = []
    for n, line in lines(path):
        place = f"{path.name}, line {n}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MmrrError(f"{place}: no valid JSON ({error}), expected query, text, relevant") from error
        if not isinstance(record, dict):
            raise MmrrError(f"{place}: found no object, expected one with query, text, relevant")
        for name in ("query", "text"):
            if not isinstance(record.get(name), str) or not record[name].strip():
                raise MmrrError(f"{place}: {name} = {record.get(name)!r}, expected a text")
        teacher, relevant = record.get("teacher"), record.get("relevant")
        if teacher is not None:
            if isinstance(teacher, bool) or not isinstance(teacher, int | float) or not 0 <= teacher <= 1:
                raise MmrrError(f"{place}: teacher = {teacher!r}, expected a probability")
            yes = float(teacher)
        elif isinstance(relevant, bool):
            yes = float(relevant)
        else:
            raise MmrrError(f"{place}: relevant = {relevant!r}, expected true or false, or a teacher's P(yes)")
        pairs.append(TextPair(record["text"], record["query"], yes))
    if not pairs:
        raise MmrrError(f"{path.name} is empty, expected at least one pair")
    return pairs


class PairMaker:
    """Batch number -> Batch: a text with its queries, each pair once an epoch; order by seed and epoch alone."""

    def __init__(
        self, pairs: Sequence[TextPair], seed: int, pages: int, queries: int, ratios: Sequence[int], at_once: int
    ) -> None:
        """``pages`` a batch, ``queries`` a page at most; ``at_once``: ratios a step, 0: all."""
        self.groups = Groups(pairs, lambda pair: pair.text, seed, queries)
        self.seed, self.pages, self.ratios, self.at_once = seed, pages, ratios, at_once

    def __call__(self, number: int) -> Batch:
        groups = self.groups.batch(number, self.pages)
        queries = [[Example(pair.query, pair.yes) for pair in group] for group in groups]
        rng = random.Random(f"{self.seed}/ratios/{number}")
        return Batch([group[0].text for group in groups], queries, _some(self.ratios, self.at_once, rng))


def _some(ratios: Sequence[int], n: int, rng: random.Random) -> tuple[int, ...]:
    """``n`` of them by chance; 0: all."""
    return tuple(rng.sample(list(ratios), n) if n else ratios)
