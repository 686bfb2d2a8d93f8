"""Draws which visual tokens of a page are kept. Knows images and grids, not workspaces or models."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mmrr.types import Keep

#: How much of a dropped token's ink is left, and the paper it fades into.
_LEFT, _PAPER = 0.18, (236, 238, 244)


def kept_tokens(image: Image.Image, keep: Keep) -> Image.Image:
    """The page (RGB, any size) with every token that is not kept faded out."""
    rows, columns = keep.grid
    mask = np.zeros(rows * columns, dtype=np.uint8)
    mask[keep.indices.numpy()] = 255
    shown = Image.fromarray(mask.reshape(rows, columns)).resize(image.size, Image.Resampling.NEAREST)
    faded = Image.blend(Image.new("RGB", image.size, _PAPER), image.convert("RGB"), _LEFT)
    return Image.composite(image.convert("RGB"), faded, shown)
