"""ColQwen3 as first stage: late interaction, with one vector for each token of a page and of a query.

Recipe of the published checkpoints (ColPali, arXiv 2407.01449, with Qwen3-VL): the prompt of a page is the image and an
instruction; the prompt of a query is its text and ten padding tokens, without a chat template. A page image is resized
within the limits of the checkpoint's own processor file. Every token's hidden state after the final norm goes through
one linear layer and is normalised to length 1. The score of a page is the sum, over the query's vectors, of the largest
product with one of the page's vectors (MaxSim).

A query that is an image has the prompt and the vectors of a page: the published processors have no other prompt for
images. They have none for an image with a text.

mmrr's own checkpoint reads letters, and its config.json has ``WORDS``. A query then has one vector for each word, from
the token that ends the word, and one for the whole query, from the last token. The norm of a query vector is its
weight. A page has one vector for each visual token and one from the last token. If config.json has ``TEMPERATURE``, a
query vector is also weighted by its soft inverse document frequency (IDF) in the searched pages; see
``mmrr.search.late_interaction``.
"""

from __future__ import annotations

import bisect
import itertools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from mmrr.contracts import EmbedderSpec, QueryWord, VisualQuery
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.chat import Mark, word_ends
from mmrr.modeling.checkpoint_files import PROJECTIONS, loading, projection_of
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.modeling.plain_forward import Visual
from mmrr.modeling.saliency import Saliency
from mmrr.types import Embedding, Grid

#: The first checkpoint comes with mmrr.
SPEC = EmbedderSpec(
    checkpoints=(
        "reader-embedder",
        "TomoroAI/tomoro-colqwen3-embed-4b",
        "TomoroAI/tomoro-colqwen3-embed-8b",
        "OpenSearch-AI/Ops-Colqwen3-4B",
    ),
    multi_vector=True,
)
#: Longest query, in tokens.
MAX_LENGTH = 8192
#: Key of config.json: whether a query has one vector for each word instead of each token, as described above.
WORDS = "word_vectors"
#: Key of config.json: the default of the option ``pool``.
POOL = "token_pool"
#: Key of config.json: what a product of two vectors is divided by to be a logit.
TEMPERATURE = "word_temperature"
#: Key of config.json: whether the vectors of text tokens in a page's prompt are 0.
MASK = "mask_non_image_embeddings"
#: The published chat templates of a page and of a query: without what ``Recipe`` has.
_PAGE = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{{ messages[0].content[1].text }}<|im_end|>"
_QUERY = "{{ messages[0].content[0].text }}" + 10 * "<|endoftext|>"


class Recipe(NamedTuple):
    """What the published processors of ColQwen3 checkpoints do differently."""

    page_end: str  # of the prompt of a page, after the turn with image and instruction
    query_prefix: str  # in front of a query's text


#: The recipe of colpali-engine, of TomoroAI and of mmrr; and those of other models, by model_type of config.json.
_RECIPE = Recipe("<|endoftext|>", "")
_RECIPES = {"ops_colqwen3": Recipe("<|im_start|>assistant\n<|endoftext|>", "Query: ")}


@dataclass(frozen=True, slots=True)
class Prepare:
    """Options that change page vectors."""

    instruction: str = field(
        default="Describe the image.", metadata={"help": "Text in the prompt of a page, after the image."}
    )
    dim: int = field(
        default=0, metadata={"help": "Dimensions of a vector that are kept, from the first (Matryoshka). 0: all."}
    )
    pool: int = field(
        default=0,
        metadata={
            "help": "Visual tokens pooled into one vector, on average. 1: no pooling; "
            "0: as the checkpoint's config.json says, else 1."
        },
    )
    max_tokens: int = field(
        default=0, metadata={"help": "Most visual tokens of a page. 0: the page image as rendered."}
    )


@dataclass(frozen=True, slots=True)
class Search:
    """Options that change the vectors of a query or their weights, but not the pages."""

    prefix: str = field(
        default="", metadata={"help": "Text in front of every query. Empty: the one of the checkpoint's own processor."}
    )
    soft_idf: bool = field(
        default=True,
        metadata={
            "help": "Weight a query's vectors by their soft inverse document frequency (IDF) in the searched pages, "
            "if the checkpoint's config.json has a temperature for it.",
            "formerly": "rarity",
        },
    )


def check(checkpoint: Checkpoint, options: Prepare) -> None:
    """Raise MmrrError if the checkpoint has fewer dimensions than ``dim``."""
    width = (checkpoint.config().get("text_config") or {}).get("hidden_size")
    if type(width) is int:
        _check_dim(options, read_projection(checkpoint, width).out_features, checkpoint)


