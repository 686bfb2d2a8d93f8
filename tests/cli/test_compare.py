"""``mmrr compare``: several scorers on the same candidates, in one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrr.cli.context import scorings
from mmrr.errors import MmrrError
from mmrr.modeling import checkpoints
from tests.console import FP32, INDEX, SOIL, THESIS, mmrr, refused, write_documents, write_queries


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_embedder_path: Path) -> Path:
    root = tmp_path_factory.mktemp("compare")
    write_documents(root / "docs", thesis=THESIS, soil=SOIL)
    write_queries(root / "queries.jsonl", ("q1", "When is the thesis due?", "thesis.pdf"))
    (root / "qrels.trec").write_text("q1 0 thesis.pdf/0002 1\n")
    mmrr("index", root / "docs", "--work", root / "work", "--embedder", tiny_embedder_path, *INDEX, *FP32)
    return root / "work"


def command(work: Path, *more: object) -> tuple[object, ...]:
    files = ("--queries", work.parent / "queries.jsonl", "--qrels", work.parent / "qrels.trec")
    return ("compare", "--work", work, *files, *FP32, *more)


@pytest.mark.slow
def test_every_scorer_ranks_the_same_candidates_with_the_numbers_of_the_single_commands(
    work: Path, tiny_path: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "compare.png"
    scorers = f"minireranker={tiny_path}+codec=int8+band=1:4,ziprerank={tiny_path}"
    given = command(work, "--scorers", scorers, "--output", picture, "--json")
    first, mini, zipped = (found := json.loads(mmrr(*given).stdout))["rows"]
    assert found["queries"] == 1
    assert first["name"] == "first stage"
    assert first["page_bytes"] == 0
    assert mini["name"] == f"minireranker ({tiny_path}) codec=int8 band=1:4"
    assert zipped["name"] == f"ziprerank ({tiny_path})"
    for row in (mini, zipped):
        assert row["page_bytes"] > 0
        assert row["pages_per_second"] > 0
        assert row["query_ms"] > 0
        assert row["metrics"].keys() == first["metrics"].keys()
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = json.loads(mmrr(*given).stdout)["rows"]
    assert [row["metrics"] for row in again] == [row["metrics"] for row in (first, mini, zipped)]

    mmrr("precache", "--work", work, "--scorer-model", tiny_path, "--codec", "int8", "--band", "1:4", *FP32)
    mmrr("rerank", "--work", work, "--queries", work.parent / "queries.jsonl")
    judged = json.loads(mmrr("eval", "--work", work, "--qrels", work.parent / "qrels.trec", "--json").stdout)["metrics"]
    assert mini["metrics"]["nDCG@5"] == judged["reranked"]["nDCG@5"]
    assert first["metrics"]["nDCG@5"] == judged["first_stage"]["nDCG@5"]


def test_a_table_for_people_and_a_report(work: Path, tiny_path: Path, tmp_path: Path) -> None:
    files = ("--report", tmp_path / "report.html", "--csv", tmp_path / "t.csv")
    shown = mmrr(*command(work, "--scorers", f"minireranker={tiny_path}", *files)).stdout
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "nDCG@5 over bytes a page" not in page  # the first measure of mmrr compare is R@1
    assert "R@1 over bytes a page" in page
    assert "When is the thesis due?" in page
    assert f"minireranker ({tiny_path})" in (tmp_path / "t.csv").read_text()
    assert "first stage" in shown
    assert "nDCG@5" in shown
    assert "ms per query" in shown


def test_judged_queries_that_are_not_in_the_file_of_queries_are_counted(
    work: Path, tiny_path: Path, tmp_path: Path
) -> None:
    qrels = tmp_path / "qrels.trec"
    qrels.write_text("q1 0 thesis.pdf/0002 1\nq2 0 soil.pdf/0001 1\nq3 0 soil.pdf/0001 1\n")
    found = mmrr(*command(work, "--scorers", f"minireranker={tiny_path}", "--qrels", qrels, "--json"))
    assert "2 of 3 judged queries are not in the run; they count as 0: q2, q3" in found.stderr.splitlines()
    assert json.loads(found.stdout)["queries_not_in_the_run"] == ["q2", "q3"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--scorers", "nobody"), "no scorer family 'nobody'"),
        (("--scorers", "minireranker+int8"), "expected KEY=VALUE"),
        (("--scorers", "minireranker+colour=red"), "unknown option colour"),
        (("--data", "somewhere"), "leave out --queries and --qrels"),
    ],
)
def test_what_cannot_be_compared_is_refused(work: Path, more: tuple[str, ...], expected: str) -> None:
    assert expected in refused(*command(work, *more))


def test_questions_must_come_from_somewhere(work: Path) -> None:
    assert "pass --queries and --qrels, or --data" in refused("compare", "--work", work)


def test_a_family_without_a_built_in_model_needs_one(monkeypatch):
    monkeypatch.setattr(checkpoints, "built_in", list)
    with pytest.raises(MmrrError, match="mmrr includes no model of kalm; pass kalm=MODEL"):
        scorings("kalm")
