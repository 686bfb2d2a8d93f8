"""``mmrr distill`` turns a teacher's run into lists and pairs that the trainings read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mmrr.training.data.pairs import JudgedPages, read_pairs
from mmrr.training.data.ranked_lists import read_lists
from tests.cli.conftest import Prepared
from tests.console import INDEX, SOIL, THESIS, mmrr, refused, write_documents, write_queries

RUN = "q1 Q0 thesis.pdf/0002 1 2.0 t\nq1 Q0 soil.pdf/0001 2 -1.0 t\nq1 Q0 soil.pdf/0002 3 -3.0 t\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace without caches, two queries, and a run that ranks pages for the first one."""
    root = tmp_path_factory.mktemp("distill")
    write_documents(root / "docs", thesis=THESIS, soil=SOIL)
    write_queries(root / "queries.jsonl", ("q1", "When is the thesis due?", "thesis.pdf"), ("q2", "rain", "soil.pdf"))
    (root / "run.trec").write_text(RUN)
    mmrr("index", root / "docs", "--work", root / "work", *INDEX)
    return root


def command(root: Path, out: Path, run: str = "run.trec") -> tuple[object, ...]:
    queries = root / "queries.jsonl"
    return ("distill", "--work", root / "work", "--queries", queries, "--run", root / run, "--output", out)


def test_a_run_becomes_lists_and_pairs_that_trainings_read(made: Path, tmp_path: Path) -> None:
    result = mmrr(*command(made, tmp_path / "d"), "--length", 2, "--temperature", 2, "--negatives", 1, "--json")
    answer = json.loads(result.stdout)
    assert (answer["queries"], answer["pages"], answer["queries_left_out"]) == (1, 3, ["q2"])
    (one,) = read_lists(Path(answer["lists"]))
    assert (one.order, one.relevant) == ((0, 1, 2), ())
    pairs = read_pairs(Path(answer["pairs"]))
    assert [pair.image for pair in pairs] == list(one.candidates)
    expected = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(0.5)), 0]
    assert [pair.target for pair in pairs] == pytest.approx(expected)
    assert [pair.relevant for pair in pairs] == [True, False, False]
    targets = [target for page in JudgedPages(pairs, 0, 3, 8)(0) for target in page.targets]
    assert sorted(targets) == sorted(pair.target for pair in pairs)


def test_the_scorer_of_the_workspace_is_the_teacher(copy: Prepared, tmp_path: Path) -> None:
    """Without --run, the lists have the order and the scores of ``mmrr rerank``."""
    queries = write_queries(tmp_path / "q.jsonl", ("q1", "When is the thesis due?", "thesis.pdf"))
    run = tmp_path / "teacher.trec"
    mmrr("rerank", "--work", copy.work, "--queries", queries, "--candidates", 3, "--output", run)
    shared = ("distill", "--work", copy.work, "--queries", queries, "--length", 3)
    mmrr(*shared, "--output", tmp_path / "a")
    mmrr(*shared, "--output", tmp_path / "b", "--run", run)
    first, second = (read_pairs(tmp_path / name / "pairs.jsonl") for name in "ab")
    assert [pair.image.name for pair in first] == [pair.image.name for pair in second]
    assert [pair.target for pair in first] == pytest.approx([pair.target for pair in second], abs=1e-5)
    assert len(first) == len(run.read_text("utf-8").splitlines()) > 1


def test_scores_without_a_zero_are_relative_to_the_best_page(made: Path, tmp_path: Path) -> None:
    mmrr(*command(made, tmp_path / "d"), "--softmax", "--temperature", 3)
    pairs = read_pairs(tmp_path / "d" / "pairs.jsonl")
    assert [pair.target for pair in pairs] == pytest.approx([1, math.exp(-1), math.exp(-5 / 3)])


def test_a_run_of_other_pages_is_refused(made: Path, tmp_path: Path) -> None:
    (made / "other.trec").write_text("q1 Q0 other.pdf/0001 1 2.0 t\n")
    assert "page other.pdf/0001 of the run is not in the index" in refused(*command(made, tmp_path, "other.trec"))
    assert "expected a number above 0" in refused(*command(made, tmp_path), "--temperature", 0)
