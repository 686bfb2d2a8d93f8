"""Checks every byte of a workspace against its checksums. This module knows artifacts and shards, not models."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from mmrr.errors import MmrrError
from mmrr.types import Progress, silent
from mmrr.workspace.files import wrong_size
from mmrr.workspace.store import STAGES, Manifest, Workspace, command
from mmrr.workspace.tensors import PageCacheReader


@dataclass(frozen=True, slots=True)
class Verified:
    """What was read, and its problems: one line each, with the command that repairs it."""

    artifacts: int
    shards: int
    bytes: int
    problems: list[str]


def verify(workspace: Workspace, progress: Progress = silent) -> Verified:
    """Read all artifacts and their shards. Damaged shards are set aside, so that their command computes them again."""
    manifests, unreadable = workspace.scan()
    problems = [*_listings(workspace, manifests, unreadable), *map(str, unreadable.values())]
    names = {manifest.fingerprint for manifest in manifests}
    for manifest in manifests:
        name = f"{manifest.stage}/{manifest.fingerprint}"
        problems += [
            f"{name} was made of {stage}/{fingerprint}, which is gone"
            for stage, fingerprint in manifest.inputs.items()
            if stage in STAGES and fingerprint not in names
        ]
        for own in manifest.files:
            try:
                workspace.own_file(manifest, own)
            except MmrrError as error:
                problems.append(str(error))
    shards = sorted({shard for manifest in manifests for shard in manifest.shards})
    size = sum(path.stat().st_size for manifest in manifests for path in manifest.path.rglob("*") if path.is_file())
    with progress("verify", len(shards)) as advance:
        for stage, key in shards:
            try:
                size += _check(workspace, stage, key)
            except MmrrError as error:
                problems.append(str(error))
            advance(1)
    return Verified(len(manifests), len(shards), size, problems)


def _listings(workspace: Workspace, manifests: Sequence[Manifest], unreadable: Container[str]) -> Iterator[str]:
    """The problems of the two files that belong to no artifact."""
    try:
        workspace.check_mark()
    except MmrrError as error:
        yield str(error)
    try:
        current = workspace.all_current.read()
    except MmrrError as error:
        yield str(error)
        return
    there = {(manifest.stage, manifest.fingerprint) for manifest in manifests}
    for stage, fingerprint in current.items():
        if (stage, fingerprint) not in there and f"{stage}/{fingerprint}" not in unreadable:
            yield (
                f"{workspace.all_current.path}: {stage}/{fingerprint} is current and there is no such artifact; "
                f"run: mmrr {command(stage)} --work {workspace.root}"
            )


def _check(workspace: Workspace, stage: str, key: str) -> int:
    """Read one whole shard and return its size in bytes. Raises MmrrError if a byte changed or a file is gone."""
    record = workspace.shard_record(stage, key)
    if problem := wrong_size(workspace.shard(stage, key), record["files"]):
        raise workspace.damaged(stage, key, problem)
    for name, entry in record["files"].items():
        if "xxh3" in entry:
            workspace.read_shard_file(stage, key, name)
    if "tensors" in record:  # checked tensor by tensor, as a query reads them
        reader = PageCacheReader(workspace)
        for page in dict.fromkeys(name.split(".", 1)[0] for name in record["tensors"]):
            reader.read(key, page)
    return int(record["bytes"])
