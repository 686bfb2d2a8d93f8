"""KaLM-Reranker-V1 (arXiv 2606.22807): a page's text is encoded once and pooled; a decoder attends to it per query.

``prepare`` stores the encoder's output, with every ``ratio`` tokens averaged into one chunk. ``score`` runs the
decoder over its prompt, which contains the query, with cross-attention to the chunks. The stored chunks depend on
neither the query nor the instruction.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmrr.contracts import ModelConfig, PageGeometry, PageInput, ScorerSpec
from mmrr.documents.page_grid import CELL_PX, snap
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.types import Grid, KeptTokens, PageCache

SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
INSTRUCTION = "Given a query, retrieve documents that answer the query."

#: The first checkpoint comes with mmrr.
SPEC = ScorerSpec(
    checkpoints=(
        "small-kalm",
        "KaLM-Embedding/KaLM-Reranker-V1-Nano",
        "KaLM-Embedding/KaLM-Reranker-V1-Small",
        "KaLM-Embedding/KaLM-Reranker-V1-Large",
        "KaLM-Embedding/KaLM-Reranker-V1-Nano-R2",
        "KaLM-Embedding/KaLM-Reranker-V1-Small-R2",
        "KaLM-Embedding/KaLM-Reranker-V1-Large-R2",
    ),
    model_types=("t5gemma2",),
    accepts_pruning=False,
    listwise=False,
)
#: Allowed numbers of tokens in one chunk. The model was trained with all of them.
RATIOS = (1, 2, 4, 8, 16, 32)
#: Most tokens of one encoder pass, ``<Document>: `` included, and most tokens of a query.
WINDOW_TOKENS, MAX_QUERY_TOKENS = 1024, 512
#: Bytes of keys and values on the device: of one batch, and of the windows in the LRU cache of prompt prefixes.
_BATCH_BYTES, _READY_BYTES = 1 << 28, 1 << 29
_MAX_BATCH = 32


@dataclass(frozen=True, slots=True)
class Prepare:
    """Options that change the cache."""

    ratio: int = field(
        default=4,
        metadata={"help": "Encoder states averaged into one stored vector: 1, 2, 4, 8, 16 or 32."},
    )
    windows: int = field(
        default=2, metadata={"help": "Most windows of 1,024 tokens of a page's text; the text after them is not read."}
    )
    image: bool = field(
        default=False,
        metadata={"help": "Read page images instead of page texts. No published checkpoint is trained for this."},
    )


@dataclass(frozen=True, slots=True)
class Score:
    """Options that change scoring alone; the caches are reused."""

    ratio: int = field(
        default=0,
        metadata={"help": "A coarser ratio than the stored one, computed from the stored vectors. 0: the stored one."},
    )
    instruction: str = field(default=INSTRUCTION, metadata={"help": "Task instruction in the prompt of the decoder."})


def resolve(options: Prepare, config: ModelConfig) -> Prepare:
    """The options unchanged. Raises MmrrError for an unknown ratio and for less than one window."""
    _check_ratio(options.ratio)
    if options.windows < 1:
        raise MmrrError(f"windows {options.windows}: expected 1 or more windows of {WINDOW_TOKENS} tokens a page")
    return options


def page_input(options: Prepare) -> PageInput:
    """Pages are read as texts, unless the option ``image`` is set."""
    return "image" if options.image else "text"


def prompt(options: Prepare) -> dict[str, str]:
    """The templates of encoder and decoder. They are hashed into every cache; the instruction is hashed into a run."""
    lead, middle, tail = _prompt("{instruction}", "{query}")
    document = "<Document>: \n\n[image]\n\n" if options.image else "<Document>: {text}"
    return {"encoder": document, "decoder": f"<bos><start_of_turn>{lead}{middle}<end_of_turn>\n<start_of_turn>{tail}"}


def grid(options: Prepare, config: ModelConfig, width_px: int, height_px: int) -> Grid:
    """(rows, columns) on Qwen3-VL's grid. The size estimate does not depend on it: the model reads text."""
    width, height = snap(width_px, height_px)
    return height // CELL_PX, width // CELL_PX


def pruning_grid(options: Prepare, config: ModelConfig) -> PageGeometry:
    """Qwen3-VL's grid. Pages are not pruned."""
    return PageGeometry(CELL_PX, None)


