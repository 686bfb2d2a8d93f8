"""Joins documents into reports of several pages: pages are full, and pages of one report are similar. Seeded."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmrr.errors import MmrrError
from mmrr.training.synthetic.fonts import is_drawable
from mmrr.training.synthetic.sources import Block, Document, Question

#: Share of reports in which some words are replaced by random ones. A reader must not guess words from their context.
SCRAMBLED = 0.25


@dataclass(frozen=True, slots=True)
class ReportQuestion(Question):
    """A question of a report. The report's blocks ``first`` to ``last`` come from the question's own document."""

    first: int
    last: int


def with_text(documents: Sequence[Document]) -> list[Document]:
    """The documents that have text which the fonts can draw. Raises MmrrError if there is none."""
    found = [document for document in documents if any(map(_has_text, document.blocks))]
    if not found:
        raise MmrrError("no document has text to draw; expected blocks with text or rows, see docs/training.md")
    return found


def make_report(documents: Sequence[Document], number: int, seed: int, characters: int = 16_000) -> Document:
    """Report ``number``: documents of one source or of several, joined until they have ``characters`` characters.

    Its questions are ``ReportQuestion``, with blocks counted in the report. A scrambled report has no questions.
    Documents without text are left out.

    Raises:
        MmrrError: No document has text.
    """
    documents = with_text(documents)
    rng = random.Random(f"{seed}/report/{number}")
    first = rng.choice(documents)
    same_source = [document for document in documents if document.source == first.source]
    candidates: Sequence[Document] = same_source if rng.random() < 0.6 else documents
    blocks: list[Block] = []
    questions: list[Question] = []
    title, size = first.title, 0
    document = first
    while size < characters and len(blocks) < 400:
        start = _start(document, rng)
        part = document.blocks[start : start + 120]
        if not any(map(_has_text, part)):
            document = rng.choice(candidates)
            continue
        first_block = len(blocks)
        if document.title and start == 0 and blocks:
            blocks.append(Block("heading", document.title, level=1))
        offset = len(blocks) - start
        blocks += part
        for question in document.questions:
            if question.block is None or start <= question.block < start + len(part):
                block = None if question.block is None else question.block + offset
                questions.append(ReportQuestion(question.text, question.answer, block, first_block, len(blocks) - 1))
        size += sum(len(block.text) + sum(len(cell) + 4 for row in block.rows for cell in row) for block in part)
        document = rng.choice(candidates)
    if rng.random() < SCRAMBLED:
        blocks, questions = [_scramble(block, rng) for block in blocks], []
    return Document(f"report-{number}", first.source, title, tuple(blocks), tuple(questions))


def _has_text(block: Block) -> bool:
    if block.kind == "table":
        return any(is_drawable(cell) for row in block.rows for cell in row)
    return is_drawable(block.text)


def _start(document: Document, rng: random.Random) -> int:
    """The first block to take. Long documents without questions start at a random one, so that all of them is used."""
    if document.questions or len(document.blocks) < 40:
        return 0
    return rng.randrange(len(document.blocks) - 20)


def _scramble(block: Block, rng: random.Random) -> Block:
    def change(text: str) -> str:
        return "\n".join(" ".join(_word(word, rng) for word in line.split(" ")) for line in text.split("\n"))

    rows = tuple(tuple(change(cell) for cell in row) for row in block.rows)
    return replace(block, text=change(block.text), rows=rows)


def _word(word: str, rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.25 and word:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 10)))
    if chance < 0.33:
        return str(rng.randrange(10 ** rng.randint(1, 6)))
    if chance < 0.38:
        return word.upper()
    if chance < 0.43:
        return "".join(rng.choices(string.ascii_uppercase + string.digits, k=rng.randint(2, 7)))
    return word
