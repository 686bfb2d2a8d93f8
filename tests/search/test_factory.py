"""FAISS factory strings: those that would end the process are refused, the usual ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmrr.errors import MmrrError
from mmrr.search.indexes import DENSE, build_dense, check_factory, search_dense


@pytest.mark.parametrize(
    ("factory", "found"),
    [
        ("HNSW0", "HNSW0"),
        ("HNSW0,Flat", "HNSW0"),
        ("HNSW00", "HNSW00"),
        ("IVF0,Flat", "IVF0"),
        ("IVF16_HNSW0,Flat", "HNSW0"),
        ("PQ4x0", "x0"),
        ("PQ4x4fs_0", "0"),
        ("RQ0x8", "RQ0"),
        ("RR0,Flat", "RR0"),
        ("HNSW1", "HNSW1"),
        ("NSG1,Flat", "NSG1"),
        ("NSG2", "NSG2"),
    ],
)
def test_refused(tmp_path: Path, factory: str, found: str) -> None:
    with pytest.raises(MmrrError, match=f"--faiss-factory {factory}: found '{found}', expected sizes above 0"):
        check_factory(factory)
    with pytest.raises(MmrrError):
        build_dense(iter([np.eye(1, 8, dtype=np.float32)]), factory, tmp_path, several=False)


@pytest.mark.parametrize(
    "factory",
    [
        "Flat",
        "HNSW32",
        "HNSW10,Flat",
        "HNSW16",
        "IVF100,Flat",
        "IVF256,PQ16x4fs,RFlat",
        "NSG10",
        "PQ10x8",
    ],
)
def test_accepted(factory: str) -> None:
    check_factory(factory)


@pytest.mark.parametrize("factory", ["Flat", "HNSW32", "IVF4,Flat", "SQ8"])
def test_the_usual_indexes_find_the_nearest_page(tmp_path: Path, factory: str) -> None:
    vectors = np.eye(160, 16, dtype=np.float32) + np.random.default_rng(0).normal(0, 0.01, (160, 16)).astype("float32")
    build_dense(iter(vectors[:, None]), factory, tmp_path, several=False)
    (found,) = search_dense({DENSE: tmp_path / DENSE}, [vectors[3:4]], 5)
    assert max(found, key=found.__getitem__) == 3
