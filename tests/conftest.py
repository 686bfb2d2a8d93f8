"""Fixtures shared by the tests: one tiny checkpoint in the genuine format, a few page images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests never reach for a network: a checkpoint that is not on this disk is an error.
os.environ["HF_HUB_OFFLINE"] = "1"
# The user's defaults must not change what tests do.
os.environ["MMRR_CONFIG"] = os.devnull
# Typer colours its messages on CI machines, which would hide words from tests.
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"
# Here and in processes that tests start: threads that wait for one another cost tiny models tenfold on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from PIL import Image, ImageDraw

from mmrr.modeling.checkpoints import Checkpoint, resolve
from mmrr.workspace.files import HashCache
from tests.tiny import late, write_checkpoint


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "reranker", layers=6)


@pytest.fixture(scope="session")
def tiny_embedder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model than the reranker, whose template appends an end-of-text token as the published embedder's may."""
    return write_checkpoint(
        tmp_path_factory.mktemp("tiny") / "embedder", layers=4, seed=1, end_of_text_after_prompt=True
    )


@pytest.fixture
def tiny(tiny_path: Path, tmp_path: Path) -> Checkpoint:
    return resolve(str(tiny_path), None, HashCache(tmp_path / "hashes.json"))


@pytest.fixture
def tiny_embedder(tiny_embedder_path: Path, tmp_path: Path) -> Checkpoint:
    return resolve(str(tiny_embedder_path), None, HashCache(tmp_path / "hashes.json"))


@pytest.fixture
def tiny_late(tiny_embedder_path: Path, tmp_path: Path) -> Checkpoint:
    """The same embedder with late interaction."""
    return resolve(str(late(tiny_embedder_path, tmp_path / "late")), None, HashCache(tmp_path / "hashes.json"))


@pytest.fixture(scope="session")
def page_images() -> list[Image.Image]:
    """Four pages on different grids: portrait, landscape, square, small."""
    images = []
    for i, (width, height) in enumerate([(160, 224), (256, 128), (192, 192), (64, 96)]):
        image = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(image)
        for line in range(4, height - 10, 14):
            draw.text((4 + 3 * i, line), f"page {i} line {line} lorem ipsum", fill=(10 * i, 40 * i, 90))
        draw.rectangle((width // 3, height // 3, width // 2, height // 2), fill=(200, 30 * i, 60))
        images.append(image)
    return images


CPU = torch.device("cpu")
