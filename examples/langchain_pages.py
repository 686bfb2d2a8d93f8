"""LangChain: find pages by words, then rerank them by their images.

    python examples/langchain_pages.py WORK MODEL "a question"

WORK is a workspace that `mmrr index` made. MODEL is a reranker, such as reader-reranker.
"""

from __future__ import annotations

import sys

import mmrr
from mmrr.integrations.langchain import PageReranker, PageRetriever

work, model, question = sys.argv[1:4]
with mmrr.open(work) as workspace:
    retriever = PageRetriever(workspace=workspace, top_k=20, options={"first_stage": "words", "rerank": False})
    reranker = PageReranker(reranker=mmrr.Reranker(model), workspace=workspace, top_k=3)
    for document in reranker.compress_documents(retriever.invoke(question), question):
        page, score = document.metadata["page_id"], document.metadata["relevance_score"]
        print(page, f"{score:.4f}", document.page_content[:60].replace("\n", " "))
