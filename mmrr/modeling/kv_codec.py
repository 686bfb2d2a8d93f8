"""How the keys and values of a page cache are stored: as computed, in bfloat16, or quantised. Knows tensors only.

Keys have channels that are large on every token, so they are quantised per channel, in groups of tokens, with an
offset; values have none, so each token has one scale (KIVI, arXiv 2402.02750, section 3). Scales and offsets are fp16.
The tokens that attention sinks into stand in the instruction, which is stored once per artifact and never quantised.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mmrr.errors import MmrrError
from mmrr.types import PageCache

Codec = Literal["none", "bf16", "int8", "int4"]
CODECS: tuple[Codec, ...] = get_args(Codec)
#: Tokens that share a channel's scale and offset.
_KEY_GROUP = {"int8": 128, "int4": 256}
_LEVELS = {"int8": 256, "int4": 16}


def check(codec: str) -> Codec:
    """The codec of this name. Raises MmrrError for an unknown name."""
    for known in CODECS:
        if codec == known:
            return known
    raise MmrrError(f"codec '{codec}': expected {', '.join(CODECS)}")


def encode(keys: Tensor, values: Tensor, codec: str) -> PageCache:
    """``keys`` and ``values`` (L, H_kv, n, d) as the tensors that are stored.

    int8, int4: ``k`` (L, H_kv, n, d or d/2) uint8 with ``k_scale`` and ``k_offset`` (L, H_kv, groups, d) fp16, and
    ``v`` (L, H_kv, n, d or d/2) uint8 with ``v_scale`` (L, H_kv, n, 1) fp16. Of int4, channels j and j + d/2 share a
    byte, j in the low half.
    """
    if codec == "none":
        return {"k": keys.contiguous(), "v": values.contiguous()}
    if codec == "bf16":
        return {"k": keys.to(torch.bfloat16).contiguous(), "v": values.to(torch.bfloat16).contiguous()}
    top = _LEVELS[codec] - 1
    groups = [part.float() for part in torch.split(keys, _KEY_GROUP[codec], dim=2)]
    lowest = torch.stack([part.amin(2) for part in groups], dim=2)
    highest = torch.stack([part.amax(2) for part in groups], dim=2)
    k_offset, k_scale = lowest.half(), _scale((highest - lowest.half()) / top)
    k = (keys.float() - _spread(k_offset, keys, codec)) / _spread(k_scale, keys, codec)
    # Values: around the middle level, so that zero stays zero.
    middle = _LEVELS[codec] // 2
    v_scale = _scale(values.float().abs().amax(3, keepdim=True) / (middle - 1))
    v = values.float() / v_scale.float() + middle
    return {
        "k": _pack(k, codec),
        "k_scale": k_scale,
        "k_offset": k_offset,
        "v": _pack(v, codec),
        "v_scale": v_scale,
    }


def decode(state: PageCache, codec: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``keys`` and ``values`` (.., H_kv, n, d) again, of all layers or of one, where the state's tensors lie."""
    if codec in ("none", "bf16"):
        return state["k"].to(dtype), state["v"].to(dtype)
    k, v = (_unpack(state[name], codec) for name in ("k", "v"))
    keys = k * _spread(state["k_scale"], k, codec) + _spread(state["k_offset"], k, codec)
    values = (v - _LEVELS[codec] // 2) * state["v_scale"].float()
    return keys.to(dtype), values.to(dtype)


def stored_bytes(n_tokens: int, layers: int, heads: int, width: int, dtype_bytes: int, codec: str) -> int:
    """Bytes of one page's keys and values."""
    numbers = 2 * layers * heads * n_tokens * width
    if codec in ("none", "bf16"):
        return numbers * (dtype_bytes if codec == "none" else 2)
    groups = -(-n_tokens // _KEY_GROUP[codec])
    fp16 = layers * heads * (2 * groups * width + n_tokens)
    return numbers // (1 if codec == "int8" else 2) + 2 * fp16


def _scale(step: Tensor) -> Tensor:
    """As fp16, rounded up so that the largest number is not cut off, and never 0."""
    half = step.clamp(min=6e-5).half()
    return torch.where(half.float() < step, torch.nextafter(half, torch.full_like(half, torch.inf)), half)


def _spread(groups: Tensor, like: Tensor, codec: str) -> Tensor:
    """(.., H_kv, groups, d) to every token: (.., H_kv, n, d) float32."""
    return groups.float().repeat_interleave(_KEY_GROUP[codec], dim=-2)[..., : like.shape[-2], :]


def _pack(levels: Tensor, codec: str) -> Tensor:
    whole = levels.round().clamp(0, _LEVELS[codec] - 1).to(torch.uint8)
    if codec == "int8":
        return whole.contiguous()
    low, high = whole.chunk(2, dim=-1)
    return (low | (high << 4)).contiguous()


def _unpack(packed: Tensor, codec: str) -> Tensor:
    if codec == "int8":
        return packed.float()
    return torch.cat([packed & 15, packed >> 4], dim=-1).float()
