"""all-MiniLM-L6-v2 in torch alone, for queries: importing sentence-transformers takes longer than all the rest.

The tokens, the arithmetic and the batches are those of sentence-transformers, so that the vectors are equal to the last
bit; a test compares them. The checkpoint is known by the hash of its weights (``text_checkpoints``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor


class MiniLM:
    """Encodes short texts."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        settings = json.loads((folder / "config.json").read_text("utf-8"))
        self._heads = int(settings["num_attention_heads"])
        self._layers = int(settings["num_hidden_layers"])
        self._eps = float(settings["layer_norm_eps"])
        self._device = device
        weights = load_file(folder / "model.safetensors")
        self._weights = {
            name: tensor.to(device, dtype) for name, tensor in weights.items() if tensor.is_floating_point()
        }
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        most = json.loads((folder / "sentence_bert_config.json").read_text("utf-8"))["max_seq_length"]
        self._tokenizer.enable_truncation(int(most))
        self._tokenizer.enable_padding(pad_id=int(settings["pad_token_id"]))

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch_size: int) -> Tensor:
        """The vectors (N, D) of texts, of length 1."""
        order = np.argsort([-len(text) for text in texts])
        found = []
        for first in range(0, len(texts), batch_size):
            encoded = self._tokenizer.encode_batch([texts[i].strip() for i in order[first : first + batch_size]])
            ids = torch.tensor([one.ids for one in encoded], device=self._device)
            mask = torch.tensor([one.attention_mask for one in encoded], device=self._device)
            found.append(self._pooled(self._states(ids, mask), mask))
        vectors = torch.cat(found)
        return vectors[torch.from_numpy(np.argsort(order)).to(self._device)]

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The last states (N, n, D) of tokens (N, n)."""
        n = ids.shape[1]
        x = F.embedding(ids, self._weights["embeddings.word_embeddings.weight"])
        x = x + self._weights["embeddings.token_type_embeddings.weight"][0]
        x = x + self._weights["embeddings.position_embeddings.weight"][:n]
        x = self._norm(x, "embeddings.LayerNorm")
        seen = None if mask.all() else mask.bool()[:, None, None, :].expand(-1, 1, n, -1)
        for index in range(self._layers):
            name = f"encoder.layer.{index}"
            query, key, value = (
                self._heads_of(self._linear(x, f"{name}.attention.self.{part}")) for part in ("query", "key", "value")
            )
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
            attended = self._linear(attended.transpose(1, 2).flatten(-2), f"{name}.attention.output.dense")
            x = self._norm(attended + x, f"{name}.attention.output.LayerNorm")
            inner = F.gelu(self._linear(x, f"{name}.intermediate.dense"))
            x = self._norm(self._linear(inner, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")
        return x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _heads_of(self, x: Tensor) -> Tensor:
        """(N, n, D) -> (N, heads, n, d)."""
        return x.view(*x.shape[:2], self._heads, -1).transpose(1, 2)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], self._eps)

    @staticmethod
    def _pooled(states: Tensor, mask: Tensor) -> Tensor:
        """The means over the tokens that are no padding, made twice of length 1, as the library does."""
        counted = mask[..., None].expand(states.shape).to(states.dtype)
        mean = (states * counted).sum(1) / counted.sum(1).clamp(min=1e-9)
        return F.normalize(F.normalize(mean, p=2, dim=1), p=2, dim=1)
