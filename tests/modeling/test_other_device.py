"""A stand-in for another device gives the CPU's numbers and refuses tensors left on the CPU; see test_gpu.py too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmrr.embedders import colqwen3, qwen3_vl
from mmrr.evaluation.trec import read_run
from mmrr.modeling import cache_streams
from mmrr.modeling.checkpoints import resolve
from mmrr.scorers import edje, kalm, minireranker, ziprerank
from mmrr.stages import _scoring
from mmrr.training.data.cell_targets import N_HASHES, fold
from mmrr.training.data.queries import LabelledQuery
from mmrr.training.data.tower_features import ReadPage
from mmrr.training.distributed import placed
from mmrr.training.from_scratch.batches import Batch
from mmrr.training.from_scratch.matching import Contrast, Judge, JudgeOptions, Pretraining
from mmrr.types import KeptTokens
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.console import FP32, INDEX, SOIL, THESIS, artifact, mmrr, write_documents, write_queries
from tests.elsewhere import ELSEWHERE, Moved, elsewhere

QUERY = "When is the thesis due?"
TEXTS = ["The thesis is due on 1 September.", "Ferries leave at seven."]


@pytest.mark.parametrize(
    "mix",
    [
        lambda there: there + torch.ones(3),
        lambda there: there @ torch.ones(3, 2),
        lambda there: torch.nn.functional.linear(there, torch.ones(2, 3)),
        lambda there: torch.cat([there, torch.ones(1, 3)]),
        lambda there: there.numpy(),
    ],
)
def test_the_stand_in_notices_what_a_device_would_refuse(mix: Callable[[Tensor], Any]) -> None:
    with elsewhere() as device, pytest.raises((AssertionError, RuntimeError), match=r"on the CPU|numpy"):
        mix(torch.ones(2, 3, device=device))


def test_the_stand_in_computes() -> None:
    with elsewhere() as device:
        there = torch.arange(6.0).view(2, 3).to(device)
        there[0] = torch.zeros(3)
        assert there.device == ELSEWHERE
        assert torch.equal((2 * there[torch.tensor([1, 0])]).cpu(), torch.tensor([[6.0, 8, 10], [0, 0, 0]]))


@pytest.mark.parametrize("family", [qwen3_vl, colqwen3])
def test_an_embedder_leaves_nothing_behind(tiny_embedder, tiny_late, page_images, family) -> None:
    def numbers(device: torch.device) -> list[Tensor]:
        model = tiny_embedder if family is qwen3_vl else tiny_late
        embedder = family.load(model, family.Prepare(), device, torch.float32)
        pages = embedder.embed_pages(page_images)
        return [
            *(page.vectors for page in pages),
            *(page.saliency for page in pages),
            *embedder.embed_queries([QUERY], family.Search()),
        ]

    _same(numbers)


@pytest.mark.parametrize("codec", ["none", "bf16", "int8", "int4"])
def test_minireranker_leaves_nothing_behind(tiny, page_images, codec: str) -> None:
    def numbers(device: torch.device) -> list[Tensor]:
        prepare = minireranker.Prepare(band="1:4", codec=codec)
        scorer = minireranker.Scorer(tiny, prepare, device, torch.float32)
        images = page_images[2:]
        rows, columns = scorer.grid(*images[0].size)
        kept = [KeptTokens(torch.arange(0, rows * columns, 2, dtype=torch.int32), (rows, columns)), None]
        found = _scores(minireranker, scorer, images, kept, device)
        if codec == "none":
            later = minireranker.Score(exit_layer=6)
            found.append(scorer.score(QUERY, scorer.prepare(images, kept), scorer.shared_state(), later))
            found.append(torch.tensor(scorer.score_uncached(QUERY, images[0], kept[0], minireranker.Score())))
            found.append(scorer.dense(QUERY, images[:1], "query-first"))
        return found

    _same(numbers)


@pytest.mark.parametrize(
    ("family", "model", "pages"),
    [(kalm, "small-kalm", "text"), (edje, "small-edje", "image"), (ziprerank, "small-ziprerank", "image")],
)
def test_the_other_scorers_leave_nothing_behind(family, model: str, pages: str, page_images, tmp_path: Path) -> None:
    checkpoint = resolve(model, None, HashCache(tmp_path / "hashes.json"), family.SPEC.model_types)
    contents: list[str | Image.Image] = (
        TEXTS if pages == "text" else [image.resize((192, 224)) for image in page_images[2:]]
    )

    def numbers(device: torch.device) -> list[Tensor]:
        prepare = family.resolve(family.Prepare(), checkpoint.config())
        scorer = family.load(checkpoint, prepare, device, torch.float32)
        found = _scores(family, scorer, contents, [None] * len(contents), device)
        if hasattr(scorer, "plain"):
            found.append(torch.tensor(scorer.score_uncached(QUERY, contents[0], None, family.Score())))
        return found

    _same(numbers)


def test_portions_arrive_whole_on_the_device() -> None:
    with elsewhere() as device:
        there = torch.zeros(4, device=device)  # of a page that is still on the device
        pages = [(0, {"k": torch.ones(4), "next_pos": torch.tensor(3)}), (1, {"k": there, "next_pos": torch.tensor(2)})]
        portions = list(cache_streams.moved(cache_streams.portions(pages, 1 << 20), device))
        assert [list(portion) for portion in portions] == [[0, 1]]
        for state in portions[0].values():
            assert all(isinstance(tensor, Moved) for tensor in state.values())
        assert portions[0][0]["k"].tolist() == [1.0] * 4


@pytest.mark.slow
def test_the_chain_leaves_nothing_behind(tiny_path, tiny_embedder_path, tmp_path: Path, monkeypatch) -> None:
    """The complete chain, with page caches both on the device and in files."""
    monkeypatch.setattr(_scoring, "ahead", iter)  # the stand-in is this thread's
    write_documents(tmp_path / "docs", handbook=THESIS, soil=SOIL)
    write_queries(tmp_path / "q.jsonl", ("a", QUERY), ("b", "rainfall"))

    def chain(device: torch.device) -> list[Tensor]:
        work = tmp_path / device.type
        there = ("--work", work, "--device", device)
        mmrr("index", tmp_path / "docs", *INDEX, *FP32, *there, "--embedder", tiny_embedder_path)
        mmrr("precache", *FP32, *there, "--scorer-model", tiny_path, "--codec", "int8")
        found = artifact(mmrr("rerank", "--queries", tmp_path / "q.jsonl", *there, "--resident", "32KiB"))
        mmrr("verify", *there, "--rescore", 2)
        run = read_run(found / "run.trec")
        return [torch.tensor([hit.score for hit in sorted(run[name], key=lambda hit: hit.page_id)]) for name in "ab"]

    _same(chain)


def test_what_learns_leaves_nothing_behind(tiny_late, tiny) -> None:
    """Losses and gradients of the pre-training, contrastive and answer objectives."""

    def numbers(device: torch.device) -> list[Tensor]:
        embedder = colqwen3.Embedder(tiny_late, colqwen3.Prepare(), device, torch.float64)
        scorer = minireranker.Scorer(tiny, minireranker.Prepare(band="1:3"), device, torch.float64)
        words = torch.nn.Linear(scorer.backbone.text.embed_tokens.weight.shape[1], N_HASHES, dtype=torch.float64)
        words.load_state_dict({name: torch.ones_like(value) for name, value in words.state_dict().items()})
        found = []
        for learner in (
            Contrast(embedder, colqwen3.Search()),
            Judge(scorer, JudgeOptions((1, 3), 3, 0.5, 1.0, 1)),
            Pretraining(scorer, words, 1),
        ):
            learner.to(device).requires_grad_(True)
            loss = learner.losses(placed(_lesson(learner), device))["loss"]
            loss.backward()
            gradients = [p.grad for p in learner.parameters() if p.grad is not None]
            found += [loss.detach().cpu(), torch.stack([gradient.norm().cpu() for gradient in gradients])]
        return found

    _same(numbers, learning=True)


def _lesson(learner: torch.nn.Module) -> Batch:
    """Two pages of four words, each with its own query and the query of the other page."""
    numbers = torch.Generator().manual_seed(0)
    width = next(learner.text.parameters()).shape[-1]
    pages, queries = [], []
    for mine, yours in ((TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[0])):
        words = tuple(mine.split()[:4])
        pages.append(
            ReadPage(
                tokens=torch.randn(12, width, generator=numbers),
                deepstack=torch.zeros(0, 12, width),
                grid=(4, 3),
                saliency=torch.rand(12, generator=numbers),
                words=words,
                folded=tuple(map(fold, words)),
                blocks=(0,) * 4,
                cells=tuple((2 * i, 2 * i + 1) for i in range(4)),
                questions=(),
            )
        )
        queries.append(
            [LabelledQuery(mine[:20], True)] + [LabelledQuery(yours[:20], False)] * (not isinstance(learner, Contrast))
        )
    return Batch(pages, queries)


def _scores(family: Any, scorer: Any, contents: Any, kept: Any, device: torch.device) -> list[Tensor]:
    """Page caches, and scores from caches in files and on the device."""
    states, shared = scorer.prepare(contents, kept), scorer.shared_state()
    query = scorer.encode_query(QUERY) if hasattr(scorer, "encode_query") else QUERY
    moved = [{name: tensor.to(device) for name, tensor in state.items()} for state in states]
    stored = [tensor for state in states for tensor in state.values()]
    return [*stored, *(scorer.score(query, where, shared, family.Score()) for where in (states, moved))]


def _same(numbers: Callable[[torch.device], list[Tensor]], *, learning: bool = False) -> None:
    """The difference is at most 1e-5 plus 1e-4 of the number: the CPU computes both, with another memory layout."""
    with elsewhere(learning=learning) as device:
        there = numbers(device)
    here = numbers(CPU)
    for one, other in zip(there, here, strict=True):
        assert not isinstance(one, Moved)
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    assert any(tensor.is_floating_point() and tensor.numel() > 1 and tensor.std() > 0 for tensor in here)
