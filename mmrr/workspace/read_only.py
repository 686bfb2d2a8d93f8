"""A workspace that this user cannot write: it is read, and what a command makes lasts as long as the command."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrr.errors import MmrrError
from mmrr.workspace.artifact import Manifest, Spec
from mmrr.workspace.files import HashCache
from mmrr.workspace.store import NotWritableError, Workspace, again


@contextlib.contextmanager
def opened(root: Path, notice: Callable[[str], None]) -> Iterator[Workspace]:
    """Open a workspace to read it and to keep results in it; where it cannot be written, only to read it.

    ``notice`` gets one line before the first result that is not kept. Raises MmrrError as ``Workspace.open`` does.
    """
    with contextlib.ExitStack() as stack:
        workspace = Workspace.open(root)
        try:
            stack.enter_context(workspace)
        except NotWritableError:
            workspace = stack.enter_context(ReadOnlyWorkspace(workspace.root, notice))
        yield workspace


class _InMemory(HashCache):
    """Hashes that are read from the file and not written to it."""

    def save(self) -> None:
        """Nothing: the workspace is only read."""


class ReadOnlyWorkspace(Workspace):
    """Reads one folder; writes to a second workspace in a temporary folder, which goes when this one is closed.

    Nothing becomes current. A damaged shard stays where it is.
    """

    def __init__(self, root: Path, notice: Callable[[str], None]) -> None:
        super().__init__(root)
        self.hashes = _InMemory(root / "hashes.json")
        self._notice = notice
        self._second: Workspace | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> ReadOnlyWorkspace:  # type: ignore[override]  # takes no lock: there is nothing to protect
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _aside(self) -> Workspace:
        """The second workspace, made when the first result is written."""
        if self._second is None:
            self._notice(f"{self.root} cannot be written: the result is not kept in it")
            folder = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="mmrr-"))
            self._second = self._closing.enter_context(Workspace.open(Path(folder) / "results", create=True))
        return self._second

    def find(self, stage: str, fingerprint: str) -> Manifest | None:
        found = self._second.find(stage, fingerprint) if self._second else None
        return dataclasses.replace(found, kept=False) if found else super().find(stage, fingerprint)

    def done(self, spec: Spec) -> Manifest | None:
        try:
            return super().done(spec)
        except OSError:  # a damaged artifact cannot be withdrawn: it is made again aside
            return None

    def commit(
        self,
        spec: Spec,
        content: Mapping[str, object],
        size: int,
        provenance: Mapping[str, Any] | None = None,
        write: Callable[[Path], object] = lambda folder: None,
    ) -> Manifest:
        return dataclasses.replace(self._aside().commit(spec, content, size, provenance, write), kept=False)

    def shard(self, stage: str, key: str) -> Path:
        aside = self._second.shard(stage, key) if self._second else None
        return aside if aside and aside.exists() else super().shard(stage, key)

    def scratch(self) -> Path:
        return self._aside().scratch()

    def discard(self, folder: Path) -> None:
        self._aside().discard(folder)

    def commit_shard(self, stage: str, key: str, folder: Path, record: dict[str, Any]) -> None:
        self._aside().commit_shard(stage, key, folder, record)

    def damaged(self, stage: str, key: str, what: str) -> MmrrError:
        return MmrrError(
            f"{stage} shard {key} is damaged: {what}; {self.root} cannot be written, so it stays; "
            f"{again(stage)} where it can be written"
        )

    def set_current(self, *manifests: Manifest) -> list[Manifest]:
        return []
