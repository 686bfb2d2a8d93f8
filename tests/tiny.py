"""Writes a tiny Qwen3-VL checkpoint with random weights in the published format, so that tests run the real code.

``python -m tests.tiny DIR`` writes one. For random weights with the true sizes of a published model, see
``benchmarks/random_model.py`` and ``mmrr bench``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: The published tokenizer also has added tokens that are not marked special. Text must not produce them.
ADDED_TOKENS = ("<tool_call>", "</tool_call>", "<think>", "</think>")

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TRAINING_TEXT = [
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided.",
    'Note that the answer can only be "yes" or "no".',
    "Given a search query, retrieve relevant candidates that answer the query.",
    "system user assistant yes no yes no yes no Represent the user's input.",
]

CHAT_TEMPLATE = """{%- macro parts(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' or 'image' in part -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}{{ parts(message.content) }}{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED_TOKENS])
    return tokenizer


def _shape(layers: int, vocab_size: int, deepstack: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Text and vision config of the tiny model."""
    text = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": list(deepstack),
    }
    return text, vision


def _write_tokenizer(path: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """Write tokenizer files; returns the ids of special and added tokens."""
    tokenizer.save(str(path / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in (*SPECIAL_TOKENS, *ADDED_TOKENS)}
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "bos_token": None,
        "model_max_length": 262144,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": token, "special": token in SPECIAL_TOKENS, "normalized": False}
            for token, i in ids.items()
        },
    }
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return ids


def _write_image_processor(path: Path) -> None:
    processor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))


def write_checkpoint(
    path: Path,
    layers: int = 4,
    seed: int = 0,
    end_of_text_after_prompt: bool = False,
    deepstack: tuple[int, ...] = (0, 1),
    tie: bool = True,
) -> Path:
    """Write config, weights (float32), tokenizer, chat template and image processor. Returns ``path``.

    The standard deviation of the weights (0.2) is large enough that layers, positions and tokens all change the score.
    A test of a model that ignores its input could not fail.
    """
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    ids = _write_tokenizer(path, tokenizer)
    template = CHAT_TEMPLATE + ("<|endoftext|>" if end_of_text_after_prompt else "")
    (path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    _write_image_processor(path)
    text, vision = _shape(layers, tokenizer.get_vocab_size(), deepstack)
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tie,
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2 if "patch_embed" not in name else 0.05)
    model.save_pretrained(path)
    _write_published_config(path)
    return path


def _write_published_config(path: Path) -> None:
    """Rewrite config.json as transformers 4.57 wrote those of the published models. Later versions write other keys."""
    values = json.loads((path / "config.json").read_text())
    text, vision = values["text_config"], values["vision_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "dtype": "bfloat16"}
    text |= {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": values["tie_word_embeddings"]}
    vision["model_type"] = "qwen3_vl"
    for part, key in ((values, "dtype"), (vision, "dtype"), (vision, "rope_parameters")):
        part.pop(key, None)
    (path / "config.json").write_text(json.dumps(values | {"transformers_version": "4.57.0.dev0"}, indent=2))


def late(path: Path, copy: Path, naming: str = "custom_text_proj", dim: int = 24, words: bool = False) -> Path:
    """A copy of a checkpoint with the linear layer of late interaction, in one of the published layouts.

    ``naming`` "custom_text_proj": the layout of colpali-engine and mmrr. "embedding_proj_layer": the layout of
    TomoroAI, with the language model under "vlm.", a bias and another model type. ``words``: one vector per word, as in
    mmrr's models.
    """
    shutil.copytree(path, copy)
    tensors = load_file(path / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    width = json.loads((path / "config.json").read_text())["text_config"]["hidden_size"]
    named = {f"{naming}.weight": torch.randn(dim, width, generator=generator)}
    settings: dict[str, Any] = {"architectures": ["ColQwen3"]}
    if naming == "embedding_proj_layer":
        tensors = {f"vlm.{name}": tensor for name, tensor in tensors.items()}
        named[f"{naming}.bias"] = torch.randn(dim, generator=generator)
        settings |= {"model_type": "colqwen3", "embed_dim": dim}
    if words:
        settings["word_vectors"] = True
    save_file(tensors | named, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | settings))
    return copy


if __name__ == "__main__":
    print(write_checkpoint(Path(sys.argv[1])))
