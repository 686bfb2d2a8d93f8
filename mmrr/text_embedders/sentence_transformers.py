"""Any checkpoint of the sentence-transformers library: one vector for each window of a page's text.

The library applies the checkpoint's own prompts, pooling and normalisation. A page's text is cut into windows of words,
because one vector of much text says little of each part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmrr.contracts import TextEmbedderSpec, Window
from mmrr.errors import MmrrError
from mmrr.modeling import sentence_models, text_checkpoints, text_windows
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.modeling.minilm import MiniLM

#: The first checkpoint is all-MiniLM-L6-v2, from a Python package or from the Hub; the others are on the Hub.
SPEC = TextEmbedderSpec(
    checkpoints=(
        "minilm",
        "BAAI/bge-small-en-v1.5",
        "intfloat/multilingual-e5-small",
        "Qwen/Qwen3-Embedding-0.6B",
    ),
    model_types=("*",),
)
#: Texts that are encoded together.
_BATCH = 32
#: The names under which a checkpoint may have its prompt for documents.
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True, slots=True)
class Prepare:
    """Options that change the windows and their vectors."""

    words: int = field(
        default=150, metadata={"help": "Most words of a window. A window also fits the model's number of tokens."}
    )
    step: int = field(default=100, metadata={"help": "Words from the start of a window to the start of the next one."})


def load(checkpoint: Checkpoint, options: Prepare, device: torch.device, dtype: torch.dtype) -> TextEmbedder:
    """Load the checkpoint.

    Raises MmrrError for options that make no windows, for a checkpoint that the library cannot load or that needs code
    of its own, and for one that compares vectors by a distance.
    """
    if not 1 <= options.step <= options.words:
        raise MmrrError(
            f"words={options.words}, step={options.step}: expected 1 word or more, and a step of 1 to {options.words}"
        )
    return TextEmbedder(checkpoint, options, device, dtype)


class TextEmbedder:
    """Embeds windows and queries with one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, options: Prepare, device: torch.device, dtype: torch.dtype) -> None:
        """Raises MmrrError as ``load``."""
        self._options = options
        self._from = (checkpoint, device, dtype)
        # The library takes seconds to import, so a query for minilm is encoded without it.
        own = checkpoint.id == text_checkpoints.MINILM and dtype == torch.float32
        self._queries = MiniLM(checkpoint.path, device, dtype) if own else None
        if not own:
            _ = self._model  # a checkpoint that does not load is an error now

    # Any: the library's functions have one signature for each type of what they return.
    @cached_property
    def _model(self) -> Any:
        checkpoint = self._from[0]
        model = sentence_models.embedder(*self._from)
        if model.similarity_fn_name not in ("cosine", "dot"):
            raise MmrrError(f"{checkpoint.id} compares vectors by '{model.similarity_fn_name}'; expected cosine or dot")
        return model

    def windows(self, text: str) -> list[Window]:
        """Windows of ``words`` words every ``step`` words; a window that would be too long for the model is shorter."""
        return text_windows.cut(text, self._options.words, self._options.step, self._most_tokens, self._count_tokens)

    def embed_windows(self, texts: Sequence[str]) -> Tensor:
        """The vectors (W, D) of windows, with the checkpoint's prompt for documents."""
        return self._encoded(self._model.encode_document, texts)

    def embed_queries(self, texts: Sequence[str]) -> Tensor:
        """The vectors (Q, D) of queries, with the checkpoint's prompt for queries."""
        if self._queries:
            return self._finite(self._queries.encode(texts, _BATCH))
        return self._encoded(self._model.encode_query, texts)

    def _encoded(self, encode: Callable[..., Tensor], texts: Sequence[str]) -> Tensor:
        vectors = encode(
            list(texts),
            batch_size=_BATCH,
            show_progress_bar=False,
            convert_to_tensor=True,
            normalize_embeddings=self._model.similarity_fn_name == "cosine",
        )
        return self._finite(vectors)

    @staticmethod
    def _finite(vectors: Tensor) -> Tensor:
        vectors = vectors.float().cpu()
        if not torch.isfinite(vectors).all():
            raise MmrrError("the text embedder gave vectors that are not finite; try --dtype float32")
        return vectors

    @cached_property
    def _most_tokens(self) -> int:
        """The most tokens of a window: the model's, without those of its prompt and a special token at either end."""
        most = self._model.get_max_seq_length()
        if most is None:
            return 1 << 30
        prompts = [self._model.prompts.get(name) or "" for name in _DOCUMENT_PROMPTS]
        return max(1, int(most) - 2 - max(self._count_tokens(prompts)))

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in sentence_models.token_ids(self._model.tokenizer, texts)]
