"""Drawn reports kept on disk, so that a page is drawn once and read many times. Safe for several processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrr.errors import MmrrError
from mmrr.training.synthetic.canvas import DrawnPage, Word
from mmrr.training.synthetic.fonts import families
from mmrr.training.synthetic.reports import BoundQuestion, bind, with_text
from mmrr.training.synthetic.sources import Block, Document
from mmrr.training.synthetic.typesetting import draw_document

#: Raised when what is kept of a report changes: older pools are refused.
FORMAT = 1

Page = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a report, with the pages (counted from 0) on which its answering block stands."""

    text: str
    answer: str
    pages: tuple[int, ...]


class Pool:
    """Reports by number. The same documents, seed and fonts give the same reports.

    Raises:
        MmrrError: No document has text, or the folder holds what was drawn from something else.
    """

    def __init__(self, folder: Path, documents: Sequence[Document], seed: int, max_pages: int = 8) -> None:
        self.folder, self.documents, self.seed, self.max_pages = folder, with_text(documents), seed, max_pages
        self._read: dict[int, dict[str, list[Any]]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._claim(documents)

    def pages(self, report: int) -> int:
        """How many pages this report has, at least one; draws it if needed."""
        return len(self._listing(report)["pages"])

    def page(self, report: int, number: int) -> DrawnPage:
        words = self.words(report, number)
        with Image.open(self._report(report) / f"{number}.png") as file:
            return DrawnPage(file.convert("RGB"), words)

    def words(self, report: int, number: int) -> tuple[Word, ...]:
        """What stands on a page, without its picture."""
        record = self._listing(report)["pages"][number]
        points = np.asarray(record["centres"], dtype=np.float32).reshape(-1, 2)
        ends = np.cumsum([len(text) for text in record["texts"]])[:-1]
        parts = np.split(points, ends) if record["texts"] else []
        return tuple(Word(*word) for word in zip(record["texts"], parts, record["blocks"], strict=True))

    def questions(self, report: int) -> list[Asked]:
        """Questions whose pages are known.

        Where the answering block is given: the pages on which it stands, or those of them that write the answer out
        in it, if any does. A block of which not everything was drawn has only the latter. Where no block is given:
        the one page that writes the answer out within the blocks of the question's own document; no page if there are
        several, or if the answer has fewer than four characters. Answers are compared as ``fold`` has them.
        """
        return [Asked(text, answer, tuple(pages)) for text, answer, pages in self._listing(report)["questions"]]

    def _claim(self, documents: Sequence[Document]) -> None:
        """Write down what the folder's reports are drawn from, or compare with what is written there."""
        fonts = [Path(file).name for family in families() for file in (family.regular, family.bold, family.italic)]
        ours = {
            "format": FORMAT,
            "documents": _digest(documents),
            "seed": self.seed,
            "max_pages": self.max_pages,
            "fonts": hashlib.sha256(json.dumps(fonts).encode()).hexdigest(),
        }
        file = self.folder / "pool.json"
        # The folder first: another process may begin here and draw between the two looks.
        used = any(not path.name.startswith(".") for path in self.folder.iterdir())
        if not file.exists():
            if used:
                raise MmrrError(f"{self.folder} holds files but no pool.json; expected a new or an empty folder")
            scratch = self.folder / f".pool-{uuid.uuid4().hex[:8]}"
            try:
                scratch.write_text(json.dumps(ours), encoding="utf-8")
                scratch.replace(file)
            finally:
                scratch.unlink(missing_ok=True)
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
            differ = [key for key, value in ours.items() if theirs.get(key) != value]
        except (ValueError, AttributeError) as error:
            raise MmrrError(f"{file} is damaged; expected a new or an empty folder") from error
        if differ:
            raise MmrrError(f"{self.folder} was drawn with another {', '.join(differ)}; expected a folder of its own")

    def _report(self, report: int) -> Path:
        return self.folder / f"{report:06d}"

    def _listing(self, report: int) -> dict[str, list[Any]]:
        if report not in self._read:
            file = self._report(report) / "pages.json"
            if not file.exists():
                self._draw(report)
            if len(self._read) > 64:
                self._read.clear()
            self._read[report] = json.loads(file.read_text(encoding="utf-8"))
        return self._read[report]

    def _draw(self, report: int) -> None:
        """Into a folder of its own, then renamed: another process sees all of a report or nothing."""
        document = bind(self.documents, report, self.seed)
        scratch = self.folder / f".drawing-{uuid.uuid4().hex[:8]}"
        pages: list[Page] = []
        try:
            scratch.mkdir()
            for number, page in enumerate(draw_document(document, self.seed + report, self.max_pages)):
                page.image.save(scratch / f"{number}.png", compress_level=1)
                centres = [round(float(value), 1) for word in page.words for value in word.centres.reshape(-1)]
                texts = [word.text for word in page.words]
                pages.append({"texts": texts, "blocks": [word.block for word in page.words], "centres": centres})
            if not pages:
                raise MmrrError(f"report {report} has no page: nothing of its documents can be drawn")
            questions = _located(document, pages)
            listing = json.dumps({"pages": pages, "questions": questions})
            (scratch / "pages.json").write_text(listing, encoding="utf-8")
            try:
                os.rename(scratch, self._report(report))
            except OSError:
                if not (self._report(report) / "pages.json").exists():
                    raise  # no other process was first
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def fold(text: str) -> str:
    """Words to compare, one space around each: without case, without what surrounds their letters and digits."""
    words = " ".join(filter(None, map(_stripped, text.casefold().split())))
    return f" {words} "


def _stripped(word: str) -> str:
    known = [at for at, character in enumerate(word) if character.isalnum()]
    return word[known[0] : known[-1] + 1] if known else ""


def _digest(documents: Sequence[Document]) -> str:
    digest = hashlib.sha256()
    for one in documents:
        blocks = [[block.kind, block.text, block.rows, block.level] for block in one.blocks]
        questions = [[question.text, question.answer, question.block] for question in one.questions]
        digest.update(json.dumps([one.id, one.source, one.title, blocks, questions]).encode() + b"\n")
    return digest.hexdigest()


def _located(report: Document, pages: list[Page]) -> list[tuple[str, str, list[int]]]:
    """Text, answer and pages of the questions whose pages are known."""
    texts: list[dict[int, str]] = []  # of each page: block -> its words, folded
    letters: Counter[int] = Counter()  # letters and digits drawn of each block
    for page in pages:
        words: dict[int, list[str]] = {}
        for word, block in zip(page["texts"], page["blocks"], strict=True):
            words.setdefault(block, []).append(word)
            letters[block] += _letters(word)
        texts.append({block: fold(" ".join(its)) for block, its in words.items()})
    found = []
    for question in report.questions:
        assert isinstance(question, BoundQuestion)
        cut = question.block is not None and letters[question.block] < _letters(_whole(report.blocks[question.block]))
        if numbers := answering(question, texts, cut):
            found.append((question.text, question.answer, numbers))
    return found


def answering(question: BoundQuestion, texts: Sequence[Mapping[int, str]], cut: bool) -> list[int]:
    """The pages that answer a question, as ``Pool.questions`` has it; empty: not known.

    ``texts``: of each page, block -> its words as ``fold`` has them; ``cut``: not all of its block is on the pages.
    """
    known, answer = question.block, fold(question.answer)
    own = range(question.first, question.last + 1) if known is None else (known,)
    stands = [n for n, blocks in enumerate(texts) if any(at in blocks for at in own)]
    written = [n for n in stands if answer.strip() and any(answer in texts[n].get(at, "") for at in own)]
    if known is None:
        return written if len(written) == 1 and len(answer.strip()) > 3 else []
    return written or ([] if cut else stands)


def _whole(block: Block) -> str:
    return "".join(cell for row in block.rows for cell in row) if block.kind == "table" else block.text


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))
