"""ZipRerank's logits and its pruning against the stock model."""

from __future__ import annotations

import pytest
import torch

from mmrr.errors import MmrrError
from mmrr.scorers import ziprerank
from mmrr.scorers.ziprerank import Prepare, Score, Scorer
from tests.conftest import CPU
from tests.scorers.ziprerank.reference import (
    FULL,
    MAX_SIDE,
    QUERY,
    TOLERANCE,
    pruned_logits,
    reference_kept,
    reference_words,
    stock_logits,
)


@pytest.mark.parametrize("query", [QUERY, "lorem"])
def test_all_tokens_give_the_stock_models_logits(scorer, zip_path, stock, images, states, query):
    """From caches, against the forward of transformers over the complete prompt with the LM head."""
    for items in ([0, 1, 2, 3, 4], [4, 1], [2]):
        logits = scorer.logits(query, states, items, FULL)
        expected = stock_logits(stock, zip_path, query, [images[i] for i in items])
        assert (logits - expected).abs().max() <= TOLERANCE
        assert len(items) == 1 or expected.std() > 100 * TOLERANCE


@pytest.mark.parametrize("interaction", ziprerank.INTERACTIONS)
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_pruning_equals_a_plain_forward_over_the_kept_tokens(
    scorer, zip_path, stock, images, states, interaction, share
):
    """Seven parameters: five fixtures and the two options of pruning."""
    items = [3, 1, 4]
    logits = scorer.logits(QUERY, states, items, Score(keep=share, interaction=interaction))
    expected = pruned_logits(stock, zip_path, QUERY, [images[i] for i in items], share, interaction)
    assert (logits - expected).abs().max() <= TOLERANCE
    full = scorer.logits(QUERY, states, items, FULL)
    assert (logits - full).abs().max() > 100 * TOLERANCE  # pruning changes the logits


def test_pruning_that_keeps_all_equals_no_pruning(scorer, states, monkeypatch):
    """The code path of pruning, changed to keep every token, against the path without pruning."""
    full = scorer.logits(QUERY, states, [0, 1, 4], FULL)
    monkeypatch.setattr(ziprerank, "choose", lambda near, share: torch.arange(len(near)))
    for interaction in ziprerank.INTERACTIONS:
        logits = scorer.logits(QUERY, states, [0, 1, 4], Score(keep=0.5, interaction=interaction))
        assert (logits - full).abs().max() <= 1e-5


def test_the_two_interactions_choose_differently(scorer, states):
    a, b = (scorer.logits(QUERY, states, [0, 1], Score(keep=0.5, interaction=name)) for name in ("input", "hidden"))
    assert (a - b).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("query", [QUERY, "lorem", " leading space", "3 boxes", "due by 12.5%?!", "two\nlines"])
def test_the_hidden_states_are_those_at_the_querys_tokens(scorer, zip_path, stock, query):
    """``reference_words`` finds them by their character offsets."""
    before, question, after = scorer.segments(query, 1)
    words = scorer.interacting(before, question, after, "hidden")
    ids = torch.tensor([[*before, *question, *after]])
    with torch.no_grad():
        expected = reference_words(stock, zip_path, query, ids, 1, "hidden")
    assert words.shape == expected.shape
    assert (words - expected).abs().max() <= TOLERANCE


def test_input_words_are_the_text_before_the_first_image_alone(scorer, states):
    words = scorer.interacting(*scorer.segments(QUERY, 2), "input")
    marks = scorer.backbone.embed(sorted(scorer.marks)).float()
    assert not any((words == mark).all(dim=-1).any() for mark in marks)
    start = scorer.backbone.embed([scorer.segments(QUERY, 2)[0][0]]).float()  # <|im_start|> is among them
    assert (words == start).all(dim=-1).any()


#: Tokens of a page, and how many are kept with shares of 0.25, 0.5 and 0.75.
COUNTS = [
    (725, (181, 362, 544)),
    (735, (184, 368, 551)),
    (736, (184, 368, 552)),
    (800, (200, 400, 600)),
    (81, (20, 40, 61)),
    (1, (1, 1, 1)),
]


@pytest.mark.parametrize(("n_tokens", "counts"), COUNTS)
def test_how_many_tokens_are_kept(n_tokens, counts):
    generator = torch.Generator().manual_seed(n_tokens)
    words, tokens = torch.randn(7, 8, generator=generator), torch.randn(n_tokens, 8, generator=generator)
    for share, count in zip((0.25, 0.5, 0.75), counts, strict=True):
        kept = ziprerank.choose(ziprerank.nearness(words, tokens), share)
        assert kept.tolist() == reference_kept(words, tokens, share)
        assert len(kept) == count


def test_equally_near_tokens_are_kept_from_the_first():
    words = torch.eye(3)[:2]
    tokens = torch.tensor([[0, 0, 1.0], [3, 0, 0], [0, 2, 0], [0.5, 0, 0], [0, 1, 1], [0, 7, 0]])
    assert ziprerank.choose(ziprerank.nearness(words, tokens), 0.5).tolist() == [1, 2, 3]


def test_bfloat16_head_is_the_rounded_one(scorer, states):
    exact = scorer.logits(QUERY, states, [0, 1, 2], FULL)
    rounded = scorer.logits(QUERY, states, [0, 1, 2], Score(head="bfloat16"))
    assert torch.equal(rounded, exact.bfloat16().float())
    assert not torch.equal(rounded, exact)


def test_bfloat16_scores_stay_near_float32(checkpoint, scorer, images, states):
    rough = Scorer(checkpoint, Prepare(MAX_SIDE), CPU, torch.bfloat16)
    logits = rough.logits(QUERY, rough.prepare(images, [None] * 5), [0, 1, 2, 3, 4], Score(head="bfloat16"))
    exact = scorer.logits(QUERY, states, [0, 1, 2, 3, 4], FULL)
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().max() <= 0.1 * exact.abs().max()


def test_logits_that_are_not_finite_are_refused(scorer, states):
    broken = {**states[0], "tokens": states[0]["tokens"] * float("nan")}
    with pytest.raises(MmrrError, match="not finite"):
        scorer.score(QUERY, [broken, states[1]], {}, FULL)
