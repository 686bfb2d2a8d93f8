"""The contract of EDJE: the network of the paper, its cache of vision tokens, and the checkpoints it takes.

The reference is built of torch's and transformers' own modules under the published names, and shares no code with the
engine. Tolerance: |ds| <= 1e-5 in float32, unless a test says otherwise.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoImageProcessor, BertConfig, BertForMaskedLM, SiglipConfig, SiglipModel, SiglipVisionModel
from transformers.models.bert.modeling_bert import BertPooler

from mmrr.backbones import edje as backbone
from mmrr.backbones.qwen3_vl import Backbone
from mmrr.documents.discovery import find_sources
from mmrr.documents.rendering import RenderOptions, render_pages
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import Checkpoint, recorded, resolve
from mmrr.scorers import edje
from mmrr.scorers.edje import Prepare, Score, Scorer, canonical, cut
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.console import (
    FP32,
    INDEX,
    SOIL,
    THESIS,
    artifact,
    manifest,
    mmrr,
    refused,
    run_lines,
    write_documents,
    write_queries,
)

TOLERANCE = 1e-5
QUERIES = ["When is the thesis due?", "soil", "A longer question about the red box of page 3, and how large it is"]
D, SIDE, PATCH, HEADS = 16, 32, 8, 2
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "thesis", "soil", "box", "page"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = [*WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]


class Compressed(nn.Module):
    """The adapter as the paper's code builds it: two linear maps before each of keys and values."""

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
    """All that a published checkpoint holds, under its names."""

    def __init__(self, m=4, d=12, layers=3, local=False, positions=512, inner=24, width=D):
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
        self.text_projection = nn.Linear(d, D)  # of training alone, as the vision encoder's copies are
        self.vision_encoder = nn.Linear(1, 1)
        self.clip = nn.Linear(1, 1)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                # Wide enough that pages, tokens and positions all move the score.
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
        """Logits (n,) of token ids against Z (n, V, d), right-padded to the longest."""
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
    """A tiny SigLIP with text tower and pooling head, as the published one is."""
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


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(3)
    return Original()


@pytest.fixture(scope="module")
def vision_path(tmp_path_factory):
    return write_vision(tmp_path_factory.mktemp("siglip") / "siglip")


@pytest.fixture(scope="module")
def edje_path(tmp_path_factory, original):
    return write_edje(tmp_path_factory.mktemp("edje") / "edje", original)


@pytest.fixture
def hashes(tmp_path):
    return HashCache(tmp_path / "hashes.json")


@pytest.fixture
def found(edje_path, hashes):
    return resolve(str(edje_path), None, hashes, edje.MODEL_TYPES)


def scorer_of(checkpoint, vision_path, dtype=torch.float32, **options):
    prepare = edje.resolve(Prepare(vision=str(vision_path), **options), checkpoint.config())
    return Scorer(checkpoint, prepare, CPU, dtype)


@pytest.fixture
def scorer(found, vision_path):
    return scorer_of(found, vision_path)


def stock_tokens(vision_path, images):
    model = SiglipVisionModel.from_pretrained(vision_path, attn_implementation="eager").eval()
    processor = AutoImageProcessor.from_pretrained(vision_path, backend="pil")
    with torch.no_grad():
        return model(**processor(images=images, return_tensors="pt")).last_hidden_state


def pieces(query):
    return [VOCABULARY.index(piece) for piece in wordpieces(canonical(query))][:61]


def wordpieces(text):
    """Greedy longest match, by hand."""
    for word in text.split():
        at = 0
        while at < len(word):
            start = "##" if at else ""
            stop = next((s for s in range(len(word), at, -1) if start + word[at:s] in VOCABULARY), None)
            assert stop, word
            yield start + word[at:stop]
            at = stop


# The network


