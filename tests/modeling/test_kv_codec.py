"""Codecs: an error of half a step at most, the estimated number of bytes, odd shapes and extreme numbers."""

from __future__ import annotations

import pytest
import torch

from mmrr.errors import MmrrError
from mmrr.modeling.kv_codec import CODECS, check, decode, encode, stored_bytes

LEVELS = {"int8": 256, "int4": 16}
GROUP = {"int8": 128, "int4": 256}


def cache(n: int, layers: int = 2, heads: int = 3, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    keys = torch.randn(layers, heads, n, width, generator=generator)
    keys[..., 2] = 40 + keys[..., 2]  # a channel that is large for every token
    values = torch.randn(layers, heads, n, width, generator=generator)
    values[:, :, n // 2] *= 50  # a token that is large in every channel
    return keys, values


@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 256, 300])
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_the_error_is_half_a_step(n, codec):
    """The step of a key is the range of its channel in its group; that of a value is its token's largest magnitude.

    One per mille is added for scales and offsets, which are rounded to float16.
    """
    keys, values = cache(n)
    found_keys, found_values = decode(encode(keys, values, codec), codec, torch.float32)
    for part, found in zip(keys.split(GROUP[codec], 2), found_keys.split(GROUP[codec], 2), strict=True):
        step = (part.amax(2, keepdim=True) - part.amin(2, keepdim=True)) / (LEVELS[codec] - 1)
        assert ((part - found).abs() <= 0.5 * step + 1e-3 * part.abs().amax(2, keepdim=True) + 1e-4).all()
    step = values.abs().amax(3, keepdim=True) / (LEVELS[codec] // 2 - 1)
    assert ((values - found_values).abs() <= 0.501 * step + 1e-4).all()


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_large_channels_and_tokens_cost_the_others_nothing(codec):
    """With one scale for all channels, small numbers would be rounded to one level."""
    keys, values = cache(64)
    found_keys, found_values = decode(encode(keys, values, codec), codec, torch.float32)
    small = [channel for channel in range(8) if channel != 2]
    assert (keys - found_keys)[..., small].abs().mean() < 3 / LEVELS[codec]
    others = [token for token in range(64) if token != 32]
    assert (values - found_values)[:, :, others].abs().mean() < 3 / LEVELS[codec]


@pytest.mark.parametrize("codec", ["int8", "int4"])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-7, 5000.0])
def test_constant_keys_and_values_come_back(codec, value):
    same = torch.full((1, 1, 5, 4), value)
    for found in decode(encode(same, same, codec), codec, torch.float32):
        assert torch.allclose(found, same, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("codec", CODECS)
def test_a_layer_alone_is_decoded_as_among_all(codec):
    state = encode(*cache(130), codec)
    keys, values = decode(state, codec, torch.float32)
    for index in range(2):
        layer = decode({name: tensor[index] for name, tensor in state.items()}, codec, torch.float32)
        assert all(map(torch.equal, layer, (keys[index], values[index])))


def test_numbers_as_computed_and_in_bfloat16():
    keys, values = cache(5)
    assert all(map(torch.equal, decode(encode(keys, values, "none"), "none", torch.float32), (keys, values)))
    rounded = (keys.bfloat16().float(), values.bfloat16().float())
    assert all(map(torch.equal, decode(encode(keys, values, "bf16"), "bf16", torch.float32), rounded))


def test_both_halves_of_a_byte():
    keys = torch.arange(16.0).view(1, 1, 2, 8)
    state = encode(keys, keys, "int4")
    assert state["k"].shape == (1, 1, 2, 4)
    found, _ = decode(state, "int4", torch.float32)
    assert found[0, 0, 0].tolist() == pytest.approx(keys[0, 0, 0].tolist(), abs=1e-2)
    assert found[0, 0, 1].tolist() == pytest.approx(keys[0, 0, 1].tolist(), abs=1e-2)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("n", [1, 130, 642])
def test_bytes_are_what_was_planned(codec, n):
    keys, values = (tensor.bfloat16() for tensor in cache(n))
    state = encode(keys, values, codec)
    assert sum(tensor.nbytes for tensor in state.values()) == stored_bytes(n, 2, 3, 8, 2, codec)


def test_bytes_of_a_2b_page():
    """642 tokens, 8 layers, 8 heads of width 128: less than 10.8 MB (int8) and 5.5 MB (int4)."""
    sizes = {codec: stored_bytes(642, 8, 8, 128, 2, codec) for codec in CODECS}
    assert sizes["bf16"] == sizes["none"] == 21_037_056
    assert sizes["int8"] < 10.8e6
    assert sizes["int4"] < 5.5e6


def test_another_codec_is_one_line():
    with pytest.raises(MmrrError, match="codec 'int3': expected none, bf16, int8, int4"):
        check("int3")
