"""``mmrr eval mmdocir`` with the published files and with PDFs: the printed measures are those of the stored run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrr.cli.main import app
from mmrr.evaluation.query_fields import read_fields
from mmrr.evaluation.trec import read_qrels, read_run
from tests.evaluation.mmdocir_files import write_annotations
from tests.pdfs import make_pdf


def evaluate(data: Path, work: Path, *options: str) -> dict:
    machine = ["--dtype", "float32", "--renderer", "pdfium"]  # the same numbers and pixels on every machine
    arguments = ["eval", "mmdocir", "--data", str(data), "--work", str(work), "--max-tokens", "16", "--json", *machine]
    result = CliRunner().invoke(app, [*arguments, *options])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def recalls_of_run(document: dict) -> dict[str, float]:
    """Micro recall at 1, 3, 5, computed here from the run file and the questions in the output."""
    run = read_run(Path(document["run"]))
    result = {}
    for k in (1, 3, 5):
        values = []
        for query_id, question in document["queries"].items():
            top = {hit.page_id for hit in run.get(query_id, [])[:k]}
            evidence = {f"{question['doc']}/{page + 1:04d}" for page in question["page_id"]}
            values.append(len(top & evidence) / len(evidence) if evidence else 0.0)
        result[f"recall@{k}"] = 100 * sum(values) / len(values)
    return result


def test_published_files_with_the_first_stage_alone(published, tmp_path):
    document = evaluate(
        published, tmp_path / "w", "--first-stage", "bm25", "--layouts", "--export", str(tmp_path / "bench")
    )
    assert document["queries"]["b_report.pdf#0"] == {
        "doc": "b_report.pdf",
        "index": 0,
        "page_id": [0, 2],
        "domain": "Financial report",
    }
    metrics = document["metrics"]
    assert {name: value["micro"] for name, value in metrics["page"].items()} == pytest.approx(recalls_of_run(document))
    assert metrics["page"]["recall@3"]["micro"] == 50.0  # all pages of one question; the other has no evidence
    assert set(metrics["layout"]) == {"recall@1", "recall@5", "recall@10"}
    assert metrics["layout"]["recall@10"]["micro"] > 0
    exported = tmp_path / "bench"
    assert read_fields(exported / "queries.jsonl")["domain"]["b_report.pdf#0"] == "Financial report"
    assert read_qrels(exported / "qrels.tsv") == read_qrels(exported / "qrels.trec")
    assert list(read_qrels(exported / "qrels.tsv")["b_report.pdf#0"]) == ["b_report.pdf/0001", "b_report.pdf/0003"]


def test_published_files_through_caches(published, tmp_path, tiny_path, tiny_embedder_path):
    options = ["--embedder", str(tiny_embedder_path), "--scorer-model", str(tiny_path), "--layouts"]
    document = evaluate(published, tmp_path / "w", *options)
    assert "/rerank/" in document["run"]
    assert {name: v["micro"] for name, v in document["metrics"]["page"].items()} == pytest.approx(
        recalls_of_run(document)
    )
    assert all(
        page_id.rsplit("/", 1)[0] == "b_report.pdf"
        for hits in read_run(Path(document["run"])).values()
        for page_id, _ in hits
    )
    assert evaluate(published, tmp_path / "w", *options) == document


def test_options_of_the_embedder_reach_it(published, tmp_path, tiny_embedder_path):
    evaluate(published, tmp_path / "w", "--embedder", str(tiny_embedder_path), "--embed-option", "dim=16")
    (manifest,) = (tmp_path / "w" / "embed").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["config"]["options"]["dim"] == 16


def test_a_named_embedder_prunes_even_where_text_finds_the_pages(published, tmp_path, tiny_path, tiny_embedder_path):
    def cached(name: str, *options: str) -> set[str]:
        work = tmp_path / name
        evaluate(published, work, "--first-stage", "bm25", "--scorer-model", str(tiny_path), *options)
        (manifest,) = (work / "precache").glob("*/manifest.json")
        return set(json.loads(manifest.read_text())["inputs"])

    embedder = ("--embedder", str(tiny_embedder_path))
    assert "prune" in cached("named", *embedder)
    assert "prune" not in cached("whole", *embedder, "--keep", "1")
    assert "prune" not in cached("none")


def test_pdfs_search_inside_the_questions_own_document(tmp_path):
    data = tmp_path / "data"
    question = {"Q": "purple zebra", "A": "-", "type": "['Text']", "page_id": [1], "layout_mapping": []}
    names = ["one.pdf", "two.pdf"]
    write_annotations(
        data,
        [
            {
                "doc_name": name,
                "domain": f"D{i}",
                "page_indices": [2 * i, 2 * i + 1],
                "layout_indices": [0, 0],
                "questions": [question],
            }
            for i, name in enumerate(names)
        ],
        "annotations.jsonl",
    )
    (data / "one.pdf").write_bytes(make_pdf(["yellow lion", "purple zebra and lion"]))
    (data / "two.pdf").write_bytes(make_pdf(["purple zebra purple zebra", "nothing at all"]))
    document = evaluate(data, tmp_path / "w", "--first-stage", "bm25")
    run = read_run(Path(document["run"]))
    assert [hit.page_id for hit in run["one.pdf#0"]] == ["one.pdf/0002", "one.pdf/0001"]
    assert [hit.page_id for hit in run["two.pdf#0"]] == ["two.pdf/0001", "two.pdf/0002"]
    first = document["metrics"]["page"]["recall@1"]
    assert (first["micro"], first["macro"], first["domains"]) == (50.0, 50.0, {"D0": 100.0, "D1": 0.0})
    assert document["metrics"]["layout"] is None


def test_corrected_evidence_gives_a_new_evaluation(tmp_path):
    """The key of an evaluation contains the evidence: new evidence for the same question ids gives new numbers."""
    data = tmp_path / "data"
    for evidence, found in ((0, 0.0), (1, 100.0)):
        question = {"Q": "purple zebra", "A": "-", "type": "['Text']", "page_id": [evidence], "layout_mapping": []}
        line = {"doc_name": "one.pdf", "domain": "D", "page_indices": [0, 1], "layout_indices": [0, 0]}
        write_annotations(data, [{**line, "questions": [question]}], "annotations.jsonl")
        (data / "one.pdf").write_bytes(make_pdf(["yellow lion", "purple zebra and lion"]))
        document = evaluate(data, tmp_path / "w", "--first-stage", "bm25")
        assert document["metrics"]["page"]["recall@1"]["micro"] == found


@pytest.mark.skipif("MMRR_TEST_MMDOCIR" not in os.environ, reason="MMRR_TEST_MMDOCIR names no folder of MMDocIR PDFs")
@pytest.mark.slow
def test_the_real_documents(tmp_path):
    """A script that builds a ``TextIndex`` over PDFium's text gave micro 26.4/42.7/50.7."""
    document = evaluate(Path(os.environ["MMRR_TEST_MMDOCIR"]), tmp_path / "w", "--first-stage", "bm25")
    page = document["metrics"]["page"]
    assert [page[f"recall@{k}"]["micro"] for k in (1, 3, 5)] == pytest.approx([26.4, 42.7, 50.7], abs=0.3)
    assert {name: value["micro"] for name, value in page.items()} == pytest.approx(recalls_of_run(document))
    shutil.rmtree(tmp_path / "w")
