"""A Qwen3-VL checkpoint with random weights, any size and a byte tokenizer, in the published file layout."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from mmrr.embedders import colqwen3 as late_interaction
from mmrr.embedders import qwen3_vl as embedder
from mmrr.modeling.checkpoint_files import PROJECTIONS
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.scorers import minireranker
from mmrr.workspace.tensor_files import save_tensors

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: Each answer is one token. Other text is tokenized to bytes, so that the model can match any word by its letters.
WORDS = ("yes", "no")
#: Also one token each: the fixed text of prompts, 280 bytes around a page and 24 bytes around a query.
PHRASES = (
    minireranker.SYSTEM,
    minireranker.INSTRUCTION,
    embedder.Prepare().instruction,
    embedder.Search().instruction,
    "<Instruct>: ",
    "\n<Document>: ",
    "<Query>: ",
    "system\n",
    "user\n",
    "assistant\n",
)

CHAT_TEMPLATE = """{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string -%}{{ message.content }}{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""


#: Visual tokens per page vector: a word covers several visual tokens, and half of a page is blank.
POOLED = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model."""

    layers: int = 8
    hidden: int = 256
    mlp: int = 768
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 64
    vision_layers: int = 6
    vision_hidden: int = 192
    vision_heads: int = 3
    vision_mlp: int = 768
    deepstack: tuple[int, ...] = (2,)
    max_tokens: int = 1280


def _published(layers: int, hidden: int, mlp: int, heads: int, vision: dict[str, Any] | None = None) -> Shape:
    tower: dict[str, Any] = {
        "vision_layers": 24,
        "vision_hidden": 1024,
        "vision_heads": 16,
        "vision_mlp": 4096,
        "deepstack": (5, 11, 17),
    }
    return Shape(layers, hidden, mlp, heads, kv_heads=8, head_dim=128, **tower | (vision or {}))


#: Sizes by name: mmrr's own model, the published Qwen3-VL models except for their vocabulary, and one to try a command.
SHAPES = {
    "tiny": Shape(
        4, 32, 64, 4, 2, 16, vision_layers=2, vision_hidden=32, vision_heads=2, vision_mlp=64, deepstack=(0,)
    ),
    "reader": Shape(),
    "qwen3-vl-2b": _published(28, 2048, 6144, 16),
    "qwen3-vl-4b": _published(36, 2560, 9728, 32),
    "qwen3-vl-8b": _published(
        36,
        4096,
        12288,
        32,
        {"vision_layers": 27, "vision_hidden": 1152, "vision_mlp": 4304, "deepstack": (8, 16, 24)},
    ),
}


def byte_tokenizer(phrases: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of bytes, answers, fixed phrases of prompts, ``phrases`` and special tokens of the chat template."""
    phrases = (*PHRASES, *phrases)
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *WORDS, *map(_byte_level, phrases)]
    # Without merges, a piece is one token if it is in the vocabulary. Otherwise each of its bytes is a token.
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    # Answers match whole words only: "yesterday" and "know" become bytes.
    words = rf"(?<![\p{{L}}\p{{N}}])(?:{'|'.join(WORDS)})(?![\p{{L}}\p{{N}}])"
    cut = Regex("|".join([*map(re.escape, phrases), words, r"[\s\S]"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(cut, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _byte_level(text: str) -> str:
    """A text in the notation of a byte-level vocabulary."""
    return pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(text)[0][0]


def config(shape: Shape, tokenizer: Tokenizer) -> Qwen3VLConfig:
    """A Qwen3-VL config of these sizes."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    sections = [shape.head_dim // 2 - 2 * (shape.head_dim // 6), shape.head_dim // 6, shape.head_dim // 6]
    text: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000.0,
            "mrope_section": sections,
            "mrope_interleaved": True,
        },
    }
    vision: dict[str, Any] = {
        "depth": shape.vision_layers,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_mlp,
        "num_heads": shape.vision_heads,
        "out_hidden_size": shape.hidden,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": list(shape.deepstack),
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def new_model(
    shape: Shape,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    phrases: Sequence[str] = (),
    device: torch.device | None = None,
) -> Qwen3VLForConditionalGeneration:
    """Random weights of these sizes, for ``byte_tokenizer(phrases)``, made on a device; None: the CPU."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # initialising in float32 would take twice the memory
    try:
        with torch.device(device or "cpu"):
            model = Qwen3VLForConditionalGeneration(config(shape, byte_tokenizer(phrases)))
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():  # learned positions start at zero: rotary positions are enough to read
        model.model.visual.pos_embed.weight.zero_()
    return model


def in_memory(
    name: str, folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[Checkpoint, Qwen3VLForConditionalGeneration]:
    """A checkpoint of ``SHAPES`` without weights in ``folder``, and random weights that are made on the device."""
    shape = SHAPES[name]
    write_files(folder, shape.max_tokens)
    model = new_model(shape, dtype=dtype, device=device)
    model.config.save_pretrained(folder)
    return Checkpoint(name, "random", folder, str(model.config.model_type)), model


def write_files(path: Path, max_tokens: int, phrases: Sequence[str] = ()) -> None:
    """Write tokenizer, chat template and image processor in the layout of published checkpoints."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer(phrases)
    tokenizer.save(str(path / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "bos_token": None,
        "model_max_length": 8192,
        "add_prefix_space": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1) + "\n")
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": max_tokens * 32 * 32, "shortest_edge": 4 * 32 * 32},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")


def save(
    model: Qwen3VLForConditionalGeneration,
    path: Path,
    max_tokens: int,
    dtype: torch.dtype,
    phrases: Sequence[str] = (),
    projection: Tensor | None = None,
    temperature: float = 0.0,
) -> None:
    """Write weights, config, tokenizer, chat template and image processor in the layout of published checkpoints.

    ``projection`` (dim, D): the last layer of a late-interaction embedder with one vector per word. ``temperature``:
    the divisor that turns its products into logits, 0 if it is not known.

    Seven parameters, because both kinds of model share all files; the last three have defaults.
    """
    write_files(path, max_tokens, phrases)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    copy = {name: tensor.detach().to(dtype) for name, tensor in model.state_dict().items()}
    # The names of the model itself: those of the file that it was loaded from may have been another family's.
    model.save_pretrained(path, state_dict=copy, save_original_format=False)
    if projection is None:
        return
    weights = path / "model.safetensors"
    named = {f"{PROJECTIONS[0]}.weight": projection.detach().to("cpu", dtype).contiguous()}
    save_tensors(load_file(weights) | named, weights)
    settings = json.loads((path / "config.json").read_text())
    settings |= {
        "architectures": ["ColQwen3"],
        late_interaction.WORDS: True,
        late_interaction.POOL: POOLED,
        late_interaction.TEMPERATURE: temperature,
    }
    (path / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
