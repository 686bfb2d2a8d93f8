"""Measures what reading without an error and matching by words would reach on a drawn benchmark.

``python -m tests.lexical TEXTS BENCH``: BENCH is what ``mmrr draw TEXTS --held-out 0.1 --out BENCH`` wrote, with its
default seed and 200 pages. The pages are drawn again for their true text, BM25 ranks them, and recall is printed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from mmrr.factory.benchmark import _draw, with_text
from mmrr.factory.pool import Pool
from mmrr.factory.sources import read_documents, split
from mmrr.index import TextIndex
from mmrr.trec import read_qrels, read_queries

PAGES, SEED, HELD_OUT = 200, 0, 0.1


def main(texts: Path, bench: Path) -> None:
    _, held_out = split(read_documents(texts), HELD_OUT)
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(Path(folder) / "pool", with_text(held_out), SEED)
        pages, _ = _draw(pool, PAGES, Path(folder), lambda n: None)
    index = TextIndex.build([page.text for page in pages])
    names = [page.id for page in pages]
    judged = read_qrels(bench / "qrels.trec")
    if not names or not {page for pages in judged.values() for page in pages} <= set(names):
        raise SystemExit(f"{bench} was drawn from other texts, with another seed or other fonts")
    found: dict[str, list[list[float]]] = {}
    for query in read_queries(bench / "queries.jsonl"):
        order = [names[row] for row in np.argsort(-index.scores(query.text), kind="stable")]
        wanted = judged[query.query_id].keys()
        recall = [len(wanted & set(order[:k])) / len(wanted) for k in (1, 5, 20)]
        found.setdefault({"p": "phrases", "q": "questions"}[query.query_id[0]], []).append(recall)
    for kind, recalls in found.items():
        print(f"{len(recalls)} {kind}: R@1 {{:.3f}}, R@5 {{:.3f}}, R@20 {{:.3f}}".format(*np.mean(recalls, axis=0)))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
