"""Each command does its work once: what is reused, and what changes the name of an artifact."""

from __future__ import annotations

import json
import os
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
    files,
    manifest,
    mmrr,
    refused,
    run_lines,
    shards,
    write_documents,
)


def test_every_command_twice_does_the_work_once(chain: Chain, no_models: None) -> None:
    mmrr("ls", "--work", chain.work)
    before = files(chain.work)
    chain.index()
    chain.precache()
    chain.rerank()
    mmrr("rerank", "--queries", chain.queries, "--work", chain.work, "--json")
    mmrr("retrieve", "--queries", chain.queries, "--work", chain.work)
    mmrr("prune", "--work", chain.work)
    mmrr("render", chain.docs, "--work", chain.work, *INDEX)
    mmrr("eval", "--work", chain.work, "--qrels", chain.qrels)
    assert files(chain.work) == before


def test_a_question_asked_in_a_file_is_not_scored_again_on_the_command_line(chain: Chain, no_models: None) -> None:
    before = shards(chain.work, "rerank")
    path = artifact(mmrr("rerank", QUESTION, "--work", chain.work))
    assert shards(chain.work, "rerank") == before
    assert run_lines(path / "run.trec")["query"] == run_lines(chain.root / "run.trec")["q1"]


def test_adding_a_document_works_on_that_document(chain: Chain) -> None:
    stages = ("pages", "embed", "prune", "precache")
    before, counts = files(chain.work), {stage: len(shards(chain.work, stage)) for stage in stages}
    write_documents(chain.docs, new=["A new report on tides"])
    chain.index()
    result = mmrr("precache", "--work", chain.work, "--scorer-model", chain.reranker, *FP32)
    assert "6 pages, 1 to read" in result.stderr
    after = files(chain.work)
    assert {name: after[name] for name in before} == before
    assert {stage: len(shards(chain.work, stage)) - counts[stage] for stage in stages} == dict.fromkeys(stages, 1)
    assert {hit[0] for hit in run_lines(chain.rerank() / "run.trec")["q1"]} >= {"new.pdf/0001", "thesis.pdf/0001"}


def test_removing_a_document_computes_nothing(chain: Chain, no_models: None) -> None:
    before = files(chain.work)
    (chain.docs / "soil.pdf").unlink()
    chain.index()
    path = chain.precache()
    after = files(chain.work)
    assert {name: after[name] for name in before} == before
    assert not {name for name in set(after) - set(before) if name.startswith("shards/")}
    assert manifest(path)["content"]["pages"] == 2


def test_a_renamed_document_keeps_its_shards(chain: Chain, no_models: None) -> None:
    (chain.docs / "thesis.pdf").rename(chain.docs / "renamed.pdf")
    before = {stage: shards(chain.work, stage) for stage in ("pages", "embed", "prune", "precache")}
    chain.index()
    chain.precache()
    assert {stage: shards(chain.work, stage) for stage in before} == before
    listed = json.loads(mmrr("ls", "--documents", "--work", chain.work, "--json").stdout)["documents"]
    assert [entry["doc_id"] for entry in listed] == ["renamed.pdf", "soil.pdf"]


