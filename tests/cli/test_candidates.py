"""``mmrr rerank`` of candidates from anywhere: runs of other systems, pages without caches, and image files."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmrr.evaluation.trec import read_run
from mmrr.scorers import minireranker
from tests.cli.chain import QUESTION, Chain
from tests.cli.conftest import Prepared
from tests.console import FP32, INDEX, artifact, manifest, misused, mmrr, refused, run_lines, shards, write_queries

TREC = "q1 Q0 thesis.pdf/0002 1 3.5 other\nq1 Q0 soil.pdf/0003 2 2.5 other\nq1 Q0 gone.pdf/0001 3 1.5 other\n"


@pytest.fixture
def bare(prepared: Prepared, tmp_path: Path) -> Prepared:
    """An index without page caches."""
    shutil.copytree(prepared.work, tmp_path / "bare")
    for stage in ("precache", "retrieve", "rerank", "eval"):
        shutil.rmtree(tmp_path / "bare" / stage, ignore_errors=True)
        shutil.rmtree(tmp_path / "bare" / "shards" / stage, ignore_errors=True)
    current = tmp_path / "bare" / "head.json"
    known = json.loads(current.read_text())
    current.write_text(json.dumps({stage: known[stage] for stage in ("pages", "index")}))
    return Prepared(tmp_path / "bare", prepared.docs, prepared.model)


@pytest.fixture
def pages_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pages that the scorer read, one entry for each call."""
    found: list[int] = []
    prepare = minireranker.Scorer.prepare

    def counted(self: Any, pages: Any, kept: Any) -> Any:
        found.append(len(pages))
        return prepare(self, pages, kept)

    monkeypatch.setattr(minireranker.Scorer, "prepare", counted)
    return found


def rerank_with(place: Prepared, *args: object) -> Any:
    return mmrr("rerank", "--work", place.work, "--scorer-model", place.model, *FP32, *args)


# Runs of other systems


def test_a_trec_run_is_reranked_and_its_unknown_ids_are_named(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "first.trec").write_text(TREC)
    queries = write_queries(tmp_path / "q.jsonl", ("q1", QUESTION), ("q2", "never ranked"))
    result = mmrr("rerank", "--run", tmp_path / "first.trec", "--queries", queries, "--work", prepared.work)
    assert "1 id without a page in the index, left out: gone.pdf/0001" in result.stderr
    assert "1 query without candidates in the run: q2" in result.stderr
    assert sorted(page for page, _ in run_lines(artifact(result) / "run.trec")["q1"]) == [
        "soil.pdf/0003",
        "thesis.pdf/0002",
    ]


def test_the_scores_are_those_of_the_same_pages_found_by_the_first_stage(prepared: Prepared, tmp_path: Path) -> None:
    own = json.loads(mmrr("rerank", QUESTION, "--work", prepared.work, "--json").stdout)["queries"][0]["results"]
    (tmp_path / "run.trec").write_text("".join(f"q Q0 {row['page_id']} 1 {-n}.5 x\n" for n, row in enumerate(own)))
    found = mmrr("rerank", QUESTION, "--run", tmp_path / "run.trec", "--work", prepared.work, "--json").stdout
    for row, other in zip(own, json.loads(found)["queries"][0]["results"], strict=True):
        assert (row["page_id"], row["logit"]) == (other["page_id"], other["logit"])


def test_a_rankllm_file_brings_its_queries_and_a_map_its_pages(prepared: Prepared, tmp_path: Path) -> None:
    candidates = [{"docid": 7, "score": 2, "doc": {"text": "x"}}, {"docid": "b", "score": 1.5}]
    (tmp_path / "run.jsonl").write_text(
        json.dumps({"query": {"qid": 1, "text": QUESTION}, "candidates": candidates})
        + "\n"
        + json.dumps({"query": "soil", "qid": "2", "candidates": [{"docid": "b"}]})
    )
    (tmp_path / "map.tsv").write_text("id\tpage_id\n7\tthesis.pdf/0001\nb\tsoil.pdf/0001\n")
    mapped = ("--map", tmp_path / "map.tsv", "--work", prepared.work)
    result = mmrr("rerank", "--run", tmp_path / "run.jsonl", *mapped, "--json")
    queries = json.loads(result.stdout)["queries"]
    assert [(one["query_id"], one["text"]) for one in queries] == [("1", QUESTION), ("2", "soil")]
    assert {row["page_id"]: row["first_stage_score"] for row in queries[0]["results"]} == {
        "thesis.pdf/0001": 2.0,
        "soil.pdf/0001": 1.5,
    }


