"""Outputs of the stock model for a prompt, for parity tests."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration


def stock_states(
    path: Path, text: str, image: Image.Image | None = None, resize: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """States of all tokens after the final norm (n, D); attention of the last token to the visual tokens (T,); a mask
    (n,) of the visual tokens.

    ``resize``: by the checkpoint's own image processor, within its limits. The attention comes from the eager
    implementation: mean over heads, sum over layers.
    """
    model = Qwen3VLForConditionalGeneration.from_pretrained(path, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    pixels = {}
    if image is not None:
        processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        pixels = dict(processor(images=[image], do_resize=resize, return_tensors="pt"))
        text = text.replace("<|image_pad|>", "<|image_pad|>" * (int(pixels["image_grid_thw"].prod()) // 4))
    ids = tokenizer(text, return_tensors="pt").input_ids
    visual = ids[0] == model.config.image_token_id
    with torch.no_grad():
        out = model.model(input_ids=ids, mm_token_type_ids=visual[None].int(), output_attentions=True, **pixels)
    attention = torch.stack([layer[0, :, -1] for layer in out.attentions])  # (L, H, n)
    return out.last_hidden_state[0], attention.mean(1).sum(0)[visual], visual
