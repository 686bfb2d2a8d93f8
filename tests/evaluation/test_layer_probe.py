"""Layer probes: the last layer gives the dense score, and each layer gives the score of an exit there."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from mmrr.errors import MmrrError
from mmrr.evaluation.layer_probe import probe, suggest
from mmrr.scorers.minireranker import Prepare, Score, Scorer, resolve
from mmrr.types import Hit
from tests.conftest import CPU
from tests.console import FP32, INDEX, SOIL, THESIS, mmrr, refused, write_documents, write_queries

TEXTS = {"q1": "When is the thesis due?", "q2": "lorem"}


@pytest.fixture
def dense(tiny):
    return Scorer(tiny, resolve(Prepare(band="0:6"), tiny.config()), CPU, torch.float32)


@pytest.fixture
def run(page_images):
    return {name: [Hit(str(i), -float(i)) for i in range(len(page_images))] for name in TEXTS}


def test_each_layer_is_an_exit_and_the_last_is_the_dense_score(dense, run, page_images):
    """Equal within 1e-4 in float32 to the cached scores at every exit and to the stock forward of transformers."""
    found = probe(dense, lambda page_id: page_images[int(page_id)], TEXTS, run)
    states, shared = dense.prepare(page_images, [None] * len(page_images)), dense.shared_state()
    for query_id, text in TEXTS.items():
        for layer in range(6):
            cached = dense.score(text, states, shared, Score(exit_layer=layer + 1)).tolist()
            ours = {hit.page_id: hit.score for hit in found.runs[layer][query_id]}
            assert [ours[str(i)] for i in range(len(cached))] == pytest.approx(cached, abs=1e-4)
        stock = dense.dense(text, page_images, "vision-first").tolist()
        assert [ours[str(i)] for i in range(len(stock))] == pytest.approx(stock, abs=1e-4)


def test_similarity_compares_a_querys_states_after_two_pages(dense, run, page_images):
    same = probe(dense, lambda _: page_images[0], TEXTS, run)
    assert same.similarity == pytest.approx([1.0] * 6, abs=1e-6)
    other = probe(dense, lambda page_id: page_images[int(page_id)], TEXTS, run)
    assert all(-1 <= value < 0.99999 for value in other.similarity)


def test_nothing_to_compare_is_one_line(dense, page_images):
    with pytest.raises(MmrrError, match="no query has two candidates"):
        probe(dense, lambda _: page_images[0], TEXTS, {"q1": [Hit("0", 0.0)], "q2": []})


@pytest.mark.parametrize(
    ("values", "similarity", "expected"),
    [
        ([0.1, 0.2, 0.6, 0.8, 0.79, 0.8], [1.0, 0.99, 0.7, 0.5, 0.5, 0.5], (2, 4)),
        ([0.5, 0.5], [0.2, 0.1], (0, 1)),
        ([0.1, 0.9], [1.0, 1.0], (1, 2)),  # the band is never empty
    ],
)
def test_band_from_both_curves(values, similarity, expected):
    assert suggest(values, similarity, 0.99, 0.95) == expected


def test_the_command_draws_and_tells(tmp_path, tiny_path, tiny_embedder_path):
    docs, work, queries, qrels = (tmp_path / name for name in ("docs", "work", "queries.jsonl", "qrels.trec"))
    write_documents(docs, thesis=THESIS, soil=SOIL)
    write_queries(queries, ("q1", "When is the thesis due?", None), ("q2", "rainfall by month in spring", None))
    qrels.write_text("q1 0 thesis.pdf/0001 1\nq2 0 soil.pdf/0002 1\n")
    mmrr("index", docs, "--work", work, "--embedder", tiny_embedder_path, *INDEX, *FP32)
    command = ("probe", "--work", work, "--queries", queries, "--qrels", qrels)
    result = mmrr(*command, "--scorer-model", tiny_path, *FP32, "--json", "--output", tmp_path / "probe.png")
    output = json.loads(result.stdout)
    assert len(output["layers"]) == 6
    assert all(0 <= layer["nDCG@5"] <= 1 for layer in output["layers"])
    start, end = map(int, output["band"].split(":"))
    assert 0 <= start < end <= 6
    assert Image.open(tmp_path / "probe.png").width > 500
    assert "pass --scorer-model" in refused(*command)
