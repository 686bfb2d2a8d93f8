"""KaLM-Reranker-V1 (arXiv 2606.22807): a page's text is encoded once and pooled; a decoder reads the query over it.

``prepare`` keeps the encoder's output, each few tokens averaged into one chunk; ``score`` runs the decoder's prompt,
the query in it, over those chunks. Nothing kept depends on the query or on the instruction.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.types import KeptTokens, PageCache

SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
INSTRUCTION = "Given a query, retrieve documents that answer the query."

CHECKPOINTS = (
    "small-kalm",
    "KaLM-Embedding/KaLM-Reranker-V1-Nano",
    "KaLM-Embedding/KaLM-Reranker-V1-Small",
    "KaLM-Embedding/KaLM-Reranker-V1-Large",
    "KaLM-Embedding/KaLM-Reranker-V1-Nano-R2",
    "KaLM-Embedding/KaLM-Reranker-V1-Small-R2",
    "KaLM-Embedding/KaLM-Reranker-V1-Large-R2",
)
#: What its checkpoints' config.json may say, and how it reads and scores: see docs/design.md, "Adding a family".
MODEL_TYPES = ("t5gemma2",)
PRUNES, LISTWISE = False, False
#: Tokens that may be averaged into one chunk; the model was trained for all of them.
RATIOS = (1, 2, 4, 8, 16, 32)
#: Tokens of one encoder pass, ``<Document>: `` included, and of a query.
WINDOW_TOKENS, MAX_QUERY_TOKENS = 1024, 512
#: Keys and values on the device: of one batch, and of the pages kept ready for the next query.
_BATCH_BYTES, _READY_BYTES = 1 << 28, 1 << 29
_MAX_BATCH = 32


@dataclass(frozen=True, slots=True)
class Prepare:
    """Options that change the cache."""

    ratio: int = 4  # tokens averaged into one chunk: 1, 2, 4, 8, 16 or 32
    windows: int = 2  # most windows of 1,024 tokens a page; text behind them is not read
    image: bool = False  # read page images instead of their text: nobody has trained this model to


@dataclass(frozen=True, slots=True)
class Score:
    """Options of scoring alone: changing them reuses the cache."""

    ratio: int = 0  # a coarser one than stored, derived from it; 0: as stored
    instruction: str = INSTRUCTION


def resolve(prepare: Prepare, config: dict[str, Any]) -> Prepare:
    """Raises MmrrError for a ratio or a number of windows that there is not."""
    _check_ratio(prepare.ratio)
    if prepare.windows < 1:
        raise MmrrError(f"windows {prepare.windows}: expected 1 or more windows of {WINDOW_TOKENS} tokens a page")
    return prepare


def page_input(prepare: Prepare) -> str:
    """What a page is given as: ``image`` or ``text``."""
    return "image" if prepare.image else "text"


def prompt(prepare: Prepare) -> dict[str, str]:
    """Both templates, to be hashed into every cache. The instruction is hashed with a run's options."""
    lead, middle, tail = _prompt("{instruction}", "{query}")
    document = "<Document>: \n\n[image]\n\n" if prepare.image else "<Document>: {text}"
    return {"encoder": document, "decoder": f"<bos><start_of_turn>{lead}{middle}<end_of_turn>\n<start_of_turn>{tail}"}


def pruning_grid(prepare: Prepare, config: dict[str, Any]) -> tuple[int, int | None]:
    """Pixels a visual token's side, and the most a page. Neither matters here: a page's text is not cut into cells."""
    return 32, None


