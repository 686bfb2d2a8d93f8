"""``mmrr verify`` names every kind of damage with the command that repairs it, and the command repairs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.console import FP32, INDEX, THESIS, copy_workspace, mmrr, write_documents, write_queries


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path, tiny_embedder_path: Path) -> Path:
    root = tmp_path_factory.mktemp("verify")
    write_documents(root / "docs", thesis=THESIS)
    write_queries(root / "queries.jsonl", ("q1", "When is the thesis due?"), ("q2", "lorem ipsum"))
    mmrr("index", root / "docs", "--work", root / "work", "--embedder", tiny_embedder_path, *INDEX, *FP32)
    mmrr("precache", "--work", root / "work", "--scorer-model", tiny_path, *FP32)
    mmrr("rerank", "--queries", root / "queries.jsonl", "--work", root / "work")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return copy_workspace(made, tmp_path / "copy")


def damaged(root: Path) -> list[str]:
    result = mmrr("verify", "--work", root / "work", "--json", code=1)
    problems = json.loads(result.stdout)["problems"]
    assert problems
    return problems


def one(root: Path, pattern: str) -> Path:
    return sorted((root / "work" / "shards").glob(pattern))[0]


def test_a_whole_workspace_and_its_scores(root: Path) -> None:
    """Scores from pruned caches are within 1e-4 in float32 of forwards over the same tokens without a cache."""
    told = json.loads(mmrr("verify", "--work", root / "work", "--rescore", "4", "--json").stdout)
    assert told["problems"] == []
    assert told["shards"] >= 6
    assert told["bytes"] >= sum(path.stat().st_size for path in (root / "work" / "shards").rglob("*.safetensors"))
    assert told["rescored"]["pairs"] == 4
    assert told["rescored"]["largest_difference"] <= 1e-4
    text = mmrr("verify", "--work", root / "work", "--rescore", "1").stdout
    assert "all as written" in text
    assert "1 score with and without caches" in text


def test_quantised_caches_differ_and_it_is_said(root: Path, tiny_path: Path) -> None:
    mmrr("precache", "--work", root / "work", "--scorer-model", tiny_path, "--codec", "int4", *FP32)
    told = json.loads(mmrr("verify", "--work", root / "work", "--rescore", "4", "--json").stdout)
    assert 1e-6 < told["rescored"]["largest_difference"] < 1


@pytest.mark.parametrize("pattern", ["precache/*/states.safetensors", "pages/*/0001.png", "embed/*/*.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_named_and_mended_by_the_command_named(
    root: Path, pattern: str, damage: str, tiny_path: Path, tiny_embedder_path: Path
) -> None:
    path = one(root, pattern)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) * 3 // 4] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    (problem,) = damaged(root)
    stage = pattern.split("/")[0]
    assert problem.startswith(f"{stage} shard {path.parent.name} is damaged")
    assert f"run the {'precache' if stage == 'precache' else 'index'} command again" in problem
    mmrr("index", root / "docs", "--work", root / "work", "--embedder", tiny_embedder_path, *INDEX, *FP32)
    mmrr("precache", "--work", root / "work", "--scorer-model", tiny_path, *FP32)
    assert "all as written" in mmrr("verify", "--work", root / "work").stdout


def test_a_shard_of_another_artifact_is_noticed(root: Path, tiny_path: Path) -> None:
    """The file is whole and belongs to another shard."""
    mmrr("precache", "--work", root / "work", "--scorer-model", tiny_path, "--keep", "0.25", *FP32)
    first, *_, other = sorted((root / "work" / "shards" / "precache").glob("*/states.safetensors"))
    assert first.read_bytes() != other.read_bytes()
    first.write_bytes(other.read_bytes())
    (problem,) = damaged(root)
    assert first.parent.name in problem


def test_artifacts_themselves(root: Path) -> None:
    work = root / "work"
    (own,) = (work / "retrieve").glob("*/run.trec")
    own.write_text(own.read_text() + "q9 Q0 thesis.pdf/0001 1 1.0 x\n")
    (manifest,) = (work / "prune").glob("*/manifest.json")
    manifest.write_text(manifest.read_text().replace("0.5", "0.6"))
    problems = damaged(root)
    assert any("run.trec is gone or damaged" in problem for problem in problems)
    assert any("prune" in problem and "manifest.json is damaged" in problem for problem in problems)
    assert any("was made of prune/" in problem and "which is gone" in problem for problem in problems)
