"""T5Gemma 2, split where KaLM-Reranker splits it: an encoder over a page, a decoder over a prompt that sees the page.

The only module that touches transformers' internals of this model. It knows token ids, layers and masks. It does not
know prompts, scores, files or workspaces. Each decoder layer has one attention over its own tokens and the page's
chunks together (merged attention). Its own keys are rotated by position and masked causally. The page's keys are
neither rotated nor masked, and the sliding window does not apply to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoImageProcessor,
    PreTrainedTokenizerFast,
    T5Gemma2Config,
    T5Gemma2ForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from mmrr.errors import MmrrError
from mmrr.modeling.checkpoint_files import expect_size, expect_tensors, loading, tensor_shapes

#: Tensor name prefixes of the encoder's vision parts.
_VISION = ("model.encoder.vision_tower.", "model.encoder.multi_modal_projector.")
#: Tensors that equal those of the encoder and are then stored once.
_TIED = (
    "lm_head.out_proj.weight",
    "model.decoder.embed_tokens.weight",
    "model.decoder.embed_tokens.eoi_embedding",
)


class TextEncoder:
    """Text to token ids and back, by a copy of the tokenizer in which no text can produce a control token.

    The copy keeps only those added tokens that are white space and not marked special: Gemma's runs of newlines and
    tabs, which occur in ordinary text.
    """

    def __init__(self, tokenizer: Any) -> None:
        """``tokenizer``: a ``tokenizers.Tokenizer``."""
        specification = json.loads(tokenizer.to_str())
        added = specification["added_tokens"]
        self._control = {token["content"]: int(token["id"]) for token in added}
        blank = [token for token in added if not token["special"] and not token["content"].strip()]
        # The tokenizer.json of a fine-tuned checkpoint may contain the truncation and padding of its training.
        changes = {"added_tokens": blank, "post_processor": None, "truncation": None, "padding": None}
        self._plain = type(tokenizer).from_str(json.dumps(specification | changes))
        if any(self._plain.token_to_id(token["content"]) != token["id"] for token in blank):
            raise MmrrError("tokenizer.json has white space tokens outside its vocabulary; expected a Gemma tokenizer")
        #: One more than the largest id of ordinary text.
        self.size: int = 1 + max(self._plain.get_vocab().values(), default=0)

    def encode(self, text: str) -> list[int]:
        """Token ids of ordinary text, with nothing added before or after it."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, unchanged: special tokens and spaces stay."""
        return str(self._plain.decode(list(ids), skip_special_tokens=False))

    def control(self, name: str) -> int:
        """The id of a control token such as ``<bos>``. Raises MmrrError if the tokenizer does not have it."""
        if name not in self._control:
            raise MmrrError(f"the tokenizer has no control token {name}; expected a Gemma tokenizer")
        return self._control[name]

    def word(self, word: str) -> int:
        """The id of a word that is one token. Raises MmrrError if it is more than one token."""
        ids = self.encode(word)
        if len(ids) != 1:
            raise MmrrError(f"the tokenizer does not fit a yes/no reranker: '{word}' is {len(ids)} tokens, expected 1")
        return ids[0]


@dataclass(frozen=True, slots=True)
class PrefilledPage:
    """A page after the prefill of a prompt's first tokens: keys and values of all layers."""

    own_keys: Tensor  # (L, H_kv, P, d), after RoPE
    own_values: Tensor  # (L, H_kv, P, d)
    page_keys: Tensor  # (L, H_kv, C, d), never rotated
    page_values: Tensor  # (L, H_kv, C, d)

    @property
    def nbytes(self) -> int:
        return 2 * (self.own_keys.nbytes + self.page_keys.nbytes)


