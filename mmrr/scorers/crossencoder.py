"""A text cross-encoder of the sentence-transformers library: question and page text in one forward.

A model such as cross-encoder/ms-marco-MiniLM-L6-v2 reads the question together with the text, so nothing of a page can
be computed before the question is known. ``prepare`` stores the page's text and the ends of its windows; ``score`` runs
the model over the question and each window, and a page scores its best window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmrr.contracts import ModelConfig, PageGeometry, PageInput, ScorerSpec, Window
from mmrr.documents.page_grid import CELL_PX, snap
from mmrr.errors import MmrrError
from mmrr.modeling import sentence_models, text_windows
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.types import Grid, KeptTokens, PageCache

#: All on the Hub. config.json's model_type is that of the encoder (bert, roberta, modernbert, ...), so any is taken.
SPEC = ScorerSpec(
    checkpoints=(
        "cross-encoder/ms-marco-MiniLM-L6-v2",
        "cross-encoder/ms-marco-MiniLM-L12-v2",
        "BAAI/bge-reranker-base",
        "mixedbread-ai/mxbai-rerank-xsmall-v1",
    ),
    model_types=("*",),
    accepts_pruning=False,
    listwise=False,
)
#: Tokens of the model's input that are left for the question and the special tokens.
_QUERY_TOKENS = 64
#: Bytes of text of a page in the size estimate.
_PAGE_BYTES = 1 << 16
#: The score of a page without text, below the logits of trained models (-12 to 12 of the ms-marco models). A much lower
#: value would decide the standard deviation in score fusion.
WITHOUT_TEXT = -20.0


@dataclass(frozen=True, slots=True)
class Prepare:
    """Options that change the cache."""

    words: int = field(
        default=300, metadata={"help": "Most words of a window. With the question it also fits the model's input."}
    )
    step: int = field(default=200, metadata={"help": "Words from the start of a window to the start of the next one."})


@dataclass(frozen=True, slots=True)
class Score:
    """Options that change scoring alone; the caches are reused."""

    batch: int = field(default=32, metadata={"help": "Windows in one forward. It changes speed and memory only."})


def resolve(options: Prepare, config: ModelConfig) -> Prepare:
    """The options unchanged.

    Raises MmrrError for options that make no windows, and for a checkpoint that does not give one score a pair.
    """
    if not 1 <= options.step <= options.words:
        raise MmrrError(
            f"words={options.words}, step={options.step}: expected 1 word or more, and a step of 1 to {options.words}"
        )
    names = config.get("architectures") or ["no architecture"]
    if not all(str(name).endswith("ForSequenceClassification") for name in names):
        raise MmrrError(
            f"the checkpoint is a {names[0]}; expected a cross-encoder, a model for sequence classification"
        )
    labels = config.get("num_labels") or len(config.get("id2label") or {}) or 2
    if labels != 1:
        raise MmrrError(f"the checkpoint gives {labels} scores a pair; expected a cross-encoder that gives one")
    return options


def page_input(options: Prepare) -> PageInput:
    """Pages are read as texts."""
    return "text"


def prompt(options: Prepare) -> dict[str, str]:
    """There is none: the tokenizer joins question and text."""
    return {}


def grid(options: Prepare, config: ModelConfig, width_px: int, height_px: int) -> Grid:
    """(rows, columns) on Qwen3-VL's grid. The size estimate does not depend on it: the model reads text."""
    width, height = snap(width_px, height_px)
    return height // CELL_PX, width // CELL_PX


def pruning_grid(options: Prepare, config: ModelConfig) -> PageGeometry:
    """Qwen3-VL's grid. Pages are not pruned."""
    return PageGeometry(CELL_PX, None)


def cache_bytes(options: Prepare, config: ModelConfig, n_tokens: int, dtype_bytes: int) -> int:
    """64 KiB, more than the text of nearly every page; its length is known only when it is read."""
    return _PAGE_BYTES


