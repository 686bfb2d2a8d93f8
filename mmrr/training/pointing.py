"""The pointing loss: teaches attention heads to look at given positions.

Each chosen row (a query token, a word, a cell) has a set of target columns. The loss is the negative log of the softmax
weight that the row gives to its targets. The trainings of all families use it as an auxiliary loss. This module knows
attention logits, not models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Keeps the log finite where the attention weight of all targets is 0.
_EPSILON = 1e-6


def pointing_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log of the softmax weight on the targets, one value a row; not reduced.

    ``logits`` (..., K) are attention logits, ``targets`` (..., K) bool, broadcast against them. Every row needs at
    least one target: a row without one has an infinite loss.
    """
    return logits.logsumexp(-1) - logits.masked_fill(~targets, -torch.inf).logsumexp(-1)


def pointing_loss_of_weights(weights: Tensor, targets: Tensor) -> Tensor:
    """The mean pointing loss for a model that returns attention weights (W, H, K), not logits.

    ``targets`` (W, K): 1 for a target, 0 for other columns; all H heads of a row share them.
    """
    mass = (weights.float() * targets[:, None]).sum(-1)
    return -(mass + _EPSILON).log().mean()


def half_of_heads(n_heads: int) -> int:
    """The number of heads that a pointing loss trains; the other heads of the layer stay free."""
    return max(1, n_heads // 2)


def attention_logits(queries: Tensor, keys: Tensor, rows: Sequence[int] | Tensor) -> Tensor:
    """Attention logits (R, h, P) in float32 of some rows of a layer, for the first half of its heads.

    ``queries`` (H, S, d) and ``keys`` (H_kv, P, d) are rotated; ``rows`` selects R of the S queries. With fewer key
    heads than query heads, each key head serves a group of query heads.
    """
    heads = half_of_heads(queries.shape[0])
    group = queries.shape[0] // keys.shape[0]
    shared = keys.repeat_interleave(group, dim=0)[:heads].float()
    return torch.einsum("hrd,hpd->rhp", queries[:heads, rows].float(), shared) * queries.shape[-1] ** -0.5
