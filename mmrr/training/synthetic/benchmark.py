"""A retrieval benchmark from texts: drawn reports as PDFs without a text layer, queries, and the relevant pages.

Knows texts, drawn pages and the two file formats. Knows nothing of models, rendering or workspaces.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from mmrr.errors import MmrrError
from mmrr.training.synthetic.canvas import DrawnPage, Word
from mmrr.training.synthetic.page_pool import LocatedQuestion, PagePool, fold_words
from mmrr.training.synthetic.reports import make_report, with_text
from mmrr.training.synthetic.sources import Block, Document

#: The default resolution of ``mmrr index``, so that rendered pages have the size in which they were drawn.
DPI = 150
#: Pillow's defaults, quality 75 and half the colour resolution, blur the edges of small coloured letters.
JPEG = {"quality": 95, "subsampling": 0}
#: The most questions of one page, and the most phrases. Higher numbers would measure few pages many times.
PER_PAGE = 5
#: Fewest and most words of a phrase.
PHRASE_WORDS = (3, 6)
#: Attempts to find a phrase of a page before the page is skipped. A page of repeated lines has no phrase of its own.
TRIES = 20


@dataclass(frozen=True, slots=True)
class BenchmarkSize:
    """What to draw. ``questions`` and ``phrases`` are upper bounds."""

    pages: int = 200
    questions: int = 300
    phrases: int = 300


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What was written: the folder, and the numbers of PDFs, pages and queries of each kind."""

    folder: Path
    documents: int
    pages: int
    questions: int
    phrases: int


@dataclass(frozen=True, slots=True)
class BenchmarkPage:
    """A drawn page and its texts."""

    id: str
    text: str  # casefolded
    folded: str  # after ``fold_words``
    runs: tuple[tuple[int, tuple[str, ...]], ...]  # block and consecutive legible words
    report: Document


@dataclass(slots=True)
class _Query:
    text: str
    kind: str
    answers: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)


