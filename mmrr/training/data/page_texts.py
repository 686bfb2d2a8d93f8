"""Page texts with queries, made from documents without drawing: training data of a text reranker. Seeded.

Documents are joined into reports as for drawn pages. A report is cut into pages by the number of words.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrr.errors import MmrrError
from mmrr.training.data.cell_targets import fold
from mmrr.training.data.pairs import Groups
from mmrr.training.data.queries import LabelledQuery, labelled_queries, phrase
from mmrr.training.data.records import is_text, read_json_lines
from mmrr.training.synthetic.page_pool import LocatedQuestion, answering_pages, block_texts
from mmrr.training.synthetic.reports import ReportQuestion, make_report, with_text
from mmrr.training.synthetic.sources import Block, Document

#: The most pages of a report, and the fewest words of a full page.
MAX_PAGES, MIN_WORDS = 8, 60
#: Words of a line in reports with printed lines, and the share of these reports. The others have one line a paragraph.
LINE_WORDS, PRINTED = (5, 16), 0.6
#: The lines of a page: the words of each line, and the block that it is from.
_Lines = list[tuple[list[str], int]]


@dataclass(frozen=True, slots=True)
class PageText:
    """One page. ``words``, ``folded``, ``blocks`` and ``questions`` mean the same as in ``ReadPage``."""

    text: str
    words: tuple[str, ...]
    folded: tuple[str, ...]
    blocks: tuple[int, ...]
    questions: tuple[LocatedQuestion, ...]  # those answered on this page


class TextReports:
    """Reports by number, of one to eight pages. The same documents and seed give the same pages."""

    def __init__(self, documents: Sequence[Document], seed: int, words: int) -> None:
        """``words``: the most words of a page. The pages of one report have the same length.

        The logarithm of the length is uniform, from 60 words (or ``words``, if that is less) to ``words``.

        Raises:
            MmrrError: No document has text.
        """
        self.documents, self.seed, self.words = with_text(documents), seed, words

    def pages(self, number: int) -> list[PageText]:
        """The pages of report ``number``."""
        rng = random.Random(f"{self.seed}/pages/{number}")
        shortest = min(MIN_WORDS, self.words)
        n_words = round(shortest * (self.words / shortest) ** rng.random())
        width = rng.randint(*LINE_WORDS) if rng.random() < PRINTED else 0
        report = make_report(self.documents, number, self.seed)
        flow = [(words, i) for i, block in enumerate(report.blocks) for words in _block_lines(block, width)]
        pages = _paginate(flow, n_words)
        cut = {block for page in pages[MAX_PAGES:] for _, block in page}
        pages = pages[:MAX_PAGES]
        questions = _locate(report, pages, cut)
        return [_page(page, [one for one in questions if n in one.pages]) for n, page in enumerate(pages)]


def _paginate(flow: _Lines, n_words: int) -> list[_Lines]:
    """The lines of each page of ``n_words`` words. A line that does not fit continues on the next page."""
    pages: list[_Lines] = [[]]
    room = n_words
    for words, block in flow:
        rest = words
        while rest:
            if not room:
                pages.append([])
                room = n_words
            pages[-1].append((rest[:room], block))
            rest, room = rest[room:], room - min(room, len(rest))
    return pages


def _block_lines(block: Block, width: int) -> list[list[str]]:
    """The words of each line of a block: the rows of a table, the lines of code, text in lines of ``width`` words.

    ``width`` 0: the lines of the text.
    """
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


def _page(lines_of_page: _Lines, questions: Sequence[LocatedQuestion]) -> PageText:
    words = tuple(word for line, _ in lines_of_page for word in line)
    blocks = tuple(block for line, block in lines_of_page for _ in line)
    text = "\n".join(" ".join(line) for line, _ in lines_of_page)
    return PageText(text, words, tuple(map(fold, words)), blocks, tuple(questions))


def _locate(report: Document, pages: Sequence[_Lines], cut: set[int]) -> list[LocatedQuestion]:
    """The questions whose pages are known, by the rule of ``PagePool.questions``. ``cut``: blocks that are cut off."""
    texts = [block_texts((block, word) for line, block in page for word in line) for page in pages]
    found = []
    for question in report.questions:
        assert isinstance(question, ReportQuestion)
        if numbers := answering_pages(question, texts, cut=question.block in cut):
            found.append(LocatedQuestion(question.text, question.answer, tuple(numbers)))
    return found


# Batches


@dataclass(frozen=True, slots=True)
class Example:
    """A query and its target P(yes) for a page: 0, 1 or a teacher's probability."""

    query: str
    yes: float


@dataclass(frozen=True, slots=True)
class Batch:
    """The texts of a few pages, the queries of each, and the ratios at which the pages are pooled."""

    pages: list[str]
    queries: list[list[Example]]
    ratios: tuple[int, ...] = field(default=(4,))


