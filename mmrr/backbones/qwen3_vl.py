"""Qwen3-VL, split where miniReranker splits it: vision tower, page prefix, query suffix.

Together with its helper modules (``_qwen3_vl_*``), this is the only module that touches transformers' internals of
this model. It knows token ids, layers and masks. It does not know prompts, scores, files or workspaces. Layers are
counted from 0. The keys and values of layer l come from the hidden state that enters l (specification of miniReranker,
section 4). The language model of a checkpoint that comes with mmrr is loaded without transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mmrr.backbones import _qwen3_vl_pages, _qwen3_vl_text
from mmrr.backbones._qwen3_vl_band import JoinedPages, joined_band, page_attention
from mmrr.backbones._qwen3_vl_batches import together, token_bytes
from mmrr.backbones._qwen3_vl_names import Limits, page_size
from mmrr.backbones._qwen3_vl_sequences import (
    KeyValues,
    Layers,
    PageSequence,
    causal,
    joined,
    rotate,
    split_at_images,
    visible,
)
from mmrr.backbones._qwen3_vl_stock import stock_forward
from mmrr.backbones._qwen3_vl_vision import VisionTower, Visual, linear_patches
from mmrr.errors import MmrrError
from mmrr.modeling.chat import ChatEncoder
from mmrr.modeling.checkpoints import comes_with_mmrr
from mmrr.modeling.plain_tokenizer import PlainTokenizer
from mmrr.types import Grid

__all__ = ["Backbone", "KeyValues", "Layers", "Observer", "PageSequence", "Visual", "linear_patches"]

#: Called once per layer with (layer, queries (H, n, d), keys (H_kv, n, d)), both after RoPE.
Observer = Callable[[int, Tensor, Tensor], None]

#: Bytes that a forward over several pages may take unless ``limit_memory`` says otherwise.
_MEMORY = 4 << 30
#: Maximum number of pages in one attention call on a CPU, and of bytes of their keys and values per thread.
_AT_ONCE, _NEAR_BYTES = 32, 4 << 20


class Backbone:
    """A Qwen3-VL checkpoint, loaded for inference."""

    # Any: transformers does not type its models.
    def __init__(
        self,
        path: Path,
        adapter: Path | None,
        device: torch.device,
        dtype: torch.dtype,
        *,
        needs_head: bool,
        projection: nn.Linear | None = None,
        model: Any = None,
    ) -> None:
        """Seven parameters: what is loaded from where, and three that differ among scorers, embedders and benchmarks.

        ``needs_head``: the checkpoint must have an LM head. ``projection``: its layer of late interaction. ``model``:
        what is used instead of its weights.

        Raises MmrrError if weights are missing, unknown or of the wrong shape, or if the adapter does not fit.
        """
        self.device, self.dtype = device, dtype
        self._path, self._adapter, self._needs_head, self._projection = path, adapter, needs_head, projection
        self.limits = Limits()
        if model is None and adapter is None and comes_with_mmrr(path):
            self._load_text()
        else:
            self._load_whole(model)
        self.n_layers: int = self.config.text_config.num_hidden_layers
        vision = self.config.vision_config
        #: Side in pixels of the square that one LM token covers.
        self.cell_px: int = int(vision.patch_size) * int(vision.spatial_merge_size)
        #: Whether the band reads pages joined in one tensor. On a CPU a few pages at a time stay in its caches.
        self.joins_pages = device.type != "cpu"
        #: The most tokens of pages in one forward; 0: one page. On a CPU several pages together are not faster.
        self.most_tokens = 0
        self.limit_memory(_MEMORY)

    def limit_memory(self, most_bytes: int) -> None:
        """Let a forward over several pages take ``most_bytes`` on top of the model. A CPU reads one page at a time."""
        if self.device.type != "cpu":
            self.most_tokens = most_bytes // token_bytes(self.config, self.dtype.itemsize)

    def _load_text(self) -> None:
        """Load the language model without transformers. ``model`` and ``tower`` are loaded when they are used."""
        self.config: Any = _qwen3_vl_text.read_config(self._path)  # Any: transformers types no configuration
        text, head = _qwen3_vl_text.load(self._path, self.config, self.dtype)
        self.text: Any = text.to(self.device).eval().requires_grad_(False)
        self._head: Any = head.to(self.device).requires_grad_(False)
        template = (self._path / "chat_template.jinja").read_text("utf-8")
        self.chat = ChatEncoder(PlainTokenizer(self._path), template, own=True)

    def _load_whole(self, model: Any) -> None:
        from mmrr.backbones._qwen3_vl_loading import chat_template, load_processors

        self.model = self._ready(model) if model is not None else self._load_model()
        self.config, self.text, self._head = self.model.config, self.model.model.language_model, self.model.lm_head
        tokenizer, image_processor = load_processors(self._path, self.config)
        self.chat = ChatEncoder(tokenizer, chat_template(self._path, tokenizer))
        self.tower = VisionTower(self.model, image_processor, self.limits, self.device, self.dtype)

    def _load_model(self) -> Any:  # Any: the model of transformers has no type
        from mmrr.backbones._qwen3_vl_loading import load_model

        model = load_model(
            self._path, self._adapter, self.dtype, needs_head=self._needs_head, projection=self._projection
        )
        return self._ready(model)

    def _ready(self, model: Any) -> Any:
        return model.to(self.device).eval().requires_grad_(False)

    @cached_property
    def model(self) -> Any:
        """The model of transformers. It has the very parameters of ``text``, which may have been trained."""
        model = self._load_model()
        whole = model.model.language_model
        tied = model.lm_head.weight is whole.embed_tokens.weight
        for name, parameter in self.text.named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(whole.get_submodule(owner), leaf, parameter)
        if tied:
            model.lm_head.weight = whole.embed_tokens.weight
        self.config, self.text, self._head = model.config, whole, model.lm_head
        return model

    @cached_property
    def tower(self) -> VisionTower:
        from mmrr.backbones._qwen3_vl_loading import load_processors

        _, image_processor = load_processors(self._path, self.model.config)
        return VisionTower(self.model, image_processor, self.limits, self.device, self.dtype)

    # Geometry and text

    def grid(self, width_px: int, height_px: int, max_tokens: int | None = None) -> Grid:
        """(h, w) in merged tokens of a page image of this size."""
        width, height = page_size(width_px, height_px, self.cell_px, self.limits.pixels, max_tokens)
        return height // self.cell_px, width // self.cell_px

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Token embeddings (n, D)."""
        return self.text.embed_tokens(torch.tensor(ids, device=self.device, dtype=torch.long))

    def split_at_image(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The ids before and after the only image token of a prompt. Raises MmrrError for any other number of them."""
        if list(ids).count(self.config.image_token_id) != 1:
            raise MmrrError("the chat template of this checkpoint does not place exactly one image token for one page")
        at = list(ids).index(self.config.image_token_id)
        return list(ids[:at]), list(ids[at + 1 :])

    def head_difference(self, positive: int, negative: int) -> Tensor:
        """Two rows of the LM head, (2, D) float32. The caller takes both dot products in float32, then subtracts."""
        return self._head.weight[[positive, negative]].float()

    def head_rows(self, ids: Sequence[int]) -> Tensor:
        """The rows of the LM head for these tokens, (n, D) float32."""
        return self._head.weight[list(ids)].float()

    def vocabulary(self, hidden: Tensor) -> Tensor:
        """The logits (n, V) in float32 of hidden states (n, D) after the final norm."""
        return hidden.float() @ self._head.weight.float().T

    # Vision

    def vision(self, images: Sequence[Image.Image], max_tokens: int | None = None) -> list[Visual]:
        """Visual tokens of pages."""
        return self.tower.encode(images, max_tokens, self.most_tokens)

    @property
    def pixel_limits(self) -> tuple[int, int]:
        """Minimum and maximum number of pixels after resizing by the checkpoint's image processor."""
        return self.tower.pixel_limits

    def vision_as_processed(self, image: Image.Image) -> Visual:
        """Visual tokens of one page, resized by the checkpoint's image processor.

        Raises MmrrError if the processor refuses the image: one side is over 200 times the other.
        """
        return self.tower.encode_as_processed(image)

    # Language model, page side

    def text_sequence(self, ids: Sequence[int]) -> PageSequence:
        """A sequence with no page."""
        positions = torch.arange(len(ids), device=self.device).expand(3, -1)
        embeddings = self.embed(ids)
        return PageSequence(embeddings, positions, embeddings.new_zeros(0, 0, 0), slice(0, 0), len(ids))

    def page_sequence(
        self, before: Sequence[int], visual: Visual, after: Sequence[int], kept: Tensor | None = None
    ) -> PageSequence:
        """Embeddings and M-RoPE positions of ``before`` + page + ``after``. Kept tokens keep their positions.

        ``kept`` (K,): raster indices of the kept tokens. None: all tokens of the page.
        """
        chosen = visual if kept is None else visual.keep(kept)
        found = joined([before, after], [chosen], [kept], self.embed)
        span = slice(len(before), len(before) + len(chosen.tokens))
        return replace(found, visual=span)

    def pages_sequence(
        self, ids: Sequence[int], visuals: Sequence[Visual], cells: Sequence[Tensor | None]
    ) -> PageSequence:
        """Embeddings and M-RoPE positions of a prompt with one image token for each page of ``visuals``.

        ``visuals`` hold only kept tokens. ``cells`` (K,): raster indices of these tokens in the page's grid. None: all
        tokens were kept. Kept tokens have the positions that they have in the full page, and so has the text after it.
        """
        return joined(split_at_images(ids, self.config.image_token_id), visuals, cells, self.embed)

    def prefix(self, page: PageSequence, band: tuple[int, int]) -> KeyValues:
        """``prefixes`` of one page."""
        return self.prefixes([page], band)[0]

    @torch.inference_mode()
    def prefixes(self, pages: Sequence[PageSequence], band: tuple[int, int]) -> list[KeyValues]:
        """Keys and values (L_band, H_kv, n, d) of layers ``b .. e-1``, for pages that share one prompt.

        Pages of similar length run as one batch. Layers >= e do not run. Of layer e-1 only the key and value
        projections run.
        """
        return _qwen3_vl_pages.prefixes(self, pages, band)

    def read(self, page: PageSequence, observe: Observer | None = None) -> Tensor:
        """``read_pages`` of one sequence: the hidden state (D,) of the last token."""
        return self.read_pages([page], [observe])[0][0]

    def read_all(self, page: PageSequence, observe: Observer | None = None) -> Tensor:
        """``read_pages`` of one sequence: the hidden states (n, D) of all tokens."""
        return self.read_pages([page], [observe], last_only=False)[0]

    @torch.inference_mode()
    def read_pages(
        self, pages: Sequence[PageSequence], observers: Sequence[Observer | None], *, last_only: bool = True
    ) -> list[Tensor]:
        """All layers over sequences; their hidden states (n, D) after the final norm, of the last token or of all.

        Sequences of similar length run as one batch. With ``last_only`` the last layer runs for the last token alone.
        """
        return _qwen3_vl_pages.read_pages(self, pages, observers, last_only=last_only)

    # Language model, query side

    @torch.inference_mode()
    def suffix_alone(self, x: Tensor, start: int, end: int, own: PageSequence | None = None) -> Tensor:
        """Layers ``start .. end-1`` over the suffix (..., M, D), which sees only itself.

        RoPE depends on differences of positions only, so positions are counted from 0. ``own``: the suffix as a
        sequence, if it has an image; its DeepStack features are added after the first layers. None: M tokens of text.
        With fewer rows than ``own`` has, ``x`` holds the last tokens.
        """
        n = x.shape[-2]
        positions = own.positions[:, -n:] if own else torch.arange(n, device=self.device).expand(3, -1)
        rotary = self.rotary(positions)
        for index in range(start, end):
            query, key, value = self.project(index, x, rotary)
            x = self.finish(index, x, causal(query, key, value))
            if own and n == len(own.embeddings):
                x = own.add_deepstack(index, x)
        return x

    @torch.inference_mode()
    def suffix_band(
        self,
        x: Tensor,
        instruction: KeyValues,
        pages: Sequence[Layers] | JoinedPages,
        next_pos: Tensor,
        layers: tuple[int, int],
        *,
        last_only: bool,
        own: PageSequence | None = None,
    ) -> Tensor:
        """Layers ``b .. e-1`` of the suffix over N pages together. The suffix sees instruction, page and itself.

        The parameters: ``x`` (M, D) is the same for all pages before the band. ``instruction`` and ``pages`` hold
        layers from b on. ``next_pos`` (N,) is the position of the first suffix token after each page. ``own`` as in
        ``suffix_alone``. Each attention call takes a few pages, padded to the longest of them and masked. Returns
        (N, M, D). With ``last_only``, returns the last token (N, 1, D): the last layer then computes one query row.
        Joined pages take one call a layer.
        """
        if not isinstance(pages, Sequence):
            return joined_band(self, x, instruction, pages, next_pos, layers, last_only=last_only, own=own)
        first_layer, end = layers
        n, m = len(pages), x.shape[0]
        n_instruction, lengths = instruction.n_tokens, [page.n_tokens for page in pages]
        longest = n_instruction + max(lengths) + m
        _, n_heads, _, d_head = instruction.keys.shape
        per_call = self._pages_per_call(2 * n_heads * longest * d_head * x.itemsize)
        parts = [slice(first, first + per_call) for first in range(0, n, per_call)]
        masks = [visible(n_instruction, lengths[rows], m).to(self.device) for rows in parts]

        # Keys and values of one layer: [instruction | page, padded | suffix]. Reused by all layers, because allocating
        # costs as much as copying. Zero at first: padding is masked, but a NaN there would still spread.
        keys, values = (x.new_zeros(min(per_call, n), n_heads, longest, d_head) for _ in range(2))

        relative = own.positions if own else torch.arange(m, device=self.device).expand(3, m)
        rotary = self.rotary(next_pos.to(self.device)[:, None] + relative[:, None])  # (3, N, M)
        for index in range(first_layer, end):  # in the first layer x is still (M, D), shared by all pages
            n_queries = 1 if last_only and index == end - 1 else m
            query, key, value = self.project(index, x, rotary, n_queries=n_queries)
            key, value = key.expand(n, -1, -1, -1), value.expand(n, -1, -1, -1)
            layer = index - first_layer
            keys[:, :, :n_instruction], values[:, :, :n_instruction] = instruction.layer(layer)
            # Query heads that share a key head become extra query rows, so that no key is repeated.
            group = query.shape[-3] // n_heads
            query = query.reshape(n, n_heads, group * n_queries, d_head)
            attended = torch.empty_like(query)
            for rows, mask in zip(parts, masks, strict=True):
                k, v = (buffer[: len(mask), :, : mask.shape[-1]] for buffer in (keys, values))
                for i, page in enumerate(pages[rows]):
                    columns = slice(n_instruction, n_instruction + page.n_tokens)
                    k[i, :, columns], v[i, :, columns] = page.layer(layer)
                k[:, :, -m:], v[:, :, -m:] = key[rows], value[rows]
                seen = mask[:, m - n_queries :].repeat(1, group, 1)[:, None]
                attended[rows] = F.scaled_dot_product_attention(query[rows], k, v, attn_mask=seen)
            x = self.finish(index, x[..., m - n_queries :, :], attended.reshape(n, group * n_heads, n_queries, d_head))
            if own and n_queries == m:
                x = own.add_deepstack(index, x)
        return x

    @torch.inference_mode()
    def suffix_attention(
        self, x: Tensor, instruction: KeyValues, page: Layers, next_pos: int, layers: tuple[int, int], rows: list[int]
    ) -> Tensor:
        """Attention of suffix tokens to one page in layers ``b .. e-1``; the parameters are those of ``suffix_band``.

        Returns (L, n) float32: the mean over the heads and over the tokens ``rows`` of the softmax over everything that
        they see. n: tokens of the page's cache.
        """
        return page_attention(self, x, instruction, page, next_pos, layers, rows)

    def _pages_per_call(self, page_bytes: int) -> int:
        """Number of pages in one attention call; ``page_bytes``: bytes of the keys and values of a page in one layer.

        The buffers of one call should stay in the cores' caches between the copy and attention.
        """
        return max(1, min(_AT_ONCE, _NEAR_BYTES * torch.get_num_threads() // page_bytes))

    def final_norm(self, x: Tensor) -> Tensor:
        """The model's last RMSNorm, in float32."""
        return self.text.norm(x.float()).float()

    # Stock forward

    def dense(
        self, ids: Sequence[int], pages: Sequence[Sequence[Image.Image]], max_tokens: int | None = None
    ) -> Tensor:
        """The stock forward of transformers, for the images of each page: a prompt with one image token for each.

        Pages of similar length run as one batch. Returns the last hidden states (N, D) float32, after the final norm.
        """
        lengths = [sum(math.prod(self.grid(*image.size, max_tokens)) for image in images) for images in pages]
        found: dict[int, Tensor] = {}
        for rows in together([len(ids) + length for length in lengths], self.most_tokens):
            found |= zip(rows, self.dense_batch(ids, [pages[row] for row in rows], max_tokens), strict=True)
        return torch.stack([found[row] for row in range(len(pages))])

    def dense_batch(
        self, ids: Sequence[int], pages: Sequence[Sequence[Image.Image]], max_tokens: int | None = None
    ) -> Tensor:
        """``dense`` of several pages in one batch, (N, D)."""
        return stock_forward(self.model, self.tower, ids, pages, max_tokens)

    # One layer

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of positions (3, n) or (3, N, n): each (1 or N, 1, n, d), to broadcast over heads."""
        if positions.dim() == 2:
            positions = positions[:, None]
        cos, sin = self.text.rotary_emb(torch.empty(0, device=self.device, dtype=self.dtype), positions)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def project(
        self, index: int, x: Tensor, rotary: tuple[Tensor, Tensor], n_queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (..., H, n, d), keys and values (..., H_kv, n, d) of one layer; queries and keys after RoPE.

        ``n_queries``: number of last rows that need queries. None: all rows. One sequence (n, D) may be rotated to N
        positions; queries and keys are then (N, ...).
        """
        layer = self.text.layers[index]
        attention = layer.self_attn
        hidden = layer.input_layernorm(x)
        first = 0 if n_queries is None else x.shape[-2] - n_queries
        cos, sin = rotary
        if x.dim() == 2 and len(cos) == 1:
            cos, sin = cos[0], sin[0]

        def heads(projection: nn.Module, rows: Tensor) -> Tensor:
            return projection(rows).unflatten(-1, (-1, attention.head_dim))

        # contiguous: with strided rows, the matmul copies the weights once per batch item
        query_rows = hidden[..., first:, :].contiguous()
        query = attention.q_norm(heads(attention.q_proj, query_rows)).transpose(-2, -3)
        key = attention.k_norm(heads(attention.k_proj, hidden)).transpose(-2, -3)
        value = heads(attention.v_proj, hidden).transpose(-2, -3)
        return rotate(query, cos[..., first:, :], sin[..., first:, :]), rotate(key, cos, sin), value

    def finish(self, index: int, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection, residuals and MLP of one layer; ``attended`` is (..., H, n, d)."""
        layer = self.text.layers[index]
        x = x + layer.self_attn.o_proj(attended.transpose(-2, -3).flatten(-2))
        return x + layer.mlp(layer.post_attention_layernorm(x))
