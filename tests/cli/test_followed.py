"""``mmrr index`` without --embedder follows the embedder of the current index: adding loses no page vectors."""

from __future__ import annotations

from pathlib import Path

from tests.cli.chain import Chain
from tests.console import FP32, INDEX, artifact, manifest, mmrr, refused, write_documents

TEXT_ONLY = "no --embedder: pages are found by their text layer alone (BM25)"


def embedded(index: Path) -> Path:
    return index.parents[1] / "embed" / manifest(index)["inputs"]["embed"]


def test_adding_without_embedder_keeps_the_page_vectors(chain: Chain, tmp_path: Path) -> None:
    chain.index("--dim", "16")
    more = write_documents(tmp_path / "more", tides=["High water at noon"])
    command = ("index", more, "--work", chain.work, *INDEX, *FP32)
    result = mmrr(*command)
    said = f"embedder {chain.embedder}, as in the current index; --first-stage words indexes text only"
    assert result.stderr.count(said) == 1
    assert TEXT_ONLY not in result.stderr
    made = manifest(embedded(artifact(result)))
    assert (made["content"]["pages"], made["provenance"]["pages_computed"]) == (6, 1)
    assert made["config"]["options"]["dim"] == 16
    assert manifest(embedded(artifact(mmrr(*command, "--dim", "8"))))["config"]["options"]["dim"] == 8
    alone = mmrr(*command, "--first-stage", "bm25")
    assert "as in the current index" not in alone.stderr
    assert "embed" not in manifest(artifact(alone))["inputs"]
    assert TEXT_ONLY in mmrr(*command).stderr  # the current index has text only


def test_an_embedder_that_is_gone_is_an_error_and_changes_nothing(chain: Chain, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in chain.embedder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    work = tmp_path / "w"
    mmrr("index", chain.docs, "--work", work, "--embedder", model, *INDEX, *FP32)
    before = (work / "head.json").read_bytes()
    model.rename(tmp_path / "moved")
    assert f"found no folder '{model}'" in refused("index", chain.docs, "--work", work, *INDEX, *FP32)
    assert (work / "head.json").read_bytes() == before


def test_the_note_on_the_embedder_does_not_come_before_other_errors(chain: Chain, tmp_path: Path) -> None:
    for wrong in ((tmp_path / "none",), (chain.docs, "--dpi", "-5")):
        for work in (chain.work, tmp_path / "new"):
            said = mmrr("index", *wrong, "--work", work, *INDEX, code=1).stderr
            assert [line.split(":")[0] for line in said.splitlines()] == ["error"]


def test_a_changed_rendering_option_is_named_with_both_values(chain: Chain) -> None:
    same = ("index", chain.docs, "--work", chain.work, "--first-stage", "bm25", *INDEX)
    assert "rendered again" not in mmrr(*same).stderr
    lines = mmrr(*same, "--max-tokens", "48", "--dpi", "90").stderr.splitlines()
    assert [line for line in lines if "rendered again" in line] == [
        "dpi 90, was 150; max_tokens 48, was 64: all pages are rendered again"
    ]
