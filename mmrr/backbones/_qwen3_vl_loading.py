"""Loading of a Qwen3-VL checkpoint: weights, LoRA adapter, chat template."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import Qwen3VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from mmrr.backbones._errors import first_line
from mmrr.errors import MmrrError


def chat_template(path: Path) -> str | None:
    """The processor's template, which can place images. None: only the tokenizer may have one."""
    jinja = path / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    old = path / "chat_template.json"
    if old.exists():
        return str(json.loads(old.read_text(encoding="utf-8"))["chat_template"])
    return None


# Any: transformers and peft do not type the model they return.
def load_model(path: Path, adapter: Path | None, dtype: torch.dtype, *, needs_head: bool) -> Any:
    """The model of a checkpoint folder, with a LoRA adapter merged into it.

    Raises MmrrError if tensors are missing or of the wrong shape, or if the adapter does not fit.
    """
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    # Missing tensors are reported below. The embedder reads its projection itself.
    transformers_logging.set_verbosity_error()
    try:
        model, report = Qwen3VLForConditionalGeneration.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            key_mapping={r"^vlm\.": ""},  # the names in ColQwen3 checkpoints of TomoroAI
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise MmrrError(f"{path} does not load as Qwen3-VL: {first_line(error)}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    # An embedder has no LM head. Any other missing tensor would be left at random values.
    missing = {key for key in report["missing_keys"] if needs_head or not key.startswith("lm_head")}
    if missing or report["mismatched_keys"]:
        names = sorted(missing) or sorted(str(key) for key in report["mismatched_keys"])
        raise MmrrError(f"{path} lacks {len(names)} tensors of a Qwen3-VL, among them: {', '.join(names[:3])}")
    if adapter is None:
        return model
    return _merge(model, adapter)


def _merge(model: Any, adapter: Path) -> Any:
    from peft import PeftConfig, PeftModel, PeftType, get_peft_model_state_dict

    try:
        # peft only warns about names that do not fit. They are compared below.
        with warnings.catch_warnings(action="ignore"):
            if PeftConfig.from_pretrained(str(adapter)).peft_type != PeftType.LORA:
                raise MmrrError(f"adapter {adapter} is no LoRA; expected a LoRA adapter: mmrr merges no other type")
            adapted = PeftModel.from_pretrained(model, str(adapter))
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            saved = set(file.keys())
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise MmrrError(f"adapter {adapter} does not fit: {first_line(error)}") from error
    unfit = sorted(saved ^ set(get_peft_model_state_dict(adapted)))
    if unfit:
        raise MmrrError(
            f"adapter {adapter} does not fit: {len(unfit)} tensors are only in the file or only in the model, "
            f"among them {unfit[0]}"
        )
    return adapted.merge_and_unload()
