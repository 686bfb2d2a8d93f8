"""Sets a document's blocks on pages: paragraphs, headings, lists, code, tables, charts. Knows looks, not models."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import islice

from mmrr.training.synthetic.canvas import Canvas, DrawnPage
from mmrr.training.synthetic.fonts import written
from mmrr.training.synthetic.sources import Block, Document
from mmrr.training.synthetic.style import Colour, Look, choose

_NUMBER = re.compile(r"^[^\d\-(]{0,3}[-(]?[\d,]*\.?\d+\)?%?$")
#: Pixels; print of a table that does not fit is made this small and no smaller.
_SMALLEST = 10.0


def draw_document(document: Document, seed: int, max_pages: int | None = None) -> Iterator[DrawnPage]:
    """The pages of one document in one look; the same seed gives the same pixels on the same fonts."""
    rng = random.Random(f"{seed}/{document.id}")
    setter = _Typesetter(choose(rng, document.title), document.title, rng)
    yield from islice(setter.pages(document.blocks), max_pages)


class _Typesetter:
    """A cursor that goes down the columns of one page after another."""

    def __init__(self, look: Look, title: str, rng: random.Random) -> None:
        self.look, self.title, self.rng = look, title, rng
        self.number = 0
        self.done: list[DrawnPage] = []
        inner = look.width_px - 2 * look.margin_px
        self.column_px = (inner - (look.columns - 1) * look.gap_px) / look.columns
        self.top, self.bottom = look.margin_px * 0.9 + 20, look.height_px - look.margin_px * 0.9 - 20
        self._new_page()

    def pages(self, blocks: Sequence[Block]) -> Iterator[DrawnPage]:
        for index, block in enumerate(blocks):
            self._block(block, index)
            yield from self._take()
        self._end_page()
        yield from self._take()

    def _take(self) -> list[DrawnPage]:
        ready, self.done = self.done, []
        return ready

    # The cursor

    def _new_page(self) -> None:
        look = self.look
        self.canvas = Canvas(look)
        self.number += 1
        self.column, self.y = 0, self.top
        self.used = False
        small = max(10.0, look.body_px * 0.8)
        if look.header:
            self._run(look.header, look.margin_px, self.top - small, small, look.body.italic, look.accent, -1)
        if look.footer:
            text = look.footer.format(n=self.number, title=self.title)
            middle = (look.width_px - self._width(text, look.body.regular, small)) / 2
            self._run(text, max(4, middle), self.bottom + 2 * small, small, look.body.regular, look.ink, -1)

    def _end_page(self) -> None:
        if self.used:
            self.done.append(self.canvas.finish(self.rng))
        self.used = False

    def _need(self, height_px: float) -> None:
        """Go to the next column or page unless this much room is left."""
        if self.y + height_px <= self.bottom or self.y == self.top:
            return
        self.column += 1
        self.y = self.top
        if self.column >= self.look.columns:
            self._end_page()
            self._new_page()

    @property
    def x(self) -> float:
        return self.look.margin_px + self.column * (self.column_px + self.look.gap_px)

    # Text

    def _run(self, text: str, x: float, baseline: float, size: float, file: str, fill: Colour, block: int) -> None:
        """Words on one line from ``x`` until the page ends."""
        space = self.canvas.width(" ", file, size)
        for word in written(text, file).split():
            width = self.canvas.width(word, file, size)
            if x + width > self.look.width_px:
                return
            self.canvas.word(x, baseline, word, file, size, fill, block)
            x += width + space

    def _width(self, text: str, file: str, size: float) -> float:
        """Of a line as ``_run`` sets it."""
        words = written(text, file).split()
        space = self.canvas.width(" ", file, size)
        return sum(self.canvas.width(word, file, size) for word in words) + space * max(0, len(words) - 1)

    def _wrap(self, text: str, file: str, size: float, width_px: float) -> list[list[str]]:
        space = self.canvas.width(" ", file, size)
        lines: list[list[str]] = [[]]
        room = width_px
        for word in _pieces(written(text, file), lambda part: self.canvas.width(part, file, size), width_px):
            width = self.canvas.width(word, file, size)
            if lines[-1] and width > room:
                lines.append([])
                room = width_px
            lines[-1].append(word)
            room -= width + space
        return [line for line in lines if line]

    def _paragraph(
        self,
        text: str,
        block: int,
        file: str,
        size: float,
        fill: Colour,
        *,
        indent: float = 0,
        centred: bool = False,
        behind: Colour | None = None,
    ) -> None:
        """Lines of words; ``behind``: the colour of a band across the column under each line."""
        if behind:
            indent += size * 0.4
        width = self.column_px - indent - (size * 0.4 if behind else 0)
        height = size * self.look.leading
        lines = self._wrap(text, file, size, width)
        space = self.canvas.width(" ", file, size)
        for number, words in enumerate(lines):
            self._need(height)
            self.used = True
            widths = [self.canvas.width(word, file, size) for word in words]
            slack = width - sum(widths) - space * (len(words) - 1)
            gap = space
            if self.look.justified and number + 1 < len(lines) and len(words) > 1 and slack < width * 0.35:
                gap += slack / (len(words) - 1)
            x = self.x + indent + (max(0.0, slack / 2) if centred else 0.0)
            if behind:  # from below the letters of the line above to below this one's
                top = self.y + size * 0.15
                self.canvas.rectangle((self.x, top, self.x + self.column_px, top + height + size * 0.15), behind)
            for word, word_px in zip(words, widths, strict=True):
                self.canvas.word(x, self.y + size, word, file, size, fill, block)
                x += word_px + gap
            self.y += height

    def _block(self, block: Block, index: int) -> None:
        look, size = self.look, self.look.body_px
        if block.kind == "heading":
            self._heading(block, index)
        elif block.kind == "table":
            self._table(block.rows, index)
            if self.rng.random() < look.figures * 2:
                self._chart(block.rows)
        elif block.kind == "code":
            self._code(block.text, index)
        elif block.kind == "list":
            for item in block.text.splitlines():
                if not written(item, look.body.regular):
                    continue
                self._need(size * look.leading)
                bullet = "•" if not look.slide else "–"
                indent = size * 1.2
                self._run(bullet, self.x + size * 0.3, self.y + size, size, look.body.regular, look.accent, -1)
                self._paragraph(item, index, look.body.regular, size, look.ink, indent=indent)
        else:
            file = look.body.italic if self.rng.random() < 0.03 else look.body.regular
            if self.rng.random() < look.boxes:
                solid = self.rng.random() < 0.4
                behind, fill = (look.accent, look.paper) if solid else (look.tint(0.12), look.ink)
                self._paragraph(block.text, index, file, size, fill, behind=behind)
                self.y += size * 0.3
            else:
                self._paragraph(block.text, index, file, size, look.ink)
            if self.rng.random() < look.figures:
                self._picture()
        self.y += size * look.paragraph_gap

    def _heading(self, block: Block, index: int) -> None:
        look = self.look
        text = block.text.upper() if look.capitals else block.text
        file = look.heading.bold if look.bold_headings else look.heading.regular
        size = look.body_px * max(1.05, look.heading_scale - 0.15 * (block.level - 1))
        widest = max((self._width(word, file, size) for word in text.split()), default=0.0) + size
        size = max(look.body_px, size * min(1.0, self.column_px / max(widest, 1.0)))  # so that no word is broken
        self.y += look.body_px * 0.6 if self.y > self.top else 0
        self._need(size * 3)
        fill, behind = look.accent if index % 2 else look.ink, None
        if look.banners:
            fill, behind = look.paper, look.accent
        self._paragraph(text, index, file, size, fill, centred=look.centred_headings, behind=behind)
        self.y += size * 0.3 if behind else 0

    def _code(self, text: str, block: int) -> None:
        look, size = self.look, self.look.body_px * 0.88
        height = size * 1.25
        file = look.mono.regular
        for line in text.splitlines():
            indent = len(line) - len(line.lstrip())
            lead = min(self.canvas.width(" ", file, size) * indent, self.column_px * 0.6)
            for words in self._wrap(line, file, size, self.column_px - lead - 3) or [[]]:
                self._need(height)
                self.used = True
                self.canvas.rectangle((self.x, self.y, self.x + self.column_px, self.y + height), look.tint(0.06))
                self._run(" ".join(words), self.x + lead + 3, self.y + size, size, file, look.ink, block)
                self.y += height

    # Tables and figures

    def _table(self, rows: Sequence[Sequence[str]], block: int) -> None:
        n = max((len(row) for row in rows), default=0)
        if n == 0:
            return
        table: list[list[str]] = [[*row, *[""] * (n - len(row))] for row in rows]
        size = max(_SMALLEST, self.look.body_px * 0.9)
        least, full = self._extents(table, size)
        if sum(least) > self.column_px:
            size = max(_SMALLEST, int(2 * size * self.column_px / sum(least)) / 2)
            least, full = self._extents(table, size)
        for part in self._parts(least):
            widths = self._widths(least[part], full[part])
            self._table_part([row[part] for row in table], widths, size, block)

    def _parts(self, least: list[float]) -> list[slice]:
        """Columns that fit beside one another; in several parts, one below the other, where not all of them do."""
        starts, room = [0], self.column_px
        for column, width in enumerate(least):
            if column > starts[-1] and width > room:
                starts.append(column)
                room = self.column_px
            room -= width
        return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(least)], strict=True)]

    def _widths(self, least: list[float], full: list[float]) -> list[float]:
        """Each column as wide as its longest word, so that none is broken, and a share of what is left."""
        total = sum(full)
        if total > self.column_px:
            share = (self.column_px - sum(least)) / max(total - sum(least), 1.0)
            return [low + share * (high - low) for low, high in zip(least, full, strict=True)]
        return [width * self.column_px / total for width in full] if self.rng.random() < 0.5 else full

    def _extents(self, table: list[list[str]], size: float) -> tuple[list[float], list[float]]:
        """Of each column: the width of its longest word and that of its longest cell on one line, in pixels."""
        faces = [self.look.body.bold, *[self.look.body.regular] * (len(table) - 1)]
        least, full = [], []
        for column in zip(*table, strict=True):
            words = [
                self._width(word, file, size) for cell, file in zip(column, faces, strict=True) for word in cell.split()
            ]
            least.append(min(self.column_px, max(words, default=0.0) + size + 1))
            full.append(max(self._width(cell, file, size) for cell, file in zip(column, faces, strict=True)) + size + 1)
        return least, full

    def _table_part(self, table: list[list[str]], widths: list[float], size: float, block: int) -> None:
        file, bold = self.look.body.regular, self.look.body.bold
        most = int((self.bottom - self.top - size * 0.5) / (size * 1.2))  # lines of a row as tall as the page
        for number, row in enumerate(table):
            head = number == 0
            cells = [
                self._wrap(cell, bold if head else file, size, max(size, width - size))[:most]
                for cell, width in zip(row, widths, strict=True)
            ]
            height = max([len(cell) for cell in cells] + [1]) * size * 1.2 + size * 0.5
            self._need(height)
            self.used = True
            self._table_row(cells, widths, height, size, head, number, block)
            self.y += height

    def _table_row(
        self,
        cells: list[list[list[str]]],
        widths: list[float],
        height: float,
        size: float,
        head: bool,
        number: int,
        block: int,
    ) -> None:
        look = self.look
        x, right = self.x, self.x + sum(widths)
        fill, file = look.ink, look.body.bold if head else look.body.regular
        if head and look.zebra:
            self.canvas.rectangle((x, self.y, right, self.y + height), look.accent)
            fill = look.paper
        elif look.zebra and number % 2:
            self.canvas.rectangle((x, self.y, right, self.y + height), look.tint(0.1))
        if look.table_lines in ("all", "rows") or (look.table_lines == "header" and head):
            self.canvas.line([(x, self.y + height), (right, self.y + height)], look.ink)
        for lines, width in zip(cells, widths, strict=True):
            if look.table_lines == "all":
                self.canvas.rectangle((x, self.y, x + width, self.y + height), None, look.ink)
            numeric = len(lines) == 1 and len(lines[0]) == 1 and bool(_NUMBER.match(lines[0][0])) and not head
            for at, words in enumerate(lines):
                text = " ".join(words)
                left = x + size * 0.4
                if numeric:
                    left = max(left, x + width - size * 0.4 - self._width(text, file, size))
                self._run(text, left, self.y + size * (1.1 + 1.2 * at), size, file, fill, block)
            x += width

    def _picture(self) -> None:
        height = self.column_px * self.rng.uniform(0.25, 0.6)
        if self.y + height > self.bottom:
            return
        width = self.column_px * self.rng.uniform(0.5, 1.0)
        self.canvas.picture((self.x, self.y, self.x + width, self.y + height), self.rng)
        self.used = True
        self.y += height + self.look.body_px

    def _chart(self, rows: Sequence[Sequence[str]]) -> None:
        """Bars or a line of the first numeric column, labelled with the first column."""
        look = self.look
        width = len(rows[0]) if rows else 0
        columns = [c for c in range(1, width) if sum(_value(row, c) is not None for row in rows[1:]) >= 3]
        if not columns:
            return
        pairs = [(row[0], _value(row, columns[0])) for row in rows[1:10] if row]
        points = [(label, value) for label, value in pairs if value is not None]
        height, size = self.column_px * self.rng.uniform(0.3, 0.5), max(10.0, look.body_px * 0.75)
        self._need(height + 4 * size)
        if len(points) < 3 or self.y + height + 3 * size > self.bottom:
            return
        self.used = True
        title = rows[0][columns[0]]
        self._run(title, self.x + size, self.y + size, size, look.body.bold, look.ink, -1)
        base, left, right = self.y + size * 1.5 + height, self.x + size, self.x + self.column_px
        self.canvas.line([(left, base), (right, base)], look.ink)
        most = max(abs(value) for _, value in points) or 1.0
        step = (right - left) / len(points)
        tops = [base - height * 0.9 * abs(value) / most for _, value in points]
        bars = self.rng.random() < 0.6
        for i, ((label, value), top) in enumerate(zip(points, tops, strict=True)):
            middle = left + step * (i + 0.5)
            if bars:
                self.canvas.rectangle((middle - step * 0.3, top, middle + step * 0.3, base), look.accent)
                self._label(f"{value:g}", middle, top - 2, size * 0.9, step * 1.2)
            self._label(label, middle, base + size * 1.2, size, step)
        if not bars:
            line = [(left + step * (i + 0.5), top) for i, top in enumerate(tops)]
            self.canvas.line(line, look.accent, 2)
        self.y = base + size * 2

    def _label(self, text: str, middle: float, baseline: float, size: float, room_px: float) -> None:
        file = self.look.body.regular
        words = written(text, file).split()[:2]
        while words and self._width(" ".join(words), file, size) > room_px:
            words.pop()
        label = " ".join(words)
        left = middle - self._width(label, file, size) / 2
        self._run(label, left, baseline, size, file, self.look.ink, -1)


def _value(row: Sequence[str], column: int) -> float | None:
    text = row[column] if column < len(row) else ""
    if not _NUMBER.match(text):
        return None
    digits = re.sub(r"[^\d.\-]", "", text)
    try:
        return float(digits)
    except ValueError:
        return None


def _pieces(text: str, width: object, room_px: float) -> Iterator[str]:
    """Words, those that are wider than the line cut into pieces."""
    measure = width
    assert callable(measure)
    for word in text.split():
        piece = word
        while len(piece) > 1 and measure(piece) > room_px:
            cut = max(1, int(len(piece) * room_px / measure(piece)))
            yield piece[:cut]
            piece = piece[cut:]
        if piece:
            yield piece