def test_vision_tokens_are_the_stock_models(scorer, vision_path, page_images):
    expected = stock_tokens(vision_path, page_images)
    assert expected.shape == (4, (SIDE // PATCH) ** 2, D)
    assert (scorer.vision.tokens(page_images) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("local", [False, True])
def test_the_folded_adapter_equals_the_unfolded_one(local, tmp_path, vision_path, hashes):
    torch.manual_seed(7)
    reference = Original(local=local)
    checkpoint = resolve(str(write_edje(tmp_path / "e", reference)), None, hashes, edje.MODEL_TYPES)
    scorer = scorer_of(checkpoint, vision_path)
    x = torch.randn(3, 16, D)
    expected = reference.vision_projection(x)
    assert expected.std() > 1000 * TOLERANCE
    assert (scorer.adapter(x) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert scorer.prepare_options.tokens == expected.shape[1] == (16 if local else 4)


@pytest.mark.parametrize("query", [*QUERIES, "", "?!"])
def test_the_joint_encoder_is_stock_bert_with_words_replaced(scorer, original, query):
    z = torch.randn(5, 4, 12)
    ids = scorer.text_ids(query)
    assert ids[1:-1] == pieces(query)
    scores = scorer.encoder.score(ids, scorer.pieces.sep, z)
    expected = original.score([pieces(query)] * 5, z)
    assert expected.std() > 1000 * TOLERANCE
    assert (scores - expected).abs().max() <= TOLERANCE


def test_a_pair_alone_equals_it_in_a_padded_batch(scorer, original, page_images):
    """Texts of different lengths beside one another, padded and masked, by the stock model."""
    states = [{"z": scorer.compress(image)} for image in page_images[:3]]
    padded = original.score([pieces(query) for query in QUERIES], [state["z"] for state in states])
    alone = [scorer.score(query, [state], {}, Score()) for query, state in zip(QUERIES, states, strict=True)]
    assert (torch.cat(alone) - padded).abs().max() <= TOLERANCE


def test_a_score_from_page_to_logit_is_the_originals(scorer, original, vision_path, page_images):
    z = original.vision_projection(stock_tokens(vision_path, page_images))
    for query in QUERIES:
        expected = original.score([pieces(query)] * 4, z)
        scores = torch.tensor([scorer.score_uncached(query, image, None, Score()) for image in page_images])
        assert (scores - expected).abs().max() <= TOLERANCE
        assert expected.std() > 100 * TOLERANCE


def test_stored_halves_score_as_floats_do_nearly(scorer, page_images):
    """float16 has 11 bits: within 2 % of the spread of scores over pages; ``verify --rescore`` says how far."""
    states, shared = scorer.prepare(page_images, [None] * 4), scorer.shared_state()
    for query in QUERIES:
        exact = torch.tensor([scorer.score_uncached(query, image, None, Score()) for image in page_images])
        difference = (scorer.score(query, states, shared, Score()) - exact).abs().max()
        assert 0 < difference <= 0.02 * exact.std()


def test_a_batch_equals_its_members(scorer, page_images):
    states, shared = scorer.prepare(page_images, [None] * 4), scorer.shared_state()
    together = scorer.score(QUERIES[2], states, shared, Score())
    for batch in (1, 3):
        assert (scorer.score(QUERIES[2], states, shared, Score(batch=batch)) - together).abs().max() <= TOLERANCE
    assert scorer.score("q", [], shared, Score()).shape == (0,)
    with pytest.raises(MmrrError, match="batch 0: expected 1 or more"):
        scorer.score("q", states, shared, Score(batch=0))


def test_visual_tokens_have_positions(scorer, page_images):
    (state,) = scorer.prepare(page_images[:1], [None])
    backwards = {"z": state["z"].flip(0)}
    scores = scorer.score(QUERIES[0], [state, backwards], {}, Score())
    assert (scores[0] - scores[1]).abs() > 100 * TOLERANCE


def test_bfloat16_stays_near_float32(found, scorer, vision_path, page_images):
    """The error is at most 10 % of the largest score of 44 queries. The scores of three may all be near 0."""
    scores = []
    for one in (scorer, scorer_of(found, vision_path, torch.bfloat16)):
        states, shared = one.prepare(page_images, [None] * 4), one.shared_state()
        scores.append([one.score(query, states, shared, Score()) for query in [*QUERIES, *WORDS[5:], *LETTERS]])
    exact, near = map(torch.stack, scores)
    assert near.dtype == torch.float32
    assert 0 < (exact - near).abs().max() <= 0.1 * exact.abs().max()


# Text


def test_text_is_canonical():
    assert canonical("  It\u2019s 3.5 &amp;amp; US_DOLLARS\n(50%)  ") == "its 35 us dollars 50"
    assert canonical("\uff21\uff22\uff0c \ufb01ne\x00 \u201cquoted\u201d") == "ab fine quoted"
    assert canonical("e\u0301tude &lt;b&gt;") == "\u00e9tude b"
    assert canonical("") == canonical("?!") == ""


def test_a_long_query_is_cut_to_61_pieces(scorer, page_images):
    states = scorer.prepare(page_images[:2], [None] * 2)
    words = ["box"] * 61
    exact = scorer.score(" ".join(words), states, {}, Score())
    assert torch.equal(scorer.score(" ".join([*words, "soil"]), states, {}, Score()), exact)
    assert torch.equal(scorer.score(" ".join([*words, *["thesis page"] * 300]), states, {}, Score()), exact)
    assert not torch.equal(scorer.score(" ".join(["soil", *words[1:]]), states, {}, Score()), exact)
    assert len(scorer.text_ids(" ".join(words * 2))) == 63


def test_control_strings_in_a_query_stay_text(scorer):
    nasty = "soil [SEP] [CLS] [MASK] [PAD] <image>"
    assert scorer.text_ids(nasty)[1:-1] == pieces("soil sep cls mask pad image")
    # And if punctuation were let through, the tokenizer itself knows no control tokens.
    controls = {VOCABULARY.index(name) for name in ("[SEP]", "[CLS]", "[MASK]", "[PAD]")}
    assert not controls & set(scorer.pieces.encode("[SEP] [CLS] [MASK] [PAD]"))


# The cache


def test_the_published_shape_takes_49152_bytes_a_page(tmp_path, vision_path, hashes, page_images):
    checkpoint = resolve(
        str(write_edje(tmp_path / "e", Original(m=64, d=384, layers=1))), None, hashes, edje.MODEL_TYPES
    )
    scorer = scorer_of(checkpoint, vision_path)
    (state,) = scorer.prepare(page_images[:1], [None])
    assert (state["z"].dtype, state["z"].shape) == (torch.float16, (64, 384))
    assert state["z"].nbytes == 49152
    assert edje.cache_bytes(scorer.prepare_options, checkpoint.config(), 999, 4) == 49152
    assert scorer_of(checkpoint, vision_path, tiles=7).prepare_options.tiles == 7
    with pytest.raises(MmrrError, match=r"tiles 8: expected 1 to 7, because 3 \+ 61 \+ 64 a tile must fit 512"):
        scorer_of(checkpoint, vision_path, tiles=8)


@pytest.mark.parametrize("value", [7e4, float("nan")])
def test_what_float16_cannot_hold_is_refused(scorer, page_images, monkeypatch, value):
    monkeypatch.setattr(Scorer, "compress", lambda self, image: torch.full((4, 12), value))
    with pytest.raises(MmrrError, match="not below 60000, so float16 cannot hold them"):
        scorer.prepare(page_images[:1], [None])


# Tiles


@pytest.mark.parametrize(
    ("size", "tiles", "first", "n"),
    [
        ((80, 100), 1, (80, 100), 1),
        ((80, 100), 2, (80, 50), 2),
        ((100, 80), 2, (50, 80), 2),
        ((80, 100), 4, (40, 50), 4),
        ((80, 100), 6, (40, 33), 6),
        ((80, 100), 5, (80, 20), 5),
        ((100, 100), 2, (100, 50), 2),
    ],
)
def test_tiles_are_as_square_as_can_be_and_cover_the_page_once(size, tiles, first, n):
    page = Image.frombytes("RGB", size, bytes(i * 7 % 251 for i in range(3 * size[0] * size[1])))
    parts = cut(page, tiles)
    assert (parts[0].size, len(parts)) == (first, n)
    assert sum(part.width * part.height for part in parts) == size[0] * size[1]
    assert parts[-1].getpixel((parts[-1].width - 1, parts[-1].height - 1)) == page.getpixel((size[0] - 1, size[1] - 1))
    assert parts[0].getpixel((0, 0)) == page.getpixel((0, 0))


def test_a_tiled_page_is_its_tiles_one_after_the_other(found, scorer, vision_path, page_images):
    tiled = scorer_of(found, vision_path, tiles=6)
    for image in page_images:
        (state,) = tiled.prepare([image], [None])
        parts = scorer.prepare(cut(image, 6), [None] * 6)
        assert state["z"].shape == (24, 12)
        assert (state["z"].float() - torch.cat([part["z"] for part in parts]).float()).abs().max() <= 2e-3
        assert state["z"].nbytes == edje.cache_bytes(tiled.prepare_options, found.config(), 0, 4)
    whole, cut_up = (
        one.score(QUERIES[0], one.prepare(page_images, [None] * 4), {}, Score()) for one in (scorer, tiled)
    )
    assert (whole - cut_up).abs().max() > 100 * TOLERANCE


def test_a_learned_tile_embedding_is_in_the_cache(tmp_path, original, scorer, vision_path, hashes, page_images):
    rows = torch.randn(3, 12)
    path = write_edje(tmp_path / "e", original, extra={"tile_embedding.weight": rows})
    checkpoint = resolve(str(path), None, hashes, edje.MODEL_TYPES)
    marked = scorer_of(checkpoint, vision_path, tiles=3)
    parts = [scorer.compress(part) + row for part, row in zip(cut(page_images[0], 3), rows, strict=True)]
    assert (marked.compress(page_images[0]) - torch.cat(parts)).abs().max() <= TOLERANCE
    with pytest.raises(MmrrError, match=r"tiles 4: expected 1 to 3.*the tile embedding has 3 rows"):
        scorer_of(checkpoint, vision_path, tiles=4)


# Checkpoints


def test_sizes_and_variant_are_told_from_the_header(found):
    made = backbone.layout(found.config()["tensors"])
    assert (made.queries, made.vision_width, made.width, made.layers) == (4, D, 12, 3)
    assert (made.positions, made.words, made.tiles, made.prefix) == (512, len(VOCABULARY) + 1, 0, "")
    assert found.model_type == ""


def test_every_tensor_is_consumed_but_the_groups_of_training(found, original):
    made = backbone.layout(found.config()["tensors"])
    left = set(original.state_dict()) - made.names
    assert {name.split(".")[0] for name in left} == {"language_model", "text_projection", "vision_encoder", "clip"}
    assert all(".cls." in name for name in left if name.startswith("language_model"))
    assert backbone.load(found.path, made).keys() == made.names


@pytest.mark.parametrize(("queries", "n_adapter"), [(64, 23_545_216), (0, 11_542_912)])
def test_the_published_sizes_have_the_papers_parameters(queries, n_adapter):
    made = backbone.Layout("", queries, 1024, 384, 12, 512, 30523, 0, frozenset())
    assert sum(map(math.prod, backbone._adapter_shapes(made, 8192).values())) == n_adapter
    joint = backbone._joint_shapes(made, 1536)
    assert sum(math.prod(joint[name]) for name in joint if name.startswith("language_model.")) == 33_212_544


@pytest.mark.parametrize("prefix", ["model.", "module.model."])
def test_any_common_prefix_and_no_config_will_do(tmp_path, original, scorer, vision_path, hashes, page_images, prefix):
    half = {name: tensor.half() for name, tensor in original.state_dict().items()}
    original_half = Original()
    original_half.load_state_dict(half)
    path = write_edje(tmp_path / "e", original_half, prefix=prefix)
    same = scorer_of(resolve(str(path), None, hashes, edje.MODEL_TYPES), vision_path)
    one, other = (s.score_uncached(QUERIES[0], page_images[0], None, Score()) for s in (scorer, same))
    assert one == pytest.approx(other, abs=0.05)
    (path / "config.json").unlink()
    bare = resolve(str(path), None, hashes, edje.MODEL_TYPES)
    assert set(bare.config()) == {"tensors"}
    assert scorer_of(bare, vision_path).encoder.heads == 12  # what MiniLM has, where no config.json says


def test_a_checkpoint_of_another_family_still_needs_its_config(tmp_path, original, hashes):
    path = write_edje(tmp_path / "e", original, config=False)
    with pytest.raises(MmrrError, match=r"no config\.json"):
        resolve(str(path), None, hashes)


@pytest.mark.parametrize("spelling", ["published", "vision alone", "vision alone, older"])
def test_siglip_is_read_in_every_spelling(tmp_path, found, scorer, vision_path, page_images, spelling):
    path = Path(shutil.copytree(vision_path, tmp_path / "v"))
    if spelling != "published":
        SiglipVisionModel.from_pretrained(vision_path).save_pretrained(path)
    if spelling == "vision alone, older":
        weights = {f"vision_model.{name}": tensor for name, tensor in load_file(path / "model.safetensors").items()}
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    other = scorer_of(found, path)
    assert torch.equal(other.vision.tokens(page_images), scorer.vision.tokens(page_images))


def edited(tmp_path, original, edit):
    tensors = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    edit(tensors)
    path = write_edje(tmp_path / "edited", original)
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda t: t.pop("vision_projection.mlp.fc2.bias"), "lacks 1 tensors, among them: vision_projection.mlp.fc2"),
        (
            lambda t: t.pop("language_model.bert.encoder.layer.1.output.dense.weight"),
            "lacks 1 tensors, among them: language_model.bert.encoder.layer.1.output.dense.weight",
        ),
        (lambda t: t.pop("classification_head.1.weight"), "lacks 1 tensors, among them: classification_head.1.weight"),
        (lambda t: t.pop("vision_projection.query"), "neither of vision_projection.query"),
        (lambda t: t.update(surprise=torch.zeros(1)), "has unknown tensors: 1 tensors, among them: surprise"),
        (
            lambda t: t.update({"vision_projection.value.bias": torch.zeros(5)}),
            r"vision_projection.value.bias is of shape \(5,\); expected \(16,\)",
        ),
        (lambda t: t.pop("language_model.bert.embeddings.word_embeddings.weight"), "0 tensors are named ...language"),
    ],
)
def test_tensors_that_are_missing_or_strange_are_named(tmp_path, original, vision_path, hashes, edit, why):
    checkpoint = resolve(str(edited(tmp_path, original, edit)), None, hashes, edje.MODEL_TYPES)
    with pytest.raises(MmrrError, match=why):
        scorer_of(checkpoint, vision_path)


def test_pickles_are_refused(tmp_path, original, hashes):
    torch.save({"model": original.state_dict()}, tmp_path / "checkpoint.pth")
    with pytest.raises(MmrrError, match=r"no \*\.safetensors in .*because they can run code"):
        resolve(str(tmp_path), None, hashes, edje.MODEL_TYPES)


def test_the_documented_way_from_a_pickle(tmp_path, original, vision_path, hashes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = original.state_dict()
    torch.save(
        {"model": state, "optimizer": {}, "config": {"lr": 1e-4}, "epoch": 3, "global_step": 9}, "checkpoint.pth"
    )
    page = (Path(__file__).parents[2] / "docs" / "edje.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    write_edje(tmp_path / "words", original)
    converted = resolve("./edje", None, hashes, edje.MODEL_TYPES)
    scorer_of(converted, vision_path, language=str(tmp_path / "words"))
    assert not [name for name in converted.config()["tensors"] if name.startswith(("clip", "language_model.cls"))]


def test_two_checkpoints_in_one_folder_are_refused(tmp_path, original, hashes):
    path = write_edje(tmp_path / "e", original)
    shutil.copy(path / "model.safetensors", path / "other.safetensors")
    with pytest.raises(MmrrError, match=r"both hold .*leave one checkpoint there"):
        resolve(str(path), None, hashes, edje.MODEL_TYPES).config()


def test_damaged_weights_are_one_line(tmp_path, original, hashes):
    path = write_edje(tmp_path / "e", original)
    (path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(MmrrError, match=r"model\.safetensors is no readable safetensors file"):
        resolve(str(path), None, hashes, edje.MODEL_TYPES).config()


def test_a_vision_encoder_that_does_not_fit_is_refused(tmp_path, found, vision_path):
    path = Path(shutil.copytree(vision_path, tmp_path / "v"))
    config = json.loads((path / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 32
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MmrrError, match="makes tokens of width 32; the checkpoint's adapter reads 16"):
        scorer_of(found, path)
    config["model_type"] = "clip"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MmrrError, match="is a 'clip' model; expected: qwen3_vl, siglip, siglip_vision_model"):
        scorer_of(found, path)
    with pytest.raises(MmrrError, match="google/siglip2-large-patch16-384 is not on this machine"):
        edje.resolve(Prepare(), found.config())
    with pytest.raises(MmrrError, match="tokens 3: this checkpoint makes 4 of a tile"):
        scorer_of(found, vision_path, tokens=3)


def test_a_vision_encoder_that_lacks_tensors_is_refused(tmp_path, found, vision_path, page_images):
    path = Path(shutil.copytree(vision_path, tmp_path / "v"))
    weights = load_file(path / "model.safetensors")
    del weights["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MmrrError, match=r"lacks 1 tensors of a SigLIP vision encoder.*layers\.1\.mlp\.fc1\.weight"):
        scorer_of(found, path).prepare(page_images[:1], [None])


def test_the_tokenizer_may_lie_elsewhere(tmp_path, original, scorer, vision_path, hashes):
    path = write_edje(tmp_path / "e", original, tokenizer=False)
    checkpoint = resolve(str(path), None, hashes, edje.MODEL_TYPES)
    with pytest.raises(MmrrError, match=r"neither tokenizer\.json nor vocab\.txt; .*-o language=microsoft/MiniLM"):
        scorer_of(checkpoint, vision_path)
    words = tmp_path / "words"
    words.mkdir()
    (words / "tokenizer_config.json").write_text("{\n}")  # all that MiniLM's repository says
    (words / "vocab.txt").write_text("".join(f"{piece}\n" for piece in VOCABULARY))
    other = scorer_of(checkpoint, vision_path, language=str(words))
    assert other.prepare_options.language_revision.startswith("sha256:")
    assert other.text_ids(QUERIES[2]) == scorer.text_ids(QUERIES[2])
    (words / "vocab.txt").write_text("".join(f"{piece}\n" for piece in [*VOCABULARY, "more", "than", "rows"]))
    with pytest.raises(MmrrError, match="has changed since it was used here"):
        Scorer(checkpoint, other.prepare_options, CPU, torch.float32)
    with pytest.raises(MmrrError, match="does not fit a table of"):
        scorer_of(checkpoint, vision_path, language=str(words))


def test_the_cache_depends_on_the_vision_encoder(tmp_path, found, vision_path, page_images):
    path = Path(shutil.copytree(vision_path, tmp_path / "v"))
    before = edje.resolve(Prepare(vision=str(path)), found.config())
    assert before.vision == str(path)
    assert edje.resolve(before, found.config()) == before
    write_vision(path, seed=6)
    after = edje.resolve(Prepare(vision=str(path)), found.config())
    assert before.vision_revision != after.vision_revision
    with pytest.raises(MmrrError, match="has changed since it was used here"):
        Scorer(found, before, CPU, torch.float32).prepare(page_images[:1], [None])


def test_a_companion_is_found_by_its_recorded_revision(vision_path, hashes):
    first = Checkpoint.companion(str(vision_path), "", edje.VISION_TYPES)
    assert Checkpoint.companion(first.id, first.revision, edje.VISION_TYPES) == first
    assert recorded(first.identity("float32"), hashes, edje.VISION_TYPES) == first
    with pytest.raises(MmrrError, match="goes with a Hub id only"):
        Checkpoint.companion(str(vision_path), "main", edje.VISION_TYPES)


# Qwen3-VL as the vision encoder


@pytest.fixture(scope="module")
def over_qwen(tmp_path_factory):
    """A checkpoint over the tiny Qwen3-VL's tokens of width 64, compressed or Local; its config.json says more."""

    def write(name, local=False, **config):
        path = tmp_path_factory.mktemp("over") / name
        torch.manual_seed(9)
        original = Original(local=local, positions=64 + 48 if local else 512, width=64)
        write_edje(path, original)
        values = {"num_attention_heads": HEADS, "adapter_attention_heads": 4, **config}
        (path / "config.json").write_text(json.dumps(values))
        return resolve(str(path), None, HashCache(path.parent / "hashes.json"), edje.MODEL_TYPES), original

    return write


def test_pages_are_read_as_rendered_by_a_qwen3_vl(over_qwen, tiny_path, page_images):
    checkpoint, original = over_qwen("compressed")
    scorer = scorer_of(checkpoint, tiny_path)
    stock = Backbone(tiny_path, None, CPU, torch.float32, needs_head=False)
    expected = [visual.tokens for visual in stock.vision(page_images)]
    assert [len(tokens) for tokens in expected] == [35, 32, 36, 6]
    original.vision_projection.attention.num_heads = 4
    original.vision_projection.attention.head_dim = 16
    z = torch.stack([original.vision_projection(tokens[None])[0] for tokens in expected])
    for image, page in zip(page_images, z, strict=True):
        assert (scorer.compress(image) - page).abs().max() <= TOLERANCE * page.abs().max()
    scores = torch.tensor([scorer.score_uncached(QUERIES[0], image, None, Score()) for image in page_images])
    assert (scores - original.score([pieces(QUERIES[0])] * 4, z)).abs().max() <= TOLERANCE
    assert scorer.prepare(page_images[:1], [None])[0]["z"].shape == (4, 12)
    assert scorer_of(checkpoint, tiny_path, tiles=2).compress(page_images[0]).shape == (8, 12)


def test_a_local_page_over_qwen3_vl_has_as_many_tokens_as_it_takes(over_qwen, tiny_path, page_images):
    checkpoint, _ = over_qwen("local", local=True)
    scorer = scorer_of(checkpoint, tiny_path)
    assert scorer.prepare_options.tokens == 48
    pages = [*page_images, page_images[0].resize((320, 256))]  # the last of 80 tokens, more than there are positions
    states = scorer.prepare(pages, [None] * 5)
    assert [len(state["z"]) for state in states] == [35, 32, 36, 6, 42]
    planned = [edje.cache_bytes(scorer.prepare_options, checkpoint.config(), len(state["z"]), 4) for state in states]
    assert planned == [state["z"].nbytes for state in states]
    assert edje.pruning_grid(scorer.prepare_options, checkpoint.config()) == (32, 48)
    together = scorer.score(QUERIES[0], [*states, states[0]], {}, Score())
    alone = torch.cat([scorer.score(QUERIES[0], [state], {}, Score()) for state in [*states, states[0]]])
    assert (together - alone).abs().max() <= TOLERANCE
    assert together.std() > 100 * TOLERANCE
    with pytest.raises(MmrrError, match="tiles 2: expected 1 to 1"):
        scorer_of(checkpoint, tiny_path, tiles=2)


def test_heads_of_the_adapter_are_the_visions_where_config_does_not_say(over_qwen, tiny_path, page_images):
    checkpoint, _ = over_qwen("three", adapter_attention_heads=3)
    with pytest.raises(MmrrError, match="an adapter of width 64 cannot have 3 attention heads"):
        scorer_of(checkpoint, tiny_path).prepare(page_images[:1], [None])
    assert backbone.adapter_heads({}, 2) == backbone.vision_heads(json.loads((tiny_path / "config.json").read_text()))


def test_a_checkpoint_may_read_punctuation(over_qwen, tiny_path):
    with_it, without = (
        scorer_of(over_qwen(f"p{punctuation}", punctuation=punctuation)[0], tiny_path) for punctuation in (True, False)
    )
    assert canonical("It\u2019s 3.5_%", punctuation=True) == "it\u2019s 3.5_%"
    unknown = VOCABULARY.index("[UNK]")
    assert with_it.text_ids("box. page")[1:-1] == [*pieces("box"), unknown, *pieces("page")]
    assert without.text_ids("box. page")[1:-1] == pieces("box page")


# The command line


def coloured(text, colour):
    """The content of a page that a model with random weights distinguishes from pages of other colours."""
    return f"{colour} rg 0 0 612 700 re f 0 g BT /F1 18 Tf 40 740 Td ({text}) Tj ET".encode()


def drawn(document, number, out):
    """The image of a page, as ``mmrr index`` renders it with the options INDEX."""
    (page,) = render_pages(find_sources([document])[0], number, number, out, RenderOptions("pdfium", max_tokens=64))
    return Image.open(out / page.file)


def test_from_documents_to_a_ranking(tmp_path, edje_path, vision_path, found, original):
    colours = ["1 0 0", "0 0 1", "0 0 0", "0 1 0", "1 1 0"]
    contents = [coloured(text, colour) for text, colour in zip([*THESIS, *SOIL], colours, strict=True)]
    docs = write_documents(tmp_path / "docs", thesis=contents[:2], soil=contents[2:])
    work = ("--work", tmp_path / "w")
    mmrr("index", docs, *work, *INDEX)
    model = ("--scorer", "edje", "--scorer-model", edje_path, "-o", f"vision={vision_path}", *FP32)
    result = mmrr("precache", *work, *model)
    cached = artifact(result)
    made = manifest(cached)
    assert made["config"]["options"]["vision_revision"].startswith("sha256:")
    pages = made["content"]["pages"]
    records = [tmp_path / "w" / "shards" / "precache" / key for key in made["content"]["shards"].values()]
    tensors = [tensor for folder in records for tensor in load_file(folder / "states.safetensors").values()]
    planned = edje.cache_bytes(Prepare(**made["config"]["options"]), found.config(), 0, 4)
    assert (len(tensors), {tensor.nbytes for tensor in tensors}) == (pages, {planned})
    queries = write_queries(tmp_path / "queries.jsonl", ("q1", "thesis due rainfall"))
    ranked = run_lines(artifact(mmrr("rerank", "--queries", queries, *work)) / "run.trec")["q1"]
    assert [page_id for page_id, _ in ranked] == [page_id for page_id, _ in sorted(ranked, key=lambda hit: -hit[1])]
    images = [drawn(docs / name, int(number), tmp_path) for name, number in (hit[0].split("/") for hit in ranked)]
    z = original.vision_projection(stock_tokens(vision_path, images))
    expected = original.score([pieces("thesis due rainfall")] * len(ranked), z)
    assert len(ranked) == 3
    assert expected.std() > 1000 * TOLERANCE
    assert (torch.tensor([score for _, score in ranked]) - expected).abs().max() <= 0.02 * expected.std()  # float16
    told = json.loads(mmrr("verify", *work, "--rescore", "2", "--json").stdout)
    assert (told["problems"], told["rescored"]["pairs"]) == ([], 2)
    assert 0 < told["rescored"]["largest_difference"] < 0.01
    tiled = artifact(mmrr("precache", *work, *model, "-o", "tiles=2"))
    assert tiled != cached
    shutil.move(vision_path, tmp_path / "aside")
    try:  # scoring needs no vision encoder
        mmrr("rerank", "cover of a thesis", *work)
    finally:
        shutil.move(tmp_path / "aside", vision_path)
    assert "edje caches whole pages: leave out --keep" in refused("precache", *work, *model, "--keep", "0.5")
    assert "has no dense forward" in refused("rerank", "a thesis", *work, "--dense")


def test_models_lists_it():
    rows = json.loads(mmrr("models", "--json").stdout)["families"]
    (row,) = [row for row in rows if row["family"] == "edje"]
    assert row["checkpoints"] == ["small-edje", "shahafw/edje-vl-image-retrieval-reranker"]
