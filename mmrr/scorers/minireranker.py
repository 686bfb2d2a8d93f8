"""miniReranker (arXiv 2606.10759): point-wise yes/no reranking from keys and values that are cached for each page.

``prepare`` runs the first segment of the prompt (instruction, page) without a query and stores the keys and values of
the band's layers. ``score`` runs the second segment (query), which attends to them in the band only. Section numbers
are those of the paper's summary in docs/minireranker.md.
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmrr.config import DenseOrder
from mmrr.contracts import ModelConfig, PageGeometry, PageInput, QueryWord, ScorerSpec, VisualQuery
from mmrr.documents.page_grid import MIN_TOKENS, snap
from mmrr.errors import MmrrError
from mmrr.modeling import families, kv_codec
from mmrr.modeling.chat import Mark, Message, Part
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.modeling.plain_forward import score_prompt, score_states
from mmrr.types import Grid, KeptTokens, PageCache

SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."

#: The text in front of the query, with which the second segment begins.
BEFORE_QUERY = "<Query>: "

#: The first checkpoint comes with mmrr. The others were trained without band and exit; see docs/minireranker.md.
SPEC = ScorerSpec(
    checkpoints=(
        "reader-reranker",
        "Qwen/Qwen3-VL-Reranker-2B",
        "Qwen/Qwen3-VL-Reranker-8B",
        "Qwen/Qwen3-VL-2B-Instruct",
        "Qwen/Qwen3-VL-4B-Instruct",
        "Qwen/Qwen3-VL-8B-Instruct",
    ),
    model_types=("qwen3_vl",),
    accepts_pruning=True,
    listwise=False,
)
#: The paper's band for each depth of the language model: 2B has 28 layers, 4B and 8B have 36 (section 3).
PAPER_BANDS = {28: (8, 16), 36: (8, 21)}
#: Longest second segment (query), in tokens.
MAX_QUERY_TOKENS = 8192
#: Limits of a batch of pages. Query tokens are the rows of its matrix products, which are fast with 2,000 rows or more.
#: The attention mask has at most 2**26 cells, so that a long query means fewer pages in a batch.
_MAX_ROWS, _MAX_MASK_CELLS = 8192, 1 << 26


@dataclass(frozen=True, slots=True)
class Prepare:
    """Options that change the cache."""

    band: str = field(
        default="auto",
        metadata={
            "help": "Layers in which the query attends to the page, as FIRST:END, END excluded. "
            "auto: the paper's band for the depth of the model."
        },
    )
    instruction: str = field(
        default=INSTRUCTION, metadata={"help": "Task instruction in the prompt, in front of the page."}
    )
    max_tokens: int = field(
        default=0, metadata={"help": "Most visual tokens of a page before pruning. 0: the page image as rendered."}
    )
    codec: kv_codec.Codec = field(
        default="none",
        metadata={
            "help": "Number format of stored keys and values. none: the model's own; bf16: 16 bits; "
            "int8 and int4: quantised to 8 and 4 bits."
        },
    )


@dataclass(frozen=True, slots=True)
class Score:
    """Options that change scoring alone; the caches are reused."""

    exit_layer: int = field(
        default=0, metadata={"help": "Layers to run, counted from the first. 0: up to the end of the band."}
    )


def resolve(options: Prepare, config: ModelConfig) -> Prepare:
    """Replace ``auto`` by the band of this checkpoint, so that manifests store layer numbers.

    Raises MmrrError for a band, a codec or a number of tokens that does not fit the model.
    """
    kv_codec.check(options.codec)
    if options.max_tokens and options.max_tokens < MIN_TOKENS:
        raise MmrrError(f"max_tokens {options.max_tokens}: expected {MIN_TOKENS} or more, or 0 for pages as rendered")
    depth = int(config["text_config"]["num_hidden_layers"])
    if options.band == "auto":
        # For other depths the paper's fractions of the depth: 8/28 and 57.5 %.
        start, end = PAPER_BANDS.get(depth, (round(depth * 8 / 28), max(1, round(depth * 0.575))))
    else:
        start, end = _parse_band(options.band)
    if not 0 <= start < end <= depth:
        raise MmrrError(
            f"band {start}:{end} does not fit a model of {depth} layers; expected 0 <= FIRST < END <= {depth}"
        )
    return replace(options, band=f"{start}:{end}")


def page_input(options: Prepare) -> PageInput:
    """Pages are read as images."""
    return "image"


def prompt(options: Prepare) -> dict[str, str]:
    """The text of the prompt by role. It is hashed into every cache: a cache of another prompt must not be reused."""
    return {
        role: "".join(part if isinstance(part, str) else f"[{part.value}]" for part in parts)
        for role, parts in _vision_first(options.instruction, ["{query}"])
    }


def grid(options: Prepare, config: ModelConfig, width_px: int, height_px: int) -> Grid:
    """(rows, columns) of the visual tokens of a page image of this size."""
    cell_px, max_tokens = pruning_grid(options, config)
    width, height = snap(width_px, height_px, cell_px, max_tokens)
    return height // cell_px, width // cell_px


def pruning_grid(options: Prepare, config: ModelConfig) -> PageGeometry:
    """Side of a visual token in pixels, and the most tokens of a page."""
    vision = config["vision_config"]
    return PageGeometry(int(vision["patch_size"]) * int(vision["spatial_merge_size"]), options.max_tokens or None)


def cache_bytes(options: Prepare, config: ModelConfig, n_tokens: int, dtype_bytes: int) -> int:
    """Bytes of one page's cache with ``n_tokens`` visual tokens kept: keys and values of the band's layers."""
    start, end = _parse_band(options.band)
    text = config["text_config"]
    sizes = (end - start, int(text["num_key_value_heads"]), int(text["head_dim"]))
    return kv_codec.stored_bytes(n_tokens + 2, *sizes, dtype_bytes, options.codec)


def load(checkpoint: Checkpoint, options: Prepare, device: torch.device, dtype: torch.dtype) -> Scorer:
    """Load the checkpoint; ``options`` are resolved. Raises MmrrError if it or its tokenizer does not fit."""
    return Scorer(checkpoint, options, device, dtype)


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """A query's hidden states (M, D) in front of the band. They do not depend on the page."""

    states: Tensor
    own: Any = None  # the backbone's sequence of a query with an image; None: text alone


