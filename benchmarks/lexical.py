"""Measures what reading without an error and matching by words would reach on a drawn benchmark.

``python -m benchmarks.lexical TEXTS BENCH``: BENCH is what ``mmrr draw TEXTS --held-out 0.1 --out BENCH`` wrote,
with its default seed and 200 pages. The pages are drawn again for their true text.
BM25 ranks them, and recall is printed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from mmrr.evaluation.metrics import evaluate
from mmrr.evaluation.trec import read_qrels, read_queries
from mmrr.search.indexes import TextIndex
from mmrr.training.synthetic.benchmark import draw_pages
from mmrr.training.synthetic.page_pool import PagePool
from mmrr.training.synthetic.reports import with_text
from mmrr.training.synthetic.sources import read_documents, split
from mmrr.types import rank

PAGES, SEED, HELD_OUT = 200, 0, 0.1
MEASURES = ("R@1", "R@5", "R@20", "nDCG@5")


def main(texts: Path, bench: Path) -> None:
    _, held_out = split(read_documents(texts), HELD_OUT)
    with tempfile.TemporaryDirectory() as folder:
        pool = PagePool(Path(folder) / "pool", with_text(held_out), SEED)
        pages, _ = draw_pages(pool, PAGES, Path(folder), lambda n: None)
    index = TextIndex.build([page.text for page in pages])
    names = [page.id for page in pages]
    judged = read_qrels(bench / "qrels.trec")
    if not names or not {page for pages in judged.values() for page in pages} <= set(names):
        raise SystemExit(f"{bench} was drawn from other texts, with another seed or other fonts")
    for kind, first in (("phrases", "p"), ("questions", "q")):
        asked = [query for query in read_queries(bench / "queries.jsonl") if query.query_id.startswith(first)]
        run = {
            query.query_id: rank(dict(zip(names, index.scores(query.text).tolist(), strict=True))) for query in asked
        }
        found = evaluate(run, {query_id: judged[query_id] for query_id in run}, MEASURES)
        print(f"{len(run)} {kind}:", ", ".join(f"{measure} {value:.3f}" for measure, value in found.mean.items()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
