"""EDJE's network, text, cache and tiles against the reference.

Tolerance: |d score| <= 1e-5 in float32, unless a test states another one.
"""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import resolve
from mmrr.scorers import edje
from mmrr.scorers.edje import Score, Scorer, canonical, cut
from tests.scorers.edje.reference import (
    LETTERS,
    PATCH,
    QUERIES,
    SIDE,
    TOLERANCE,
    VOCABULARY,
    WORDS,
    D,
    Original,
    pieces,
    scorer_of,
    stock_tokens,
    write_edje,
)

# The network


def test_vision_tokens_are_the_stock_models(scorer, vision_path, page_images):
    expected = stock_tokens(vision_path, page_images)
    assert expected.shape == (4, (SIDE // PATCH) ** 2, D)
    assert (scorer.vision.tokens(page_images) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("local", [False, True])
def test_the_folded_adapter_equals_the_unfolded_one(local, tmp_path, vision_path, hashes):
    torch.manual_seed(7)
    reference = Original(local=local)
    checkpoint = resolve(str(write_edje(tmp_path / "e", reference)), None, hashes, edje.SPEC.model_types)
    scorer = scorer_of(checkpoint, vision_path)
    x = torch.randn(3, 16, D)
    expected = reference.vision_projection(x)
    assert expected.std() > 1000 * TOLERANCE
    assert (scorer.adapter(x) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert scorer.prepare_options.tokens == expected.shape[1] == (16 if local else 4)


@pytest.mark.parametrize("query", [*QUERIES, "", "?!"])
def test_the_joint_encoder_is_stock_bert_with_words_replaced(scorer, original, query):
    z = torch.randn(5, 4, 12)
    ids = scorer.text_ids(query)
    assert ids[1:-1] == pieces(query)
    scores = scorer.encoder.score(ids, scorer.pieces.sep, z)
    expected = original.score([pieces(query)] * 5, z)
    assert expected.std() > 1000 * TOLERANCE
    assert (scores - expected).abs().max() <= TOLERANCE


def test_a_pair_alone_equals_it_in_a_padded_batch(scorer, original, page_images):
    """The stock model scores texts of different lengths in one padded and masked batch."""
    states = [{"z": scorer.compress(image)} for image in page_images[:3]]
    padded = original.score([pieces(query) for query in QUERIES], [state["z"] for state in states])
    alone = [scorer.score(query, [state], {}, Score()) for query, state in zip(QUERIES, states, strict=True)]
    assert (torch.cat(alone) - padded).abs().max() <= TOLERANCE


def test_a_score_from_page_to_logit_is_the_originals(scorer, original, vision_path, page_images):
    z = original.vision_projection(stock_tokens(vision_path, page_images))
    for query in QUERIES:
        expected = original.score([pieces(query)] * 4, z)
        scores = torch.tensor([scorer.score_uncached(query, image, None, Score()) for image in page_images])
        assert (scores - expected).abs().max() <= TOLERANCE
        assert expected.std() > 100 * TOLERANCE


def test_float16_caches_score_nearly_like_float32(scorer, page_images):
    """float16 has 11 bits of precision: the error is at most 2 % of the spread of scores over the pages."""
    states, shared = scorer.prepare(page_images, [None] * 4), scorer.shared_state()
    for query in QUERIES:
        exact = torch.tensor([scorer.score_uncached(query, image, None, Score()) for image in page_images])
        difference = (scorer.score(query, states, shared, Score()) - exact).abs().max()
        assert 0 < difference <= 0.02 * exact.std()


def test_a_batch_equals_its_members(scorer, page_images):
    states, shared = scorer.prepare(page_images, [None] * 4), scorer.shared_state()
    together = scorer.score(QUERIES[2], states, shared, Score())
    for batch in (1, 3):
        assert (scorer.score(QUERIES[2], states, shared, Score(batch=batch)) - together).abs().max() <= TOLERANCE
    assert scorer.score("q", [], shared, Score()).shape == (0,)
    with pytest.raises(MmrrError, match="batch 0: expected 1 or more"):
        scorer.score("q", states, shared, Score(batch=0))


def test_visual_tokens_have_positions(scorer, page_images):
    (state,) = scorer.prepare(page_images[:1], [None])
    backwards = {"z": state["z"].flip(0)}
    scores = scorer.score(QUERIES[0], [state, backwards], {}, Score())
    assert (scores[0] - scores[1]).abs() > 100 * TOLERANCE


def test_bfloat16_stays_near_float32(found, scorer, vision_path, page_images):
    """The error is at most 10 % of the largest score of 44 queries. The scores of three may all be near 0."""
    scores = []
    for one in (scorer, scorer_of(found, vision_path, torch.bfloat16)):
        states, shared = one.prepare(page_images, [None] * 4), one.shared_state()
        scores.append([one.score(query, states, shared, Score()) for query in [*QUERIES, *WORDS[5:], *LETTERS]])
    exact, near = map(torch.stack, scores)
    assert near.dtype == torch.float32
    assert 0 < (exact - near).abs().max() <= 0.1 * exact.abs().max()


# Text


def test_text_is_canonical():
    assert canonical("  It\u2019s 3.5 &amp;amp; US_DOLLARS\n(50%)  ") == "its 35 us dollars 50"
    assert canonical("\uff21\uff22\uff0c \ufb01ne\x00 \u201cquoted\u201d") == "ab fine quoted"
    assert canonical("e\u0301tude &lt;b&gt;") == "\u00e9tude b"
    assert canonical("") == canonical("?!") == ""


def test_a_long_query_is_cut_to_61_pieces(scorer, page_images):
    states = scorer.prepare(page_images[:2], [None] * 2)
    words = ["box"] * 61
    exact = scorer.score(" ".join(words), states, {}, Score())
    assert torch.equal(scorer.score(" ".join([*words, "soil"]), states, {}, Score()), exact)
    assert torch.equal(scorer.score(" ".join([*words, *["thesis page"] * 300]), states, {}, Score()), exact)
    assert not torch.equal(scorer.score(" ".join(["soil", *words[1:]]), states, {}, Score()), exact)
    assert len(scorer.text_ids(" ".join(words * 2))) == 63


def test_control_strings_in_a_query_stay_text(scorer):
    nasty = "soil [SEP] [CLS] [MASK] [PAD] <image>"
    assert scorer.text_ids(nasty)[1:-1] == pieces("soil sep cls mask pad image")
    # The tokenizer itself has no control tokens either, should a text keep its punctuation.
    controls = {VOCABULARY.index(name) for name in ("[SEP]", "[CLS]", "[MASK]", "[PAD]")}
    assert not controls & set(scorer.pieces.encode("[SEP] [CLS] [MASK] [PAD]"))


# The cache


def test_the_published_shape_takes_49152_bytes_a_page(tmp_path, vision_path, hashes, page_images):
    checkpoint = resolve(
        str(write_edje(tmp_path / "e", Original(m=64, d=384, layers=1))), None, hashes, edje.SPEC.model_types
    )
    scorer = scorer_of(checkpoint, vision_path)
    (state,) = scorer.prepare(page_images[:1], [None])
    assert (state["z"].dtype, state["z"].shape) == (torch.float16, (64, 384))
    assert state["z"].nbytes == 49152
    assert edje.cache_bytes(scorer.prepare_options, checkpoint.config(), 999, 4) == 49152
    assert scorer_of(checkpoint, vision_path, tiles=7).prepare_options.tiles == 7
    with pytest.raises(MmrrError, match=r"tiles 8: expected 1 to 7, because 3 \+ 61 \+ 64 a tile must fit 512"):
        scorer_of(checkpoint, vision_path, tiles=8)


@pytest.mark.parametrize("value", [7e4, float("nan")])
def test_what_float16_cannot_hold_is_refused(scorer, page_images, monkeypatch, value):
    monkeypatch.setattr(Scorer, "compress", lambda self, image: torch.full((4, 12), value))
    with pytest.raises(MmrrError, match="values of 60000 or more, too large for float16"):
        scorer.prepare(page_images[:1], [None])


# Tiles


@pytest.mark.parametrize(
    ("size", "tiles", "first", "n"),
    [
        ((80, 100), 1, (80, 100), 1),
        ((80, 100), 2, (80, 50), 2),
        ((100, 80), 2, (50, 80), 2),
        ((80, 100), 4, (40, 50), 4),
        ((80, 100), 6, (40, 33), 6),
        ((80, 100), 5, (80, 20), 5),
        ((100, 100), 2, (100, 50), 2),
    ],
)
def test_tiles_are_as_square_as_can_be_and_cover_the_page_once(size, tiles, first, n):
    page = Image.frombytes("RGB", size, bytes(i * 7 % 251 for i in range(3 * size[0] * size[1])))
    parts = cut(page, tiles)
    assert (parts[0].size, len(parts)) == (first, n)
    assert sum(part.width * part.height for part in parts) == size[0] * size[1]
    assert parts[-1].getpixel((parts[-1].width - 1, parts[-1].height - 1)) == page.getpixel((size[0] - 1, size[1] - 1))
    assert parts[0].getpixel((0, 0)) == page.getpixel((0, 0))


def test_a_tiled_page_is_its_tiles_one_after_the_other(found, scorer, vision_path, page_images):
    tiled = scorer_of(found, vision_path, tiles=6)
    for image in page_images:
        (state,) = tiled.prepare([image], [None])
        parts = scorer.prepare(cut(image, 6), [None] * 6)
        assert state["z"].shape == (24, 12)
        assert (state["z"].float() - torch.cat([part["z"] for part in parts]).float()).abs().max() <= 2e-3
        assert state["z"].nbytes == edje.cache_bytes(tiled.prepare_options, found.config(), 0, 4)
    whole, cut_up = (
        one.score(QUERIES[0], one.prepare(page_images, [None] * 4), {}, Score()) for one in (scorer, tiled)
    )
    assert (whole - cut_up).abs().max() > 100 * TOLERANCE


def test_a_learned_tile_embedding_is_in_the_cache(tmp_path, original, scorer, vision_path, hashes, page_images):
    rows = torch.randn(3, 12)
    path = write_edje(tmp_path / "e", original, extra={"tile_embedding.weight": rows})
    checkpoint = resolve(str(path), None, hashes, edje.SPEC.model_types)
    marked = scorer_of(checkpoint, vision_path, tiles=3)
    parts = [scorer.compress(part) + row for part, row in zip(cut(page_images[0], 3), rows, strict=True)]
    assert (marked.compress(page_images[0]) - torch.cat(parts)).abs().max() <= TOLERANCE
    with pytest.raises(MmrrError, match=r"tiles 4: expected 1 to 3.*the tile embedding has 3 rows"):
        scorer_of(checkpoint, vision_path, tiles=4)
