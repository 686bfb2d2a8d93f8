"""One page and many queries in one differentiable forward, with the attention masks of miniReranker.

It computes without a cache what the scorer computes with one (docs/minireranker.md, section 3): the page does not
attend to queries, queries do not attend to each other, and a query attends to the page in layers ``b .. e-1`` only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrr.types import Grid

#: On a CPU, attention with at most this number of cells a head is computed by plain matrix products.
_PLAIN_CELLS = 1 << 18
#: Called in each layer of the band with (layer, queries (H, S, d), keys of the page's segment (H_kv, P, d)), rotated.
Watch = Callable[[int, Tensor, Tensor], None]
#: Called after each layer with (layer, hidden states (S, D) of the tokens of all queries, query after query).
Seen = Callable[[int, Tensor], None]


class Backbone(Protocol):
    """The parts of a language model that run one layer; see ``mmrr.backbones.qwen3_vl.Backbone``."""

    @property
    def n_layers(self) -> int: ...

    @property
    def text(self) -> Any:  # a language model of transformers, which has no common type
        ...

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the rotary embedding for positions (3, n) or (3, N, n)."""
        ...

    def project(
        self, index: int, x: Tensor, rotary: tuple[Tensor, Tensor], n_queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (..., H, n, d), rotated keys and values (..., H_kv, n, d) of one layer."""
        ...

    def finish(self, index: int, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of one layer after attention; ``attended`` is (..., H, n, d)."""
        ...


class Visual(Protocol):
    """The vision tower's output for a page; see ``mmrr.backbones.qwen3_vl``."""

    @property
    def tokens(self) -> Tensor: ...  # (T, D), in raster order of ``grid``

    @property
    def deepstack(self) -> Tensor: ...  # (S, T, D), added to the visual tokens after layers 0 .. S-1

    @property
    def grid(self) -> Grid: ...


class PageSequence(Protocol):
    """The token sequence of a page: instruction, visual tokens, and the text after them."""

    @property
    def embeddings(self) -> Tensor: ...  # (n, D)

    @property
    def positions(self) -> Tensor: ...  # (3, n)

    @property
    def next_pos(self) -> int: ...  # position of a token after the sequence

    def add_deepstack(self, layer: int, x: Tensor) -> Tensor:
        """The hidden states with the DeepStack features that belong after ``layer``."""
        ...


#: ``one_layer``, or its compiled form.
Layer = Callable[[Backbone, int, Tensor, tuple[Tensor, Tensor]], Tensor]


def pad(suffixes: Sequence[Sequence[int]], filler: int = 0) -> tuple[Tensor, Tensor]:
    """Token ids (Q, M), padded on the right, and lengths (Q,). With causal masks no query attends to its padding."""
    lengths = torch.tensor([len(suffix) for suffix in suffixes])
    ids = torch.full((len(suffixes), int(lengths.max())), filler, dtype=torch.long)
    for row, suffix in enumerate(suffixes):
        ids[row, : len(suffix)] = torch.tensor(suffix)
    return ids, lengths


def score_states(
    backbone: Backbone,
    page: PageSequence,
    suffixes: Sequence[Sequence[int]],
    band: tuple[int, int],
    exit_layer: int,
    watch: Watch | None = None,
    seen: Seen | None = None,
) -> Tensor:
    """Hidden states (Q, D) of each query's last token at the exit layer, before the final norm.

    ``band = (0, L)`` with ``exit_layer = L`` is the dense model. All queries are in one sequence, separated by the mask
    alone; the positions of each continue those of the page. As a padded batch, a short query would cost as much as the
    longest one. Seven parameters: two of them are optional observers of one forward.
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
        if index == exit_layer - 1 and not seen:  # only the last tokens are needed
            own_query, suffix, mask = own_query[:, ends], suffix[ends], mask[ends]
        attended = _attend(own_query[None], own_key[None], own_value[None], mask)[0]
        suffix = backbone.finish(index, suffix, attended)
        if seen:
            seen(index, suffix)
    return suffix[ends] if seen else suffix


def score_prompt(
    backbone: Backbone, prompt: PageSequence, n_first: int, band: tuple[int, int], exit_layer: int
) -> Tensor:
    """The hidden state (D,) of a whole prompt's last token at the exit layer, before the final norm.

    As ``score_states`` for one query that may have images. The first ``n_first`` tokens are the page's segment.
    """
    start, end = band
    x, rotary = prompt.embeddings, backbone.rotary(prompt.positions)
    joint = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device).tril()
    apart = joint.clone()
    apart[n_first:, :n_first] = False
    for index in range(exit_layer):
        query, key, value = backbone.project(index, x, rotary)
        mask = joint if start <= index < end else apart
        x = backbone.finish(index, x, _attend(query[None], key[None], value[None], mask)[0])
        x = prompt.add_deepstack(index, x)
    return x[-1]


def one_layer(backbone: Backbone, index: int, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """One layer over causal sequences (Q, n, D), padded on the right."""
    query, key, value = backbone.project(index, x, rotary)
    return backbone.finish(index, x, _attend(query, key, value, None))


def read_batch(backbone: Backbone, embeddings: Tensor, layers: int, layer: Layer = one_layer) -> Tensor:
    """Hidden states (Q, M, D) of texts after the first ``layers``, before the norm. Texts are padded on the right."""
    rotary = backbone.rotary(torch.arange(embeddings.shape[1], device=embeddings.device).expand(3, 1, -1))
    x = embeddings
    for index in range(layers):
        x = layer(backbone, index, x, rotary)
    return x


def read_page(
    backbone: Backbone, page: PageSequence, layers: int, layer: Layer = one_layer, observe: Watch | None = None
) -> Tensor:
    """Hidden states (n, D) of a page's sequence after the first ``layers``, before the norm.

    ``observe`` is called in each layer with (layer, query (H, 1, d) of the last token, keys (H_kv, n, d)).
    """
    x, rotary = page.embeddings, backbone.rotary(page.positions)
    for index in range(layers):
        if observe:  # computed separately, because the layer may be compiled
            query, key, _ = backbone.project(index, x, rotary, n_queries=1)
            observe(index, query, key)
        x = layer(backbone, index, x[None], rotary)[0]
        x = page.add_deepstack(index, x)
    return x


def read_last(backbone: Backbone, page: PageSequence) -> Tensor:
    """The last token's hidden state (D,) after the last layer, which runs for this token alone."""
    last = backbone.n_layers - 1
    x, rotary = read_page(backbone, page, last), backbone.rotary(page.positions)
    query, key, value = backbone.project(last, x, rotary, n_queries=1)
    everything = torch.ones(1, len(x), dtype=torch.bool, device=x.device)
    attended = _attend(query[None], key[None], value[None], everything)[0]
    return backbone.finish(last, x[-1:], attended)[0]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of queries (.., H, n, d) to keys and values (.., H_kv, k, d). Without a mask it is causal."""
    key, value = key.to(query.dtype), value.to(query.dtype)
    n, k = query.shape[-2], key.shape[-2]
    if query.device.type != "cpu" or n * k > _PLAIN_CELLS:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
    # On a CPU the gradient of the fused kernel is several times slower than that of two plain matrix products.
    if mask is None:
        mask = torch.ones(n, k, dtype=torch.bool).tril()
    group = query.shape[-3] // key.shape[-3]
    key, value = (part.repeat_interleave(group, dim=-3) for part in (key, value))
    logits = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    return torch.softmax(logits, dim=-1).to(value.dtype) @ value
