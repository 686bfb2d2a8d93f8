"""KaLM-Reranker's scores, pooling and batches against the stock model."""

from __future__ import annotations

import pytest
import torch

from mmrr.backbones import t5gemma2
from mmrr.errors import MmrrError
from mmrr.scorers import kalm
from mmrr.scorers.kalm import Prepare, Score
from tests.scorers.kalm.reference import (
    QUERIES,
    TEXTS,
    ids_of,
    load,
    loop_pool,
    near,
    scores_of,
    stock_encoder,
    stock_margin,
    stock_prompt,
)

# Against the stock model


@pytest.mark.parametrize("query", QUERIES)
def test_unpooled_scores_are_the_stock_forward(unpooled, stock, query):
    """The reference is one call of the stock model: encoder, decoder and LM head."""
    model, tokenizer = stock
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    expected = []
    for text in TEXTS:
        page, prompt = ids_of(tokenizer, f"<Document>: {text}"), ids_of(tokenizer, stock_prompt(query))
        with torch.no_grad():
            logits = model(input_ids=page, decoder_input_ids=prompt, use_cache=False).logits[0, -1]
        expected.append(float(logits[yes] - logits[no]))
    near(scores_of(unpooled, TEXTS, query), expected)
    assert torch.tensor(expected).std() > 0.01  # the scores of the pages differ, so that equal scores mean something


@pytest.mark.parametrize("query", QUERIES)
def test_pooled_scores_are_the_stock_decoder_over_means_by_a_plain_loop(scorer, stock, query):
    expected = [stock_margin(stock, loop_pool(stock_encoder(stock, text), 4), query) for text in TEXTS]
    near(scores_of(scorer, TEXTS, query), expected)


def test_another_instruction_is_another_prompt_over_the_same_caches(scorer, stock):
    instruction = "Find the page on which a date is printed."
    expected = [stock_margin(stock, loop_pool(stock_encoder(stock, t), 4), QUERIES[0], instruction) for t in TEXTS]
    found = scores_of(scorer, TEXTS, QUERIES[0], instruction=instruction)
    near(found, expected)
    assert (found - scores_of(scorer, TEXTS, QUERIES[0])).abs().max() > 1e-3


def test_score_uncached_is_the_stock_forward(scorer, stock):
    for text in TEXTS:
        for ratio in (0, 16):
            expected = stock_margin(stock, loop_pool(stock_encoder(stock, text), ratio or 4), QUERIES[2])
            near(scorer.score_uncached(QUERIES[2], text, None, Score(ratio=ratio)), expected)


def test_right_padding_of_a_batch_mate_changes_no_chunk(scorer, stock):
    """The published code pads pages to the longest and pools with a mask. The chunks agree within 1e-6."""
    model, tokenizer = stock
    rows = [ids_of(tokenizer, f"<Document>: {text}")[0] for text in TEXTS]
    longest = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (0, longest + 3 - len(row))) for row in rows])
    mask = torch.arange(longest + 3) < torch.tensor([len(row) for row in rows])[:, None]
    with torch.no_grad():
        hidden = model.model.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    for i, state in enumerate(scorer.prepare(TEXTS, [None] * 4)):
        assert state["tokens"].tolist() == [len(rows[i])]
        near(state["chunks"], loop_pool(hidden[i, : len(rows[i])], 4), 1e-6)


# Pooling


@pytest.mark.parametrize("n", [1, 3, 4, 31, 32, 33, 100])
def test_coarser_chunks_are_those_of_the_tokens(n):
    hidden = torch.randn(n, 8, generator=torch.Generator().manual_seed(n))
    for stored in kalm.RATIOS:
        chunks = t5gemma2.pool(hidden, stored)
        near(chunks, loop_pool(hidden, stored), 2e-7)
        for wanted in kalm.RATIOS[kalm.RATIOS.index(stored) :]:
            near(t5gemma2.coarser(chunks, n, stored, wanted), loop_pool(hidden, wanted), 5e-7)


