"""Qwen3-VL-Embedding as first stage: one vector for each page and each query, and a saliency map of each page.

Recipe of the published checkpoints: a chat with the instruction as system message, one user turn and the generation
prompt. The vector is the last token's hidden state after the final norm, truncated to the Matryoshka dimension and
then L2-normalised.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from mmrr.contracts import EmbedderSpec, VisualQuery
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.chat import Mark
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.modeling.plain_forward import Visual
from mmrr.modeling.saliency import Saliency
from mmrr.types import Embedding, Grid

SPEC = EmbedderSpec(
    checkpoints=("Qwen/Qwen3-VL-Embedding-2B", "Qwen/Qwen3-VL-Embedding-8B"),
    multi_vector=False,
    joint_queries=True,
)
#: Longest query of the published recipe, in tokens.
MAX_LENGTH = 8192


@dataclass(frozen=True, slots=True)
class Prepare:
    """Options that change page vectors."""

    instruction: str = field(
        default="Represent the user's input.", metadata={"help": "Task instruction in the prompt of a page."}
    )
    dim: int = field(
        default=0, metadata={"help": "Dimensions of a vector that are kept, from the first (Matryoshka). 0: all."}
    )
    max_tokens: int = field(
        default=0, metadata={"help": "Most visual tokens of a page. 0: the page image as rendered."}
    )


@dataclass(frozen=True, slots=True)
class Search:
    """Options that change the vectors of queries alone."""

    instruction: str = field(
        default="Retrieve images or text relevant to the user's query.",
        metadata={"help": "Task instruction in the prompt of a query."},
    )


def check(checkpoint: Checkpoint, options: Prepare) -> None:
    """Raise MmrrError if the checkpoint has fewer dimensions than ``dim``."""
    width = (checkpoint.config().get("text_config") or {}).get("hidden_size")
    if type(width) is int:
        _check_dim(options, width, checkpoint)


def pixel_limits(checkpoint: Checkpoint, options: Prepare) -> None:
    """None: the published scripts resize a page themselves, to 4 to 1,800 tokens, and switch the processor's off."""


def _check_dim(options: Prepare, width: int, checkpoint: Checkpoint) -> None:
    if not 0 <= options.dim <= width:
        raise MmrrError(f"dim {options.dim}: expected 0 to {width}, the dimensions of {checkpoint.id}")


def load(checkpoint: Checkpoint, options: Prepare, device: torch.device, dtype: torch.dtype) -> Embedder:
    """Load the checkpoint. Raises MmrrError if it does not fit the family or the options."""
    return Embedder(checkpoint, options, device, dtype)


class Embedder:
    """Embeds pages and queries with one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, prepare: Prepare, device: torch.device, dtype: torch.dtype) -> None:
        """Raises MmrrError if the checkpoint does not load or has fewer dimensions than ``dim``."""
        backbone = families.load("backbones", checkpoint.model_type)
        self.prepare = prepare
        self.backbone = backbone.Backbone(checkpoint.path, checkpoint.adapter, device, dtype, needs_head=False)
        width = self.backbone.config.text_config.hidden_size
        _check_dim(prepare, width, checkpoint)

    def grid(self, width_px: int, height_px: int) -> Grid:
        """(rows, columns) of the saliency map of a page image of this size."""
        grid: Grid = self.backbone.grid(width_px, height_px, self.prepare.max_tokens or None)
        return grid

    @torch.inference_mode()
    def embed_pages(self, pages: Sequence[Image.Image]) -> list[Embedding]:
        """The vector (1, D) and the saliency (T,) of each page, from one forward a page."""
        return [self.read(visual) for visual in self.backbone.vision(pages, self.prepare.max_tokens or None)]

    @torch.inference_mode()
    def read(self, visual: Visual) -> Embedding:
        """The embedding of a page, from the vision tower's output for it."""
        before, after = self.backbone.split_at_image(self.chat(self.prepare.instruction, Mark.IMAGE))
        page = self.backbone.page_sequence(before, visual, after)
        saliency = Saliency(page.visual)
        vector = self.unit(self.backbone.read(page, saliency.observe))
        return Embedding(vector[None].cpu(), saliency.total.cpu(), visual.grid)

    def temperature(self, options: Search) -> float:
        """0: a query has one vector, so there are no weights."""
        return 0.0

    @torch.inference_mode()
    def embed_queries(self, texts: Sequence[str], options: Search) -> list[Tensor]:
        """The vector (1, D) float32 of length 1 of each query.

        Raises MmrrError for a query of more than 8,192 tokens.
        """
        vectors = []
        for text in texts:
            ids = self.chat(options.instruction, text)
            if len(ids) > MAX_LENGTH:
                raise MmrrError(f"found a query of {len(ids)} tokens; expected at most {MAX_LENGTH}: {text[:60]}...")
            vectors.append(self.unit(self.backbone.read(self.backbone.text_sequence(ids)))[None].cpu())
        return vectors

    @torch.inference_mode()
    def embed_visual_query(self, query: VisualQuery, options: Search) -> Tensor:
        """The vector (1, D) float32 of length 1 of an image, alone or with a text behind it in the same message.

        Raises MmrrError for a query of more than 8,192 tokens, those of the image included.
        """
        (visual,) = self.backbone.vision([query.image], self.prepare.max_tokens or None)
        ids = self.chat(options.instruction, Mark.IMAGE, *([query.text] if query.text else []))
        sequence = self.backbone.pages_sequence(ids, [visual], [None])
        if len(sequence.embeddings) > MAX_LENGTH:
            raise MmrrError(f"found a query of {len(sequence.embeddings)} tokens; expected at most {MAX_LENGTH}")
        return self.unit(self.backbone.read(sequence))[None].cpu()

    def chat(self, instruction: str, *content: str | Mark) -> list[int]:
        """Token ids of one page or query. An image is the single image token of the template."""
        instruction = instruction.strip()
        if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
            instruction += "."
        (ids,) = self.backbone.chat.encode([("system", [instruction]), ("user", content)])
        return list(ids)

    def unit(self, hidden: Tensor) -> Tensor:
        """The vectors (.., dim) of last hidden states (.., D): truncated, then normalised to length 1."""
        return torch.nn.functional.normalize(hidden.float()[..., : self.prepare.dim or None], dim=-1)
