"""Number formats of the stored keys and values of a page: the model's own, bfloat16, int8 or int4.

Some channels of the keys are large for every token. Keys are therefore quantised per channel, in groups of tokens, with
a scale and an offset. Values have no such channels, so each token has one scale (KIVI, arXiv 2402.02750, section 3).
Scales and offsets are float16. Attention sinks are tokens of the instruction, which is stored once and not quantised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mmrr.errors import MmrrError
from mmrr.types import PageCache

Codec = Literal["none", "bf16", "int8", "int4"]
CODECS: tuple[Codec, ...] = get_args(Codec)
#: Number of tokens that share a channel's scale and offset.
_KEY_GROUP = {"int8": 128, "int4": 256}
_LEVELS = {"int8": 256, "int4": 16}


def check(codec: str) -> Codec:
    """The codec of this name. Raises MmrrError for an unknown name."""
    for known in CODECS:
        if codec == known:
            return known
    raise MmrrError(f"codec '{codec}': expected {', '.join(CODECS)}")


def encode(keys: Tensor, values: Tensor, codec: str) -> PageCache:
    """The stored tensors of ``keys`` and ``values`` (L, H_kv, n, d).

    none and bf16: ``k`` and ``v``. int8 and int4: ``k`` (L, H_kv, n, d or d/2) uint8 with ``k_scale`` and ``k_offset``
    (L, H_kv, groups, d) float16, and ``v`` (L, H_kv, n, d or d/2) uint8 with ``v_scale`` (L, H_kv, n, 1) float16. In
    int4, channels j and j + d/2 share a byte; channel j is in the low four bits.
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
    # Values are quantised symmetrically around the middle level, so that zero stays zero.
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


def decode(stored: PageCache, codec: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``keys`` and ``values`` (.., H_kv, n, d) of all layers or of one, on the device of the stored tensors."""
    if codec in ("none", "bf16"):
        return stored["k"].to(dtype), stored["v"].to(dtype)
    k, v = (_unpack(stored[name], codec) for name in ("k", "v"))
    keys = k * _spread(stored["k_scale"], k, codec) + _spread(stored["k_offset"], k, codec)
    values = (v - _LEVELS[codec] // 2) * stored["v_scale"].float()
    return keys.to(dtype), values.to(dtype)


@dataclass(frozen=True, slots=True)
class Coded:
    """A page's stored cache, decoded one layer at a time when the layer runs. It saves memory on a CPU."""

    stored: PageCache
    codec: str
    dtype: torch.dtype

    @property
    def n_tokens(self) -> int:
        return self.stored["k"].shape[2]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        one = {name: tensor[index] for name, tensor in self.stored.items() if name != "next_pos"}
        return decode(one, self.codec, self.dtype)


@dataclass(frozen=True, slots=True)
class Joined:
    """Stored caches of several pages, joined along their tokens, and decoded one layer at a time."""

    stored: PageCache  # each (L, H_kv, all tokens or all groups, ..)
    groups: Tensor | None  # (all tokens,): the group of each token, where a group of tokens shares a scale
    lengths: list[int]  # tokens of each page
    codec: str
    dtype: torch.dtype

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values (H_kv, all tokens, d) of one layer."""
        one = {name: tensor[index] for name, tensor in self.stored.items()}
        if self.groups is not None:
            spread = {name: one[name].index_select(-2, self.groups) for name in ("k_scale", "k_offset")}
            one |= spread
        return decode(one, self.codec, self.dtype)


def join(caches: Sequence[PageCache], codec: str, dtype: torch.dtype, device: torch.device) -> Joined:
    """Join stored caches on a device, with one copy for each kind of tensor."""
    names = [name for name in caches[0] if name != "next_pos"]
    stored = {name: torch.cat([cache[name] for cache in caches], dim=2).to(device) for name in names}
    lengths = [cache["k"].shape[2] for cache in caches]
    if "k_scale" not in stored:
        return Joined(stored, None, lengths, codec, dtype)
    counts = torch.tensor(lengths)
    of_page = -(-counts // _KEY_GROUP[codec])
    page = torch.arange(len(lengths)).repeat_interleave(counts)
    within = torch.arange(len(page)) - (counts.cumsum(0) - counts)[page]
    groups = (of_page.cumsum(0) - of_page)[page] + within // _KEY_GROUP[codec]
    return Joined(stored, groups.to(device), lengths, codec, dtype)


def stored_bytes(n_tokens: int, layers: int, heads: int, width: int, dtype_bytes: int, codec: str) -> int:
    """Bytes of one page's stored keys and values; ``width`` is d, ``heads`` is H_kv."""
    numbers = 2 * layers * heads * n_tokens * width
    if codec in ("none", "bf16"):
        return numbers * (dtype_bytes if codec == "none" else 2)
    groups = -(-n_tokens // _KEY_GROUP[codec])
    fp16 = layers * heads * (2 * groups * width + n_tokens)
    return numbers // (1 if codec == "int8" else 2) + 2 * fp16


def _scale(step: Tensor) -> Tensor:
    """The step in float16, rounded up so that the largest number is not clipped, and never 0."""
    half = step.clamp(min=6e-5).half()
    return torch.where(half.float() < step, torch.nextafter(half, torch.full_like(half, torch.inf)), half)


def _spread(groups: Tensor, like: Tensor, codec: str) -> Tensor:
    """Repeat (.., H_kv, groups, d) for every token of a group: (.., H_kv, n, d) float32. n rows stay as they are."""
    if groups.shape[-2] == like.shape[-2]:
        return groups.float()
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
