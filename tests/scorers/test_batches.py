"""Pages in one forward have the numbers of pages read one by one: tower, language model, band, dense forward.

A device reads pages together and a CPU one by one; here the CPU does both. Tolerances are those of the other tests.
"""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.kernels import launched
from mmrr.backbones import _qwen3_vl_batches
from mmrr.backbones._qwen3_vl_batches import together, token_bytes
from mmrr.backbones._qwen3_vl_pages import padded
from mmrr.embedders import colqwen3, qwen3_vl
from mmrr.scorers.minireranker import Prepare, Score, Scorer
from tests.conftest import CPU
from tests.scorers.test_minireranker import QUERIES, TOLERANCE, keep_of

MUCH = 1 << 20


@pytest.fixture
def scorer(tiny):
    return Scorer(tiny, Prepare(band="1:4"), CPU, torch.float32)


@pytest.fixture
def images(page_images):
    """Six pages of four lengths; two lengths occur twice."""
    return [*page_images, page_images[0].rotate(180), page_images[2].rotate(180)]


def test_batches_have_similar_lengths_and_fit():
    assert together([], 100) == []
    assert together([30, 10, 30, 29, 8], 100) == [[4], [1], [3, 0, 2]]
    assert together([30, 10, 30, 29, 8], 60) == [[4], [1], [3, 0], [2]]
    assert together([8, 8], 0) == [[0], [1]]
    assert together([7] * 3, 14) == [[0, 1], [2]]


@pytest.mark.parametrize("order", ["vision-first", "query-first"])
def test_dense_batches_score_like_single_pages(scorer, images, monkeypatch, order):
    alone = scorer.dense(QUERIES[0], images, order)
    rows = []
    batch = scorer.backbone.dense_batch
    monkeypatch.setattr(
        scorer.backbone, "dense_batch", lambda ids, some, most: rows.append(len(some)) or batch(ids, some, most)
    )
    scorer.backbone.most_tokens = MUCH
    monkeypatch.setattr(_qwen3_vl_batches, "_WASTE", 1)  # whatever their lengths
    assert (scorer.dense(QUERIES[0], images, order) - alone).abs().max() <= TOLERANCE
    assert rows == [6]
    assert alone.std() > 100 * TOLERANCE


def test_pages_of_all_lengths_are_cached_as_one_by_one(scorer, images, monkeypatch):
    keeps = [keep_of(scorer, image, 0.6, i) for i, image in enumerate(images)]
    alone = scorer.prepare(images, keeps)
    scorer.backbone.most_tokens = MUCH
    monkeypatch.setattr(_qwen3_vl_batches, "_WASTE", 1)
    calls = []
    monkeypatch.setattr(
        "mmrr.backbones._qwen3_vl_pages.padded", lambda pages: calls.append(len(pages)) or padded(pages)
    )
    for one, other in zip(alone, scorer.prepare(images, keeps), strict=True):
        assert one["next_pos"] == other["next_pos"]
        for name in ("k", "v"):
            assert one[name].shape == other[name].shape
            assert (one[name] - other[name]).abs().max() <= 1e-5 * one[name].abs().max()
    assert calls == [6]


@pytest.mark.parametrize("family", [qwen3_vl, colqwen3])
def test_pages_are_embedded_together_as_one_by_one(tiny_embedder, tiny_late, images, monkeypatch, family):
    embedder = family.load(tiny_embedder if family is qwen3_vl else tiny_late, family.Prepare(), CPU, torch.float32)
    alone = embedder.embed_pages(images)
    embedder.backbone.most_tokens = MUCH
    for waste in (8, 1):  # batches of equal lengths, and one batch of all
        monkeypatch.setattr(_qwen3_vl_batches, "_WASTE", waste)
        for one, other in zip(alone, embedder.embed_pages(images), strict=True):
            assert one.grid == other.grid
            # Late interaction stores float16, which has 2^-11.
            assert (one.vectors.float() - other.vectors.float()).abs().max() <= (1e-5 if family is qwen3_vl else 1e-3)
            assert (one.saliency - other.saliency).abs().max() <= 1e-5 * one.saliency.abs().max()


@pytest.mark.parametrize("codec", ["none", "bf16", "int8", "int4"])
def test_joined_pages_score_like_pages_apart(scorer, images, codec):
    """Pages of different lengths and of one length; exits in, at and after the end of the band."""
    scorer = scorer.sharing(Prepare(band="1:4", codec=codec))
    states, shared = scorer.prepare(images, [None] * 6), scorer.shared_state()
    for some in (states, [states[0], states[4]], states[:1]):
        for leave in (2, 4, 6):
            found = []
            for joins in (False, True):
                scorer.backbone.joins_pages = joins
                found.append(scorer.score(QUERIES[2], some, shared, Score(leave)))
            assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max()
            assert len(some) < 6 or found[0].std() > 1e-3


def test_a_query_of_one_token_needs_no_mask(scorer, images):
    states, instruction = scorer.prepare(images, [None] * 6), scorer.keyvalues(*scorer.shared_state().values())
    next_pos = torch.stack([state["next_pos"] for state in states])
    x = scorer.backbone.suffix_alone(scorer.backbone.embed([40]), 0, 1)
    found = []
    for joins in (False, True):
        scorer.backbone.joins_pages = joins
        pages = scorer._pages(states)
        found.append(scorer.backbone.suffix_band(x, instruction, pages, next_pos, (1, 4), last_only=False))
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[0].abs().max()


@pytest.mark.parametrize("codec", ["none", "int4"])
def test_kernels_of_a_query_do_not_grow_with_its_pages(scorer, images, codec):
    """Joined, 24 pages launch as many as 6. Apart, each page has two copies more in each of three layers."""
    scorer = scorer.sharing(Prepare(band="1:4", codec=codec))
    states, shared = scorer.prepare(images, [None] * 6), scorer.shared_state()
    query = scorer.encode_query(QUERIES[0])

    def kernels(pages, *, joins: bool) -> int:
        scorer.backbone.joins_pages = joins
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            scorer.score(query, pages, shared, Score())
        return launched(profiled)

    few, many = (kernels(states * times, joins=True) for times in (1, 4))
    assert few == many
    assert kernels(states * 4, joins=False) - kernels(states, joins=False) >= 18 * 2 * 3


def test_the_estimate_of_memory_covers_a_forward(scorer):
    """2B in bfloat16: about 0.2 MB a token, so that 4 GiB hold a shard of 16 pages of 1,280 tokens."""
    from mmrr.random_checkpoint import SHAPES, byte_tokenizer, config

    sizes = {name: token_bytes(config(SHAPES[name], byte_tokenizer()), 2) for name in ("qwen3-vl-2b", "qwen3-vl-8b")}
    assert sizes["qwen3-vl-2b"] < 4 * 2**30 / (16 * 1280) < 2 * sizes["qwen3-vl-2b"] + sizes["qwen3-vl-8b"]
    assert sizes["qwen3-vl-2b"] < sizes["qwen3-vl-8b"]
