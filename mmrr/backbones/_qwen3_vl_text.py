"""The language model of Qwen3-VL in torch alone, for the small checkpoints that come with mmrr.

A query needs neither the vision tower nor transformers, whose import takes longer than all the rest of the first query.
The modules have the names, the parameters and the arithmetic of ``transformers.models.qwen3_vl``, so that the results
are equal to the last bit; tests compare them.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

_PREFIX = "model.language_model."


def read_config(path: Path) -> SimpleNamespace:
    """config.json with its keys as attributes."""
    found: SimpleNamespace = json.loads(
        (path / "config.json").read_text("utf-8"), object_hook=lambda values: SimpleNamespace(**values)
    )
    return found


def load(path: Path, config: SimpleNamespace, dtype: torch.dtype) -> tuple[TextModel, nn.Linear]:
    """The language model and its head. ``config``: that of ``read_config``."""
    with torch.device("meta"):
        text = TextModel(config.text_config)
        head = _Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
    weights: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(_PREFIX)]  # noqa: SIM118
            weights |= {name.removeprefix(_PREFIX): tensors.get_tensor(name).to(dtype) for name in names}
    text.load_state_dict(weights, assign=True)
    # The head of these checkpoints is their table of embeddings.
    head.weight = text.embed_tokens.weight
    return text, head


class _Linear(nn.Linear):
    """Its weights come from a file. Drawing random ones first would import the compiler of torch, which takes 1 s."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


class _Embedding(nn.Embedding):
    """As ``_Linear``."""

    def reset_parameters(self) -> None:
        """Leave the weights as they are."""


class TextModel(nn.Module):
    """Embeddings, layers and last norm. ``Backbone`` runs the layers itself."""

    # Any: the section text_config of config.json.
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = _Norm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = _Rotary(config)


class _Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = _Mlp(config.hidden_size, config.intermediate_size)
        self.input_layernorm = _Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = _Norm(config.hidden_size, config.rms_norm_eps)


class _Attention(nn.Module):
    """The projections and norms of attention. ``Backbone`` computes attention itself."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.head_dim = int(config.head_dim)
        query, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = _Linear(config.hidden_size, query, bias=config.attention_bias)
        self.k_proj = _Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = _Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = _Linear(query, config.hidden_size, bias=config.attention_bias)
        self.q_norm = _Norm(self.head_dim, config.rms_norm_eps)
        self.k_norm = _Norm(self.head_dim, config.rms_norm_eps)


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = _Linear(width, inner, bias=False)
        self.up_proj = _Linear(width, inner, bias=False)
        self.down_proj = _Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class _Norm(nn.Module):
    """RMSNorm with its mean in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class _Rotary(nn.Module):
    """cos and sin of M-RoPE positions, interleaved: frequency i turns with time, row or column by i modulo 3."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        rope = config.rope_parameters
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float, device="cpu") / config.head_dim
        # No buffer: it stays in float32 whatever the format of the weights is.
        self._frequencies = 1.0 / (rope.rope_theta**exponents)
        self._sections = rope.mrope_section

    @torch.no_grad()
    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Of positions (3, N, n): each (N, n, d), in the type and on the device of ``x``."""
        if self._frequencies.device != x.device:
            self._frequencies = self._frequencies.to(x.device)
        angles = positions[..., None].float() * self._frequencies
        return self._woven(angles.cos()).to(x.dtype), self._woven(angles.sin()).to(x.dtype)

    def _woven(self, values: Tensor) -> Tensor:
        woven = values[0]
        for axis in (1, 2):
            places = slice(axis, self._sections[axis] * 3, 3)
            woven[..., places] = values[axis, ..., places]
        return torch.cat((woven, woven), dim=-1)
