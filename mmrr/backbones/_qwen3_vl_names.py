"""What published Qwen3-VL checkpoints call tensors, and how their processors size a page. Imports no transformers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmrr.documents.page_grid import snap

#: Published names of tensors as regular expressions, with the names of transformers. TomoroAI writes ``vlm.`` in front
#: of them, and colpali-engine and OpenSearch-AI write neither that nor ``model.``.
NAMES = {
    r"^(?:base_model\.model\.|vlm\.|qwen3vl\.|model\.)*(visual|language_model)\.(?:model\.)?": r"model.\1.",
    r"^(?:base_model\.model\.|vlm\.)+lm_head\.": "lm_head.",
}
#: A side of an image over this many times as long as the other is more than the published processors take.
_MOST_ELONGATED = 200


@dataclass(slots=True)
class Limits:
    """Fewest and most pixels that a page is resized to, as the published processor does. None: the rule of ``snap``.

    A backbone and its vision tower, which may be loaded later, share one.
    """

    pixels: tuple[int, int] | None = None


def tensor_name(name: str) -> str:
    """The name in transformers of a tensor with a published name."""
    for pattern, target in NAMES.items():
        name = re.sub(pattern, target, name)
    return name


def page_size(
    width_px: int, height_px: int, cell_px: int, limits: tuple[int, int] | None, max_tokens: int | None
) -> tuple[int, int]:
    """Width and height in pixels of a page image that is resized to whole tokens of ``cell_px`` pixels.

    ``limits``: fewest and most pixels, where the published processor resizes it. None: the rule of ``snap``, which also
    resizes a strip over 200 times as long as wide, because the published processors refuse it.
    """
    if not limits or max(width_px, height_px) > _MOST_ELONGATED * min(width_px, height_px):
        return snap(width_px, height_px, cell_px, max_tokens)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    least, most = limits
    most = min(most, max_tokens * cell_px**2) if max_tokens else most
    height, width = smart_resize(height_px, width_px, factor=cell_px, min_pixels=min(least, most), max_pixels=most)
    return width, height
