"""The vision tower of Qwen3-VL: page image to visual tokens and DeepStack features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmrr.backbones._qwen3_vl_names import Limits, page_size
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoint_files import described
from mmrr.types import Grid


@dataclass(frozen=True, slots=True)
class Visual:
    """The output of the vision tower for one page."""

    tokens: Tensor  # (T, D), raster order of merged cells
    deepstack: Tensor  # (S, T, D), added to the visual positions after LM layers 0 .. S-1
    grid: Grid

    def keep(self, indices: Tensor) -> Visual:
        """The tokens at ``indices`` (K,) and their DeepStack rows. ``grid`` stays: kept tokens keep their positions."""
        rows = indices.to(self.tokens.device, torch.long)
        return Visual(self.tokens[rows], self.deepstack[:, rows], self.grid)


class VisionTower:
    """Vision encoder and merger of a loaded Qwen3-VL, with the checkpoint's image processor."""

    # Any: transformers types neither the model nor the image processor.
    def __init__(
        self, model: Any, image_processor: Any, limits: Limits, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.model, self.image_processor, self.device, self.dtype = model, image_processor, device, dtype
        vision = model.config.vision_config
        self._merge_size = int(vision.spatial_merge_size)
        #: Side in pixels of the square that one LM token covers.
        self.cell_px: int = int(vision.patch_size) * self._merge_size
        self._limits = limits
        linear_patches(model.model.visual)

    def pixels(self, image: Image.Image, max_tokens: int | None = None) -> dict[str, Tensor]:
        """Patches and patch grid of one page image, whose sides are first resized to whole tokens."""
        size = page_size(image.width, image.height, self.cell_px, self._limits.pixels, max_tokens)
        image = image.convert("RGB")
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        inputs = self.image_processor(images=[image], do_resize=False, return_tensors="pt")
        return {name: inputs[name].to(self.device) for name in ("pixel_values", "image_grid_thw")}

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image], max_tokens: int | None = None) -> list[Visual]:
        """Visual tokens of pages, one page at a time: attention stays within a page, so a batch saves no arithmetic."""
        return [self._visual(self.pixels(image, max_tokens)) for image in images]

    @property
    def pixel_limits(self) -> tuple[int, int]:
        """Minimum and maximum number of pixels after resizing by the checkpoint's image processor."""
        size = self.image_processor.size
        return int(size["shortest_edge"]), int(size["longest_edge"])

    @torch.inference_mode()
    def encode_as_processed(self, image: Image.Image) -> Visual:
        """Visual tokens of one page, resized by the checkpoint's image processor.

        Raises MmrrError if the processor refuses the image: one side is over 200 times the other.
        """
        try:
            inputs = self.image_processor(images=[image.convert("RGB")], return_tensors="pt")
        except ValueError as error:
            raise MmrrError(f"a page image of {image.width} x {image.height} pixels: {described(error)}") from error
        return self._visual({name: inputs[name].to(self.device) for name in ("pixel_values", "image_grid_thw")})

    def _visual(self, inputs: dict[str, Tensor]) -> Visual:
        out = self.model.model.get_image_features(**inputs, return_dict=True)
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        features = [level[0] for level in out.deepstack_features]
        tokens = out.pooler_output[0].to(self.dtype)
        deepstack = torch.stack(features).to(self.dtype) if features else tokens.new_zeros(0, *tokens.shape)
        return Visual(tokens, deepstack, (rows // self._merge_size, columns // self._merge_size))


def linear_patches(tower: Any) -> None:
    """Replace the 3-d convolution of the patch embedding by the equal matrix product, several times faster on a CPU."""
    convolution = tower.patch_embed.proj

    def embed_patches(pixels: Tensor) -> Tensor:
        weight = convolution.weight.flatten(1)
        return F.linear(pixels.to(weight.dtype), weight, convolution.bias)

    tower.patch_embed.forward = embed_patches
