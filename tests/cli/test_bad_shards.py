"""A shard with a file that is cut, gone or too long: the command that made the shard computes it again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrr.workspace.files import unseal
from tests.cli.chain import Chain
from tests.console import files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def remove_shard(path: Path) -> None:
    shutil.rmtree(path.parent)


HARMS = {"cut": cut, "emptied": lambda path: path.write_bytes(b""), "longer": lengthen, "gone": Path.unlink}


def make_again(chain: Chain, stage: str) -> None:
    """Run the command that makes a stage's shards, as before."""
    if stage in ("pages", "embed"):
        chain.index()
    elif stage in ("prune", "precache"):
        chain.precache()
    else:
        chain.rerank()


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    [
        "pages/*/0001.png",
        "pages/*/text.jsonl",
        "pages/*/shard.json",
        "embed/*/embeddings.safetensors",
        "prune/*/keep.safetensors",
        "precache/*/states.safetensors",
        "precache/*/shard.json",
        "retrieve/*/shard.json",
        "rerank/*/shard.json",
    ],
)
@pytest.mark.parametrize("harm", [*HARMS, "shard gone"])
def test_the_same_command_mends_a_shard(chain: Chain, pattern: str, harm: str) -> None:
    """No command looked for damage before. The other shards are not written again."""
    shards = chain.work / "shards"
    path = sorted(shards.glob(pattern))[0]
    stage, own = pattern.split("/")[0], path.parent.relative_to(chain.work).as_posix()
    before, data = files(chain.work), path.read_bytes()
    harms: dict[str, Callable[[Path], object]] = {**HARMS, "shard gone": remove_shard}
    harms[harm](path)
    make_again(chain, stage)
    if stage == "rerank":  # its record holds a time
        assert unseal(path.read_bytes())["logits"] == unseal(data)["logits"]
    else:
        assert path.read_bytes() == data
    after = files(chain.work)
    others = {name for name in before if name.startswith("shards/") and not name.startswith(own)}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    make_again(chain, stage)
    assert files(chain.work) == after
