"""``--dense`` needs and makes no caches; queries and pages are shared among devices with the same scores."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mmrr.stages import rerank
from tests.cli.chain import QUESTION
from tests.cli.conftest import Prepared
from tests.console import FP32, INDEX, manifest, mmrr, run_lines, shards, write_queries

MANY = [("a", QUESTION), ("b", "soil"), ("c", "When does the ferry leave?"), ("d", "rainfall"), ("e", "a thesis")]


@pytest.fixture
def fresh(prepared: Prepared, tmp_path: Path) -> Prepared:
    """The shared workspace with its caches and without rankings."""
    shutil.copytree(prepared.work, tmp_path / "fresh")
    for stage in ("retrieve", "rerank", "eval"):
        shutil.rmtree(tmp_path / "fresh" / stage, ignore_errors=True)
        shutil.rmtree(tmp_path / "fresh" / "shards" / stage, ignore_errors=True)
    return Prepared(tmp_path / "fresh", prepared.docs, prepared.model)


def reranked(place: Prepared, queries: Path, *args: object) -> Path:
    return Path(mmrr("rerank", "--work", place.work, "--queries", queries, *args).stdout.splitlines()[-1])


def test_a_dense_run_does_not_depend_on_caches(fresh: Prepared, tmp_path: Path) -> None:
    """With and without caches it is the same artifact, in shards of a few pages; a stopped run goes on there."""
    queries = write_queries(tmp_path / "q.jsonl", *MANY[:2])
    named = ("--dense", "--scorer-model", fresh.model, *FP32)
    before = reranked(fresh, queries, "--dense")
    scores = run_lines(before / "run.trec")
    assert set(manifest(before)["inputs"]) == {"pages", "retrieve"}
    for folder in ("rerank", "precache", "shards/precache"):
        shutil.rmtree(fresh.work / folder)
    (fresh.work / "head.json").unlink()
    mmrr("index", fresh.docs, "--work", fresh.work, *INDEX)
    again = reranked(fresh, queries, *named)
    assert again.name == before.name
    assert run_lines(again / "run.trec") == scores
    assert shards(fresh.work, "precache") == set()


def test_dense_scores_are_stored_a_few_pages_at_a_time(
    fresh: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = write_queries(tmp_path / "q.jsonl", *MANY[:2])
    whole = run_lines(reranked(fresh, queries, "--dense") / "run.trec")
    assert len(shards(fresh.work, "rerank")) == 2
    for folder in ("rerank", "shards/rerank"):
        shutil.rmtree(fresh.work / folder)
    monkeypatch.setattr(rerank, "DENSE_PAGES", 1)
    found = reranked(fresh, queries, "--dense")
    assert run_lines(found / "run.trec") == whole
    n_pairs = sum(map(len, whole.values()))
    assert len(shards(fresh.work, "rerank")) == len(manifest(found)["content"]["shards"]) == n_pairs > 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--dense",)])
def test_two_devices_give_the_runs_of_one(
    fresh: Prepared, tmp_path: Path, how: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, from caches and dense; the shards are of the same queries and pages."""
    monkeypatch.setattr(rerank, "DENSE_PAGES", 1)
    queries = write_queries(tmp_path / "q.jsonl", *(MANY[:2] if how else MANY))
    found, keys = [], []
    for device in ("cpu", "cpu,cpu"):
        made = reranked(fresh, queries, "--device", device, *how)
        found.append({path.name: path.read_bytes() for path in made.glob("*run*")})
        keys.append(shards(fresh.work, "rerank"))
        for folder in ("rerank", "shards/rerank"):
            shutil.rmtree(fresh.work / folder)
    assert found[0] == found[1]
    assert keys[0] == keys[1]
    assert len(keys[0]) > (2 if how else 4)
