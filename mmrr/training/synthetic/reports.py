"""Binds documents into reports of several pages, so that pages are full and neighbours are alike. Seeded."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmrr.errors import MmrrError
from mmrr.training.synthetic.fonts import drawable
from mmrr.training.synthetic.sources import Block, Document, Question

#: Share of reports whose words are partly replaced by random ones: a reader must not guess words from their context.
SCRAMBLED = 0.25


@dataclass(frozen=True, slots=True)
class BoundQuestion(Question):
    """A question in a report; the blocks ``first`` to ``last`` of the report are those of its own document."""

    first: int
    last: int


def with_text(documents: Sequence[Document]) -> list[Document]:
    """Those of which anything can be drawn. Raises MmrrError if there is none."""
    found = [document for document in documents if any(map(_has_text, document.blocks))]
    if not found:
        raise MmrrError("no document has text to draw; expected blocks with text or rows, see docs/training.md")
    return found


def bind(documents: Sequence[Document], number: int, seed: int, characters: int = 16_000) -> Document:
    """Report ``number``: documents of one source or of several, until it holds this many characters.

    Questions keep pointing at their blocks, and are ``BoundQuestion``. A scrambled report has none. Documents without
    text are left out.

    Raises:
        MmrrError: No document has text.
    """
    documents = with_text(documents)
    rng = random.Random(f"{seed}/report/{number}")
    first = rng.choice(documents)
    alike = [document for document in documents if document.source == first.source]
    shelf: Sequence[Document] = alike if rng.random() < 0.6 else documents
    blocks: list[Block] = []
    questions: list[Question] = []
    title, size = first.title, 0
    document = first
    while size < characters and len(blocks) < 400:
        start = _start(document, rng)
        part = document.blocks[start : start + 120]
        if not any(map(_has_text, part)):
            document = rng.choice(shelf)
            continue
        first_block = len(blocks)
        if document.title and start == 0 and blocks:
            blocks.append(Block("heading", document.title, level=1))
        offset = len(blocks) - start
        blocks += part
        for question in document.questions:
            if question.block is None or start <= question.block < start + len(part):
                block = None if question.block is None else question.block + offset
                questions.append(BoundQuestion(question.text, question.answer, block, first_block, len(blocks) - 1))
        size += sum(len(block.text) + sum(len(cell) + 4 for row in block.rows for cell in row) for block in part)
        document = rng.choice(shelf)
    if rng.random() < SCRAMBLED:
        blocks, questions = [_scramble(block, rng) for block in blocks], []
    return Document(f"report-{number}", first.source, title, tuple(blocks), tuple(questions))


def _has_text(block: Block) -> bool:
    return any(drawable(cell) for row in block.rows for cell in row) if block.kind == "table" else drawable(block.text)


def _start(document: Document, rng: random.Random) -> int:
    """Long documents without questions begin anywhere, so that not only their first pages are seen."""
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
