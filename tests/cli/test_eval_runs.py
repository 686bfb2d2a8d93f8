"""``mmrr eval --run A --run B --baseline C``: several runs, their tables, and judgements for other tools."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cli.chain import Chain
from tests.console import manifest, mmrr, refused, run_lines


@pytest.fixture
def turned(made: Chain, tmp_path: Path) -> Path:
    """The run of the chain in the opposite order."""
    path = tmp_path / "turned.trec"
    lines = [
        f"{query_id} Q0 {page_id} 1 {-score!r} x\n"
        for query_id, hits in run_lines(made.root / "run.trec").items()
        for page_id, score in hits
    ]
    path.write_text("".join(lines))
    return path


def test_several_runs_against_a_baseline(made: Chain, turned: Path, tmp_path: Path) -> None:
    newest = json.loads((made.work / "head.json").read_text())["rerank"]
    first = made.work / "retrieve" / manifest(made.work / "rerank" / newest)["inputs"]["retrieve"] / "run.trec"
    queries = tmp_path / "fields.jsonl"
    records = map(json.loads, made.queries.read_text().splitlines())
    queries.write_text("".join(json.dumps({**one, "domain": one["doc_id"]}) + "\n" for one in records))
    command = ("eval", "--work", made.work, "--qrels", made.qrels, "--queries", queries, "--measure", "R@1")
    runs = ("--run", f"rerank/{newest}", "--run", turned, "--baseline", f"first={first}")
    files = [item for name in ("csv", "latex", "markdown") for item in (f"--{name}", tmp_path / f"t.{name}")]
    document = json.loads(mmrr(*command, *runs, *files, "--json").stdout)
    assert list(document["metrics"]) == ["first", f"rerank/{newest}", "turned"]
    compared = document["comparison"]
    assert compared["baseline"] == "first"
    assert compared["unit_of_the_test"] == "query"
    against = compared["runs"]["turned"]["against"]["R@1"]
    assert against["wins"] + against["ties"] + against["losses"] == 3
    assert against["exact"]
    assert compared["runs"]["turned"]["kendall_tau"][f"rerank/{newest}"] == -1
    assert [(group["name"], group["queries"]) for group in compared["groups"]] == [("soil.pdf", 2), ("thesis.pdf", 1)]
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert {row["run"] for row in rows} == {"first", f"rerank/{newest}", "turned"}
    assert {row["field"] for row in rows} == {"", "domain"}
    assert "\\toprule" in (tmp_path / "t.latex").read_text()
    assert "| first |" in (tmp_path / "t.markdown").read_text()
    shown = mmrr(*command, *runs).stdout
    assert "R@1 by domain" in shown
    assert "Against first" in shown
    # Two runs without a baseline: the first is the baseline.
    two = json.loads(mmrr(*command, "--run", first, "--run", turned, "--json").stdout)
    assert list(two["metrics"])[:2] == ["run", "turned"]
    assert two["comparison"]["baseline"] == "run"


def test_judgements_are_exported(made: Chain, tmp_path: Path) -> None:
    command = ("eval", "--work", made.work, "--qrels", made.qrels, "--export", tmp_path / "bench")
    assert "pass them with --queries" in refused(*command)
    mmrr(*command, "--queries", made.queries)
    assert {path.name for path in (tmp_path / "bench").iterdir()} == {"queries.jsonl", "qrels.trec", "qrels.tsv"}
    exported = ("--queries", tmp_path / "bench" / "queries.jsonl", "--qrels", tmp_path / "bench" / "qrels.tsv")
    again = json.loads(mmrr("eval", "--work", made.work, *exported, "--json").stdout)
    whole = json.loads(mmrr("eval", "--work", made.work, "--qrels", made.qrels, "--json").stdout)
    assert again["metrics"] == whole["metrics"]


def test_what_is_refused(made: Chain, turned: Path, tmp_path: Path) -> None:
    command = ("eval", "--work", made.work, "--qrels", made.qrels)
    assert "two runs are called" in refused(*command, "--run", turned, "--run", turned)
    assert "no file and no artifact rerank/0123456789ab" in refused(*command, "--run", "rerank/0123456789ab")
    assert "--csv" in refused(*command, "--csv", tmp_path / "none" / "t.csv")
    other = tmp_path / "other.trec"
    other.write_text("1 Q0 thesis.pdf/0001 1 2.0 other\n")
    found = refused(*command, "--run", turned, "--run", other)
    assert "the other run answers none of the 3 judged queries (run: 1; judged: q1, q2, q3)" in found
    queries = tmp_path / "q.txt"
    queries.write_text("a question\n")
    assert "none of the 3 judged queries is in the file of queries" in refused(*command, "--queries", queries)
