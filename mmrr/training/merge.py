"""Merges a LoRA adapter into its base model: a checkpoint that needs no adapter and can be trained again.

The result has the files of the base: the same names of tensors in the same shards, its config.json, tokenizer, chat
template and image processor. Only the weights that the adapter changes differ.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from mmrr.backbones._qwen3_vl_names import tensor_name
from mmrr.backbones.qwen3_vl import Backbone
from mmrr.embedders.colqwen3 import read_projection
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.checkpoint_files import PROJECTIONS, loading, projection_of, read_json, tensor_shapes
from mmrr.modeling.checkpoints import LATE_INTERACTION, Checkpoint, resolve
from mmrr.modeling.devices import DTYPES, dtype_name
from mmrr.workspace.files import HashCache
from mmrr.workspace.tensor_files import save_tensors

#: Files of a base that are copied, besides its weights. The card and the scripts of its authors are not.
_COPIED = ("*.json", "*.jinja", "*.txt")
_INDEX = "model.safetensors.index.json"
#: The record of what was merged, in the result.
RECORD = "merged.json"


@dataclass(frozen=True, slots=True)
class Merged:
    """What ``merge`` wrote."""

    output: Path
    base: str  # Hub id or folder
    dtype: str  # number format of the weights
    changed: int  # tensors that the adapter changed
    bytes: int  # of all weights


def merge(name: str, output: Path, revision: str | None = None, dtype: str = "auto") -> Merged:
    """Merge the adapter ``name``, a folder or a Hub id, and write the checkpoint to the folder ``output``.

    ``dtype``: the number format of the result; auto: that of the base. In the base's own format the result scores as
    the adapter does in that format, bit for bit. Raises MmrrError if ``name`` is no adapter, if it does not fit its
    base, or if ``output`` holds files. A failure leaves no half-written folder.
    """
    checkpoint = resolve(name, revision, HashCache(), ("qwen3_vl", *families.names("embedders")))
    if not checkpoint.adapter:
        raise MmrrError(f"{name} is no LoRA adapter; expected a folder or a Hub id with adapter_config.json")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise MmrrError(f"--output {output} is a file or holds files already; expected a new or an empty folder")
    _check_tied(checkpoint)
    number_format = _stored_dtype(checkpoint.path) if dtype == "auto" else DTYPES.get(dtype)
    if number_format is None:
        raise MmrrError(f"dtype '{dtype}' is not known; expected auto, {', '.join(DTYPES)}")
    merged = _merged_tensors(checkpoint, number_format)
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}")
    try:
        scratch.mkdir()
        _copy_files(checkpoint.path, scratch, dtype_name(number_format))
        changed, size = _write_weights(checkpoint.path, scratch, merged, number_format)
        base = read_json(name, checkpoint.adapter / "adapter_config.json")["base_model_name_or_path"]
        record = {"adapter": name, "base": base, "revision": checkpoint.revision}
        (scratch / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if output.exists():
            output.rmdir()
        scratch.rename(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Merged(output, str(base), dtype_name(number_format), changed, size)


def _check_tied(checkpoint: Checkpoint) -> None:
    """Raise MmrrError for an adapter of an embedding or a head that its base stores once."""
    assert checkpoint.adapter
    config = checkpoint.config()
    tied = config.get("tie_word_embeddings", (config.get("text_config") or {}).get("tie_word_embeddings", False))
    names = tensor_shapes(checkpoint.id, checkpoint.adapter)
    if (adapted := [name for name in sorted(names) if "lm_head" in name or "embed_tokens" in name]) and tied:
        raise MmrrError(
            f"{checkpoint.id} adapts {adapted[0]}, and its base stores LM head and embeddings as one tensor; "
            "expected an adapter of other layers"
        )


def _stored_dtype(path: Path) -> torch.dtype:
    """The number format of most of a checkpoint's weights."""
    counts: dict[torch.dtype, int] = {}
    for file in sorted(path.glob("*.safetensors")):
        with loading(f"{file} does not load"), safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (a safetensors file is no dict)
                part = tensors.get_slice(name)
                kind = _FORMATS.get(part.get_dtype(), torch.float32)
                counts[kind] = counts.get(kind, 0) + 1
    return max(counts, key=lambda kind: counts[kind])


#: Number formats by their name in a safetensors header.
_FORMATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _merged_tensors(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of the merged model by the names of transformers. Those of the linear layer have its first name."""
    config = checkpoint.config()
    late = config.get("architectures") == [LATE_INTERACTION]
    projection = read_projection(checkpoint, config["text_config"]["hidden_size"]) if late else None
    cpu = torch.device("cpu")
    backbone = Backbone(checkpoint.path, checkpoint.adapter, cpu, dtype, needs_head=False, projection=projection)
    tensors: dict[str, Tensor] = dict(backbone.model.state_dict())
    if projection is not None:
        tensors |= {f"{PROJECTIONS[0]}.{kind}": tensor for kind, tensor in projection.state_dict().items()}
    return tensors


def _copy_files(base: Path, folder: Path, dtype: str) -> None:
    for path in sorted({path for pattern in _COPIED for path in base.glob(pattern)}):
        if path.name != _INDEX:
            shutil.copyfile(path, folder / path.name)
    config = read_json(str(base), base / "config.json")
    for part in (
        config,
        *(config[key] for key in ("text_config", "vision_config") if isinstance(config.get(key), dict)),
    ):
        for key in {"dtype", "torch_dtype"} & part.keys():
            part[key] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_weights(base: Path, folder: Path, merged: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[int, int]:
    """Write the shards of the base with the merged tensors. Returns the number of changed tensors, and all bytes."""
    files = sorted(base.glob("*.safetensors"))
    places: dict[str, str] = {}
    changed = size = 0
    for file in files:
        shard: dict[str, Tensor] = {}
        with loading(f"{file} does not load"), safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                before = tensors.get_tensor(name).to(dtype)
                kind = projection_of(name)
                after = merged[f"{PROJECTIONS[0]}.{kind}" if kind else tensor_name(name)].to(dtype)
                changed += not torch.equal(before, after)
                shard[name] = after.contiguous()
        if file == files[-1] and not any(map(projection_of, (*places, *shard))):  # a layer that only the adapter has
            own = {name: tensor.to(dtype).contiguous() for name, tensor in merged.items() if projection_of(name)}
            changed += len(own)
            shard |= own
        save_tensors(shard, folder / file.name)
        places |= dict.fromkeys(shard, file.name)
        size += sum(tensor.nbytes for tensor in shard.values())
    if (base / _INDEX).exists():
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (folder / _INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return changed, size
