"""Finds a checkpoint by name, Hub id or local path, with its exact revision. Loads no weights."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mmrr.contracts import ModelConfig
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.checkpoint_files import (
    Section,
    is_late_interaction,
    pixel_limits,
    read_config,
    read_json,
    tensor_shapes,
)
from mmrr.workspace.files import HashCache, digest

#: The files that a checkpoint needs. Weights are read from safetensors only, because other formats can run code.
_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.safetensors")
#: In a family's model types: the family identifies its checkpoints by their tensors. config.json is optional.
ANY = "*"
#: The small models that come with mmrr. The name of a folder is the name of its checkpoint.
_BUILT_IN = Path(__file__).parents[1] / "models"
#: The name in ``architectures`` of a Qwen3-VL with the linear layer of late interaction.
LATE_INTERACTION = "ColQwen3"
#: Model types of published checkpoints that have the network of another type.
_SAME_NETWORK = {"ops_colqwen3": "colqwen3"}
#: Why mmrr does not run a published model type.
_LINEAR = "it is built on Qwen3.5, most of whose layers have linear attention, and no attention map that prunes pages"
_NOT_RUN = {
    "qwen3_5": _LINEAR,
    "colqwen3_5": _LINEAR,
    "argus_colqwen35": _LINEAR,
    "qwen3_5_moe": _LINEAR,
    "qwen3_vl_moe": "its layers are mixtures of experts",
    "qwen3_vl_nemotron_embed": "its attention looks both ways, by code of its own that mmrr does not run",
    "colqwen2": "it is built on Qwen2-VL",
    "colqwen2_5": "it is built on Qwen2.5-VL",
    "qwen2_vl": "its layers are those of Qwen2-VL",
    "qwen2_5_vl": "its layers are those of Qwen2.5-VL",
    "colpali": "it is built on PaliGemma",
}
#: The kinds of families, as a message names them.
_KINDS = {"embedders": "an embedder", "scorers": "a scorer"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: The folder of a model in the cache of the Hub: owner, name and commit.
_SNAPSHOT = re.compile(r".*[/\\]models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?")
#: Hashes of companions, which are resolved without a workspace.
_IN_PROCESS = HashCache()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on this disk. ``revision`` is the Hub commit, or ``sha256:...`` of the files of a local folder.

    ``model_type`` is "" if the tensors identify the checkpoint (``ANY``).
    """

    id: str
    revision: str
    path: Path
    model_type: str
    adapter: Path | None = None  # folder of a LoRA adapter for the model in ``path``

    def identity(self, dtype: str) -> dict[str, str]:
        """``{id, revision, dtype}``: stored in manifests and hashed into caches."""
        return {"id": self.id, "revision": self.revision, "dtype": dtype}

    def config(self) -> ModelConfig:
        """The checkpoint's config.json, checked against the headers of its weights.

        If the tensors identify the checkpoint, config.json may be missing, and the result has ``tensors``, their shapes
        as ``{name: [sizes]}``. ``pixel_limits`` are those of its processor file, ``architectures`` say whether it has a
        linear layer of late interaction. Raises MmrrError as ``read_config`` and ``tensor_shapes`` do. A key that the
        file lacks raises MmrrError when it is used.
        """
        path, shapes = self.path / "config.json", tensor_shapes(self.id, self.path)
        config = read_config(self.id, path, shapes) if self.model_type or path.exists() else Section({}, str(path))
        if not self.model_type:
            config["tensors"] = shapes
        # The config.json of an adapter's base model does not know the adapter's layer.
        names = (*shapes, *(tensor_shapes(self.id, self.adapter) if self.adapter else ()))
        if self.model_type and any(is_late_interaction(name) for name in names):
            config["architectures"] = [LATE_INTERACTION]
        if limits := pixel_limits(self.id, self.path):
            config["pixel_limits"] = list(limits)
        return config

    @staticmethod
    def companion(name: str, revision: str = "", model_types: Collection[str] = ()) -> Checkpoint:
        """A second checkpoint that a family needs, found in the same way as the first.

        ``revision``: a Hub revision, a recorded revision, or "" for the current one. Without ``model_types`` only its
        tokenizer is needed: weights and config.json may be missing. Raises MmrrError like ``resolve`` and ``recorded``.
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


def comes_with_mmrr(folder: Path) -> bool:
    """Whether this is the folder of a checkpoint that comes with mmrr."""
    return folder.parent == _BUILT_IN.resolve()


def expect_kind(kind: Literal["embedders", "scorers"], name: str) -> None:
    """Raise MmrrError for a checkpoint that comes with mmrr and that only families of the other kind list."""
    other: Literal["embedders", "scorers"] = "scorers" if kind == "embedders" else "embedders"
    if name not in built_in() or name in _listed(kind) or name not in _listed(other):
        return
    included = [one for one in _listed(kind) if one in built_in()]
    raise MmrrError(
        f"{name} is the checkpoint of {_KINDS[other]}, expected {_KINDS[kind]}; mmrr includes {', '.join(included)}"
    )


def _listed(kind: Literal["embedders", "scorers"]) -> list[str]:
    """The checkpoints that the families of a kind list. A family that cannot be loaded lists none."""
    found: list[str] = []
    for family in families.names(kind):
        with contextlib.suppress(MmrrError):
            module = families.load("embedders", family) if kind == "embedders" else families.load("scorers", family)
            found += module.SPEC.checkpoints
    return found


def resolve(
    name: str, revision: str | None, hashes: HashCache, model_types: Collection[str] | None = None
) -> Checkpoint:
    """Find a checkpoint. It is downloaded from the Hub if it is not a folder, not built in and not cached.

    A folder with ``adapter_config.json`` is a LoRA adapter; its base model is resolved too. ``model_types``: the
    accepted values of model_type in config.json; by default those that have a backbone.
    Raises MmrrError if the checkpoint is not found, is not in safetensors format, has another model type, or cannot be
    downloaded.
    """
    return _expect(_resolve(name, revision, None, hashes), model_types)


def recorded(model: dict[str, str], hashes: HashCache, model_types: Collection[str] | None = None) -> Checkpoint:
    """The checkpoint that a manifest names. Raises MmrrError if it has changed, because its caches are then stale."""
    own, _, base = model["revision"].partition("+")
    commit, base_commit = (part if _COMMIT.fullmatch(part) else None for part in (own, base))
    checkpoint = _expect(_resolve(model["id"], commit, base_commit, hashes), model_types)
    _expect_same(checkpoint, model["revision"])
    return checkpoint


def resolve_modules(name: str, revision: str | None, hashes: HashCache) -> Checkpoint:
    """Find a checkpoint whose modules may lie in folders of their own, as those of sentence-transformers do.

    The files of these folders count for its revision too. The weights may lie in any of them.
    Raises MmrrError as ``resolve``, and for a LoRA adapter.
    """
    folder, found = _locate(name, revision, hashes, modules=True)
    name = _recorded_name(name, folder, found)
    if (folder / "adapter_config.json").exists():
        raise MmrrError(f"{name} is a LoRA adapter; merge it into its base model first")
    if not any((*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors"))):
        raise MmrrError(f"{name}: no *.safetensors in {folder}; other weight formats are not read: they can run code")
    config = folder / "config.json"
    return Checkpoint(name, found, folder, str(read_json(name, config).get("model_type")) if config.exists() else "")


def recorded_modules(model: dict[str, str], hashes: HashCache) -> Checkpoint:
    """As ``recorded``, for a checkpoint that ``resolve_modules`` found."""
    revision = model["revision"]
    checkpoint = resolve_modules(model["id"], revision if _COMMIT.fullmatch(revision) else None, hashes)
    _expect_same(checkpoint, revision)
    return checkpoint


def _expect_same(checkpoint: Checkpoint, revision: str) -> None:
    if checkpoint.revision != revision:
        raise MmrrError(
            f"{checkpoint.id} has changed since it was used here: expected {revision[:15]}..., found "
            f"{checkpoint.revision[:15]}...; run the earlier commands again with the new checkpoint"
        )


def _expect(checkpoint: Checkpoint, model_types: Collection[str] | None) -> Checkpoint:
    if model_types is not None and ANY in model_types:
        return replace(checkpoint, model_type="")
    if not checkpoint.model_type:
        raise MmrrError(f"{checkpoint.id}: no config.json in {checkpoint.path}; expected a transformers checkpoint")
    known = families.names("backbones") if model_types is None else sorted(model_types)
    if checkpoint.model_type not in known:
        why = _NOT_RUN.get(checkpoint.model_type)
        because = f", which mmrr does not run: {why}" if why else ""
        raise MmrrError(f"{checkpoint.id} is a '{checkpoint.model_type}' model{because}; expected: {', '.join(known)}")
    return checkpoint


def _resolve(name: str, revision: str | None, base_revision: str | None, hashes: HashCache) -> Checkpoint:
    """``base_revision``: that of an adapter's base model; None: the one that the adapter names, or the newest."""
    folder, found = _locate(name, revision, hashes)
    name = _recorded_name(name, folder, found)
    adapter_config = folder / "adapter_config.json"
    if not adapter_config.exists():
        return Checkpoint(name, found, folder, _model_type(name, folder))
    if not (folder / "adapter_model.safetensors").exists():
        raise MmrrError(
            f"{name}: no adapter_model.safetensors; convert the adapter: other formats are not read, because they can "
            "run code"
        )
    settings = read_json(name, adapter_config)
    base_name, base_folder, base_found = _locate_base(name, settings, base_revision, hashes)
    if (base_folder / "adapter_config.json").exists():  # it may even be the adapter itself
        raise MmrrError(
            f"{name}: the base model {base_name} is an adapter; merge it into its own base model first: mmrr merge "
            f"{base_name} --output DIR"
        )
    model_type = _model_type(_recorded_name(base_name, base_folder, base_found), base_folder)
    return Checkpoint(name, f"{found}+{base_found}", base_folder, model_type, folder)


