"""Scores and vectors on a CUDA device equal those on the CPU. Run with: pytest -m gpu"""

from __future__ import annotations

import pytest
import torch

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


def test_portions_are_moved_completely():
    state = {"k": torch.arange(4096.0), "next_pos": torch.tensor(7)}
    stays = {name: tensor.to("cuda") for name, tensor in state.items()}
    (portion,) = cache_streams.moved(cache_streams.portions([(0, state), (1, stays)], 1 << 20), torch.device("cuda"))
    for moved in portion.values():
        for name, tensor in moved.items():
            assert tensor.device.type == "cuda"
            assert torch.equal(tensor.cpu(), state[name])
