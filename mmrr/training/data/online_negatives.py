"""The pages that an embedder finds for a query: what a reranker behind it has to tell apart, to be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmrr.search.late_interaction import max_sim
from mmrr.training.data.tower_features import Features, Key, Keys


class Miner:
    """Searches the pages of a training exactly, by the vectors that are kept beside their features."""

    def __init__(self, embedder: Any, search: Any, features: Features, keys: Keys, most: int) -> None:
        """``embedder``: on the CPU, where batches are made. ``most``: pages to find for a query."""
        self.embedder, self.search, self.keys, self.most = embedder, search, keys, most
        self._temperature = embedder.temperature(search)
        vectors = [features.vectors(*key) for key in keys]
        self._sizes = np.array([len(of_page) for of_page in vectors])
        self._vectors = np.concatenate([of_page.numpy() for of_page in vectors])

    def __call__(self, texts: Sequence[str], owner: Key) -> list[Keys]:
        """For each query of a page its best ``most`` others, best first."""
        asked = [one.numpy() for one in self.embedder.embed_queries(texts, self.search)]
        scores = max_sim(asked, self._vectors, self._sizes, self._temperature)
        orders = np.argsort(-scores, axis=1, kind="stable")[:, : self.most + 1]
        return [[self.keys[row] for row in order if self.keys[row] != owner][: self.most] for order in orders.tolist()]
