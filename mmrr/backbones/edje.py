"""EDJE's network (arXiv 2510.06820): frozen vision tokens, the adapter that compresses them, a small joint encoder.

The network uses bare tensors under the checkpoint's own names, so that training can take gradients of any
of them. transformers provides the vision encoder, its image processor and the word-piece tokenizer. This module knows
no files except checkpoints, no pages and no cleaning of text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertTokenizer

from mmrr.backbones._edje_layout import Layout, layout, load
from mmrr.backbones._edje_vision import (
    PageVision,
    Vision,
    reads_any_size,
    vision_config,
    vision_heads,
    vision_tokens,
)
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoint_files import loading

__all__ = [
    "Adapter",
    "JointEncoder",
    "Layout",
    "PageVision",
    "Vision",
    "WordPieces",
    "adapter_heads",
    "joint_heads",
    "layout",
    "load",
    "reads_any_size",
    "vision_config",
    "vision_heads",
    "vision_tokens",
]

#: Epsilon of the layer norms of BERT, and of SigLIP (which the adapter follows).
_BERT_EPS, _VISION_EPS = 1e-12, 1e-6
#: Heads of the joint encoder if config.json does not say: MiniLM-L12-H384 and BERT-base have twelve.
_HEADS = 12


def joint_heads(config: Mapping[str, Any]) -> int:
    """Number of attention heads of the joint encoder, from config.json; twelve if it does not say."""
    for part in (config, *(config.get(name) for name in ("language_config", "text_config", "bert_config"))):
        if isinstance(part, Mapping) and "num_attention_heads" in part:
            return int(part["num_attention_heads"])
    return _HEADS


def adapter_heads(config: Mapping[str, Any], vision_heads: int) -> int:
    """Number of attention heads of the adapter: ``adapter_attention_heads`` of config.json, else ``vision_heads``."""
    heads = config.get("adapter_attention_heads", vision_heads)
    if type(heads) is not int or heads < 1:
        raise MmrrError(f"config.json: adapter_attention_heads is {heads!r:.40}; expected a whole number above 0")
    return heads


class Adapter:
    """Vision tokens to Z. Learned queries attend to the tokens; in the Local variant an MLP maps each token."""

    def __init__(
        self, weights: Mapping[str, Tensor], sizes: Layout, heads: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """``weights`` in float32; ``heads``: see ``adapter_heads``.

        Keys and values pass two linear maps in a row. Both maps are folded into one here, in float64. The queries are
        constants, so they are projected here once.
        """
        if sizes.vision_width % heads:
            raise MmrrError(f"an adapter of width {sizes.vision_width} cannot have {heads} attention heads")
        self.heads, self.local = heads, not sizes.queries
        own = {
            name.removeprefix("vision_projection."): tensor
            for name, tensor in weights.items()
            if name.startswith("vision_projection.")
        }
        if not self.local:
            in_query, in_key, in_value = own.pop("attention.in_proj_weight").double().chunk(3)
            to_query, to_key, to_value = own.pop("attention.in_proj_bias").double().chunk(3)
            query = own.pop("query")[0].double() @ in_query.T + to_query
            for part, weight, bias in (("key", in_key, to_key), ("value", in_value, to_value)):
                own[f"{part}.bias"] = weight @ own[f"{part}.bias"].double() + bias
                own[f"{part}.weight"] = weight @ own[f"{part}.weight"].double()
            own["query"] = query.unflatten(-1, (heads, -1)).transpose(0, 1)  # (H, m, D/H)
        self.weights = {name: tensor.to(device, dtype) for name, tensor in own.items()}

    def __call__(self, x: Tensor) -> Tensor:
        """(n, T, D) -> Z (n, m, d); Local variant: (n, T, d)."""
        if self.local:
            return self._linear("2", F.gelu(self._linear("0", x)))
        key, value = (
            self._linear(part, x).unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in ("key", "value")
        )
        query = self.weights["query"].expand(len(x), -1, -1, -1)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(-2, -3).flatten(-2)
        hidden = self._linear("attention.out_proj", attended)
        normed = F.layer_norm(
            hidden, hidden.shape[-1:], self.weights["layernorm.weight"], self.weights["layernorm.bias"], _VISION_EPS
        )
        hidden = hidden + self._linear("mlp.fc2", F.gelu(self._linear("mlp.fc1", normed)))
        return self._linear("projection", hidden)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])


class JointEncoder:
    """BERT over ``[CLS] text [SEP] z [SEP]``. The page vectors z take the place of word embeddings."""

    def __init__(
        self, weights: Mapping[str, Tensor], sizes: Layout, heads: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Raises MmrrError if the width is not a multiple of ``heads``."""
        if sizes.width % heads:
            raise MmrrError(f"a joint encoder of width {sizes.width} cannot have {heads} attention heads")
        self.heads, self.layers = heads, sizes.layers
        self.weights = {
            name.removeprefix("language_model.bert."): tensor.to(device, dtype)
            for name, tensor in weights.items()
            if name.startswith("language_model.bert.")
        }
        # The two matmuls of the head are small: they run in float32 for any dtype of the encoder.
        self.head = {
            name.removeprefix("classification_head."): tensor.to(device)
            for name, tensor in weights.items()
            if name.startswith("classification_head.")
        }

    def score(self, first: Sequence[int], last: int, z: Tensor) -> Tensor:
        """Logits (N,) float32 of one text against N pages. All sequences have one length, so there is no padding.

        ``first``: token ids of ``[CLS] text [SEP]``; ``last``: of the final ``[SEP]``; ``z`` (N, V, d).
        """
        return self.logits(self.states(first, last, z, 1)[:, 0])

    def states(self, first: Sequence[int], last: int, z: Tensor, rows: int) -> Tensor:
        """States of the first ``rows`` tokens after all layers, (N, rows, d). The last layer computes these only."""
        x = self.embed(first, last, z)
        for index in range(self.layers):
            x = self.layer(index, x[:, :rows] if index == self.layers - 1 else x, x)
        return x

    def logits(self, state: Tensor) -> Tensor:
        """Output of the classification head for states of ``[CLS]`` (N, d): (N,) float32."""
        pooled = torch.tanh(F.linear(state.float(), self.head["0.dense.weight"], self.head["0.dense.bias"]))
        return F.linear(pooled, self.head["1.weight"], self.head["1.bias"])[:, 0]

    def embed(self, first: Sequence[int], last: int, z: Tensor) -> Tensor:
        """Input of the first layer, (N, len(first) + V + 1, d). The rows of the text are computed once."""
        n, n_first, n_page = len(z), len(first), z.shape[1]
        words, positions, types = (
            self.weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")
        )
        rows = words[[*first, last]]  # one look-up: the gradient of each look-up is as large as the table
        text = self._norm("embeddings", rows[:-1] + positions[:n_first] + types[0])
        stop = n_first + n_page
        page = self._norm("embeddings", z.to(words) + positions[n_first:stop] + types[1])
        end = self._norm("embeddings", rows[-1] + positions[stop] + types[1])
        return torch.cat([text.expand(n, -1, -1), page, end.expand(n, 1, -1)], dim=1)

    def layer(self, index: int, rows: Tensor, x: Tensor) -> Tensor:
        """One layer for ``rows`` of ``x``; these rows attend to all of ``x``."""
        own = f"encoder.layer.{index}."
        query, key, value = (self.heads_of(index, *of) for of in (("query", rows), ("key", x), ("value", x)))
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = self._linear(own + "attention.output.dense", attended.transpose(1, 2).flatten(-2))
        rows = self._norm(own + "attention.output", rows + attended)
        inner = F.gelu(self._linear(own + "intermediate.dense", rows))
        return self._norm(own + "output", rows + self._linear(own + "output.dense", inner))

    def heads_of(self, index: int, part: str, x: Tensor) -> Tensor:
        """``query``, ``key`` or ``value`` of one layer for states (N, n, d): (N, H, n, d / H)."""
        projected = self._linear(f"encoder.layer.{index}.attention.self.{part}", x)
        return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], weight, bias, _BERT_EPS)


