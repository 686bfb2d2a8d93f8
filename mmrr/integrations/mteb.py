"""mteb: an encoder and a cross-encoder for ``mteb.evaluate``, whose documents are page images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmrr.config import Render
from mmrr.documents.image_input import PageImage, read_image
from mmrr.errors import MmrrError
from mmrr.integrations._library import needs
from mmrr.modeling import families
from mmrr.modeling.checkpoints import expect_kind, resolve
from mmrr.modeling.devices import dtype_name, resolve_device, resolve_dtype
from mmrr.modeling.finite import expect_finite
from mmrr.reranker import Reranker
from mmrr.search.late_interaction import max_sim
from mmrr.workspace.files import HashCache

with needs("mteb", "mteb"):
    from mteb.models import ModelMeta
    from mteb.types import PromptType

#: A batch of an mteb data loader: columns by name. Any: images, texts and other values.
Batch = Mapping[str, Any]


class PageEncoder:
    """An embedder as mteb's ``EncoderProtocol``: queries are texts, documents are page images.

    A query and a page are (V, D) tensors. The similarity is MaxSim, with the soft IDF of the embedder where it has one,
    among the pages that mteb passes together.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        options: Mapping[str, object] | None = None,
        max_tokens: int = Render().max_tokens,
    ) -> None:
        """Load an embedder. The parameters have the meaning of the options of ``mmrr index``.

        Raises MmrrError if the checkpoint is not found or is no embedder, or for an unknown option.
        """
        expect_kind("embedders", model)
        # The hashes of a local checkpoint's files stay in memory: this path cannot exist.
        checkpoint = resolve(model, revision, HashCache(), families.names("embedders"))
        family = families.load("embedders", families.embedder(checkpoint.config()))
        prepare = families.parse_options(family.Prepare, {name: str(value) for name, value in (options or {}).items()})
        on_device = resolve_device(device)
        number_format = resolve_dtype(dtype, on_device)
        self._embedder = family.load(checkpoint, prepare, on_device, number_format)
        self._search, self._id, self._max_tokens = family.Search(), checkpoint.id, max_tokens
        self._temperature = self._embedder.temperature(self._search)
        self.mteb_model_meta = _meta(
            model, checkpoint.identity(dtype_name(number_format))["revision"], "dense", "MaxSim"
        )

    # mteb's names of the parameters
    def encode(
        self, inputs: Iterable[Batch], *, prompt_type: PromptType | None = None, **ignored: object
    ) -> list[Tensor]:
        """The vectors (V, D) float32 of each input. Raises MmrrError for a page without an image."""
        found = []
        for batch in inputs:
            if prompt_type == PromptType.document:
                for image in _images(batch):
                    (one,) = self._embedder.embed_pages([read_image(image, self._max_tokens)])
                    found.append(one.vectors.float())
            else:
                for text in _texts(batch):
                    found += self._embedder.embed_queries([text], self._search)
        for vectors in found:
            expect_finite("an input", self._id, {"vectors": vectors})
        return found

    def similarity(self, embeddings1: Iterable[Tensor], embeddings2: Iterable[Tensor]) -> Tensor:
        """The score of each query and page, (Q, N) float32."""
        queries, pages = ([one.numpy() for one in many] for many in (embeddings1, embeddings2))
        sizes = np.array([len(page) for page in pages])
        return torch.from_numpy(max_sim(queries, np.concatenate(pages), sizes, self._temperature))

    def similarity_pairwise(self, embeddings1: Iterable[Tensor], embeddings2: Iterable[Tensor]) -> Tensor:
        """The score of each pair, (N,) float32: MaxSim without soft IDF, since a pair has no other pages."""
        pairs = zip(embeddings1, embeddings2, strict=True)
        return torch.tensor([float((query @ page.T).amax(1).sum()) for query, page in pairs])


class PageCrossEncoder:
    """A reranker as mteb's ``CrossEncoderProtocol``. The score is the logit."""

    def __init__(self, model: str, *, scorer: str = "minireranker", **options: Any) -> None:
        """The parameters are those of ``mmrr.Reranker``. Raises MmrrError as it does."""
        self._reranker = Reranker(model, scorer=scorer, **options)
        reads = self._reranker.reads
        self.mteb_model_meta = _meta(model, self._reranker.revision, "cross-encoder", None)
        self._documents: Callable[[Batch], Iterator[PageImage]] = _images if reads == "image" else _texts

    # mteb's names of the parameters
    def predict(self, inputs1: Iterable[Batch], inputs2: Iterable[Batch], **ignored: object) -> NDArray[np.float32]:
        """The score of each pair, (N,) float32. Raises MmrrError for a page without an image."""
        queries = chain.from_iterable(map(_texts, inputs1))
        documents = chain.from_iterable(map(self._documents, inputs2))
        # The pairs of a query follow each other: the images of one query are in memory at a time.
        groups = groupby(zip(queries, documents, strict=True), key=lambda pair: pair[0])
        scores = [self._reranker.predict(list(pairs), logits=True) for _, pairs in groups]
        return np.concatenate(scores) if scores else np.zeros(0, dtype=np.float32)


def _images(batch: Batch) -> Iterator[Image.Image]:
    images = batch.get("image")
    if images is None or any(image is None for image in images):
        raise MmrrError(f"a document has no image; found the columns {', '.join(sorted(batch))}; expected 'image'")
    yield from images


def _texts(batch: Batch) -> Iterator[str]:
    texts = batch.get("text")
    if texts is None or any(text is None for text in texts):
        raise MmrrError(f"an input has no text; found the columns {', '.join(sorted(batch))}; expected 'text'")
    yield from texts


def _meta(model: str, revision: str, kind: str, similarity: str | None) -> ModelMeta:
    """What mteb records of the model."""
    name = model if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not Path(model).exists() else f"mmrr/{Path(model).name}"
    return ModelMeta.create_empty(
        overwrites={
            "name": name,
            "revision": revision,
            "modalities": ["text", "image"],
            "model_type": [kind],
            "similarity_fn_name": similarity,
        }
    )