def pixel_limits(checkpoint: Checkpoint, options: Prepare) -> tuple[int, int] | None:
    """The limits of the checkpoint's processor file, which the published processors use.

    None for mmrr's own checkpoints, which were trained on pages as rendered. Raises MmrrError if there is no such file.
    """
    config = checkpoint.config()
    if config.get(WORDS, False):
        return None
    limits = config.get("pixel_limits")
    if not limits:
        raise MmrrError(
            f"{checkpoint.id}: expected preprocessor_config.json with the limits of images; download it again"
        )
    least, most = limits
    return least, most


def _check_dim(options: Prepare, width: int, checkpoint: Checkpoint) -> None:
    if not 0 <= options.dim <= width:
        raise MmrrError(f"dim {options.dim}: expected 0 to {width}, the dimensions of {checkpoint.id}")


def load(checkpoint: Checkpoint, options: Prepare, device: torch.device, dtype: torch.dtype) -> Embedder:
    """Load the checkpoint. Raises MmrrError if it does not fit the family or the options."""
    return Embedder(checkpoint, options, device, dtype)


class Embedder:
    """Embeds pages and queries with one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, prepare: Prepare, device: torch.device, dtype: torch.dtype) -> None:
        """Raises MmrrError if the checkpoint does not load, has no projection or has fewer dimensions than ``dim``."""
        self.prepare = prepare
        backbone = families.load("backbones", "qwen3_vl")
        config = checkpoint.config()
        projection = read_projection(checkpoint, config["text_config"]["hidden_size"])
        self.backbone = backbone.Backbone(
            checkpoint.path, checkpoint.adapter, device, dtype, needs_head=False, projection=projection
        )
        self.projection = projection.to(device, dtype)
        self.words, self.pool = bool(config.get(WORDS, False)), prepare.pool or config.get(POOL, 1)
        if type(self.pool) is not int or self.pool < 1:
            raise MmrrError(f"pool {self.pool}: expected a whole number, 1 or more")
        self._temperature = config.get(TEMPERATURE, 0.0)
        if type(self._temperature) not in (int, float) or not 0 <= self._temperature < math.inf:
            raise MmrrError(f"{TEMPERATURE} {self._temperature} in config.json: expected a number, 0 or more")
        _check_dim(prepare, self.projection.out_features, checkpoint)
        self.masked = bool(config.get(MASK, False))
        self.backbone.limits.pixels = pixel_limits(checkpoint, prepare)
        self.recipe = _RECIPES.get(str(config.get("model_type")), _RECIPE)
        chat = self.backbone.chat.with_template(_PAGE + self.recipe.page_end)
        (ids,) = chat.encode([("user", [Mark.IMAGE, prepare.instruction])])
        self.before, self.after = self.backbone.split_at_image(ids)
        self._queries = chat.with_template(_QUERY)

    def grid(self, width_px: int, height_px: int) -> Grid:
        """(rows, columns) of the saliency map of a page image of this size."""
        grid: Grid = self.backbone.grid(width_px, height_px, self.prepare.max_tokens or None)
        return grid

    @torch.inference_mode()
    def embed_pages(self, pages: Sequence[Image.Image]) -> list[Embedding]:
        """The vectors (V, dim) float16 and the saliency (T,) of each page, from one forward a page."""
        return [self.read(visual) for visual in self.backbone.vision(pages, self.prepare.max_tokens or None)]

    @torch.inference_mode()
    def read(self, visual: Visual) -> Embedding:
        """The embedding of a page, from the vision tower's output for it."""
        page = self.backbone.page_sequence(self.before, visual, self.after)
        saliency = Saliency(page.visual)
        states = self.backbone.read_all(page, saliency.observe)
        vectors = self.page_vectors(states, page.visual).cpu()
        n_visual = page.visual.stop - page.visual.start
        visual_vectors, owners = pool_with_owners(vectors[:n_visual], self.pool)
        pooled = torch.cat([visual_vectors, vectors[n_visual:]])
        return Embedding(pooled.half(), saliency.total.cpu(), visual.grid, owners)

    @torch.inference_mode()
    def embed_queries(self, texts: Sequence[str], options: Search) -> list[Tensor]:
        """The vectors (M, dim) float32 of each query. Raises MmrrError for a query of more than 8,192 tokens."""
        vectors = []
        for text in texts:
            ids, words = self.query(text, options)
            if len(ids) > MAX_LENGTH:
                raise MmrrError(f"found a query of {len(ids)} tokens; expected at most {MAX_LENGTH}: {text[:60]}...")
            states = self.backbone.read_all(self.backbone.text_sequence(ids))
            vectors.append(self.query_vectors(states[list(words)]).cpu())
        return vectors

    @torch.inference_mode()
    def embed_visual_query(self, query: VisualQuery, options: Search) -> Tensor:
        """The vectors (M, dim) float32 of an image: those of a page, each of length 1."""
        (visual,) = self.backbone.vision([query.image], self.prepare.max_tokens or None)
        return self.read(visual).vectors.float()

    def word_vectors(self, text: str, options: Search) -> list[QueryWord]:
        """The words of a query, each with the rows of its vectors in ``embed_queries``; without those of the prefix."""
        ids, vectors = self.query(text, options)
        prefix, text = (unicodedata.normalize("NFC", part) for part in (options.prefix, options.prefix + text.strip()))
        row_of = {position: row for row, position in enumerate(vectors)}
        found = []
        for word in self._queries.word_tokens(ids, "", text)[len(word_ends(prefix)) :]:
            rows = tuple(row_of[position] for position in word.places if position in row_of)
            found.append(QueryWord(word.text, rows))
        return found

    def temperature(self, options: Search) -> float:
        """What a product of two vectors is divided by to be a logit; 0: no soft IDF weights."""
        return float(self._temperature) if options.soft_idf else 0.0

    def query(self, text: str, search: Search) -> tuple[list[int], dict[int, str]]:
        """Token ids of a query, and the positions that have a vector, each with the word that ends there or ""."""
        prefix = search.prefix or self.recipe.query_prefix
        text = unicodedata.normalize("NFC", prefix + text.strip())
        (ids,) = self._queries.encode([("user", [text])])
        if not self.words:
            return list(ids), dict.fromkeys(range(len(ids)), "")
        ends = list(itertools.accumulate(self._queries.lengths(ids)))
        words = {bisect.bisect_right(ends, byte): word for word, byte in word_ends(text)}
        return list(ids), words | {len(ids) - 1: ""}

    def page_vectors(self, states: Tensor, visual: slice) -> Tensor:
        """Vectors (V, dim) of length 1 from a page's hidden states (n, D) after the final norm, visual tokens first."""
        others = [states[-1:]] if self.words else [states[: visual.start], states[visual.stop :]]
        vectors = nn.functional.normalize(self._projected(torch.cat([states[visual], *others])), dim=-1)
        if self.masked:
            vectors[visual.stop - visual.start :] = 0
        return vectors

    def query_vectors(self, states: Tensor) -> Tensor:
        """Vectors (M, dim) of the hidden states (M, D) of a query at the positions that have a vector."""
        projected = self._projected(states)
        return projected if self.words else nn.functional.normalize(projected, dim=-1)

    def _projected(self, states: Tensor) -> Tensor:
        projected: Tensor = self.projection(states.to(self.projection.weight.dtype)).float()
        return projected[..., : self.prepare.dim or None]


