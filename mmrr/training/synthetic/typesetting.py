"""Typesets a document's blocks: paragraphs, headings, lists, code, tables, charts. Knows styles, not models."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from mmrr.training.synthetic.canvas import Canvas, DrawnPage
from mmrr.training.synthetic.fonts import Font, drawable_text
from mmrr.training.synthetic.sources import Block, Document
from mmrr.training.synthetic.style import Colour, Style, choose_style

_NUMBER = re.compile(r"^[^\d\-(]{0,3}[-(]?[\d,]*\.?\d+\)?%?$")
#: The smallest font of a table that does not fit, in pixels.
_SMALLEST = 10.0
#: The block number of words that belong to no block: headers, footers, bullets, axis labels.
_NO_BLOCK = -1


def draw_document(document: Document, seed: int, max_pages: int | None = None) -> Iterator[DrawnPage]:
    """The pages of one document in one style. The same seed and fonts give the same pixels."""
    rng = random.Random(f"{seed}/{document.id}")
    typesetter = _Typesetter(choose_style(rng, document.title), document.title, rng)
    yield from islice(typesetter.pages(document.blocks), max_pages)


@dataclass(frozen=True, slots=True)
class _ParagraphStyle:
    """How the lines of a paragraph are set."""

    font: Font
    colour: Colour
    indent_px: float = 0
    centred: bool = False
    band: Colour | None = None  # the colour of a band across the column behind each line


@dataclass(frozen=True, slots=True)
class _TableLayout:
    """What the rows of a table share."""

    widths: list[float]  # of the columns, in pixels
    size_px: float  # of the font
    block: int


class _Typesetter:
    """A cursor (``x``, ``y``) that goes down the columns of one page after another."""

    def __init__(self, style: Style, title: str, rng: random.Random) -> None:
        self.style, self.title, self.rng = style, title, rng
        self.number = 0
        self.finished: list[DrawnPage] = []
        inner = style.width_px - 2 * style.margin_px
        self.column_px = (inner - (style.columns - 1) * style.gap_px) / style.columns
        self.top, self.bottom = style.margin_px * 0.9 + 20, style.height_px - style.margin_px * 0.9 - 20
        self._new_page()

    def pages(self, blocks: Sequence[Block]) -> Iterator[DrawnPage]:
        """The pages in order, each as soon as it is full. Pages without content are left out."""
        for index, block in enumerate(blocks):
            self._block(block, index)
            yield from self._take_finished()
        self._end_page()
        yield from self._take_finished()

    def _take_finished(self) -> list[DrawnPage]:
        finished, self.finished = self.finished, []
        return finished

    # The cursor

    def _new_page(self) -> None:
        style = self.style
        self.canvas = Canvas(style)
        self.number += 1
        self.column, self.y = 0, self.top
        self.has_content = False
        small = max(10.0, style.body_px * 0.8)
        if style.header:
            font = Font(style.body.italic, small)
            self._line(style.header, style.margin_px, self.top - small, font, style.accent, _NO_BLOCK)
        if style.footer:
            text, font = style.footer.format(n=self.number, title=self.title), Font(style.body.regular, small)
            left = max(4, (style.width_px - self._width(text, font)) / 2)
            self._line(text, left, self.bottom + 2 * small, font, style.ink, _NO_BLOCK)

    def _end_page(self) -> None:
        if self.has_content:
            self.finished.append(self.canvas.finish(self.rng))
        self.has_content = False

    def _ensure_room(self, height_px: float) -> None:
        """Go to the next column or page unless this height is left. The top of a column always has room."""
        if self.y + height_px <= self.bottom or self.y == self.top:
            return
        self.column += 1
        self.y = self.top
        if self.column >= self.style.columns:
            self._end_page()
            self._new_page()

    @property
    def x(self) -> float:
        return self.style.margin_px + self.column * (self.column_px + self.style.gap_px)

    # Text

    def _line(self, text: str, x: float, baseline: float, font: Font, colour: Colour, block: int) -> None:
        """Draw words on one line from ``x``. Words that would cross the right edge of the page are left out."""
        space = self.canvas.width(" ", font)
        for word in drawable_text(text, font.file).split():
            width = self.canvas.width(word, font)
            if x + width > self.style.width_px:
                return
            self.canvas.word(word, x, baseline, font, colour, block)
            x += width + space

    def _width(self, text: str, font: Font) -> float:
        """Width in pixels of a line as ``_line`` draws it."""
        words = drawable_text(text, font.file).split()
        space = self.canvas.width(" ", font)
        return sum(self.canvas.width(word, font) for word in words) + space * max(0, len(words) - 1)

    def _wrap(self, text: str, font: Font, width_px: float) -> list[list[str]]:
        """The words of each line of at most ``width_px``."""
        space = self.canvas.width(" ", font)
        lines: list[list[str]] = [[]]
        room = width_px
        for word in _pieces(drawable_text(text, font.file), lambda part: self.canvas.width(part, font), width_px):
            width = self.canvas.width(word, font)
            if lines[-1] and width > room:
                lines.append([])
                room = width_px
            lines[-1].append(word)
            room -= width + space
        return [line for line in lines if line]

    def _paragraph(self, text: str, block: int, paragraph: _ParagraphStyle) -> None:
        font, size, band, indent = paragraph.font, paragraph.font.size_px, paragraph.band, paragraph.indent_px
        if band:
            indent += size * 0.4
        width = self.column_px - indent - (size * 0.4 if band else 0)
        height = size * self.style.leading
        lines = self._wrap(text, font, width)
        space = self.canvas.width(" ", font)
        for number, words in enumerate(lines):
            self._ensure_room(height)
            self.has_content = True
            widths = [self.canvas.width(word, font) for word in words]
            slack = width - sum(widths) - space * (len(words) - 1)
            gap = space
            if self.style.justified and number + 1 < len(lines) and len(words) > 1 and slack < width * 0.35:
                gap += slack / (len(words) - 1)
            x = self.x + indent + (max(0.0, slack / 2) if paragraph.centred else 0.0)
            if band:  # from below the letters of the previous line to below the letters of this line
                top = self.y + size * 0.15
                self.canvas.rectangle((self.x, top, self.x + self.column_px, top + height + size * 0.15), band)
            for word, word_px in zip(words, widths, strict=True):
                self.canvas.word(word, x, self.y + size, font, paragraph.colour, block)
                x += word_px + gap
            self.y += height

    def _block(self, block: Block, index: int) -> None:
        if block.kind == "heading":
            self._heading(block, index)
        elif block.kind == "table":
            self._table(block.rows, index)
            if self.rng.random() < self.style.figures * 2:
                self._chart(block.rows)
        elif block.kind == "code":
            self._code(block.text, index)
        elif block.kind == "list":
            self._list(block.text, index)
        else:
            self._text(block.text, index)
        self.y += self.style.body_px * self.style.paragraph_gap

    def _list(self, text: str, index: int) -> None:
        style, size = self.style, self.style.body_px
        font = Font(style.body.regular, size)
        paragraph = _ParagraphStyle(font, style.ink, indent_px=size * 1.2)
        for item in text.splitlines():
            if not drawable_text(item, font.file):
                continue
            self._ensure_room(size * style.leading)
            bullet = "•" if not style.slide else "–"
            self._line(bullet, self.x + size * 0.3, self.y + size, font, style.accent, _NO_BLOCK)
            self._paragraph(item, index, paragraph)

    def _text(self, text: str, index: int) -> None:
        """A paragraph, sometimes in italics or in a coloured box, sometimes with a picture below."""
        style, size = self.style, self.style.body_px
        font = Font(style.body.italic if self.rng.random() < 0.03 else style.body.regular, size)
        if self.rng.random() < style.boxes:
            solid = self.rng.random() < 0.4
            band, colour = (style.accent, style.paper) if solid else (style.tint(0.12), style.ink)
            self._paragraph(text, index, _ParagraphStyle(font, colour, band=band))
            self.y += size * 0.3
        else:
            self._paragraph(text, index, _ParagraphStyle(font, style.ink))
        if self.rng.random() < style.figures:
            self._picture()

    def _heading(self, block: Block, index: int) -> None:
        style = self.style
        text = block.text.upper() if style.capitals else block.text
        file = style.heading.bold if style.bold_headings else style.heading.regular
        size = style.body_px * max(1.05, style.heading_scale - 0.15 * (block.level - 1))
        widest = max((self._width(word, Font(file, size)) for word in text.split()), default=0.0) + size
        size = max(style.body_px, size * min(1.0, self.column_px / max(widest, 1.0)))  # no word is broken
        self.y += style.body_px * 0.6 if self.y > self.top else 0
        self._ensure_room(size * 3)
        colour, band = style.accent if index % 2 else style.ink, None
        if style.banners:
            colour, band = style.paper, style.accent
        paragraph = _ParagraphStyle(Font(file, size), colour, centred=style.centred_headings, band=band)
        self._paragraph(text, index, paragraph)
        self.y += size * 0.3 if band else 0

    def _code(self, text: str, block: int) -> None:
        style, size = self.style, self.style.body_px * 0.88
        height = size * 1.25
        font = Font(style.mono.regular, size)
        for line in text.splitlines():
            indent = len(line) - len(line.lstrip())
            indent_px = min(self.canvas.width(" ", font) * indent, self.column_px * 0.6)
            for words in self._wrap(line, font, self.column_px - indent_px - 3) or [[]]:
                self._ensure_room(height)
                self.has_content = True
                self.canvas.rectangle((self.x, self.y, self.x + self.column_px, self.y + height), style.tint(0.06))
                self._line(" ".join(words), self.x + indent_px + 3, self.y + size, font, style.ink, block)
                self.y += height

    # Tables and figures

    def _table(self, rows: Sequence[Sequence[str]], block: int) -> None:
        n = max((len(row) for row in rows), default=0)
        if n == 0:
            return
        table: list[list[str]] = [[*row, *[""] * (n - len(row))] for row in rows]
        size = max(_SMALLEST, self.style.body_px * 0.9)
        least, full = self._extents(table, size)
        if sum(least) > self.column_px:
            size = max(_SMALLEST, int(2 * size * self.column_px / sum(least)) / 2)
            least, full = self._extents(table, size)
        for part in self._parts(least):
            layout = _TableLayout(self._widths(least[part], full[part]), size, block)
            self._table_part([row[part] for row in table], layout)

    def _parts(self, least: list[float]) -> list[slice]:
        """Slices of columns that fit next to each other. The parts of a wide table are drawn one below the other."""
        starts, room = [0], self.column_px
        for column, width in enumerate(least):
            if column > starts[-1] and width > room:
                starts.append(column)
                room = self.column_px
            room -= width
        return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(least)], strict=True)]

    def _widths(self, least: list[float], full: list[float]) -> list[float]:
        """The width of each column: that of its longest word, so that no word is broken, and a share of the rest."""
        total = sum(full)
        if total > self.column_px:
            share = (self.column_px - sum(least)) / max(total - sum(least), 1.0)
            return [low + share * (high - low) for low, high in zip(least, full, strict=True)]
        return [width * self.column_px / total for width in full] if self.rng.random() < 0.5 else full

    def _extents(self, table: list[list[str]], size: float) -> tuple[list[float], list[float]]:
        """For each column, in pixels: the width of its longest word, and of its longest cell on one line."""
        bold, regular = Font(self.style.body.bold, size), Font(self.style.body.regular, size)
        fonts = [bold, *[regular] * (len(table) - 1)]
        least, full = [], []
        for column in zip(*table, strict=True):
            words = [self._width(word, font) for cell, font in zip(column, fonts, strict=True) for word in cell.split()]
            least.append(min(self.column_px, max(words, default=0.0) + size + 1))
            full.append(max(self._width(cell, font) for cell, font in zip(column, fonts, strict=True)) + size + 1)
        return least, full

    def _table_part(self, table: list[list[str]], layout: _TableLayout) -> None:
        size = layout.size_px
        max_lines = int((self.bottom - self.top - size * 0.5) / (size * 1.2))  # of a row as tall as the page
        for number, row in enumerate(table):
            font = Font(self.style.body.regular if number else self.style.body.bold, size)
            cells = [
                self._wrap(cell, font, max(size, width - size))[:max_lines]
                for cell, width in zip(row, layout.widths, strict=True)
            ]
            height = max([len(cell) for cell in cells] + [1]) * size * 1.2 + size * 0.5
            self._ensure_room(height)
            self.has_content = True
            self._table_row(cells, number, height, layout)
            self.y += height

    def _table_row(self, cells: list[list[list[str]]], number: int, height: float, layout: _TableLayout) -> None:
        """Draw row ``number``; row 0 is the header. ``cells``: for each cell its lines, for each line its words."""
        style, size, head = self.style, layout.size_px, number == 0
        x, right = self.x, self.x + sum(layout.widths)
        colour, font = style.ink, Font(style.body.bold if head else style.body.regular, size)
        if head and style.zebra:
            self.canvas.rectangle((x, self.y, right, self.y + height), style.accent)
            colour = style.paper
        elif style.zebra and number % 2:
            self.canvas.rectangle((x, self.y, right, self.y + height), style.tint(0.1))
        if style.table_lines in ("all", "rows") or (style.table_lines == "header" and head):
            self.canvas.line([(x, self.y + height), (right, self.y + height)], style.ink)
        for lines, width in zip(cells, layout.widths, strict=True):
            if style.table_lines == "all":
                self.canvas.rectangle((x, self.y, x + width, self.y + height), None, style.ink)
            numeric = len(lines) == 1 and len(lines[0]) == 1 and bool(_NUMBER.match(lines[0][0])) and not head
            for at, words in enumerate(lines):
                text = " ".join(words)
                left = x + size * 0.4
                if numeric:
                    left = max(left, x + width - size * 0.4 - self._width(text, font))
                self._line(text, left, self.y + size * (1.1 + 1.2 * at), font, colour, layout.block)
            x += width

    def _picture(self) -> None:
        height = self.column_px * self.rng.uniform(0.25, 0.6)
        if self.y + height > self.bottom:
            return
        width = self.column_px * self.rng.uniform(0.5, 1.0)
        self.canvas.picture((self.x, self.y, self.x + width, self.y + height), self.rng)
        self.has_content = True
        self.y += height + self.style.body_px

    def _chart(self, rows: Sequence[Sequence[str]]) -> None:
        """Draw bars or a line of the first numeric column, labelled with the first column."""
        style = self.style
        width = len(rows[0]) if rows else 0
        columns = [c for c in range(1, width) if sum(_value(row, c) is not None for row in rows[1:]) >= 3]
        if not columns:
            return
        pairs = [(row[0], _value(row, columns[0])) for row in rows[1:10] if row]
        points = [(label, value) for label, value in pairs if value is not None]
        height, size = self.column_px * self.rng.uniform(0.3, 0.5), max(10.0, style.body_px * 0.75)
        self._ensure_room(height + 4 * size)
        if len(points) < 3 or self.y + height + 3 * size > self.bottom:
            return
        self.has_content = True
        title = rows[0][columns[0]]
        self._line(title, self.x + size, self.y + size, Font(style.body.bold, size), style.ink, _NO_BLOCK)
        base, left, right = self.y + size * 1.5 + height, self.x + size, self.x + self.column_px
        self.canvas.line([(left, base), (right, base)], style.ink)
        largest = max(abs(value) for _, value in points) or 1.0
        step = (right - left) / len(points)
        tops = [base - height * 0.9 * abs(value) / largest for _, value in points]
        bars = self.rng.random() < 0.6
        for i, ((label, value), top) in enumerate(zip(points, tops, strict=True)):
            middle = left + step * (i + 0.5)
            if bars:
                self.canvas.rectangle((middle - step * 0.3, top, middle + step * 0.3, base), style.accent)
                self._label(f"{value:g}", middle, top - 2, size * 0.9, step * 1.2)
            self._label(label, middle, base + size * 1.2, size, step)
        if not bars:
            line = [(left + step * (i + 0.5), top) for i, top in enumerate(tops)]
            self.canvas.line(line, style.accent, 2)
        self.y = base + size * 2

    def _label(self, text: str, middle: float, baseline: float, size: float, room_px: float) -> None:
        """Draw up to two words about ``middle``, fewer if they are wider than ``room_px``."""
        font = Font(self.style.body.regular, size)
        words = drawable_text(text, font.file).split()[:2]
        while words and self._width(" ".join(words), font) > room_px:
            words.pop()
        label = " ".join(words)
        left = middle - self._width(label, font) / 2
        self._line(label, left, baseline, font, self.style.ink, _NO_BLOCK)


def _value(row: Sequence[str], column: int) -> float | None:
    """The number in a cell; None for a cell without one."""
    text = row[column] if column < len(row) else ""
    if not _NUMBER.match(text):
        return None
    digits = re.sub(r"[^\d.\-]", "", text)
    try:
        return float(digits)
    except ValueError:
        return None


def _pieces(text: str, measure: Callable[[str], float], room_px: float) -> Iterator[str]:
    """The words of a text. Words wider than ``room_px`` are cut into pieces."""
    for word in text.split():
        piece = word
        while len(piece) > 1 and measure(piece) > room_px:
            cut = max(1, int(len(piece) * room_px / measure(piece)))
            yield piece[:cut]
            piece = piece[cut:]
        if piece:
            yield piece
