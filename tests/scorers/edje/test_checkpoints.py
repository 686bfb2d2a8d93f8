"""EDJE's checkpoints: sizes from the tensors, accepted names, and errors in one line."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SiglipVisionModel

from mmrr.backbones import _edje_layout
from mmrr.backbones import edje as backbone
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import Checkpoint, recorded, resolve
from mmrr.scorers import edje
from mmrr.scorers.edje import Prepare, Score, Scorer
from tests.conftest import CPU
from tests.scorers.edje.reference import QUERIES, VOCABULARY, D, Original, scorer_of, write_edje, write_vision


def test_sizes_and_variant_are_read_from_the_header(found):
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
    assert sum(map(math.prod, _edje_layout._adapter_shapes(made, 8192).values())) == n_adapter
    joint = _edje_layout._joint_shapes(made, 1536)
    assert sum(math.prod(joint[name]) for name in joint if name.startswith("language_model.")) == 33_212_544


@pytest.mark.parametrize("prefix", ["model.", "module.model."])
def test_prefixes_of_tensor_names_and_a_missing_config_are_accepted(
    tmp_path, original, scorer, vision_path, hashes, page_images, prefix
):
    """Seven parameters: six fixtures and the prefix."""
    half = {name: tensor.half() for name, tensor in original.state_dict().items()}
    original_half = Original()
    original_half.load_state_dict(half)
    path = write_edje(tmp_path / "e", original_half, prefix=prefix)
    same = scorer_of(resolve(str(path), None, hashes, edje.SPEC.model_types), vision_path)
    one, other = (s.score_uncached(QUERIES[0], page_images[0], None, Score()) for s in (scorer, same))
    assert one == pytest.approx(other, abs=0.05)
    (path / "config.json").unlink()
    bare = resolve(str(path), None, hashes, edje.SPEC.model_types)
    assert set(bare.config()) == {"tensors"}
    assert scorer_of(bare, vision_path).encoder.heads == 12  # the heads of MiniLM, the default without config.json


def test_a_checkpoint_of_another_family_still_needs_its_config(tmp_path, original, hashes):
    path = write_edje(tmp_path / "e", original, config=False)
    with pytest.raises(MmrrError, match=r"no config\.json"):
        resolve(str(path), None, hashes)


@pytest.mark.parametrize("layout", ["published", "vision alone", "vision alone, older"])
def test_siglip_is_read_in_every_published_layout(tmp_path, found, scorer, vision_path, page_images, layout):
    path = Path(shutil.copytree(vision_path, tmp_path / "v"))
    if layout != "published":
        SiglipVisionModel.from_pretrained(vision_path).save_pretrained(path)
    if layout == "vision alone, older":
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
    checkpoint = resolve(str(edited(tmp_path, original, edit)), None, hashes, edje.SPEC.model_types)
    with pytest.raises(MmrrError, match=why):
        scorer_of(checkpoint, vision_path)


def test_pickles_are_refused(tmp_path, original, hashes):
    torch.save({"model": original.state_dict()}, tmp_path / "checkpoint.pth")
    with pytest.raises(MmrrError, match=r"no \*\.safetensors in .*because they can run code"):
        resolve(str(tmp_path), None, hashes, edje.SPEC.model_types)


def test_the_documented_way_from_a_pickle(tmp_path, original, vision_path, hashes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = original.state_dict()
    torch.save(
        {"model": state, "optimizer": {}, "config": {"lr": 1e-4}, "epoch": 3, "global_step": 9}, "checkpoint.pth"
    )
    page = (Path(__file__).parents[3] / "docs" / "edje.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    write_edje(tmp_path / "words", original)
    converted = resolve("./edje", None, hashes, edje.SPEC.model_types)
    scorer_of(converted, vision_path, language=str(tmp_path / "words"))
    assert not [name for name in converted.config()["tensors"] if name.startswith(("clip", "language_model.cls"))]


def test_two_checkpoints_in_one_folder_are_refused(tmp_path, original, hashes):
    path = write_edje(tmp_path / "e", original)
    shutil.copy(path / "model.safetensors", path / "other.safetensors")
    with pytest.raises(MmrrError, match=r"both contain .*; keep the files of one checkpoint only"):
        resolve(str(path), None, hashes, edje.SPEC.model_types).config()


def test_damaged_weights_are_one_line(tmp_path, original, hashes):
    path = write_edje(tmp_path / "e", original)
    (path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(MmrrError, match=r"model\.safetensors is not a readable safetensors file"):
        resolve(str(path), None, hashes, edje.SPEC.model_types).config()


def test_a_vision_encoder_that_does_not_fit_is_refused(tmp_path, found, vision_path):
    path = Path(shutil.copytree(vision_path, tmp_path / "v"))
    config = json.loads((path / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 32
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MmrrError, match=r"found a vision encoder of width 32, .*; expected width 16"):
        scorer_of(found, path)
    config["model_type"] = "clip"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MmrrError, match="is a 'clip' model; expected: qwen3_vl, siglip, siglip_vision_model"):
        scorer_of(found, path)
    with pytest.raises(MmrrError, match="google/siglip2-large-patch16-384 is not on this machine"):
        edje.resolve(Prepare(), found.config())
    with pytest.raises(MmrrError, match="tokens 3: expected 4, the tokens of a tile of this checkpoint, or 0"):
        scorer_of(found, vision_path, tokens=3)


def test_a_vision_encoder_that_lacks_tensors_is_refused(tmp_path, found, vision_path, page_images):
    path = Path(shutil.copytree(vision_path, tmp_path / "v"))
    weights = load_file(path / "model.safetensors")
    del weights["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MmrrError, match=r"lacks 1 tensors of a SigLIP vision encoder.*layers\.1\.mlp\.fc1\.weight"):
        scorer_of(found, path).prepare(page_images[:1], [None])


def test_the_tokenizer_may_be_in_another_folder(tmp_path, original, scorer, vision_path, hashes):
    path = write_edje(tmp_path / "e", original, tokenizer=False)
    checkpoint = resolve(str(path), None, hashes, edje.SPEC.model_types)
    with pytest.raises(MmrrError, match=r"neither tokenizer\.json nor vocab\.txt; .*-o language=microsoft/MiniLM"):
        scorer_of(checkpoint, vision_path)
    words = tmp_path / "words"
    words.mkdir()
    (words / "tokenizer_config.json").write_text("{\n}")  # the complete file of MiniLM's repository
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
    with pytest.raises(MmrrError, match="which needs a Hub id"):
        Checkpoint.companion(str(vision_path), "main", edje.VISION_TYPES)
