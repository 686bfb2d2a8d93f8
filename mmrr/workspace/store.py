"""The workspace on disk. Only this module knows the paths in it. A crash leaves either the old files or the new ones.

It writes two kinds of folder. Each is written in a scratch folder, flushed, and renamed into place:

* a *shard* in ``shards/<stage>/<key>/``: the result of one stage for up to 16 consecutive pages of one document. Its
  key is a hash of everything it depends on, so a collection grows by new shards alone;
* an *artifact* in ``<stage>/<fingerprint>/``: ``manifest.json``, which lists shards, and small files.

This module knows no model, no index library and no command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import xxhash

from mmrr.errors import MmrrError
from mmrr.workspace.artifact import Manifest as Manifest  # "as": other modules import these two from here
from mmrr.workspace.artifact import Spec as Spec
from mmrr.workspace.current import Current
from mmrr.workspace.files import (
    HashCache,
    check_file,
    check_folder,
    checksum_file,
    environment,
    expand_user,
    flush,
    move,
    parse_json,
    read_file,
    remove_file,
    remove_tree,
    seal,
    unseal,
    write_atomically,
    wrong_size,
)
from mmrr.workspace.scratch import Scratch

#: Consecutive pages of one document in a shard. It bounds memory, and the work that an interruption loses.
SHARD_PAGES = 16
#: In the order of the data flow.
STAGES = ("pages", "embed", "embed_text", "index", "retrieve", "prune", "precache", "rerank", "eval")

#: The folder of the PDFs that were made of office files.
CONVERTED = "converted"

_MARK, _MARK_TEXT = "mmrr.json", '{"schema":1}'
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: a Path has only one
_KEY = re.compile(r"[0-9a-f]{12,64}")
_SHARD = re.compile(r"[0-9a-f]{12,64}(\.damaged-[0-9a-f]{6})?")


class NotWritableError(MmrrError):
    """This user cannot write to the workspace."""


class Workspace:
    """One folder of artifacts. Open it with ``Workspace.open`` and use it as a context manager."""

    def __init__(self, root: Path, run: str | None = None, made: Sequence[Path] = ()) -> None:
        """``run`` is the id of the command that this process helps, so that both write to one scratch folder.

        ``made`` are the files and folders that opening this workspace created, in that order.
        """
        self.root = root
        self._made = tuple(made)
        self._scratch = Scratch(root, run)
        self.hashes = HashCache(root / "hashes.json")
        self.all_current = Current(root, STAGES)

    @classmethod
    def open(cls, root: Path, *, create: bool = False) -> Workspace:
        """Open a workspace. With ``create``, make one where there is none.

        A new workspace in which the command commits nothing is removed again when it is closed after an error.
        Raises MmrrError if there is no workspace, or if ``create`` would write into a folder that holds other files.
        """
        if _URL.match(str(root)):
            raise MmrrError(f"found a URL ({root}), expected a folder for the workspace; mmrr uses local files only")
        root = expand_user(root).absolute()
        made: list[Path] = []
        if not (root / _MARK).exists():
            if not create:
                raise MmrrError(f"no workspace at {root}; make one with: mmrr index DOCUMENTS --work {root}")
            if root.exists() and not root.is_dir():
                raise MmrrError(f"--work {root} is a file; expected a folder")
            try:
                made = [path for path in (*reversed(root.parents), root) if not path.exists()]
                root.mkdir(parents=True, exist_ok=True)
                # Another command may be making the same workspace now, or was killed while it made it.
                if all(path.name.startswith((_MARK, f".{_MARK}.")) for path in root.iterdir()):
                    write_atomically(root / _MARK, _MARK_TEXT)
                    made.append(root / _MARK)
                elif not (root / _MARK).exists():
                    raise MmrrError(
                        f"--work {root} holds other files and no workspace; choose a new or an empty folder"
                    )
            except OSError as error:
                raise MmrrError(f"--work {root} cannot be made: {error.strerror}") from error
        return cls(root, made=made)

    def __reduce__(self) -> tuple[type[Workspace], tuple[Path, str]]:
        """A copy for a helper process: the same folder, under the lock that this process holds."""
        return Workspace, (self.root, self._scratch.run)

    def __enter__(self) -> Self:
        for name in ("tmp", CONVERTED, "shards", *STAGES, *(f"shards/{stage}" for stage in STAGES)):
            check_folder(self.root / name)
        try:
            self._scratch.open()
        except OSError as error:
            kind = NotWritableError if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) else MmrrError
            raise kind(f"{self.root} cannot be written: {error.strerror}") from error
        self._scratch.sweep()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.hashes.save()
        self._scratch.close()
        if kind is not None and self._made:
            self._unmake()

    def _unmake(self) -> None:
        """Remove the workspace that this command made, if nothing was committed and no other command uses it."""
        with contextlib.suppress(OSError):  # a folder that is not empty stays, and everything above it
            (self.root / "tmp").rmdir()
            if {path.name for path in self.root.iterdir()} <= {_MARK, "hashes.json"}:
                (self.root / "hashes.json").unlink(missing_ok=True)
                for path in reversed(self._made):
                    if path.is_dir():
                        path.rmdir()
                    else:
                        path.unlink()

    def others_running(self) -> bool:
        """Whether another command uses this workspace now."""
        return self._scratch.others()

    def check_mark(self) -> None:
        """Raise MmrrError if the file that makes a folder a workspace is damaged. Other commands do not read it."""
        path = self.root / _MARK
        try:
            if parse_json(path.read_bytes()) != json.loads(_MARK_TEXT):
                raise ValueError("it has another schema")
        except (ValueError, OSError) as error:
            raise MmrrError(f"{path} is damaged ({error}); replace what is in it by: {_MARK_TEXT}") from error

    # Artifacts

    def find(self, stage: str, fingerprint: str) -> Manifest | None:
        """The committed artifact, or None. Raises MmrrError if its manifest is damaged."""
        folder = self.root / _stage(stage) / _key(fingerprint)
        path = folder / "manifest.json"
        check_folder(folder)
        try:
            manifest = Manifest(**unseal(read_file(path)), path=folder)
            if (manifest.stage, manifest.fingerprint) != (stage, fingerprint):
                raise ValueError(f"it belongs to {manifest.stage}/{manifest.fingerprint}")
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise MmrrError(f"{path} cannot be read; make it readable for this user") from error
        except (ValueError, TypeError, IsADirectoryError) as error:
            raise MmrrError(
                f"{path} is damaged ({error}); "
                f"remove it with: mmrr rm {stage}/{fingerprint} --cascade --work {self.root}"
            ) from error
        return manifest

    def stamp(self, stage: str, fingerprint: str) -> int | None:
        """Changes when the manifest of an artifact is written again; None if there is none."""
        try:
            return (self.root / _stage(stage) / _key(fingerprint) / "manifest.json").lstat().st_mtime_ns
        except OSError:
            return None

    def done(self, spec: Spec) -> Manifest | None:
        """The committed artifact if it has all its shards and its own files are whole; the stage then has no work.

        An artifact with damaged files is withdrawn, so that the stage makes it again.
        """
        manifest = self.find(spec.stage, spec.fingerprint)
        if manifest is None or not all(self.has_shard(*shard) for shard in manifest.shards):
            return None
        try:
            for name in manifest.files:
                self.own_file(manifest, name)
        except MmrrError:
            remove_file(self.root, manifest.path / "manifest.json")  # a folder without a manifest is no artifact
            return None
        return manifest

    def own_file(self, manifest: Manifest, name: str) -> Path:
        """The path of an artifact's own file or folder, checked. Raises MmrrError if it changed or is gone."""
        path = manifest.path / name
        for own, checksum in manifest.files.items():
            if own == name or own.startswith(f"{name}/"):
                file = manifest.path / own
                if file.is_symlink() or not file.is_file() or checksum_file(file) != checksum:
                    raise MmrrError(f"{file} is gone or damaged; {again(manifest.stage)}")
        return path

    def artifacts(self) -> list[Manifest]:
        """The committed artifacts in the order of the data flow, oldest first.

        Raises MmrrError if a manifest is damaged.
        """
        found, unreadable = self.scan()
        for error in unreadable.values():
            raise error
        return found

    def scan(self) -> tuple[list[Manifest], dict[str, MmrrError]]:
        """As ``artifacts``, and {stage/fingerprint: error} of the artifacts that cannot be read."""
        found, unreadable = [], {}
        for stage in STAGES:
            for folder in self.folders(stage):
                try:
                    manifest = self.find(stage, folder.name)
                except MmrrError as error:
                    unreadable[f"{stage}/{folder.name}"] = error
                else:
                    found += [manifest] if manifest else []
        found.sort(key=lambda m: (STAGES.index(m.stage), str(m.provenance.get("created"))))
        return found, unreadable

    def folders(self, stage: str, *, of_shards: bool = False) -> list[Path]:
        """The folders of a stage's artifacts, or of its shards, by their names. Others are not the workspace's.

        A symbolic link with such a name is in the list: ``check_folder`` tells it from a folder.
        """
        place, name = (self.root / "shards" / stage, _SHARD) if of_shards else (self.root / stage, _KEY)
        return sorted(path for path in place.glob("*") if name.fullmatch(path.name))

    def commit(
        self,
        spec: Spec,
        content: Mapping[str, object],
        size: int,
        provenance: Mapping[str, Any] | None = None,
        write: Callable[[Path], object] = lambda folder: None,
    ) -> Manifest:
        """Write the artifact's files with ``write(folder)``, then its manifest. ``size``: the bytes of its shards."""
        folder = self.root / _stage(spec.stage) / spec.fingerprint
        aside = self.scratch()
        write(aside)
        own = sorted(path for path in aside.rglob("*") if path.is_file())
        values = {
            **dataclasses.asdict(spec),
            "fingerprint": spec.fingerprint,
            "content": content,
            "bytes": size + sum(path.stat().st_size for path in own),
            "files": {path.relative_to(aside).as_posix(): checksum_file(path) for path in own},
            "provenance": {**environment(), **(provenance or {})},
        }
        write_atomically(aside / "manifest.json", seal(values, indent=1))
        self._move(aside, folder)
        manifest = self.find(spec.stage, spec.fingerprint)
        assert manifest is not None
        return manifest

    def annotate(self, manifest: Manifest, **values: object) -> Manifest:
        """Set fields of an artifact's provenance. The fingerprint does not depend on them."""
        if all(manifest.provenance.get(name) == value for name, value in values.items()):
            return manifest
        path = manifest.path / "manifest.json"
        stored = unseal(path.read_bytes())
        stored["provenance"] |= values
        write_atomically(path, seal(stored, indent=1))
        return dataclasses.replace(manifest, provenance=stored["provenance"])

    # Shards

    def shard(self, stage: str, key: str) -> Path:
        """The folder of a shard, which may not exist yet. Raises MmrrError if it is a symbolic link."""
        folder = self.root / "shards" / _stage(stage) / _key(key)
        check_folder(folder)
        return folder

    def converted(self, sha256: str) -> Path:
        """The PDF that was made of an office file with this content. It may not exist yet.

        Raises MmrrError if a symbolic link is in its place.
        """
        path = self.root / CONVERTED / f"{_key(sha256)}.pdf"
        check_folder(path.parent)
        check_file(path)
        return path

    def all_converted(self) -> list[Path]:
        """The PDFs that were made of office files, by their names. Others are not the workspace's."""
        check_folder(self.root / CONVERTED)
        return sorted(path for path in (self.root / CONVERTED).glob("*.pdf") if _KEY.fullmatch(path.stem))

    def has_shard(self, stage: str, key: str) -> bool:
        """Whether a shard exists and each of its files has the recorded size; a damaged shard is set aside.

        It reads ``shard.json`` and asks for the size of each file. The contents are checked when they are read.
        """
        folder = self.shard(stage, key)
        try:
            problem = wrong_size(folder, unseal(read_file(folder / "shard.json"))["files"])
        except FileNotFoundError:
            return False
        except (ValueError, IsADirectoryError) as error:
            problem = f"shard.json: {error}"
        if problem:
            self.damaged(stage, key, problem)
        return not problem

    def scratch(self) -> Path:
        """A new scratch folder. It is removed when the workspace is closed, or swept after the process died."""
        return self._scratch.new()

    def discard(self, folder: Path) -> None:
        """Delete a scratch folder that is not needed any more."""
        remove_tree(self.root, folder, ignore_errors=True)

    def commit_shard(self, stage: str, key: str, folder: Path, record: dict[str, Any]) -> None:
        """Turn a scratch folder into a shard: write sizes and checksums to ``shard.json``, then rename the folder.

        Files that have an entry in ``record["files"]`` are not read again.
        """
        files = record.setdefault("files", {})
        for path in sorted(folder.iterdir()):
            files.setdefault(path.name, {"bytes": path.stat().st_size, "xxh3": checksum_file(path)})
        record["bytes"] = sum(entry["bytes"] for entry in files.values())
        write_atomically(folder / "shard.json", seal(record))
        self._move(folder, self.shard(stage, key))

    def shard_bytes(self, stage: str, keys: Iterable[str]) -> int:
        """The bytes of the files of these shards; a key given twice counts once."""
        return sum(int(self.shard_record(stage, key)["bytes"]) for key in set(keys))

    def shard_record(self, stage: str, key: str) -> dict[str, Any]:
        """The record that ``commit_shard`` wrote. Any: JSON, typed by ``manifests.shard_record``.

        Raises MmrrError if the shard is gone or damaged; a damaged one is set aside.
        """
        path = self.shard(stage, key) / "shard.json"
        try:
            return unseal(read_file(path))
        except FileNotFoundError:
            raise MmrrError(f"shard {stage}/{key} is gone from {self.root}; {again(stage)}") from None
        except (ValueError, IsADirectoryError) as error:
            raise self.damaged(stage, key, f"shard.json: {error}") from error

    def read_shard_file(self, stage: str, key: str, name: str) -> bytes:
        """The bytes of a small file of a shard, checked. Raises MmrrError if they changed or are gone."""
        expected = self.shard_record(stage, key)["files"].get(name, {})
        try:
            data = read_file(self.shard(stage, key) / name)
        except FileNotFoundError:
            raise self.damaged(stage, key, f"{name} is missing") from None
        except (ValueError, IsADirectoryError) as error:
            raise self.damaged(stage, key, f"{name}: {error}") from None
        if xxhash.xxh3_64_hexdigest(data) != expected.get("xxh3"):
            raise self.damaged(stage, key, f"{name} does not match its checksum")
        return data

    def damaged(self, stage: str, key: str, what: str) -> MmrrError:
        """Set a damaged shard aside, so that the stage's command computes it again. Returns the error to raise."""
        folder = self.shard(stage, key)
        check_folder(folder)
        with contextlib.suppress(OSError):
            move(self.root, folder, folder.with_name(f"{folder.name}.damaged-{uuid.uuid4().hex[:6]}"))
        return MmrrError(
            f"{stage} shard {key} is damaged: {what}; it was set aside, {again(stage)} to compute that shard"
        )

    # The current artifacts, which later commands follow

    def current(self, stage: str) -> Manifest | None:
        """The artifact of a stage that later commands follow, or None."""
        fingerprint = self.all_current.read().get(stage)
        return self.find(stage, fingerprint) if fingerprint else None

    def set_current(self, *manifests: Manifest) -> list[Manifest]:
        """Make these artifacts current. Returns those that were not current before."""
        new = {manifest.stage: manifest.fingerprint for manifest in manifests}
        known = self.all_current.change(lambda known: known | new)
        return [manifest for manifest in manifests if known.get(manifest.stage) != manifest.fingerprint]

    def replace_current(self, old: Manifest | None, new: Manifest) -> bool:
        """Make ``new`` current if ``old`` still is. Returns False if another command moved the stage meanwhile."""
        expected = old.fingerprint if old else None
        move = {new.stage: new.fingerprint}
        known = self.all_current.change(lambda known: known | move if known.get(new.stage) == expected else known)
        return known.get(new.stage) == expected

    def forget(self, manifests: Iterable[Manifest]) -> None:
        """Leave the stages whose current artifact is one of these without a current artifact."""
        gone = {(manifest.stage, manifest.fingerprint) for manifest in manifests}
        self.all_current.change(lambda known: {one: name for one, name in known.items() if (one, name) not in gone})

    def _move(self, folder: Path, target: Path) -> None:
        """Flush a finished folder to disk and rename it into place, unless another command has written the target."""
        for path in (*folder.rglob("*"), folder):  # flushing a folder makes the names in it durable
            flush(path)
        check_folder(target)
        if target.exists() and not any((target / name).exists() for name in ("manifest.json", "shard.json")):
            remove_tree(self.root, target, ignore_errors=True)  # the remains of an interrupted removal
        try:
            move(self.root, folder, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        flush(target.parent)


def _stage(stage: str) -> str:
    if stage not in STAGES:
        raise MmrrError(f"no stage '{stage}'; expected one of: {', '.join(STAGES)}")
    return stage


def _key(key: str) -> str:
    if not _KEY.fullmatch(key):  # keys become folder names, so only hashes are accepted
        raise MmrrError(f"'{key}' is not a fingerprint; see: mmrr ls")
    return key


def again(stage: str) -> str:
    """What to do where something of a stage is damaged or gone."""
    return f"run the {command(stage).split()[0]} command again"


def command(stage: str) -> str:
    """The command that makes a stage's artifact, with the argument that it needs."""
    if stage in ("pages", "embed", "embed_text", "index"):
        return "index DOCUMENTS"
    return f"{stage} --queries FILE" if stage in ("retrieve", "rerank") else stage
