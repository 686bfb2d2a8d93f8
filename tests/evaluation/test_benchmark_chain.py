"""``mmrr eval NAME`` from published files to measures: those of trec_eval on the stored run, and what is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mmrr.cli.main import app
from mmrr.evaluation.trec import read_qrels, read_queries, read_run
from tests.evaluation import published_sets as sets
from tests.evaluation.published_sets import WORDS, HubCache, png, shard, table

MEASURES = {"nDCG@5": "ndcg_cut_5", "nDCG@10": "ndcg_cut_10", "R@1": "recall_1", "R@5": "recall_5", "R@10": "recall_10"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return HubCache(tmp_path / "hub")


def call(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["eval", *map(str, arguments)])
    assert result.exit_code == 1
    return result.stderr


def check_against_trec_eval(found: dict[str, Any], qrels: dict[str, dict[str, int]], run: str = "first_stage") -> None:
    """mteb computes its measures by pytrec_eval too."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.5,10", "recall.1,5,10"})
    ranked = {name: {hit.page_id: hit.score for hit in hits} for name, hits in read_run(Path(found["run"])).items()}
    of_query = evaluator.evaluate(ranked)
    for ours, theirs in MEASURES.items():
        mean = sum(of_query[name][theirs] if name in of_query else 0.0 for name in qrels) / len(qrels)
        assert found["metrics"][run][ours] == pytest.approx(mean, abs=1e-6), ours


def test_texts_are_ranked_by_words_and_exported(tmp_path: Path) -> None:
    folder, work, out = sets.beir_jsonl(tmp_path / "mini"), tmp_path / "w", tmp_path / "out"
    found = call(folder, "--work", work, "--first-stage", "words", "--export", out)
    assert (found["queries"], found["pages"], found["measure"], found["partial"]) == (3, 8, "nDCG@10", None)
    assert found["metrics"]["first_stage"]["R@1"] == pytest.approx((1 + 0 + 0.5) / 3)
    check_against_trec_eval(found, read_qrels(out / "qrels.trec"))
    assert read_qrels(out / "qrels.tsv") == read_qrels(out / "qrels.trec")
    assert [query.text for query in read_queries(out / "queries.jsonl")] == list(WORDS[:3])
    assert (out / "ids.csv").read_text().splitlines()[:2] == ["id,page_id", "d0,mini/0001"]
    again = call("--work", work, "--qrels", out / "qrels.tsv", "--measure", "nDCG@10", "--no-rerank")
    assert again["metrics"]["first_stage"]["nDCG@10"] == pytest.approx(found["metrics"]["first_stage"]["nDCG@10"])


def test_a_text_needs_models_of_text(tmp_path: Path) -> None:
    folder = sets.beir_jsonl(tmp_path / "mini")
    said = refused(folder, "--work", tmp_path / "w", "--embedder", "reader-embedder")
    assert "has texts and no images: leave out --embedder" in said
    said = refused(folder, "--work", tmp_path / "w", "--first-stage", "words", "--scorer-model", "reader-reranker")
    assert "has texts and no images: use --scorer kalm or crossencoder" in said
    assert not (tmp_path / "w").exists()
    assert "has its own command: mmrr eval mmdocir --data" not in refused("mmdocir", "--data", "nowhere")


def test_languages_share_their_pages_and_are_measured_apart(cache: HubCache, tmp_path: Path) -> None:
    sets.vidore_v3(cache)
    work, out = tmp_path / "w", tmp_path / "out"
    found = call("vidore-v3/hr", "--work", work, "--first-stage", "words", "--export", out)
    parts = found["metrics"]["configs"]
    assert list(parts) == ["english", "french", "mean"]
    assert parts["mean"]["R@1"] == pytest.approx((parts["english"]["R@1"] + parts["french"]["R@1"]) / 2)
    check_against_trec_eval(found, read_qrels(out / "qrels.tsv"))
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == [
        "images/a_report/0001.png",
        "images/a_report/0002.png",
        "images/b/0001.png",
        "images/b/0002.png",
    ]
    pages = sorted((work / "pages").iterdir())
    call("--json", "vidore-v3/hr", "--config", "french", "--work", work, "--first-stage", "words")
    assert sorted((work / "pages").iterdir()) == pages


