"""The page pool: drawn reports on disk. A page is drawn once and read many times. Safe for several processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image

from mmrr.errors import MmrrError
from mmrr.training.synthetic.canvas import DrawnPage, Word
from mmrr.training.synthetic.fonts import families
from mmrr.training.synthetic.reports import ReportQuestion, make_report, with_text
from mmrr.training.synthetic.sources import Block, Document
from mmrr.training.synthetic.typesetting import draw_document

#: Version of the stored format. Pools of another version are refused.
FORMAT = 1


class _StoredPage(TypedDict):
    """The words of one page as ``pages.json`` has them."""

    texts: list[str]
    blocks: list[int]
    centres: list[float]  # x and y of each character of each word, in pixels


class _StoredReport(TypedDict):
    """``pages.json`` of one report."""

    pages: list[_StoredPage]
    questions: list[tuple[str, str, list[int]]]  # text, answer, pages


@dataclass(frozen=True, slots=True)
class LocatedQuestion:
    """A question about a report, with the pages (counted from 0) that answer it."""

    text: str
    answer: str
    pages: tuple[int, ...]


class PagePool:
    """Reports by number. The same documents, seed and fonts give the same reports.

    Raises:
        MmrrError: No document has text, or the folder's reports have another origin.
    """

    def __init__(self, folder: Path, documents: Sequence[Document], seed: int, max_pages: int = 8) -> None:
        """``max_pages``: pages that are drawn of a report."""
        self.folder, self.documents, self.seed, self.max_pages = folder, with_text(documents), seed, max_pages
        self._cached: dict[int, _StoredReport] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._check_origin(documents)

    def page_count(self, report: int) -> int:
        """Number of pages of a report, at least one. Draws the report if needed."""
        return len(self._load(report)["pages"])

    def page(self, report: int, number: int) -> DrawnPage:
        """One page with its image and words."""
        words = self.words(report, number)
        with Image.open(self._folder_of(report) / f"{number}.png") as file:
            return DrawnPage(file.convert("RGB"), words)

    def words(self, report: int, number: int) -> tuple[Word, ...]:
        """The words of a page. The image is not read."""
        stored = self._load(report)["pages"][number]
        points = np.asarray(stored["centres"], dtype=np.float32).reshape(-1, 2)
        ends = np.cumsum([len(text) for text in stored["texts"]])[:-1]
        parts = np.split(points, ends) if stored["texts"] else []
        return tuple(Word(*word) for word in zip(stored["texts"], parts, stored["blocks"], strict=True))

    def questions(self, report: int) -> list[LocatedQuestion]:
        """The questions whose pages are known.

        If the answering block is known: the pages in which that block contains the answer's words. If there are none
        and the block is completely drawn: all pages of the block. If the block is unknown: the only page on which a
        block of the question's own document contains the answer; no page if there are several such pages, or if the
        answer has fewer than four characters. Answers are compared after ``fold_words``.
        """
        return [LocatedQuestion(text, answer, tuple(pages)) for text, answer, pages in self._load(report)["questions"]]

    def _check_origin(self, documents: Sequence[Document]) -> None:
        """Store what the reports are drawn from in ``pool.json``, or compare it with the stored origin."""
        fonts = [Path(file).name for family in families() for file in (family.regular, family.bold, family.italic)]
        ours = {
            "format": FORMAT,
            "documents": _digest(documents),
            "seed": self.seed,
            "max_pages": self.max_pages,
            "fonts": hashlib.sha256(json.dumps(fonts).encode()).hexdigest(),
        }
        file = self.folder / "pool.json"
        # List the folder before looking for the file: another process may create the file and draw in between.
        used = any(not path.name.startswith(".") for path in self.folder.iterdir())
        if not file.exists():
            if used:
                raise MmrrError(f"{self.folder} has files but no pool.json; expected a new or an empty folder")
            scratch = self.folder / f".pool-{uuid.uuid4().hex[:8]}"
            try:
                scratch.write_text(json.dumps(ours), encoding="utf-8")
                scratch.replace(file)
            finally:
                scratch.unlink(missing_ok=True)
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
            different = [key for key, value in ours.items() if theirs.get(key) != value]
        except (ValueError, AttributeError) as error:
            raise MmrrError(f"{file} is damaged; delete the folder, or name a new one as `pool`") from error
        if different:
            raise MmrrError(
                f"the page pool {self.folder} was drawn with other {', '.join(different)}; expected a new folder"
            )

    def _folder_of(self, report: int) -> Path:
        return self.folder / f"{report:06d}"

    def _load(self, report: int) -> _StoredReport:
        if report not in self._cached:
            file = self._folder_of(report) / "pages.json"
            if not file.exists():
                self._draw(report)
            if len(self._cached) > 64:
                self._cached.clear()
            self._cached[report] = json.loads(file.read_text(encoding="utf-8"))
        return self._cached[report]

    def _draw(self, report: int) -> None:
        """Draw a report into a temporary folder and rename it, so that other processes never see a part of it."""
        document = make_report(self.documents, report, self.seed)
        scratch = self.folder / f".drawing-{uuid.uuid4().hex[:8]}"
        pages: list[_StoredPage] = []
        try:
            scratch.mkdir()
            for number, page in enumerate(draw_document(document, self.seed + report, self.max_pages)):
                page.image.save(scratch / f"{number}.png", compress_level=1)
                centres = [round(float(value), 1) for word in page.words for value in word.centres.reshape(-1)]
                texts = [word.text for word in page.words]
                pages.append({"texts": texts, "blocks": [word.block for word in page.words], "centres": centres})
            if not pages:
                raise MmrrError(f"report {report} has no page: the fonts draw nothing of its documents")
            stored: _StoredReport = {"pages": pages, "questions": _locate(document, pages)}
            (scratch / "pages.json").write_text(json.dumps(stored), encoding="utf-8")
            try:
                os.rename(scratch, self._folder_of(report))
            except OSError:
                if not (self._folder_of(report) / "pages.json").exists():
                    raise  # the report was not drawn by another process
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def fold_words(text: str) -> str:
    """Words to compare: casefolded, stripped of punctuation at both ends, with one space before and after each."""
    words = " ".join(filter(None, map(_stripped, text.casefold().split())))
    return f" {words} "


def _stripped(word: str) -> str:
    """A word from its first letter or digit to its last."""
    known = [at for at, character in enumerate(word) if character.isalnum()]
    return word[known[0] : known[-1] + 1] if known else ""


def _digest(documents: Sequence[Document]) -> str:
    """Hash of the documents' content and order."""
    digest = hashlib.sha256()
    for one in documents:
        blocks = [[block.kind, block.text, block.rows, block.level] for block in one.blocks]
        questions = [[question.text, question.answer, question.block] for question in one.questions]
        digest.update(json.dumps([one.id, one.source, one.title, blocks, questions]).encode() + b"\n")
    return digest.hexdigest()


