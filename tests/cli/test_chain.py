"""What each command prints and writes, on tiny random checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.cli.chain import QUESTION, Chain
from tests.console import (
    FP32,
    INDEX,
    SOIL,
    THESIS,
    artifact,
    manifest,
    mmrr,
    run_lines,
    write_documents,
)


def test_index_reports_documents_and_prints_its_artifact(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    result = mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    assert artifact(result).parent == tmp_path / "w" / "index"
    assert result.stdout.count("\n") == 1
    assert "5 pages of 2 documents (2 ok)" in result.stderr
    assert "BM25" in result.stderr  # the choice is reported


def test_precache_says_what_it_will_write_before_it_does(chain: Chain) -> None:
    result = mmrr("precache", "--work", chain.work, "--scorer-model", chain.reranker, *FP32, "--keep", "0.25")
    (plan,) = [line for line in result.stderr.splitlines() if "a page" in line]
    assert plan.startswith("5 pages, 5 to read; ")
    assert plan.endswith(" free")
    assert artifact(result).parent == chain.work / "precache"
    assert manifest(artifact(result))["content"]["keep"] == 0.25


def test_a_query_on_the_command_line_gives_a_table_and_the_artifact(made: Chain) -> None:
    result = mmrr("rerank", QUESTION, "--work", made.work, "--top-k", 2)
    *table, last = result.stdout.splitlines()
    assert Path(last).parent == made.work / "rerank"
    assert table[0].strip() == QUESTION
    header = [cell.strip() for cell in table[2].strip("┃").split("┃")]
    assert header == ["rank", "document", "page", "score", "logit", "first stage"]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table if line.startswith("│")]
    assert [row[0] for row in rows] == ["1", "2"]
    run = run_lines(Path(last) / "run.trec")["query"]
    for row, (page_id, logit) in zip(rows, run, strict=False):
        doc_id, number = page_id.split("/")
        assert row[1:3] == [doc_id, str(int(number))]
        assert float(row[3]) == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-4)
        assert float(row[4]) == pytest.approx(logit, abs=1e-3)


def test_a_file_of_queries_gives_a_trec_run(made: Chain) -> None:
    result = mmrr("rerank", "--queries", made.queries, "--work", made.work)
    assert result.stdout.endswith(f"\n{artifact(result)}\n")
    assert QUESTION in result.stdout
    written = (made.root / "run.trec").read_bytes()
    assert written == (artifact(result) / "run.trec").read_bytes()
    run = run_lines(made.root / "run.trec")
    assert list(run) == ["q1", "q2", "q3"]
    for hits in run.values():
        assert hits == sorted(hits, key=lambda hit: (-hit[1], hit[0]))
        assert len(hits) == 5


def test_json_is_one_document(made: Chain, tmp_path: Path) -> None:
    work = ("--work", made.work)
    for command in (
        ["rerank", QUESTION, *work],
        ["rerank", "--queries", made.queries, *work],
        ["retrieve", QUESTION, *work],
        ["eval", "--qrels", made.qrels, *work],
        ["ls", *work],
        ["ls", "--documents", *work],
        ["models"],
        ["doctor", *work],
    ):
        document = json.loads(mmrr(*command, "--json").stdout)
        assert isinstance(document, dict), command
        if "artifact" in document:
            assert Path(document["artifact"]).is_dir(), command


def test_json_of_a_ranking(made: Chain) -> None:
    document = json.loads(mmrr("rerank", "--queries", made.queries, "--work", made.work, "--json").stdout)
    run = run_lines(Path(document["artifact"]) / "run.trec")
    assert [answer["query_id"] for answer in document["queries"]] == ["q1", "q2", "q3"]
    for answer in document["queries"]:
        hits = [(row["page_id"], row["logit"]) for row in answer["results"]]
        assert hits == run[answer["query_id"]]
        assert sorted(row["first_stage_rank"] for row in answer["results"]) == [1, 2, 3, 4, 5]
        assert all(0 < row["score"] < 1 for row in answer["results"])


def test_ls_shows_how_everything_was_made(made: Chain) -> None:
    listed = json.loads(mmrr("ls", "--work", made.work, "--json").stdout)["artifacts"]
    stages = [row["name"].split("/")[0] for row in listed]
    assert set(stages) == {"pages", "embed", "index", "retrieve", "prune", "precache", "rerank", "eval"}
    for row in listed:
        assert (made.work / row["name"] / "manifest.json").exists()
        assert row["bytes"] > 0
    by_stage = {row["name"].split("/")[0]: row for row in listed if row["current"]}
    assert "keep 0.5" in by_stage["prune"]["how"]
    assert "float32" in by_stage["precache"]["how"]
    assert by_stage["index"]["made_of"][0] == by_stage["pages"]["name"]
    table = mmrr("ls", "--work", made.work).stdout
    assert all(row["name"] in table for row in listed)


def test_models_and_doctor() -> None:
    families = json.loads(mmrr("models", "--json").stdout)["families"]
    assert {(row["kind"], row["family"]) for row in families} >= {
        ("embedder", "qwen3_vl"),
        ("scorer", "minireranker"),
    }
    assert "band" in mmrr("models").stdout
    facts = json.loads(mmrr("doctor", "--json").stdout)
    assert "offline" in facts["Hub"]
    assert {"device", "renderer", "free disk", "number format"} <= set(facts)


# Names and terminals


def test_markup_in_names_and_queries_is_text(chain: Chain, tmp_path: Path) -> None:
    shutil.copy(chain.docs / "thesis.pdf", chain.docs / "[bold]red[dim].pdf")
    mmrr("index", chain.docs, "--work", tmp_path / "w", *INDEX)
    query = "[red]thesis[/red] [/] :smile: \\[due]"
    shown = mmrr("retrieve", query, "--work", tmp_path / "w").stdout
    assert query in shown
    assert "[bold]red[dim].pdf" in shown
    assert "[bold]red[dim].pdf" in mmrr("ls", "--documents", "--work", tmp_path / "w").stdout


def test_what_is_piped_has_no_colours_and_full_lines(made: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    result = mmrr("rerank", QUESTION, "--work", made.work)
    assert "\x1b[" not in result.stdout + result.stderr
    assert "thesis.pdf" in result.stdout
    assert result.stdout.splitlines()[-1] == str(artifact(result))