def test_fixed_candidates(cache: HubCache, tmp_path: Path) -> None:
    """Those of a run by ids of the set, and those that the set publishes."""
    snapshot = sets.vidore_v3(cache)
    run = tmp_path / "run.trec"
    run.write_text("7 Q0 4 1 9 x\n7 Q0 2 2 8 x\n8 Q0 99 1 9 x\n8 Q0 1 2 8 x\n")
    found = call("vidore-v3/hr", "--work", tmp_path / "w", "--run", run)
    assert found["candidates"] == "--run"
    assert {name: [hit.page_id for hit in hits] for name, hits in read_run(Path(found["run"])).items()} == {
        "7": ["b/0002", "a_report/0002"],
        "8": ["a_report/0001"],
    }
    check_against_trec_eval(found, {"7": {"a_report/0002": 2}, "8": {"b/0001": 2, "a_report/0001": 1}})
    readme = sets.card(dict.fromkeys(("corpus", "queries", "qrels", "top_ranked"), "test"))
    (snapshot / "README.md").unlink()
    ranked = table(**{"query-id": ["7", "8"], "corpus-ids": [["3", "2"], ["1"]]})
    cache.add("vidore/vidore_v3_hr", {"README.md": readme, shard("top_ranked", "test"): ranked})
    found = call("vidore-v3/hr", "--work", tmp_path / "w")
    assert found["candidates"] == "the benchmark"
    assert [hit.page_id for hit in read_run(Path(found["run"]))["7"]] == ["b/0001", "a_report/0002"]


def test_a_document_with_the_id_of_the_query_does_not_count(tmp_path: Path) -> None:
    folder = sets.beir_jsonl(tmp_path / "mini")
    sets.write_lines(folder / "queries.jsonl", [{"_id": "d0", "text": "apple about"}])
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nd0\td1\t1\n")
    own = tmp_path / "own.toml"
    for ignored, recall in (("true", 1.0), ("false", 0.0)):
        own.write_text(f'[own]\nhub = "mini"\nignore-identical = {ignored}\nmeasure = "R@1"\n')
        found = call(own, "--work", tmp_path / f"w{ignored}", "--first-stage", "words")
        assert found["metrics"]["first_stage"]["R@1"] == recall


def test_the_list_names_hub_ids_sizes_licence_and_measure() -> None:
    printed = CliRunner().invoke(app, ["eval", "--list"]).stdout.splitlines()
    line = next(line for line in printed if line.startswith("vidore-v2/esg-reports "))
    assert line.split() == ["vidore-v2/esg-reports", "228", "1,538", "nDCG@5", "mit", "vidore/esg_reports_v2"]
    assert any(entry["name"] == "beir/scifact" for entry in call("--list")["benchmarks"])


@pytest.mark.slow
def test_images_through_vectors_pruning_and_caches(
    cache: HubCache, tmp_path: Path, tiny_path: Path, tiny_embedder_path: Path
) -> None:
    sets.vidore_v2(cache)
    out = tmp_path / "out"
    models = ["--embedder", tiny_embedder_path, "--scorer-model", tiny_path, "--max-tokens", 16, "--dtype", "float32"]
    found = call("vidore-v2/esg-reports", "--config", "english", "--work", tmp_path / "w", *models, "--export", out)
    assert "/rerank/" in found["run"]
    check_against_trec_eval(found, read_qrels(out / "qrels.tsv"), "reranked")
    (manifest,) = (tmp_path / "w" / "precache").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["config"]["options"]["instruction"].startswith("Find a screenshot")
    quick = call("vidore-v2/esg-reports", "--limit", 2, "--work", tmp_path / "w", *models)
    assert quick["partial"].startswith("2 of 6 queries over 4 of 4 documents")
    arguments = ["rerank", "the apple?", "--images", str(out / "images"), "--scorer-model", str(tiny_path), "--json"]
    ranked = CliRunner().invoke(app, arguments)
    assert ranked.exit_code == 0, ranked.stderr
    names = {one["image"].removeprefix(f"{out}/images/") for one in json.loads(ranked.stdout)["queries"][0]["results"]}
    assert names == {f"esg-reports/{n:04d}.png" for n in range(1, 5)}
    assert png(0) != b""


@pytest.mark.slow
def test_texts_through_a_scorer_of_text(tmp_path: Path) -> None:
    folder, work = sets.beir_jsonl(tmp_path / "mini"), tmp_path / "w"
    models = ["--first-stage", "words", "--scorer", "kalm", "--scorer-model", "small-kalm"]
    found = call(folder, "--work", work, *models)
    assert "reranked" in found["metrics"]
    verified = CliRunner().invoke(app, ["verify", "--work", str(work)])
    assert verified.exit_code == 0, verified.stderr
    refused_ = CliRunner().invoke(app, ["view", "mini/0001", "--work", str(work)])
    assert refused_.exit_code == 1
    assert "mini/0001 is a text without an image" in refused_.stderr
