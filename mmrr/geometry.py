"""How a page image is cut into visual tokens."""

from __future__ import annotations

import math

#: Limits of the published Qwen3-VL embedding and reranking recipes, in tokens of 32 x 32 pixels.
MIN_TOKENS, MAX_TOKENS = 4, 1800
#: Side of the square of pixels that Qwen3-VL gives one token: 16-pixel patches, merged 2 x 2.
CELL_PX = 32


def snap(width_px: float, height_px: float, cell_px: int = CELL_PX, max_tokens: int | None = None) -> tuple[int, int]:
    """Width and height rounded to whole tokens, within 4 and ``max_tokens`` (1,800 by default) of them.

    The published rule (specification of the Qwen3-VL recipes, "Images"): each side to the nearest multiple, halves to
    even; too large: both scaled, rounded down; too small: both scaled, rounded up. The aspect ratio is kept as nearly
    as that allows.
    """
    limit = max_tokens or MAX_TOKENS
    width, height = (max(1, round(side / cell_px)) for side in (width_px, height_px))
    if width * height > limit:
        scale = math.sqrt(limit * cell_px**2 / (width_px * height_px))
        width, height = (max(1, math.floor(side * scale / cell_px)) for side in (width_px, height_px))
        # A very long page: one side is at its minimum of one token and the other still too long.
        width, height = min(width, limit), min(height, limit)
    elif width * height < MIN_TOKENS:
        scale = math.sqrt(MIN_TOKENS * cell_px**2 / (width_px * height_px))
        width, height = (math.ceil(side * scale / cell_px) for side in (width_px, height_px))
    return width * cell_px, height * cell_px
