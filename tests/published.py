"""Checkpoints as their authors publish them: sharded weights, other names and files, the cache of the Hub.

Weights and config.json are those of a tiny checkpoint of ``tests.tiny``, so that the stock model gives the expected
numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Json = dict[str, Any]
Weights = dict[str, Tensor]
#: Files that a published folder has besides those that mmrr reads.
OTHER_FILES = {
    "README.md": "---\nlicense: apache-2.0\n---\n",
    "scripts/embedder.py": "raise SystemExit('it ran')\n",
    "1_Pooling/config.json": '{"pooling_mode_lasttoken": true}',
    "video_preprocessor_config.json": json.dumps(
        {
            "size": {"longest_edge": 25165824, "shortest_edge": 4096},
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "processor_class": "Qwen3VLProcessor",
            "video_processor_type": "Qwen3VLVideoProcessor",
        }
    ),
}
#: Dimensions of the linear layer of late interaction.
DIM = 24


def write(
    source: Path,
    path: Path,
    changes: Json | None = None,
    edit: Callable[[Weights], Weights] = dict,
) -> Path:
    """A tiny checkpoint as a published folder: two shards with an index, and the files of its processors.

    ``changes``: keys of config.json. ``edit``: its tensors, with other names or with more.
    """
    path.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | (changes or {}), indent=2))
    weights = edit(load_file(source / "model.safetensors"))
    names = sorted(weights)
    places: dict[str, str] = {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: weights[name].contiguous() for name in part}, path / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json", "preprocessor_config.json"):
        (path / name).write_bytes((source / name).read_bytes())
    for name, content in OTHER_FILES.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(content)
    return path


def layer(name: str, width: int = 64, dim: int = DIM) -> Weights:
    """The linear layer of late interaction with a bias."""
    generator = torch.Generator().manual_seed(7)
    return {
        f"{name}.weight": torch.randn(dim, width, generator=generator),
        f"{name}.bias": torch.randn(dim, generator=generator),
    }


def tomoro(source: Path, path: Path) -> Path:
    """TomoroAI/tomoro-colqwen3-embed-*: a model type of its own, ``vlm.`` in front of the names, no LM head."""
    changes = {"model_type": "colqwen3", "architectures": ["ColQwen3"], "embed_dim": DIM, "padding_side": "left"}
    changes["auto_map"] = {"AutoModel": "modeling_colqwen3.ColQwen3"}

    def edit(weights: Weights) -> Weights:
        named = {f"vlm.{name}": tensor for name, tensor in weights.items() if not name.startswith("lm_head")}
        return named | layer("embedding_proj_layer")

    write(source, path, changes, edit)
    processor = json.loads((path / "preprocessor_config.json").read_text())
    processor |= {"processor_class": "ColQwen3Processor", "auto_map": {"AutoProcessor": "processing_colqwen3.X"}}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    (path / "processor_config.json").write_text(json.dumps({"processor_class": "ColQwen3Processor"}))
    return path


def without_prefix(weights: Weights) -> Weights:
    """The names of a model that colpali-engine saves: those of Qwen3VLModel."""
    named = {n.removeprefix("model."): tensor for n, tensor in weights.items() if not n.startswith("lm_head")}
    return named | layer("custom_text_proj")


def colpali(source: Path, path: Path) -> Path:
    """A merged checkpoint of colpali-engine's ColQwen3."""
    return write(source, path, {"architectures": ["ColQwen3"]}, without_prefix)


def ops(source: Path, path: Path) -> Path:
    """OpenSearch-AI/Ops-Colqwen3-*."""
    changes = {"model_type": "ops_colqwen3", "architectures": ["OpsColQwen3Model"], "dims": DIM}
    changes["mask_non_image_embeddings"] = False
    return write(source, path, changes, without_prefix)


def put_in_hub(cache: Path, repository: str, folder: Path) -> str:
    """Publish a folder in a cache of the Hub: blobs, and a snapshot of links to them. Returns the commit."""
    root = cache / f"models--{repository.replace('/', '--')}"
    commit = hashlib.sha1(repository.encode(), usedforsecurity=False).hexdigest()
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    (root / "blobs").mkdir()
    for file in (one for one in folder.rglob("*") if one.is_file()):
        content = file.read_bytes()
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        place = root / "snapshots" / commit / file.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blob, place.parent))
    return commit
