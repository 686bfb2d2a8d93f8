"""LoRA fine-tuning: a training optimizes the computation that ranks, and a resumed run repeats its losses.

Tolerance between the training forward and the scorer: |d z| <= 1e-4 in float32.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mmrr.embedders import qwen3_vl
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import resolve
from mmrr.modeling.plain_forward import one_layer, score_states
from mmrr.modeling.saliency import choose
from mmrr.scorers.minireranker import Prepare, Score, Scorer
from mmrr.training import config, finetune, lora
from mmrr.training.data.pairs import JudgedPages, read_pairs
from mmrr.training.distributed import ProcessGroup
from mmrr.types import KeptTokens
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.tiny import late
from tests.training.shared import QUERIES, losses, reranking, write_config

TOLERANCE = 1e-4


@pytest.mark.parametrize(
    ("band", "leave", "share"),
    [((0, 6), 6, None), ((0, 4), 4, None), ((2, 6), 6, None), ((2, 4), 5, None), ((2, 4), 4, 0.5), ((1, 5), 3, 0.3)],
)
def test_the_plain_forward_equals_the_cached_one(tiny, page_images, band, leave, share):
    scorer = Scorer(tiny, Prepare(band=f"{band[0]}:{band[1]}"), CPU, torch.float32)
    for image in page_images[:2]:
        keep = None
        if share:
            grid = scorer.grid(*image.size)
            n = grid[0] * grid[1]
            kept = torch.randperm(n, generator=torch.Generator().manual_seed(3))[: round(share * n)]
            keep = KeptTokens(kept.sort().values.int(), grid)
        states = scorer.prepare([image], [keep])
        expected = [scorer.score(query, states, scorer.shared_state(), Score(exit_layer=leave)) for query in QUERIES]
        (visual,) = scorer.backbone.vision([image])
        page = scorer.backbone.page_sequence(scorer.before, visual, scorer.after, keep.indices if keep else None)
        with torch.no_grad():
            suffixes = [scorer.segments(query)[1] for query in QUERIES]
            states = score_states(scorer.backbone, page, suffixes, (band[0], min(band[1], leave)), leave)
            found = scorer.logit(scorer.backbone.final_norm(states))
        assert (found - torch.cat(expected)).abs().max() <= TOLERANCE
        assert found.std() > 10 * TOLERANCE


def test_lora_lowers_the_loss_and_its_adapter_ranks_as_it_was_trained(
    pairs_folder, tmp_path, tiny, tiny_path, tiny_embedder, tiny_embedder_path, page_images
):
    """Training, resumed state and the loaded adapter give the same scores. Seven parameters: all are fixtures."""
    settings = reranking(
        pairs_folder, tiny_path, embedder=str(tiny_embedder_path), band="1:4", exit=5, pages=4, steps=3
    )
    before = load_file(tiny_path / "model.safetensors")
    records = list(finetune.train_reranker(settings, tmp_path / "run"))
    assert records[-1]["loss"] < records[0]["loss"]  # one batch holds all pairs and is repeated

    # The trained model, rebuilt from the run's state.
    scorer, exit_layer = finetune.load_scorer(tiny, settings, ProcessGroup(CPU))
    adapted = lora.adapt(scorer.backbone, tiny, settings.rank, settings.alpha, exit_layer, 1)
    embedder = qwen3_vl.Embedder(tiny_embedder, qwen3_vl.Prepare(), CPU, torch.float32)
    model = finetune.Reranker(scorer, adapted, exit_layer, finetune.Saliency(embedder, 0.5), False)
    state = load_file(tmp_path / "run" / "state.safetensors")
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(weights) == trained
    model.load_state_dict(weights, strict=False)
    make = JudgedPages(read_pairs(settings.pairs), 0, 4, 8)
    with torch.no_grad():
        pages = {page.path.stem: (page, model(page)) for page in make(0)}

    # The commands' way to load the adapter.
    loaded = resolve(str(tmp_path / "run" / config.ADAPTER), None, HashCache(tmp_path / "h.json"))
    assert (loaded.path, loaded.adapter) == (tiny_path, tmp_path / "run" / config.ADAPTER)
    plain, tuned = (Scorer(one, Prepare(band="1:4"), CPU, torch.float32) for one in (tiny, loaded))
    for i, image in enumerate(page_images):
        page, z = pages[str(i)]
        keep = choose(embedder.embed_pages([image])[0], plain.grid(*image.size), 0.5)
        for query, trained_score in zip(page.queries, z, strict=True):
            scores = [
                one.score(query, one.prepare([image], [keep]), one.shared_state(), Score(exit_layer=5))
                for one in (plain, tuned)
            ]
            assert abs(scores[1] - trained_score) <= TOLERANCE
            assert abs(scores[0] - scores[1]) > 100 * TOLERANCE

    # The base weights, including the tower, are unchanged. The adapter has layers below the exit only.
    base = scorer.backbone.model.state_dict()
    for name, value in before.items():
        inside = name if name in base else name.removesuffix(".weight") + ".base_layer.weight"
        assert torch.equal(base[inside], value), name
    for name in load_file(tmp_path / "run" / config.ADAPTER / "adapter_model.safetensors"):
        assert ".language_model.layers." in name
        assert ".layers.5." not in name


def test_only_lora_is_trained(tiny, pairs_folder, tiny_path):
    settings = reranking(pairs_folder, tiny_path)
    scorer, exit_layer = finetune.load_scorer(tiny, settings, ProcessGroup(CPU))
    adapted = lora.adapt(scorer.backbone, tiny, 16, 32, exit_layer, 0)
    model = finetune.Reranker(scorer, adapted, exit_layer, None, False)
    page = JudgedPages(read_pairs(settings.pairs), 0, 1, 8)(0)
    model.losses(page)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
    assert exit_layer == 3  # 57.5 % of six layers
    assert sum("lora_" in name for name, _ in model.named_parameters()) == 3 * 7 * 2


def test_the_loss_over_the_vocabulary_is_that_of_the_stock_model(tiny, pairs_folder, tiny_path):
    """F.cross_entropy of the stock model's logits at the answer, with no layer left out: band 0:6, exit 6."""
    settings = reranking(pairs_folder, tiny_path, band="0:6", exit=6, loss="vocabulary")
    scorer, exit_layer = finetune.load_scorer(tiny, settings, ProcessGroup(CPU))
    backbone = scorer.backbone
    (page,) = JudgedPages(read_pairs(settings.pairs), 0, 1, 8)(0)
    model = finetune.Reranker(scorer, backbone.text, exit_layer, None, False, whole=True)
    visual = backbone.vision([page.image], settings.max_tokens)[0]
    expected = []
    with torch.no_grad():
        found = model.losses([page])["loss"]
        for query, relevant in zip(page.queries, page.relevant, strict=True):
            sequence = backbone.page_sequence(scorer.before, visual, [*scorer.after, *scorer.segments(query)[1]])
            logits = backbone.model.lm_head(backbone.text.norm(backbone.read_all(sequence))[-1])
            answer = torch.tensor(backbone.chat.token_id("yes" if relevant else "no"))
            expected.append(F.cross_entropy(logits.float(), answer))
    assert abs(float(found) - float(torch.stack(expected).mean())) <= TOLERANCE
    two = finetune.Reranker(scorer, backbone.text, exit_layer, None, False)
    assert float(found) - float(two.losses([page])["loss"]) > 100 * TOLERANCE  # a random model rarely answers yes or no
    with pytest.raises(MmrrError, match="expected answers or vocabulary"):
        reranking(pairs_folder, tiny_path, loss="all")