def load(checkpoint: Checkpoint, options: Prepare, device: torch.device, dtype: torch.dtype) -> Scorer:
    """Load the checkpoint; ``options`` are resolved. Raises MmrrError if the library cannot load it."""
    return Scorer(checkpoint, options, device, dtype)


class Scorer:
    """Scores pages for queries with one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, prepare: Prepare, device: torch.device, dtype: torch.dtype) -> None:
        """Raises MmrrError as ``load``."""
        self._options = prepare
        # Any: the library's functions have one signature for each type of what they return.
        self._model: Any = sentence_models.cross_encoder(checkpoint, device, dtype)
        most = min(self._model.get_max_seq_length() or 512, 1 << 20)
        if most <= _QUERY_TOKENS:
            raise MmrrError(
                f"{checkpoint.id} reads {most} tokens; expected more than {_QUERY_TOKENS} for question and text"
            )
        self._most_tokens = most - _QUERY_TOKENS

    def shared_state(self) -> PageCache:
        """The number of text tokens of a window, which all pages share."""
        return {"tokens": torch.tensor(self._most_tokens)}

    def prepare(self, pages: Sequence[str | Image.Image], kept: Sequence[KeptTokens | None]) -> list[PageCache]:
        """Each page's cache: ``text`` (n,) uint8, UTF-8 of its windows one after the other, and their ``sizes`` (W,).

        A page without text has no window. Raises MmrrError for a pruned page.
        """
        caches = []
        for content, keep in zip(pages, kept, strict=True):
            if keep:
                raise MmrrError(
                    "found pruned pages; a cross-encoder reads whole pages: run mmrr precache without --keep"
                )
            assert isinstance(content, str)
            parts = [part.encode("utf-8", "replace") for part in self._parts(content)]
            caches.append(
                {
                    "text": torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)
                    if parts
                    else torch.zeros(0, dtype=torch.uint8),
                    "sizes": torch.tensor([len(part) for part in parts], dtype=torch.int64),
                }
            )
        return caches

    def encode_query(self, text: str) -> str:
        """The question itself, at most as long as the input leaves room for."""
        ids = sentence_models.token_ids(self._model.tokenizer, [text])[0]
        most = _QUERY_TOKENS - 4  # special tokens: up to two after each text
        return text if len(ids) <= most else str(self._model.tokenizer.decode(ids[:most]))

    def score(self, query: str, caches: Sequence[PageCache], shared: PageCache, options: Score) -> Tensor:
        """The logit of each page's best window, (N,) float32."""
        return self._scores(query, [_texts(cache) for cache in caches], options.batch)

    def score_uncached(self, query: str, page: str | Image.Image, kept: KeptTokens | None, options: Score) -> float:
        """The same from the page's text."""
        assert isinstance(page, str)
        return float(self._scores(self.encode_query(query), [self._parts(page)], options.batch)[0])

    def _scores(self, query: str, pages: Sequence[Sequence[str]], batch: int) -> Tensor:
        scores = torch.full((len(pages),), WITHOUT_TEXT)
        pairs = [(query, part) for parts in pages for part in parts]
        if pairs:
            owners = torch.tensor([row for row, parts in enumerate(pages) for _ in parts])
            logits = self._model.predict(
                pairs,
                batch_size=max(1, batch),
                show_progress_bar=False,
                activation_fn=torch.nn.Identity(),
                convert_to_tensor=True,
            )
            scores.scatter_reduce_(0, owners, logits.float().cpu().reshape(-1), "amax")
        return scores

    def windows(self, text: str) -> list[Window]:
        """The windows of a page's text. A page without words has none."""
        return text_windows.cut(text, self._options.words, self._options.step, self._most_tokens, self._count_tokens)

    def _parts(self, text: str) -> list[str]:
        return [text[window.start : window.end] for window in self.windows(text)]

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in sentence_models.token_ids(self._model.tokenizer, texts)]


def _texts(cache: PageCache) -> list[str]:
    data, at, texts = bytes(cache["text"].cpu().numpy()), 0, []
    for size in cache["sizes"].tolist():
        texts.append(data[at : at + size].decode("utf-8"))
        at += size
    return texts
