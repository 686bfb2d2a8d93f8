"""Cross-encoders of sentence-transformers: scores from the caches are the library's, and the chain runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import CrossEncoder

from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.checkpoints import resolve
from mmrr.scorers import crossencoder
from mmrr.scorers.crossencoder import Prepare, Score, Scorer
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.sentence_models import write_cross_encoder, write_text_embedder

QUERY = "when is the thesis due?"
PAGES = ["the thesis is due in april", "", "soil moisture sensors " * 200, "rainfall in spring by month"]


@pytest.fixture(scope="module", params=["one file", "sharded"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_cross_encoder(tmp_path_factory.mktemp("cross") / "model", sharded=request.param == "sharded")
    assert (folder / "model.safetensors.index.json").exists() == (request.param == "sharded")
    return folder


def loaded(folder: Path, options: Prepare | None = None) -> Scorer:
    checkpoint = resolve(str(folder), None, HashCache(folder.parent / "hashes.json"), ("*",))
    options = crossencoder.resolve(options or Prepare(), checkpoint.config())
    return crossencoder.load(checkpoint, options, CPU, torch.float32)


def test_scores_are_the_logits_of_the_library(folder: Path) -> None:
    assert families.load("scorers", "crossencoder").SPEC.checkpoints[0] == "cross-encoder/ms-marco-MiniLM-L6-v2"
    scorer = loaded(folder)
    caches = scorer.prepare(PAGES, [None] * len(PAGES))
    assert [len(cache["sizes"]) for cache in caches] == [1, 0, 3, 1]
    found = scorer.score(scorer.encode_query(QUERY), caches, scorer.shared_state(), Score())
    stock = CrossEncoder(str(folder))
    windows = [PAGES[2][window.start : window.end] for window in scorer.windows(PAGES[2])]
    assert all(len(stock.tokenizer(QUERY, window)["input_ids"]) <= 512 for window in windows)
    texts = [[PAGES[0]], [], windows, [PAGES[3]]]
    for score, parts in zip(found.tolist(), texts, strict=True):
        logits = (
            stock.predict([(QUERY, part) for part in parts], activation_fn=torch.nn.Identity()) if parts else [-20.0]
        )
        assert score == pytest.approx(max(logits), abs=1e-5)
    for page, score in zip(PAGES, found.tolist(), strict=True):
        assert scorer.score_uncached(QUERY, page, None, Score()) == pytest.approx(score, abs=1e-5)
    alone = scorer.score(QUERY, caches, scorer.shared_state(), Score(batch=1))
    torch.testing.assert_close(alone, found, atol=1e-5, rtol=0)


def test_a_long_question_leaves_room_for_the_text(folder: Path) -> None:
    scorer = loaded(folder)
    query = scorer.encode_query(QUERY * 100)
    assert len(query.split()) <= 64
    assert torch.isfinite(scorer.score(query, scorer.prepare([PAGES[2]], [None]), {}, Score())).all()


def test_checkpoints_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MmrrError, match="gives 3 scores a pair"):
        loaded(write_cross_encoder(tmp_path / "three", labels=3))
    with pytest.raises(MmrrError, match="the checkpoint is a BertModel"):
        loaded(write_text_embedder(tmp_path / "embedder"))
    with pytest.raises(MmrrError, match="expected 1 word or more"):
        loaded(write_cross_encoder(tmp_path / "one"), Prepare(words=0))
