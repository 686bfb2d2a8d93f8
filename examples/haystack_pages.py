"""Haystack: a pipeline of a retriever and a ranker, which can be saved as YAML.

    python examples/haystack_pages.py WORK MODEL "a question"

WORK is a workspace that `mmrr index` made. MODEL is a reranker, such as reader-reranker.
"""

from __future__ import annotations

import sys

from haystack import Pipeline

from mmrr.integrations.haystack import PageRanker, PageRetriever

work, model, question = sys.argv[1:4]
pipeline = Pipeline()
pipeline.add_component("retriever", PageRetriever(work, top_k=20, options={"first_stage": "words", "rerank": False}))
pipeline.add_component("ranker", PageRanker(model, workspace=work, top_k=3))
pipeline.connect("retriever.documents", "ranker.documents")
for document in pipeline.run({"retriever": {"query": question}, "ranker": {"query": question}})["ranker"]["documents"]:
    print(document.meta["page_id"], f"{document.score:.4f}")
