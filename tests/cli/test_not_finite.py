"""Weights with NaN: each command ends in one line that names the page or the query, and stores nothing of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Prepared
from tests.console import FP32, INDEX, mmrr, refused


def damaged(model: Path, folder: Path, tensor: str) -> Path:
    """A copy of a checkpoint with one NaN in one tensor."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    (name,) = [name for name in tensors if name.endswith(tensor)]
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_page_caches_that_are_not_finite_are_not_stored(copy: Prepared, tmp_path: Path) -> None:
    model = damaged(copy.model, tmp_path / "nan", "visual.blocks.0.attn.qkv.weight")
    before = sorted((copy.work / "shards" / "precache").iterdir())
    message = refused("precache", "--work", copy.work, "--scorer-model", model, *FP32)
    assert "soil.pdf/0001: " in message or "thesis.pdf/0001: " in message
    assert f"{model} gave states (k) that are not finite" in message
    # The shared states of the instruction do not depend on the tower.
    assert len(set((copy.work / "shards" / "precache").iterdir()) - set(before)) <= 1


def test_page_vectors_that_are_not_finite_are_not_stored(copy: Prepared, tmp_path: Path) -> None:
    model = damaged(copy.model, tmp_path / "nan", "visual.blocks.0.attn.qkv.weight")
    message = refused("index", copy.docs, "--work", copy.work, "--embedder", model, *INDEX, *FP32)
    assert "/0001: " in message
    assert f"{model} gave vectors that are not finite; try --dtype float32, or check the weights" in message
    assert not list((copy.work / "shards" / "embed").glob("*"))


@pytest.mark.slow
def test_scores_that_are_not_finite_rank_nothing(copy: Prepared, tmp_path: Path) -> None:
    """The last layer before the head runs with the query only, so that precache cannot see it."""
    model = damaged(copy.model, tmp_path / "nan", "language_model.layers.3.mlp.down_proj.weight")
    mmrr("precache", "--work", copy.work, "--scorer-model", model, "--band", "1:3", *FP32)
    message = refused(
        "rerank", "When is the thesis due?", "--work", copy.work, "--exit-layer", "4", "--first-stage", "bm25"
    )
    assert f"{model} gave a score that is not finite for page " in message
    assert not list((copy.work / "rerank").glob("*"))
