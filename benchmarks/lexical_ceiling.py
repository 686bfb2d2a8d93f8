"""Measures the recall of BM25 on the true text of drawn pages: the ceiling of a perfect reader that matches words.

``BENCH`` is the output of ``mmrr draw TEXTS --held-out 0.1 --output BENCH`` with the default seed and 200 pages. The
script draws the same pages again, because the benchmark does not store their true text.

    python -m benchmarks.lexical_ceiling TEXTS BENCH

Feeds the section "Synthetic pages" of BENCHMARKS.md.
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
    qrels = read_qrels(bench / "qrels.trec")
    if not names or not {page for pages in qrels.values() for page in pages} <= set(names):
        raise SystemExit(f"{bench} was drawn from other texts, with another seed or with other fonts; draw it again")
    for kind, prefix in (("phrases", "p"), ("questions", "q")):
        queries = [query for query in read_queries(bench / "queries.jsonl") if query.query_id.startswith(prefix)]
        run = {
            query.query_id: rank(dict(zip(names, index.scores(query.text).tolist(), strict=True))) for query in queries
        }
        found = evaluate(run, {query_id: qrels[query_id] for query_id in run}, MEASURES)
        print(f"{len(run)} {kind}:", ", ".join(f"{measure} {value:.3f}" for measure, value in found.mean.items()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
