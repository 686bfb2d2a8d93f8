"""Rank page images for a question, without a workspace.

    python examples/rank_images.py MODEL "a question" PAGE.png...

MODEL is a Hub id, a folder, or a model that mmrr includes (reader-reranker).
"""

from __future__ import annotations

import sys

import mmrr

model, question, *images = sys.argv[1:]
for one in mmrr.Reranker(model).rank(question, images):
    print(f"{one['score']:.4f}", images[one["corpus_id"]])
