"""A retrieval benchmark out of texts: drawn reports as PDFs without a text layer, queries, and the pages that answer.

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
from mmrr.training.synthetic.page_pool import Pool, fold
from mmrr.training.synthetic.reports import bind, with_text
from mmrr.training.synthetic.sources import Block, Document

#: What ``mmrr index`` renders at unless told otherwise: pages come back at the size in which they were drawn.
DPI = 150
#: Small coloured letters lose their edges to the usual quality of 75 and to halved colour.
JPEG = {"quality": 95, "subsampling": 0}
#: Questions and phrases of one page, at most, of each: more would measure few pages many times.
PER_PAGE = 5
PHRASE_WORDS = (3, 6)
#: Places tried on a page before it is passed over: a page of repeated lines has no phrase of its own.
TRIES = 20


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What was written: PDFs, their pages, queries of each kind."""

    folder: Path
    documents: int
    pages: int
    questions: int
    phrases: int


@dataclass(frozen=True, slots=True)
class _Page:
    id: str
    text: str  # casefolded
    folded: str  # its words, to look for answers
    runs: tuple[tuple[int, tuple[str, ...]], ...]  # block, its words in a row
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
    *,
    pages: int = 200,
    questions: int = 300,
    phrases: int = 300,
    seed: int = 0,
    advance: Callable[[int], None] = lambda n: None,
) -> Benchmark:
    """Write ``report-0001.pdf``, ..., ``queries.jsonl`` and ``qrels.trec`` into the folder ``out``, all or nothing.

    A question is a document's own whose answering pages are known; a phrase is some words in a row that stand on one
    page alone. Both are spread over the pages; fewer are written where the pages hold fewer. The same documents, seed
    and fonts give the same benchmark. ``advance`` is called with the number of pages drawn.

    Raises:
        MmrrError: ``out`` holds something or cannot be written, or the documents hold nothing that can be drawn.
    """
    texts = with_text(documents)
    out = Path(os.path.abspath(out))
    scratch = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        _check_free(out)
        scratch.mkdir(parents=True)
        pool = Pool(scratch / "pool", texts, seed)
        drawn, asked = _draw(pool, pages, scratch, advance)
        shutil.rmtree(pool.folder)
        queries = _questions(asked, questions, random.Random(f"{seed}/questions"))
        n_questions = len(queries)
        queries += _phrases(drawn, phrases, random.Random(f"{seed}/phrases"))
        _write(queries, scratch)
        if out.exists():
            out.rmdir()
        scratch.rename(out)
    except OSError as error:
        if error.errno is None:  # not the file system's
            raise
        raise MmrrError(f"{out} cannot be written: {error.strerror}; nothing was kept") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    n_documents = len({page.id.partition("/")[0] for page in drawn})
    return Benchmark(out, n_documents, len(drawn), n_questions, len(queries) - n_questions)


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "holds files already" if out.is_dir() else "is a file"
        raise MmrrError(f"{out} {what}; expected a new or an empty folder for the benchmark")


# Drawing


def _draw(
    pool: Pool, n_pages: int, folder: Path, advance: Callable[[int], None]
) -> tuple[list[_Page], dict[str, _Query]]:
    """Reports until there are ``n_pages``, the last one shortened; their pages, and all they are asked."""
    natural = {block for document in pool.documents for block in document.blocks}
    natural |= {Block("heading", document.title, level=1) for document in pool.documents}
    drawn: list[_Page] = []
    asked: dict[str, _Query] = {}
    doubtful: set[str] = set()
    number = -1
    while len(drawn) < n_pages:
        number += 1
        report = bind(pool.documents, number, pool.seed)
        # A scrambled report asks nothing, and would answer what is asked of its texts elsewhere, half legibly.
        if not natural.issuperset(report.blocks):
            continue
        whole = pool.pages(number)
        kept = min(whole, n_pages - len(drawn))
        name = f"report-{len({page.id.partition('/')[0] for page in drawn}) + 1:04d}.pdf"
        sheets = [pool.page(number, at) for at in range(kept)]
        _save(sheets, folder / name)
        pages = [_page(sheet, f"{name}/{at:04d}", report) for at, sheet in enumerate(sheets, 1)]
        _ask(pool, number, report, pages, kept < whole, asked, doubtful)
        drawn += pages
        advance(kept)
    return drawn, {key: query for key, query in asked.items() if key not in doubtful}


def _save(sheets: Sequence[DrawnPage], path: Path) -> None:
    first, *others = [sheet.image for sheet in sheets]
    # Without dates, the same pages are the same bytes.
    dates = {"creationDate": None, "modDate": None}
    first.save(path, "PDF", save_all=True, append_images=others, resolution=DPI, **JPEG, **dates)


