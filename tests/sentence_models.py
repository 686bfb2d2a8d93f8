"""Writes small checkpoints of sentence-transformers in the published format, with random weights."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

_TEXT = """
the thesis is due in april when soil moisture sensors rainfall spring by month page table of a what who where how
deadline submit committee water field depth reading results method chapter week date
"""
WORDS = _TEXT.split()
#: The most tokens that the checkpoints read.
MOST_TOKENS = 32


def write_text_embedder(folder: Path, *, seed: int = 0, prompts: dict[str, str] | None = None) -> Path:
    """A BERT with mean pooling and normalised vectors, as all-MiniLM-L6-v2 is published."""
    torch.manual_seed(seed)
    BertModel(_config(folder), add_pooling_layer=False).save_pretrained(folder)
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (folder / "1_Pooling").mkdir()
    _write(folder / "modules.json", listed)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": MOST_TOKENS, "do_lower_case": False})
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    _write(folder / "config_sentence_transformers.json", {"prompts": prompts or {}, "similarity_fn_name": "cosine"})
    return folder


def write_cross_encoder(folder: Path, *, labels: int = 1, sharded: bool = False) -> Path:
    """A BERT for sequence classification, as cross-encoder/ms-marco-MiniLM-L6-v2 is published."""
    torch.manual_seed(0)
    config = _config(folder)
    config.num_labels = labels
    size = "20KB" if sharded else "5GB"
    BertForSequenceClassification(config).save_pretrained(folder, max_shard_size=size)
    return folder


def _config(folder: Path) -> BertConfig:
    """Write the tokenizer, and return the config of a small BERT with its vocabulary."""
    folder.mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = string.ascii_lowercase
    pieces = [*special, *WORDS, *(f"##{char}" for char in letters), *letters, "?", "."]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(dict.fromkeys(pieces)) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), do_lower_case=True, model_max_length=512)
    tokenizer.save_pretrained(folder)
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
    )


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
