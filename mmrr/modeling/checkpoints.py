"""Finds a checkpoint by name, Hub id or local path and says exactly which one it is. Loads no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mmrr.contracts import ModelConfig
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.workspace.files import HashCache, digest

#: All a checkpoint needs to load. Weights in safetensors alone: other formats can run code.
_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.safetensors")
#: In a family's model types: it knows its checkpoints by their tensors, whatever config.json says, if there is one.
ANY = "*"
#: Small models of mmrr's own, part of the package; each folder's name is a checkpoint's name.
_BUILT_IN = Path(__file__).parents[1] / "models"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: A companion is found where no workspace is at hand to remember its hashes: a path that can be neither read nor
#: written makes this process remember them.
_IN_PROCESS = HashCache(Path(__file__) / "none")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on this disk. ``revision`` is the Hub commit, or ``sha256:...`` of a local folder's content.

    ``model_type`` is "" where the tensors say what it is (``ANY``).
    """

    id: str
    revision: str
    path: Path
    model_type: str
    adapter: Path | None = None  # a LoRA folder to merge over ``path``

    def identity(self, dtype: str) -> dict[str, str]:
        """What manifests record, and what a cache depends on: ``{id, revision, dtype}``."""
        return {"id": self.id, "revision": self.revision, "dtype": dtype}

    def config(self) -> ModelConfig:
        """The checkpoint's config.json.

        Where the tensors say what it is, there may be none, and ``tensors`` holds their shapes: ``{name: [sizes]}``.
        Raises MmrrError if a file is damaged or two files hold a tensor of one name.
        """
        path = self.path / "config.json"
        if self.model_type:
            return _read_json(self.id, path)
        return (_read_json(self.id, path) if path.exists() else {}) | {"tensors": _shapes(self.id, self.path)}

    @staticmethod
    def companion(name: str, revision: str = "", model_types: Collection[str] = ()) -> Checkpoint:
        """Another checkpoint that a family needs beside its own, found like any other.

        ``revision``: a Hub revision, the one recorded before, or "" for what is there now. Without ``model_types`` its
        tokenizer alone is wanted: neither weights nor config.json are asked for.
        Raises MmrrError as ``resolve`` and ``recorded`` do.
        """
        commit = None if revision.startswith("sha256:") else revision or None
        if model_types:
            found = _expect(_resolve(name, commit, None, _IN_PROCESS), model_types)
        else:
            folder, own = _locate(name, commit, _IN_PROCESS)
            found = Checkpoint(_recorded_name(name, folder, own), own, folder, "")
        if revision and not commit:
            _expect_same(found, revision)
        return found


def built_in() -> list[str]:
    """The names of the checkpoints that come with mmrr."""
    return sorted(path.parent.name for path in _BUILT_IN.glob("*/config.json"))


def resolve(
    name: str, revision: str | None, hashes: HashCache, model_types: Collection[str] | None = None
) -> Checkpoint:
    """Find a checkpoint, downloading it from the Hub if it is neither a folder, nor built in, nor cached.

    A folder with ``adapter_config.json`` is a LoRA adapter: its base model is resolved too. ``model_types``: those its
    config.json may name; by default those there is a backbone for.
    Raises MmrrError: not found, offline, not safetensors, or another architecture.
    """
    return _expect(_resolve(name, revision, None, hashes), model_types)


def recorded(model: dict[str, str], hashes: HashCache, model_types: Collection[str] | None = None) -> Checkpoint:
    """The checkpoint a manifest names. Raises MmrrError if it has changed since, because its caches would not fit."""
    own, _, base = model["revision"].partition("+")
    commit, base_commit = (part if _COMMIT.fullmatch(part) else None for part in (own, base))
    checkpoint = _expect(_resolve(model["id"], commit, base_commit, hashes), model_types)
    _expect_same(checkpoint, model["revision"])
    return checkpoint


def _expect_same(checkpoint: Checkpoint, revision: str) -> None:
    if checkpoint.revision != revision:
        raise MmrrError(
            f"{checkpoint.id} has changed since it was used here ({revision[:15]}... then, "
            f"{checkpoint.revision[:15]}... now); run the earlier commands again with the new one"
        )


def _expect(checkpoint: Checkpoint, model_types: Collection[str] | None) -> Checkpoint:
    if model_types is not None and ANY in model_types:
        return replace(checkpoint, model_type="")
    if not checkpoint.model_type:
        raise MmrrError(f"{checkpoint.id}: no config.json in {checkpoint.path}; expected a transformers checkpoint")
    known = families.names("backbones") if model_types is None else sorted(model_types)
    if checkpoint.model_type not in known:
        raise MmrrError(f"{checkpoint.id} is a '{checkpoint.model_type}' model; expected: {', '.join(known)}")
    return checkpoint