def _page(sheet: DrawnPage, page_id: str, report: Document) -> _Page:
    groups = groupby(sheet.words, lambda word: word.block if _legible(word, sheet.image.size) else -1)
    runs = tuple((block, tuple(word.text for word in words)) for block, words in groups if block >= 0)
    return _Page(page_id, sheet.text().casefold(), fold(sheet.text()), runs, report)


def _legible(word: Word, size: tuple[int, int]) -> bool:
    """Whether all of it is on the page, in characters that fonts for English commonly have."""
    plain = word.text.isprintable() and all(char < "\u0180" or char in "–—‘’“”•…" for char in word.text)
    return plain and bool(((word.centres >= 0) & (word.centres < size)).all())


# Queries


def _ask(
    pool: Pool,
    number: int,
    report: Document,
    pages: Sequence[_Page],
    cut: bool,
    asked: dict[str, _Query],
    doubtful: set[str],
) -> None:
    """Add what report ``number`` is asked, under the question's folded text: one document may be in many reports."""
    placed = set()
    for question in pool.questions(number):
        text = " ".join(question.text.split())
        key, answer = text.casefold(), fold(question.answer)
        placed.add(key)
        sure = [at for at in question.pages if at < len(pages)]
        if cut and question.pages[-1] >= len(pages) - 1:  # the cut may have taken the part of the block that answers
            sure = [at for at in sure if answer.strip() and answer in pages[at].folded]
        written = " ".join(question.answer.split())
        if not sure or not (key and (text + written).isprintable()):
            continue
        query = asked.setdefault(key, _Query(text, "question"))
        query.answers += [written] * (written != "" and written not in query.answers)
        query.pages += [page for at in sure if (page := pages[at].id) not in query.pages]
    for unplaced in report.questions:
        key, answer = " ".join(unplaced.text.split()).casefold(), fold(unplaced.answer)
        # Its answer is on several pages here, so that the pages known from another report are not all of them.
        if unplaced.block is None and key not in placed and any(answer in page.folded for page in pages):
            doubtful.add(key)


def _questions(asked: dict[str, _Query], n: int, rng: random.Random) -> list[_Query]:
    """``n`` of them, one of each page before a second of any."""
    by_page: dict[str, list[_Query]] = {}
    for query in asked.values():
        by_page.setdefault(query.pages[0], []).append(query)
    turns = list(by_page.values())
    rng.shuffle(turns)
    for queries in turns:
        rng.shuffle(queries)
    return [queries[turn] for turn in range(PER_PAGE) for queries in turns if turn < len(queries)][:n]


def _phrases(pages: Sequence[_Page], n: int, rng: random.Random) -> list[_Query]:
    """``n`` phrases, one of each page before a second of any, each on one page alone."""
    everything = "\n".join(page.text for page in pages)  # words have no line ends: one line, one page
    found: dict[str, _Query] = {}
    order = list(pages)
    rng.shuffle(order)
    for page in order * PER_PAGE:
        if len(found) >= n:
            break
        for phrase in _tried(page, rng):
            key = phrase.casefold()
            first, last = everything.find(key), everything.rfind(key)
            if key not in found and "\n" not in everything[first:last]:
                found[key] = _Query(phrase, "phrase", [], [page.id])
                break
    return list(found.values())


def _tried(page: _Page, rng: random.Random) -> Iterator[str]:
    """Some phrases of a page as its text has them: within a line, a list item or a table row."""
    least, most = PHRASE_WORDS
    runs = [run for run in page.runs if len(run[1]) >= least]
    for _ in range(TRIES if runs else 0):
        block, words = rng.choices(runs, [len(run[1]) for run in runs])[0]
        start = rng.randint(0, len(words) - least)
        chosen = words[start : start + rng.randint(least, most)]
        phrase = " ".join(chosen)
        worded = sum(any(char.isalnum() for char in word) for word in chosen) >= least
        # A word that was cut to fit its line, and the end of one row with the start of the next, are not in the text.
        if worded and any(f" {phrase} " in f" {line} " for line in _lines(page.report.blocks[block])):
            yield phrase


def _lines(block: Block) -> list[str]:
    lines = [" ".join(row) for row in block.rows] if block.kind == "table" else block.text.splitlines()
    return [line for line in (" ".join(line.split()) for line in lines) if line]


# Writing


def _write(queries: Sequence[_Query], folder: Path) -> None:
    """The files that ``mmrr rerank --queries`` and ``mmrr eval --qrels`` read."""
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