def test_the_order_of_arguments_changes_nothing(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    one, two = docs / "thesis.pdf", docs / "soil.pdf"
    first = artifact(mmrr("index", one, two, "--work", tmp_path / "w", *INDEX))
    assert artifact(mmrr("index", two, one, two, "--work", tmp_path / "w", *INDEX)) == first


def test_copies_of_a_document_share_shards_and_are_both_found(chain: Chain, no_models: None) -> None:
    shutil.copy(chain.docs / "thesis.pdf", chain.docs / "copy.pdf")
    before = {stage: shards(chain.work, stage) for stage in ("pages", "embed", "prune", "precache")}
    chain.index()
    result = mmrr("precache", "--work", chain.work, "--scorer-model", chain.reranker, *FP32)
    assert "7 pages, 0 to read" in result.stderr
    assert {stage: shards(chain.work, stage) for stage in before} == before


def test_copies_of_a_document_score_the_same(chain: Chain) -> None:
    shutil.copy(chain.docs / "thesis.pdf", chain.docs / "copy.pdf")
    chain.index()
    chain.precache()
    scores = dict(run_lines(chain.rerank() / "run.trec")["q1"])
    assert len(scores) == 7
    for page in ("0001", "0002"):
        # Scores in a run descend strictly: the second of two equal ones is one float32 step lower.
        assert scores[f"copy.pdf/{page}"] == pytest.approx(scores[f"thesis.pdf/{page}"], rel=1e-6)


@pytest.mark.slow
def test_run_is_the_same_chain(chain: Chain) -> None:
    """Each artifact of ``run`` has the same name as from the single commands."""
    options = ("--embedder", chain.embedder, "--scorer-model", chain.reranker, *INDEX, *FP32)
    command = ("run", chain.docs, "--queries", chain.queries, *options)
    result = mmrr(*command, "--work", chain.root / "other", "--output", chain.root / "other.trec")
    assert artifact(result).parent == chain.root / "other" / "rerank"
    assert (chain.root / "other.trec").read_bytes() == (chain.root / "run.trec").read_bytes()
    names = {path.relative_to(chain.root / "other").as_posix() for path in (chain.root / "other").glob("*/*/")}
    for name in names - {"shards", "tmp"}:
        if not name.startswith(("shards/", "tmp/")):
            assert (chain.work / name).exists(), name
    result = mmrr(*command, "--work", chain.work, "--qrels", chain.qrels)
    assert artifact(result).parent == chain.work / "eval"
    assert "nDCG@5" in result.stdout
    mmrr(*command, "--work", chain.root / "short", "--embed-option", "dim=16")
    (embedded,) = (chain.root / "short" / "embed").glob("*/")
    assert manifest(embedded)["config"]["options"]["dim"] == 16


# Fingerprints


@pytest.mark.slow
def test_what_changes_a_cache_changes_its_name(chain: Chain, tiny_embedder_path: Path) -> None:
    names = {"default": chain.precache().name}
    for key, options in {
        "keep": ("--keep", "0.25"),
        "band": ("--band", "1:3"),
        "instruction": ("-o", "instruction=Find the page."),
        "tokens": ("-o", "max_tokens=16"),
        "codec": ("--codec", "int8"),
        "model": ("--scorer-model", tiny_embedder_path, "--band", "2:3"),
        "format": ("--dtype", "bfloat16"),
    }.items():
        names[key] = chain.precache(*options).name
    assert len(set(names.values())) == len(names), names
    assert chain.precache("--keep", "0.5").name == names["default"]


@pytest.mark.slow
def test_what_changes_pages_or_vectors_changes_their_name(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("pdfinfo", "pdftoppm"):  # a poppler that draws nothing: the name changes all the same
        (tmp_path / program).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    names = {"default": chain.index().name}
    for key, options in {
        "renderer": ("--renderer", "poppler"),
        "dpi": ("--dpi", "90"),
        "tokens": ("--max-tokens", "48"),
        "model": ("--embedder", chain.reranker),
        "dim": ("--dim", "16"),
        "format": ("--dtype", "bfloat16"),
        "faiss": ("--faiss-factory", "HNSW8"),
    }.items():
        names[key] = chain.index(*options).name
    assert len(set(names.values())) == len(names), names
    assert chain.index().name == names["default"]


def test_a_changed_instruction_changes_scores(chain: Chain) -> None:
    before = run_lines(chain.root / "run.trec")["q1"]
    chain.precache("-o", "instruction=Say no to every page that has no table of rainfall.")
    assert dict(run_lines(chain.rerank() / "run.trec")["q1"]) != pytest.approx(dict(before), abs=1e-3)


def test_a_checkpoint_that_changed_is_not_used_with_old_caches(chain: Chain, tmp_path: Path) -> None:
    """The file names and sizes are the same, and only the bytes differ."""
    model = shutil.copytree(chain.reranker, tmp_path / "model")
    mmrr("precache", "--work", chain.work, "--scorer-model", model, *FP32, "--keep", "0.75")
    (weights,) = model.glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    assert "has changed" in refused("rerank", "something new", "--work", chain.work)
    mmrr("precache", "--work", chain.work, "--scorer-model", model, *FP32, "--keep", "0.75")
    mmrr("rerank", "something new", "--work", chain.work)
