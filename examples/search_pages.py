"""Index a folder, ask a question, and save the best page: the Python API without any model.

python examples/search_pages.py DOCUMENTS "a question"
"""

from __future__ import annotations

import sys

import mmrr

documents, question = sys.argv[1:3]
with mmrr.open("work", create=True) as workspace:
    print(workspace.index(documents).changes)
    hits = workspace.search(question, top_k=3)
    for hit in hits:
        print(hit.rank, hit.page_id, f"{hit.score:.3f}")
    hits[0].image().save("best.png")