def _locate(report: Document, pages: list[_StoredPage]) -> list[tuple[str, str, list[int]]]:
    """Text, answer and pages of the questions whose pages are known."""
    texts = [block_texts(zip(page["blocks"], page["texts"], strict=True)) for page in pages]
    letters: Counter[int] = Counter()  # block -> letters and digits drawn
    for page in pages:
        for word, block in zip(page["texts"], page["blocks"], strict=True):
            letters[block] += _count_letters(word)
    found = []
    for question in report.questions:
        assert isinstance(question, ReportQuestion)
        cut = question.block is not None and (
            letters[question.block] < _count_letters(_block_text(report.blocks[question.block]))
        )
        if numbers := answering_pages(question, texts, cut=cut):
            found.append((question.text, question.answer, numbers))
    return found


def block_texts(words: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Block -> its words on one page after ``fold_words``. ``words``: (block, word) in reading order."""
    found: dict[int, list[str]] = {}
    for block, word in words:
        found.setdefault(block, []).append(word)
    return {block: fold_words(" ".join(of_block)) for block, of_block in found.items()}


def answering_pages(question: ReportQuestion, pages: Sequence[Mapping[int, str]], *, cut: bool) -> list[int]:
    """The pages that answer a question by the rule of ``PagePool.questions``; empty: unknown.

    ``pages``: the ``block_texts`` of each page. ``cut``: a part of the answering block is on none of the pages.
    """
    known, answer = question.block, fold_words(question.answer)
    blocks = range(question.first, question.last + 1) if known is None else (known,)
    with_block = [n for n, page in enumerate(pages) if any(block in page for block in blocks)]
    with_answer = [
        n for n in with_block if answer.strip() and any(answer in pages[n].get(block, "") for block in blocks)
    ]
    if known is None:
        return with_answer if len(with_answer) == 1 and len(answer.strip()) > 3 else []
    return with_answer or ([] if cut else with_block)


def _block_text(block: Block) -> str:
    return "".join(cell for row in block.rows for cell in row) if block.kind == "table" else block.text


def _count_letters(text: str) -> int:
    return sum(map(str.isalnum, text))
