"""LoRA on the language model of a loaded backbone, saved as PEFT reads it. Knows linears and files, not losses."""

from __future__ import annotations

import shutil
import uuid
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import Checkpoint, resolve
from mmrr.workspace.files import HashCache

#: Every linear of a decoder layer. The vision tower has layers of its own, under another name.
_LINEARS = r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


def find_base(name: str, revision: str, hashes: HashCache) -> Checkpoint:
    """The checkpoint to adapt. Raises MmrrError for one that is an adapter itself: ours would not be told of it."""
    checkpoint = resolve(name, revision or None, hashes)
    if checkpoint.adapter:
        raise MmrrError(f"{name} is a LoRA adapter; merge it into its base model first, or train on the base model")
    return checkpoint


def adapt(backbone: Any, checkpoint: Checkpoint, rank: int, alpha: int, layers: int, seed: int) -> PeftModel:
    """Put LoRA beside the linears of the first ``layers`` of the language model; nothing else is trained.

    The backbone's own modules are replaced, so that it computes with the adapter from here on.
    """
    numbers = "|".join(map(str, range(layers)))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,  # nothing random in a step: a run that goes on repeats itself
        target_modules=rf".*\.language_model\.layers\.({numbers})\.{_LINEARS}",
        base_model_name_or_path=checkpoint.id,
        revision=None if checkpoint.revision.startswith("sha256:") else checkpoint.revision,
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings(action="ignore"):  # peft asks transformers in a way that is going out of use
        adapted = get_peft_model(backbone.model, config)
    adapted.eval()
    return adapted


def count(model: nn.Module) -> tuple[int, int]:
    """Parameters that are trained, and all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def save(adapted: PeftModel, folder: Path) -> None:
    """Write the adapter, whole or not at all: adapter_config.json and adapter_model.safetensors."""
    scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        # save_embedding_layers: peft would ask the Hub whether the vocabulary has grown.
        adapted.save_pretrained(str(scratch), save_embedding_layers=False)
        (scratch / "README.md").unlink(missing_ok=True)  # a form that nobody has filled in
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
