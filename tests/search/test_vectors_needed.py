"""How many vectors a FAISS index needs is known before there are any."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from mmrr.errors import MmrrError
from mmrr.search import indexes


@pytest.mark.parametrize(
    ("factory", "needed"),
    [
        ("Flat", 1),
        ("HNSW32", 1),
        ("IVF64,Flat", 64),
        ("PCA32,IVF64,Flat", 64),
        ("IVF64_HNSW32,Flat", 64),
        pytest.param("PQ2", 256, marks=pytest.mark.slow),
        ("PQ8x4fs", 16),
    ],
)
def test_an_index_is_refused_exactly_where_faiss_refuses_it(factory: str, needed: int) -> None:
    indexes.check_vectors(factory, needed)
    vectors = np.random.default_rng(0).standard_normal((needed, 64), np.float32)
    index = faiss.index_factory(64, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    if needed == 1:
        return
    with pytest.raises(MmrrError, match=f"over {needed - 1} vectors: it needs at least {needed}; try 'Flat'"):
        indexes.check_vectors(factory, needed - 1)
    with pytest.raises(RuntimeError):
        faiss.index_factory(64, factory, faiss.METRIC_INNER_PRODUCT).train(vectors[:-1])