def test_coarser_scores_come_from_the_same_caches(scorer, stock):
    for ratio in (8, 32):
        expected = [stock_margin(stock, loop_pool(stock_encoder(stock, text), ratio), QUERIES[0]) for text in TEXTS]
        near(scores_of(scorer, TEXTS, QUERIES[0], ratio=ratio), expected)


def test_an_unknown_or_finer_ratio_is_refused(scorer):
    with pytest.raises(MmrrError, match=r"ratio 2 is finer than 4, .* run mmrr precache -o ratio=2"):
        scores_of(scorer, TEXTS, "q", ratio=2)
    with pytest.raises(MmrrError, match="ratio 5: expected 1, 2, 4, 8, 16, 32"):
        scores_of(scorer, TEXTS, "q", ratio=5)
    with pytest.raises(MmrrError, match="ratio 3: expected"):
        kalm.resolve(Prepare(ratio=3), {})
    with pytest.raises(MmrrError, match="windows 0: expected 1 or more"):
        kalm.resolve(Prepare(windows=0), {})


# What batches and open pages may not change


def test_a_batch_equals_its_members_one_by_one(scorer):
    together = scores_of(scorer, TEXTS, QUERIES[2])
    near(torch.cat([scores_of(scorer, [text], QUERIES[2]) for text in TEXTS]), together)
    near(scores_of(scorer, TEXTS[::-1], QUERIES[2]).flip(0), together)


def test_small_batches_change_no_score(scorer, monkeypatch):
    whole = scores_of(scorer, TEXTS, QUERIES[0])
    monkeypatch.setattr(kalm, "_BATCH_BYTES", 1)
    assert [len(batch) for batch in scorer._batches([torch.zeros(3, 1)] * 3, 9)] == [1, 1, 1]
    near(scores_of(scorer, TEXTS, QUERIES[0]), whole)


def test_the_prefill_of_pages_is_reused_by_the_next_query(scorer, monkeypatch):
    """The prompt prefix and the pages' keys and values are computed once for all queries."""
    cold = [scores_of(scorer, TEXTS, query) for query in QUERIES]
    states, shared = scorer.prepare(TEXTS, [None] * 4), scorer.shared_state()
    assert len(scorer.prompt("q", kalm.INSTRUCTION)[0]) > 3 * scorer.backbone.window
    scorer._ready.clear()
    scorer.score(QUERIES[0], states, shared, Score())

    def opened(*_):
        raise AssertionError("a page was opened twice")

    with monkeypatch.context() as patch:
        patch.setattr(scorer.backbone, "prefill", opened)
        for query, expected in zip(QUERIES, cold, strict=True):
            near(scorer.score(query, states, shared, Score()), expected)
        with pytest.raises(AssertionError, match="opened twice"):  # another instruction has another prefix
            scorer.score("q", states, shared, Score(instruction="Other"))
    monkeypatch.setattr(kalm, "_READY_BYTES", 1)
    near(scorer.score(QUERIES[1], states, shared, Score()), cold[1])
    assert not scorer._ready


def test_two_equal_pages_score_alike(scorer):
    one, other, _ = scores_of(scorer, [TEXTS[0], TEXTS[0], TEXTS[1]], QUERIES[0]).tolist()
    assert one == pytest.approx(other, abs=1e-6)


def test_the_order_of_chunks_does_not_matter(scorer):
    (state,) = scorer.prepare(TEXTS[:1], [None])
    mixed = state["chunks"][torch.randperm(len(state["chunks"]), generator=torch.Generator().manual_seed(0))]
    assert not torch.equal(mixed, state["chunks"])
    both = scorer.score(QUERIES[0], [state, state | {"chunks": mixed}], scorer.shared_state(), Score())
    near(both[:1], both[1:])


def test_bfloat16_scores_stay_near_float32(original, scorer):
    """bfloat16 has 8 bits of precision."""
    rough_scorer = load(original, dtype=torch.bfloat16)
    (state,) = rough_scorer.prepare(TEXTS[:1], [None])
    assert state["chunks"].dtype == torch.bfloat16
    exact, rough = (scores_of(one, TEXTS, QUERIES[0]) for one in (scorer, rough_scorer))
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() <= 0.1 * exact.abs().max()
