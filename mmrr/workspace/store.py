"""The workspace: the only code that knows where things lie, and that makes a crash leave the old or the new, whole.

Two kinds of thing are written, both by "write aside, flush, rename":

* a *shard*: what one stage computed for up to 16 consecutive pages of one document, in
  ``shards/<stage>/<key>/``, named by a hash of everything it depends on. Collections grow by new shards alone;
* an *artifact*: ``<stage>/<fingerprint>/manifest.json`` (and small files), which lists the shards it is made of.

It knows no model, no index library, no command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import xxhash
from filelock import FileLock, Timeout

from mmrr import __version__
from mmrr.errors import MmrrError
from mmrr.workspace.files import HashCache, canonical_json, checksum_file, digest, flush, seal, unseal, write_atomically

#: Consecutive pages of one document in a shard: bounds memory, and is what an interruption can cost.
SHARD_PAGES = 16
#: In the order of the data flow.
STAGES = ("pages", "embed", "index", "retrieve", "prune", "precache", "rerank", "eval")

_MARK = "mmrr.json"
_KEY = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything an artifact depends on, and nothing else: its hash is its name."""

    stage: str
    schema: int  # bumped by hand when the meaning of the stage's output changes
    config: dict[str, Any]
    inputs: dict[str, str]  # role -> fingerprint of an artifact, or content hash of a file
    model: dict[str, str] | None = None  # id, revision, dtype

    @property
    def fingerprint(self) -> str:
        return digest(self._hashed())[:12]

    def shard_key(self, *inputs: str) -> str:
        """The name of the shard that this stage makes of these input shards or files.

        The artifact's own inputs stay out of it: the same page under the same settings is one shard in every artifact.
        """
        return digest({**self._hashed(), "inputs": list(inputs)})[:24]

    def _hashed(self) -> dict[str, Any]:
        # The revision says all about a model; its name may be a path that differs between machines.
        model = {key: value for key, value in (self.model or {}).items() if key != "id"}
        return {
            "stage": self.stage,
            "schema": self.schema,
            "config": self.config,
            "inputs": self.inputs,
            "model": model,
        }


@dataclass(frozen=True, slots=True)
class Manifest:
    """A committed artifact."""

    stage: str
    fingerprint: str
    schema: int
    config: dict[str, Any]
    inputs: dict[str, str]
    model: dict[str, str] | None
    content: dict[str, Any]  # what the stage lists: documents, shards, counts
    bytes: int  # of the shards and files it lists
    files: dict[str, str]  # checksums of the artifact's own files
    provenance: dict[str, Any] = field(default_factory=dict)  # recorded, never hashed
    path: Path = Path()

    @property
    def shards(self) -> set[tuple[str, str]]:
        """(stage, key) of every shard that the artifact lists."""
        if self.stage == "pages":
            entries = self.content["documents"]
            return {("pages", key) for entry in entries for key in (*entry["shards"], *entry.get("ocr", {}).values())}
        shards = self.content.get("shards", [])
        keys = set(shards.values() if isinstance(shards, dict) else shards)
        if "shared" in self.content:
            keys.add(self.content["shared"])
        return {(self.stage, key) for key in keys}


