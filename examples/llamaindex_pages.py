"""LlamaIndex: a retriever and a node postprocessor, which a query engine takes as they are.

    python examples/llamaindex_pages.py WORK MODEL "a question"

WORK is a workspace that `mmrr index` made. MODEL is a reranker, such as reader-reranker.
"""

from __future__ import annotations

import sys

import mmrr
from mmrr.integrations.llamaindex import PageReranker, PageRetriever

work, model, question = sys.argv[1:4]
with mmrr.open(work) as workspace:
    retriever = PageRetriever(workspace, top_k=20, first_stage="words", rerank=False)
    reranker = PageReranker(reranker=mmrr.Reranker(model), workspace=workspace, top_k=3)
    for found in reranker.postprocess_nodes(retriever.retrieve(question), query_str=question):
        print(found.node.node_id, f"{found.score:.4f}")
