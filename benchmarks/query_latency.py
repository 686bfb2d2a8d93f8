"""Measures a warm query: the first stage by all channels of a workspace, and reranking from page caches.

    python -m benchmarks.query_latency WORK QUERIES [--candidates 20] [--rounds 3]

QUERIES is a file of queries. Each is asked through Python in this process, then through HTTP in a server of its own.
The first round loads and warms, and is not counted. It prints the median and the 95th percentile of the time of a query
in ms, and the processor time of a query in ms: on a busy machine only the last one means something.

Feeds the section "Over HTTP" of BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import mmrr
from benchmarks.serve_load import Server, post
from mmrr.evaluation.trec import read_queries


def main() -> None:
    """Measure both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = [query.text for query in read_queries(options.queries)]
    with mmrr.open(options.work) as work:
        measure(
            "Python",
            lambda text: work.search(text, candidates=options.candidates, rerank=True),
            time.process_time,
            texts,
            options.rounds,
        )
    server = Server(options.work, [])
    try:

        def ask(text: str) -> None:
            status, body = post(
                server.port, "/v1/search", {"query": text, "candidates": options.candidates, "rerank": True}
            )
            if status != 200:
                raise SystemExit(f"the server answered {status}: {body[:200]!r}")

        measure("HTTP", ask, server.processor_seconds, texts, options.rounds)
    finally:
        server.kill()


def measure(
    name: str, ask: Callable[[str], object], processor: Callable[[], float], texts: list[str], rounds: int
) -> None:
    """Print the times of all queries. ``processor``: the processor seconds of the process that answers."""
    for text in texts:
        ask(text)
    used, seconds = processor(), []
    for _ in range(rounds):
        for text in texts:
            started = time.perf_counter()
            ask(text)
            seconds.append(time.perf_counter() - started)
    per_query = 1000 * (processor() - used) / len(seconds)
    p50, p95 = 1000 * statistics.median(seconds), 1000 * statistics.quantiles(seconds, n=20)[-1]
    print(
        f"{name}: {len(seconds)} queries, p50 {p50:.0f} ms, p95 {p95:.0f} ms, {per_query:.0f} ms of processor time "
        f"each; {os.cpu_count()} processors",
        flush=True,
    )


if __name__ == "__main__":
    main()
