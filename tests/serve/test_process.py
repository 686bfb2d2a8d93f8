"""A server process: the examples of docs/http.md, and its end in the middle of the work."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrr.serve.settings import Settings
from tests.pdfs import make_pdf

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