def cache_bytes(options: Prepare, config: ModelConfig, n_tokens: int, dtype_bytes: int) -> int:
    """The most bytes of one page's cache. A page with less text has a smaller cache.

    ``n_tokens`` has no effect: it counts visual tokens, and the length of a page's text is known only when it is read.
    """
    width = int(config["decoder"]["hidden_size"])
    if options.image:
        return -(-(int(config["encoder"]["mm_tokens_per_image"]) + 16) // options.ratio) * width * dtype_bytes
    return options.windows * -(-WINDOW_TOKENS // options.ratio) * width * dtype_bytes


def load(checkpoint: Checkpoint, options: Prepare, device: torch.device, dtype: torch.dtype) -> Scorer:
    """Load the checkpoint; ``options`` are resolved. Raises MmrrError if it or its tokenizer does not fit."""
    return Scorer(checkpoint, options, device, dtype)


class Scorer:
    """Scores pages for queries with one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, prepare: Prepare, device: torch.device, dtype: torch.dtype) -> None:
        """``prepare`` is resolved. Raises MmrrError if the checkpoint or its tokenizer does not fit."""
        if dtype == torch.float16:
            raise MmrrError("this model overflows in float16; use --dtype bfloat16 or float32")
        if checkpoint.adapter:
            raise MmrrError(f"{checkpoint.id} is a LoRA adapter; merge it into its base model first")
        module = families.load("backbones", checkpoint.model_type)
        self.backbone = module.Backbone(checkpoint.path, device, dtype, needs_vision=prepare.image)
        self.pool, self.coarser = module.pool, module.coarser
        self.prepare_options = prepare
        text = self.backbone.text
        yes, no = self.backbone.head_rows(text.word("yes"), text.word("no"))
        self.answers = torch.stack([yes, no])
        self._controls = [text.control(name) for name in ("<bos>", "<start_of_turn>", "<end_of_turn>")]
        #: The score of a page without text. It is lower than every score of the model.
        self.without_text = -self.backbone.reach(yes - no) - 1
        self._ready: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    # Without a query

    def shared_state(self) -> PageCache:
        """The pooling ratio, which all pages share."""
        return {"ratio": torch.tensor(self.prepare_options.ratio)}

    def prepare(self, pages: Sequence[str | Image.Image], kept: Sequence[KeptTokens | None]) -> list[PageCache]:
        """Each page's cache: ``chunks`` (sum of C, D) of its windows in order, and the ``tokens`` (W,) of each window.

        A page without text has no window. Raises MmrrError for a pruned page.
        """
        caches = []
        for content, keep in zip(pages, kept, strict=True):
            if keep:
                raise MmrrError("found pruned pages; KaLM-Reranker reads whole pages: run mmrr precache without --keep")
            hidden = self._read(content)
            chunks = [self.pool(window, self.prepare_options.ratio) for window in hidden]
            empty = torch.zeros(0, self.answers.shape[1], dtype=self.backbone.dtype)
            tokens = torch.tensor([len(window) for window in hidden], dtype=torch.long)
            caches.append({"chunks": torch.cat([empty, *(part.cpu() for part in chunks)]), "tokens": tokens})
        return caches

    def windows(self, text: str) -> list[list[int]]:
        """Token ids of a page's windows; a page without text has none.

        The published model reads the first window only. Each further window starts with ``<Document>:`` and continues
        where the one before it ends.
        """
        if not text.strip():
            return []
        encode = self.backbone.text.encode
        ids, lead = encode(f"<Document>: {text}"), encode("<Document>:")
        windows = [ids[:WINDOW_TOKENS]]
        step = WINDOW_TOKENS - len(lead)
        windows += [lead + ids[at : at + step] for at in range(WINDOW_TOKENS, len(ids), step)]
        return windows[: self.prepare_options.windows]

    def _read(self, content: str | Image.Image) -> list[Tensor]:
        """Encoder output (n, D) of each window of a page."""
        if isinstance(content, str):
            return [self.backbone.encode(ids) for ids in self.windows(content)]
        encode = self.backbone.text.encode
        return [self.backbone.encode_image(encode("<Document>: \n\n"), content, encode("\n\n"))]

    # With a query

    def encode_query(self, text: str) -> str:
        """The query itself: the decoder attends to the page in every layer, so its states cannot be reused."""
        return text

    def score(self, query: str, caches: Sequence[PageCache], shared: PageCache, options: Score) -> Tensor:
        """z = z_yes - z_no for each page, (N,) float32; sigmoid(z) is the probability of relevance.

        The score of a page is the highest score of its windows. A page without text is lower than every other page.
        Raises MmrrError for a ratio finer than the stored one.
        """
        stored = int(shared["ratio"])
        ratio = options.ratio or stored
        _check_ratio(ratio)
        if ratio < stored:
            raise MmrrError(
                f"ratio {ratio} is finer than {stored}, that of the page caches; run mmrr precache -o ratio={ratio}"
            )
        before, after = self.prompt(query, options.instruction)
        windows = [(i, part) for i, cache in enumerate(caches) for part in self._chunks(cache, stored, ratio)]
        scores = torch.full((len(caches),), self.without_text)
        for batch in self._batches([part for _, part in windows], len(before) + len(after)):
            pages = self._open(before, [windows[i][1] for i in batch])
            margins = self.logit(self.backbone.final_norm(self.backbone.decode_suffix(after, pages))).cpu()
            rows = torch.tensor([windows[i][0] for i in batch])
            scores.scatter_reduce_(0, rows, margins, "amax")
        return scores

    @torch.inference_mode()
    def score_uncached(self, query: str, page: str | Image.Image, kept: KeptTokens | None, options: Score) -> float:
        """The score of one page by the encoder and decoder of transformers, without a cache."""
        ratio = options.ratio or self.prepare_options.ratio
        before, after = self.prompt(query, options.instruction)
        hidden = [self.backbone.stock_decoder(before + after, self.pool(window, ratio)) for window in self._read(page)]
        return max((float(self.logit(one)) for one in hidden), default=self.without_text)

    def logit(self, hidden: Tensor) -> Tensor:
        """z (N,) of hidden states (N, D) after the final norm."""
        return hidden @ self.answers[0] - hidden @ self.answers[1]

    def prompt(self, query: str, instruction: str) -> tuple[list[int], list[int]]:
        """Token ids of the prompt: the prefix that does not depend on the query, and the rest.

        A query of more than 512 tokens is truncated. As in the published code it is decoded to text again before the
        prompt is encoded, so that the query's first word and the space before it can be one token.
        """
        text = self.backbone.text
        bos, start, end = self._controls
        query = text.decode(text.encode(query)[:MAX_QUERY_TOKENS])
        lead, middle, tail = _prompt(instruction, query)
        fixed = [bos, start, *text.encode(lead)]
        whole = [bos, start, *text.encode(lead + middle), end, *text.encode("\n"), start, *text.encode(tail)]
        # The common prefix: if the tokenizer merges text at the boundary, the boundary moves back.
        n = next((i for i, (a, b) in enumerate(zip(fixed, whole, strict=False)) if a != b), len(fixed))
        return whole[:n], whole[n:]

    def _chunks(self, cache: PageCache, stored: int, ratio: int) -> list[Tensor]:
        """Chunks (C, D) of each window of a page, at the ratio that scoring uses."""
        tokens = cache["tokens"].tolist()
        parts = torch.split(cache["chunks"], [-(-n // stored) for n in tokens])
        return [self.coarser(part, n, stored, ratio) for part, n in zip(parts, tokens, strict=True)]

    def _batches(self, parts: Sequence[Tensor], n_prompt: int) -> list[list[int]]:
        """Batches of windows of similar length. The keys and values of a batch stay below their limit."""
        batches: list[list[int]] = []
        for i in sorted(range(len(parts)), key=lambda i: len(parts[i])):
            # In ascending order of length, so that window i is the longest of its batch.
            size = (len(parts[i]) + n_prompt) * self.backbone.token_bytes
            if not batches or len(batches[-1]) >= max(1, min(_MAX_BATCH, _BATCH_BYTES // size)):
                batches.append([])
            batches[-1].append(i)
        return batches

    def _open(self, before: list[int], parts: Sequence[Tensor]) -> list[Any]:
        """Prefill of the prompt prefix for each window, LRU-cached across queries."""
        keys = [(_digest(part), *before) for part in parts]
        pages = {key: self._ready[key] for key in keys if key in self._ready}
        new = {key: part for key, part in zip(keys, parts, strict=True) if key not in pages}
        if new:
            pages |= zip(new, self.backbone.prefill(before, list(new.values())), strict=True)
        for key, page in pages.items():
            self._ready[key] = page
            self._ready.move_to_end(key)
        size = sum(page.nbytes for page in self._ready.values())
        while size > _READY_BYTES:
            size -= self._ready.popitem(last=False)[1].nbytes
        return [pages[key] for key in keys]


def _prompt(instruction: str, query: str) -> tuple[str, str, str]:
    """The user's turn up to the query, the query, and the start of the answer. Control tokens separate the turns."""
    return f"user\n{SYSTEM}\n\n<Instruct>: {instruction}\n<Query>:", f" {query}", "model\n\n\n\n"


def _check_ratio(ratio: int) -> None:
    if ratio not in RATIOS:
        raise MmrrError(f"ratio {ratio}: expected {', '.join(map(str, RATIOS))}")


def _digest(part: Tensor) -> bytes:
    return hashlib.blake2b(part.cpu().contiguous().view(torch.uint8).numpy().data, digest_size=16).digest()
