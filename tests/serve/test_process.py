"""A server process: the examples of docs/http.md, and its end in the middle of the work."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import mmrr
from mmrr.serve.settings import Settings
from tests.pdfs import make_pdf
from tests.serve.conftest import MACHINE, QUERY, RENDER

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parents[2] / "docs" / "http.md"


class Process:
    """``mmrr serve`` on a free port."""

    def __init__(self, *options: object) -> None:
        command = [sys.executable, "-m", "mmrr.cli.main", "serve", "--port", "0", *map(str, options)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        self.lines: list[str] = []
        self.url = ""
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r" at (http://[^ ;]+)", line):
                self.url = found[1]
                break

    def end(self) -> None:
        self.process.kill()  # SIGKILL
        self.process.wait()


@pytest.fixture
def server(own: Settings) -> Iterator[Process]:
    started = Process("--work", own.workspaces["work"], "--dtype", "float32", "--device", "cpu", "--max-tokens", "64")
    assert started.url, started.lines
    yield started
    started.process.kill()
    started.process.wait()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_examples_of_the_guide(server: Process, tmp_path: Path):
    (tmp_path / "report.pdf").write_bytes(make_pdf(["A report on zebras"]))
    blocks = re.findall(r"```bash\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        script = block.replace("http://127.0.0.1:8000", server.url)
        ran = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, (block, ran.stdout, ran.stderr)
        assert "error" not in ran.stdout
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_sigterm_ends_the_server(server: Process):
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) in (0, -signal.SIGTERM)


def test_a_busy_port_is_one_line(server: Process, own: Settings):
    port = server.url.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "mmrr.cli.main", "serve", "--port", port, "--work", own.workspaces["work"]]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith(f"error: 127.0.0.1:{port} cannot be used")


def kill_uploads(settings: Settings, folder: Path, kills: int, seed: int = 0) -> Counter[str]:
    """Kill servers at random moments of an upload; how many answered as before, and how many with the new document.

    Raises AssertionError for an answer of any other collection.
    """
    made, draw = settings.workspaces["work"], random.Random(seed)
    content = make_pdf(["A zebra is due in the thesis", "Rainfall on zebras"])
    (folder / "zebra.pdf").write_bytes(content)
    queries = [QUERY, "zebra rainfall"]
    expected: dict[str, Any] = {}
    shutil.copytree(made, folder / "new")
    with mmrr.Workspace(folder / "new", machine=MACHINE) as workspace:
        expected["old"] = _answers(workspace.search(query) for query in queries)
        workspace.add(folder / "zebra.pdf", render=RENDER)
        expected["new"] = _answers(workspace.search(query) for query in queries)
    work, found = folder / "killed", Counter[str]()
    options = ("--work", f"work={work}", "--dtype", "float32", "--device", "cpu", "--max-tokens", "64")
    server: Process | None = None
    try:
        for _ in range(kills):
            if server is None:
                shutil.copytree(made, work)
                server = Process(*options)
            file = ("zebra.pdf", content, "application/pdf")
            httpx.post(f"{server.url}/v1/documents", files={"file": file}, timeout=60).raise_for_status()
            time.sleep(draw.uniform(0, 3))
            server.end()
            server = Process(*options)
            asked = [httpx.post(f"{server.url}/v1/search", json={"query": query}, timeout=60) for query in queries]
            answers = _answers(one.json()["results"] for one in asked)
            state = next((name for name, hits in expected.items() if hits == answers), "another collection")
            assert state in expected, answers
            found[state] += 1
            if state == "new":  # the next upload would change nothing
                server.end()
                server = None
                shutil.rmtree(work)
    finally:
        if server:
            server.end()
    return found


def _answers(lists: Iterable[Iterable[Any]]) -> list[list[tuple[str, float]]]:
    def row(hit: Any) -> tuple[str, float]:
        return (hit["page_id"], round(hit["score"], 3)) if isinstance(hit, dict) else (hit.page_id, round(hit.score, 3))

    return [[row(hit) for hit in hits] for hits in lists]


def test_an_upload_that_is_killed_leaves_the_old_answers_or_gives_the_new_ones(own: Settings, tmp_path: Path):
    assert kill_uploads(own, tmp_path, kills=2).total() == 2
