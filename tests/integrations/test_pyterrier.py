"""The PyTerrier transformers, in PyTerrier pipelines. No test starts Java."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mmrr
from tests.console import write_queries
from tests.integrations.conftest import QUERY

pytestmark = pytest.mark.framework("pyterrier")


def test_the_retriever_finds_what_the_workspace_finds(workspace: mmrr.Workspace, best: list[mmrr.Hit]):
    import pyterrier as pt

    from mmrr.integrations.pyterrier import PageRetriever

    queries = pt.new.queries([QUERY, "soil"], qid=["1", "2"])
    found = PageRetriever(workspace, 3, with_text=True)(queries)
    one = found[found.qid == "1"]
    assert list(zip(one.docno, one.score, one["rank"], one.text, strict=True)) == [
        (hit.page_id, pytest.approx(hit.score, abs=1e-4), hit.rank - 1, hit.text()) for hit in best
    ]
    assert set(found["query"]) == {QUERY, "soil"}
    assert not pt.java.started()


def test_the_reranker_in_a_pipeline(
    workspace: mmrr.Workspace, reranker: mmrr.Reranker, ranked: list[tuple[str, float]]
):
    from mmrr.integrations.pyterrier import PageReranker, PageRetriever

    pages = PageRetriever(workspace, document="soil.pdf")
    found = (pages >> PageReranker(reranker, workspace)).search(QUERY).sort_values("rank")
    expected = [page_id for page_id, _ in ranked if page_id.startswith("soil")]
    assert list(found.docno) == expected
    assert list(found["rank"]) == [0, 1, 2]
    logits = reranker.predict([(QUERY, workspace.image(page_id)) for page_id in expected], logits=True)
    assert list(found.score) == pytest.approx(list(logits), abs=1e-5)
    assert len(PageReranker(reranker, workspace)(found.iloc[:0])) == 0


def test_the_reranker_takes_a_column_of_images(reranker: mmrr.Reranker, images: list[Path]):
    import pandas as pd
    import pyterrier as pt

    from mmrr.integrations.pyterrier import PageReranker

    rows = [{"qid": "1", "query": QUERY, "docno": image.name, "image": str(image)} for image in images]
    found = PageReranker(reranker)(pd.DataFrame(rows)).sort_values("rank")
    assert list(found.docno) == [images[one["corpus_id"]].name for one in reranker.rank(QUERY, images)]
    with pytest.raises(pt.validate.InputValidationError):
        PageReranker(reranker)(pd.DataFrame([{"qid": "1", "docno": "a"}]))


def test_the_example(example: Callable[..., list[str]], work: Path, tiny_path: Path, tmp_path: Path):
    queries = write_queries(tmp_path / "queries.jsonl", ("q1", QUERY), ("q2", "Rainfall table by month"))
    (tmp_path / "qrels.trec").write_text("q1 0 thesis.pdf/0001 1\nq2 0 soil.pdf/0002 1\n")
    shown = example("pyterrier_pages.py", work, tiny_path, queries, tmp_path / "qrels.trec")
    assert [line.split()[1] for line in shown[1:]] == ["words", "reranked"]
    assert shown[1].split()[2] == "1.0"