class Workspace:
    """One folder of artifacts. Open it with ``Workspace.open``; use it as a context manager."""

    def __init__(self, root: Path, run: str | None = None) -> None:
        """``run``: of the command that this process helps, to write where that one does."""
        self.root = root
        self._run = run or f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock = FileLock(root / "tmp" / f"{self._run}.lock")
        self.hashes = HashCache(root / "hashes.json")

    @classmethod
    def open(cls, root: Path, *, create: bool = False) -> Workspace:
        """Open a workspace, or make one with ``create``.

        Raises MmrrError if there is none, or if ``create`` would scatter files into somebody else's folder.
        """
        root = root.expanduser().absolute()
        if not (root / _MARK).exists():
            if not create:
                raise MmrrError(f"no workspace at {root}; make one with: mmrr index DOCUMENTS --work {root}")
            if root.exists() and not root.is_dir():
                raise MmrrError(f"--work {root} is a file; expected a folder")
            try:
                root.mkdir(parents=True, exist_ok=True)
                # Another command may be making the same workspace, or was killed while it did.
                if all(path.name.startswith((_MARK, f".{_MARK}.")) for path in root.iterdir()):
                    write_atomically(root / _MARK, canonical_json({"schema": 1}))
                elif not (root / _MARK).exists():
                    raise MmrrError(
                        f"--work {root} holds other files and no workspace; choose a new or an empty folder"
                    )
            except OSError as error:
                raise MmrrError(f"--work {root} cannot be made: {error.strerror}") from error
        return cls(root)

    def __reduce__(self) -> tuple[type[Workspace], tuple[Path, str]]:
        """In a helper process: the same folder, under the lock that this process holds."""
        return Workspace, (self.root, self._run)

    def __enter__(self) -> Self:
        try:
            (self.root / "tmp").mkdir(exist_ok=True)
            self._lock.acquire(timeout=10)  # nobody else's, but another command's sweep may hold it for a moment
        except OSError as error:
            raise MmrrError(f"{self.root} cannot be written: {error.strerror}") from error
        self._sweep()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root / "tmp" / self._run, ignore_errors=True)
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what killed commands left half-written: their locks are free, a living command's is held."""
        for lock_path in (self.root / "tmp").glob("*.lock"):
            if lock_path.stem == self._run:
                continue
            with contextlib.suppress(Timeout), FileLock(lock_path, timeout=0):
                shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
                lock_path.unlink(missing_ok=True)
        for aside in self.root.glob(".*.json.*"):  # of write_atomically, which takes no hour
            with contextlib.suppress(OSError):
                if time.time() - aside.stat().st_mtime > 3600:
                    aside.unlink()

    def others_running(self) -> bool:
        """Whether another command is working in this workspace now."""
        self._sweep()
        return any(path.stem != self._run for path in (self.root / "tmp").glob("*.lock"))

    # Artifacts

    def find(self, stage: str, fingerprint: str) -> Manifest | None:
        """The committed artifact, or None. Raises MmrrError if its manifest is damaged."""
        folder = self.root / _stage(stage) / _key(fingerprint)
        path = folder / "manifest.json"
        if not path.exists():
            return None
        try:
            return Manifest(**unseal(path.read_bytes()), path=folder)
        except (ValueError, TypeError) as error:
            raise MmrrError(
                f"{path} is damaged ({error}); "
                f"remove it with: mmrr rm {stage}/{fingerprint} --cascade --work {self.root}"
            ) from error

    def done(self, spec: Spec) -> Manifest | None:
        """The committed artifact, if its shards are there and its own files whole: nothing is left to do then.

        One whose own files are damaged is withdrawn, so that the stage makes it again.
        """
        manifest = self.find(spec.stage, spec.fingerprint)
        if manifest is None or not all(self.has_shard(*shard) for shard in manifest.shards):
            return None
        try:
            for name in manifest.files:
                self.own_file(manifest, name)
        except MmrrError:
            (manifest.path / "manifest.json").unlink(missing_ok=True)  # without one it does not exist
            return None
        return manifest

    def own_file(self, manifest: Manifest, name: str) -> Path:
        """An artifact's own file, or folder of files, checked. Raises MmrrError if any of it changed or is gone."""
        path = manifest.path / name
        for own, checksum in manifest.files.items():
            if own == name or own.startswith(f"{name}/"):
                file = manifest.path / own
                if not file.is_file() or checksum_file(file) != checksum:
                    raise MmrrError(f"{file} is gone or damaged; {_again(manifest.stage)}")
        return path

    def artifacts(self, *, but: Container[str] = ()) -> list[Manifest]:
        """Every committed artifact but some (``stage/fingerprint``), in the order of the data flow, oldest first.

        Raises MmrrError if a manifest is damaged.
        """
        found = [
            manifest
            for stage in STAGES
            for folder in sorted((self.root / stage).glob("*/"))
            if _KEY.fullmatch(folder.name)
            and f"{stage}/{folder.name}" not in but
            and (manifest := self.find(stage, folder.name))
        ]
        return sorted(found, key=lambda m: (STAGES.index(m.stage), str(m.provenance.get("created"))))

    def commit(
        self,
        spec: Spec,
        content: dict[str, Any],
        size: int,
        provenance: Mapping[str, Any] | None = None,
        write: Callable[[Path], object] = lambda folder: None,
    ) -> Manifest:
        """Write the artifact's own files with ``write(folder)``, the manifest last, and rename it into place."""
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
            "provenance": {**_here(), **(provenance or {})},
        }
        write_atomically(aside / "manifest.json", seal(values, indent=1))
        self._move(aside, folder)
        manifest = self.find(spec.stage, spec.fingerprint)
        assert manifest is not None
        return manifest

    # Shards

    def shard(self, stage: str, key: str) -> Path:
        """Where a shard lies or would lie."""
        return self.root / "shards" / _stage(stage) / _key(key)

    def has_shard(self, stage: str, key: str) -> bool:
        return (self.shard(stage, key) / "shard.json").exists()

    def scratch(self) -> Path:
        """A new folder for files in the making; it goes when the workspace is closed, or the process dies."""
        folder = self.root / "tmp" / self._run / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def commit_shard(self, stage: str, key: str, folder: Path, record: dict[str, Any]) -> None:
        """Make the files of a scratch folder a shard: sizes and checksums into ``shard.json``, then one rename.

        Files whose entry is in ``record["files"]`` already are not read again.
        """
        files = record.setdefault("files", {})
        for path in sorted(folder.iterdir()):
            files.setdefault(path.name, {"bytes": path.stat().st_size, "xxh3": checksum_file(path)})
        record["bytes"] = sum(entry["bytes"] for entry in files.values())
        write_atomically(folder / "shard.json", seal(record))
        self._move(folder, self.shard(stage, key))

    def shard_bytes(self, stage: str, keys: Iterable[str]) -> int:
        """Bytes of the files of some shards, each counted once."""
        return sum(int(self.shard_record(stage, key)["bytes"]) for key in set(keys))

    def shard_record(self, stage: str, key: str) -> dict[str, Any]:
        """What ``commit_shard`` recorded. Raises MmrrError if the shard is gone or damaged (and sets it aside)."""
        path = self.shard(stage, key) / "shard.json"
        try:
            return unseal(path.read_bytes())
        except FileNotFoundError:
            raise MmrrError(f"shard {stage}/{key} is gone from {self.root}; {_again(stage)}") from None
        except ValueError as error:
            raise self.damaged(stage, key, f"shard.json: {error}") from error

    def read_shard_file(self, stage: str, key: str, name: str) -> bytes:
        """A whole small file of a shard, checked against its checksum."""
        expected = self.shard_record(stage, key)["files"].get(name, {})
        try:
            data = (self.shard(stage, key) / name).read_bytes()
        except FileNotFoundError:
            raise self.damaged(stage, key, f"{name} is missing") from None
        if xxhash.xxh3_64_hexdigest(data) != expected.get("xxh3"):
            raise self.damaged(stage, key, f"{name} does not match its checksum")
        return data

    def damaged(self, stage: str, key: str, what: str) -> MmrrError:
        """Set a damaged shard aside, so that the stage's command computes it again, and say so."""
        folder = self.shard(stage, key)
        with contextlib.suppress(OSError):
            folder.rename(folder.with_name(f"{folder.name}.damaged-{uuid.uuid4().hex[:6]}"))
        return MmrrError(
            f"{stage} shard {key} is damaged: {what}; it was set aside, {_again(stage)} to compute that shard anew"
        )

    # The head: what later commands work on unless told otherwise

    def current(self, stage: str) -> Manifest | None:
        """The artifact of a stage that the last command made or confirmed."""
        fingerprint = self._read_head().get(stage)
        return self.find(stage, fingerprint) if fingerprint else None

    def set_current(self, *manifests: Manifest) -> None:
        with FileLock(self.root / "head.lock"):
            heads = self._read_head() | {manifest.stage: manifest.fingerprint for manifest in manifests}
            write_atomically(self.root / "head.json", json.dumps(heads, indent=1))

    def forget(self, manifests: Iterable[Manifest]) -> None:
        """Leave the stages whose head is one of these without one."""
        gone = {(manifest.stage, manifest.fingerprint) for manifest in manifests}
        with FileLock(self.root / "head.lock"):
            heads = {stage: name for stage, name in self._read_head().items() if (stage, name) not in gone}
            write_atomically(self.root / "head.json", json.dumps(heads, indent=1))

    def _read_head(self) -> dict[str, str]:
        try:
            values = json.loads((self.root / "head.json").read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("no JSON object")
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise MmrrError(
                f"{self.root / 'head.json'} is damaged ({error}); delete it and run mmrr index again"
            ) from error
        return {str(stage): str(fingerprint) for stage, fingerprint in values.items()}

    @staticmethod
    def _move(folder: Path, target: Path) -> None:
        """Flush a finished folder to the disk and rename it into place, unless another command was faster."""
        for path in (*folder.rglob("*"), folder):  # a folder's own flush makes the names in it last
            flush(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not any((target / name).exists() for name in ("manifest.json", "shard.json")):
            shutil.rmtree(target, ignore_errors=True)  # no manifest = does not exist: left of an interrupted removal
        try:
            os.rename(folder, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        flush(target.parent)


def _stage(stage: str) -> str:
    if stage not in STAGES:
        raise MmrrError(f"no stage '{stage}'; expected one of: {', '.join(STAGES)}")
    return stage


def _key(key: str) -> str:
    if not _KEY.fullmatch(key):  # keys become folder names: nothing but a hash may
        raise MmrrError(f"'{key}' is not a fingerprint; see: mmrr ls")
    return key


def _again(stage: str) -> str:
    return f"run the {command(stage).split()[0]} command again"


def command(stage: str) -> str:
    """The command, with the argument it needs, that makes a stage's artifact."""
    if stage in ("pages", "embed", "index"):
        return "index DOCUMENTS"
    return f"{stage} --queries FILE" if stage in ("retrieve", "rerank") else stage


def _here() -> dict[str, Any]:
    return {
        "mmrr": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
