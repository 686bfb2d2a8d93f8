"""A page to draw on that records the position of every character. Knows pixels, not documents."""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from mmrr.training.synthetic.fonts import Font, face, font_file_for
from mmrr.training.synthetic.style import Colour, Scan, Style


@dataclass(frozen=True, slots=True)
class Word:
    """One word on a page; ``centres`` (n, 2) float32: x and y of each character's centre in pixels."""

    text: str
    centres: np.ndarray
    block: int  # index into the document's blocks; -1: header, footer, axis labels


@dataclass(frozen=True, slots=True)
class DrawnPage:
    """A page image and the words on it, in reading order."""

    image: Image.Image
    words: tuple[Word, ...]

    def text(self, block: int | None = None) -> str:
        """The words of one block, or of the whole page, joined by spaces."""
        return " ".join(word.text for word in self.words if block is None or word.block == block)


class Canvas:
    """Draws one page in page pixels.

    With supersampling the page is drawn larger and reduced at the end, which makes text look unhinted.
    """

    def __init__(self, style: Style) -> None:
        self.style, self.scale = style, style.supersample
        self.image = Image.new("RGB", (style.width_px * self.scale, style.height_px * self.scale), style.paper)
        self.draw = ImageDraw.Draw(self.image)
        self.words: list[Word] = []

    def width(self, text: str, font: Font) -> float:
        """Width of a word, or of a space, in page pixels."""
        return face(font_file_for(text, font.file), font.size_px * self.scale).width(text) / self.scale

    def word(self, text: str, x: float, baseline: float, font: Font, colour: Colour, block: int) -> None:
        """Draw one word with its left end at ``x``. If the font lacks a character, another font draws the word."""
        drawn = face(font_file_for(text, font.file), font.size_px * self.scale)
        self.draw.text((x * self.scale, baseline * self.scale), text, font=drawn.font, fill=colour, anchor="ls")
        ends = np.cumsum(drawn.advances(text), dtype=np.float32) / self.scale
        middles = x + ends - np.diff(ends, prepend=np.float32(0)) / 2
        centres = np.stack([middles, np.full_like(middles, baseline - 0.3 * font.size_px)], axis=1)
        self.words.append(Word(text, centres, block))

    def rectangle(
        self, box: tuple[float, float, float, float], fill: Colour | None, line: Colour | None = None
    ) -> None:
        """Draw a box (left, top, right, bottom). An empty one is left out."""
        x0, y0, x1, y1 = (value * self.scale for value in box)
        if x1 > x0 and y1 > y0:
            self.draw.rectangle((x0, y0, x1, y1), fill=fill, outline=line, width=self.scale)

    def line(self, points: list[tuple[float, float]], colour: Colour, width_px: float = 1) -> None:
        """Draw a line through points."""
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self.draw.line(scaled, fill=colour, width=max(1, round(width_px * self.scale)))

    def picture(self, box: tuple[float, float, float, float], rng: random.Random) -> None:
        """Draw smooth random colours in place of a photograph; they hold no text."""
        x0, y0, x1, y1 = (int(value * self.scale) for value in box)
        if x1 - x0 < 8 or y1 - y0 < 8:
            return
        small = np.array([rng.randint(0, 255) for _ in range(7 * 5 * 3)], dtype=np.uint8).reshape(5, 7, 3)
        image = Image.fromarray(small).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)
        self.image.paste(image, (x0, y0))

    def finish(self, rng: random.Random) -> DrawnPage:
        """The page at its own size, with the effects of the style's scanner."""
        image, words = self.image, self.words
        if self.scale > 1:
            image = image.resize((self.style.width_px, self.style.height_px), Image.Resampling.BOX)
        if self.style.scan is not None:
            image, words = _scanned(image, words, self.style.scan, self.style.paper, rng)
        return DrawnPage(image, tuple(words))


def _scanned(
    image: Image.Image, words: list[Word], scan: Scan, paper: Colour, rng: random.Random
) -> tuple[Image.Image, list[Word]]:
    """The image and its words after rotation, blur, contrast, noise and JPEG compression, in this order."""
    if scan.angle:
        image = image.rotate(scan.angle, Image.Resampling.BICUBIC, fillcolor=paper)
        turn = math.radians(scan.angle)
        # Pillow rotates counter-clockwise about the centre of the image; y points down.
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]], dtype=np.float32)
        middle = np.array([image.width / 2, image.height / 2], dtype=np.float32)
        words = [Word(word.text, (word.centres - middle) @ rotation + middle, word.block) for word in words]
    if scan.blur_px:
        image = image.filter(ImageFilter.GaussianBlur(scan.blur_px))
    image = ImageEnhance.Contrast(image).enhance(scan.contrast)
    if scan.noise:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal((image.height, image.width, 1), np.float32)
        pixels = np.asarray(image, dtype=np.float32) + noise * np.float32(scan.noise)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if scan.jpeg:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=scan.jpeg)
        image = Image.open(buffer).convert("RGB")
    return image, words
