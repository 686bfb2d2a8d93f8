"""Removes artifacts and shards from a workspace; what is left stays usable."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from mmrr.errors import MmrrError
from mmrr.workspace.store import STAGES, Manifest, Workspace


@dataclass(frozen=True, slots=True)
class Removal:
    """What ``remove`` removed."""

    artifacts: list[str]  # stage/fingerprint
    shards: int
    bytes: int


def dependents(manifest: Manifest, artifacts: list[Manifest]) -> list[Manifest]:
    """The artifacts that were made of this one, directly or through others."""
    found: list[Manifest] = []
    names = {manifest.fingerprint}
    for other in artifacts:  # in the order of the data flow
        if other.fingerprint not in names and names & set(other.inputs.values()):
            found.append(other)
            names.add(other.fingerprint)
    return found


def remove(workspace: Workspace, names: list[str], *, cascade: bool) -> Removal:
    """Remove artifacts (``stage/fingerprint``) and every shard that no artifact lists any more.

    With ``cascade`` the artifacts that were made of them are removed too; without it they raise MmrrError. Raises
    MmrrError if another command uses the workspace, because no artifact lists its new shards yet.
    """
    if workspace.others_running():
        raise MmrrError(f"another mmrr command is working in {workspace.root}; try again when it has ended")
    damaged = _damaged(workspace)  # a damaged manifest must not block its own removal
    artifacts = sorted(
        [*workspace.artifacts(but=damaged), *(damaged[name] for name in names if name in damaged)],
        key=lambda manifest: STAGES.index(manifest.stage),
    )
    by_name = {_name(manifest): manifest for manifest in artifacts}
    doomed: set[str] = set()
    for name in names:
        if name not in by_name:
            raise MmrrError(f"no artifact '{name}'; expected stage/fingerprint as in: mmrr ls --work {workspace.root}")
        left = [_name(other) for other in dependents(by_name[name], artifacts)]
        if set(left) - set(names) and not cascade:
            raise MmrrError(f"{name} is needed by {', '.join(left)}; remove them too with --cascade")
        doomed |= {name, *left}
    removed = [manifest for manifest in by_name.values() if _name(manifest) in doomed]
    workspace.forget(removed)
    freed = 0
    for manifest in reversed(removed):  # dependents first, so that an interruption leaves complete chains
        freed += _folder_bytes(manifest.path)
        (manifest.path / "manifest.json").unlink()  # first, so that an interrupted removal leaves no artifact
        shutil.rmtree(manifest.path)
    shards, size = sweep(workspace)
    return Removal([_name(manifest) for manifest in removed], shards, size + freed)


def sweep(workspace: Workspace) -> tuple[int, int]:
    """Remove the shards that no artifact lists. Returns their number and bytes.

    Raises MmrrError if a manifest is damaged, because the shards that it lists are not known.
    """
    listed = {shard for manifest in workspace.artifacts() for shard in manifest.shards}
    count = size = 0
    for stage in STAGES:
        for folder in (workspace.root / "shards" / stage).glob("*/"):
            if (stage, folder.name) not in listed:
                size += _folder_bytes(folder)
                count += 1
                (folder / "shard.json").unlink(missing_ok=True)
                shutil.rmtree(folder)
        for folder in (workspace.root / stage).glob("*/"):
            if not (folder / "manifest.json").exists():  # the remains of an interrupted removal
                size += _folder_bytes(folder)
                shutil.rmtree(folder)
    return count, size


def _damaged(workspace: Workspace) -> dict[str, Manifest]:
    """Placeholders that list no shards, for the artifacts whose manifest cannot be read."""
    found = {}
    for stage in STAGES:
        for path in (workspace.root / stage).glob("*/manifest.json"):
            try:
                workspace.find(stage, path.parent.name)
            except MmrrError:
                manifest = Manifest(
                    stage, path.parent.name, 0, {}, {}, None, {"documents": []}, 0, {}, path=path.parent
                )
                found[_name(manifest)] = manifest
    return found


def _name(manifest: Manifest) -> str:
    return f"{manifest.stage}/{manifest.fingerprint}"


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
