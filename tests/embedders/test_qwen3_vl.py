"""Qwen3-VL-Embedding against the stock model: vectors by the published recipe, saliency by eager attention."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from mmrr.contracts import VisualQuery
from mmrr.embedders.qwen3_vl import Embedder, Prepare, Search
from mmrr.errors import MmrrError
from tests.conftest import CPU
from tests.stock import stock_states


@pytest.fixture
def embedder(tiny_embedder):
    return Embedder(tiny_embedder, Prepare(), CPU, torch.float32)


def stock_read(path, instruction, *content, image=None):
    """The last token's hidden state, and its attention to the visual tokens."""
    template = json.loads((path / "chat_template.json").read_text())["chat_template"]
    chat = [
        {"role": "system", "content": [{"type": "text", "text": instruction}]},
        {"role": "user", "content": list(content)},
    ]
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
    states, attention, _ = stock_states(path, text, image)
    return states[-1], attention


def test_page_vectors_and_saliency_equal_the_stock_model(embedder, tiny_embedder_path, page_images):
    for image, embedding in zip(page_images, embedder.embed_pages(page_images), strict=True):
        hidden, attention = stock_read(
            tiny_embedder_path, "Represent the user's input.", {"type": "image"}, image=image
        )
        assert (embedding.vectors[0] - hidden / hidden.norm()).abs().max() <= 1e-5
        assert embedding.grid == (image.height // 32, image.width // 32)
        assert embedding.saliency.shape == attention.shape
        assert (embedding.saliency - attention).abs().max() <= 1e-5
        assert attention.std() > 1e-4  # not uniform: pruning has an order


def test_query_vectors_equal_the_stock_model(embedder, tiny_embedder_path):
    vectors = embedder.embed_queries(["When is it due?", "x"], Search(instruction="Find pages"))
    for vector, text in zip(vectors, ["When is it due?", "x"], strict=True):
        hidden, _ = stock_read(tiny_embedder_path, "Find pages.", {"type": "text", "text": text})
        assert (vector[0] - hidden / hidden.norm()).abs().max() <= 1e-5


def test_pages_in_a_batch_equal_pages_alone(embedder, page_images):
    together = embedder.embed_pages(page_images)
    for image, embedding in zip(page_images, together, strict=True):
        (alone,) = embedder.embed_pages([image])
        assert torch.equal(alone.vectors, embedding.vectors)
        assert torch.equal(alone.saliency, embedding.saliency)


def test_matryoshka_is_truncation_then_unit_norm(tiny_embedder, page_images):
    (whole,) = Embedder(tiny_embedder, Prepare(), CPU, torch.float32).embed_pages(page_images[:1])
    (short,) = Embedder(tiny_embedder, Prepare(dim=16), CPU, torch.float32).embed_pages(page_images[:1])
    assert torch.allclose(short.vectors[0], whole.vectors[0, :16] / whole.vectors[0, :16].norm(), atol=1e-6)
    with pytest.raises(MmrrError, match="dim 65"):
        Embedder(tiny_embedder, Prepare(dim=65), CPU, torch.float32)


def test_a_smaller_token_budget_gives_a_smaller_grid(tiny_embedder, page_images):
    embedder = Embedder(tiny_embedder, Prepare(max_tokens=12), CPU, torch.float32)
    (embedding,) = embedder.embed_pages(page_images[:1])
    assert embedding.grid == embedder.grid(*page_images[0].size)
    assert embedding.saliency.numel() == embedding.grid[0] * embedding.grid[1] <= 12


def test_a_query_beyond_the_limit_is_refused(embedder):
    with pytest.raises(MmrrError, match="8192"):
        embedder.embed_queries(["x " * 9000], Search())


@pytest.mark.parametrize("text", ["", "the same table"])
def test_a_query_with_an_image_is_one_message(embedder, tiny_embedder_path, page_images, text):
    """The published order: the image, then the text, with the instruction of a query."""
    vector = embedder.embed_visual_query(VisualQuery(text, page_images[1]), Search(instruction="Find pages"))
    content = [{"type": "image"}] + [{"type": "text", "text": text}] * bool(text)
    hidden, _ = stock_read(tiny_embedder_path, "Find pages.", *content, image=page_images[1])
    assert (vector[0] - hidden / hidden.norm()).abs().max() <= 1e-5
