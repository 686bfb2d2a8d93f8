"""Scores and vectors on a CUDA device equal those on the CPU. Run with: pytest -m gpu"""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmrr.embedders import colqwen3, qwen3_vl
from mmrr.modeling import cache_streams
from mmrr.scorers.minireranker import Prepare, Score, Scorer
from tests.conftest import CPU

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_cached_scores_equal_the_cpus(tiny, page_images):
    results = []
    for device in (CPU, torch.device("cuda")):
        scorer = Scorer(tiny, Prepare(band="1:4"), device, torch.float32)
        states = scorer.prepare(page_images, [None] * len(page_images))
        results.append(scorer.score("When is the thesis due?", states, scorer.shared_state(), Score()))
    assert (results[0] - results[1]).abs().max() <= 1e-3
    assert results[0].std() > 1e-2


@pytest.mark.parametrize("family", [qwen3_vl, colqwen3])
def test_embeddings_equal_the_cpus(tiny_embedder, tiny_late, page_images, family):
    results = []
    for device in (CPU, torch.device("cuda")):
        model = tiny_embedder if family is qwen3_vl else tiny_late
        embedder = family.load(model, family.Prepare(), device, torch.float32)
        results.append(embedder.embed_pages(page_images))
    for here, there in zip(*results, strict=True):
        assert (here.vectors.float() - there.vectors.float()).abs().max() <= 1e-3  # stored as float16
        assert (here.saliency - there.saliency).abs().max() <= 1e-4


def test_flash_kernels_score_and_read_pages_together(tiny, page_images):
    """No other kernel of attention is allowed; pages have different lengths. bfloat16 as in the CPU's test: 10 %."""
    cpu = Scorer(tiny, Prepare(band="1:4"), CPU, torch.float32)
    states, shared = cpu.prepare(page_images, [None] * 4), cpu.shared_state()
    exact = cpu.score("When is the thesis due?", states, shared, Score())
    there = Scorer(tiny, Prepare(band="1:4"), torch.device("cuda"), torch.bfloat16)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        read = there.prepare(page_images, [None] * 4)
        rough = there.score("When is the thesis due?", read, there.shared_state(), Score())
    assert (rough - exact).abs().max() <= 0.1 * exact.abs().max()


def test_dense_batches_equal_the_cpus(tiny, page_images):
    here, there = (Scorer(tiny, Prepare(band="1:4"), device, torch.float32) for device in (CPU, torch.device("cuda")))
    for order in ("vision-first", "query-first"):
        found = [scorer.dense("When is the thesis due?", page_images, order) for scorer in (here, there)]
        assert (found[0] - found[1]).abs().max() <= 1e-3


def test_portions_are_moved_completely():
    state = {"k": torch.arange(4096.0), "next_pos": torch.tensor(7)}
    stays = {name: tensor.to("cuda") for name, tensor in state.items()}
    (portion,) = cache_streams.moved(cache_streams.portions([(0, state), (1, stays)], 1 << 20), torch.device("cuda"))
    for moved in portion.values():
        for name, tensor in moved.items():
            assert tensor.device.type == "cuda"
            assert torch.equal(tensor.cpu(), state[name])
