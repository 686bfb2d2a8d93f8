"""The saliency of a page's visual tokens, and the choice of the tokens that pruning keeps."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrr.types import Embedding, Grid, KeptTokens


def choose(embedding: Embedding, grid: Grid, share: float) -> KeptTokens:
    """The k = max(1, ceil(share * T)) tokens of highest saliency. Ties go to the earlier token in raster order.

    A saliency map on another grid is resampled bilinearly to ``grid``, the scorer's.
    """
    saliency = embedding.saliency
    if embedding.grid != grid:
        image = saliency.view(1, 1, *embedding.grid)
        saliency = F.interpolate(image, size=grid, mode="bilinear", align_corners=False, antialias=True).flatten()
    n_kept = max(1, math.ceil(Fraction(str(share)) * saliency.numel()))
    best = torch.sort(saliency, descending=True, stable=True).indices[:n_kept]
    return KeptTokens(best.sort().values.int(), grid)


class Saliency:
    """Sums the last token's attention to the visual tokens over all layers. In each layer it is the mean of the heads.

    Only the last row of each attention matrix is computed, in float32: T numbers for each head instead of T x T. All
    layers are summed because miniReranker reports 60.7 with all layers and 57.2 with a single layer (section 3 of
    docs/minireranker.md).
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
