"""One page and many queries in one differentiable forward, under the masks of miniReranker.

The plain form of what the scorer does with a cache (specification, section 3): the page never sees a query, queries
never see one another, and a query sees the page only in layers ``b .. e-1``. Knows layers, not losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Attention of so many cells a head or fewer is computed plainly on a CPU.
_PLAIN_CELLS = 1 << 18
#: Called per band layer with (layer, queries (H, S, d), keys of the page's segment (H_kv, P, d)), both rotated.
Watch = Callable[[int, Tensor, Tensor], None]
#: Called behind each layer with (layer, states of all queries' tokens, one behind the other (S, D)).
Seen = Callable[[int, Tensor], None]
#: ``one_layer``, or the same compiled.
Layer = Callable[[Any, int, Tensor, tuple[Tensor, Tensor]], Tensor]


def pad(suffixes: Sequence[Sequence[int]], filler: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids (Q, M), padded on the right, and lengths (Q,). Causal masks keep the padding out of sight."""
    lengths = torch.tensor([len(suffix) for suffix in suffixes])
    ids = torch.full((len(suffixes), int(lengths.max())), filler, dtype=torch.long)
    for row, suffix in enumerate(suffixes):
        ids[row, : len(suffix)] = torch.tensor(suffix)
    return ids, lengths


def score_states(
    backbone: Any,
    page: Any,
    suffixes: Sequence[Sequence[int]],
    band: tuple[int, int],
    exit_layer: int,
    watch: Watch | None = None,
    seen: Seen | None = None,
) -> Tensor:
    """Hidden states (Q, D) of each query's last token at the exit, before the final norm.

    ``page`` is a PageSequence. ``band = (0, L)``, ``exit_layer = L`` is the dense model. The queries stand one behind
    the other in one sequence, each at the positions that follow the page, and only the mask kept them apart: padded
    to the longest, short ones would cost as much as it does.
    """
    start, end = band
    device = page.embeddings.device
    lengths = torch.tensor([len(suffix) for suffix in suffixes])
    ids = torch.tensor([token for suffix in suffixes for token in suffix], device=device)
    owner = torch.arange(len(suffixes)).repeat_interleave(lengths)
    ends = lengths.cumsum(0) - 1
    places = torch.arange(len(ids)) - (ends - lengths + 1)[owner]
    apart = (owner[:, None] == owner[None]).tril().to(device)
    x, n = page.embeddings, len(page.embeddings)
    joint = F.pad(apart, (n, 0), value=True)
    page_rotary = backbone.rotary(page.positions)
    suffix_rotary = backbone.rotary((page.next_pos + places.to(device)).expand(3, -1))
    suffix = backbone.text.embed_tokens(ids)
    for index in range(exit_layer):
        if index < end:
            query, key, value = backbone.project(index, x, page_rotary)
            if index < end - 1:
                x = backbone.finish(index, x, _attend(query[None], key[None], value[None], None)[0])
                x = page.add_deepstack(index, x)
        own_query, own_key, own_value = backbone.project(index, suffix, suffix_rotary)
        mask = apart
        if start <= index < end:
            if watch:
                watch(index, own_query, key)
            own_key, own_value = torch.cat([key, own_key], dim=-2), torch.cat([value, own_value], dim=-2)
            mask = joint
        if index == exit_layer - 1 and not seen:  # nobody looks at the others any more
            own_query, suffix, mask = own_query[:, ends], suffix[ends], mask[ends]
        attended = _attend(own_query[None], own_key[None], own_value[None], mask)[0]
        suffix = backbone.finish(index, suffix, attended)
        if seen:
            seen(index, suffix)
    return suffix[ends] if seen else suffix


def one_layer(backbone: Any, index: int, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """One layer over causal sequences (Q, n, D), padded on the right."""
    query, key, value = backbone.project(index, x, rotary)
    hidden: Tensor = backbone.finish(index, x, _attend(query, key, value, None))
    return hidden


def read_batch(backbone: Any, embeddings: Tensor, layers: int, layer: Layer = one_layer) -> Tensor:
    """Plain causal texts (Q, M, D), padded on the right, through the first ``layers``; (Q, M, D) before the norm."""
    rotary = backbone.rotary(torch.arange(embeddings.shape[1], device=embeddings.device).expand(3, 1, -1))
    x = embeddings
    for index in range(layers):
        x = layer(backbone, index, x, rotary)
    return x


def read_page(backbone: Any, page: Any, layers: int, layer: Layer = one_layer, observe: Watch | None = None) -> Tensor:
    """A page's sequence through the first ``layers``; hidden states (n, D) before the norm.

    ``observe``: called per layer with (layer, query (H, 1, d) of the last token, keys (H_kv, n, d)).
    """
    x, rotary = page.embeddings, backbone.rotary(page.positions)
    for index in range(layers):
        if observe:  # beside the layer, which may be compiled
            query, key, _ = backbone.project(index, x, rotary, n_queries=1)
            observe(index, query, key)
        x = layer(backbone, index, x[None], rotary)[0]
        x = page.add_deepstack(index, x)
    return x


def read_last(backbone: Any, page: Any) -> Tensor:
    """The last token's hidden state (D,) behind the last layer, which runs for that token alone."""
    last = backbone.n_layers - 1
    x, rotary = read_page(backbone, page, last), backbone.rotary(page.positions)
    query, key, value = backbone.project(last, x, rotary, n_queries=1)
    everything = torch.ones(1, len(x), dtype=torch.bool, device=x.device)
    attended = _attend(query[None], key[None], value[None], everything)[0]
    state: Tensor = backbone.finish(last, x[-1:], attended)[0]
    return state


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """(.., H, n, d) over (.., H_kv, k, d); causal without a mask."""
    key, value = key.to(query.dtype), value.to(query.dtype)
    n, k = query.shape[-2], key.shape[-2]
    if query.device.type != "cpu" or n * k > _PLAIN_CELLS:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
    # On a CPU the gradient of the fused kernel takes several times as long as that of two plain products.
    if mask is None:
        mask = torch.ones(n, k, dtype=torch.bool).tril()
    group = query.shape[-3] // key.shape[-3]
    key, value = (part.repeat_interleave(group, dim=-3) for part in (key, value))
    logits = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    return torch.softmax(logits, dim=-1).to(value.dtype) @ value