def pool(vectors: Tensor, factor: int) -> Tensor:
    """The mean, of length 1, of each cluster of the vectors (n, dim) of length 1; (m, dim) with m = n / factor at most.

    Ward's hierarchical clustering (token pooling, arXiv 2409.14683). n / factor is rounded up.
    """
    return pool_with_owners(vectors, factor)[0]


def pool_with_owners(vectors: Tensor, factor: int) -> tuple[Tensor, Tensor | None]:
    """As ``pool``, and the row of each vector's cluster, (n,) int32, or -1; None: nothing was pooled."""
    from scipy.cluster.hierarchy import fcluster, linkage  # 0.3 s to import, and a query needs neither

    n_clusters = -(-len(vectors) // factor)
    if n_clusters == len(vectors):
        return vectors, None
    merged = torch.from_numpy(fcluster(linkage(vectors.numpy(), "ward"), n_clusters, "maxclust")).long() - 1
    sums = vectors.new_zeros(n_clusters, vectors.shape[1]).index_add(0, merged, vectors)
    used = sums.abs().sum(1) > 0
    rows = torch.where(used, used.cumsum(0) - 1, -1).int()
    return nn.functional.normalize(sums[used], dim=-1), rows[merged]


def read_projection(checkpoint: Checkpoint, width: int) -> nn.Linear:
    """The linear layer after the language model, from the checkpoint or, if it has none, from its adapter.

    Raises MmrrError if there is none, or if it has another width.
    """
    found = _projection_tensors(checkpoint.path)
    if not found and checkpoint.adapter:
        found = _projection_tensors(checkpoint.adapter)
    weight = found.get("weight")
    if weight is None or weight.dim() != 2 or weight.shape[1] != width:
        shape = "none" if weight is None else f"one of {list(weight.shape)}"
        raise MmrrError(
            f"{checkpoint.path}: expected a linear layer of {width} inputs named {' or '.join(PROJECTIONS)}, found "
            f"{shape}{'' if found or not checkpoint.adapter else ' there or in ' + str(checkpoint.adapter)}"
        )
    linear = nn.Linear(width, len(weight), bias="bias" in found, dtype=torch.float32)
    try:
        linear.load_state_dict(found)
    except RuntimeError as error:
        raise MmrrError(
            f"{checkpoint.path}: found a linear layer whose bias does not fit its weight of {list(weight.shape)}; "
            "expected one bias for each output"
        ) from error
    return linear.requires_grad_(False)


def _projection_tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with loading(f"{file} does not load"), safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (a safetensors file is no dict)
                if kind := projection_of(name):
                    found[kind] = tensors.get_tensor(name)
    return found