def _resolve(name: str, revision: str | None, base_revision: str | None, hashes: HashCache) -> Checkpoint:
    """``base_revision`` of an adapter's base model; None: the one the adapter names, or the newest."""
    folder, found = _locate(name, revision, hashes)
    name = _recorded_name(name, folder, found)
    adapter_config = folder / "adapter_config.json"
    if not adapter_config.exists():
        return Checkpoint(name, found, folder, _model_type(name, folder))
    if not (folder / "adapter_model.safetensors").exists():
        raise MmrrError(f"{name}: no adapter_model.safetensors; other formats are not read, because they can run code")
    settings = _read_json(name, adapter_config)
    base_name = settings.get("base_model_name_or_path")
    if not base_name:
        raise MmrrError(f"{name}: adapter_config.json names no base_model_name_or_path")
    base = _resolve(str(base_name), base_revision or settings.get("revision"), None, hashes)
    if base.adapter:
        raise MmrrError(f"{name}: the base model {base_name} is itself an adapter; merge that one first")
    return Checkpoint(name, f"{found}+{base.revision}", base.path, base.model_type, folder)


def _recorded_name(name: str, folder: Path, revision: str) -> str:
    # A manifest is read again from any folder: a relative path would be none there, or look like a Hub id.
    return name if _COMMIT.fullmatch(revision) or name in built_in() else str(folder)


def _locate(name: str, revision: str | None, hashes: HashCache) -> tuple[Path, str]:
    folder = _BUILT_IN / name if name in built_in() else Path(name).expanduser()
    if name and folder.is_dir():  # no name at all is no name for the current folder
        if revision:
            raise MmrrError(f"{name} is on this disk: a revision ({revision}) goes with a Hub id only")
        files = sorted({path for pattern in _PATTERNS for path in folder.glob(pattern)})
        try:
            return folder.resolve(), "sha256:" + digest({path.name: hashes.sha256(path) for path in files})
        except OSError as error:
            raise MmrrError(f"{error.filename} of {name} cannot be read: {error.strerror}") from error
    if not _HUB_ID.fullmatch(name):
        raise MmrrError(
            f"no folder '{name}', and it is neither a Hub id (owner/name) nor a model that comes with mmrr "
            f"({', '.join(built_in())})"
        )
    return _download(name, revision)


def _download(name: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_PATTERNS)))
    except GatedRepoError as error:
        raise MmrrError(f"{name} is gated: accept its terms on the Hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise MmrrError(f"{name}: no such folder here and no such model on the Hub") from error
    except RevisionNotFoundError as error:
        raise MmrrError(f"{name} has no revision {revision} on the Hub") from error
    except Exception as error:  # every way a network can fail, in the types of whichever HTTP client the Hub's uses
        why = (
            "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the Hub did not answer ({type(error).__name__})"
        )
        at = f" --revision {revision}" if revision else ""
        raise MmrrError(
            f"{name}{at} is not on this machine and {why}; download it where there is a network "
            f"(hf download {name}{at}) or pass the path of a local copy"
        ) from error
    return folder, folder.name


def _model_type(name: str, folder: Path) -> str:
    """What config.json says; "" where there is none."""
    config = folder / "config.json"
    if not any(folder.glob("*.safetensors")):
        found = "no *.safetensors" if config.exists() else "no config.json and no *.safetensors"
        raise MmrrError(f"{name}: {found} in {folder}; other weight formats are not read, because they can run code")
    return str(_read_json(name, config).get("model_type")) if config.exists() else ""


def _shapes(name: str, folder: Path) -> dict[str, list[int]]:
    """Of every tensor, from the headers of the safetensors files alone."""
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                found = {tensor: list(file.get_slice(tensor).get_shape()) for tensor in names}
        except (OSError, SafetensorError) as error:
            raise MmrrError(f"{name}: {path.name} is no readable safetensors file ({error})") from error
        if twice := shapes.keys() & found.keys():
            raise MmrrError(
                f"{name}: {path.name} and another file of {folder} both hold {min(twice)}; leave one checkpoint there"
            )
        shapes |= found
    return shapes


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MmrrError(f"{name}: {path.name} is not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise MmrrError(f"{name}: {path.name} holds no JSON object")
    return value