def test_recomputing_activations_changes_no_gradient(tiny, pairs_folder, tiny_path):
    found = []
    for recompute in (False, True):
        scorer, exit_layer = finetune.load_scorer(tiny, reranking(pairs_folder, tiny_path), ProcessGroup(CPU))
        adapted = lora.adapt(scorer.backbone, tiny, 4, 8, exit_layer, 0)
        model = finetune.Reranker(scorer, adapted, exit_layer, None, recompute)
        model.losses(JudgedPages(read_pairs(pairs_folder / "pairs.jsonl"), 0, 2, 8)(0))["loss"].backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_embedder_learns_and_its_adapter_embeds_as_it_was_trained(
    pairs_folder, tmp_path, tiny_embedder_path, page_images
):
    values = {"dtype": "float32", "device": "cpu", "workers": 0, "accumulate": 1, "lr": 1e-2, "warmup": 0, "steps": 4}
    path = write_config(
        pairs_folder / "c.toml", model=str(tiny_embedder_path), pairs="pairs.jsonl", queries=4, **values
    )
    settings = config.read(path, "embedder")
    records = list(finetune.train_embedder(settings, tmp_path / "run"))
    assert records[-1]["loss"] < records[0]["loss"]

    base, tuned = (
        resolve(str(name), None, HashCache(tmp_path / "h.json"))
        for name in (tiny_embedder_path, tmp_path / "run" / config.ADAPTER)
    )
    embedder, search = finetune.load_embedder(base, settings, ProcessGroup(CPU))
    adapted = lora.adapt(embedder.backbone, base, settings.rank, settings.alpha, embedder.backbone.n_layers, 1)
    model = finetune.Embedder(embedder, search, adapted, 0.05, False)
    state = load_file(tmp_path / "run" / "state.safetensors")
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    model.load_state_dict(weights, strict=False)
    loaded = qwen3_vl.Embedder(tuned, qwen3_vl.Prepare(), CPU, torch.float32)
    plain = qwen3_vl.Embedder(base, qwen3_vl.Prepare(), CPU, torch.float32)
    with torch.no_grad():
        queries = model.query_vectors(QUERIES)
        pages = torch.stack([model.page_vector(image) for image in page_images])
    expected = torch.cat(loaded.embed_queries(QUERIES, qwen3_vl.Search()))
    assert (queries - expected).abs().max() <= TOLERANCE
    for vectors, embedding, before in zip(
        pages, loaded.embed_pages(page_images), plain.embed_pages(page_images), strict=True
    ):
        assert (vectors - embedding.vectors).abs().max() <= TOLERANCE
        assert (vectors - before.vectors).abs().amax(-1).min() > TOLERANCE


