"""The size of a page image in pixels, its colours, and the white canvas around a page that does not fill it."""

from __future__ import annotations

import math
from typing import cast

from PIL import Image

from mmrr.documents.page_grid import CELL_PX, MIN_TOKENS, snap

Size = tuple[int, int]  # width, height in pixels

MAX_ASPECT = 200  # longer pages are drawn on a white canvas with this aspect ratio


def target_size(width: float, height: float, max_tokens: int) -> Size:
    """Image size in pixels for a page of this natural size in pixels: the rule that Qwen published for its models.

    Sides are multiples of 32 (round half to even) and at least 32. The area is at least 4 tokens (sides are scaled and
    rounded up) and at most ``max_tokens`` (scaled and rounded down). There are two differences to the published rule.
    Beyond an aspect of 200:1, where it raises an error, the short side is set to 1/200 of the long one. If one side
    cannot shrink below one token, the other is cut to ``max_tokens``; the published rule exceeds the limit there.

    Raises:
        ValueError: a side is not positive and finite, or ``max_tokens`` is below 4.
    """
    if not (0 < width < math.inf and 0 < height < math.inf):
        raise ValueError(f"a page of {width:g} x {height:g} pixels cannot be drawn")
    if max_tokens < MIN_TOKENS:
        raise ValueError(f"max_tokens is {max_tokens}; expected at least {MIN_TOKENS}")
    width, height = max(width, height / MAX_ASPECT), max(height, width / MAX_ASPECT)
    return snap(width, height, CELL_PX, max_tokens)


def drawn_size(width: float, height: float, canvas: Size) -> Size:
    """Size of the page on its canvas: the full canvas, except for a page beyond MAX_ASPECT, which keeps its aspect."""
    if width > height * MAX_ASPECT:
        return canvas[0], min(canvas[1], max(1, round(canvas[0] * height / width)))
    if height > width * MAX_ASPECT:
        return min(canvas[0], max(1, round(canvas[1] * width / height))), canvas[1]
    return canvas


def offset(canvas: Size, drawn: Size) -> Size:
    """The upper left corner of a page that is drawn in the middle of its canvas."""
    return (canvas[0] - drawn[0]) // 2, (canvas[1] - drawn[1]) // 2


def on_canvas(image: Image.Image, canvas: Size) -> Image.Image:
    """The image in the middle of a white canvas; the image itself if it fills it."""
    if image.size == canvas:
        return image
    page = Image.new("RGB", canvas, "white")
    page.paste(image, offset(canvas, image.size))
    return page


def to_rgb(image: Image.Image) -> Image.Image:
    # Pillow clips grey of more than 8 bits at 255, so most of the page would be white.
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("RGB")
    if image.mode in ("I", "F"):  # no fixed range: scale from the darkest to the lightest pixel
        low, high = cast(tuple[float, float], image.getextrema())
        scale = 255 / (high - low) if high > low else 0
        return image.point(lambda value: value * scale - low * scale).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A"))
        return flat
    return image.convert("RGB")
