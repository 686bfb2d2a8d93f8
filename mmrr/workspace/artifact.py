"""What names an artifact and what is stored about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrr.workspace.files import digest


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything that an artifact depends on, and nothing else. Its hash names the artifact."""

    stage: str
    schema: int  # raised by hand when the meaning of the stage's output changes
    config: Mapping[str, object]
    inputs: dict[str, str]  # role -> fingerprint of an artifact, or content hash of a file
    model: dict[str, str] | None = None  # id, revision, dtype

    @property
    def fingerprint(self) -> str:
        return digest(self._hashed())[:12]

    def shard_key(self, *inputs: str) -> str:
        """The key of the shard that this stage makes of these input shards or files.

        The artifact's own inputs are not hashed: a page under the same settings is one shard in every artifact.
        """
        return digest({**self._hashed(), "inputs": list(inputs)})[:24]

    def _hashed(self) -> dict[str, Any]:
        # The revision identifies a model. Its id may be a path, which differs between machines.
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
    """A committed artifact. ``mmrr.workspace.manifests`` types its config, content and provenance by stage."""

    stage: str
    fingerprint: str
    schema: int
    config: dict[str, Any]  # Any: JSON
    inputs: dict[str, str]
    model: dict[str, str] | None
    content: dict[str, Any]  # documents, shards, counts
    bytes: int  # of the shards and files that it lists
    files: dict[str, str]  # {name: checksum} of the artifact's own files
    provenance: dict[str, Any] = field(default_factory=dict)  # recorded, never hashed
    path: Path = Path()
    kept: bool = True  # False: the workspace cannot be written, and the folder lasts as long as the command

    @property
    def shards(self) -> set[tuple[str, str]]:
        """(stage, key) of every shard that the artifact lists."""
        if self.stage == "pages":
            entries = self.content["documents"]
            return {
                ("pages", key)
                for entry in entries
                for key in (*entry["shards"], *entry.get("ocr", {}).values(), *entry.get("tiles", {}).values())
            }
        shards = self.content.get("shards", [])
        keys = set(shards.values() if isinstance(shards, dict) else shards)
        if "shared" in self.content:
            keys.add(self.content["shared"])
        found = {(self.stage, key) for key in keys}
        return found | {("precache", key) for key in self.content.get("caches", [])}