def test_mteb_predictions_go_in_and_come_out(prepared: Prepared, tmp_path: Path) -> None:
    scores = {"q1": {"thesis.pdf/0001": 0.5, "soil.pdf/0001": 0.75}}
    (tmp_path / "T_predictions.json").write_text(
        json.dumps({"mteb_model_meta": {"model_name": "m", "revision": "r"}, "default": {"test": scores}})
    )
    queries = write_queries(tmp_path / "q.jsonl", ("q1", QUESTION))
    command = ("rerank", "--queries", queries, "--work", prepared.work)
    mmrr(*command, "--run", tmp_path / "T_predictions.json", "--output", tmp_path / "R_predictions.json")
    written = json.loads((tmp_path / "R_predictions.json").read_text())
    assert written["mteb_model_meta"]["model_name"]
    assert set(written["default"]["test"]["q1"]) == {"thesis.pdf/0001", "soil.pdf/0001"}
    again = tmp_path / "again.trec"
    mmrr(*command, "--run", tmp_path / "R_predictions.json", "--output", again)
    assert {hit.page_id: hit.score for hit in read_run(again)["q1"]} == written["default"]["test"]["q1"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.trec",
            "q1 Q0 thesis_1 1 2 x\nq1 Q0 soil_2 2 1 x\n",
            ["none of the 2 ids", "soil_2", "soil.pdf/0001", "--map"],
        ),
        ("a.trec", "other Q0 thesis.pdf/0001 1 2 x\n", ["none of the 1 queries", "other", "q1"]),
        ("a.jsonl", '{"query": {"qid": "q1"}}\n', ["a.jsonl, line 1", "candidates"]),
        ("a.jsonl", '{"query": {"qid": "q1"}, "candidates": [{"docid": "a", "score": "x"}]}\n', ["score of a"]),
        ("a.jsonl", '{"query": {"qid": "q1"}, "candidates": []}\n{"query"\n', ["line 2", "no valid JSON"]),
        ("a.json", '{"en": {"test": {}}, "fr": {"test": {}}}', ["found 2 splits (en/test, fr/test)"]),
        ("a.json", "[1]", ["line 1"]),
        ("a.json", '{"en": {"test": {"q1": 3}}}', ["en/test", "prediction file"]),
    ],
)
def test_a_run_that_does_not_fit_is_refused(
    prepared: Prepared, tmp_path: Path, name: str, text: str, says: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    queries = write_queries(tmp_path / "q.jsonl", ("q1", QUESTION))
    line = refused("rerank", "--run", tmp_path / name, "--queries", queries, "--work", prepared.work)
    for part in says:
        assert part in line


def test_what_a_run_needs_and_excludes(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "a.trec").write_text(TREC)
    (tmp_path / "two.csv").write_text("a,b\na,c\n")
    (tmp_path / "wide.csv").write_text("a,b,c\n")
    run = ("rerank", "--run", tmp_path / "a.trec", "--work", prepared.work)
    assert "add --queries FILE" in refused(*run)
    assert "--run and --channels exclude each other" in refused(*run, "--channels", "words=1")
    assert "a is already mapped to b" in refused(*run, QUESTION, "--map", tmp_path / "two.csv")
    assert "found 3 columns, expected 2" in refused(*run, QUESTION, "--map", tmp_path / "wide.csv")
    assert "--output-format csv is the format of a file" in refused(*run, QUESTION, "--output-format", "csv")
    assert "'xml' is not one of" in misused(*run, QUESTION, "--output-format", "xml")


def test_candidates_cuts_a_run(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "first.trec").write_text(TREC)
    command = ("rerank", QUESTION, "--run", tmp_path / "first.trec", "--work", prepared.work, "--candidates")
    result = mmrr(*command, 1, "--json")
    assert [row["page_id"] for row in json.loads(result.stdout)["queries"][0]["results"]] == ["thesis.pdf/0002"]
    assert "1 candidate beyond the 1 best of each query left out" in result.stderr
    assert "expected 1 or more" in refused(*command, 0)


def test_eval_follows_an_external_run_and_verify_finds_no_problem(chain: Chain) -> None:
    run = chain.root / "external.trec"
    run.write_text("q1 Q0 thesis.pdf/0001 1 2.0 x\nq2 Q0 soil.pdf/0002 1 2.0 x\n")
    made = chain.rerank("--run", run)
    mmrr("eval", "--work", chain.work, "--qrels", chain.qrels)
    first = manifest(chain.work / "retrieve" / manifest(made)["inputs"]["retrieve"])
    assert first["config"]["first_stage"] == "run"
    mmrr("verify", "--work", chain.work)
    mmrr("ls", "--work", chain.work)


# Pages without a cache


def test_only_the_candidates_are_read_and_they_are_kept(
    bare: Prepared, prepared: Prepared, tmp_path: Path, pages_read: list[int]
) -> None:
    (tmp_path / "first.trec").write_text(TREC)
    whole = mmrr("rerank", QUESTION, "--run", tmp_path / "first.trec", "--work", prepared.work, "--json").stdout
    command = (QUESTION, "--run", tmp_path / "first.trec", "--json")
    result = rerank_with(bare, *command)
    assert pages_read == [1, 1]
    assert "2 candidate pages: 2 read now and kept, 0 from caches" in result.stderr
    logits = [row["logit"] for row in json.loads(whole)["queries"][0]["results"]]
    assert [row["logit"] for row in json.loads(result.stdout)["queries"][0]["results"]] == logits
    assert not (bare.work / "precache").exists()
    mmrr("rm", "--work", bare.work)  # of unlisted shards; those of the ranking are listed
    assert len(shards(bare.work, "precache")) == 3
    assert "0 read now and kept, 2 from caches" in rerank_with(bare, "another question", *command[1:]).stderr
    assert pages_read == [1, 1]
    mmrr("verify", "--work", bare.work)


def test_precache_takes_over_single_pages_byte_for_byte(
    bare: Prepared, prepared: Prepared, tmp_path: Path, pages_read: list[int]
) -> None:
    (tmp_path / "first.trec").write_text(TREC)
    rerank_with(bare, QUESTION, "--run", tmp_path / "first.trec")
    result = mmrr("precache", "--work", bare.work, "--scorer-model", bare.model, *FP32)
    assert "5 pages, 3 to read" in result.stderr
    assert sum(pages_read) == 5
    for key in shards(prepared.work, "precache"):
        for path in (prepared.work / "shards" / "precache" / key).iterdir():
            assert (bare.work / "shards" / "precache" / key / path.name).read_bytes() == path.read_bytes()


def test_a_damaged_single_page_is_read_again(bare: Prepared, tmp_path: Path, pages_read: list[int]) -> None:
    (tmp_path / "first.trec").write_text(TREC)
    command = (QUESTION, "--run", tmp_path / "first.trec")
    rerank_with(bare, *command)
    for path in (bare.work / "shards" / "precache").glob("*/states.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    mmrr("precache", "--work", bare.work, "--scorer-model", bare.model, *FP32, code=0)
    assert sum(pages_read) == 7


def test_a_search_reads_its_candidates_only(bare: Prepared, pages_read: list[int]) -> None:
    line = refused("rerank", QUESTION, "--work", bare.work)
    assert line.endswith(f"run: mmrr precache --work {bare.work}; or name --scorer-model to read the candidates alone")
    rerank_with(bare, QUESTION, "--candidates", 1)
    assert pages_read == [1]


def test_the_current_caches_of_the_same_scorer_are_used(prepared: Prepared, pages_read: list[int]) -> None:
    named = rerank_with(prepared, "moisture of soil", "--json").stdout
    assert json.loads(named) == json.loads(mmrr("rerank", "moisture of soil", "--work", prepared.work, "--json").stdout)
    assert pages_read == []
    assert "name --scorer-model too" in refused("rerank", QUESTION, "--codec", "int8", "--work", prepared.work)


def test_a_default_scorer_reads_no_page_where_there_are_caches(
    prepared: Prepared, bare: Prepared, pages_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMRR_SCORER_MODEL", str(bare.model))
    mmrr("rerank", QUESTION, "--work", prepared.work)
    assert pages_read == []
    mmrr("rerank", QUESTION, "--work", bare.work, "--candidates", 1)
    assert pages_read == [1]


def test_with_an_embedder_the_candidates_are_pruned_as_precache_prunes(chain: Chain) -> None:
    command = ("rerank", QUESTION, "--work", chain.work, "--json")
    whole = json.loads(mmrr(*command).stdout)["queries"]
    (cached,) = (chain.work / "precache").glob("*")
    assert manifest(cached)["content"]["keep"] == 0.5
    mmrr("rm", f"precache/{cached.name}", "--cascade", "--work", chain.work)
    assert json.loads(mmrr(*command, "--scorer-model", chain.reranker, *FP32).stdout)["queries"] == whole


def test_dense_builds_no_caches(bare: Prepared, pages_read: list[int]) -> None:
    document = json.loads(rerank_with(bare, QUESTION, "--dense", "--candidates", 2, "--json").stdout)
    assert document["queries"][0]["results"]
    assert pages_read == []
    assert shards(bare.work, "precache") == set()
    mmrr("verify", "--work", bare.work)


def test_rm_of_a_document_removes_the_caches_of_its_single_pages(bare: Prepared, tmp_path: Path) -> None:
    (tmp_path / "first.trec").write_text("q Q0 thesis.pdf/0002 1 3.5 other\n")
    rerank_with(bare, QUESTION, "--run", tmp_path / "first.trec")
    assert len(shards(bare.work, "precache")) == 2
    mmrr("rm", "--document", "thesis", "--work", bare.work)
    assert shards(bare.work, "precache") == set()


def test_rendered_pages_without_an_index_are_enough(prepared: Prepared, tmp_path: Path) -> None:
    mmrr("render", prepared.docs, "--work", tmp_path / "w", *INDEX)
    (tmp_path / "first.trec").write_text(TREC)
    place = Prepared(tmp_path / "w", prepared.docs, prepared.model)
    found = json.loads(rerank_with(place, QUESTION, "--run", tmp_path / "first.trec", "--json").stdout)
    assert len(found["queries"][0]["results"]) == 2


# Output


def test_every_format_has_the_same_ranking(prepared: Prepared, tmp_path: Path) -> None:
    queries = write_queries(tmp_path / "q.jsonl", ("q1", QUESTION), ("q2", "rainfall by month"))
    written = {}
    for name in ("run.trec", "run.jsonl", "run_predictions.json", "run.csv", "run.json"):
        command = ("rerank", "--queries", queries, "--work", prepared.work)
        mmrr(*command, "--output", tmp_path / name, "--top-k", 1)
        written[name] = (tmp_path / name).read_text("utf-8")
    run = {query_id: [hit.page_id for hit in hits] for query_id, hits in read_run(tmp_path / "run.trec").items()}
    assert {query_id: len(pages) for query_id, pages in run.items()} == {"q1": 2, "q2": 1}  # share a word
    lines = [json.loads(line) for line in written["run.jsonl"].splitlines()]
    assert {line["query"]["qid"]: [one["docid"] for one in line["candidates"]] for line in lines} == run
    assert lines[0]["query"]["text"] == QUESTION
    best = lines[0]["candidates"][0]["doc"]
    assert Path(best["document"]) == prepared.docs / best["title"]
    assert Path(best["image"]).is_file()
    assert best["text"]
    mteb = json.loads(written["run_predictions.json"])["default"]["test"]
    assert {query_id: list(pages) for query_id, pages in mteb.items()} == run
    rows = list(csv.DictReader(written["run.csv"].splitlines()))
    assert [row["page_id"] for row in rows] == [*run["q1"], *run["q2"]]
    document = json.loads(written["run.json"])["queries"]
    assert {one["query_id"]: [row["page_id"] for row in one["results"]] for one in document} == run
    for row, other in zip(document[0]["results"], rows, strict=False):
        assert {name: str(value) for name, value in row.items()} == {name: other[name] for name in row}
        assert list(row) == [
            *("rank", "page_id", "doc_id", "document", "page", "label", "image", "score", "logit"),
            *("first_stage_rank", "first_stage_score", "snippet"),
        ]


def test_output_format_wins_over_the_ending(prepared: Prepared, tmp_path: Path) -> None:
    mmrr("rerank", QUESTION, "--work", prepared.work, "--output", tmp_path / "a.txt", "--output-format", "csv")
    assert (tmp_path / "a.txt").read_text().startswith("query_id,query,rank,page_id,")


def test_results_are_narrowed_and_the_ranking_is_kept(chain: Chain, tmp_path: Path) -> None:
    shutil.copy(chain.docs / "soil.pdf", chain.docs / "copy.pdf")
    chain.index()
    chain.precache()
    command = ("rerank", QUESTION, "--work", chain.work, "--json")

    def rows(*options: object) -> list[dict[str, Any]]:
        return list(json.loads(mmrr(*command, *options).stdout)["queries"][0]["results"])

    whole = rows()
    assert len(whole) == 8
    one = rows("--one-per-document")
    assert sorted(row["doc_id"] for row in one) == ["copy.pdf", "soil.pdf", "thesis.pdf"]
    for row in one:
        assert row["score"] == max(other["score"] for other in whole if other["doc_id"] == row["doc_id"])
    folded = rows("--fold-duplicates", "--output", tmp_path / "folded.trec")
    assert len(folded) == len(read_run(tmp_path / "folded.trec")["query"]) == 5
    assert [row["rank"] for row in folded] == [1, 2, 3, 4, 5]
    middle = sorted(row["score"] for row in whole)[4]
    assert {row["page_id"] for row in rows("--threshold", middle)} == {
        row["page_id"] for row in whole if row["score"] >= middle
    }
    assert "expected a score from 0 to 1" in refused(*command[:-1], "--threshold", 1.5)
    assert "leave out --fuse" in refused(*command[:-1], "--threshold", 0.5, "--fuse", 1)


# Images


def test_images_are_ranked_without_a_workspace(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "scans" / "more"
    folder.mkdir(parents=True)
    for n, image in enumerate(sorted((prepared.work / "shards" / "pages").glob("*/*.png"))[:3]):
        shutil.copy(image, folder / f"{n}.png")
    (folder / "notes.txt").write_text("no image")
    command = ("rerank", QUESTION, "--images", "scans", "--scorer-model", prepared.model, *FP32)
    result = mmrr(*command, "--json", "--output", "out.csv")
    rows = json.loads(result.stdout)["queries"][0]["results"]
    assert sorted(row["image"] for row in rows) == [f"scans/more/{n}.png" for n in range(3)]
    assert [row["logit"] for row in rows] == sorted((row["logit"] for row in rows), reverse=True)
    assert "1 file that is no image, left out: scans/more/notes.txt" in result.stderr
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4
    assert not (tmp_path / "mmrr-work").exists()
    shown = mmrr(*command, "--top-k", 1).stdout
    assert rows[0]["image"] in shown
    assert rows[1]["image"] not in shown


def test_images_that_do_not_fit_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    model = ("--scorer-model", prepared.model)
    assert "found no image in this folder" in refused("rerank", QUESTION, "--images", tmp_path / "empty", *model)
    assert "found no such file" in refused("rerank", QUESTION, "--images", tmp_path / "none.png", *model)
    assert "text.png cannot be read" in refused("rerank", QUESTION, "--images", tmp_path / "text.png", *model)
    assert "no reranker given" in refused("rerank", QUESTION, "--images", tmp_path / "text.png")
    line = refused("rerank", QUESTION, "--images", tmp_path, "--run", tmp_path / "text.png", *model)
    assert "--images and --run exclude each other" in line
    line = refused("rerank", QUESTION, "--images", tmp_path, "--fold-duplicates", *model)
    assert "--images and --fold-duplicates exclude each other" in line
    output = ("--output", tmp_path / "a.trec")
    assert "expected csv or json" in refused("rerank", QUESTION, "--images", tmp_path, *model, *output)


# The guide


def test_the_commands_of_the_guide_run(
    copy: Prepared, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy.work.rename("W")
    write_queries(Path("queries.jsonl"), ("q1", QUESTION))
    for name in ("first.trec", "one.trec"):
        Path(name).write_text(TREC)
    Path("first.jsonl").write_text(
        json.dumps({"query": {"qid": "q1", "text": QUESTION}, "candidates": [{"docid": "soil.pdf/0001", "score": 1}]})
    )
    Path("other.trec").write_text("q1 Q0 77 1 2 x\n")
    Path("ids.csv").write_text("77,soil.pdf/0001\n")
    Path("about.csv").write_text("document,year,kind\nsoil,2021,report\n")
    Path("scans").mkdir()
    shutil.copy(next((prepared.work / "shards" / "pages").glob("*/*.png")), "scans/page.png")
    shutil.copy("scans/page.png", "table.png")
    text = (Path(__file__).parents[2] / "docs" / "any-candidates.md").read_text("utf-8")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    mmrr ")]
    assert len(commands) == 11
    stand_ins = {"reader-reranker": str(prepared.model), "handbook": "thesis", "reports/*": "soil*"}
    for command in commands:
        mmrr(*(stand_ins.get(word, word) for word in command[1:]))
    assert Path("reranked.trec").is_file()
    assert Path("reranked.jsonl").is_file()