@dataclass(frozen=True, slots=True)
class BatchSize:
    """What a batch has: pages, queries of each page, and pooling ratios."""

    pages: int
    queries: int
    ratios: tuple[int, ...]
    ratios_a_step: int  # random ones of ``ratios``; 0: all

    def draw_ratios(self, rng: random.Random) -> tuple[int, ...]:
        """The ratios of one batch."""
        return tuple(rng.sample(list(self.ratios), self.ratios_a_step) if self.ratios_a_step else self.ratios)


class BatchMaker:
    """Step number -> Batch: neighbouring pages of one report and pages of another report."""

    def __init__(self, reports: TextReports, n_reports: int, seed: int, size: BatchSize) -> None:
        """About half of the queries of a page are answered by it."""
        self.reports, self.n_reports, self.seed, self.size = reports, n_reports, seed, size

    def __call__(self, step: int) -> Batch:
        rng = random.Random(f"{self.seed}/texts/{step}")
        pages: list[Any] = []  # PageText: it has the fields of a ReadPage that ``labelled_queries`` reads
        for share in (2, 1):  # the hardest negatives are pages of the same report
            report = self.reports.pages(rng.randrange(self.n_reports))
            n = min(len(report), max(1, self.size.pages * share // 3) if share == 2 else self.size.pages - len(pages))
            first = rng.randint(0, len(report) - n)
            pages += report[first : first + n]
        queries: list[list[Example]] = []
        for page in pages:
            others = [other for other in pages if other is not page]
            labelled: list[LabelledQuery] = labelled_queries(page, others, self.size.queries, rng)
            queries.append([Example(one.text, float(one.relevant)) for one in labelled])
        return Batch([page.text for page in pages], queries, self.size.draw_ratios(rng))


@dataclass(frozen=True, slots=True)
class Trial:
    """A report to rank: its pages, and queries with the numbers of their relevant pages (some pages, not all)."""

    pages: list[str]
    queries: list[tuple[str, frozenset[int]]]


def trials(reports: TextReports, numbers: Sequence[int], queries: int) -> dict[str, list[Trial]]:
    """Query kind (``question`` or ``phrase``) -> one Trial a report, with at most ``queries`` queries of that kind."""
    found: dict[str, list[Trial]] = {"question": [], "phrase": []}
    for number in numbers:
        rng = random.Random(f"{reports.seed}/trials/{number}")
        pages = reports.pages(number)
        known = {one.text: one for page in pages for one in page.questions if len(one.pages) < len(pages)}
        chosen = rng.sample(sorted(known), min(queries, len(known)))
        questions = [(text, frozenset(known[text].pages)) for text in chosen]
        phrases = list(_unique_phrases(pages, queries, rng))
        for kind, queries_of_kind in (("question", questions), ("phrase", phrases)):
            if len(pages) > 1 and queries_of_kind:
                found[kind].append(Trial([page.text for page in pages], queries_of_kind))
    return found


def _unique_phrases(pages: list[Any], n: int, rng: random.Random) -> Iterator[tuple[str, frozenset[int]]]:
    """About ``n`` phrases that occur on one page only, with the number of that page. ``pages``: of PageText."""
    folded = [f" {' '.join(page.folded)} " for page in pages]
    for number, page in enumerate(pages):
        for _ in range(-(-n // len(pages))):
            text = phrase(page, rng, 3, 6)
            words = f" {' '.join(map(fold, text.split()))} " if text else ""
            if text and [words in of_page for of_page in folded].count(True) == 1:
                yield text, frozenset([number])


# Pairs


@dataclass(frozen=True, slots=True)
class TextPair:
    """One line of the file: the text of a page, a query, and the target P(yes)."""

    text: str
    query: str
    yes: float


def read_text_pairs(path: Path) -> list[TextPair]:
    """Read the pairs in order: ``query``, ``text``, and ``teacher``, a probability, or ``relevant``, true or false.

    ``teacher`` takes precedence over ``relevant``.

    Raises:
        MmrrError: A field is missing or has another type, with the line's number; or the file is empty.
    """
    pairs = []
    for place, record in read_json_lines(path, "query, text, relevant"):
        for name in ("query", "text"):
            if not is_text(record.get(name)):
                raise MmrrError(f"{place}: {name} = {record.get(name)!r}, expected a text")
        teacher, relevant = record.get("teacher"), record.get("relevant")
        if teacher is not None:
            if isinstance(teacher, bool) or not isinstance(teacher, int | float) or not 0 <= teacher <= 1:
                raise MmrrError(f"{place}: teacher = {teacher!r}, expected a number from 0 to 1")
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
    """Batch number -> Batch: texts with their queries. Each pair comes once an epoch; the order depends on the seed."""

    def __init__(self, pairs: Sequence[TextPair], seed: int, size: BatchSize) -> None:
        """``size.queries``: queries of a page, at most."""
        self.groups = Groups(pairs, lambda pair: pair.text, seed, size.queries)
        self.seed, self.size = seed, size

    def __call__(self, number: int) -> Batch:
        groups = self.groups.batch(number, self.size.pages)
        queries = [[Example(pair.query, pair.yes) for pair in group] for group in groups]
        rng = random.Random(f"{self.seed}/ratios/{number}")
        return Batch([group[0].text for group in groups], queries, self.size.draw_ratios(rng))
