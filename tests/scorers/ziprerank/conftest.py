"""A tiny checkpoint of ZipRerank, its scorer, the stock model and a few images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration

from mmrr.modeling.checkpoints import Checkpoint, resolve
from mmrr.scorers.ziprerank import Prepare, Scorer
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.scorers.ziprerank.reference import MAX_SIDE
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def zip_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with separate LM head and embeddings, like the 8B model."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "zip", layers=4, seed=3, tie=False)


@pytest.fixture(scope="module")
def checkpoint(zip_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return resolve(str(zip_path), None, HashCache(tmp_path_factory.mktemp("hashes") / "hashes.json"))


@pytest.fixture(scope="module")
def scorer(checkpoint):
    return Scorer(checkpoint, Prepare(MAX_SIDE), CPU, torch.float32)


@pytest.fixture(scope="module")
def stock(zip_path):
    model = Qwen3VLForConditionalGeneration.from_pretrained(zip_path, attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(zip_path), AutoImageProcessor.from_pretrained(zip_path, backend="pil")


@pytest.fixture(scope="module")
def images(page_images):
    """Portrait, landscape, square, small, and one above the limit of the longer side."""
    large = page_images[0].rotate(90, expand=True).resize((390, 301))
    return [*page_images, large]


@pytest.fixture(scope="module")
def states(scorer, images):
    return scorer.prepare(images, [None] * len(images))
