"""Loading of a Qwen3-VL checkpoint: config, weights, tokenizer, image processor, chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from mmrr.backbones._qwen3_vl_adapters import merge
from mmrr.backbones._qwen3_vl_names import NAMES, tensor_name
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoint_files import (
    expect_size,
    expect_tensors,
    loading,
    projection_of,
    read_config,
    read_json,
    tensor_shapes,
)

#: Upper bound of the fewest pixels of an image: smaller images are enlarged to them.
_MOST_PX = 1 << 26
#: Keys of config.json that describe the network. A published model with a linear layer of its own has further keys
#: and another model type.
_PARTS = ("text_config", "vision_config")
_KEYS = (
    *_PARTS,
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "tie_word_embeddings",
)


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


# Any: transformers does not type the configuration.
def load_config(path: Path) -> Any:
    """The configuration of the network in a checkpoint folder.

    It is made of the parts that config.json has, whatever model type the file as a whole names: transformers takes a
    part for the whole if the part has the model type that it looks for. Raises MmrrError if a part is missing, and for
    weights that are quantised.
    """
    file = path / "config.json"
    values = read_config(str(path), file, tensor_shapes(str(path), path))
    if quantised := values.get("quantization_config"):
        how = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise MmrrError(f"{file}: the weights are quantised ({how!s:.40}); expected weights that are not")
    if missing := [part for part in _PARTS if not isinstance(values.get(part), dict)]:
        raise MmrrError(f"{file} has no '{missing[0]}'; expected the config.json of a complete Qwen3-VL")
    plain = json.loads(json.dumps({key: values[key] for key in _KEYS if key in values}))
    for part in _PARTS:
        plain[part].pop("model_type", None)
    plain.setdefault("tie_word_embeddings", bool(plain["text_config"].get("tie_word_embeddings")))
    with loading(f"{path} does not load as Qwen3-VL"):
        return Qwen3VLConfig(**plain)


# Any: transformers and peft do not type the model they return.
def load_model(
    path: Path, adapter: Path | None, dtype: torch.dtype, *, needs_head: bool, projection: nn.Linear | None = None
) -> Any:
    """The model of a checkpoint folder, with a LoRA adapter merged into it.

    ``projection``: the linear layer of late interaction, which the adapter may change too. Without it a checkpoint
    with such a layer is refused. Raises MmrrError if tensors are missing, unknown or of the wrong shape, before memory
    is taken, or if the adapter does not fit.
    """
    shapes = tensor_shapes(str(path), path)
    config = load_config(path)
    found = {tensor_name(name): shape for name, shape in shapes.items()}
    if projection is not None:
        found = {name: shape for name, shape in found.items() if not projection_of(name)}
    with loading(f"{path} does not load as Qwen3-VL"), torch.device("meta"):
        empty = Qwen3VLForConditionalGeneration(config)
        expect_size(path, empty.num_parameters(), shapes)
        expected = {name: list(tensor.shape) for name, tensor in empty.state_dict().items()}
    # An embedder has no LM head, and a tied one is stored once. Other missing tensors would be left at random values.
    may_lack = () if needs_head and not config.tie_word_embeddings else ("lm_head.weight",)
    expect_tensors(str(path), "a Qwen3-VL", expected, found, may_lack)
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with loading(f"{path} does not load as Qwen3-VL"):
            model, report = Qwen3VLForConditionalGeneration.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                key_mapping=NAMES,
            )
    finally:
        transformers_logging.set_verbosity(verbosity)
    if lost := {*map(str, report["missing_keys"]), *map(str, report["mismatched_keys"])} - set(may_lack):
        raise MmrrError(f"{path} lacks {len(lost)} tensors of a Qwen3-VL, among them: {', '.join(sorted(lost)[:3])}")
    return model if adapter is None else merge(model, adapter, projection, tensor_name)