class WordPieces:
    """The uncased word-piece tokenizer of a checkpoint."""

    def __init__(self, path: Path, words: int) -> None:
        """``words``: rows of the word embedding table. Raises MmrrError if ``path`` has no tokenizer that fits it."""
        # transformers would make an empty tokenizer if there were none.
        if not any((path / name).exists() for name in ("tokenizer.json", "vocab.txt")):
            raise MmrrError(
                f"{path} has neither tokenizer.json nor vocab.txt; name a checkpoint that has one, such as "
                "-o language=microsoft/MiniLM-L12-H384-uncased"
            )
        with loading(f"{path}: the tokenizer does not load"):
            tokenizer = BertTokenizer.from_pretrained(path, local_files_only=True)
            backend = tokenizer.backend_tokenizer
            # Without added tokens, no text can produce a control token.
            without_added = json.dumps({**json.loads(backend.to_str()), "added_tokens": [], "post_processor": None})
            self._plain = type(backend).from_str(without_added)
            self.cls, self.sep = (int(tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]"))
        self.mask: int | None = self._plain.token_to_id("[MASK]")  # used by training only
        if self._plain.get_vocab_size() > words or {self.cls, self.sep} & {tokenizer.unk_token_id, None}:
            raise MmrrError(
                f"{path}: a tokenizer of {self._plain.get_vocab_size()} pieces does not fit a table of {words} words; "
                "expected at most as many pieces, with [CLS] and [SEP] among them"
            )

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of ``text``, without control tokens."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)
