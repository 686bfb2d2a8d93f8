"""Measures ``mmrr serve``: many clients at once, every answer compared with the one given alone; malformed requests.

    python -m benchmarks.serve_load WORK [--clients 100] [--seconds 120] [--fuzz 10000] [--kills 3] [--queries FILE]

It starts a server of its own for the workspace WORK, in float32. Half of the requests are searches, half rerank pages
or images that the server has not seen. It prints throughput, p50 and p99, the memory of the server after each half, the
number of answers that differ (scores by more than 1e-4), and the status codes of the malformed requests. With --kills
the server is killed and started again under load: clients may see errors, and no wrong answer.

Feeds the section "Over HTTP" of BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import http.client
import io
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.fuzz_requests import requests

TOLERANCE = 1e-4
CANDIDATES = 20
QUERIES = ["When is the thesis due?", "rainfall table", "fee of the library", "opening hours", "who signs the form"]


class Server:
    """A server process on a free port."""

    def __init__(self, work: Path, options: list[str]) -> None:
        self._command = [sys.executable, "-m", "mmrr.cli.main", "serve", "--work", f"work={work}", *options]
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it on its port, and wait until the models are loaded."""
        self._process = subprocess.Popen(
            [*self._command, "--port", str(self.port)], stderr=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._process.stderr
        for line in self._process.stderr:
            if found := re.search(r" at http://[^ ]*:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=self._drain, daemon=True).start()
        while True:
            with contextlib.suppress(OSError):
                if ask(self.port, "GET", "/ready")[0] == 200:
                    return
            time.sleep(0.2)

    def _drain(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            print(f"server: {line.rstrip()}", flush=True)

    def processor_seconds(self) -> float:
        """Processor time of the server so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def memory_mb(self) -> float:
        """Resident memory, without the page cache of mapped files."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        return sum(int(value) for value in re.findall(r"RssAnon:\s+(\d+)", text)) / 1000


def ask(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and body of an answer. Raises OSError if the server is gone."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()


def post(port: int, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    return ask(port, "POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})


def image(seed: int) -> dict[str, str]:
    """A drawn page as a document of a request."""
    drawn = Image.new("RGB", (320, 448), "white")
    for line in range(8, 440, 16):
        ImageDraw.Draw(drawn).text((8, line), f"page {seed} line {line}", fill=(seed % 200, 40, 90))
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    return {"image": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()}


def work_of(port: int, queries: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """The requests that clients send."""
    draw = random.Random(0)
    listed = json.loads(ask(port, "GET", "/v1/documents")[1])["documents"]
    pages = [f"{one['id']}/{n:04d}" for one in listed for n in range(1, one["pages"] + 1)]
    found: list[tuple[str, dict[str, Any]]] = []
    for i, query in enumerate(queries):
        found.append(("/v1/search", {"query": query, "candidates": CANDIDATES}))
        some = [{"page_id": page} for page in draw.sample(pages, min(CANDIDATES, len(pages)))]
        found.append(("/v1/rerank", {"query": query, "documents": some}))
        if i % 3 == 0:
            found.append(("/v1/rerank", {"query": query, "documents": [*some[:5], image(i), image(i + 1)]}))
    return found


@dataclass
class Counts:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    errors: int = 0
    different: int = 0


def same(expected: Any, found: Any) -> bool:
    if isinstance(expected, float) and isinstance(found, float):
        return abs(expected - found) <= TOLERANCE
    if isinstance(expected, dict):
        return expected.keys() == found.keys() and all(same(value, found[name]) for name, value in expected.items())
    if isinstance(expected, list):
        return len(expected) == len(found) and all(map(same, expected, found))
    return bool(expected == found)


def near_ties(results: list[dict[str, Any]]) -> list[Any]:
    """The results without their order, which two scores closer than the tolerance may change."""
    name = "page_id" if "page_id" in results[0] else "index"
    return sorted(({**one, "rank": 0} for one in results), key=lambda one: str(one[name]))


@contextlib.contextmanager
def clients(port: int, n: int, asked: list[tuple[str, dict[str, Any]]], alone: list[Any]) -> Iterator[Counts]:
    """``n`` clients that ask without a pause while the block runs."""
    counts, stop, lock = Counts(), threading.Event(), threading.Lock()

    def client(seed: int) -> None:
        draw = random.Random(seed)
        while not stop.is_set():
            i = draw.randrange(len(asked))
            started = time.perf_counter()
            try:
                status, body = post(port, *asked[i])
            except OSError:
                with lock:
                    counts.errors += 1
                time.sleep(0.2)
                continue
            seconds = time.perf_counter() - started
            ok = status != 200 or same(near_ties(alone[i]), near_ties(json.loads(body)["results"]))
            with lock:
                counts.statuses[status] += 1
                counts.different += not ok
                if status == 200:
                    counts.seconds.append(seconds)
            if status == 429:
                time.sleep(0.5)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(n)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def show(what: str, counts: Counts, seconds: float) -> None:
    times = sorted(counts.seconds) or [0.0]
    print(
        f"{what}: {len(counts.seconds) / seconds:.1f} answers a second, p50 {1000 * statistics.median(times):.0f} ms, "
        f"p99 {1000 * times[int(0.99 * (len(times) - 1))]:.0f} ms, status {dict(counts.statuses)}, "
        f"{counts.errors} lost connections, {counts.different} different answers",
        flush=True,
    )


def fuzz(port: int, n: int) -> int:
    """Send malformed requests. Returns the number of answers that are neither a 2xx nor a 4xx with a JSON error."""
    wrong, statuses = 0, collections.Counter[int]()
    for asked in requests(seed=1, n=n):
        status, body = ask(port, asked.method, asked.path, asked.body, asked.headers)
        statuses[status] += 1
        ok = 200 <= status < 300
        if 400 <= status < 500:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                ok = asked.method == "HEAD" or json.loads(body)["error"].keys() == {"type", "message"}
        if not ok:
            wrong += 1
            print(
                f"wrong: {status} {body[:200]!r} to {asked.method} {asked.path[:100]} {asked.body[:200]!r}", flush=True
            )
    print(f"{n} malformed requests: status {dict(statuses)}, {wrong} wrong answers", flush=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--fuzz", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--queries", type=Path)
    options = parser.parse_args()
    queries = QUERIES
    if options.queries:
        queries = [json.loads(line)["text"] for line in options.queries.read_text("utf-8").splitlines()]
    server = Server(options.work, ["--dtype", "float32", "--device", "cpu", "--max-queue", str(2 * options.clients)])
    bad = 0
    try:
        asked = work_of(server.port, queries)
        alone, times = [], []
        for one in asked:
            post(server.port, *one)  # what it needs is read
            started = time.perf_counter()
            alone.append(json.loads(post(server.port, *one)[1])["results"])
            times.append(time.perf_counter() - started)
        print(f"one client: p50 {1000 * statistics.median(times):.0f} ms, highest {1000 * max(times):.0f} ms")
        half = options.seconds / 2
        for name in ("first half", "second half"):
            with clients(server.port, options.clients, asked, alone) as counts:
                time.sleep(half)
            show(f"{options.clients} clients, {name}", counts, half)
            print(f"memory after the {name}: {server.memory_mb():.0f} MB", flush=True)
            bad += counts.different
        bad += fuzz(server.port, options.fuzz)
        for _ in range(options.kills):
            with clients(server.port, options.clients, asked, alone) as counts:
                time.sleep(3)
                server.kill()
                server.start()
                time.sleep(3)
            show("killed and started again", counts, 6)
            bad += counts.different
    finally:
        server.kill()
    raise SystemExit(f"{bad} wrong answers" if bad else 0)


if __name__ == "__main__":
    main()
