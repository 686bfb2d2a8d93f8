"""KaLM-Reranker from documents to a ranking, on the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.console import FP32, INDEX, artifact, manifest, mmrr, refused, run_lines, write_documents, write_queries


def test_the_chain_from_pdfs_to_a_ranking(original, tiny_embedder_path, tmp_path):
    """A document of the sample and a page without text, which the first stage finds by its image."""
    docs, work = tmp_path / "docs", tmp_path / "work"
    write_documents(docs, blank=["", "The thesis is due in June"])
    sample = Path(__file__).parents[3] / "data" / "sample"
    shutil.copy(sample / "laboratory-price-list.pdf", docs)
    mmrr("index", docs, "--work", work, "--embedder", tiny_embedder_path, *INDEX, *FP32)
    precache = ("precache", "--work", work, "--scorer", "kalm", "--scorer-model", original, *FP32)
    made = mmrr(*precache)
    assert " to read; at most " in made.stderr  # the length of a page's text is known only when it is read
    cached = artifact(made)
    assert manifest(cached)["config"]["options"] == {"ratio": 4, "windows": 2, "image": False}
    assert artifact(mmrr(*precache)) == cached
    queries = write_queries(tmp_path / "queries.jsonl", ("q1", "When is the thesis due?"), ("q2", "price of a beaker"))
    rerank = ("rerank", "--queries", queries, "--work", work)
    runs = run_lines(artifact(mmrr(*rerank)) / "run.trec")
    fine = runs["q1"]
    assert dict(runs["q2"]) != pytest.approx(dict(fine), abs=1e-4)
    assert len(fine) > 3
    assert fine[-1][0] == "blank.pdf/0001"
    coarse = artifact(mmrr(*rerank, "-s", "ratio=16"))
    assert dict(run_lines(coarse / "run.trec")["q1"]) != pytest.approx(dict(fine), abs=1e-4)
    mmrr("verify", "--work", work, "--rescore", 4)
    assert "caches whole pages" in refused(*precache, "--keep", "0.5")
    assert "ratio 1 is finer than" in refused(*rerank, "-s", "ratio=1")
    made = mmrr(*precache, "-o", "image=true")
    assert "at most" not in made.stderr
    images = artifact(made)
    seen = run_lines(artifact(mmrr(*rerank)) / "run.trec")["q1"]
    assert images != cached
    assert {page for page, _ in seen} == {page for page, _ in fine}


def test_models_lists_it():
    listed = mmrr("models").stdout
    assert "scorer kalm: KaLM-Reranker-V1 (arXiv 2606.22807)" in listed
    assert "KaLM-Embedding/KaLM-Reranker-V1-Nano" in listed
