"""What a workspace holds, and taking things away from it without breaking what is left."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from mmrr.artifacts import STAGES, Manifest, Workspace
from mmrr.errors import MmrrError


@dataclass(frozen=True, slots=True)
class Removal:
    """What ``remove`` took away."""

    artifacts: list[str]  # stage/fingerprint
    shards: int
    bytes: int


def shards_of(manifest: Manifest) -> set[tuple[str, str]]:
    """(stage, key) of every shard that an artifact lists."""
    content = manifest.content
    if manifest.stage == "pages":
        return {("pages", key) for entry in content["documents"] for key in entry["shards"]}
    shards = content.get("shards", [])
    keys = set(shards.values() if isinstance(shards, dict) else shards)
    if "shared" in content:
        keys.add(content["shared"])
    return {(manifest.stage, key) for key in keys}


def dependents(manifest: Manifest, artifacts: list[Manifest]) -> list[Manifest]:
    """The artifacts made of this one, directly or through others."""
    found: list[Manifest] = []
    names = {manifest.fingerprint}
    for other in artifacts:  # in the order of the data flow
        if other.fingerprint not in names and names & set(other.inputs.values()):
            found.append(other)
            names.add(other.fingerprint)
    return found


def remove(workspace: Workspace, names: list[str], *, cascade: bool) -> Removal:
    """Remove artifacts (``stage/fingerprint``) and every shard that no artifact lists any more.

    Raises MmrrError if something else was made of one of them, unless ``cascade`` takes that too; and if another
    command is working here, because what it is making is not listed yet.
    """
    if workspace.others_running():
        raise MmrrError(f"another mmrr command is working in {workspace.root}; try again when it has ended")
    artifacts = workspace.artifacts()
    by_name = {f"{manifest.stage}/{manifest.fingerprint}": manifest for manifest in artifacts}
    doomed: dict[str, Manifest] = {}
    for name in names:
        if name not in by_name:
            raise MmrrError(f"no artifact '{name}'; expected stage/fingerprint as in: mmrr ls --work {workspace.root}")
        needed_by = dependents(by_name[name], artifacts)
        left = [f"{other.stage}/{other.fingerprint}" for other in needed_by]
        if set(left) - set(names) and not cascade:
            raise MmrrError(f"{name} is needed by {', '.join(left)}; remove them too with --cascade")
        doomed |= {name: by_name[name], **{other: by_name[other] for other in left}}
    workspace.forget([manifest.stage for manifest in doomed.values() if _is_head(workspace, manifest)])
    freed = 0
    for manifest in reversed(doomed.values()):
        freed += _folder_bytes(manifest.path)
        (manifest.path / "manifest.json").unlink()  # first: an interrupted removal leaves nothing that looks whole
        shutil.rmtree(manifest.path)
    shards, size = sweep(workspace)
    return Removal(list(doomed), shards, size + freed)


def sweep(workspace: Workspace) -> tuple[int, int]:
    """Remove shards that no artifact lists; their number and bytes."""
    listed = {shard for manifest in workspace.artifacts() for shard in shards_of(manifest)}
    count = size = 0
    for stage in STAGES:
        for folder in (workspace.root / "shards" / stage).glob("*/"):
            if (stage, folder.name) not in listed:
                size += _folder_bytes(folder)
                count += 1
                (folder / "shard.json").unlink(missing_ok=True)
                shutil.rmtree(folder)
    return count, size


def _is_head(workspace: Workspace, manifest: Manifest) -> bool:
    head = workspace.head(manifest.stage)
    return head is not None and head.fingerprint == manifest.fingerprint


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
