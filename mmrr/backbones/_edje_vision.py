"""The vision encoders of EDJE: SigLIP at a fixed resolution, or the vision tower of a Qwen3-VL."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, SiglipVisionConfig, SiglipVisionModel
from transformers.utils import logging as transformers_logging

from mmrr.backbones import qwen3_vl
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoint_files import expect_size, expect_tensors, loading, tensor_shapes

#: What the names of the vision encoder's tensors begin with, after ``vision_model.``.
_VISION_PARTS = ("embeddings.", "encoder.", "post_layernorm.")


def vision_config(config: Mapping[str, Any]) -> SiglipVisionConfig:
    """The vision part of a SigLIP checkpoint's config.json, without the pooling head, which EDJE does not use."""
    values = dict(config.get("vision_config") or (config if config.get("model_type") != "siglip" else {}))
    with loading("the vision encoder's config.json does not fit a SigLIP"):
        return SiglipVisionConfig(**{**values, "vision_use_head": False})


def reads_any_size(config: Mapping[str, Any]) -> bool:
    """Whether a vision checkpoint reads pages at their rendered size (Qwen3-VL) or resized to a square (SigLIP)."""
    return config.get("model_type") == "qwen3_vl"


def vision_tokens(config: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens per image and their width D, from a vision checkpoint's config.json. 0 tokens: depends on the image."""
    if reads_any_size(config):
        return 0, int(config["vision_config"]["out_hidden_size"])
    vision = vision_config(config)
    return (_side(vision.image_size) // _side(vision.patch_size)) ** 2, int(vision.hidden_size)


def vision_heads(config: Mapping[str, Any]) -> int:
    """Number of attention heads in a vision checkpoint's layers, from its config.json."""
    if reads_any_size(config):
        return int(config["vision_config"]["num_heads"])
    return int(vision_config(config).num_attention_heads)


def _side(size: Any) -> int:
    if not isinstance(size, int):
        raise MmrrError(
            f"the vision encoder's config.json has the size {size}; expected one number, the side of a square"
        )
    return size


class Vision:
    """A frozen SigLIP vision encoder of fixed resolution, with its image processor."""

    def __init__(self, path: Path, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
        """Raises MmrrError if weights are missing or the image processor does not fit."""
        settings = vision_config(config)
        self.heads = vision_heads(config)
        self.side = _side(settings.image_size)
        shapes = tensor_shapes(str(path), path)
        with loading(f"{path} does not load as a SigLIP vision encoder"):
            with torch.device("meta"):
                empty = SiglipVisionModel(settings)
                expect_size(path, empty.num_parameters(), shapes)
            expected = {name: list(tensor.shape) for name, tensor in empty.state_dict().items()}
            expect_tensors(str(path), "a SigLIP vision encoder", expected, _vision_tensors(shapes))
            with _quiet():  # transformers would list the tensors of the text tower, which is not loaded
                model, report = SiglipVisionModel.from_pretrained(
                    path,
                    config=settings,
                    dtype=dtype,
                    attn_implementation="sdpa",
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
            self.processor = AutoImageProcessor.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, backend="pil"
            )
        if lacking := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
            raise MmrrError(f"{path} lacks {len(lacking)} tensors of a SigLIP vision encoder, among them: {lacking[0]}")
        self.model = model.to(device).eval().requires_grad_(False)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """(n, 3, S, S): each image resized to the encoder's square, as preprocessor_config.json says."""
        pixels: Tensor = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt")[
            "pixel_values"
        ]
        if pixels.shape[-2:] != (self.side, self.side):
            found = " x ".join(map(str, pixels.shape[-2:]))
            raise MmrrError(f"the image processor makes {found} pixels; expected {self.side} x {self.side}")
        return pixels

    @torch.inference_mode()
    def tokens(self, images: Sequence[Image.Image]) -> Tensor:
        """(n, T, D) after the final norm, in raster order."""
        pixels = self.pixels(images).to(self.model.device, self.model.dtype)
        hidden: Tensor = self.model(pixel_values=pixels).last_hidden_state
        return hidden


class PageVision:
    """The frozen vision tower of a Qwen3-VL: a page at its rendered size, one token for each 32 x 32 pixels.

    The tokens are the tower's output for the language model, without the DeepStack features.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], max_tokens: int | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        """``max_tokens``: limit per image; larger images are settings smaller. None: the limit of Qwen3-VL.

        Raises MmrrError if the checkpoint does not load.
        """
        self.backbone = qwen3_vl.Backbone(path, None, device, dtype, needs_head=False)
        self.heads = vision_heads(config)
        self.max_tokens = max_tokens

    def tokens(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """(T, D) for each image, in raster order."""
        return [visual.tokens for visual in self.backbone.vision(images, self.max_tokens)]


def _vision_tensors(shapes: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """The shapes of the vision encoder's tensors, without the text tower and the pooling head, which EDJE ignores."""
    own = {re.sub(r"^(vision_model\.)+", "", name): shape for name, shape in shapes.items()}
    return {
        name: shape
        for name, shape in own.items()
        if name.startswith(_VISION_PARTS) and not name.endswith(".position_ids")  # stored by older versions
    }


@contextmanager
def _quiet() -> Iterator[None]:
    before = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
