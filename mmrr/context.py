"""What a stage is given: the workspace, the machine, and a way to report progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmrr.config import Machine
from mmrr.errors import MmrrError
from mmrr.types import Progress, silent
from mmrr.workspace.pages import Collection, load
from mmrr.workspace.store import Manifest, Workspace, command

#: The schemas since which pages' vectors are kept as they are now.
_VECTORS_SINCE = {"embed": 2, "index": 3}


@dataclass(frozen=True)
class Context:
    """What every step needs: where, on what, and how to tell of it."""

    workspace: Workspace
    machine: Machine = field(default_factory=Machine)
    progress: Progress = silent
    chosen: Mapping[str, str] = field(default_factory=dict)  # stage -> fingerprint, instead of the head

    def current(self, stage: str) -> Manifest:
        """The chosen artifact of a stage, or the head. Raises MmrrError naming the command to run first."""
        work = self.workspace.root
        if stage in self.chosen:
            found = self.workspace.find(stage, self.chosen[stage])
            if found is None:
                raise MmrrError(f"no {stage}/{self.chosen[stage]} in {work}; see: mmrr ls --work {work}")
        else:
            found = self.workspace.current(stage)
        if found is None:
            raise MmrrError(f"{work} has no {stage} yet; run: mmrr {command(stage)} --work {work}")
        if found.schema < _VECTORS_SINCE.get(stage, 0):
            raise MmrrError(
                f"{stage}/{found.fingerprint} was made by an earlier mmrr, which kept vectors otherwise; "
                f"run: mmrr index --work {work}, with the same documents"
            )
        return found

    def collection(self, manifest: Manifest) -> Collection:
        """The pages an artifact was made of."""
        pages = self.workspace.find("pages", manifest.inputs["pages"])
        if pages is None:
            raise MmrrError(f"the pages of {manifest.stage}/{manifest.fingerprint} were removed; run mmrr index again")
        return load(self.workspace, pages)

    def same_pages(self, manifest: Manifest, collection: Collection) -> Manifest:
        """``manifest``, if it descends from the collection. Raises MmrrError naming the command to run."""
        if manifest.inputs["pages"] != collection.manifest.fingerprint:
            raise MmrrError(
                f"{manifest.stage}/{manifest.fingerprint} was made of other pages than the index; "
                f"run: mmrr {command(manifest.stage)} --work {self.workspace.root}"
            )
        return manifest
