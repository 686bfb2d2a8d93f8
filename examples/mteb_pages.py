"""mteb: evaluate an embedder on your own page images, then a reranker on what it found.

    python examples/mteb_pages.py EMBEDDER RERANKER QUESTIONS.jsonl

QUESTIONS.jsonl has one object a line: {"query": "a question", "page": "the page image that answers it"}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset, Image
from mteb.abstasks.retrieval import AbsTaskRetrieval

from mmrr.integrations.mteb import PageCrossEncoder, PageEncoder

embedder, reranker, questions = sys.argv[1:4]


class Questions(AbsTaskRetrieval):
    """The questions of the file; the corpus is all of its pages."""

    metadata = mteb.TaskMetadata(
        name="Questions",
        description="Questions about page images",
        type="Any2AnyRetrieval",
        category="t2i",
        modalities=["text", "image"],
        dataset={"path": "local", "revision": "local"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_5",
    )

    def load_data(self, **ignored: Any) -> None:
        """Nothing is downloaded."""
        rows = [json.loads(line) for line in Path(questions).read_text("utf-8").splitlines()]
        pages = sorted({row["page"] for row in rows})
        self.dataset = {
            "default": {
                "test": {
                    "queries": Dataset.from_list([{"id": f"q{i}", "text": row["query"]} for i, row in enumerate(rows)]),
                    "corpus": Dataset.from_dict({"id": pages, "image": pages}).cast_column("image", Image()),
                    "relevant_docs": {f"q{i}": {row["page"]: 1} for i, row in enumerate(rows)},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


first = mteb.evaluate(PageEncoder(embedder), Questions(), cache=None, prediction_folder="predictions")
print(f"first stage {first[0].get_score():.4f}")
task = Questions().convert_to_reranking("predictions", top_k=20)
second = mteb.evaluate(PageCrossEncoder(reranker), task, cache=None)
print(f"reranked    {second[0].get_score():.4f}")