def _locate_base(
    name: str, settings: Mapping[str, object], revision: str | None, hashes: HashCache
) -> tuple[str, Path, str]:
    """Name, folder and revision of the base model of the adapter ``name``.

    ``settings``: those of its adapter_config.json. ``revision``: the recorded one; None: the one that they name. A
    folder in a cache of the Hub means the model and the commit that its path names, wherever the cache is now.
    """
    base = settings.get("base_model_name_or_path")
    if not base:
        raise MmrrError(f"{name}: adapter_config.json names no base_model_name_or_path")
    base, named = str(base), settings.get("revision")
    if snapshot := _SNAPSHOT.fullmatch(base):
        owner, repository, commit = snapshot.groups()
        folder = _folder(base)
        if folder and (revision or commit) == commit:
            return f"{owner}/{repository}", folder.resolve(), commit
        return f"{owner}/{repository}", *_download(f"{owner}/{repository}", revision or commit)
    if _folder(base):  # peft records a revision for a folder too
        return base, *_locate(base, None, hashes)
    # Anything but a text is no revision: the file may be somebody else's.
    return base, *_locate(base, revision or (named if isinstance(named, str) else None), hashes)


def _recorded_name(name: str, folder: Path, revision: str) -> str:
    # The current folder of a later command may differ: a relative path would not exist, or look like a Hub id.
    return name if _COMMIT.fullmatch(revision) or name in built_in() else str(folder)


