"""Which pages of Qwen3-VL run in one forward, by memory and by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: The largest share of padding in a batch: the shortest sequence has at least 7/8 of the longest one's tokens.
_WASTE = 8


def together(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Indices of sequences in batches of similar length, at most ``most_tokens`` with padding, or one sequence."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        # In ascending order of length, so that i is the longest of its batch.
        fits = batches and (len(batches[-1]) + 1) * lengths[i] <= most_tokens
        if not fits or _WASTE * lengths[batches[-1][0]] < (_WASTE - 1) * lengths[i]:
            batches.append([])
        batches[-1].append(i)
    return batches


# Any: transformers does not type the configuration.
def token_bytes(config: Any, number_bytes: int) -> int:
    """Bytes that a forward holds at once for one visual token: the larger one of the tower and the language model.

    An estimate, on the safe side: inputs and outputs of the widest layers, and six copies of the hidden state.
    """
    vision, text = config.vision_config, config.text_config
    patches = int(vision.spatial_merge_size) ** 2
    pixels = 4 * int(vision.patch_size) ** 2 * int(vision.temporal_patch_size) * 3  # float32
    tower = patches * (pixels + number_bytes * (6 * int(vision.hidden_size) + 2 * int(vision.intermediate_size)))
    heads = int(text.num_attention_heads) + 2 * int(text.num_key_value_heads)
    layer = 6 * int(text.hidden_size) + 3 * int(text.intermediate_size) + 2 * heads * int(text.head_dim)
    deepstack = len(vision.deepstack_visual_indexes) * int(text.hidden_size)
    return max(tower, number_bytes * (layer + deepstack))
