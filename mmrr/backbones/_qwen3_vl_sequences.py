"""Token sequences of Qwen3-VL with pages in them: embeddings, M-RoPE positions, keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


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


def visible(n_instruction: int, lengths: Sequence[int], m: int) -> Tensor:
    """Mask (N, M, keys): which of [instruction | page, padded | suffix] each of the M suffix rows sees, for N pages."""
    own = n_instruction + max(lengths)
    mask = torch.ones(len(lengths), m, own + m, dtype=torch.bool)
    mask[:, :, n_instruction:own] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None]
    mask[:, :, own:] = torch.ones(m, m, dtype=torch.bool).tril()
    return mask