class Backbone:
    """A T5Gemma 2 checkpoint, loaded for inference."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype, *, needs_vision: bool = False) -> None:
        """``needs_vision``: load the vision tower too. Raises MmrrError for missing or unknown weights."""
        self.device, self.dtype = device, dtype
        model = _load(path, dtype, needs_vision=needs_vision)
        if not needs_vision:  # the vision tower has 0.41 B parameters
            model.model.encoder.vision_tower = model.model.encoder.multi_modal_projector = None
        self.model = model.to(device).eval().requires_grad_(False)
        self.config = self.model.config
        self.decoder = self.model.model.decoder
        settings = self.decoder.config
        if settings.final_logit_softcapping is not None:
            raise MmrrError(f"{path} caps its logits (final_logit_softcapping); expected a T5Gemma 2 without a cap")
        self.layer_types: list[str] = list(settings.layer_types)
        self.window: int = settings.sliding_window
        #: False if the checkpoint stores an LM head of other values than the embeddings. Then that head is used,
        #: whatever config.json says.
        embeddings = self.model.get_input_embeddings().weight
        self.head_is_tied: bool = self.model.lm_head.out_proj.weight.data_ptr() == embeddings.data_ptr()
        #: Bytes of keys and values per token or chunk, over all layers.
        self.token_bytes: int = (
            2 * len(self.layer_types) * settings.num_key_value_heads * settings.head_dim * dtype.itemsize
        )
        with loading(f"{path}: tokenizer or image processor does not load"):
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
            self.image_processor = (
                AutoImageProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False, backend="pil")
                if needs_vision
                else None
            )
            self.text = TextEncoder(tokenizer.backend_tokenizer)
        if self.text.size > len(embeddings):
            raise MmrrError(
                f"{path}: tokenizer.json has {self.text.size} tokens, and the model has {len(embeddings)}; "
                "expected files of one checkpoint"
            )

    def embed(self, ids: Sequence[int]) -> Tensor:
        """The decoder's scaled token embeddings (n, D)."""
        return self.decoder.embed_tokens(self._row(ids))[0]

    def head_rows(self, *ids: int) -> Tensor:
        """Rows of the LM head, (len(ids), D) float32. The caller takes dot products with them in float32."""
        return self.model.lm_head.out_proj.weight[list(ids)].float()

    def final_norm(self, x: Tensor) -> Tensor:
        """The decoder's last RMSNorm, in float32."""
        return self.decoder.norm(x.float()).float()

    def reach(self, direction: Tensor) -> float:
        """Upper bound of the dot product of ``direction`` (D,) with any output of the final norm."""
        # The norm gives x (1 + w) with |x| <= sqrt(D).
        scaled = direction * (1 + self.decoder.norm.weight.float())
        return float(scaled.norm()) * len(direction) ** 0.5

    # Encoder: once per page

    @torch.inference_mode()
    def encode(self, ids: Sequence[int]) -> Tensor:
        """Encoder output (n, D) of one sequence, after the final norm.

        One sequence per call: there is no padding, and a page of a thousand tokens is enough work for a device.
        """
        return self.model.model.encoder.text_model(input_ids=self._row(ids)).last_hidden_state[0]

    @torch.inference_mode()
    def encode_image(self, before: Sequence[int], image: Image.Image, after: Sequence[int]) -> Tensor:
        """Encoder output of text, one image and text: image begin, 256 image tokens and image end between the texts.

        The image is resized to the tower's square without keeping its aspect ratio, as the published processor does.
        """
        assert self.image_processor is not None
        settings = self.config.encoder
        pixels = self.image_processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"]
        visual = [settings.image_token_index] * settings.mm_tokens_per_image
        ids = self._row([*before, settings.boi_token_index, *visual, settings.eoi_token_index, *after])
        out = self.model.model.encoder(input_ids=ids, pixel_values=pixels.to(self.device, self.dtype))
        return out.last_hidden_state[0]

    # Decoder: once per page and prompt, once per query

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], chunks: Sequence[Tensor]) -> list[PrefilledPage]:
        """Prefill: run a prompt's first tokens over N pages in one batch. ``chunks``: (C, D) of each page, C > 0.

        The keys of a page are the layer's key projection and key norm of its chunks, without RoPE.
        """
        lengths = torch.tensor([len(page) for page in chunks], device=self.device)
        pages = pad_sequence([page.to(self.device, self.dtype) for page in chunks], batch_first=True)
        x = self.embed(ids).expand(len(chunks), -1, -1)
        own: list[tuple[Tensor, Tensor]] = []
        cross: list[tuple[Tensor, Tensor]] = []
        rotary, visible = self._positions(0, len(ids)), self._visible(0, len(ids), lengths)
        for index, kind in enumerate(self.layer_types):
            query, key, value = self._project(index, x, rotary[kind])
            page_key, page_value = self._keys_values(index, pages)
            own.append((key, value))
            cross.append((page_key, page_value))
            if index < len(self.layer_types) - 1:  # of the last layer only keys and values are needed
                attended = self._attend(index, query, [key, page_key], [value, page_value], visible[kind])
                x = self._finish(index, x, attended)
        own_keys, own_values = (torch.stack(layers, 1) for layers in zip(*own, strict=True))
        page_keys, page_values = (torch.stack(layers, 1) for layers in zip(*cross, strict=True))
        # Cloned: a view would keep the memory of the whole batch as long as one page of it is in use.
        return [
            PrefilledPage(
                *(
                    part.clone()
                    for part in (own_keys[i], own_values[i], page_keys[i, ..., :n, :], page_values[i, ..., :n, :])
                )
            )
            for i, n in enumerate(lengths.tolist())
        ]

    @torch.inference_mode()
    def decode_suffix(self, ids: Sequence[int], pages: Sequence[PrefilledPage]) -> Tensor:
        """Run the rest of the prompt over N prefilled pages; the last token's states (N, D) before the norm."""
        n_layers, start = len(self.layer_types), pages[0].own_keys.shape[2]
        lengths = torch.tensor([page.page_keys.shape[2] for page in pages], device=self.device)
        x = self.embed(ids).expand(len(pages), -1, -1)
        rotary, visible = self._positions(start, len(ids)), self._visible(start, len(ids), lengths)
        for index, kind in enumerate(self.layer_types):
            rows = 1 if index == n_layers - 1 else len(ids)
            query, key, value = self._project(index, x, rotary[kind], rows)
            keys = [torch.stack([page.own_keys[index] for page in pages]), key, _padded(pages, "page_keys", index)]
            values = [
                torch.stack([page.own_values[index] for page in pages]),
                value,
                _padded(pages, "page_values", index),
            ]
            x = self._finish(index, x[:, -rows:], self._attend(index, query, keys, values, visible[kind][:, -rows:]))
        return x[:, -1]

    @torch.inference_mode()
    def stock_decoder(self, ids: Sequence[int], chunks: Tensor) -> Tensor:
        """The stock decoder of transformers over one prompt and one page (C, D); last hidden state (D,) float32.

        Behind the final norm.
        """
        out = self.decoder(
            input_ids=self._row(ids),
            encoder_hidden_states=chunks.to(self.device, self.dtype)[None],
            encoder_attention_mask=torch.ones(1, len(chunks), dtype=torch.long, device=self.device),
            use_cache=False,
        )
        return out.last_hidden_state[0, -1].float()

    # One decoder layer

    def _project(
        self, index: int, x: Tensor, rotary: tuple[Tensor, Tensor], n_queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (N, H, n, d) of the last ``n_queries`` rows; rotated keys, and values (N, H_kv, n, d)."""
        layer = self.decoder.layers[index]
        attention = layer.self_attn
        hidden = layer.pre_self_attn_layernorm(x)
        rows = slice(0 if n_queries is None else x.shape[1] - n_queries, None)
        cos, sin = rotary
        query = attention.q_norm(_heads(attention.q_proj(hidden[:, rows]), attention.head_dim))
        key, value = self._keys_values(index, hidden)
        return _rotate(query, cos[rows], sin[rows]), _rotate(key, cos, sin), value

    def _keys_values(self, index: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Keys before RoPE and values, (N, H_kv, n, d). The same for the decoder's tokens and the page's chunks."""
        attention = self.decoder.layers[index].self_attn
        key = attention.k_norm(_heads(attention.k_proj(hidden), attention.head_dim))
        return key, _heads(attention.v_proj(hidden), attention.head_dim)

    def _attend(self, index: int, query: Tensor, keys: list[Tensor], values: list[Tensor], visible: Tensor) -> Tensor:
        """One softmax over all keys. ``visible``: mask (N, n, keys)."""
        n_pages, n_heads, rows, d_head = query.shape
        key, value = torch.cat(keys, 2), torch.cat(values, 2)
        # Query heads that share a key head become extra query rows, so that no key is repeated.
        group = n_heads // key.shape[1]
        attended = F.scaled_dot_product_attention(
            query.reshape(n_pages, key.shape[1], group * rows, d_head),
            key,
            value,
            attn_mask=visible.repeat(1, group, 1)[:, None],
            scale=self.decoder.layers[index].self_attn.scaling,
        )
        return attended.reshape(n_pages, n_heads, rows, d_head)

    def _finish(self, index: int, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection, MLP, and the norms before and after them. ``attended``: (N, H, n, d)."""
        layer = self.decoder.layers[index]
        projected = layer.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
        x = x + layer.post_self_attn_layernorm(projected)
        return x + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x)))

    def _positions(self, start: int, n: int) -> dict[str, tuple[Tensor, Tensor]]:
        """cos and sin (n, d) of the positions from ``start``, for each type of layer."""
        positions = torch.arange(start, start + n, device=self.device)[None]
        like = torch.empty(0, device=self.device, dtype=self.dtype)
        found = {}
        for kind in set(self.layer_types):
            cos, sin = self.decoder.rotary_emb(like, positions, kind)
            found[kind] = cos[0], sin[0]
        return found

    def _visible(self, start: int, n: int, lengths: Tensor) -> dict[str, Tensor]:
        """Masks (N, n, start + n + C) of n tokens from position ``start``: first own tokens, then page chunks."""
        own = torch.arange(start + n, device=self.device)
        back = own[start:, None] - own
        chunks = torch.arange(int(lengths.max()), device=self.device) < lengths[:, None]
        found = {}
        for kind in set(self.layer_types):
            seen = (back >= 0) & (back < self.window) if kind == "sliding_attention" else back >= 0
            found[kind] = torch.cat([seen.expand(len(lengths), -1, -1), chunks[:, None].expand(-1, n, -1)], 2)
        return found

    def _row(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], device=self.device, dtype=torch.long)


def pool(hidden: Tensor, ratio: int) -> Tensor:
    """Means (ceil(n/r), D) of each ``ratio`` consecutive rows of (n, D); the last mean may have fewer rows."""
    return _sums(hidden, ratio) / _counts(len(hidden), ratio).to(hidden)


def coarser(chunks: Tensor, n: int, ratio: int, wanted: int) -> Tensor:
    """Chunks (ceil(n/r), D) of ``n`` rows pooled at ``ratio``, pooled further to ``wanted``, a multiple of ``ratio``.

    Each chunk is weighted by its number of rows, so the result is exact except for rounding.
    """
    if wanted == ratio:
        return chunks
    sums = _sums(chunks.float() * _counts(n, ratio).to(chunks.device), wanted // ratio)
    return (sums / _counts(n, wanted).to(sums)).to(chunks.dtype)


def _sums(rows: Tensor, size: int) -> Tensor:
    """Sums (ceil(n/size), D) of each ``size`` consecutive rows of (n, D)."""
    n_sums = -(-len(rows) // size)
    return F.pad(rows, (0, 0, 0, n_sums * size - len(rows))).view(n_sums, size, -1).sum(1)


def _counts(n: int, ratio: int) -> Tensor:
    """Number of the n rows in each chunk, (ceil(n/r), 1) float32."""
    return (n - torch.arange(0, n, ratio)).clamp(max=ratio).float()[:, None]


def _padded(pages: Sequence[PrefilledPage], name: str, index: int) -> Tensor:
    """(N, H_kv, C, d) of one layer; shorter pages are padded with zeros."""
    layers = [getattr(page, name)[index].transpose(0, 1) for page in pages]
    return pad_sequence(layers, batch_first=True).transpose(1, 2)


def _heads(x: Tensor, d_head: int) -> Tensor:
    """(N, n, H * d) -> (N, H, n, d)"""
    return x.unflatten(-1, (-1, d_head)).transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def _load(path: Path, dtype: torch.dtype, *, needs_vision: bool) -> Any:
    shapes = tensor_shapes(str(path), path)
    transformers_logging.disable_progress_bar()
    with loading(f"{path} does not load as T5Gemma 2"):
        config = T5Gemma2Config.from_pretrained(path, local_files_only=True)
        with torch.device("meta"):
            empty = T5Gemma2ForConditionalGeneration(config)
            expect_size(path, empty.num_parameters(), shapes)
        expected = {name: list(tensor.shape) for name, tensor in empty.state_dict().items()}
        found = {_tensor_name(name): shape for name, shape in shapes.items()}
        # A SigLIP checkpoint may have a pooling head, which this model does not use.
        found = {name: shape for name, shape in found.items() if name in expected or not name.startswith(_VISION)}
        if not needs_vision:
            expected, found = (
                {name: shape for name, shape in tensors.items() if not name.startswith(_VISION)}
                for tensors in (expected, found)
            )
        expect_tensors(str(path), "a T5Gemma 2", expected, found, _TIED)
        model, report = T5Gemma2ForConditionalGeneration.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=not needs_vision,  # the vision tower is not used, and its sizes were not compared
        )
    if lost := [name for name in sorted(report["missing_keys"]) if needs_vision or not name.startswith(_VISION)]:
        raise MmrrError(f"{path} lacks {len(lost)} tensors of a T5Gemma 2, among them: {', '.join(lost[:3])}")
    return model


def _tensor_name(name: str) -> str:
    """The name in transformers of a tensor of an older save, which has text encoder and vision tower elsewhere."""
    name = re.sub(r"^model\.encoder\.(layers|embed_tokens|norm)\.", r"model.encoder.text_model.\1.", name)
    return name.replace(f"{_VISION[0]}vision_model.", _VISION[0], 1)