@dataclass(frozen=True, slots=True)
class _Coded:
    """A page's stored cache, decoded one layer at a time when the layer runs. It saves memory on a CPU."""

    stored: PageCache
    codec: str
    dtype: torch.dtype

    @property
    def n_tokens(self) -> int:
        return self.stored["k"].shape[2]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        one = {name: tensor[index] for name, tensor in self.stored.items() if name != "next_pos"}
        return kv_codec.decode(one, self.codec, self.dtype)


class Scorer:
    """Scores pages for queries with one checkpoint and one band."""

    def __init__(self, checkpoint: Checkpoint, prepare: Prepare, device: torch.device, dtype: torch.dtype) -> None:
        """``prepare`` is resolved. Raises MmrrError if the checkpoint or its tokenizer does not fit."""
        module = families.load("backbones", checkpoint.model_type)
        self.backbone = module.Backbone(checkpoint.path, checkpoint.adapter, device, dtype, needs_head=True)
        self.keyvalues = module.KeyValues
        self.prepare_options = prepare
        self.band = _parse_band(prepare.band)
        chat = self.backbone.chat
        try:
            self.answers = self.backbone.head_difference(chat.token_id("yes"), chat.token_id("no"))
        except ValueError as error:
            raise MmrrError(f"{checkpoint.id}: the tokenizer does not fit a yes/no reranker: {error}") from error
        first, second = self.segments("q")
        joined = self.backbone.chat.encode(_vision_first(prepare.instruction, ["q"], split=False))
        if [first + second] != joined:
            raise MmrrError(
                f"{checkpoint.id}: its tokenizer merges the end of the page's segment with the query, so that the "
                "page cannot be cached; use the tokenizer of Qwen3-VL"
            )
        #: Token ids of the first segment in front of the page and after it.
        self.before, self.after = self.backbone.split_at_image(first)

    def sharing(self, prepare: Prepare) -> Scorer:
        """A scorer with other options that shares this one's weights."""
        other = copy.copy(self)
        other.prepare_options, other.band = prepare, _parse_band(prepare.band)
        other.before, other.after = other.backbone.split_at_image(other.segments("q")[0])
        return other

    def narrowed(
        self, options: Prepare, caches: Sequence[PageCache], shared: PageCache
    ) -> tuple[Scorer, list[PageCache], PageCache]:
        """A scorer with a band inside this one and any codec, and the caches that it would make, bit for bit.

        A page's keys and values in a layer do not depend on the band. A kept share is no slice: the kept tokens attend
        to each other before they are stored. Raises MmrrError for a band outside this one, and if these caches are
        quantised.
        """
        start, end = _parse_band(options.band)
        first, last = self.band
        if not first <= start < end <= last or self.prepare_options.codec != "none":
            raise MmrrError(
                f"found caches of band {first}:{last} and codec {self.prepare_options.codec}; expected a band that "
                f"contains {options.band}, and codec none"
            )
        part = slice(start - first, end - first)
        found = [
            kv_codec.encode(cache["k"][part], cache["v"][part], options.codec) | {"next_pos": cache["next_pos"]}
            for cache in caches
        ]
        return self.sharing(options), found, {name: tensor[part] for name, tensor in shared.items()}

    def grid(self, width_px: int, height_px: int) -> Grid:
        """(rows, columns) of the visual tokens of a page image of this size."""
        grid: Grid = self.backbone.grid(width_px, height_px, self.prepare_options.max_tokens or None)
        return grid

    # Without a query

    def shared_state(self) -> PageCache:
        """The keys and values of the instruction in the band, which all pages share."""
        cache = self.backbone.prefix(self.backbone.text_sequence(self.before), self.band)
        return {"k": cache.keys.cpu(), "v": cache.values.cpu()}

    def prepare(self, pages: Sequence[Image.Image], kept: Sequence[KeptTokens | None]) -> list[PageCache]:
        """Each page's cache: ``k`` and ``v`` (L_band, H_kv, K+2, d) after RoPE, and ``next_pos``, the query's position.

        With a codec that quantises, ``k`` and ``v`` have the form of ``kv_codec.encode``. The two tokens after the
        page (the image's end and a newline) attend to the page; they are part of its cache. Raises MmrrError for kept
        tokens of another grid.
        """
        sequences = []
        for image, keep in zip(pages, kept, strict=True):
            (visual,) = self.backbone.vision([image], self.prepare_options.max_tokens or None)
            if keep and keep.grid != visual.grid:
                raise MmrrError(
                    f"found kept tokens on a grid of {keep.grid}; expected {visual.grid}, this scorer's grid; "
                    "run mmrr precache again, which prunes on the right grid"
                )
            indices = keep.indices if keep else None
            sequences.append(self.backbone.page_sequence(self.before, visual, self.after, indices))
        caches, own = [], len(self.before)
        for page, cache in zip(sequences, self.backbone.prefixes(sequences, self.band), strict=True):
            stored = kv_codec.encode(cache.keys[:, :, own:], cache.values[:, :, own:], self.prepare_options.codec)
            on_cpu = {name: tensor.cpu() for name, tensor in stored.items()}
            caches.append(on_cpu | {"next_pos": torch.tensor(page.next_pos)})
        return caches

    # With a query

    def encode_query(self, text: str) -> EncodedQuery:
        """The query's hidden states in front of the band. Raises MmrrError for a query of more than 8,192 tokens."""
        _, ids = self.segments(text)
        return EncodedQuery(self.backbone.suffix_alone(self.backbone.embed(ids), 0, self.band[0]))

    def encode_visual_query(self, query: VisualQuery) -> EncodedQuery:
        """As ``encode_query``, of an image with or without a text: the image is in front of the text.

        Raises MmrrError for a query of more than 8,192 tokens, those of the image included.
        """
        (visual,) = self.backbone.vision([query.image], self.prepare_options.max_tokens or None)
        own = self.backbone.pages_sequence(self.segments(query)[1], [visual], [None])
        _expect_short(len(own.embeddings), query.text)
        return EncodedQuery(self.backbone.suffix_alone(own.embeddings, 0, self.band[0], own), own)

    def score(
        self, query: str | EncodedQuery, caches: Sequence[PageCache], shared: PageCache, options: Score
    ) -> Tensor:
        """z = z_yes - z_no for each page, (N,) float32; sigmoid(z) is the probability of relevance.

        Raises MmrrError for an exit layer outside the allowed range and for a query of more than 8,192 tokens.
        """
        start, end = self.band
        leave = options.exit_layer or end
        if not start < leave <= self.backbone.n_layers:
            raise MmrrError(
                f"exit layer {leave} is outside {start + 1}..{self.backbone.n_layers}: the query must run through at "
                f"least the first layer of the band, where it attends to the page"
            )
        end = min(end, leave)
        encoded = self.encode_query(query) if isinstance(query, str) else query
        x, own = encoded.states, encoded.own
        instruction = self.keyvalues(shared["k"], shared["v"])
        scores = torch.empty(len(caches))
        for batch in self._batches(caches, len(x), shared["k"].shape[2]):
            pages = [self._page(caches[i]) for i in batch]
            next_pos = torch.stack([caches[i]["next_pos"] for i in batch])
            last_only = end == leave
            hidden = self.backbone.suffix_band(
                x, instruction, pages, next_pos, (start, end), last_only=last_only, own=own
            )
            hidden = self.backbone.suffix_alone(hidden, end, leave, own)
            scores[torch.tensor(batch)] = self.logit(self.backbone.final_norm(hidden[:, -1])).cpu()
        return scores

    def word_tokens(self, query: str) -> list[QueryWord]:
        """The words of a query, each with its tokens in the second segment."""
        text = unicodedata.normalize("NFC", query)
        return self.backbone.chat.word_tokens(self.segments(text)[1], BEFORE_QUERY, text)

    def attention(self, query: str, cache: PageCache, shared: PageCache, tokens: Sequence[int]) -> Tensor:
        """Attention (L_band, K) float32 of query tokens to the cached visual tokens, from the cache alone.

        The mean over the heads and over ``tokens`` of the second segment; -1 is its last token, which gives the score.
        """
        x = self.encode_query(query).states
        rows = [range(len(x))[token] for token in tokens]
        instruction, next_pos = self.keyvalues(shared["k"], shared["v"]), int(cache["next_pos"])
        weights = self.backbone.suffix_attention(x, instruction, self._page(cache), next_pos, self.band, rows)
        return weights[:, : -len(self.after)].cpu()

    def dense(self, query: str | VisualQuery, pages: Sequence[Image.Image], order: DenseOrder) -> Tensor:
        """Scores (N,) by the full forward of transformers, one pair at a time. It is the reference and the baseline.

        ``order``: ``vision-first``, as in the caches, or ``query-first``, the template of the published reranker.
        """
        instruction = self.prepare_options.instruction
        make = {"vision-first": _vision_first, "query-first": _query_first}[order]
        ids = [i for segment in self.backbone.chat.encode(make(instruction, _parts(query))) for i in segment]
        own = [] if isinstance(query, str) else [query.image]
        max_tokens = self.prepare_options.max_tokens or None
        hidden = [
            self.backbone.dense(ids, [*own, page] if order == "query-first" else [page, *own], max_tokens)
            for page in pages
        ]
        return self.logit(torch.stack(hidden)).cpu()

    def dense_batch(self, query: str, images: Sequence[Image.Image]) -> Tensor:
        """The same as ``dense`` with ``vision-first``, in one forward over pages that have the same size."""
        segments = self.backbone.chat.encode(_vision_first(self.prepare_options.instruction, [query]))
        ids = [i for segment in segments for i in segment]
        return self.logit(self.backbone.dense_batch(ids, images, self.prepare_options.max_tokens or None)).cpu()

    @torch.inference_mode()
    def score_uncached(
        self, query: str | VisualQuery, page: Image.Image, kept: KeptTokens | None, options: Score
    ) -> float:
        """The score of one page in one forward without a cache, over the same kept tokens, band and exit layer."""
        start, end = self.band
        leave = options.exit_layer or end
        band, indices, max_tokens = (
            (start, min(end, leave)),
            kept.indices if kept else None,
            self.prepare_options.max_tokens,
        )
        (visual,) = self.backbone.vision([page], max_tokens or None)
        first, second = self.segments(query)
        if isinstance(query, str):
            sequence = self.backbone.page_sequence(self.before, visual, self.after, indices)
            states = score_states(self.backbone, sequence, [second], band, leave)
        else:
            (own,) = self.backbone.vision([query.image], max_tokens)
            visuals = [visual if indices is None else visual.keep(indices), own]
            prompt = self.backbone.pages_sequence(first + second, visuals, [indices, None])
            n_first = len(first) - 1 + len(visuals[0].tokens)
            states = score_prompt(self.backbone, prompt, n_first, band, leave)
        return float(self.logit(self.backbone.final_norm(states)))

    def logit(self, hidden: Tensor) -> Tensor:
        """z (N,) of hidden states (N, D) after the final norm."""
        yes, no = hidden @ self.answers[0], hidden @ self.answers[1]
        return yes - no

    def segments(self, query: str | VisualQuery) -> tuple[list[int], list[int]]:
        """Token ids of the first segment (instruction, the page as one image token) and of the second (query)."""
        text = query if isinstance(query, str) else query.text
        first, second = self.backbone.chat.encode(_vision_first(self.prepare_options.instruction, _parts(query)))
        _expect_short(len(second), text)
        return first, second

    def _page(self, cache: PageCache) -> Any:
        """A page's keys and values by layer. On a CPU each layer is decoded when it runs, elsewhere all in one call."""
        codec, dtype = self.prepare_options.codec, self.backbone.dtype
        if self.backbone.device.type == "cpu":
            return _Coded(cache, codec, dtype)
        return self.keyvalues(*kv_codec.decode(cache, codec, dtype))

    def _batches(self, caches: Sequence[PageCache], n_query: int, n_instruction: int) -> list[list[int]]:
        """Batches of candidates of similar length. The mask of a batch stays below its limit."""
        lengths = [cache["k"].shape[2] for cache in caches]
        order = sorted(range(len(caches)), key=lengths.__getitem__)
        batches: list[list[int]] = []
        for i in order:
            # In ascending order of length, so that page i is the longest of its batch.
            cells = n_query * (n_instruction + lengths[i] + n_query)
            if not batches or len(batches[-1]) >= max(1, min(_MAX_ROWS // n_query, _MAX_MASK_CELLS // cells)):
                batches.append([])
            batches[-1].append(i)
        return batches


def _expect_short(n_tokens: int, text: str) -> None:
    if n_tokens > MAX_QUERY_TOKENS:
        raise MmrrError(f"found a query of {n_tokens} tokens; expected at most {MAX_QUERY_TOKENS}: {text[:60]}...")


def _parts(query: str | VisualQuery) -> list[Part]:
    """A query in the prompt: its text; or its image and, behind it, its text, as the published reranker orders them."""
    if isinstance(query, str):
        return [query]
    return [Mark.IMAGE, query.text] if query.text else [Mark.IMAGE]


def _vision_first(instruction: str, query: Sequence[Part], *, split: bool = True) -> list[Message]:
    """Section 2: the page, whose states are reused, is in front. The first segment ends with the newline after it."""
    boundary = [Mark.SPLIT] if split else []
    user: list[Part] = [f"<Instruct>: {instruction}\n<Document>: ", Mark.IMAGE, "\n", *boundary, BEFORE_QUERY, *query]
    return [("system", [SYSTEM]), ("user", user)]


def _query_first(instruction: str, query: Sequence[Part]) -> list[Message]:
    """The template of the published reranker, which joins its parts without separators."""
    user: list[Part] = [f"<Instruct>: {instruction}<Query>:", *query, "\n<Document>:", Mark.IMAGE]
    return [("system", [SYSTEM]), ("user", user)]


def _parse_band(band: str) -> tuple[int, int]:
    try:
        start, end = (int(part) for part in band.split(":"))
    except ValueError:
        raise MmrrError(f"band '{band}': expected FIRST:END, two layer numbers such as 8:16") from None
    return start, end
