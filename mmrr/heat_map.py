"""The picture of evidence: a page with a heat map over it, and below it the query, its words and a legend.

This module knows images, numbers and text, but no workspace and no models.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

#: Colours of heat 0, 1/2 and 1: they differ in lightness too, for readers who do not see the hues.
_RAMP = np.array([(255, 221, 60), (242, 116, 32), (170, 10, 80)], dtype=np.float32)
#: Opacity of the largest heat. Opacity grows with the square root, so that small heat is visible.
_OPACITY = 0.72
#: Opacity of the page under a dropped token, the colour of the paper under it, and the lines drawn across it.
_FADED, _PAPER, _LINES = 0.22, (236, 238, 244), (188, 192, 204)
_INK, _GREY, _WHITE = (25, 27, 33), (95, 99, 110), (255, 255, 255)
#: A picture is at least so wide, in pixels: narrow pages are enlarged.
_NARROWEST = 640
#: Longest texts of the caption, in characters. The rest is cut.
_QUERY_CHARS, _WORD_CHARS, _WORDS = 1200, 40, 120

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Caption:
    """What the text under the page says. All of it is data."""

    page_id: str
    query: str
    words: Sequence[str]
    word: int | None  # the word whose heat it is; None: of the whole query
    source: str

    @property
    def title(self) -> str:
        """The page, the source and whose heat it is."""
        whose = "the whole query" if self.word is None else f"word {self.word}, {self.words[self.word][:_WORD_CHARS]}"
        return f"{self.page_id} - heat by the {self.source}, of {whose}"


def overlay(
    image: Image.Image, heat: NDArray[np.float32], kept: NDArray[np.bool_], *, fade: bool = True
) -> Image.Image:
    """The page in RGB with the heat (rows, columns), 0 to 1, over it. Dropped tokens are faded and crossed out."""
    page = np.asarray(image.convert("RGB"), dtype=np.float32)
    if fade:
        shown = _enlarged(kept.astype(np.float32), image.size)[..., None]
        faded = _FADED * page + (1 - _FADED) * np.array(_PAPER, dtype=np.float32)
        page = shown * page + (1 - shown) * _hatched(faded, kept)
    large = _enlarged(np.clip(heat, 0, 1), image.size)
    opacity = _OPACITY * np.sqrt(large)[..., None]
    return Image.fromarray(((1 - opacity) * page + opacity * _colour(large)).round().astype(np.uint8))


def draw(image: Image.Image, heat: NDArray[np.float32], kept: NDArray[np.bool_], caption: Caption) -> Image.Image:
    """The page with its heat map (rows, columns), and the caption below it."""
    page = overlay(image, heat, kept)
    if page.width < _NARROWEST:
        page = page.resize((_NARROWEST, round(page.height * _NARROWEST / page.width)))
    size = max(13, page.width // 60)
    below = _caption(page.width, size, caption, dropped=not kept.all())
    whole = Image.new("RGB", (page.width, page.height + below.height), _WHITE)
    whole.paste(page, (0, 0))
    whole.paste(below, (0, page.height))
    return whole


def _colour(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """RGB (..., 3) of heat 0 to 1."""
    stops = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(heat, stops, _RAMP[:, channel]) for channel in range(3)], axis=-1).astype(np.float32)


def _enlarged(cells: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(cells.astype(np.float32)).resize(size, Image.Resampling.NEAREST))


def _hatched(page: NDArray[np.float32], kept: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The page with thin diagonal lines, so that a dropped token differs from a white one."""
    height, width = page.shape[:2]
    step = max(6, round(width / kept.shape[1] / 2))
    diagonal = (np.arange(height)[:, None] + np.arange(width)[None]) % step == 0
    return np.where(diagonal[..., None], np.array(_LINES, dtype=np.float32), page)


# The caption


