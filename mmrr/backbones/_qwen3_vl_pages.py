"""Pages of Qwen3-VL through the language model, several in one forward: their caches, and their hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrr.backbones._qwen3_vl_batches import together
from mmrr.backbones._qwen3_vl_sequences import KeyValues, PageSequence, causal

if TYPE_CHECKING:
    from mmrr.backbones.qwen3_vl import Backbone, Observer


def padded(pages: Sequence[PageSequence]) -> tuple[Tensor, Tensor, list[int]]:
    """Embeddings (N, n, D), positions (3, N, n), and lengths. Padding is on the right.

    With causal attention no token attends to padding, so that no mask is needed.
    """
    lengths = [len(page.embeddings) for page in pages]
    if len(set(lengths)) == 1:
        return (
            torch.stack([page.embeddings for page in pages]),
            torch.stack([page.positions for page in pages], dim=1),
            lengths,
        )
    longest = max(lengths)
    first = pages[0]
    embeddings = first.embeddings.new_zeros(len(pages), longest, first.embeddings.shape[1])
    positions = first.positions.new_zeros(3, len(pages), longest)
    for row, (page, length) in enumerate(zip(pages, lengths, strict=True)):
        embeddings[row, :length], positions[:, row, :length] = page.embeddings, page.positions
    return embeddings, positions, lengths


def prefixes(backbone: Backbone, pages: Sequence[PageSequence], band: tuple[int, int]) -> list[KeyValues]:
    """``Backbone.prefixes``."""
    start, end = band
    found: dict[int, KeyValues] = {}
    for rows in together([len(page.embeddings) for page in pages], backbone.most_tokens):
        some = [pages[row] for row in rows]
        x, positions, lengths = padded(some)
        rotary = backbone.rotary(positions)
        keys, values = [], []
        for index in range(end):
            query, key, value = backbone.project(index, x, rotary, n_queries=0 if index == end - 1 else None)
            if index >= start:
                keys.append(key)
                values.append(value)
            if index < end - 1:
                x = backbone.finish(index, x, causal(query, key, value))
                for page, own in zip(some, x, strict=True):
                    page.add_deepstack(index, own)
        of_rows = zip(torch.stack(keys, dim=1), torch.stack(values, dim=1), lengths, strict=True)
        found |= {
            row: KeyValues(key[:, :, :length], value[:, :, :length])
            for row, (key, value, length) in zip(rows, of_rows, strict=True)
        }
    return [found[row] for row in range(len(pages))]


def read_pages(
    backbone: Backbone, pages: Sequence[PageSequence], observers: Sequence[Observer | None], *, last_only: bool
) -> list[Tensor]:
    """``Backbone.read_pages``."""
    found: dict[int, Tensor] = {}
    for rows in together([len(page.embeddings) for page in pages], backbone.most_tokens):
        some = [pages[row] for row in rows]
        found |= zip(rows, _read(backbone, some, [observers[row] for row in rows], last_only), strict=True)
    return [found[row] for row in range(len(pages))]


def _read(
    backbone: Backbone, pages: Sequence[PageSequence], observers: Sequence[Observer | None], last_only: bool
) -> list[Tensor]:
    x, positions, lengths = padded(pages)
    rotary = backbone.rotary(positions)

    def observe(layer: int, query: Tensor, key: Tensor) -> None:
        for row, (observer, length) in enumerate(zip(observers, lengths, strict=True)):
            if observer:
                observer(layer, query[row, :, :length], key[row, :, :length])

    last, is_equal = backbone.n_layers - 1, len(set(lengths)) == 1
    for index in range(backbone.n_layers):
        ends = last_only and index == last
        query, key, value = backbone.project(index, x, rotary, n_queries=1 if ends and is_equal else None)
        observe(index, query, key)
        if ends:
            return _read_ends(backbone, x, (query, key, value), lengths)
        x = backbone.finish(index, x, causal(query, key, value))
        for page, own in zip(pages, x, strict=True):
            page.add_deepstack(index, own)
    return [backbone.text.norm(own[:length]) for own, length in zip(x, lengths, strict=True)]


def _read_ends(
    backbone: Backbone, x: Tensor, projected: tuple[Tensor, Tensor, Tensor], lengths: list[int]
) -> list[Tensor]:
    """The last layer for the last token of each row of ``x`` (N, n, D); its states (1, D) after the final norm.

    ``projected``: queries of all tokens, or of the last one alone if all rows have the same length; keys; values.
    """
    query, key, value = projected
    last = backbone.n_layers - 1
    if len(set(lengths)) == 1:
        attended = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        return list(backbone.text.norm(backbone.finish(last, x[:, -1:], attended)))
    states = []
    for row, length in enumerate(lengths):
        end, own = slice(length - 1, length), slice(row, row + 1)
        attended = F.scaled_dot_product_attention(
            query[own, :, end], key[own, :, :length], value[own, :, :length], enable_gqa=True
        )
        states.append(backbone.text.norm(backbone.finish(last, x[own, end], attended))[0])
    return states
