"""Compare two TREC runs of any two systems: the measures of both, the difference and its 95 % interval.

    python examples/compare_runs.py BASE.trec NEW.trec QRELS.trec

The interval is a bootstrap over documents. The questions of one document are not independent, so an interval over
questions would be too narrow.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmrr.evaluation.metrics import bootstrap, evaluate
from mmrr.evaluation.trec import read_qrels, read_run

MEASURES = ["R@1", "R@5", "nDCG@5"]


def main(base_path: Path, new_path: Path, qrels_path: Path) -> None:
    qrels = read_qrels(qrels_path)
    base = evaluate(read_run(base_path), qrels, MEASURES)
    new = evaluate(read_run(new_path), qrels, MEASURES)
    # A page id is DOCUMENT/NUMBER; a query belongs to the document of its first relevant page.
    document_of = {query_id: min(pages).rpartition("/")[0] for query_id, pages in qrels.items()}
    print(f"{'measure':8} {'base':>7} {'new':>7} {'difference':>11}  95 % interval")
    for name, change in bootstrap(base, new, document_of).items():
        low, high = change.difference_interval
        row = f"{name:8} {base.mean[name]:7.4f} {new.mean[name]:7.4f} {change.difference:+11.4f}"
        print(f"{row}  {low:+.4f} to {high:+.4f}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
