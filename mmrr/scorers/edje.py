"""EDJE (arXiv 2510.06820): a page as a few compressed vision tokens, scored by a small joint encoder.

A frozen vision encoder reads the page and an adapter compresses its tokens. ``prepare`` stores the adapter's output:
49,152 bytes a page with the published sizes. ``score`` runs BERT over the query's word pieces and the stored tokens.
See docs/edje.md.
"""

from __future__ import annotations

import html
import math
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch
from PIL import Image
from torch import Tensor

from mmrr.contracts import ModelConfig, PageGeometry, PageInput, ScorerSpec
from mmrr.documents.page_grid import CELL_PX, snap
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.types import Grid, KeptTokens, PageCache

if TYPE_CHECKING:
    from mmrr.backbones.edje import Adapter, WordPieces

#: The first checkpoint comes with mmrr. The config.json of the published one is unknown: tensors identify a checkpoint.
SPEC = ScorerSpec(
    checkpoints=("small-edje", "shahafw/edje-vl-image-retrieval-reranker"),
    model_types=("*",),
    accepts_pruning=False,
    listwise=False,
)
#: Accepted values of model_type in the config.json of the vision checkpoint: SigLIP or SigLIP2 of fixed resolution, or
#: Qwen3-VL, which reads pages as rendered.
VISION_TYPES = ("siglip", "siglip_vision_model", "qwen3_vl")
#: The vision encoder of the published checkpoint, which does not name one.
VISION = "google/siglip2-large-patch16-384"
#: Most word pieces of a query: the paper's code has 64 positions for [CLS], the text and two [SEP].
MAX_PIECES = 61
_SPECIALS = 3
#: Upper bound of a stored value; the largest float16 number is 65,504.
_MAX_VALUE = 6e4


@dataclass(frozen=True, slots=True)
class Prepare:
    """Options that change the cache. ``resolve`` replaces 0 and empty values, except an empty ``language``."""

    tiles: int = field(
        default=1,
        metadata={"help": "Equal parts into which a page is divided; each is encoded separately. 1: the whole page."},
    )
    tokens: int = field(
        default=0,
        metadata={
            "help": "Tokens of one tile, or the most tokens where they depend on the tile's size. "
            "0: the checkpoint's number, the only one it accepts."
        },
    )
    vision: str = field(
        default="",
        metadata={
            "help": 'The frozen vision encoder: a Hub id or a folder. "": the one that the checkpoint names, else '
            "google/siglip2-large-patch16-384."
        },
    )
    vision_revision: str = field(
        default="", metadata={"help": 'Hub revision or content hash of the vision encoder. "": the current one.'}
    )
    language: str = field(
        default="",
        metadata={"help": 'The tokenizer of the query: a Hub id or a folder. "": the checkpoint\'s own.'},
    )
    language_revision: str = field(
        default="", metadata={"help": 'Hub revision or content hash of the tokenizer. "": the current one.'}
    )


@dataclass(frozen=True, slots=True)
class Score:
    """Options that change scoring alone; the caches are reused."""

    batch: int = field(default=64, metadata={"help": "Pages in one forward. It changes speed and memory only."})


