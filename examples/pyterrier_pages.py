"""PyTerrier: the words of the pages, and the same reranked by page images, compared in one experiment. No Java.

    python examples/pyterrier_pages.py WORK MODEL QUERIES.jsonl QRELS.trec

WORK is a workspace that `mmrr index` made. MODEL is a reranker, such as reader-reranker.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pyterrier as pt

import mmrr
from mmrr.evaluation.trec import read_qrels, read_queries
from mmrr.integrations.pyterrier import PageReranker, PageRetriever

work, model, queries, judgements = sys.argv[1:5]
topics = pd.DataFrame([{"qid": one.query_id, "query": one.text} for one in read_queries(Path(queries))])
qrels = pd.DataFrame(
    [
        {"qid": query_id, "docno": page_id, "label": label}
        for query_id, pages in read_qrels(Path(judgements)).items()
        for page_id, label in pages.items()
    ]
)
with mmrr.open(work) as workspace:
    words = PageRetriever(workspace, top_k=20, first_stage="words", rerank=False)
    reranked = words >> PageReranker(mmrr.Reranker(model), workspace)
    print(pt.Experiment([words, reranked], topics, qrels, ["recip_rank"], names=["words", "reranked"]).to_string())
