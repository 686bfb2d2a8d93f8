"""Chooses which visual tokens of a page are kept. Knows saliency maps and grids, not pages or models."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import torch.nn.functional as F

from mmrr.types import Embedding, Grid, Keep


def choose(embedding: Embedding, grid: Grid, share: float) -> Keep:
    """The k = max(1, ceil(share * T)) tokens of highest saliency; ties go to the earlier token in raster order.

    A saliency map on another grid is resampled, bilinearly, to the scorer's.
    """
    saliency = embedding.saliency
    if embedding.grid != grid:
        image = saliency.view(1, 1, *embedding.grid)
        saliency = F.interpolate(image, size=grid, mode="bilinear", align_corners=False, antialias=True).flatten()
    n_kept = max(1, math.ceil(Fraction(str(share)) * saliency.numel()))
    best = torch.sort(saliency, descending=True, stable=True).indices[:n_kept]
    return Keep(best.sort().values.int(), grid)