def test_a_late_interaction_model_is_refused(pairs_folder, tmp_path, tiny_embedder_path):
    found = resolve(str(late(tiny_embedder_path, tmp_path / "late")), None, HashCache(tmp_path / "h.json"))
    with pytest.raises(MmrrError, match="is a colqwen3 model; mmrr train embedder fine-tunes"):
        finetune.load_embedder(found, None, ProcessGroup(CPU))


def test_a_resumed_run_repeats_the_losses_of_an_uninterrupted_one(pairs_folder, tmp_path, tiny_path):
    settings = reranking(pairs_folder, tiny_path, pages=1, accumulate=2, steps=7, save_every=2)
    whole = losses(finetune.train_reranker(settings, tmp_path / "whole"))
    records = finetune.train_reranker(settings, tmp_path / "cut")
    killed = [next(records) for _ in range(5)]  # the state of step 4 is the last on disk
    records.close()
    assert not (tmp_path / "cut" / config.ADAPTER).exists()
    rest = losses(finetune.train_reranker(settings, tmp_path / "cut"))
    assert list(rest) == [5, 6, 7]
    assert losses(killed) | rest == whole
    logged = [json.loads(line) for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert losses(logged) == whole
    assert len(logged) == 7  # step 5 is logged once, though it was computed twice
    one, other = (load_file(tmp_path / run / config.ADAPTER / "adapter_model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert list(finetune.train_reranker(settings, tmp_path / "cut")) == []  # a finished run has no steps left


def test_an_adapter_is_refused_as_base(pairs_folder, tmp_path, tiny_path):
    list(finetune.train_reranker(reranking(pairs_folder, tiny_path, steps=1), tmp_path / "run"))
    again = reranking(pairs_folder, tmp_path / "run" / "adapter")
    with pytest.raises(MmrrError, match="is a LoRA adapter; merge it"):
        next(finetune.train_reranker(again, tmp_path / "run2"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_layer_is_the_layer(tiny):
    """States and gradients of a layer without and with compilation, in float32 within 1e-5 and 1e-4 of their size."""
    backbone = Scorer(tiny, Prepare(band="0:6"), CPU, torch.float32).backbone
    backbone.text.requires_grad_(True)
    compiled = torch.compile(one_layer, dynamic=True)
    for texts, length in ((2, 7), (1, 33), (3, 12)):
        x = torch.randn(texts, length, backbone.config.text_config.hidden_size)
        rotary = backbone.rotary(torch.arange(length).expand(3, 1, -1))
        found = []
        for layer in (one_layer, compiled):
            backbone.text.zero_grad()
            state = layer(backbone, 1, x, rotary)
            state.square().sum().backward()
            found.append((state.detach(), backbone.text.layers[1].self_attn.q_proj.weight.grad.clone()))
        (plain, slope), (fused, its_slope) = found
        assert (plain - fused).abs().max() <= 1e-5 * plain.abs().max()
        assert (slope - its_slope).abs().max() <= 1e-4 * slope.abs().max()
