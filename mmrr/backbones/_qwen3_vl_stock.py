"""The forward of Qwen3-VL as transformers runs it, over pages together: the reference, and the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmrr.backbones._qwen3_vl_vision import VisionTower


# Any: transformers does not type the model.
@torch.inference_mode()
def stock_forward(
    model: Any,
    tower: VisionTower,
    ids: Sequence[int],
    pages: Sequence[Sequence[Image.Image]],
    max_tokens: int | None,
) -> Tensor:
    """The last hidden states (N, D) float32, after the final norm, of a prompt with the images of each page.

    ``ids``: the prompt's tokens, one image token for each image of a page. Padding is on the right. Attention is
    causal, so that no token attends to padding and no mask is needed.
    """
    inputs = tower.all_pixels([image for images in pages for image in images], max_tokens)
    counts = iter((inputs["image_grid_thw"].prod(1) // model.config.vision_config.spatial_merge_size**2).tolist())
    image_id = model.config.image_token_id
    prompts = [[i for token in ids for i in [token] * (next(counts) if token == image_id else 1)] for _ in pages]
    longest = max(map(len, prompts))
    rows = [prompt + [ids[-1]] * (longest - len(prompt)) for prompt in prompts]
    full = torch.tensor(rows, device=tower.device)
    out = model.model(
        input_ids=full,
        mm_token_type_ids=(full == image_id).int(),
        use_cache=False,
        pixel_values=inputs["pixel_values"].to(tower.device, tower.dtype),
        image_grid_thw=inputs["image_grid_thw"].to(tower.device),
    )
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=tower.device)
    states: Tensor = out.last_hidden_state[torch.arange(len(prompts), device=tower.device), ends].float()
    return states
