"""Token sequences of Qwen3-VL with pages in them: embeddings, M-RoPE positions, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrr.backbones._qwen3_vl_vision import Visual
from mmrr.errors import MmrrError


@dataclass(frozen=True, slots=True)
class KeyValues:
    """Keys (after RoPE) and values of some layers: each (L, H_kv, n, d)."""

    keys: Tensor
    values: Tensor

    @property
    def n_tokens(self) -> int:
        return self.keys.shape[2]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        return self.keys[index], self.values[index]


class Layers(Protocol):
    """The part of ``KeyValues`` that attention reads. An implementation may decode a layer when it is asked for."""

    @property
    def n_tokens(self) -> int: ...

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values (H_kv, n, d) of one of the stored layers, counted from 0."""


@dataclass(frozen=True, slots=True)
class PageSequence:
    """Input of the language model: text with no page, one page or several pages."""

    embeddings: Tensor  # (n, D)
    positions: Tensor  # (3, n)
    deepstack: Tensor  # (S, K, D)
    visual: slice | Tensor  # positions of the visual tokens: a slice for one page, indices (K,) for several pages
    next_pos: int  # M-RoPE position of the next token after the sequence

    def add_deepstack(self, layer: int, x: Tensor) -> Tensor:
        """Add the DeepStack features to the visual tokens of ``x`` (..., n, D), in place, after LM layers 0 .. S-1."""
        if layer < len(self.deepstack):
            x[..., self.visual, :] += self.deepstack[layer]
        return x


def image_positions(cells: Tensor, width: int, start: int) -> Tensor:
    """M-RoPE positions (3, K) of the cells at raster indices ``cells`` (K,) of a page that begins at ``start``."""
    return torch.stack([torch.zeros_like(cells), cells // width, cells % width]) + start


def split_at_images(ids: Sequence[int], image_id: int) -> list[list[int]]:
    """The runs of text ids between image tokens; one run more than there are image tokens."""
    runs: list[list[int]] = [[]]
    for i in ids:
        if i == image_id:
            runs.append([])
        else:
            runs[-1].append(i)
    return runs


def joined(
    runs: Sequence[Sequence[int]],
    visuals: Sequence[Visual],
    cells: Sequence[Tensor | None],
    embed: Callable[[Sequence[int]], Tensor],
) -> PageSequence:
    """Runs of text ids with a page between each two of them; ``cells`` as in ``Backbone.pages_sequence``.

    Raises MmrrError for another number of pages.
    """
    if len(runs) != len(visuals) + 1:
        raise MmrrError(
            f"a prompt with {len(runs) - 1} places for images, but {len(visuals)} pages; expected one place a page"
        )
    embeddings, positions, visual_rows = [], [], []
    n_tokens = next_pos = 0
    for index, run in enumerate(runs):
        embeddings.append(embed(run))
        positions.append((next_pos + torch.arange(len(run))).expand(3, -1))
        n_tokens, next_pos = n_tokens + len(run), next_pos + len(run)
        if index < len(visuals):
            visual, kept = visuals[index], cells[index]
            height, width = visual.grid
            places = torch.arange(height * width) if kept is None else kept.cpu().long()
            embeddings.append(visual.tokens)
            positions.append(image_positions(places, width, next_pos))
            visual_rows.append(n_tokens + torch.arange(len(places)))
            n_tokens, next_pos = n_tokens + len(places), next_pos + max(height, width)
    x = torch.cat(embeddings)
    return PageSequence(
        x,
        torch.cat(positions, dim=1).to(x.device),
        torch.cat([visual.deepstack for visual in visuals], dim=1),
        torch.cat(visual_rows).to(x.device),
        next_pos,
    )


def visible(n_instruction: int, lengths: Sequence[int], m: int) -> Tensor:
    """Mask (N, M, keys): which of [instruction | page, padded | suffix] each of the M suffix rows sees, for N pages."""
    own = n_instruction + max(lengths)
    mask = torch.ones(len(lengths), m, own + m, dtype=torch.bool)
    mask[:, :, n_instruction:own] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None]
    mask[:, :, own:] = torch.ones(m, m, dtype=torch.bool).tril()
    return mask


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention with shared key heads; (..., H, n, d)."""
    if query.dim() == 3:
        return causal(query[None], key[None], value[None])[0]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: ``x`` (..., d) turned by the angles of ``cos`` and ``sin``."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def mean_attention(query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Attention (k,) float32 of queries (H, r, d) to keys (H_kv, k, d): the mean over heads and rows.

    ``mask`` (r, k): what each row sees.
    """
    grouped = query.float().unflatten(0, (len(keys), -1))  # (H_kv, group, r, d)
    logits = grouped @ keys.float().transpose(1, 2)[:, None] * query.shape[-1] ** -0.5
    return torch.softmax(logits.masked_fill(~mask, -torch.inf), dim=-1).mean(dim=(0, 1, 2))
