"""Qwen3-VL-Embedding as first stage: a page's vectors, and how much the model looked at each visual token for it.

Recipe of the published checkpoints: chat with the instruction as system message, one user turn, generation prompt;
the last token's hidden state after the final norm, truncated to the Matryoshka dimension, then L2-normalised.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmrr import families
from mmrr.checkpoints import Checkpoint
from mmrr.errors import MmrrError
from mmrr.prompts import Mark
from mmrr.types import Embedding, Grid

#: mmrr's own, and published checkpoints this family loads.
CHECKPOINTS = ("reader-embedder", "Qwen/Qwen3-VL-Embedding-2B", "Qwen/Qwen3-VL-Embedding-8B")
#: Longest input of the published recipe, in tokens.
MAX_LENGTH = 8192
#: Rows of tokens that a part of a page shares with each of its neighbours, so that no line is cut in two.
_OVERLAP = 1
#: What the whole page counts beside one of its parts.
_WHOLE = 0.5
_MOST_PARTS = 64
#: Where a checkpoint's config.json says how many parts it was trained with; published ones do not: 0.
TAUGHT = "embedding_parts"


@dataclass(frozen=True, slots=True)
class Prepare:
    """Options that change page vectors."""

    instruction: str = "Represent the user's input."
    dim: int = 0  # Matryoshka dimension; 0: the model's full width
    max_tokens: int = 0  # visual tokens a page; 0: the page image as rendered
    parts: int = -1  # horizontal parts of a page with a vector each; 0: one of the whole page; -1: as TAUGHT says


@dataclass(frozen=True, slots=True)
class Search:
    """Options that change query vectors only."""

    instruction: str = "Retrieve images or text relevant to the user's query."


def resolve(prepare: Prepare, config: dict[str, Any]) -> Prepare:
    """Write out the parts. Raises MmrrError for over 64 of them."""
    if prepare.parts == -1:
        prepare = replace(prepare, parts=config.get(TAUGHT, 0))
    if type(prepare.parts) is not int or not 0 <= prepare.parts <= _MOST_PARTS:
        raise MmrrError(f"parts {prepare.parts}: expected 1 to {_MOST_PARTS}, or 0 for one vector a page")
    return prepare


class Embedder:
    """Embeds pages and queries with one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, prepare: Prepare, device: torch.device, dtype: torch.dtype) -> None:
        """Raises MmrrError if the checkpoint does not load or is narrower than ``dim``, and for over 64 parts."""
        backbone = families.load("backbones", checkpoint.model_type)
        self.prepare = resolve(prepare, checkpoint.config())
        self.backbone = backbone.Backbone(checkpoint.path, checkpoint.adapter, device, dtype, needs_head=False)
        width = self.backbone.config.text_config.hidden_size
        if not 0 <= prepare.dim <= width:
            raise MmrrError(f"dim {prepare.dim} is outside 1..{width}, the width of {checkpoint.id}")

    def grid(self, width_px: int, height_px: int) -> Grid:
        """(h, w) of the saliency map of a page image of this size."""
        grid: Grid = self.backbone.grid(width_px, height_px, self.prepare.max_tokens or None)
        return grid

    @torch.inference_mode()
    def embed_pages(self, images: Sequence[Image.Image]) -> list[Embedding]:
        """One forward a page gives both its vectors (V, D) and the saliency (T,)."""
        return [self.read(visual) for visual in self.backbone.vision(images, self.prepare.max_tokens or None)]

    @torch.inference_mode()
    def read(self, visual: Any) -> Embedding:
        """The language model's part of a page, from what the vision tower made of it."""
        before, after = self.backbone.split_at_image(self.chat(self.prepare.instruction, Mark.IMAGE))
        page = self.backbone.page_sequence(before, visual, after)
        saliency = Saliency(page.visual)
        vectors = self.vectors(self.backbone.read_parts(page, self.seen(page, visual.grid), saliency.observe))
        return Embedding(vectors.cpu(), saliency.total.cpu(), visual.grid)

    def seen(self, page: Any, grid: Grid) -> Tensor:
        """What the last token sees of a page in the last layer, (1 + parts, n) bool: all of it, then each part."""
        rows = torch.arange(grid[0] * grid[1]) // grid[1]
        edges = torch.arange(self.prepare.parts + 1)[:, None] * grid[0] / max(1, self.prepare.parts)
        seen = torch.ones(len(edges), len(page.embeddings), dtype=torch.bool)
        seen[1:, page.visual] = (rows >= edges[:-1] - _OVERLAP) & (rows < edges[1:] + _OVERLAP)
        return seen

    def vectors(self, states: Tensor) -> Tensor:
        """The page's vectors (V, dim) of what the last token made of the whole and of its parts (1 + parts, D).

        A query's product with one of them is what it makes of that part and of the whole together.
        """
        whole, parts = self.unit(states[:1]), self.unit(states[1:])
        return (parts + _WHOLE * whole) / (1 + _WHOLE) if len(parts) else whole

    @torch.inference_mode()
    def embed_queries(self, texts: Sequence[str], search: Search) -> Tensor:
        """(Q, D) float32, unit norm. Raises MmrrError for a query beyond the model's 8,192 tokens."""
        vectors = []
        for text in texts:
            ids = self.chat(search.instruction, text)
            if len(ids) > MAX_LENGTH:
                raise MmrrError(
                    f"a query of {len(ids)} tokens; the embedder reads {MAX_LENGTH} at most: {text[:60]}..."
                )
            vectors.append(self.unit(self.backbone.read(self.backbone.text_sequence(ids))))
        return torch.stack(vectors).cpu()

    def chat(self, instruction: str, content: str | Mark) -> list[int]:
        """Token ids of one page or query; the page stands as the template's single image token."""
        instruction = instruction.strip()
        if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
            instruction += "."
        (ids,) = self.backbone.chat.encode([("system", [instruction]), ("user", [content])])
        return list(ids)

    def unit(self, hidden: Tensor) -> Tensor:
        """The vectors (.., dim) of last hidden states (.., D): truncated, then of length 1."""
        return torch.nn.functional.normalize(hidden.float()[..., : self.prepare.dim or None], dim=-1)


class Saliency:
    """Sums the last token's attention to the visual tokens over all layers, heads averaged.

    Only the last row of each layer's attention is computed, in float32: T numbers a head, where the whole matrix would
    be T x T (specification of miniReranker, section 3: all layers 60.7 against 57.2 for a single one).
    """

    def __init__(self, visual: slice) -> None:
        self._visual = visual
        self.total = torch.zeros(visual.stop - visual.start)

    def observe(self, layer: int, queries: Tensor, keys: Tensor) -> None:
        """``queries`` (H, n, d), ``keys`` (H_kv, n, d), rotated."""
        n_heads, _, d_head = queries.shape
        last = queries[:, -1].float().view(keys.shape[0], n_heads // keys.shape[0], d_head)
        weights = torch.softmax(last @ keys.float().transpose(1, 2) * d_head**-0.5, dim=-1)  # (H_kv, group, n)
        self.total = self.total.to(weights.device) + weights[..., self._visual].mean(dim=(0, 1))
