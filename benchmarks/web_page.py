"""Measures the web page in a browser: the time from Enter to the first thumbnails on the screen.

    python -m benchmarks.web_page WORK [--runs 20] [--queries FILE]

It starts a server for the workspace WORK and a headless Chromium with a window of 1280 x 800 pixels. After one warm-up
search, each run opens the page in a new profile, so that the browser has no image of an earlier run, types a question
and presses Enter. ``renderTime`` of the Element Timing API says when an image was painted. Printed are the medians and
the highest times until the first stage's answer, the first thumbnail, all thumbnails of the first stage's results that
the window shows, and the reranked order; and the server's own time for both searches. The server's thumbnails are made
once: ``--cold`` starts a server for each run, so that it has none.

Feeds the section "The web page" of BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.web_site import browser, server

QUERIES = [
    "When is the thesis due?",
    "What does a ferry ticket cost?",
    "How is the boiler descaled?",
    "harbour dues 1974",
]
#: Runs in the page before its own scripts. It notes when Enter was pressed, and when thumbnails were painted.
WATCH = """
window.seen = {painted: []};
new PerformanceObserver((list) => {
  for (const one of list.getEntries()) {
    const inside = one.intersectionRect.width > 0 && one.intersectionRect.height > 0;
    if (inside) window.seen.painted.push(one.renderTime || one.loadTime);
  }
}).observe({type: 'element', buffered: true});
addEventListener('keydown', (event) => {
  if (event.key === 'Enter') window.seen.enter = event.timeStamp;
}, true);
const watch = new MutationObserver(() => {
  const text = document.querySelector('#status')?.textContent ?? '';
  if (/by the first stage/.test(text)) window.seen.first ??= performance.now();
  if (/, reranked by/.test(text)) window.seen.reranked ??= performance.now();
});
addEventListener('DOMContentLoaded', () => watch.observe(document.body, {subtree: true, childList: true}));
"""
#: How many thumbnails of the list are in the window.
VISIBLE = """() => [...document.querySelectorAll('.thumbnail')].filter((one) => {
  const box = one.getBoundingClientRect();
  return box.top < innerHeight && box.bottom > 0;
}).length"""


def run(opened: Any, url: str, query: str) -> dict[str, float]:
    """Milliseconds from Enter. Any: Playwright is optional."""
    context = opened.new_context(viewport={"width": 1280, "height": 800})
    try:
        page = context.new_page()
        page.add_init_script(WATCH)
        page.goto(url)
        page.wait_for_selector(".message h2")
        page.fill("#q", query)
        page.press("#q", "Enter")
        page.wait_for_function("() => window.seen.first && window.seen.painted.length", timeout=60_000)
        visible = page.evaluate(VISIBLE)
        page.wait_for_function(f"() => window.seen.painted.length >= {visible}", timeout=60_000)
        page.wait_for_function("() => window.seen.reranked", timeout=60_000)
        seen = page.evaluate("window.seen")
        painted = sorted(seen["painted"])
        times = {
            "answer of the first stage": seen["first"],
            "first thumbnail painted": painted[0],
            f"all {visible} thumbnails in the window painted": painted[visible - 1],
            "reranked order": seen["reranked"],
        }
        return {name: value - seen["enter"] for name, value in times.items()}
    finally:
        context.close()


def asked(url: str, query: str, *, rerank: bool) -> float:
    """Milliseconds of a search without a browser."""
    body = {"query": query, "top_k": 20, "return_snippets": True, **({} if rerank else {"rerank": False})}
    request = urllib.request.Request(
        f"{url}/v1/search", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    started = time.perf_counter()
    urllib.request.urlopen(request).read()
    return 1000 * (time.perf_counter() - started)


def show(name: str, times: list[float]) -> None:
    print(f"{name}: median {statistics.median(times):.0f} ms, lowest {min(times):.0f}, highest {max(times):.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    queries = QUERIES
    if options.queries:
        queries = [json.loads(line)["text"] for line in options.queries.read_text("utf-8").splitlines()]
    times: dict[str, list[float]] = {}
    with browser() as opened:
        for start in range(0, options.runs, 1 if options.cold else options.runs):
            with server(options.work, "--device", "cpu", "--dtype", "float32", "--read-only") as url:
                asked(url, "warm-up", rerank=True)
                for i in range(start, start + 1 if options.cold else options.runs):
                    query = queries[i % len(queries)]
                    for name, value in run(opened, url, query).items():
                        times.setdefault(name, []).append(value)
                    for rerank, name in ((False, "server: first stage"), (True, "server: reranked search")):
                        times.setdefault(name, []).append(asked(url, query, rerank=rerank))
    print(f"{options.runs} runs, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for name, found in times.items():
        show(name, found)


if __name__ == "__main__":
    main()
