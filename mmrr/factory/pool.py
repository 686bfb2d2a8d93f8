"""Drawn reports kept on disk, so that a page is drawn once and read many times. Safe for several processes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrr.factory.canvas import DrawnPage, Word
from mmrr.factory.layout import draw_document
from mmrr.factory.reports import bind
from mmrr.factory.sources import Document, Question


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a report, with the pages (counted from 0) on which its answering block stands."""

    text: str
    answer: str
    pages: tuple[int, ...]


class Pool:
    """Reports by number. The same documents, seed and fonts give the same reports."""

    def __init__(self, folder: Path, documents: Sequence[Document], seed: int, max_pages: int = 8) -> None:
        self.folder, self.documents, self.seed, self.max_pages = folder, documents, seed, max_pages
        self._read: dict[int, dict[str, list[dict[str, list[Any]]]]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def pages(self, report: int) -> int:
        """How many pages this report has; draws it if needed."""
        return len(self._listing(report)["pages"])

    def page(self, report: int, number: int) -> DrawnPage:
        listing = self._listing(report)
        record = listing["pages"][number]
        with Image.open(self._report(report) / f"{number}.png") as file:
            image = file.convert("RGB")
        points = np.asarray(record["centres"], dtype=np.float32).reshape(-1, 2)
        ends = np.cumsum([len(text) for text in record["texts"]])[:-1]
        parts = np.split(points, ends) if record["texts"] else []
        words = [Word(*word) for word in zip(record["texts"], parts, record["blocks"], strict=True)]
        return DrawnPage(image, tuple(words))

    def questions(self, report: int) -> list[Asked]:
        """Questions whose page is known: their block's pages, or every page that writes the answer out."""
        listing = self._listing(report)
        document = bind(self.documents, report, self.seed)
        pages = listing["pages"]
        return [asked for question in document.questions if (asked := _locate(question, pages)).pages]

    def _report(self, report: int) -> Path:
        return self.folder / f"{report:06d}"

    def _listing(self, report: int) -> dict[str, list[dict[str, list[Any]]]]:
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
        scratch = Path(tempfile.mkdtemp(dir=self.folder, prefix=".drawing-"))
        pages = []
        for number, page in enumerate(draw_document(document, self.seed + report, self.max_pages)):
            page.image.save(scratch / f"{number}.png", compress_level=1)
            centres = [round(float(value), 1) for word in page.words for value in word.centres.reshape(-1)]
            texts = [word.text for word in page.words]
            pages.append({"texts": texts, "blocks": [word.block for word in page.words], "centres": centres})
        (scratch / "pages.json").write_text(json.dumps({"pages": pages}), encoding="utf-8")
        try:
            os.rename(scratch, self._report(report))
        except OSError:  # another process was first
            for file in scratch.iterdir():
                file.unlink()
            scratch.rmdir()


def _locate(question: Question, pages: list[dict[str, list[Any]]]) -> Asked:
    if question.block is not None:
        found = [number for number, page in enumerate(pages) if question.block in page["blocks"]]
        if len(found) > 1 and question.answer:
            narrowed = [n for n in found if question.answer.lower() in _text(pages[n], question.block)]
            found = narrowed or found
    else:
        needle = " ".join(question.answer.split()).lower()
        found = [n for n, page in enumerate(pages) if len(needle) > 3 and needle in _text(page, None)]
        found = found if len(found) == 1 else []
    return Asked(question.text, question.answer, tuple(found))


def _text(page: dict[str, list[Any]], block: int | None) -> str:
    pairs = zip(page["texts"], page["blocks"], strict=True)
    return " ".join(str(text) for text, at in pairs if block is None or at == block).lower()
