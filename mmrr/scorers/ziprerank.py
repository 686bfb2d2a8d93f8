"""ZipRerank (arXiv 2605.11864): list-wise reranking of up to 20 page images in one prompt, from one token's logits.

``prepare`` stores the output of the vision tower for each page. The query precedes the pages in the prompt, so that
states of the language model cannot be stored. ``score`` runs the language model over windows of candidates, from the
last rank to the first. docs/ziprerank.md lists the differences between the paper, its public code and this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Literal, TypedDict, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmrr.contracts import ModelConfig, PageGeometry, PageInput, ScorerSpec
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.chat import Mark, Message, Part
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.types import Grid, KeptTokens, PageCache

#: The first checkpoint comes with mmrr.
SPEC = ScorerSpec(
    checkpoints=("small-ziprerank", "mtri-admin/ZipRerank"),
    model_types=("qwen3_vl",),
    accepts_pruning=False,
    listwise=True,
)
#: The names of pages in the prompt. The model was trained with these 20 letters only.
LETTERS = ascii_uppercase[:20]
Interaction = Literal["", "input", "hidden"]


class Taught(TypedDict):
    """The settings that a checkpoint was trained with; see the options of the same names."""

    max_side: int
    window: int
    keep: float
    interaction: Interaction


#: The settings of the published checkpoint. Another checkpoint may have its own in config.json under ``ziprerank``.
TAUGHT: Taught = {"max_side": 1024, "window": 20, "keep": 1.0, "interaction": "input"}
#: Longest query, in tokens.
MAX_QUERY_TOKENS = 8192
#: Fewest and most pixels of an image for a checkpoint without preprocessor_config.json: those of the published file.
PIXEL_LIMITS = (65_536, 16_777_216)
INTERACTIONS = ("input", "hidden")
HEADS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Prepare:
    """Options that change the cache."""

    max_side: int = field(
        default=-1,
        metadata={
            "help": "Longest side of a page image in pixels; a larger image is scaled down. 0: no limit; "
            "-1: as the checkpoint was trained (config.json, else 1024)."
        },
    )


@dataclass(frozen=True, slots=True)
class Score:
    """Options that change scoring alone; the caches are reused. Raises MmrrError for a value outside its range."""

    window: int = field(
        default=0,
        metadata={"help": "Pages in one prompt, 2 to 20. 0: as the checkpoint was trained (config.json, else 20)."},
    )
    stride: int = field(
        default=0, metadata={"help": "Ranks by which the window moves from one prompt to the next. 0: half the window."}
    )
    keep: float = field(
        default=0.0,
        metadata={
            "help": "Share of a page's visual tokens that enter the language model, above 0 and at most 1. "
            "0: as the checkpoint was trained (config.json, else 1)."
        },
    )
    interaction: Interaction = field(
        default="",
        metadata={
            "help": "What visual tokens are compared with to choose those that are kept. input: the prompt's input "
            'embeddings; hidden: the query\'s last hidden states; "": as the checkpoint was trained.'
        },
    )
    head: Literal["float32", "bfloat16"] = field(
        default="float32",
        metadata={"help": "Number format of the logits. bfloat16: as in the published code, with equal logits."},
    )

    def __post_init__(self) -> None:
        if self.window and not 2 <= self.window <= len(LETTERS):
            raise MmrrError(
                f"window {self.window}: expected 2 to {len(LETTERS)} pages; the model was trained with the letters "
                f"{LETTERS[0]} to {LETTERS[-1]} only"
            )
        most = (self.window or len(LETTERS)) - 1
        if not 0 <= self.stride <= most:
            raise MmrrError(
                f"stride {self.stride}: expected 1 to {most}, so that windows overlap, or 0 for half the window"
            )
        if not 0 <= self.keep <= 1:
            raise MmrrError(f"keep {self.keep}: expected a share of a page's tokens, 0 to 1")
        if self.interaction and self.interaction not in INTERACTIONS:
            raise MmrrError(f"interaction '{self.interaction}': expected {' or '.join(INTERACTIONS)}")
        if self.head not in HEADS:
            raise MmrrError(f"head '{self.head}': expected {' or '.join(HEADS)}")


def resolve(options: Prepare, config: ModelConfig) -> Prepare:
    """Replace -1 by the limit that the checkpoint was trained with.

    Raises MmrrError for a limit below the side of one visual token.
    """
    cell_px = _cell_px(config)
    if options.max_side == -1:
        options = Prepare(taught(config)["max_side"])
    if options.max_side and options.max_side < cell_px:
        raise MmrrError(f"max_side {options.max_side}: expected {cell_px} or more pixels, or 0 for no limit")
    return options


def taught(config: ModelConfig) -> Taught:
    """The settings of TAUGHT for one checkpoint. Raises MmrrError for a wrong type or a value outside its range."""
    own = config.get("ziprerank", {})
    found = {**TAUGHT, **own} if isinstance(own, dict) else {}
    if {name: type(value) for name, value in found.items()} != {name: type(value) for name, value in TAUGHT.items()}:
        raise MmrrError(f"config.json: ziprerank = {own!r:.200}; expected {', '.join(TAUGHT)} as in {TAUGHT}")
    settings = cast("Taught", found)
    Score(window=settings["window"], keep=settings["keep"], interaction=settings["interaction"])
    return settings


def page_input(options: Prepare) -> PageInput:
    """Pages are read as images."""
    return "image"


def prompt(options: Prepare) -> dict[str, str]:
    """The text of the prompt for two pages by role. It is hashed into every cache and run."""
    ((role, parts),) = _messages("{query}", 2)
    return {role: "".join(part if isinstance(part, str) else f"[{part.value}]" for part in parts), "assistant": "["}


def pruning_grid(options: Prepare, config: ModelConfig) -> PageGeometry:
    """Side of a visual token in pixels, and an upper bound of a page's tokens; ``grid`` gives the exact number."""
    cell_px = _cell_px(config)
    least, most = (limit // cell_px**2 for limit in _limits(config))
    return PageGeometry(cell_px, max(least, round(options.max_side / cell_px) ** 2) if options.max_side else most)


def grid(options: Prepare, config: ModelConfig, width_px: int, height_px: int) -> Grid:
    """(rows, columns) of the visual tokens of a page image of this size, within the limits of the processor file."""
    return cells(*capped(width_px, height_px, options.max_side), _cell_px(config), _limits(config))


def _limits(config: ModelConfig) -> tuple[int, int]:
    least, most = config.get("pixel_limits") or PIXEL_LIMITS
    return least, most


def cache_bytes(options: Prepare, config: ModelConfig, n_tokens: int, dtype_bytes: int) -> int:
    """Bytes of one page's cache: ``n_tokens`` visual tokens, their DeepStack features, and the grid."""
    vision = config["vision_config"]
    levels = 1 + len(vision["deepstack_visual_indexes"])
    return n_tokens * levels * int(vision["out_hidden_size"]) * dtype_bytes + 2 * 8


def load(checkpoint: Checkpoint, options: Prepare, device: torch.device, dtype: torch.dtype) -> Scorer:
    """Load the checkpoint; ``options`` are resolved. Raises MmrrError if it or its tokenizer does not fit."""
    return Scorer(checkpoint, options, device, dtype)


class Scorer:
    """Ranks pages for queries with one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, prepare: Prepare, device: torch.device, dtype: torch.dtype) -> None:
        """``prepare`` is resolved. Raises MmrrError if the checkpoint, its tokenizer or its template does not fit."""
        module = families.load("backbones", checkpoint.model_type)
        self.backbone = module.Backbone(checkpoint.path, checkpoint.adapter, device, dtype, needs_head=True)
        self.make_visual = module.Visual
        self.prepare_options, self.taught = prepare, taught(checkpoint.config())
        chat = self.backbone.chat
        try:
            self.bracket: int = chat.token_id("[")
            self.letters: list[int] = [chat.token_id(letter) for letter in LETTERS]
        except ValueError as error:
            raise MmrrError(f"{checkpoint.id}: the tokenizer does not fit a list-wise reranker: {error}") from error
        self.answers = self.backbone.head_rows(self.letters)
        config = self.backbone.config
        #: The control tokens around and in place of an image or a video.
        self.marks = {
            config.vision_start_token_id,
            config.image_token_id,
            config.vision_end_token_id,
            config.video_token_id,
        }
        segments = chat.encode(_messages("q", 3))
        if [[i for segment in segments for i in segment]] != chat.encode(_messages("q", 3, split=False)):
            raise MmrrError(
                f"{checkpoint.id}: its tokenizer merges the query with the text around it; "
                "use the tokenizer of Qwen3-VL"
            )
        image = [config.vision_start_token_id, config.image_token_id, config.vision_end_token_id]
        places = [at for at, i in enumerate(segments[-1]) if i in self.marks]
        if [segments[-1][at] for at in places] != 3 * image or places != list(range(places[0], places[0] + 9)):
            raise MmrrError(
                f"{checkpoint.id}: its chat template does not place the images next to each other; "
                "use the template of Qwen3-VL"
            )
        #: Token ids of the white space before and after the query, where the query's own tokens do not include it.
        self.space, self.blank = (chat.encode([("user", [Mark.SPLIT, text, Mark.SPLIT])])[1] for text in (" ", "\n\n"))

    def grid(self, width_px: int, height_px: int) -> Grid:
        """(rows, columns) of the visual tokens of a page image of this size."""
        size = capped(width_px, height_px, self.prepare_options.max_side)
        return cells(*size, self.backbone.cell_px, self.backbone.pixel_limits)

    # Without a query

    def shared_state(self) -> PageCache:
        """The token ids (20,) of the letters. States of the prompt depend on the query and are not stored."""
        return {"letters": torch.tensor(self.letters)}

    def prepare(self, pages: Sequence[Image.Image], kept: Sequence[KeptTokens | None]) -> list[PageCache]:
        """Each page's cache: ``tokens`` (T, D) for the language model's input, ``deepstack`` (S, T, D), ``grid`` (2,).

        Raises MmrrError for a pruned page: this family prunes with the query, when it scores.
        """
        if any(keep is not None for keep in kept):
            raise MmrrError("found pruned pages; ziprerank prunes with the query: run mmrr precache without --keep")
        caches = []
        for image in pages:
            image = image.convert("RGB")
            size = capped(*image.size, self.prepare_options.max_side)
            if image.size != size:
                image = image.resize(size, Image.Resampling.LANCZOS)
            visual = self.backbone.vision_as_processed(image)
            caches.append(
                {
                    "tokens": visual.tokens.cpu(),
                    "deepstack": visual.deepstack.cpu(),
                    "grid": torch.tensor(visual.grid, dtype=torch.long),
                }
            )
        return caches

    # With a query

    def encode_query(self, text: str) -> str:
        """The query itself. The tokens in front of it depend on the number of pages, so its states cannot be reused."""
        return text

    def score(self, query: str, caches: Sequence[PageCache], shared: PageCache, options: Score) -> Tensor:
        """N - rank for each of N candidates, rank counted from 0, (N,) float32.

        ``caches`` are all candidates in the order of the first stage, which decides between equal logits. Each cache
        is read when its window is scored and released afterwards. The scores are ranks because logits of different
        windows cannot be compared.
        """
        order = list(range(len(caches)))
        window = options.window or self.taught["window"]
        for start, end in windows(len(caches), window, min(options.stride or window // 2, window - 1)):
            items = order[start:end]
            logits = self.logits(query, caches, items, options).tolist()
            best = sorted(range(len(items)), key=lambda place: -logits[place])  # stable: ties keep their order
            order[start:end] = [items[place] for place in best]
        scores = torch.empty(len(caches))
        scores[order] = torch.arange(len(caches), 0, -1, dtype=torch.float32)
        return scores

    @torch.inference_mode()
    def logits(self, query: str, caches: Sequence[PageCache], items: Sequence[int], options: Score) -> Tensor:
        """The logits (n,) float32 of the letters, in one forward over the pages ``items`` of ``caches``, in that order.

        They predict the token after the opening bracket of the answer. Other rows of the LM head are not computed.
        Raises MmrrError for more than 20 pages, for a query of more than 8,192 tokens, and for a logit that is not
        finite.
        """
        before, question, after = self.segments(query, len(items))
        ids = [*before, *question, *after]
        keep, interaction = options.keep or self.taught["keep"], options.interaction or self.taught["interaction"]
        words = self.interacting(before, question, after, interaction) if keep < 1 else None
        visuals, kept = [], []
        for item in items:
            cache = caches[item]
            tokens, deepstack = (cache[name].to(self.backbone.device) for name in ("tokens", "deepstack"))
            height, width = cache["grid"].tolist()
            visual = self.make_visual(tokens, deepstack, (height, width))
            chosen = None if words is None else choose(nearness(words, tokens), keep)
            visuals.append(visual if chosen is None else visual.keep(chosen))
            kept.append(chosen)
        hidden = self.backbone.read(self.backbone.pages_sequence(ids, visuals, kept))
        logits = self.answers[: len(items)] @ hidden.float()
        if not torch.isfinite(logits).all():
            raise MmrrError("the model gave logits that are not finite; try --dtype float32")
        return (logits.bfloat16().float() if options.head == "bfloat16" else logits).cpu()

    def segments(self, query: str, n: int) -> tuple[list[int], list[int], list[int]]:
        """Token ids of the prompt in three parts: before the query, the query with the white space around it, the rest.

        Each page is one image token. The last id is the bracket that opens the answer.
        """
        before, question, after = self.backbone.chat.encode(_messages(query, n))
        if len(question) > MAX_QUERY_TOKENS:
            raise MmrrError(
                f"found a query of {len(question)} tokens; expected at most {MAX_QUERY_TOKENS}: {query[:60]}..."
            )
        return before, question, [*after, self.bracket]

    def interacting(
        self, before: Sequence[int], question: Sequence[int], after: Sequence[int], interaction: str
    ) -> Tensor:
        """The vectors (t, D) float32 that page tokens are compared with.

        ``input``, as in the public code: input embeddings of all text before the first image, the instructions
        included. ``hidden``, as in the paper: the language model's hidden states of the query's tokens after the final
        norm.
        """
        if interaction == "input":
            first = next(at for at, i in enumerate(after) if i in self.marks)
            # Repeated tokens do not change a maximum.
            distinct = sorted({*before, *question, *after[:first]} - self.marks)
            return self.backbone.embed(distinct).float()
        own = self.own(question)
        # Attention is causal: tokens after the query do not change its states.
        prefix = self.backbone.embed([*before, *question[: own.stop]])
        states = self.backbone.suffix_alone(prefix, 0, self.backbone.n_layers)
        return self.backbone.final_norm(states[len(before) + own.start :])

    def own(self, question: Sequence[int]) -> slice:
        """Where the query's tokens are in its segment: all but the white space, unless there is nothing else."""
        start, end = 0, len(question)
        if list(question[: len(self.space)]) == self.space:
            start = len(self.space)
        if list(question[-len(self.blank) :]) == self.blank:
            end -= len(self.blank)
        return slice(start, end) if start < end else slice(0, len(question))


def windows(n: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """[start, end) of the windows over n candidates, from the last rank to the first. The last window starts at 0."""
    end = n
    while end > 0:
        start = max(0, end - window)
        yield start, end
        end = end - stride if start else 0


def nearness(words: Tensor, tokens: Tensor) -> Tensor:
    """For each of a page's tokens (T, D) the cosine with the nearest of ``words`` (t, D), (T,) (paper, QI-EI)."""
    return (F.normalize(words, dim=-1) @ F.normalize(tokens.float(), dim=-1).T).amax(dim=0)


def choose(near: Tensor, share: float) -> Tensor:
    """Indices (K,), ascending, of the K = max(1, round(share * T)) nearest tokens. Ties go to the lower index."""
    nearest = near.sort(descending=True, stable=True).indices
    return nearest[: max(1, round(share * len(near)))].sort().values


def capped(width_px: int, height_px: int, max_side: int) -> tuple[int, int]:
    """Width and height of an image scaled down so that its longer side is at most ``max_side`` pixels; 0: no limit."""
    longer = max(width_px, height_px)
    if not max_side or longer <= max_side:
        return width_px, height_px
    scale = max_side / longer
    return max(1, int(width_px * scale)), max(
        1, int(height_px * scale)
    )  # truncated, not rounded, as in the public code


def cells(width_px: int, height_px: int, cell_px: int, pixel_limits: tuple[int, int]) -> Grid:
    """(rows, columns) in tokens by the rule of Qwen's image processor: the nearest whole token, halves to even.

    Below the lower limit both sides are scaled and rounded up; above the upper limit they are scaled and rounded down.
    """
    least, most = pixel_limits
    height, width = (round(side / cell_px) for side in (height_px, width_px))
    pixels = height * width * cell_px**2
    if pixels > most:
        shrink = math.sqrt(height_px * width_px / most)
        height, width = (max(1, math.floor(side / shrink / cell_px)) for side in (height_px, width_px))
    elif pixels < least:
        grow = math.sqrt(least / (height_px * width_px))
        height, width = (math.ceil(side * grow / cell_px) for side in (height_px, width_px))
    return height, width


def _cell_px(config: ModelConfig) -> int:
    vision = config["vision_config"]
    return int(vision["patch_size"]) * int(vision["spatial_merge_size"])


def _messages(query: str, n: int, *, split: bool = True) -> list[Message]:
    """The prompt: one user message, all text first, then the pages. Segments end before and after the query."""
    if not 1 <= n <= len(LETTERS):
        raise MmrrError(f"found {n} pages for one prompt; expected 1 to {len(LETTERS)}, one for each letter")
    pictures = ", ".join(f"Picture {i} is passage [{letter}]" for i, letter in enumerate(LETTERS[:n], 1))
    before = (
        "You are RankGPT, an intelligent assistant that can rank passages based on their relevancy to the query.\n\n"
        f"I will provide you with {n} passages as images.\n"
        "Rank the passages based on their relevance to the search query.\n\n"
        f"The images are provided in order: {pictures}.\n\n"
        "Search Query:"
    )
    after = (
        "Rank the passages above based on their relevance to the search query.\n"
        "The passages should be listed in descending order using identifiers.\n"
        "The most relevant passages should be listed first.\n"
        "The output format should be [A] > [B], etc.\n"
        "Only output the ranking results, do not say anything else."
    )
    seam: list[Part] = [Mark.SPLIT] if split else []
    return [("user", [before, *seam, " ", query, "\n\n", *seam, after, *[Mark.IMAGE] * n])]
