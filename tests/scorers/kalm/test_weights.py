"""KaLM-Reranker's weights: accepted names, and errors in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Gemma2ForConditionalGeneration

from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.scorers.kalm import Prepare, Scorer
from tests.conftest import CPU
from tests.scorers.kalm.reference import (
    EMBEDDINGS,
    QUERIES,
    TEXTS,
    WEIGHTS,
    load,
    loop_pool,
    near,
    scores_of,
    stock_encoder,
    stock_margin,
)


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


def edit_weights(folder, edit):
    save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def refusal(folder, prepare=None, dtype=torch.float32):
    with pytest.raises(MmrrError) as caught:
        load(folder, prepare, dtype)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_weights_are_tied_and_stored_once(original, scorer):
    names = set(load_file(original / WEIGHTS))
    assert EMBEDDINGS in names
    assert not {"lm_head.out_proj.weight", "model.decoder.embed_tokens.weight"} & names
    assert scorer.backbone.head_is_tied


@pytest.mark.parametrize("part", ["decoder.layers.1.mlp.up_proj.weight", "encoder.norm.weight"])
def test_missing_tensors_are_named(folder, part):
    edit_weights(folder, lambda tensors: {name: value for name, value in tensors.items() if name != f"model.{part}"})
    named = part.replace("encoder.", "encoder.text_model.") if part.startswith("encoder") else part
    assert f"lacks 1 tensors of a T5Gemma 2, among them: model.{named}" in refusal(folder)


def test_tensors_of_another_shape_are_named(folder):
    part = "model.decoder.norm.weight"
    edit_weights(folder, lambda tensors: tensors | {part: torch.ones(7)})
    assert f"1 tensors of another shape than its config.json says, among them: {part}" in refusal(folder)


def test_unknown_tensors_are_named(folder):
    edit_weights(folder, lambda tensors: tensors | {"model.decoder.layers.1.cross_attn.q_proj.weight": torch.ones(2)})
    assert "1 tensors that no T5Gemma 2 has, among them: model.decoder.layers.1.cross_attn.q_proj" in refusal(folder)


def test_a_checkpoint_without_a_vision_tower_reads_text_and_no_images(folder, scorer):
    vision = ("model.encoder.vision_tower", "model.encoder.multi_modal")
    edit_weights(folder, lambda tensors: {n: v for n, v in tensors.items() if not n.startswith(vision)})
    near(scores_of(load(folder), TEXTS, QUERIES[0]), scores_of(scorer, TEXTS, QUERIES[0]))
    assert "tensors of a T5Gemma 2, among them: model.encoder.multi_modal" in refusal(folder, Prepare(image=True))


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("scheme", ["nested", "flat"])
def test_names_of_older_and_newer_saves_are_read(folder, original, page_images, scheme, image):
    """The tensors of text encoder and vision tower are in ``encoder`` or one level deeper."""

    def rename(name):
        if "vision_tower." in name:
            return name.replace("vision_tower.", "vision_tower.vision_model.") if scheme == "flat" else name
        text = name.startswith(("model.encoder.layers.", "model.encoder.embed_tokens.", "model.encoder.norm."))
        return name.replace("encoder.", "encoder.text_model.", 1) if text and scheme == "nested" else name

    before = set(load_file(folder / WEIGHTS))
    edit_weights(folder, lambda tensors: {rename(name): value for name, value in tensors.items()})
    assert len(before - set(load_file(folder / WEIGHTS))) > 10
    contents = page_images if image else TEXTS
    same = [scores_of(load(path, Prepare(image=image)), contents, QUERIES[0]) for path in (folder, original)]
    near(*same)


def test_a_stored_lm_head_is_used(folder, scorer):
    """A stored LM head is used, although config.json says that it is tied to the embeddings."""
    name = "lm_head.out_proj.weight"
    edit_weights(folder, lambda tensors: tensors | {name: tensors[EMBEDDINGS].clone()})
    assert load(folder).backbone.head_is_tied
    edit_weights(folder, lambda tensors: tensors | {name: tensors[EMBEDDINGS].flip(1)})
    own = load(folder)
    assert not own.backbone.head_is_tied
    model = T5Gemma2ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
    stock = model, AutoTokenizer.from_pretrained(folder)
    expected = [stock_margin(stock, loop_pool(stock_encoder(stock, text), 4), QUERIES[0]) for text in TEXTS]
    near(scores_of(own, TEXTS, QUERIES[0]), expected)
    assert (scores_of(own, TEXTS, QUERIES[0]) - scores_of(scorer, TEXTS, QUERIES[0])).abs().max() > 0.01


def test_what_does_not_fit_is_refused_in_one_line(folder):
    assert "float16" in refusal(folder, dtype=torch.float16)
    adapted = Checkpoint("tuned", "0" * 40, folder, "t5gemma2", adapter=folder)
    with pytest.raises(MmrrError, match="tuned is a LoRA adapter; merge it"):
        Scorer(adapted, Prepare(), CPU, torch.float32)
    config = json.loads((folder / "config.json").read_text())
    capped = config | {"decoder": config["decoder"] | {"final_logit_softcapping": 30.0}}
    (folder / "config.json").write_text(json.dumps(capped))
    assert "caps its logits" in refusal(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "<end_of_turn>"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "no control token <end_of_turn>" in refusal(folder)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer or image processor does not load" in refusal(folder)


@pytest.mark.slow
@pytest.mark.skipif("MMRR_TEST_KALM" not in os.environ, reason="MMRR_TEST_KALM names no folder of published weights")
def test_published_weights_give_the_cards_margins():
    """The example of V1-Large's model card, computed in bfloat16, in which its logits have steps of 0.06 to 0.125."""
    scorer = load(Path(os.environ["MMRR_TEST_KALM"]))
    pages = ["The capital of China is Beijing.", "Gravity attracts bodies toward one another."]
    scores = scores_of(scorer, pages, "What is the capital of China?")
    assert scores.tolist() == pytest.approx([8.78125, -14.1875], abs=0.5)
