"""``mmrr rerank``: the scores do not depend on caches, budgets, batches or other candidates."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch

from mmrr.modeling.cache_streams import ahead, portions
from mmrr.stages import rerank
from mmrr.stages.rerank import _batches
from mmrr.types import PageCache, Query
from mmrr.workspace.tensors import PageCacheReader
from tests.cli.chain import LAYERS, Chain
from tests.console import (
    refused,
    run_lines,
    shards,
)


def test_the_cache_changes_no_score(chain: Chain) -> None:
    """With all layers, no pruning and no early exit, in float32: within 1e-4 of the stock forward."""
    chain.precache("--keep", "1", "--band", f"0:{LAYERS}")
    cached = run_lines(chain.rerank() / "run.trec")
    dense = run_lines(chain.rerank("--dense") / "run.trec")
    for query_id, hits in dense.items():
        assert dict(cached[query_id]) == pytest.approx(dict(hits), abs=1e-4)
        assert len({round(score, 3) for _, score in hits}) > 1  # equal scores would prove nothing
    other = run_lines(chain.rerank("--dense", "--prompt", "query-first") / "run.trec")
    assert abs(other["q1"][0][1] - dense["q1"][0][1]) > 1e-3
    narrow = run_lines(chain.root / "run.trec")
    assert abs(dict(narrow["q1"])["thesis.pdf/0001"] - dict(dense["q1"])["thesis.pdf/0001"]) > 1e-3


def test_the_exit_layer_uses_the_same_caches(chain: Chain) -> None:
    before = shards(chain.work, "precache")
    runs = [run_lines(chain.rerank("--exit-layer", layer) / "run.trec") for layer in (4, 6)]
    assert shards(chain.work, "precache") == before
    assert dict(runs[0]["q1"]) != pytest.approx(dict(runs[1]["q1"]), abs=1e-3)


def test_the_scores_of_a_page_do_not_depend_on_the_other_candidates(chain: Chain) -> None:
    few, all_ = (dict(run_lines(chain.rerank("--candidates", n) / "run.trec")["q2"]) for n in (2, 5))
    assert few == pytest.approx({page_id: all_[page_id] for page_id in few}, abs=1e-4)


def test_a_small_memory_budget_changes_no_score(chain: Chain) -> None:
    """Page caches are read and scored one page at a time; the scores are within 1e-5 in float32."""
    whole = run_lines(chain.rerank() / "run.trec")
    for folder in ("rerank", "shards/rerank"):
        shutil.rmtree(chain.work / folder)
    piecemeal = run_lines(chain.rerank("--memory-budget", "1KiB") / "run.trec")
    assert whole.keys() == piecemeal.keys()
    for query_id, hits in whole.items():
        assert dict(piecemeal[query_id]) == pytest.approx(dict(hits), abs=1e-5)
    for size in ("0", "much", "4 apples", "-1GiB"):
        wrong = refused("rerank", "a", "--work", chain.work, "--memory-budget", size)
        assert "expected a size such as 512MiB" in wrong


def test_pages_that_stay_on_the_device_change_no_score(chain: Chain) -> None:
    """Queries share pages; all of these stay on the device, or some, or none."""
    runs = []
    for size in ("1GiB", "20kB", "0"):
        runs.append(run_lines(chain.rerank("--resident", size) / "run.trec"))
        for folder in ("rerank", "shards/rerank"):
            shutil.rmtree(chain.work / folder)
    assert runs[0] == runs[1] == runs[2]
    assert "expected a size such as 512MiB" in refused("rerank", "a", "--work", chain.work, "--resident", "some")


def test_queries_that_share_pages_read_each_page_once_and_score_the_same(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-5 in float32, with memory for all caches and for one at a time."""
    reads: list[tuple[str, str]] = []
    read = PageCacheReader.read

    def count(self: PageCacheReader, key: str, page: str) -> PageCache:
        reads.append((key, page))
        return read(self, key, page)

    monkeypatch.setattr(PageCacheReader, "read", count)
    runs, pages = [], []
    for batch in (32, 1):
        monkeypatch.setattr(rerank, "BATCH_QUERIES", batch)
        for size in ("1GiB", "1KiB"):
            for folder in ("rerank", "shards/rerank"):
                shutil.rmtree(chain.work / folder)
            reads.clear()
            runs.append(run_lines(chain.rerank("--memory-budget", size) / "run.trec"))
            pages.append([place for place in reads if place[1] != "shared"])
    assert len(pages[0]) == len(pages[1]) == len(set(pages[0]))
    assert len(pages[2]) == len(pages[3]) >= 2 * len(pages[0])
    for other in runs[1:]:
        assert other.keys() == runs[0].keys()
        for query_id, hits in other.items():
            assert dict(hits) == pytest.approx(dict(runs[0][query_id]), abs=1e-5)


def test_queries_are_batched_where_that_halves_the_pages_to_read() -> None:
    a, b, c = (Query(name, name) for name in "abc")
    shared = [(a, [1, 2]), (b, [2, 1])]
    assert list(_batches(shared, False)) == [shared]
    assert list(_batches(shared, True)) == [[one] for one in shared]
    apart = [(a, [1, 2]), (b, [3, 1]), (c, [])]
    assert list(_batches(apart, False)) == [[one] for one in apart]
    assert list(_batches([], False)) == []


def test_page_caches_are_read_ahead_in_portions_that_fit() -> None:
    read = []

    def caches() -> Iterator[tuple[int, PageCache]]:
        for i, n in enumerate((4, 4, 9, 1, 1, 1)):
            read.append(i)
            yield i, {"k": torch.full((n,), i, dtype=torch.uint8)}

    parts = []
    for part in ahead(portions(caches(), 8)):
        assert all(int(cache["k"][0]) == row for row, cache in part.items())
        parts.append(list(part))
    assert parts == [[0, 1], [2], [3, 4, 5]]
    assert read == [0, 1, 2, 3, 4, 5]
