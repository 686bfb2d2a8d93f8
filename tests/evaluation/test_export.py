"""Judgements written for other tools, and the fields of queries that split measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrr.errors import MmrrError
from mmrr.evaluation.export import write_benchmark
from mmrr.evaluation.query_fields import check_judged, read_fields
from mmrr.evaluation.trec import read_qrels, read_queries
from mmrr.types import Query

QUERIES = [Query("q1", "When is\tthe thesis due? é", "thesis.pdf"), Query("q2", '<script>"x"</script>')]
QRELS = {"q1": {"thesis.pdf/0001": 1, "thesis.pdf/0002": 0}, "q2": {"soil.pdf/0001": 2}}


def test_what_is_exported_is_read_again(tmp_path: Path) -> None:
    fields = {"domain": {"q1": "education"}, "language": {"q1": "en", "q2": "fr"}}
    queries, trec, beir = write_benchmark(tmp_path / "new" / "bench", QUERIES, QRELS, fields)
    assert read_queries(queries) == QUERIES
    assert read_qrels(trec) == read_qrels(beir) == QRELS
    assert read_fields(queries) == fields
    assert beir.name == "qrels.tsv"
    assert beir.read_text().splitlines()[:2] == ["query-id\tcorpus-id\tscore", "q1\tthesis.pdf/0001\t1"]
    assert json.loads(queries.read_text().splitlines()[0])["_id"] == "q1"


def test_a_judged_query_without_a_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MmrrError, match="1 of 2 judged queries have no text, such as q2"):
        write_benchmark(tmp_path / "bench", QUERIES[:1], QRELS)
    assert not (tmp_path / "bench").exists()


def test_fields_that_are_no_short_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"query_id": "q1", "text": "a", "domain": ["x"]}\n')
    with pytest.raises(MmrrError, match=r"q.jsonl, line 1: expected a text of 1 to 80 characters under domain"):
        read_fields(path)
    path.write_text('{"query": {"qid": 1, "text": "a"}, "domain": 7}\n')
    assert read_fields(path) == {"domain": {"1": "7"}}
    plain = tmp_path / "q.txt"
    plain.write_text("a question\n")
    assert read_fields(plain) == {}
    with pytest.raises(MmrrError, match=r"none of the 2 judged queries .*\(queries: 1; judged: q1, q2\)"):
        check_judged(plain, read_queries(plain), QRELS)
