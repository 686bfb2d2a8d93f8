"""The scorer of docs/writing-a-scorer.md is complete: it runs through every command."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmrr import scorers
from tests.console import FP32, INDEX, SOIL, THESIS, artifact, manifest, mmrr, run_lines, write_documents, write_queries

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-scorer.md"


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "scorers"
    folder.mkdir()
    (folder / "buckets.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(scorers, "__path__", [*scorers.__path__, str(folder)])
    yield "buckets"
    sys.modules.pop("mmrr.scorers.buckets", None)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "buckets", "buckets": 256}')
    save_file(
        {"weights": torch.rand(256, generator=torch.Generator().manual_seed(0)) + 0.1}, folder / "model.safetensors"
    )
    return folder


def test_the_scorer_of_the_documentation_runs(family: str, checkpoint: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    mmrr("index", tmp_path / "docs", "--work", work, *INDEX)
    listed = mmrr("models").stdout
    assert "scorer buckets" in listed
    assert "Exponent of the weights. 0: all weights are 1." in listed
    made = artifact(mmrr("precache", "--work", work, "--scorer", family, "--scorer-model", checkpoint, *FP32))
    assert manifest(made)["content"]["page_bytes"] >= 1024
    answer = json.loads(mmrr("rerank", "When is the thesis due?", "--work", work, "--json").stdout)
    assert answer["queries"][0]["results"][0]["doc_id"] == "thesis.pdf"
    write_queries(tmp_path / "queries.jsonl", ("q1", "When is the thesis due?", "thesis.pdf"))
    rerank = ("rerank", "--queries", tmp_path / "queries.jsonl", "--work", work)
    ranked = artifact(mmrr(*rerank, "--score-option", "power=0"))
    (hits,) = run_lines(ranked / "run.trec").values()
    assert all(score == int(score) for _, score in hits)  # equal weights: the score is the number of shared words
    checked = json.loads(mmrr("verify", "--work", work, "--rescore", "5", "--json").stdout)
    assert checked["rescored"]["largest_difference"] == 0
