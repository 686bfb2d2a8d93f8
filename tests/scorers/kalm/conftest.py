"""A tiny checkpoint of KaLM-Reranker, its scorers and the stock model."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer, T5Gemma2ForConditionalGeneration

from mmrr.scorers.kalm import Prepare
from tests.scorers.kalm.reference import load, write_checkpoint


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("kalm") / "model")


@pytest.fixture(scope="module")
def stock(original):
    model = T5Gemma2ForConditionalGeneration.from_pretrained(original, attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(original)


@pytest.fixture(scope="module")
def scorer(original):
    return load(original)


@pytest.fixture(scope="module")
def unpooled(original):
    return load(original, Prepare(ratio=1))
