"""The band of Qwen3-VL on a device: the suffix attends to all pages of a batch in one call a layer.

A device waits for each kernel to be launched, so that a copy for each page and layer would cost more than attention.
Here pages lie in one tensor, joined along their tokens, and a layer is copied into place at once. No mask is passed,
because a mask keeps the flash kernels out: attention is causal, aligned at the last key, so that a row of the suffix
sees the instruction, the page and the suffix up to itself. Pages of different lengths are padded between the page and
the suffix. One more channel hides the padding: it is 1 in every query, 0 in every key, and in a padded key a number so
low that its weight in the softmax is exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrr.backbones._qwen3_vl_sequences import KeyValues, Layers, PageSequence, visible

if TYPE_CHECKING:
    from mmrr.backbones.qwen3_vl import Backbone

#: What hides a padded key. float16 can hold it. Times the scale of attention, at least d^-0.5, it is below -3,000 for
#: heads of up to 256 channels, and exp(-104) is 0 in float32.
_HIDDEN = -6e4
#: Channels that are added with it: flash kernels take widths that are multiples of 8.
_MORE = 8


class JoinedPages(Protocol):
    """The stored layers of several pages, joined along their tokens."""

    @property
    def lengths(self) -> Sequence[int]:
        """The number of tokens of each page."""

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values (H_kv, all tokens, d) of one of the stored layers, counted from 0, on the device."""


@torch.inference_mode()
def joined_band(
    backbone: Backbone,
    x: Tensor,
    instruction: KeyValues,
    pages: JoinedPages,
    next_pos: Tensor,
    layers: tuple[int, int],
    *,
    last_only: bool,
    own: PageSequence | None,
) -> Tensor:
    """``Backbone.suffix_band`` with the pages of ``pages``. The parameters are its own."""
    first_layer, end = layers
    m = x.shape[0]
    relative = own.positions if own else torch.arange(m, device=backbone.device).expand(3, m)
    rotary = backbone.rotary(next_pos.to(backbone.device)[:, None] + relative[:, None])  # (3, N, M)
    buffer = _Buffer(instruction, pages.lengths, m, x)
    for index in range(first_layer, end):  # in the first layer x is still (M, D), shared by all pages
        n_queries = 1 if last_only and index == end - 1 else m
        query, key, value = backbone.project(index, x, rotary, n_queries=n_queries)
        layer = index - first_layer
        buffer.fill(instruction.layer(layer), pages.layer(layer), (key, value))
        x = backbone.finish(index, x[..., m - n_queries :, :], buffer.attend(query))
        if own and n_queries == m:
            x = own.add_deepstack(index, x)
    return x


@torch.inference_mode()
def page_attention(
    backbone: Backbone,
    x: Tensor,
    instruction: KeyValues,
    page: Layers,
    next_pos: int,
    layers: tuple[int, int],
    rows: list[int],
) -> Tensor:
    """``Backbone.suffix_attention``. The parameters are its own."""
    m, start = len(x), instruction.n_tokens
    own = slice(start, start + page.n_tokens)
    mask = visible(start, [page.n_tokens], m)[0].to(backbone.device)
    rotary = backbone.rotary((next_pos + torch.arange(m, device=backbone.device)).expand(3, -1))
    found = []
    for index in range(*layers):
        query, key, value = backbone.project(index, x, rotary)
        stored = zip(*(part.layer(index - layers[0]) for part in (instruction, page)), strict=True)
        before_keys, before_values = (torch.cat([one.to(x) for one in pair], dim=1) for pair in stored)
        keys, values = torch.cat([before_keys, key], dim=1), torch.cat([before_values, value], dim=1)
        asked = query[:, rows].float().unflatten(0, (len(keys), -1))  # (H_kv, group, rows, d)
        logits = asked @ keys.float().transpose(1, 2)[:, None] * query.shape[-1] ** -0.5
        weights = torch.softmax(logits.masked_fill(~mask[rows], -torch.inf), dim=-1)
        found.append(weights[..., own].mean(dim=(0, 1, 2)))
        attended = F.scaled_dot_product_attention(
            query[None], keys[None], values[None], attn_mask=mask, enable_gqa=True
        )[0]
        x = backbone.finish(index, x, attended)
    return torch.stack(found)


class _Buffer:
    """Keys and values of one layer: [instruction | page, padded | suffix] of every page. Reused by all layers."""

    def __init__(self, instruction: KeyValues, lengths: Sequence[int], m: int, like: Tensor) -> None:
        """``like``: a tensor with the device and number format of the model."""
        _, n_heads, n_instruction, self._d = instruction.keys.shape
        n, longest = len(lengths), max(lengths)
        self._size = n_instruction + longest + m
        self._is_ragged = min(lengths) < longest
        width = self._d + _MORE if self._is_ragged else self._d
        # Zero at first: padding has no weight, but a NaN there would still spread.
        self._keys, self._values = (like.new_zeros(n_heads, n, self._size, width) for _ in range(2))
        self._instruction, self._pages = slice(0, n_instruction), slice(n_instruction, n_instruction + longest)
        self._suffix = slice(self._size - m, self._size)
        self._lengths = (n, longest)
        if self._is_ragged:
            counts = torch.tensor(lengths)
            row = torch.arange(n).repeat_interleave(counts)
            within = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
            self._places = (row * self._size + n_instruction + within).to(like.device)
            padding = torch.arange(longest) >= counts[:, None]
            self._keys[:, :, self._pages, self._d] = (_HIDDEN * padding).to(like.device, like.dtype)

    def fill(
        self,
        instruction: tuple[Tensor, Tensor],
        pages: tuple[Tensor, Tensor],
        suffix: tuple[Tensor, Tensor],
    ) -> None:
        """Keys and values of the next layer: (H_kv, n, d), (H_kv, all tokens, d), (N, H_kv, M, d) or (H_kv, M, d)."""
        for buffer, before, page, after in zip((self._keys, self._values), instruction, pages, suffix, strict=True):
            own = buffer[..., : self._d]
            own[:, :, self._instruction] = before[:, None]
            own[:, :, self._suffix] = after.transpose(0, 1) if after.dim() == 4 else after[:, None]
            if self._is_ragged:
                own.flatten(1, 2).index_copy_(1, self._places, page)
            else:
                own[:, :, self._pages] = page.unflatten(1, self._lengths)

    def attend(self, query: Tensor) -> Tensor:
        """The attention (N, H, n, d) of the last n tokens of the suffix; ``query`` (N, H, n, d)."""
        if self._is_ragged:
            query = F.pad(query, (0, _MORE))
            query[..., self._d] = 1
        n_queries = query.shape[-2]
        attended = F.scaled_dot_product_attention(
            query,
            self._keys.transpose(0, 1),
            self._values.transpose(0, 1),
            attn_mask=self._causal(n_queries) if n_queries > 1 else None,
            scale=self._d**-0.5,
            enable_gqa=True,
        )
        return attended[..., : self._d]

    def _causal(self, n_queries: int) -> Tensor:
        """The causal mask, aligned at the last key. CUDA has kernels that need no tensor for it."""
        if self._keys.device.type in ("cuda", "cpu"):
            from torch.nn.attention.bias import causal_lower_right  # it imports a compiler, and a CPU needs none

            return causal_lower_right(n_queries, self._size)
        everything = torch.ones(n_queries, self._size, dtype=torch.bool, device=self._keys.device)
        return everything.tril(self._size - n_queries)