def draw_benchmark(
    documents: Sequence[Document],
    out: Path,
    size: BenchmarkSize,
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> Benchmark:
    """Write ``report-0001.pdf``, ..., ``queries.jsonl`` and ``qrels.trec`` into the folder ``out``, or nothing.

    The questions are those of the documents whose answering pages are known. A phrase is a few consecutive words that
    occur on one page only. Both are spread over the pages. Fewer are written if the pages have fewer. The same
    documents, seed and fonts give the same benchmark. ``advance`` is called with the number of pages drawn.

    Raises:
        MmrrError: ``out`` is not empty or cannot be written, or the documents have no text that can be drawn.
    """
    texts = with_text(documents)
    out = Path(os.path.abspath(out))
    scratch = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        _check_free(out)
        scratch.mkdir(parents=True)
        pool = PagePool(scratch / "pool", texts, seed)
        drawn, found = draw_pages(pool, size.pages, scratch, advance)
        shutil.rmtree(pool.folder)
        queries = _choose_questions(found, size.questions, random.Random(f"{seed}/questions"))
        n_questions = len(queries)
        queries += _choose_phrases(drawn, size.phrases, random.Random(f"{seed}/phrases"))
        _write(queries, scratch)
        if out.exists():
            out.rmdir()
        scratch.rename(out)
    except OSError as error:
        if error.errno is None:  # not an error of the file system
            raise
        raise MmrrError(f"{out} cannot be written: {error.strerror}; nothing was written") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    n_documents = len({page.id.partition("/")[0] for page in drawn})
    return Benchmark(out, n_documents, len(drawn), n_questions, len(queries) - n_questions)


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds files already" if out.is_dir() else "is a file"
        raise MmrrError(f"{out} {what}; expected a new or an empty folder for the benchmark")


# Drawing


def draw_pages(
    pool: PagePool, n_pages: int, folder: Path, advance: Callable[[int], None]
) -> tuple[list[BenchmarkPage], list[_Query]]:
    """Write reports as PDFs until there are ``n_pages``; the last one is cut. Returns the pages and all questions."""
    natural = {block for document in pool.documents for block in document.blocks}
    natural |= {Block("heading", document.title, level=1) for document in pool.documents}
    drawn: list[BenchmarkPage] = []
    questions = _Questions()
    n_reports, number = 0, -1
    while len(drawn) < n_pages:
        number += 1
        report = make_report(pool.documents, number, pool.seed)
        # A scrambled report has no questions, and its pages would half answer the questions of other reports.
        if not natural.issuperset(report.blocks):
            continue
        n_reports += 1
        n_whole = pool.page_count(number)
        n_drawn = min(n_whole, n_pages - len(drawn))
        name = f"report-{n_reports:04d}.pdf"
        sheets = [pool.page(number, at) for at in range(n_drawn)]
        _save(sheets, folder / name)
        pages = [_page(sheet, f"{name}/{at:04d}", report) for at, sheet in enumerate(sheets, 1)]
        questions.add(pool.questions(number), report, pages, cut=n_drawn < n_whole)
        drawn += pages
        advance(n_drawn)
    return drawn, questions.unambiguous()


def _save(sheets: Sequence[DrawnPage], path: Path) -> None:
    first, *others = [sheet.image for sheet in sheets]
    # Without dates the same pages give the same bytes.
    dates = {"creationDate": None, "modDate": None}
    first.save(path, "PDF", save_all=True, append_images=others, resolution=DPI, **JPEG, **dates)


def _page(sheet: DrawnPage, page_id: str, report: Document) -> BenchmarkPage:
    groups = groupby(sheet.words, lambda word: word.block if _is_legible(word, sheet.image.size) else -1)
    runs = tuple((block, tuple(word.text for word in words)) for block, words in groups if block >= 0)
    return BenchmarkPage(page_id, sheet.text().casefold(), fold_words(sheet.text()), runs, report)


def _is_legible(word: Word, size: tuple[int, int]) -> bool:
    """Whether the whole word is on the page and has only characters that fonts for English usually have."""
    plain = word.text.isprintable() and all(char < "\u0180" or char in "–—‘’“”•…" for char in word.text)
    return plain and bool(((word.centres >= 0) & (word.centres < size)).all())


# Queries


class _Questions:
    """The questions of all reports by their folded text: several reports may have the same document."""

    def __init__(self) -> None:
        self.queries: dict[str, _Query] = {}
        self.ambiguous: set[str] = set()

    def add(
        self, located: Sequence[LocatedQuestion], report: Document, pages: Sequence[BenchmarkPage], *, cut: bool
    ) -> None:
        """Add the questions of one report. ``cut``: only its first pages were drawn."""
        placed = set()
        for question in located:
            text = " ".join(question.text.split())
            key, answer = text.casefold(), fold_words(question.answer)
            placed.add(key)
            relevant = [at for at in question.pages if at < len(pages)]
            if cut and question.pages[-1] >= len(pages) - 1:  # the answering part of the block may be cut off
                relevant = [at for at in relevant if answer.strip() and answer in pages[at].folded]
            written = " ".join(question.answer.split())
            if not relevant or not (key and (text + written).isprintable()):
                continue
            query = self.queries.setdefault(key, _Query(text, "question"))
            query.answers += [written] * (written != "" and written not in query.answers)
            query.pages += [page for at in relevant if (page := pages[at].id) not in query.pages]
        for unplaced in report.questions:
            key, answer = " ".join(unplaced.text.split()).casefold(), fold_words(unplaced.answer)
            # The answer is on several pages of this report, so the pages known from other reports are not all.
            if unplaced.block is None and key not in placed and any(answer in page.folded for page in pages):
                self.ambiguous.add(key)

    def unambiguous(self) -> list[_Query]:
        """The questions whose relevant pages are all known."""
        return [query for key, query in self.queries.items() if key not in self.ambiguous]


def _choose_questions(queries: Sequence[_Query], n: int, rng: random.Random) -> list[_Query]:
    """Up to ``n`` questions: one for each page, then a second for each page, and so on."""
    by_page: dict[str, list[_Query]] = {}
    for query in queries:
        by_page.setdefault(query.pages[0], []).append(query)
    groups = list(by_page.values())
    rng.shuffle(groups)
    for group in groups:
        rng.shuffle(group)
    return [group[turn] for turn in range(PER_PAGE) for group in groups if turn < len(group)][:n]


def _choose_phrases(pages: Sequence[BenchmarkPage], n: int, rng: random.Random) -> list[_Query]:
    """Up to ``n`` phrases that occur on one page only: one for each page, then a second for each, and so on."""
    everything = "\n".join(page.text for page in pages)  # one line a page: words have no line ends
    found: dict[str, _Query] = {}
    order = list(pages)
    rng.shuffle(order)
    for page in order * PER_PAGE:
        if len(found) >= n:
            break
        for phrase in _sample_phrases(page, rng):
            key = phrase.casefold()
            first, last = everything.find(key), everything.rfind(key)
            if key not in found and "\n" not in everything[first:last]:
                found[key] = _Query(phrase, "phrase", [], [page.id])
                break
    return list(found.values())


def _sample_phrases(page: BenchmarkPage, rng: random.Random) -> Iterator[str]:
    """Random phrases of a page, each within one line, list item or table row of the text."""
    fewest, most = PHRASE_WORDS
    runs = [run for run in page.runs if len(run[1]) >= fewest]
    for _ in range(TRIES if runs else 0):
        block, words = rng.choices(runs, [len(run[1]) for run in runs])[0]
        start = rng.randint(0, len(words) - fewest)
        chosen = words[start : start + rng.randint(fewest, most)]
        phrase = " ".join(chosen)
        has_words = sum(any(char.isalnum() for char in word) for word in chosen) >= fewest
        # The text has neither the pieces of a word that was cut to fit its line, nor a phrase that spans two rows.
        if has_words and any(f" {phrase} " in f" {line} " for line in _lines(page.report.blocks[block])):
            yield phrase


def _lines(block: Block) -> list[str]:
    """The lines of a block's text, or the rows of its table, without extra spaces."""
    lines = [" ".join(row) for row in block.rows] if block.kind == "table" else block.text.splitlines()
    return [line for line in (" ".join(line.split()) for line in lines) if line]


# Writing


def _write(queries: Sequence[_Query], folder: Path) -> None:
    """Write the files that ``mmrr rerank --queries`` and ``mmrr eval --qrels`` read."""
    records, judgements = [], []
    for number, query in enumerate(queries, 1):
        query_id = f"{query.kind[0]}{number:04d}"
        record = {"query_id": query_id, "text": query.text, "kind": query.kind}
        if query.answers:
            record["answer"] = "; ".join(query.answers)
        records.append(json.dumps(record, ensure_ascii=False) + "\n")
        judgements += [f"{query_id} 0 {page} 1\n" for page in query.pages]
    (folder / "queries.jsonl").write_text("".join(records), encoding="utf-8")
    (folder / "qrels.trec").write_text("".join(judgements), encoding="utf-8")
