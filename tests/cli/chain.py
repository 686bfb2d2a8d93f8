"""A workspace on which the everyday commands have run, for tests of whole commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.console import FP32, INDEX, artifact, mmrr

LAYERS = 6  # of the tiny reranker
QUESTION = "When is the thesis due?"


@dataclass(frozen=True)
class Chain:
    """A workspace on which index, precache, rerank and eval have run."""

    root: Path
    embedder: Path
    reranker: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def docs(self) -> Path:
        return self.root / "docs"

    @property
    def queries(self) -> Path:
        return self.root / "queries.jsonl"

    @property
    def qrels(self) -> Path:
        return self.root / "qrels.trec"

    def index(self, *args: object) -> Path:
        options = ("--embedder", self.embedder, *INDEX, *FP32)
        return artifact(mmrr("index", self.docs, "--work", self.work, *options, *args))

    def precache(self, *args: object) -> Path:
        return artifact(mmrr("precache", "--work", self.work, "--scorer-model", self.reranker, *FP32, *args))

    def rerank(self, *args: object) -> Path:
        return artifact(mmrr("rerank", "--queries", self.queries, "--work", self.work, *args))