def _locate(name: str, revision: str | None, hashes: HashCache, *, modules: bool = False) -> tuple[Path, str]:
    """The folder of a checkpoint and its revision. ``modules``: files in folders of the checkpoint count too."""
    folder = _folder(name)
    if folder:
        if revision:
            raise MmrrError(f"{name} is a local folder; leave out the revision ({revision}), which needs a Hub id")
        patterns = (*_PATTERNS, *(f"*/{pattern}" for pattern in _PATTERNS)) if modules else _PATTERNS
        files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        try:
            of_files = {path.relative_to(folder).as_posix(): hashes.sha256(path) for path in files}
            hashes.save()
            return folder.resolve(), "sha256:" + digest(of_files)
        except OSError as error:
            raise MmrrError(f"{error.filename} of {name} cannot be read: {error.strerror}") from error
    if not _HUB_ID.fullmatch(name):
        raise MmrrError(
            f"found no folder '{name[:200]}'; expected a folder, a Hub id (owner/name) or a model that comes with mmrr "
            f"({', '.join(built_in())})"
        )
    return _download(name, revision)


def _folder(name: str) -> Path | None:
    """The folder that a name means; None: it may be a Hub id."""
    if name in built_in():
        return _BUILT_IN / name
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # a name too long, with a zero byte, of no user
        folder = Path(name).expanduser()
        if name and folder.is_dir():  # Path("") is the current folder
            return folder
    return None


def _download(name: str, revision: str | None) -> tuple[Path, str]:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(_PATTERNS)))
    except GatedRepoError as error:
        raise MmrrError(f"{name} is gated: accept its terms on the Hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise MmrrError(f"{name}: found neither a local folder nor a model on the Hub; check the name") from error
    except RevisionNotFoundError as error:
        raise MmrrError(f"{name} has no revision {revision} on the Hub") from error
    except Exception as error:  # network errors have the types of the HTTP client that huggingface_hub uses
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
    """The model_type of config.json; "" without a config.json."""
    config = folder / "config.json"
    if not any(folder.glob("*.safetensors")):
        found = "no *.safetensors" if config.exists() else "no config.json and no *.safetensors"
        raise MmrrError(f"{name}: {found} in {folder}; other weight formats are not read, because they can run code")
    found = str(read_json(name, config).get("model_type"))[:80] if config.exists() else ""
    return _SAME_NETWORK.get(found, found)