def _caption(width: int, size: int, caption: Caption, *, dropped: bool) -> Image.Image:
    """Page and source, the query, its words with the chosen one marked, and the legend, in the page's width."""
    margin, step = size, round(size * 1.45)
    room = width - 2 * margin
    query = _line(caption.query)[:_QUERY_CHARS]
    words = [_line(word)[:_WORD_CHARS] for word in caption.words[:_WORDS]]
    title = _line(caption.title)
    plain = _font(title + query + "".join(words), size)
    rows: list[tuple[str, tuple[int, int, int]]] = []
    rows += [(line, _GREY) for line in _wrapped(title, plain, room)]
    rows += [(line, _INK) for line in _wrapped(query, plain, room)]
    labels = [f"{index} {word}" for index, word in enumerate(words)]
    if len(caption.words) > len(words):
        labels.append("...")
    places, n_lines = _flowed(labels, plain, room, gap=size)
    picture = Image.new("RGB", (width, margin * 3 + step * (len(rows) + n_lines + 1)), _WHITE)
    pen = ImageDraw.Draw(picture)
    y = margin
    for text, colour in rows:
        pen.text((margin, y), text, fill=colour, font=plain)
        y += step
    y += margin // 2
    for index, (label, (x, line)) in enumerate(zip(labels, places, strict=True)):
        at = (margin + x, y + line * step)
        if index == caption.word:
            pen.rectangle((at[0] - 4, at[1] - 2, at[0] + plain.getlength(label) + 4, at[1] + step - 4), fill=_INK)
        pen.text(at, label, fill=_WHITE if index == caption.word else _INK, font=plain)
    _legend(picture, (margin, y + n_lines * step + margin // 2), size, dropped=dropped)
    return picture


def _legend(picture: Image.Image, at: tuple[int, int], size: int, *, dropped: bool) -> None:
    """A bar of the colours from no heat to the most, and a sample of a dropped token. In English."""
    pen, font = ImageDraw.Draw(picture), _font("", size)
    x, y = at

    def say(text: str) -> None:
        nonlocal x
        pen.text((x, y), text, fill=_GREY, font=font)
        x += round(font.getlength(text)) + size // 2

    say("heat: none")
    ramp = np.linspace(0, 1, size * 10, dtype=np.float32)[None]
    bar = overlay(Image.new("RGB", (size * 10, size), _WHITE), ramp, np.ones_like(ramp, dtype=np.bool_), fade=False)
    picture.paste(bar, (x, y + 2))
    x += bar.width + size // 2
    say("most")
    if dropped:
        x += size
        nothing = np.zeros((1, 2), dtype=np.float32)
        sample = overlay(Image.new("RGB", (size * 2, size), _WHITE), nothing, nothing.astype(np.bool_))
        picture.paste(sample, (x, y + 2))
        x += sample.width + size // 2
        say("dropped by pruning")


def _line(text: str) -> str:
    """The text on one line, without control and formatting characters."""
    spaced = "".join(" " if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") else char for char in text)
    return " ".join("".join(char for char in spaced if unicodedata.category(char) != "Cf").split())


def _wrapped(text: str, font: Font, room: int) -> list[str]:
    """Lines that fit, cut between words, or inside a word that is longer than a line."""
    lines, line = [], ""
    for word in _pieces(text, font, room):
        joined = f"{line} {word}" if line else word
        if line and font.getlength(joined) > room:
            lines.append(line)
            joined = word
        line = joined
    return [*lines, line] if line else lines


def _pieces(text: str, font: Font, room: int) -> Iterator[str]:
    for word in text.split(" "):
        piece = ""
        for char in word:
            if piece and font.getlength(piece + char) > room:
                yield piece
                piece = ""
            piece += char
        yield piece


def _flowed(labels: Sequence[str], font: Font, room: int, gap: int) -> tuple[list[tuple[int, int]], int]:
    """(x in pixels, line) of each label, and the number of lines."""
    places, x, line = [], 0, 0
    for label in labels:
        wide = round(font.getlength(label))
        if x and x + wide > room:
            x, line = 0, line + 1
        places.append((x, line))
        x += wide + gap
    return places, line + 1 if labels else 0


def _font(text: str, size: int) -> Font:
    """Pillow's own font; for text beyond Latin letters a font of the machine that has its characters, if there is one.

    Without such a font a character without a shape is drawn as a box.
    """
    foreign = "".join(sorted({char for char in text if ord(char) > 0x2FF and not 0x2010 <= ord(char) <= 0x2027}))
    file = _font_file(foreign[:64]) if foreign else None
    if file:
        try:
            return ImageFont.truetype(file, size)
        except OSError:
            pass
    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=64)
def _font_file(characters: str) -> str | None:
    """The file of the font that fontconfig finds for these characters; None without fontconfig."""
    program = shutil.which("fc-match")
    if program is None:
        return None
    pattern = ":charset=" + " ".join(f"{ord(char):x}" for char in characters)
    try:
        found = subprocess.run([program, "--format=%{file}", pattern], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout or None
