"""The reference of KaLM-Reranker: the stock model's full forward, complete prompts, and pooling by a plain loop.

Tolerance: 1e-5 of the size of the scores in float32, unless a test states another one.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from mmrr.modeling.checkpoints import Checkpoint
from mmrr.scorers import kalm
from mmrr.scorers.kalm import Prepare, Score, Scorer
from tests.conftest import CPU

TOLERANCE = 1e-5
WEIGHTS = "model.safetensors"
EMBEDDINGS = "model.encoder.embed_tokens.weight"
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")
#: Added tokens that Gemma's tokenizer does not mark special: white space, and tokens that a text must not produce.
BLANK = ("\n", "\n\n", "\n\n\n", "\n\n\n\n", "\t")
ORDINARY = ("<mask>", "<unused0>", "<image_soft_token>")
TEXTS = [
    "Rainfall in millimetres by month. January 78, February 51,\nMarch 63. Measured at the old harbour.",
    "The thesis is due on the last Friday of June. No extension is given.",
    "Soil",
    "A longer page about espresso machines: grind, dose, tamp and time.\n\n" * 4,
]
QUERIES = ["When is the thesis due?", "rain", "  How much rain fell in March,\nat the harbour? ünïcödé 漢字 \U0001f327"]


def make_tokenizer() -> Tokenizer:
    """A tokenizer like Gemma's: byte-pair merges, spaces as "▁", bytes for characters outside the vocabulary."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    words = [kalm.SYSTEM, kalm.INSTRUCTION, "<Document>: <Instruct>: <Query>: user model", *TEXTS, "yes no " * 9]
    trained.train_from_iterator(words, trainers.BpeTrainer(vocab_size=330, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    pieces = dict.fromkeys([*SPECIAL, *ORDINARY, *BLANK, *bytes_, *learnt["vocab"]])
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("\n", "\n"), ("\n\n", "\n"), ("\n\n", "\n\n"), *map(tuple, learnt["merges"])]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in (*BLANK, *ORDINARY)])
    return tokenizer


def write_checkpoint(path: Path, seed: int = 0) -> Path:
    """A tiny random T5Gemma 2 in the published format. All of its input changes the score."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    # Settings that the file of a fine-tuned checkpoint can have. They must not change how a page is read.
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=32)
    tokenizer.save(str(path / "tokenizer.json"))
    named = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "mask")}
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GemmaTokenizer", **named}))
    processor = {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": {"height": 56, "width": 56},
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "do_pan_and_scan": None,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    torch.manual_seed(seed)
    model = T5Gemma2ForConditionalGeneration(tiny_config(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
    model.save_pretrained(path)
    return path


def tiny_config(tokenizer: Tokenizer) -> T5Gemma2Config:
    """Three layers of width 32, and a vision tower of one layer."""
    ids = {token: tokenizer.token_to_id(token) for token in (*SPECIAL, *ORDINARY)}
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "bos_token_id": ids["<bos>"],
        "eos_token_id": ids["<eos>"],
        "pad_token_id": ids["<pad>"],
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "vision_use_head": False,
    }
    encoder = {
        "text_config": text,
        "vision_config": vision,
        "mm_tokens_per_image": 4,
        "boi_token_index": ids["<start_of_image>"],
        "eoi_token_index": ids["<end_of_image>"],
        "image_token_index": ids["<image_soft_token>"],
    }
    return T5Gemma2Config(
        encoder=encoder,
        decoder=dict(text),
        image_token_index=ids["<image_soft_token>"],
        eoi_token_index=ids["<end_of_image>"],
    )


def load(path, prepare=None, dtype=torch.float32):
    checkpoint = Checkpoint(path.name, "0" * 40, path, json.loads((path / "config.json").read_text())["model_type"])
    return Scorer(checkpoint, kalm.resolve(prepare or Prepare(), checkpoint.config()), CPU, dtype)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, truncation=False, padding=False, return_tensors="pt").input_ids


def stock_prompt(query, instruction="Given a query, retrieve documents that answer the query."):
    return (
        "<bos><start_of_turn>user\nJudge whether the Document meets the requirements based on the Query and the "
        'Instruct provided. Note that the answer can only be "yes" or "no".\n\n'
        f"<Instruct>: {instruction}\n<Query>: {query}<end_of_turn>\n<start_of_turn>model\n\n\n\n"
    )


@torch.no_grad()
def stock_encoder(stock, text):
    model, tokenizer = stock
    ids = ids_of(tokenizer, f"<Document>: {text}")[:, :1024]
    return model.model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]


@torch.no_grad()
def stock_margin(stock, chunks, query, instruction=kalm.INSTRUCTION):
    """The complete LM head at the last position of a complete forward over the given chunks."""
    model, tokenizer = stock
    ids = ids_of(tokenizer, stock_prompt(query, instruction))
    out = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=chunks[None]),
        attention_mask=torch.ones(1, len(chunks), dtype=torch.long),
        decoder_input_ids=ids,
        use_cache=False,
    )
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    return float(out.logits[0, -1, yes] - out.logits[0, -1, no])


def loop_pool(hidden, ratio):
    return torch.stack([hidden[at : at + ratio].mean(0) for at in range(0, len(hidden), ratio)])


def scores_of(scorer, texts, query, **options):
    scorer._ready.clear()
    return scorer.score(query, scorer.prepare(texts, [None] * len(texts)), scorer.shared_state(), Score(**options))


def near(found, expected, tolerance=TOLERANCE):
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)
    return True
