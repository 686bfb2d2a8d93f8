"""Qwen3-VL, split where miniReranker splits it: vision tower, page prefix, query suffix.

The only module that touches transformers' model internals. It knows token ids, layers and masks; it does not know
prompts, scores, files or workspaces. Layers are counted from 0; layer l's keys and values come from the hidden state
that enters l (specification of miniReranker, section 4).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from mmrr.documents.page_grid import snap
from mmrr.errors import MmrrError
from mmrr.modeling.chat import ChatEncoder
from mmrr.types import Grid

#: Called per layer with (layer, queries (H, n, d), keys (H_kv, n, d)), rotated.
Observer = Callable[[int, Tensor, Tensor], None]

#: Pages laid side by side for attention at most; on a CPU those whose keys and values take so many bytes a thread.
_AT_ONCE, _NEAR_BYTES = 32, 4 << 20


@dataclass(frozen=True, slots=True)
class Visual:
    """What the vision tower makes of one page."""

    tokens: Tensor  # (T, D), raster order of merged cells
    deepstack: Tensor  # (S, T, D), added to the visual positions after LM layers 0 .. S-1
    grid: Grid

    def keep(self, indices: Tensor) -> Visual:
        """The tokens at ``indices`` (K,) with their DeepStack rows; ``grid`` stays, because positions do."""
        rows = indices.to(self.tokens.device, torch.long)
        return Visual(self.tokens[rows], self.deepstack[:, rows], self.grid)


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
    """What ``KeyValues`` says of itself; a page's cache may be decoded only when a layer is asked for."""

    @property
    def n_tokens(self) -> int: ...

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values (H_kv, n, d) of one of the stored layers, counted from 0."""


class Backbone:
    """A Qwen3-VL checkpoint, loaded for inference."""

    def __init__(
        self, path: Path, adapter: Path | None, device: torch.device, dtype: torch.dtype, *, needs_head: bool
    ) -> None:
        """Raises MmrrError if weights are missing, of the wrong shape, or the adapter does not fit."""
        self.device, self.dtype = device, dtype
        self.model = _load(path, adapter, dtype, needs_head=needs_head).to(device).eval().requires_grad_(False)
        linear_patches(self.model.model.visual)
        self.config = self.model.config
        self.text = self.model.model.language_model
        self.n_layers: int = self.config.text_config.num_hidden_layers
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            self.image_processor = AutoImageProcessor.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, backend="pil"
            )
        except (OSError, ValueError, KeyError) as error:
            raise MmrrError(f"{path}: tokenizer or image processor does not load: {_first_line(error)}") from error
        if tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False) < 256:  # fewer than a byte has values
            raise MmrrError(f"{path} has no tokenizer.json")  # transformers makes an empty one up
        template = _chat_template(path) or tokenizer.chat_template
        if template is None:
            raise MmrrError(f"{path} has no chat template (chat_template.jinja or chat_template.json)")
        self.chat = ChatEncoder(tokenizer, template)
        vision = self.config.vision_config
        #: Side of the square of pixels that one LM token stands for.
        self.cell_px: int = int(vision.patch_size) * int(vision.spatial_merge_size)

    # Geometry and text

    def grid(self, width_px: int, height_px: int, max_tokens: int | None = None) -> Grid:
        """(h, w) in merged tokens of a page image of this size."""
        width, height = snap(width_px, height_px, self.cell_px, max_tokens)
        return height // self.cell_px, width // self.cell_px

    def embed(self, ids: Sequence[int]) -> Tensor:
        """Token embeddings (n, D)."""
        return self.text.embed_tokens(torch.tensor(ids, device=self.device, dtype=torch.long))

    def split_at_image(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The ids before and after the one image token of a prompt."""
        if list(ids).count(self.config.image_token_id) != 1:
            raise MmrrError("the chat template of this checkpoint does not place one image where the prompt has one")
        at = list(ids).index(self.config.image_token_id)
        return list(ids[:at]), list(ids[at + 1 :])

    def head_difference(self, positive: int, negative: int) -> Tensor:
        """Two rows of the LM head, (2, D) float32: the dot products with them are taken in fp32, then subtracted."""
        return self.model.lm_head.weight[[positive, negative]].float()

    def head_rows(self, ids: Sequence[int]) -> Tensor:
        """The rows of the LM head for some tokens, (n, D) float32."""
        return self.model.lm_head.weight[list(ids)].float()

    # Vision

    def pixels(self, image: Image.Image, max_tokens: int | None = None) -> dict[str, Tensor]:
        """Patches and grid of one page image, sides snapped to whole tokens before the processor (published recipe)."""
        size = snap(image.width, image.height, self.cell_px, max_tokens)
        image = image.convert("RGB")
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        inputs = self.image_processor(images=[image], do_resize=False, return_tensors="pt")
        return {name: inputs[name].to(self.device) for name in ("pixel_values", "image_grid_thw")}

    @torch.inference_mode()
    def vision(self, images: Sequence[Image.Image], max_tokens: int | None = None) -> list[Visual]:
        """Vision tower and merger, one page at a time: attention is within a page, so batching saves no arithmetic."""
        return [self._visual(self.pixels(image, max_tokens)) for image in images]

    @property
    def pixel_limits(self) -> tuple[int, int]:
        """Fewest and most pixels of a page as the checkpoint's own image processor resizes it."""
        size = self.image_processor.size
        return int(size["shortest_edge"]), int(size["longest_edge"])

    @torch.inference_mode()
    def vision_as_processed(self, image: Image.Image) -> Visual:
        """Vision tower and merger over a page in the size that the checkpoint's own image processor gives it.

        Raises MmrrError for an image that the processor refuses: one side over 200 times the other.
        """
        try:
            inputs = self.image_processor(images=[image.convert("RGB")], return_tensors="pt")
        except ValueError as error:
            raise MmrrError(f"a page image of {image.width} x {image.height} pixels: {_first_line(error)}") from error
        return self._visual({name: inputs[name].to(self.device) for name in ("pixel_values", "image_grid_thw")})

    def _visual(self, inputs: dict[str, Tensor]) -> Visual:
        out = self.model.model.get_image_features(**inputs, return_dict=True)
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        merge = self.config.vision_config.spatial_merge_size
        features = [level[0] for level in out.deepstack_features]
        tokens = out.pooler_output[0].to(self.dtype)
        deepstack = torch.stack(features).to(self.dtype) if features else tokens.new_zeros(0, *tokens.shape)
        return Visual(tokens, deepstack, (rows // merge, columns // merge))

    # Language model, page side

    def text_sequence(self, ids: Sequence[int]) -> PageSequence:
        """A sequence without a page."""
        positions = torch.arange(len(ids), device=self.device).expand(3, -1)
        embeddings = self.embed(ids)
        return PageSequence(embeddings, positions, embeddings.new_zeros(0, 0, 0), slice(0, 0), len(ids))

    def page_sequence(
        self, before: Sequence[int], visual: Visual, after: Sequence[int], kept: Tensor | None = None
    ) -> PageSequence:
        """Embeddings and M-RoPE positions of ``before`` + page + ``after``. Kept tokens keep their positions."""
        height, width = visual.grid
        start = len(before)
        cells = torch.arange(height * width) if kept is None else kept.cpu().long()
        image = torch.stack([torch.zeros_like(cells), cells // width, cells % width]) + start
        tail = start + max(height, width)
        positions = torch.cat(
            [
                torch.arange(start).expand(3, -1),
                image,
                (tail + torch.arange(len(after))).expand(3, -1),
            ],
            dim=1,
        )
        chosen = visual if kept is None else visual.keep(kept)
        embeddings = torch.cat([self.embed(before), chosen.tokens, self.embed(after)])
        span = slice(start, start + len(cells))
        return PageSequence(embeddings, positions.to(self.device), chosen.deepstack, span, tail + len(after))

    def pages_sequence(
        self, ids: Sequence[int], visuals: Sequence[Visual], cells: Sequence[Tensor | None]
    ) -> PageSequence:
        """Embeddings and M-RoPE positions of a prompt with one image token for each page of ``visuals``.

        ``cells`` (K,) are the places in the page's grid, in raster order, of tokens that were kept; None: all of them.
        Kept tokens have the positions they would have among all, and so has the text behind them.
        """
        runs: list[list[int]] = [[]]
        for i in ids:
            if i == self.config.image_token_id:
                runs.append([])
            else:
                runs[-1].append(i)
        if len(runs) != len(visuals) + 1:
            raise MmrrError(f"a prompt with {len(runs) - 1} places for images, but {len(visuals)} pages")
        embeddings, positions, standing = [], [], []
        n_tokens = next_pos = 0
        for index, run in enumerate(runs):
            embeddings.append(self.embed(run))
            positions.append((next_pos + torch.arange(len(run))).expand(3, -1))
            n_tokens, next_pos = n_tokens + len(run), next_pos + len(run)
            if index < len(visuals):
                visual, kept = visuals[index], cells[index]
                height, width = visual.grid
                places = torch.arange(height * width) if kept is None else kept.cpu().long()
                embeddings.append(visual.tokens)
                positions.append(torch.stack([torch.zeros_like(places), places // width, places % width]) + next_pos)
                standing.append(n_tokens + torch.arange(len(places)))
                n_tokens, next_pos = n_tokens + len(places), next_pos + max(height, width)
        return PageSequence(
            torch.cat(embeddings),
            torch.cat(positions, dim=1).to(self.device),
            torch.cat([visual.deepstack for visual in visuals], dim=1),
            torch.cat(standing).to(self.device),
            next_pos,
        )

    def prefix(self, page: PageSequence, band: tuple[int, int]) -> KeyValues:
        """``prefixes`` of one sequence."""
        return self.prefixes([page], band)[0]

    @torch.inference_mode()
    def prefixes(self, pages: Sequence[PageSequence], band: tuple[int, int]) -> list[KeyValues]:
        """Keys and values (L_band, H_kv, n, d) of layers ``b .. e-1``, for pages in one prompt.

        Pages of one length run together. Layers >= e never run; of layer e-1 only the key and value projections do.
        """
        start, end = band
        found: dict[int, KeyValues] = {}
        for length in {len(page.embeddings) for page in pages}:
            rows = [row for row, page in enumerate(pages) if len(page.embeddings) == length]
            some = [pages[row] for row in rows]
            x = torch.stack([page.embeddings for page in some])
            rotary = self.rotary(torch.stack([page.positions for page in some], dim=1))
            keys, values = [], []
            for index in range(end):
                query, key, value = self.project(index, x, rotary, n_queries=0 if index == end - 1 else None)
                if index >= start:
                    keys.append(key)
                    values.append(value)
                if index < end - 1:
                    x = self.finish(index, x, _causal(query, key, value))
                    for page, own in zip(some, x, strict=True):
                        page.add_deepstack(index, own)
            of_rows = zip(torch.stack(keys, dim=1), torch.stack(values, dim=1), strict=True)
            found |= {row: KeyValues(*pair) for row, pair in zip(rows, of_rows, strict=True)}
        return [found[row] for row in range(len(pages))]

    def read(self, page: PageSequence, observe: Observer | None = None) -> Tensor:
        """The whole depth over one sequence; the last token's hidden state (D,) after the final norm.

        The last layer runs for that token alone.
        """
        return self._read(page, observe, 1)[0]

    def read_all(self, page: PageSequence, observe: Observer | None = None) -> Tensor:
        """The same for every token, (n, D)."""
        return self._read(page, observe, len(page.embeddings))

    @torch.inference_mode()
    def _read(self, page: PageSequence, observe: Observer | None, n_last: int) -> Tensor:
        x, rotary = page.embeddings, self.rotary(page.positions)
        last = self.n_layers - 1
        for index in range(last):
            query, key, value = self.project(index, x, rotary)
            if observe:
                observe(index, query, key)
            x = self.finish(index, x, _causal(query, key, value))
            x = page.add_deepstack(index, x)
        query, key, value = self.project(last, x, rotary, n_queries=n_last)
        if observe:
            observe(last, query, key)
        attended = F.scaled_dot_product_attention(
            query[None], key[None], value[None], is_causal=n_last == len(x), enable_gqa=True
        )[0]
        x = self.finish(last, x[-n_last:], attended)
        return self.text.norm(page.add_deepstack(last, x) if n_last == len(page.embeddings) else x)

    # Language model, query side

    @torch.inference_mode()
    def suffix_alone(self, x: Tensor, start: int, end: int) -> Tensor:
        """Layers ``start .. end-1`` over (..., M, D) where the second segment sees only itself.

        RoPE turns on differences of positions only, so they are counted from 0 wherever the segment will stand.
        """
        rotary = self.rotary(torch.arange(x.shape[-2], device=self.device).expand(3, -1))
        for index in range(start, end):
            query, key, value = self.project(index, x, rotary)
            x = self.finish(index, x, _causal(query, key, value))
        return x

    @torch.inference_mode()
    def suffix_band(
        self,
        x: Tensor,
        instruction: KeyValues,
        pages: Sequence[Layers],
        next_pos: Tensor,
        layers: tuple[int, int],
        *,
        last_only: bool,
    ) -> Tensor:
        """Layers ``b .. e-1`` of the second segment over N pages at once, seeing instruction, page and itself.

        ``x`` (M, D), the same for every page before the band; ``instruction`` and ``pages`` hold layers from b on;
        ``next_pos`` (N,) is the position of the segment's first token after each page. A few pages at a time are laid
        side by side for attention, padded to the longest of them behind a mask. Returns (N, M, D), or (N, 1, D), the
        last token's, with ``last_only``: the last layer then asks for one row only.
        """
        first_layer, end = layers
        n, m = len(pages), x.shape[0]
        n_instruction, lengths = instruction.n_tokens, [page.n_tokens for page in pages]
        longest = n_instruction + max(lengths) + m
        _, n_heads, _, d_head = instruction.keys.shape
        at_once = self._at_once(2 * n_heads * longest * d_head * x.itemsize)
        parts = [slice(first, first + at_once) for first in range(0, n, at_once)]
        visible = [_visible(n_instruction, lengths[rows], m).to(self.device) for rows in parts]

        # One layer's [instruction | page, padded | own], filled again for each: new memory costs as much as the copy.
        # Zeros, since where a page is padded no number may be missing, though it is masked.
        keys, values = (x.new_zeros(min(at_once, n), n_heads, longest, d_head) for _ in range(2))

        positions = next_pos.to(self.device)[:, None] + torch.arange(m, device=self.device)  # (N, M)
        rotary = self.rotary(positions.expand(3, n, m))
        for index in range(first_layer, end):  # the first one projects what all pages share: x has no N yet
            asking = 1 if last_only and index == end - 1 else m
            query, key, value = self.project(index, x, rotary, n_queries=asking)
            key, value = key.expand(n, -1, -1, -1), value.expand(n, -1, -1, -1)
            layer = index - first_layer
            keys[:, :, :n_instruction], values[:, :, :n_instruction] = instruction.layer(layer)
            # Query heads that share a key head are laid end to end as more query rows: no key is repeated.
            group = query.shape[-3] // n_heads
            query = query.reshape(n, n_heads, group * asking, d_head)
            attended = torch.empty_like(query)
            for rows, mask in zip(parts, visible, strict=True):
                k, v = (buffer[: len(mask), :, : mask.shape[-1]] for buffer in (keys, values))
                for i, page in enumerate(pages[rows]):
                    own = slice(n_instruction, n_instruction + page.n_tokens)
                    k[i, :, own], v[i, :, own] = page.layer(layer)
                k[:, :, -m:], v[:, :, -m:] = key[rows], value[rows]
                seen = mask[:, m - asking :].repeat(1, group, 1)[:, None]
                attended[rows] = F.scaled_dot_product_attention(query[rows], k, v, attn_mask=seen)
            x = self.finish(index, x[..., m - asking :, :], attended.reshape(n, group * n_heads, asking, d_head))
        return x

    def _at_once(self, page_bytes: int) -> int:
        """How many pages are laid side by side, whose keys and values of a layer take so many bytes each.

        On a CPU as many as stay in the memory of its own cores between the copy and attention.
        """
        if self.device.type != "cpu":
            return _AT_ONCE
        return max(1, min(_AT_ONCE, _NEAR_BYTES * torch.get_num_threads() // page_bytes))

    def final_norm(self, x: Tensor) -> Tensor:
        """The model's last RMSNorm, in float32."""
        return self.text.norm(x.float()).float()

    # The plain path

    def dense(self, ids: Sequence[int], image: Image.Image, max_tokens: int | None = None) -> Tensor:
        """transformers' own forward over one prompt with one image; last hidden state (D,) float32, after the norm."""
        return self.dense_batch(ids, [image], max_tokens)[0]

    @torch.inference_mode()
    def dense_batch(self, ids: Sequence[int], images: Sequence[Image.Image], max_tokens: int | None = None) -> Tensor:
        """The same over several pages at once, (N, D). They must be cut into as many tokens each: nothing is padded."""
        inputs = [self.pixels(image, max_tokens) for image in images]
        grids = torch.cat([one["image_grid_thw"] for one in inputs])
        merge = self.config.vision_config.spatial_merge_size
        (n_visual,) = set((grids.prod(1) // merge**2).tolist())
        before, after = self.split_at_image(ids)
        image_id = self.config.image_token_id
        full = torch.tensor([[*before, *[image_id] * n_visual, *after]] * len(images), device=self.device)
        pixels = torch.cat([one["pixel_values"] for one in inputs]).to(self.dtype)
        out = self.model.model(
            input_ids=full,
            mm_token_type_ids=(full == image_id).int(),
            use_cache=False,
            pixel_values=pixels,
            image_grid_thw=grids,
        )
        return out.last_hidden_state[:, -1].float()

    # One layer

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin for positions (3, n) or (3, N, n): each (1 or N, 1, n, d), to broadcast over heads."""
        if positions.dim() == 2:
            positions = positions[:, None]
        cos, sin = self.text.rotary_emb(torch.empty(0, device=self.device, dtype=self.dtype), positions)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def project(
        self, index: int, x: Tensor, rotary: tuple[Tensor, Tensor], n_queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (..., H, n, d), rotated keys and values (..., H_kv, n, d) of one layer.

        ``n_queries``: how many of the last rows need queries; all of them by default. One sequence (n, D) may be
        rotated to N places at once: queries and keys are then (N, ..).
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

        asking = hidden[..., first:, :].contiguous()  # of strided rows, a product would copy the weights per batch item
        query = attention.q_norm(heads(attention.q_proj, asking)).transpose(-2, -3)
        key = attention.k_norm(heads(attention.k_proj, hidden)).transpose(-2, -3)
        value = heads(attention.v_proj, hidden).transpose(-2, -3)
        return _rotate(query, cos[..., first:, :], sin[..., first:, :]), _rotate(key, cos, sin), value

    def finish(self, index: int, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection, residuals and MLP of one layer; ``attended`` is (..., H, n, d)."""
        layer = self.text.layers[index]
        x = x + layer.self_attn.o_proj(attended.transpose(-2, -3).flatten(-2))
        return x + layer.mlp(layer.post_attention_layernorm(x))


@dataclass(frozen=True, slots=True)
class PageSequence:
    """Text and pages: what the language model reads."""

    embeddings: Tensor  # (n, D)
    positions: Tensor  # (3, n)
    deepstack: Tensor  # (S, K, D)
    visual: slice | Tensor  # where the page's tokens stand; of several pages, their indices (K,)
    next_pos: int  # M-RoPE position of a token that would follow

    def add_deepstack(self, layer: int, x: Tensor) -> Tensor:
        """Add the visual features of an early vision layer to the page's tokens, after LM layers 0 .. S-1."""
        if layer < len(self.deepstack):
            x[self.visual] += self.deepstack[layer]
        return x


def linear_patches(tower: Any) -> None:
    """Let the patch embedding run as the matrix product it is: its 3-d convolution is several times slower on a CPU."""
    convolution = tower.patch_embed.proj

    def embed_patches(pixels: Tensor) -> Tensor:
        weight = convolution.weight.flatten(1)
        return F.linear(pixels.to(weight.dtype), weight, convolution.bias)

    tower.patch_embed.forward = embed_patches


def _visible(n_instruction: int, lengths: Sequence[int], m: int) -> Tensor:
    """(N, M, keys) which of [instruction | page, padded | own] each of the M own rows sees of N pages."""
    own = n_instruction + max(lengths)
    visible = torch.ones(len(lengths), m, own + m, dtype=torch.bool)
    visible[:, :, n_instruction:own] = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None]
    visible[:, :, own:] = torch.ones(m, m, dtype=torch.bool).tril()
    return visible


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention with shared key heads; (..., H, n, d)."""
    if query.dim() == 3:
        return _causal(query[None], key[None], value[None])[0]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def _chat_template(path: Path) -> str | None:
    """The processor's template, which knows images; None leaves the tokenizer's own."""
    jinja = path / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    old = path / "chat_template.json"
    if old.exists():
        return str(json.loads(old.read_text(encoding="utf-8"))["chat_template"])
    return None


def _load(path: Path, adapter: Path | None, dtype: torch.dtype, *, needs_head: bool) -> Any:
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what is missing is said below, and a projection is read elsewhere
    try:
        model, report = Qwen3VLForConditionalGeneration.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            key_mapping={r"^vlm\.": ""},  # ColQwen3 as TomoroAI writes it
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise MmrrError(f"{path} does not load as Qwen3-VL: {_first_line(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    # An embedder's checkpoint has no head, and needs none; anything else that is missing would be random numbers.
    missing = {key for key in report["missing_keys"] if needs_head or not key.startswith("lm_head")}
    if missing or report["mismatched_keys"]:
        names = sorted(missing) or sorted(str(key) for key in report["mismatched_keys"])
        raise MmrrError(f"{path} lacks {len(names)} tensors of a Qwen3-VL, among them: {', '.join(names[:3])}")
    if adapter is None:
        return model
    return _merge(model, adapter)


def _merge(model: Any, adapter: Path) -> Any:
    from peft import PeftConfig, PeftModel, PeftType, get_peft_model_state_dict

    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # peft only warns where names do not fit: they are compared below
            if PeftConfig.from_pretrained(str(adapter)).peft_type != PeftType.LORA:
                raise MmrrError(f"adapter {adapter} is no LoRA; only LoRA adapters can be merged")
            adapted = PeftModel.from_pretrained(model, str(adapter))
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            saved = set(file.keys())
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise MmrrError(f"adapter {adapter} does not fit: {_first_line(error)}") from error
    unfit = sorted(saved ^ set(get_peft_model_state_dict(adapted)))
    if unfit:
        raise MmrrError(f"adapter {adapter} does not fit: {len(unfit)} tensors are on one side only: {unfit[0]}")
    return adapted.merge_and_unload()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # torch's load_state_dict: the first line is a heading.
    return lines[1] if lines[0].startswith("Error(s) in loading") and len(lines) > 1 else lines[0]
