"""The vision tower of Qwen3-VL: page image to visual tokens and DeepStack features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmrr.backbones._qwen3_vl_batches import together
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
        """Patches and patch grid of one page image, on the CPU. Its sides are first resized to whole tokens."""
        size = page_size(image.width, image.height, self.cell_px, self._limits.pixels, max_tokens)
        image = image.convert("RGB")
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        inputs = self.image_processor(images=[image], do_resize=False, return_tensors="pt")
        return {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}

    def all_pixels(self, images: Sequence[Image.Image], max_tokens: int | None = None) -> dict[str, Tensor]:
        """Patches of several pages, one page after the other, and the patch grid of each, on the CPU."""
        with ThreadPoolExecutor(min(len(images), os.cpu_count() or 1)) as pool:
            inputs = list(pool.map(lambda image: self.pixels(image, max_tokens), images))
        return {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}

    @torch.inference_mode()
    def encode(
        self, images: Sequence[Image.Image], max_tokens: int | None = None, most_tokens: int = 0
    ) -> list[Visual]:
        """Visual tokens of pages, at most ``most_tokens`` in a forward, or one page.

        Pages of a forward are packed one after the other, without padding. Attention stays within each page.
        """
        sizes = [page_size(*image.size, self.cell_px, self._limits.pixels, max_tokens) for image in images]
        found: dict[int, Visual] = {}
        for rows in together([width * height // self.cell_px**2 for width, height in sizes], most_tokens):
            some = [images[row] for row in rows]
            inputs = self.pixels(some[0], max_tokens) if len(some) == 1 else self.all_pixels(some, max_tokens)
            found |= zip(rows, self._visuals(inputs), strict=True)
        return [found[row] for row in range(len(images))]

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
        (visual,) = self._visuals({name: inputs[name] for name in ("pixel_values", "image_grid_thw")})
        return visual

    def _visuals(self, inputs: dict[str, Tensor]) -> list[Visual]:
        grids = inputs["image_grid_thw"].tolist()
        there = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        if self.device.type != "cpu":  # else each layer would wait for the device to learn where pages end
            edges = torch.tensor([0, *(rows * columns for _, rows, columns in grids)]).cumsum(0, dtype=torch.int32)
            there["image_cu_seqlens"] = edges
        out = self.model.model.get_image_features(**there, return_dict=True)
        found = []
        for i, (_, rows, columns) in enumerate(grids):
            features = [level[i] for level in out.deepstack_features]
            tokens = out.pooler_output[i].to(self.dtype)
            deepstack = torch.stack(features).to(self.dtype) if features else tokens.new_zeros(0, *tokens.shape)
            found.append(Visual(tokens, deepstack, (rows // self._merge_size, columns // self._merge_size)))
        return found


def linear_patches(tower: Any) -> None:
    """Replace the 3-d convolution of the patch embedding by the equal matrix product, several times faster on a CPU."""
    convolution = tower.patch_embed.proj

    def embed_patches(pixels: Tensor) -> Tensor:
        weight = convolution.weight.flatten(1)
        return F.linear(pixels.to(weight.dtype), weight, convolution.bias)

    tower.patch_embed.forward = embed_patches
