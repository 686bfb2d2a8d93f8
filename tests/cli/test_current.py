"""Which artifacts later commands follow, and which commands move that."""

from __future__ import annotations

from tests.cli.chain import QUESTION, Chain
from tests.console import (
    artifact,
    manifest,
    mmrr,
    refused,
    write_documents,
)

# The head


def test_a_cache_of_other_pages_is_refused_with_the_command_to_run(chain: Chain) -> None:
    write_documents(chain.docs, new=["A new report on tides"])
    chain.index()
    assert f"run: mmrr precache --work {chain.work}" in refused("rerank", QUESTION, "--work", chain.work)
    chain.precache()
    mmrr("rerank", QUESTION, "--work", chain.work)


def test_from_chooses_an_older_artifact(chain: Chain) -> None:
    old_index, old_cache, old_run = chain.index(), chain.precache(), chain.rerank()
    write_documents(chain.docs, new=["A new report on tides"])
    chain.index()
    new_cache = chain.precache("--keep", "0.25")
    assert chain.rerank() != old_run
    older = ("--from", f"index/{old_index.name}", "--from", f"precache/{old_cache.name}")
    assert chain.rerank(*older) == old_run
    wrong = refused("rerank", QUESTION, "--work", chain.work, "--from", f"index/{old_index.name}")
    assert new_cache.name in wrong
    assert "made of other pages" in wrong


def test_pruning_is_followed_by_precache(chain: Chain) -> None:
    pruned = artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2"))
    cached = chain.precache()
    assert manifest(cached)["inputs"]["prune"] == pruned.name
    assert manifest(pruned)["content"]["kept"] < manifest(pruned)["content"]["tokens"] / 2


def test_random_pruning_keeps_as_many_and_the_same_again(chain: Chain) -> None:
    """A baseline: as many tokens, others, no two pages alike; precache follows it."""
    by_attention = artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2"))
    at_random = artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2", "--by", "random"))
    assert at_random != by_attention
    contents = [manifest(path)["content"] for path in (by_attention, at_random)]
    assert contents[0]["kept"] == contents[1]["kept"]
    key = next(iter(contents[1]["shards"].values()))
    folder = chain.work / "shards" / "prune" / key
    chosen = {path.name: path.read_bytes() for path in folder.iterdir()}
    cached = chain.precache()
    assert manifest(cached)["inputs"]["prune"] == at_random.name
    mmrr("rm", f"prune/{at_random.name}", "--work", chain.work, "--cascade")
    artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2", "--by", "random"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == chosen
    assert "expected attention or random" in refused("prune", "--work", chain.work, "--by", "chance")
