"""The parts of the first stage: FAISS gives exact products, and BM25 accepts every text."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from mmrr.errors import MmrrError
from mmrr.search.indexes import TextIndex, build_dense, search_dense

PAGES = [
    "The thesis is due on Friday, the thesis must be bound.",
    "Espresso machines are descaled every two months.",
    "",
    "Ferries leave the harbour on Fridays at nine.",
    "Moss grows on the harbour wall.",
]


def unit_vectors(n, d, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def search(folder, queries, depth):
    """Search pages and queries with one vector each."""
    return search_dense({"dense.faiss": folder / "dense.faiss"}, list(queries[:, None]), depth)


def build(vectors, factory, folder):
    """Index pages with one vector each."""
    build_dense(vectors[:, None], factory, folder, several=False)


# FAISS


def test_flat_is_brute_force(tmp_path):
    vectors, queries = unit_vectors(200, 16), unit_vectors(7, 16, seed=1)
    build(vectors, "Flat", tmp_path)
    products = queries @ vectors.T
    for own, found in zip(products, search(tmp_path, queries, 20), strict=True):
        assert list(found) == np.argsort(-own)[:20].tolist()
        assert max(abs(score - own[row]) for row, score in found.items()) < 1e-6


def test_no_more_hits_than_pages(tmp_path):
    build(unit_vectors(3, 8), "Flat", tmp_path)
    (found,) = search(tmp_path, unit_vectors(1, 8, seed=1), 100)
    assert sorted(found) == [0, 1, 2]


def test_an_approximate_index_leaves_out_what_it_did_not_find(tmp_path):
    vectors = unit_vectors(64, 8)
    build(vectors, "IVF32,Flat", tmp_path)
    (found,) = search(tmp_path, vectors[:1], 64)
    assert next(iter(found)) == 0
    plain = faiss.read_index(str(tmp_path / "dense.faiss"))
    assert (plain.search(vectors[:1], 64)[1] >= 0).sum() < len(found) < 64  # by default FAISS searches one list
    plain.nprobe = 8
    rows = plain.search(vectors[:1], 64)[1][0]
    assert list(found) == rows[rows >= 0].tolist()


def test_shortened_vectors_find_and_whole_ones_score(tmp_path):
    """The scores are products of whole vectors within float16, the number of pages is as asked, and the best page is
    found where the vectors lie near a plane of fewer dimensions, as trained vectors do."""
    rng = np.random.default_rng(0)
    plane, off = rng.standard_normal((4, 32)), 0.05 * rng.standard_normal((605, 32))
    vectors = (rng.standard_normal((605, 4)) @ plane + off).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pages, queries = vectors[:600], vectors[600:]
    build(pages, "PCA8,SQ8,Refine(SQfp16)", tmp_path)
    for own, found in zip(queries @ pages.T, search(tmp_path, queries, 20), strict=True):
        order = np.argsort(-own)
        assert own[next(iter(found))] > own[order[0]] - 1e-3
        assert len({*list(found)[:20]} & {*order[:20].tolist()}) >= 19
        assert max(abs(score - own[row]) for row, score in list(found.items())[:20]) < 1e-3


def test_more_is_rescored_than_is_asked_for(tmp_path):
    """By default FAISS rescores only as many pages as it returns."""
    vectors, queries = unit_vectors(400, 16), unit_vectors(50, 16, seed=1)
    build(vectors, "PCA4,SQ8,Refine(SQfp16)", tmp_path)
    ours = [next(iter(found)) for found in search(tmp_path, queries, 10)]
    plain = faiss.read_index(str(tmp_path / "dense.faiss"))
    alone = plain.search(queries, 10)[1][:, 0].tolist()
    plain.k_factor = 4
    assert ours == plain.search(queries, 10)[1][:, 0].tolist()
    best = (queries @ vectors.T).argmax(1)
    assert (best == ours).sum() > (best == alone).sum()


@pytest.mark.parametrize("factory", ["Flatt", "", "IVF100,Flat", "PQ3", "\x00"])
def test_a_factory_that_does_not_work_is_one_line(tmp_path, factory):
    with pytest.raises(MmrrError, match=r"FAISS cannot build '.*'( over 10 vectors: .|; expected a factory)") as caught:
        build(unit_vectors(10, 8), factory, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "dense.faiss").exists()


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "other"])
def test_a_damaged_dense_index_is_named(tmp_path, damage):
    path = tmp_path / "dense.faiss"
    build(unit_vectors(10, 8), "Flat", tmp_path)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "truncated": path.read_bytes()[:-9], "other": b"not an index at all"}[damage])
    with pytest.raises(MmrrError, match=r"dense\.faiss is damaged or missing; run mmrr index again"):
        search(tmp_path, unit_vectors(1, 8), 5)


# BM25


def test_the_page_with_the_words_comes_first():
    index = TextIndex.build(PAGES)
    scores = index.scores("When is the thesis due?")
    assert scores.argmax() == 0
    assert (scores[1:] == 0).all()
    harbour = index.scores("harbour")
    assert set(np.flatnonzero(harbour)) == {3, 4}


def test_scores_are_lucenes_bm25():
    """The formula: idf = ln(1 + (N - n + 0.5) / (n + 0.5)), tf / (tf + k1 * (1 - b + b * length / mean length))."""
    texts = ["moss moss stone", "moss", "stone stone stone stone", "harbour"]
    lengths = np.array([3, 1, 4, 1])
    tf = np.array([2, 1, 0, 0])
    idf = np.log(1 + (4 - 2 + 0.5) / (2 + 0.5))
    expected = idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * lengths / lengths.mean()))
    assert np.abs(TextIndex.build(texts).scores("moss") - expected).max() < 1e-6


@pytest.mark.parametrize("query", ["", "the of and is", "!?", "zzzunknown", "a", "zzzunknown qqqother"])
def test_a_query_without_a_known_word_scores_nothing(query):
    scores = TextIndex.build(PAGES).scores(query)
    assert scores.shape == (5,)
    assert scores.dtype == np.float32
    assert not scores.any()


def test_unknown_words_next_to_known_ones_change_nothing():
    index = TextIndex.build(PAGES)
    assert (index.scores("thesis zzzunknown") == index.scores("thesis")).all()


@pytest.mark.parametrize("texts", [["", ""], ["the of", "!!"], [""]])
def test_pages_without_a_word(tmp_path, texts):
    """Scanned documents have no text layer."""
    index = TextIndex.build(texts)
    index.save(tmp_path / "bm25")
    for one in (index, TextIndex.load(tmp_path / "bm25", len(texts))):
        assert one.scores("thesis").tolist() == [0.0] * len(texts)


def test_save_and_load_are_the_same_index(tmp_path):
    index = TextIndex.build(PAGES)
    index.save(tmp_path / "bm25")
    loaded = TextIndex.load(tmp_path / "bm25", len(PAGES))
    for query in ("thesis", "harbour on Friday", "the", "unknown", "moss wall espresso"):
        assert (loaded.scores(query) == index.scores(query)).all()
    assert loaded.scores("harbour on Friday").any()
    assert not [path for path in (tmp_path / "bm25").iterdir() if path.suffix not in (".json", ".npy")]


def test_every_damaged_file_of_a_text_index_is_named(tmp_path):
    TextIndex.build(PAGES).save(tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(names) >= 4
    for name in names:
        for damage in ("missing", "empty", "half"):
            folder = tmp_path / f"{name}-{damage}"
            TextIndex.build(PAGES).save(folder)
            if damage == "missing":
                (folder / name).unlink()
            else:
                data = (folder / name).read_bytes()
                (folder / name).write_bytes(data[: len(data) // 2 if damage == "half" else 0])
            with pytest.raises(MmrrError, match="is damaged"):
                TextIndex.load(folder, len(PAGES))
    with pytest.raises(MmrrError, match="is missing; run mmrr index again"):
        TextIndex.load(tmp_path / "none", 5)
    with pytest.raises(MmrrError, match="languages of 4 pages expected"):
        TextIndex.load(tmp_path / "whole", 4)


def test_an_index_whose_words_were_cut_by_other_rules_is_refused(tmp_path):
    TextIndex.build(PAGES).save(tmp_path / "bm25")
    record = tmp_path / "bm25" / "words.json"
    record.write_text(record.read_text().replace('"version": 1', '"version": 7'))
    with pytest.raises(MmrrError, match="found words of version 7, expected 1; run mmrr index again"):
        TextIndex.load(tmp_path / "bm25", len(PAGES))
