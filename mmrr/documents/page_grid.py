"""The grid of visual tokens over a page image."""

from __future__ import annotations

import math

#: Side in pixels of the square that one visual token of Qwen3-VL covers: 16-pixel patches, merged 2 x 2.
CELL_PX = 32
#: Limits of the published Qwen3-VL embedding and reranking recipes, in tokens.
MIN_TOKENS, MAX_TOKENS = 4, 1800


def snap(width_px: float, height_px: float, cell_px: int = CELL_PX, max_tokens: int | None = None) -> tuple[int, int]:
    """Width and height in pixels, rounded to whole tokens; 4 to ``max_tokens`` (default 1,800) tokens in all.

    This is the rule that Qwen published for its models. Each side is rounded to the nearest multiple, halves to even.
    If the result is too large, both sides are scaled and rounded down; if too small, scaled and rounded up. If one side
    cannot shrink below one token, the other is cut to ``max_tokens``; the published rule exceeds the limit there.
    """
    limit = max_tokens or MAX_TOKENS
    least, most = MIN_TOKENS * cell_px**2, limit * cell_px**2
    width, height = (max(1, round(side / cell_px)) for side in (width_px, height_px))
    if width * height > limit:
        shrink = math.sqrt(width_px * height_px / most)
        width, height = (max(1, math.floor(side / shrink / cell_px)) for side in (width_px, height_px))
    elif width * height < MIN_TOKENS:
        grow = math.sqrt(least / (width_px * height_px))
        width, height = (math.ceil(side * grow / cell_px) for side in (width_px, height_px))
    if width * height > limit:
        short = min(width, height)
        width, height = (limit // short, short) if width > height else (short, limit // short)
    return width * cell_px, height * cell_px