def cache_bytes(prepare: Prepare, config: dict[str, Any], n_tokens: int, dtype_bytes: int) -> int:
    """The most bytes that one page's cache can have; a page with less text has less.

    How much text a page has is known when it is read, so ``n_tokens``, counted on its image, plays no part.
    """
    width = int(config["decoder"]["hidden_size"])
    if prepare.image:
        return -(-(int(config["encoder"]["mm_tokens_per_image"]) + 16) // prepare.ratio) * width * dtype_bytes
    return prepare.windows * -(-WINDOW_TOKENS // prepare.ratio) * width * dtype_bytes


class Scorer:
    """Scores pages against queries with one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, prepare: Prepare, device: torch.device, dtype: torch.dtype) -> None:
        """``prepare`` must be resolved. Raises MmrrError if the checkpoint or its tokenizer does not fit."""
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
        #: The score of a page without text: below any that the head can give.
        self.without_text = -self.backbone.reach(yes - no) - 1
        self._ready: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    # Without a query

    def shared_state(self) -> PageCache:
        """What all pages share: the ratio they are pooled at."""
        return {"ratio": torch.tensor(self.prepare_options.ratio)}

    def prepare(self, contents: Sequence[str | Image.Image], keeps: Sequence[KeptTokens | None]) -> list[PageCache]:
        """Each page's cache: ``chunks`` (sum of C, D) of its windows one after the other, and ``tokens`` (W,) of each.

        A page without text has no window. Raises MmrrError for a pruned page.
        """
        states = []
        for content, keep in zip(contents, keeps, strict=True):
            if keep:
                raise MmrrError("KaLM-Reranker caches whole pages; make the page caches without pruning")
            hidden = self._read(content)
            chunks = [self.pool(window, self.prepare_options.ratio) for window in hidden]
            empty = torch.zeros(0, self.answers.shape[1], dtype=self.backbone.dtype)
            tokens = torch.tensor([len(window) for window in hidden], dtype=torch.long)
            states.append({"chunks": torch.cat([empty, *(part.cpu() for part in chunks)]), "tokens": tokens})
        return states

    def windows(self, text: str) -> list[list[int]]:
        """Token ids of a page's windows. The first is all that the published model reads: a page that fits is one.

        The others go on where it ends, behind ``<Document>:`` again. None for a page without text.
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

    def score(self, query: str, states: Sequence[PageCache], shared: PageCache, options: Score) -> Tensor:
        """z = z_yes - z_no for each page, (N,) float32; sigmoid(z) is the probability of relevance.

        A page of several windows has the highest of their scores, a page without text one below any score there can
        be. Raises MmrrError for a ratio finer than stored.
        """
        stored = int(shared["ratio"])
        ratio = options.ratio or stored
        _check_ratio(ratio)
        if ratio < stored:
            raise MmrrError(
                f"ratio {ratio} is finer than the page caches', {stored}; run mmrr precache -o ratio={ratio}"
            )
        before, after = self.prompt(query, options.instruction)
        windows = [(i, part) for i, state in enumerate(states) for part in self._chunks(state, stored, ratio)]
        scores = torch.full((len(states),), self.without_text)
        for batch in self._batches([part for _, part in windows], len(before) + len(after)):
            pages = self._open(before, [windows[i][1] for i in batch])
            margins = self.logit(self.backbone.final_norm(self.backbone.decode_suffix(after, pages))).cpu()
            rows = torch.tensor([windows[i][0] for i in batch])
            scores.scatter_reduce_(0, rows, margins, "amax")
        return scores

    @torch.inference_mode()
    def score_uncached(self, query: str, content: str | Image.Image, keep: KeptTokens | None, options: Score) -> float:
        """The score of one page by transformers' own encoder and decoder, with no cache between."""
        ratio = options.ratio or self.prepare_options.ratio
        before, after = self.prompt(query, options.instruction)
        hidden = [
            self.backbone.stock_decoder(before + after, self.pool(window, ratio)) for window in self._read(content)
        ]
        return max((float(self.logit(one)) for one in hidden), default=self.without_text)

    def logit(self, hidden: Tensor) -> Tensor:
        """z (N,) of hidden states (N, D) behind the final norm."""
        return hidden @ self.answers[0] - hidden @ self.answers[1]

    def prompt(self, query: str, instruction: str) -> tuple[list[int], list[int]]:
        """Token ids of the prompt: those that do not depend on the query, and those from the query on.

        A query beyond 512 tokens is cut there. As in the published code, what is left is text again before the prompt
        is encoded, so that a query's first word joins the space before it.
        """
        text = self.backbone.text
        bos, start, end = self._controls
        query = text.decode(text.encode(query)[:MAX_QUERY_TOKENS])
        lead, middle, tail = _prompt(instruction, query)
        fixed = [bos, start, *text.encode(lead)]
        whole = [bos, start, *text.encode(lead + middle), end, *text.encode("\n"), start, *text.encode(tail)]
        # As far as they agree: where a tokenizer joins the two, the boundary moves back.
        n = next((i for i, (a, b) in enumerate(zip(fixed, whole, strict=False)) if a != b), len(fixed))
        return whole[:n], whole[n:]

    def _chunks(self, state: PageCache, stored: int, ratio: int) -> list[Tensor]:
        """Chunks (C, D) of each window of a page, as coarse as asked for."""
        tokens = state["tokens"].tolist()
        parts = torch.split(state["chunks"], [-(-n // stored) for n in tokens])
        return [self.coarser(part, n, stored, ratio) for part, n in zip(parts, tokens, strict=True)]

    def _batches(self, parts: Sequence[Tensor], n_prompt: int) -> list[list[int]]:
        """Windows of similar length together, few enough for their keys and values to stay small."""
        batches: list[list[int]] = []
        for i in sorted(range(len(parts)), key=lambda i: len(parts[i])):
            # Ascending, so the newest window is the longest of its batch.
            size = (len(parts[i]) + n_prompt) * self.backbone.token_bytes
            if not batches or len(batches[-1]) >= max(1, min(_MAX_BATCH, _BATCH_BYTES // size)):
                batches.append([])
            batches[-1].append(i)
        return batches

    def _open(self, before: list[int], parts: Sequence[Tensor]) -> list[Any]:
        """Windows with the prompt's beginning run over them; those that an earlier query met are remembered."""
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
    """The user's turn up to the query, the query, and the answer's beginning; control tokens stand between turns."""
    return f"user\n{SYSTEM}\n\n<Instruct>: {instruction}\n<Query>:", f" {query}", "model\n\n\n\n"


def _check_ratio(ratio: int) -> None:
    if ratio not in RATIOS:
        raise MmrrError(f"ratio {ratio}: expected {', '.join(map(str, RATIOS))}")


def _digest(part: Tensor) -> bytes:
    return hashlib.blake2b(part.cpu().contiguous().view(torch.uint8).numpy().data, digest_size=16).digest()
