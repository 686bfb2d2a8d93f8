"""The reference of EDJE: modules of torch and transformers under the published names, and tiny checkpoints.

It shares no code with the scorer.
"""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoImageProcessor, BertConfig, BertForMaskedLM, SiglipConfig, SiglipModel, SiglipVisionModel
from transformers.models.bert.modeling_bert import BertPooler

from mmrr.scorers import edje
from mmrr.scorers.edje import Prepare, Scorer, canonical
from tests.conftest import CPU

TOLERANCE = 1e-5
QUERIES = ["When is the thesis due?", "soil", "A longer question about the red box of page 3, and how large it is"]
D, SIDE, PATCH, HEADS = 16, 32, 8, 2
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "thesis", "soil", "box", "page"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = [*WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]


class Compressed(nn.Module):
    """The adapter of the paper's code, with two linear maps in front of the keys and two in front of the values."""

    def __init__(self, m, d, inner, width):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, m, width))
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.layernorm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.projection = nn.Linear(width, d)

    def forward(self, x):
        query = self.query.expand(len(x), -1, -1)
        hidden, _ = self.attention(query, self.key(x), self.value(x), need_weights=False)
        inner = nn.functional.gelu(self.mlp["fc1"](self.layernorm(hidden)))
        return self.projection(hidden + self.mlp["fc2"](inner))


class Original(nn.Module):
    """All tensors of a published checkpoint, under their names."""

    def __init__(self, m=4, d=12, layers=3, local=False, positions=512, inner=24, width=D):
        """Seven parameters: the sizes of the network. Each test changes some of them."""
        super().__init__()
        config = BertConfig(
            vocab_size=len(VOCABULARY) + 1,  # the published table has a row for its image placeholder
            hidden_size=d,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            intermediate_size=2 * d,
            max_position_embeddings=positions,
        )
        self.vision_projection = (
            nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, d))
            if local
            else Compressed(m, d, inner, width)
        )
        self.language_model = BertForMaskedLM(config)
        self.classification_head = nn.Sequential(BertPooler(config), nn.Linear(d, 1))
        self.text_projection = nn.Linear(d, D)  # for training alone, like the next two
        self.vision_encoder = nn.Linear(1, 1)
        self.clip = nn.Linear(1, 1)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                # Large enough that pages, tokens and positions all change the score.
                if name.endswith((".query", "in_proj_weight")):
                    # Smaller weights for wide vision tokens: sharp attention amplifies float32 rounding.
                    parameter.normal_(0, min(1, D / width))
                elif name.endswith("query.weight"):
                    parameter.normal_(0, 1)
                elif name.startswith("vision_projection.projection"):
                    parameter.normal_(0, 0.03)
                elif "LayerNorm" not in name and "layernorm" not in name:
                    parameter.normal_(0, 0.3)
                elif name.endswith("weight"):
                    parameter.normal_(1, 0.2)
        self.eval().requires_grad_(False)

    def score(self, texts, z):
        """Logits (n,) of token ids with Z (n, V, d), in one batch padded on the right."""
        bert, cls, sep = self.language_model.bert, VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")
        rows = []
        for ids, page in zip(texts, z, strict=True):
            sequence = torch.tensor([cls, *ids, sep, *[0] * len(page), sep])
            words = bert.embeddings.word_embeddings(sequence)
            words[len(ids) + 2 : -1] = page
            types = (torch.arange(len(sequence)) >= len(ids) + 2).long()
            rows.append((words, types, torch.ones(len(sequence), dtype=torch.long)))
        padded = [nn.utils.rnn.pad_sequence(part, batch_first=True) for part in zip(*rows, strict=True)]
        hidden = bert(inputs_embeds=padded[0], token_type_ids=padded[1], attention_mask=padded[2]).last_hidden_state
        return self.classification_head(hidden)[:, 0]


def write_vision(path, seed=5):
    """A tiny SigLIP with text tower and pooling head, like the published one."""
    part = {"hidden_size": D, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    text = {**part, "vocab_size": 9, "max_position_embeddings": 4, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(seed)
    model = SiglipModel(SiglipConfig(vision_config={**part, "image_size": SIDE, "patch_size": PATCH}, text_config=text))
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(path)
    values = {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": SIDE, "width": SIDE},
    }
    (path / "preprocessor_config.json").write_text(json.dumps(values))
    return path


def write_edje(path, original, prefix="", config=True, tokenizer=True, extra=()):
    path.mkdir(parents=True, exist_ok=True)
    tensors = {prefix + name: tensor.clone().contiguous() for name, tensor in original.state_dict().items()}
    save_file(tensors | dict(extra), path / "model.safetensors")
    if config:
        (path / "config.json").write_text(json.dumps({"num_attention_heads": HEADS}))
    if tokenizer:
        (path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in VOCABULARY))
    return path


def scorer_of(checkpoint, vision_path, dtype=torch.float32, **options):
    prepare = edje.resolve(Prepare(vision=str(vision_path), **options), checkpoint.config())
    return Scorer(checkpoint, prepare, CPU, dtype)


def stock_tokens(vision_path, images):
    model = SiglipVisionModel.from_pretrained(vision_path, attn_implementation="eager").eval()
    processor = AutoImageProcessor.from_pretrained(vision_path, backend="pil")
    with torch.no_grad():
        return model(**processor(images=images, return_tensors="pt")).last_hidden_state


def pieces(query):
    return [VOCABULARY.index(piece) for piece in wordpieces(canonical(query))][:61]


def wordpieces(text):
    """The word pieces of a text by greedy longest match."""
    for word in text.split():
        at = 0
        while at < len(word):
            start = "##" if at else ""
            stop = next((s for s in range(len(word), at, -1) if start + word[at:s] in VOCABULARY), None)
            assert stop, word
            yield start + word[at:stop]
            at = stop
