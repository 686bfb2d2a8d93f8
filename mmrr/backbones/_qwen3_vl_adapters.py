"""LoRA adapters for Qwen3-VL in PEFT's format, merged into a loaded model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from mmrr.errors import MmrrError
from mmrr.modeling.checkpoint_files import PROJECTIONS, loading

#: What PEFT writes in front of the names of a model's tensors.
_PREFIX = "base_model.model."
#: The kinds of tensors of an adapted module: LoRA's matrices and DoRA's magnitudes, in front of ``.weight`` or alone.
_KINDS = (".lora_A", ".lora_B", ".lora_embedding_A", ".lora_embedding_B", ".lora_magnitude_vector")


# Any: transformers and peft do not type their models and configs.
def merge(model: Any, adapter: Path, projection: nn.Linear | None, tensor_name: Callable[[str], str]) -> Any:
    """``model`` with the adapter merged into it, and into ``projection`` in place if the adapter changes it.

    ``tensor_name``: the name in ``model`` of a tensor with a published name. colpali-engine trains a model whose names
    lack the first part. Raises MmrrError if the adapter does not fit.
    """
    from peft import PeftConfig, PeftModel, PeftType, get_peft_model_state_dict

    # peft only warns about names that do not fit. They are compared below.
    with loading(f"adapter {adapter} does not fit"), warnings.catch_warnings(action="ignore"):
        saved = _read(adapter)
        renamed = {_renamed(name, tensor_name): tensor for name, tensor in saved.items()}
        config = PeftConfig.from_pretrained(str(adapter))
        if config.peft_type != PeftType.LORA:
            raise MmrrError(f"adapter {adapter} is no LoRA; expected a LoRA adapter: mmrr merges no other type")
        if config.megatron_config:
            raise MmrrError(f"adapter {adapter} names a module to import (megatron_config); mmrr imports none")
        # peft allocates tensors of this rank before it reads the file.
        ranks = (config.r, *config.rank_pattern.values())
        most = max((size for tensor in saved.values() for size in tensor.shape), default=0)
        if not all(type(rank) is int and 0 < rank <= most for rank in ranks):
            raise MmrrError(
                f"adapter {adapter} has the ranks {ranks}; expected ranks from 1 to {most}, a size of its tensors"
            )
        if projection is not None:
            setattr(model, PROJECTIONS[0], projection)
        if renamed.keys() == saved.keys():
            adapted = PeftModel.from_pretrained(model, str(adapter))
        else:
            adapted = _from_tensors(model, config, renamed)
        # peft would otherwise ask the Hub whether the base's vocabulary has grown.
        embeddings = any(".embed_tokens.weight" in name or ".lm_head.weight" in name for name in renamed)
        fitting = get_peft_model_state_dict(adapted, save_embedding_layers=embeddings)
    if unfit := sorted(renamed.keys() ^ set(fitting)):
        raise MmrrError(
            f"adapter {adapter} does not fit: {len(unfit)} tensors are only in the file or only in the model, "
            f"among them {unfit[0]}"
        )
    merged = adapted.merge_and_unload()
    if projection is not None:
        projection.load_state_dict(getattr(merged, PROJECTIONS[0]).state_dict())
        delattr(merged, PROJECTIONS[0])
    return merged


def _read(adapter: Path) -> dict[str, Tensor]:
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _renamed(name: str, tensor_name: Callable[[str], str]) -> str:
    own = name.removeprefix(_PREFIX)
    for other in PROJECTIONS[1:]:
        own = own.replace(f"{other}.", f"{PROJECTIONS[0]}.")
    return _PREFIX * name.startswith(_PREFIX) + tensor_name(own)


def _from_tensors(model: Any, config: Any, tensors: dict[str, Tensor]) -> Any:
    """``PeftModel.from_pretrained`` for tensors with other names than the file's.

    The modules to adapt are those that have tensors: the patterns of the file fit its own names only.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    names = {name.removeprefix(_PREFIX) for name in tensors}
    config.target_modules = sorted({name.split(kind)[0] for name in names for kind in _KINDS if kind in name})
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.inference_mode = True
    adapted = get_peft_model(model, config)
    set_peft_model_state_dict(adapted, tensors)
    return adapted
