"""Which artifacts later commands follow, and which commands move that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmrr.evaluation import mmdocir
from mmrr.workspace.files import seal, unseal
from tests.cli.chain import QUESTION, Chain
from tests.console import (
    FP32,
    INDEX,
    artifact,
    files,
    manifest,
    misused,
    mmrr,
    refused,
    shards,
    write_documents,
    write_queries,
)
from tests.evaluation.conftest import published  # noqa: F401 (a fixture)


def test_a_cache_of_other_pages_is_refused_with_the_command_to_run(chain: Chain) -> None:
    write_documents(chain.docs, new=["A new report on tides"])
    chain.index()
    assert f"run: mmrr precache --work {chain.work}" in refused("rerank", QUESTION, "--work", chain.work)
    chain.precache()
    mmrr("rerank", QUESTION, "--work", chain.work)


def test_from_chooses_an_older_artifact(chain: Chain) -> None:
    old_index, old_cache, old_run = chain.index(), chain.precache(), chain.rerank()
    write_documents(chain.docs, new=["A new report on tides"])
    chain.index()
    new_cache = chain.precache("--keep", "0.25")
    assert chain.rerank() != old_run
    older = ("--from", f"index/{old_index.name}", "--from", f"precache/{old_cache.name}")
    assert chain.rerank(*older) == old_run
    wrong = refused("rerank", QUESTION, "--work", chain.work, "--from", f"index/{old_index.name}")
    assert new_cache.name in wrong
    assert "made of other pages" in wrong


def test_pruning_is_followed_by_precache(chain: Chain) -> None:
    pruned = artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2"))
    cached = chain.precache()
    assert manifest(cached)["inputs"]["prune"] == pruned.name
    assert manifest(pruned)["content"]["kept"] < manifest(pruned)["content"]["tokens"] / 2


def test_random_pruning_keeps_as_many_and_the_same_again(chain: Chain) -> None:
    """A baseline: the same number of tokens, other ones, the same in every run; precache follows it."""
    by_attention = artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2"))
    at_random = artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2", "--by", "random"))
    assert at_random != by_attention
    contents = [manifest(path)["content"] for path in (by_attention, at_random)]
    assert contents[0]["kept"] == contents[1]["kept"]
    key = next(iter(contents[1]["shards"].values()))
    folder = chain.work / "shards" / "prune" / key
    chosen = {path.name: path.read_bytes() for path in folder.iterdir()}
    cached = chain.precache()
    assert manifest(cached)["inputs"]["prune"] == at_random.name
    mmrr("rm", f"prune/{at_random.name}", "--work", chain.work, "--cascade")
    artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2", "--by", "random"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == chosen
    assert "'chance' is not one of" in misused("prune", "--work", chain.work, "--by", "chance")


def current(work: Path) -> dict[str, str]:
    return dict(json.loads((work / "head.json").read_text()))


def test_a_step_says_what_became_current(chain: Chain) -> None:
    def said(*command: object) -> list[str]:
        stderr = mmrr(*command, "--work", chain.work).stderr
        return [line for line in stderr.splitlines() if line.startswith("current: ")]

    mmrr("eval", "--work", chain.work, "--qrels", chain.qrels)
    assert said("prune", "--keep", "0.5") == []  # the same artifact as before
    for command, stages in (
        (("prune", "--keep", "0.3"), ["prune"]),
        (("precache", "--keep", "0.25", "--scorer-model", chain.reranker, *FP32), ["prune", "precache"]),
        (("retrieve", "--queries", chain.queries, "--candidates", 3), ["retrieve"]),
        (("rerank", "--queries", chain.queries, "--candidates", 4), ["retrieve", "rerank"]),
        (("eval", "--qrels", chain.qrels), ["eval"]),
        (("index", chain.docs, "--first-stage", "bm25", *INDEX), ["index"]),
        (("index", chain.docs, "--max-tokens", "48", "--workers", "1", "--first-stage", "bm25"), ["pages", "index"]),
    ):
        names = ", ".join(said(*command)).replace("current: ", "").split(", ")
        assert [name.partition("/")[0] for name in names] == stages
        assert dict(name.split("/") for name in names).items() <= current(chain.work).items()


def test_commands_that_are_no_step_move_nothing(chain: Chain, tmp_path: Path) -> None:
    write_queries(tmp_path / "other.jsonl", ("q1", "sensors in spring", "soil.pdf"))
    (tmp_path / "other.trec").write_text("q1 0 soil.pdf/0001 1\n")
    run = artifact(mmrr("rerank", "--queries", chain.queries, "--work", chain.work)) / "run.trec"
    before = (chain.work / "head.json").read_bytes()
    other = ("--queries", tmp_path / "other.jsonl", "--qrels", tmp_path / "other.trec")
    work = ("--work", chain.work)
    mmrr("compare", *work, *other, "--scorers", f"minireranker={chain.reranker}+band=1:3", *FP32)
    mmrr("eval", *work, "--qrels", chain.qrels, "--run", run)
    mmrr("eval", *work, "--qrels", chain.qrels, "--run", run, "--baseline", run)
    mmrr("view", "thesis.pdf/0001", *work, "--output", tmp_path / "page.png")
    mmrr("verify", *work, "--rescore", 1)
    mmrr("rerank", QUESTION, *work)
    mmrr("mine", *work, *other, "--out", tmp_path / "pairs")
    assert (chain.work / "head.json").read_bytes() == before


def test_the_benchmark_makes_the_steps_over_its_pages_current(published: Path, tmp_path: Path) -> None:  # noqa: F811
    """Not those over its layouts. Files cannot be added to its pages."""
    work, docs = tmp_path / "work", write_documents(tmp_path / "docs", thesis=["A thesis"])
    benchmark = ("eval", "mmdocir", "--data", published, "--work", work, "--first-stage", "bm25", "--layouts")
    result = mmrr(*benchmark, "--max-tokens", "16")
    names = current(work)
    assert list(names) == ["pages", "index", "retrieve", "eval"]
    assert f"current: pages/{names['pages']}, index/{names['index']}" in result.stderr
    assert manifest(work / "index" / names["index"])["inputs"]["pages"] == names["pages"]
    assert manifest(work / "pages" / names["pages"])["config"]["file"] == mmdocir.PAGES
    assert "MMDocIR's published pages, which cannot be changed" in refused("index", docs, "--work", work, *INDEX)
    gone = ("rm", "--document", "b_report.pdf", "--work", work)
    assert "MMDocIR's published pages, which cannot be changed" in refused(*gone)
    assert current(work) == names
    mmrr("index", docs, "--replace", "--work", work, *INDEX)
    assert current(work)["pages"] != names["pages"]


def test_comparing_follows_no_pruning(chain: Chain) -> None:
    """The current share of kept tokens changed what ``compare`` measured."""
    command = ("compare", "--queries", chain.queries, "--qrels", chain.qrels, "--work", chain.work, "--json", *FP32)

    def page_bytes() -> int:
        result = mmrr(*command, "--scorers", f"minireranker={chain.reranker}")
        return int(json.loads(result.stdout)["rows"][1]["page_bytes"])

    before = page_bytes()
    mmrr("prune", "--work", chain.work, "--keep", "0.1")
    assert page_bytes() == before


def test_precache_says_which_pruning_it_follows(chain: Chain) -> None:
    few = artifact(mmrr("prune", "--work", chain.work, "--keep", "0.2"))
    mmrr("prune", "--work", chain.work, "--keep", "0.7")
    command = ("precache", "--work", chain.work, "--scorer-model", chain.reranker, *FP32)
    followed = mmrr(*command)
    assert f"kept tokens as in prune/{current(chain.work)['prune']}: 0.7 by attention" in followed.stderr
    assert manifest(artifact(followed))["content"]["keep"] == 0.7
    chosen = mmrr(*command, "--from", f"prune/{few.name}")
    assert manifest(artifact(chosen))["inputs"]["prune"] == few.name
    given = mmrr(*command, "--keep", "0.5")
    assert "kept tokens as in" not in given.stderr
    assert manifest(artifact(given))["content"]["keep"] == 0.5


@pytest.mark.parametrize("existed", [False, True])
def test_a_command_that_fails_leaves_no_empty_workspace(tmp_path: Path, existed: bool) -> None:
    work = tmp_path / "new" / "work"
    if existed:
        work.mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for command in (("index", tmp_path / "none"), ("render", tmp_path / "empty"), ("index", tmp_path / "empty", "-x")):
        mmrr(*command, "--work", work, code=2 if "-x" in command else 1)
        assert work.exists() == existed
        assert (tmp_path / "new").exists() == existed
        assert not existed or not list(work.iterdir())


def test_a_command_that_fails_keeps_what_was_committed(chain: Chain, tmp_path: Path) -> None:
    index = ("index", chain.docs, "--work", tmp_path / "w", *INDEX, "--faiss-factory", "IVF64,Flat")
    refused(*index, "--embedder", chain.embedder, *FP32)
    assert shards(tmp_path / "w", "pages")
    before = files(chain.work)
    refused("index", tmp_path / "none", "--work", chain.work)
    assert files(chain.work) == before


def test_a_workspace_of_the_first_version_is_read(chain: Chain) -> None:
    """Written out: the manifests of mmrr 0.1 have no ``sources``. Everything in such a workspace is followed."""
    for path in (chain.work / "pages").glob("*/manifest.json"):
        values = unseal(path.read_bytes())
        assert values["provenance"].pop("sources")
        assert set(values) == {
            *("stage", "schema", "config", "inputs", "model", "fingerprint", "content"),
            *("bytes", "files", "provenance"),
        }
        for entry in values["content"]["documents"]:
            entry.pop("notes", None)  # of a later version
        assert set(values["content"]["documents"][0]) == {
            *("doc_id", "sha256", "status", "n_pages", "detail", "shards", "failed_pages")
        }
        path.write_text(seal(values, indent=1))
    before = (chain.root / "run.trec").read_bytes()
    shutil.rmtree(chain.work / "rerank")
    assert (chain.rerank() / "run.trec").read_bytes() == before
    mmrr("eval", "--work", chain.work, "--qrels", chain.qrels)
    assert chain.index().exists()
    listed = json.loads(mmrr("ls", "--documents", "--work", chain.work, "--json").stdout)["documents"]
    assert [entry["doc_id"] for entry in listed] == ["soil.pdf", "thesis.pdf"]
    shutil.rmtree(chain.docs)
    assert chain.precache().exists()
