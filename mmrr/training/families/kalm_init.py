"""A T5Gemma 2 from random init: text only, any size, a small byte-pair tokenizer, the published file layout."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from mmrr.scorers import kalm

#: Gemma's control tokens: those of the prompt and those that the config must name.
CONTROL = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
#: The answers; each is one token.
WORDS = ("yes", "no")
#: The fixed texts of every prompt and every page; each is one token.
PHRASES = (
    f"user\n{kalm.SYSTEM}\n\n<Instruct>:",
    f" {kalm.INSTRUCTION}",
    "\n<Query>:",
    "model\n\n\n\n",
    "<Document>:",
)
#: A word, a number or punctuation with the space before it, or white space.
PIECES = r" ?\p{L}[\p{L}\p{M}]*| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s"
#: Prefixes of weights that a text scorer does not load.
VISION = ("model.encoder.vision_tower.", "model.encoder.multi_modal_projector.")
#: Files of a checkpoint that training copies unchanged.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json")
#: The decoder layer with the pointing loss. The layer before it joins the pieces of a word.
POINTING_LAYER = 1
#: The norms behind attention and MLP start at a scale of 1 + QUIET, so that each layer adds little at first.
QUIET = -0.7


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a new model. Encoder and decoder have ``layers`` layers each."""

    vocabulary: int = 4096
    layers: int = 4
    hidden: int = 256
    mlp: int = 512
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    window: int = 128  # attention window of every second encoder layer, in tokens; the other layers see all tokens


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """A byte-pair tokenizer with ``size`` tokens, learned from ``texts``.

    It folds compatibility forms and capitals, and joins runs of spaces and of line breaks. A space follows each line
    break, so that a word has the same token at the start of a line.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s*\n\s*"), "\n "),
            normalizers.Replace(Regex(r"[^\S\n]+"), " "),
        ]
    )
    phrases = [tokenizer.normalizer.normalize_str(phrase) for phrase in PHRASES]
    cut = Regex("|".join([*map(re.escape, phrases), PIECES]))
    byte_level = pre_tokenizers.ByteLevel(False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(cut, "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    whole = [*WORDS, *(byte_level.pre_tokenize_str(phrase)[0][0] for phrase in phrases)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    n_learned = max(size - len(whole) - len(CONTROL), len(alphabet))
    trainer = trainers.BpeTrainer(vocab_size=n_learned, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    pieces = dict.fromkeys([*sorted(learned["vocab"], key=learned["vocab"].get), *whole])
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    # ignore_merges: a text that is in the vocabulary as a whole is one token, without merges that lead to it.
    tokenizer.model = models.BPE(
        vocab=vocabulary, merges=[tuple(pair) for pair in learned["merges"]], ignore_merges=True
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL])
    return tokenizer


def config(shape: Shape, tokenizer: Tokenizer) -> T5Gemma2Config:
    """A T5Gemma 2 config of these sizes. Its vision tower is as small as possible and unused."""
    ids = {name: tokenizer.token_to_id(name) for name in CONTROL}
    text: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "query_pre_attn_scalar": shape.head_dim,
        "sliding_window": shape.window,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "dropout_rate": 0.0,  # no randomness in a step, so that a resumed run repeats itself
        "attention_dropout": 0.0,
        "bos_token_id": ids["<bos>"],
        "eos_token_id": ids["<eos>"],
        "pad_token_id": ids["<pad>"],
    }
    vision: dict[str, Any] = {
        "model_type": "siglip_vision_model",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
        "vision_use_head": False,
    }
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(shape.layers)]
    image: dict[str, Any] = {"image_token_index": ids["<image_soft_token>"], "eoi_token_index": ids["<end_of_image>"]}
    encoder = {
        "text_config": text | {"layer_types": kinds},
        "vision_config": vision,
        "mm_tokens_per_image": 4,
        "boi_token_index": ids["<start_of_image>"],
    }
    # In the decoder a window would only hide prompt tokens, and prompts are short. Full attention has slower rotations.
    decoder = text | {"layer_types": ["full_attention"] * shape.layers}
    return T5Gemma2Config(encoder=encoder | image, decoder=decoder, dropout_rate=0.0, attention_dropout=0.0, **image)


def new_model(shape: Shape, tokenizer: Tokenizer, seed: int) -> T5Gemma2ForConditionalGeneration:
    """A model with random weights in float32, in which equal words attend to each other from the start.

    Token vectors have norm 1, layers add little to them, and one decoder layer has the same projection for queries and
    keys.
    """
    torch.manual_seed(seed)
    model: Any = T5Gemma2ForConditionalGeneration(config(shape, tokenizer))
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0.0, shape.hidden**-0.5)  # the model multiplies by sqrt(hidden)
        for name, weight in model.named_parameters():
            if name.endswith(("post_self_attn_layernorm.weight", "post_feedforward_layernorm.weight")):
                weight.fill_(QUIET)
        attention = model.model.decoder.layers[min(POINTING_LAYER, shape.layers - 1)].self_attn
        heads = attention.k_proj.weight.view(shape.kv_heads, shape.head_dim, -1)
        shared = heads.repeat_interleave(shape.heads // shape.kv_heads, 0)
        attention.q_proj.weight.copy_(shared.flatten(0, 1))
    return model  # type: ignore[no-any-return]


def save_new(model: Any, tokenizer: Tokenizer, path: Path) -> None:
    """Write an untrained model as a checkpoint, in float32."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    named = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096, **named}
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    save(model, path, torch.float32)


def save(model: Any, path: Path, dtype: torch.dtype, source: Path | None = None) -> None:
    """Write weights and config. ``source``: a checkpoint whose tokenizer and vision tower are copied."""
    path.mkdir(parents=True, exist_ok=True)
    own: dict[int, str] = {}  # tied weights are written once
    for name, value in model.state_dict().items():
        own.setdefault(value.data_ptr(), name)
    weights = {name: model.state_dict()[name].detach().to(dtype) for name in own.values()}
    if source:
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, path / name)
        for shard in sorted(source.glob("*.safetensors")):
            with safe_open(shard, framework="pt") as file:
                kept = [name for name in file.keys() if name.startswith(VISION)]  # noqa: SIM118
                weights |= {name: file.get_tensor(name).to(dtype) for name in kept}
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(path, state_dict=weights)
