"""Loading of a Qwen3-VL checkpoint: weights, LoRA adapter, tokenizer, image processor, chat template."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from mmrr.errors import MmrrError
from mmrr.modeling.checkpoint_files import expect_size, loading, read_json, tensor_shapes

#: Upper bound of the fewest pixels of an image: smaller images are enlarged to them.
_MOST_PX = 1 << 26


# Any: the tokenizer of transformers has no public type.
def chat_template(path: Path, tokenizer: Any) -> str:
    """The processor's template, which can place images, else the tokenizer's. Raises MmrrError if there is none."""
    jinja, old = path / "chat_template.jinja", path / "chat_template.json"
    template: Any  # what the files hold
    with loading(f"{path}: the chat template does not load"):
        if jinja.exists():
            template = jinja.read_text(encoding="utf-8")
        elif old.exists():
            template = read_json(str(path), old).get("chat_template")
        else:
            template = tokenizer.chat_template and tokenizer.get_chat_template()
    if not isinstance(template, str):
        raise MmrrError(
            f"{path} has no chat template; expected chat_template.jinja or chat_template.json: "
            "download the checkpoint again"
        )
    return template


# Any: transformers types neither the configuration nor the two processors.
def load_processors(path: Path, config: Any) -> tuple[Any, Any]:
    """The tokenizer and the image processor. Raises MmrrError if they do not load or do not fit the model."""
    with loading(f"{path}: tokenizer or image processor does not load"):
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        images = AutoImageProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False, backend="pil")
        # transformers makes an empty tokenizer if there is none. A real one has at least the 256 byte values.
        if tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False) < 256:
            raise MmrrError(f"{path} has no tokenizer.json; download the checkpoint again")
        most = max(tokenizer.get_vocab().values())
        vision = config.vision_config
        made = (images.patch_size, images.merge_size, images.temporal_patch_size)
        least_px, most_px = int(images.size["shortest_edge"]), int(images.size["longest_edge"])
    marks = (config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id)
    if max(most, *marks) >= config.text_config.vocab_size:
        raise MmrrError(
            f"{path}: the tokenizer or config.json has a token {max(most, *marks)}, and the model has "
            f"{config.text_config.vocab_size} tokens; expected files of one checkpoint"
        )
    expected = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if made != expected or not 0 < least_px <= most_px or least_px > _MOST_PX:
        raise MmrrError(
            f"{path}: preprocessor_config.json has patch, merge and temporal sizes {made} for images of {least_px} to "
            f"{most_px} pixels; expected {expected}, those of config.json, and at most {_MOST_PX} pixels for the least"
        )
    return tokenizer, images


# Any: transformers and peft do not type the model they return.
def load_model(path: Path, adapter: Path | None, dtype: torch.dtype, *, needs_head: bool) -> Any:
    """The model of a checkpoint folder, with a LoRA adapter merged into it.

    Raises MmrrError if tensors are missing or of the wrong shape, or if the adapter does not fit.
    """
    shapes = tensor_shapes(str(path), path)
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    # Missing tensors are reported below. The embedder reads its projection itself.
    transformers_logging.set_verbosity_error()
    try:
        with loading(f"{path} does not load as Qwen3-VL"):
            config = Qwen3VLConfig.from_pretrained(path, local_files_only=True)
            with torch.device("meta"):
                expect_size(path, Qwen3VLForConditionalGeneration(config).num_parameters(), shapes)
            model, report = Qwen3VLForConditionalGeneration.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                key_mapping={r"^vlm\.": ""},  # the names in ColQwen3 checkpoints of TomoroAI
            )
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

    # peft only warns about names that do not fit. They are compared below.
    with loading(f"adapter {adapter} does not fit"), warnings.catch_warnings(action="ignore"):
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            saved = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        config = PeftConfig.from_pretrained(str(adapter))
        if config.peft_type != PeftType.LORA:
            raise MmrrError(f"adapter {adapter} is no LoRA; expected a LoRA adapter: mmrr merges no other type")
        if config.megatron_config:
            raise MmrrError(f"adapter {adapter} names a module to import (megatron_config); mmrr imports none")
        # peft allocates tensors of this rank before it reads the file.
        ranks = (config.r, *config.rank_pattern.values())
        most = max((size for shape in saved.values() for size in shape), default=0)
        if not all(type(rank) is int and 0 < rank <= most for rank in ranks):
            raise MmrrError(
                f"adapter {adapter} has the ranks {ranks}; expected ranks from 1 to {most}, a size of its tensors"
            )
        adapted = PeftModel.from_pretrained(model, str(adapter))
    unfit = sorted(saved.keys() ^ set(get_peft_model_state_dict(adapted)))
    if unfit:
        raise MmrrError(
            f"adapter {adapter} does not fit: {len(unfit)} tensors are only in the file or only in the model, "
            f"among them {unfit[0]}"
        )
    return adapted.merge_and_unload()
