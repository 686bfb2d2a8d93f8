"""Removes artifacts and shards from a workspace; what is left stays usable."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path

from mmrr.errors import MmrrError
from mmrr.workspace.files import check_folder, remove_file, remove_tree
from mmrr.workspace.store import CONVERTED, STAGES, Manifest, Workspace


@dataclass(frozen=True, slots=True)
class Removal:
    """What ``remove`` removed."""

    artifacts: list[str]  # stage/fingerprint
    shards: int
    bytes: int
    by_stage: dict[str, int] = field(default_factory=dict)  # shards; "converted": PDFs that were made of office files
    unlisted: int = 0  # shards that stay although no artifact lists them: finished work of interrupted commands
    unlisted_bytes: int = 0


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

    Shards that no artifact listed before are the finished work of commands that were interrupted. They stay, unless
    ``names`` is empty. With ``cascade`` the artifacts that were made of these are removed too; without it they raise
    MmrrError. Raises MmrrError if another command uses the workspace, because no artifact lists its new shards yet.
    Raises it too, and removes nothing, if a symbolic link is where a folder is expected.
    """
    if workspace.others_running():
        raise MmrrError(f"another mmrr command is working in {workspace.root}; try again when it has ended")
    for stage in STAGES:  # before anything is deleted
        for folder in (*workspace.folders(stage), *workspace.folders(stage, of_shards=True)):
            check_folder(folder)
    workspace.all_converted()
    artifacts, unreadable = workspace.scan()
    # A damaged manifest must not block its own removal.
    artifacts += [_placeholder(workspace, name) for name in dict.fromkeys(names) if name in unreadable]
    artifacts.sort(key=lambda manifest: STAGES.index(manifest.stage))
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
        _remove(workspace, manifest.path, "manifest.json")
    # Without names, everything goes. What a damaged manifest lists is not known.
    all_known = bool(names) and not set(names) & unreadable.keys()
    only = {shard for manifest in removed for shard in _listed(manifest)} if all_known else None
    swept = sweep(workspace, only)
    return dataclasses.replace(swept, artifacts=[_name(manifest) for manifest in removed], bytes=swept.bytes + freed)


def sweep(workspace: Workspace, only: Set[tuple[str, str]] | None = None) -> Removal:
    """Remove the shards that no artifact lists: all of them, or those in ``only`` (stage, key) and damaged ones.

    Raises MmrrError if a manifest is damaged, because the shards that it lists are not known.
    """
    listed = {shard for manifest in workspace.artifacts() for shard in _listed(manifest)}
    counts: Counter[str] = Counter()
    size = kept = kept_size = 0
    for stage in (*STAGES, CONVERTED):
        for folder in workspace.folders(stage, of_shards=True) if stage != CONVERTED else workspace.all_converted():
            shard = stage, folder.stem
            if shard in listed:
                continue
            n_bytes = _folder_bytes(folder)
            if only is not None and shard not in only and ".damaged-" not in folder.name:
                kept, kept_size = kept + 1, kept_size + n_bytes
                continue
            size += n_bytes
            counts[stage] += 1
            if stage == CONVERTED:
                remove_file(workspace.root, folder)
            else:
                _remove(workspace, folder, "shard.json")
        for folder in workspace.folders(stage) if stage != CONVERTED else []:
            if not (folder / "manifest.json").exists():  # the remains of an interrupted removal
                size += _folder_bytes(folder)
                remove_tree(workspace.root, folder)
    return Removal([], counts.total(), size, dict(counts), kept, kept_size)


def _listed(manifest: Manifest) -> set[tuple[str, str]]:
    """The shards of an artifact, and the PDFs that were made of its office files."""
    if manifest.stage != "pages":
        return manifest.shards
    return manifest.shards | {(CONVERTED, entry.get("sha256", "")) for entry in manifest.content["documents"]}


def _remove(workspace: Workspace, folder: Path, listing: str) -> None:
    """Delete an artifact or a shard, its listing first, so that an interruption leaves nothing that looks whole."""
    with contextlib.suppress(OSError):  # the listing may be damaged in any way; the next line raises what matters
        remove_file(workspace.root, folder / listing)
    remove_tree(workspace.root, folder)


def _placeholder(workspace: Workspace, name: str) -> Manifest:
    """A manifest that lists no shards, for an artifact whose manifest cannot be read."""
    stage, fingerprint = name.split("/")
    path = workspace.root / stage / fingerprint
    return Manifest(stage, fingerprint, 0, {}, {}, None, {"documents": []}, 0, {}, path=path)


def _name(manifest: Manifest) -> str:
    return f"{manifest.stage}/{manifest.fingerprint}"


def _folder_bytes(folder: Path) -> int:
    files = folder.rglob("*") if folder.is_dir() and not folder.is_symlink() else [folder]
    return sum(path.lstat().st_size for path in files if path.is_file())
