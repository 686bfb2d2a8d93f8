"""Online hard negatives: the pages that an embedder finds for a query while a model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from mmrr.search.late_interaction import max_sim
from mmrr.training.data.tower_features import Key, Keys, TowerFeatures

SearchOptions = TypeVar("SearchOptions")
_Options = TypeVar("_Options", contravariant=True)


class QueryEmbedder(Protocol[_Options]):
    """The part of an embedder that searches, with the search options of its family."""

    def temperature(self, search: _Options, /) -> float: ...

    def embed_queries(self, texts: Sequence[str], search: _Options, /) -> list[Tensor]: ...


class Miner(Generic[SearchOptions]):
    """Exact search of the training pages by the embedder's vectors, which are stored with the pages' features."""

    def __init__(
        self,
        embedder: QueryEmbedder[SearchOptions],
        search: SearchOptions,
        features: TowerFeatures,
        keys: Keys,
        depth: int,
    ) -> None:
        """``embedder``: on the CPU, where batches are made. ``depth``: pages to find for a query."""
        self.keys, self.depth = keys, depth
        self._embedder, self._search = embedder, search
        self._temperature = embedder.temperature(search)
        vectors = [features.vectors(*key) for key in keys]
        self._sizes = np.array([len(of_page) for of_page in vectors])
        self._vectors = np.concatenate([of_page.numpy() for of_page in vectors])

    def __call__(self, texts: Sequence[str], owner: Key) -> list[Keys]:
        """For each query of page ``owner``: the best ``depth`` other pages, best first."""
        queries = [query.numpy() for query in self._embedder.embed_queries(texts, self._search)]
        scores = max_sim(queries, self._vectors, self._sizes, self._temperature)
        orders = np.argsort(-scores, axis=1, kind="stable")[:, : self.depth + 1]
        return [[self.keys[row] for row in order if self.keys[row] != owner][: self.depth] for order in orders.tolist()]
