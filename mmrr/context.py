"""What a stage is given: the workspace, the machine, and a way to report progress."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from mmrr.config import Machine
from mmrr.errors import MmrrError
from mmrr.modeling.loaded import Loaded, LoadsEachTime
from mmrr.types import Progress, silent
from mmrr.workspace.pages import Collection, load
from mmrr.workspace.store import Manifest, Workspace, command

#: The first schema of each stage that stores the vectors of pages in today's format.
_VECTORS_SINCE = {"embed": 2, "index": 3}


T = TypeVar("T")


class _GoneError(Exception):
    """The current artifact is not there."""


def _no_notice(line: str) -> None:
    """The notice that shows nothing."""


@dataclass(frozen=True)
class Context:
    """What every stage needs: where it writes, on which machine it runs, and how it reports."""

    workspace: Workspace
    machine: Machine = field(default_factory=Machine)
    progress: Progress = silent
    chosen: Mapping[str, str] = field(default_factory=dict)  # {stage: fingerprint} to use instead of the current one
    notice: Callable[[str], None] = _no_notice  # shows one line to the user
    loaded: Loaded = field(default_factory=LoadsEachTime)  # models that stay in memory between calls

    def current(self, stage: str) -> Manifest:
        """The chosen artifact of a stage, else the current one. Raises MmrrError with the command to run first."""
        work = self.workspace.root
        found = self.find_current(stage)
        if found is None and stage in self.chosen:
            raise MmrrError(f"no {stage}/{self.chosen[stage]} in {work}; see: mmrr ls --work {work}")
        if found is None:
            run = f"mmrr {command(stage)} --work {work}"
            if stage in ("retrieve", "rerank") and any(one.stage == stage for one in self.workspace.scan()[0]):
                raise MmrrError(
                    f"{work} has no current {stage}: a single question does not make one, but a file of queries does; "
                    f"run: {run}"
                )
            raise MmrrError(f"{work} has no {stage} yet; run: {run}")
        if found.schema < _VECTORS_SINCE.get(stage, 0):
            raise MmrrError(
                f"{stage}/{found.fingerprint} was built by an earlier mmrr, with an older vector format; "
                f"run: mmrr index --work {work}, with the same documents"
            )
        return found

    def find_current(self, stage: str) -> Manifest | None:
        """The chosen artifact of a stage, else the current one; None if there is none."""
        workspace = self.workspace
        fingerprint = self.chosen.get(stage) or workspace.all_current.read().get(stage)
        if fingerprint is None:
            return None

        def find() -> Manifest:
            found = workspace.find(stage, fingerprint)
            if found is None:
                raise _GoneError
            return found

        try:
            # An artifact does not change, so that one in memory is not read again.
            return self.loaded.newest((stage, workspace.root), fingerprint, find)
        except _GoneError:
            return None

    def kept(self, what: str, manifest: Manifest, load: Callable[[], T], *more: Hashable) -> T:
        """What is read of an artifact, from memory where models stay there. ``more``: what it depends on besides."""
        return self.loaded.newest((what, self.workspace.root), (manifest.fingerprint, *more), load)

    def collection(self, manifest: Manifest) -> Collection:
        """The pages that an artifact was made of. Raises MmrrError if they were removed."""
        fingerprint = manifest.inputs["pages"]

        def read() -> Collection:
            pages = self.workspace.find("pages", fingerprint)
            if pages is None:
                raise MmrrError(
                    f"the pages of {manifest.stage}/{manifest.fingerprint} were removed; run mmrr index again"
                )
            return load(self.workspace, pages)

        # The listing of many documents takes long to read. It is read again when its provenance was written again.
        stamp = self.workspace.stamp("pages", fingerprint)
        return self.loaded.newest(("collection", self.workspace.root), (fingerprint, stamp), read)

    def same_pages(self, manifest: Manifest, collection: Collection) -> Manifest:
        """``manifest``, if it was made of this collection. Raises MmrrError with the command to run if not."""
        if manifest.inputs["pages"] != collection.manifest.fingerprint:
            raise MmrrError(
                f"{manifest.stage}/{manifest.fingerprint} was made of other pages than the index; "
                f"run: mmrr {command(manifest.stage)} --work {self.workspace.root}"
            )
        return manifest