def resolve(options: Prepare, config: ModelConfig) -> Prepare:
    """Find the vision encoder and the tokenizer, and fill in their revisions and the tokens of a tile.

    Raises MmrrError if the checkpoint's tensors are not those of EDJE, if the vision encoder has another width, or if
    the tiles exceed the positions of the joint encoder.
    """
    backbone = families.load("backbones", "edje")
    made = backbone.layout(config["tensors"])
    options = replace(options, vision=options.vision or str(config.get("vision") or VISION))
    vision = _vision_checkpoint(options)
    vision_tokens, vision_width = backbone.vision_tokens(vision.config())
    if vision_width != made.vision_width:
        raise MmrrError(
            f"found a vision encoder of width {vision_width}, {vision.id}; expected width {made.vision_width}, that of "
            "the checkpoint's adapter: name the encoder it was trained with, -o vision=..."
        )
    tokens = made.queries or vision_tokens or max(1, made.positions - _SPECIALS - MAX_PIECES)
    if options.tokens not in (0, tokens):
        raise MmrrError(f"tokens {options.tokens}: expected {tokens}, the tokens of a tile of this checkpoint, or 0")
    most = max(0, (made.positions - _SPECIALS - MAX_PIECES) // tokens)
    if made.tiles:
        most = min(most, made.tiles)
    if not 1 <= options.tiles <= most:
        raise MmrrError(
            f"tiles {options.tiles}: expected 1 to {most}, because {_SPECIALS} + {MAX_PIECES} + {tokens} a tile must "
            f"fit {made.positions} positions"
            + (f", and the tile embedding has {made.tiles} rows" if made.tiles else "")
        )
    resolved = replace(options, tokens=tokens, vision=vision.id, vision_revision=vision.revision)
    if not options.language:
        return resolved
    language = Checkpoint.companion(options.language, options.language_revision)
    return replace(resolved, language=language.id, language_revision=language.revision)


def _vision_checkpoint(options: Prepare) -> Checkpoint:
    found = Checkpoint.companion(options.vision, options.vision_revision, VISION_TYPES)
    if found.adapter:
        raise MmrrError(f"{found.id} is a LoRA adapter; expected a complete checkpoint of a vision encoder")
    return found


def page_input(options: Prepare) -> PageInput:
    """Pages are read as images."""
    return "image"


def prompt(options: Prepare) -> dict[str, str]:
    """{}: a page is encoded without a prompt."""
    return {}


def grid(options: Prepare, config: ModelConfig, width_px: int, height_px: int) -> Grid:
    """(rows, columns) for the size estimate. Most checkpoints make caches of one size, whatever the page's size."""
    cell_px, max_tokens = pruning_grid(options, config)
    width, height = snap(width_px, height_px, cell_px, max_tokens)
    return height // cell_px, width // cell_px


def pruning_grid(options: Prepare, config: ModelConfig) -> PageGeometry:
    """Side of a visual token in pixels and the most tokens. Pages are not pruned."""
    return PageGeometry(CELL_PX, options.tokens) if _grows(options, config) else PageGeometry(16, None)


def cache_bytes(options: Prepare, config: ModelConfig, n_tokens: int, dtype_bytes: int) -> int:
    """Bytes of one page's cache, which is float16 in every number format.

    The number of tokens is fixed, except for a checkpoint without compression and a vision encoder that reads any size.
    """
    (shape,) = (shape for name, shape in config["tensors"].items() if name.endswith(".token_type_embeddings.weight"))
    tokens = min(n_tokens, options.tokens) if _grows(options, config) else options.tiles * options.tokens
    return 2 * tokens * int(shape[1])


def _grows(options: Prepare, config: ModelConfig) -> bool:
    """Whether a larger page has a larger cache: no compression, and a vision encoder that reads any size."""
    local = any(name.endswith("vision_projection.0.weight") for name in config["tensors"])
    return local and _reads_any_size(options.vision, options.vision_revision)


@lru_cache(maxsize=8)  # called for every page of the size estimate
def _reads_any_size(vision: str, revision: str) -> bool:
    found = Checkpoint.companion(vision, revision, VISION_TYPES)
    return bool(families.load("backbones", "edje").reads_any_size(found.config()))


def load(checkpoint: Checkpoint, options: Prepare, device: torch.device, dtype: torch.dtype) -> Scorer:
    """Load the checkpoint; ``options`` are resolved. Raises MmrrError if it or its tokenizer does not fit."""
    return Scorer(checkpoint, options, device, dtype)


class VisionEncoder(Protocol):
    """A frozen vision encoder of ``mmrr.backbones.edje``."""

    heads: int

    def tokens(self, images: Sequence[Image.Image]) -> Tensor | list[Tensor]:
        """The tokens (n, D) of each image."""
        ...


class Scorer:
    """Scores pages for queries with one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, prepare: Prepare, device: torch.device, dtype: torch.dtype) -> None:
        """``prepare`` is resolved. Raises MmrrError if the checkpoint or its tokenizer does not fit."""
        if checkpoint.adapter:
            raise MmrrError(f"{checkpoint.id} is a LoRA adapter; expected a complete checkpoint of EDJE")
        config = checkpoint.config()
        self._module = families.load("backbones", "edje")
        self.prepare_options, self.device, self.dtype = prepare, device, dtype
        self.layout = self._module.layout(config["tensors"])
        self._weights = self._module.load(checkpoint.path, self.layout)
        language = checkpoint.path
        if prepare.language:
            language = Checkpoint.companion(prepare.language, prepare.language_revision).path
        self.pieces = self._module.WordPieces(language, self.layout.words)
        self.config, heads = config, self._module.joint_heads(config)
        self.encoder = self._module.JointEncoder(self._weights, self.layout, heads, device, dtype)

    @cached_property
    def vision(self) -> VisionEncoder:
        """The frozen vision encoder, loaded with the first page. Scoring does not need it."""
        found = _vision_checkpoint(self.prepare_options)
        encoder: VisionEncoder
        if self._module.reads_any_size(found.config()):
            most = None if self.layout.queries else self.prepare_options.tokens
            encoder = self._module.PageVision(found.path, found.config(), most, self.device, self.dtype)
        else:
            encoder = self._module.Vision(found.path, found.config(), self.device, self.dtype)
        return encoder

    @cached_property
    def adapter(self) -> Adapter:
        """The adapter. Its number of heads is in config.json; without an entry it is that of the vision encoder."""
        heads = self._module.adapter_heads(self.config, self.vision.heads)
        adapter: Adapter = self._module.Adapter(self._weights, self.layout, heads, self.device, self.dtype)
        return adapter

    # Without a query

    def shared_state(self) -> PageCache:
        """The number of rows of each tile, which all pages share."""
        return {"tokens": torch.tensor(self.prepare_options.tokens)}

    def prepare(self, pages: Sequence[Image.Image], kept: Sequence[KeptTokens | None]) -> list[PageCache]:
        """Each page's cache: ``z`` (tiles * m, d) float16, tile after tile.

        Raises MmrrError for values outside the range of float16.
        """
        caches = []
        for image, _ in zip(pages, kept, strict=True):
            z = self.compress(image)
            if not torch.isfinite(z).all() or z.abs().max() >= _MAX_VALUE:
                raise MmrrError(
                    f"the adapter gave values of {_MAX_VALUE:g} or more, too large for float16; "
                    "try --dtype float32, or check that the vision encoder is the one of this checkpoint"
                )
            caches.append({"z": z.half().cpu()})
        return caches

    @torch.inference_mode()
    def compress(self, image: Image.Image) -> Tensor:
        """Z (tiles * m, d) float32 of a page, tile after tile, with the learned tile embedding if there is one."""
        tiles = self.vision.tokens(cut(image, self.prepare_options.tiles))
        z = torch.stack([self.adapter(tokens[None])[0].float() for tokens in tiles])
        if self.layout.tiles:
            z = z + self._weights["tile_embedding.weight"][: len(z), None].to(z)
        return z.flatten(0, 1)

    # With a query

    def encode_query(self, text: str) -> str:
        """The query itself: the joint encoder reads query and page together from the first layer on."""
        return text

    def score(self, query: str, caches: Sequence[PageCache], shared: PageCache, options: Score) -> Tensor:
        """The logit of the classification head for each page, (N,) float32 (paper, joint encoder).

        A query of more than 61 word pieces is truncated. Raises MmrrError for a batch below 1.
        """
        if options.batch < 1:
            raise MmrrError(f"batch {options.batch}: expected 1 or more")
        by_length: dict[int, list[int]] = {}  # usually one length
        for place, cache in enumerate(caches):
            by_length.setdefault(len(cache["z"]), []).append(place)
        scores = torch.zeros(len(caches))
        for places in by_length.values():
            for start in range(0, len(places), options.batch):
                batch = places[start : start + options.batch]
                z = torch.stack([caches[place]["z"].to(self.device) for place in batch])
                scores[batch] = self._logits(query, z)
        return scores

    def score_uncached(self, query: str, page: Image.Image, kept: KeptTokens | None, options: Score) -> float:
        """The score of one page without a cache, so that its vectors are not rounded to float16."""
        return float(self._logits(query, self.compress(page)[None]))

    def text_ids(self, query: str) -> list[int]:
        """Token ids of ``[CLS] text [SEP]``, the text in canonical form and truncated to 61 pieces."""
        return text_ids(self.pieces, query, punctuation=bool(self.config.get("punctuation")))

    @torch.inference_mode()
    def _logits(self, query: str, z: Tensor) -> Tensor:
        logits: Tensor = self.encoder.score(self.text_ids(query), self.pieces.sep, z)
        return logits.cpu()


def text_ids(pieces: WordPieces, query: str, *, punctuation: bool) -> list[int]:
    """Token ids of ``[CLS] text [SEP]``, the text in canonical form and truncated to 61 pieces."""
    return [pieces.cls, *pieces.encode(canonical(query, punctuation=punctuation))[:MAX_PIECES], pieces.sep]


def cut(image: Image.Image, tiles: int) -> list[Image.Image]:
    """A page in ``tiles`` equal parts, row by row, on the grid whose cells are nearest to squares.

    If two grids are equally near, the one with more rows is used.
    """
    width, height = image.size
    rows = min(
        (rows for rows in range(tiles, 0, -1) if tiles % rows == 0),
        key=lambda rows: round(abs(math.log(width * rows * rows / (height * tiles))), 9),
    )
    columns = tiles // rows

    def edges(n: int, length: int) -> list[int]:
        return [round(i * length / n) for i in range(n + 1)]

    return [
        image.crop((left, top, right, bottom))
        for top, bottom in pairwise(edges(rows, height))
        for left, right in pairwise(edges(columns, width))
    ]


def _width_forms() -> dict[int, str]:
    """Full-width and half-width letters and ligatures, each with its normal form."""
    code_points = [*range(0xFF01, 0xFFEF), *range(0xFB00, 0xFB07), *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4)]
    return {point: unicodedata.normalize("NFKC", chr(point)) for point in [*code_points, 0x132, 0x133, 0x149]}


_CONTROL = [*range(0x9), 0xB, *range(0xE, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
_CLEAN: dict[int, str | None] = {**_width_forms(), **dict.fromkeys(_CONTROL)}
#: Curly quotation marks are deleted like the ASCII ones and all other ASCII punctuation.
_DROPPED = string.punctuation.replace("_", "") + "\u02bc\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f"
_CANONICAL: dict[int, str | None] = {ord("_"): " ", **dict.fromkeys(map(ord, _DROPPED))}


def canonical(text: str, *, punctuation: bool = False) -> str:
    """Text as EDJE was trained on it: HTML entities decoded, no ASCII punctuation, lower case, single spaces.

    ``punctuation``: keep punctuation and underscores, for a checkpoint whose config.json has ``punctuation``.

    The published pipeline also runs ftfy. Its normalisation of characters (width, ligatures, quotation marks, control
    characters, NFC) is implemented here; its repair of wrongly decoded text is not.
    """
    text = html.unescape(html.unescape(text)).translate(_CLEAN)
    text = unicodedata.normalize("NFC", text)
    if not punctuation:
        text = text.translate(_CANONICAL)
    return " ".join(text.lower().split())
