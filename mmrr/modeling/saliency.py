"""Which visual tokens of a page are looked at, and which are kept. Knows attention and grids, not pages or models."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrr.types import Embedding, Grid, KeptTokens


def choose(embedding: Embedding, grid: Grid, share: float) -> KeptTokens:
    """The k = max(1, ceil(share * T)) tokens of highest saliency; ties go to the earlier token in raster order.

    A saliency map on another grid is resampled, bilinearly, to the scorer's.
    """
    saliency = embedding.saliency
    if embedding.grid != grid:
        image = saliency.view(1, 1, *embedding.grid)
        saliency = F.interpolate(image, size=grid, mode="bilinear", align_corners=False, antialias=True).flatten()
    n_kept = max(1, math.ceil(Fraction(str(share)) * saliency.numel()))
    best = torch.sort(saliency, descending=True, stable=True).indices[:n_kept]
    return KeptTokens(best.sort().values.int(), grid)


class Saliency:
    """Sums the last token's attention to the visual tokens over all layers, heads averaged.

    Only the last row of each layer's attention is computed, in float32: T numbers a head, where the whole matrix would
    be T x T (specification of miniReranker, section 3: all layers 60.7 against 57.2 for a single one).
    """

    def __init__(self, visual: slice) -> None:
        self._visual = visual
        self.total = torch.zeros(visual.stop - visual.start)

    def observe(self, layer: int, queries: Tensor, keys: Tensor) -> None:
        """``queries`` (H, n, d), ``keys`` (H_kv, n, d), rotated."""
        n_heads, _, d_head = queries.shape
        last = queries[:, -1].float().view(keys.shape[0], n_heads // keys.shape[0], d_head)
        weights = torch.softmax(last @ keys.float().transpose(1, 2) * d_head**-0.5, dim=-1)  # (H_kv, group, n)
        self.total = self.total.to(weights.device) + weights[..., self._visual].mean(dim=(0, 1))
