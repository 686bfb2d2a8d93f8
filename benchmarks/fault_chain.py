"""A small collection with tiny random checkpoints, and the commands of the chain in processes that can be killed.

Used by ``benchmarks/faults.py``. Every command runs in a new process that is forked from this one, so that torch is
imported once. A command that is killed takes its helper processes with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mmrr import random_checkpoint

#: Longest time of one command, in seconds. A command that takes longer is a fault.
LIMIT_S = 180
SHAPE = random_checkpoint.Shape(
    layers=4, hidden=32, mlp=48, heads=2, kv_heads=2, head_dim=32, vision_layers=3, vision_hidden=32, vision_heads=2,
    vision_mlp=48, max_tokens=64,
)  # fmt: skip
TEXTS = {
    "soil": ["Soil moisture in spring", "Rainfall table by month", "Appendix on sensors"],
    "thesis": ["The thesis is due on the last Friday of June", "Formatting rules for the cover of a thesis"],
    "ferry": [f"Table {number} lists the ferries of harbour {number}" for number in range(18)],
}
QUERIES = {"q1": "When is the thesis due?", "q2": "rainfall by month", "q3": "ferries of harbour 7"}
#: Queries that are asked of a damaged workspace, so that nothing stored answers them.
OTHERS = {"o1": "rules for the cover", "o2": "which sensors", "o3": "table 12 of the harbour"}


@dataclass(frozen=True)
class Done:
    """What a command did. ``code``: exit status; negative: the signal that ended it; None: it ran past the limit."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def line(self) -> str:
        """The line of a refusal, or ""."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return lines[0] if self.code == 1 and len(lines) == 1 else ""

    @property
    def bug(self) -> str:
        """What is wrong with how the command ended, whatever its input was; "" if nothing is."""
        if self.code is None:
            return f"ran past {LIMIT_S} s"
        if "Traceback" in self.err or "a bug in mmrr" in self.err:
            return self.err.strip().splitlines()[-1][:300]
        if self.code == 0 or self.line or (self.code == 2 and self.err.strip()):
            return ""
        return f"exit status {self.code}: {self.err.strip()[-300:]}"


@dataclass
class Running:
    """A command in a process group of its own."""

    pid: int
    folder: Path
    started: float = field(default_factory=time.monotonic)

    def kill(self) -> None:
        """SIGKILL to the command and its helper processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = LIMIT_S) -> Done:
        """Wait for the end; after ``seconds`` the command is killed."""
        code: int | None = None
        while time.monotonic() - self.started < seconds:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.005)
        else:
            self.kill()
            os.waitpid(self.pid, 0)
        self.kill()  # helper processes that outlived it
        out, err = ((self.folder / name).read_text("utf-8", "replace") for name in ("out", "err"))
        shutil.rmtree(self.folder)
        return Done(code, out, err, time.monotonic() - self.started)


@dataclass(frozen=True)
class Chain:
    """The collection, the checkpoints and the commands, below one folder."""

    root: Path

    @property
    def docs(self) -> Path:
        return self.root / "docs"

    @property
    def model(self) -> Path:
        return self.root / "model"

    def make(self) -> None:
        """Write documents, queries, judgements and the checkpoint, which is embedder and reranker."""
        self.docs.mkdir(parents=True)
        for name, pages in TEXTS.items():
            (self.docs / f"{name}.pdf").write_bytes(pdf(pages))
        for name, queries in (("queries", QUERIES), ("others", OTHERS)):
            lines = (json.dumps({"query_id": key, "text": text}) + "\n" for key, text in queries.items())
            (self.root / f"{name}.jsonl").write_text("".join(lines))
        (self.root / "qrels.trec").write_text("q1 0 thesis.pdf/0001 1\nq2 0 soil.pdf/0002 1\nq3 0 ferry.pdf/0008 1\n")
        random_checkpoint.save(random_checkpoint.new_model(SHAPE), self.model, SHAPE.max_tokens, torch.float32)

    def command(self, stage: str, work: Path) -> list[str]:
        """The arguments of a stage's command."""
        fp32 = ("--dtype", "float32")
        small = ("--renderer", "pdfium", "--max-tokens", 64, "--workers", 1)
        rest: dict[str, tuple[object, ...]] = {
            "index": (self.docs, "--embedder", self.model, *fp32, *small),
            "precache": ("--scorer-model", self.model, "--keep", 0.5, *fp32),
            "retrieve": ("--queries", self.root / "queries.jsonl"),
            "rerank": ("--queries", self.root / "queries.jsonl"),
            "others": ("--queries", self.root / "others.jsonl"),
            "eval": ("--qrels", self.root / "qrels.trec"),
            "verify": (),
        }[stage]
        return ["rerank" if stage == "others" else stage, *map(str, rest), "--work", str(work)]

    def start(self, args: Sequence[str], before: Callable[[], object] = lambda: None) -> Running:
        """Start a command. ``before`` runs in its process first, for example to limit it."""
        folder = self.root / "running" / f"{time.monotonic_ns()}"
        folder.mkdir(parents=True)
        pid = os.fork()
        if pid:
            with contextlib.suppress(OSError):  # also set by the child: whoever is first
                os.setpgid(pid, pid)
            return Running(pid, folder)
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        code = 70
        try:
            for name, number in (("out", 1), ("err", 2)):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
            before()
            code = _run(args)
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def run(self, args: Sequence[str], before: Callable[[], object] = lambda: None) -> Done:
        """Run a command to its end."""
        return self.start(args, before).wait()


def _run(args: Sequence[str]) -> int:
    """The command line in this process; its exit status."""
    from mmrr.cli import main

    sys.argv = ["mmrr", *args]
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    try:
        main.main()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


def limit_files(most_bytes: int) -> Callable[[], None]:
    """Limit the size of every file that a process writes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))


def ranking(done: Done) -> bytes:
    """The run of a command that made one: its last line of stdout is the artifact."""
    lines = done.out.splitlines()
    return (Path(lines[-1]) / "run.trec").read_bytes() if lines else b""


def pdf(pages: Sequence[str]) -> bytes:
    """A PDF with one line of text a page."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"", b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for text in pages:
        stream = f"BT /F1 18 Tf 20 150 Td ({text}) Tj ET 20 40 {10 + len(text)} 30 re f".encode()
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream))
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 500 200]/Resources<</Font<</F1 3 0 R>>>>/Contents %d 0 R>>"
            % len(objects)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(kids), b" ".join(kids))
    data, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj%s endobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    return data + b"xref\n0 %d\n0000000000 65535 f \n%strailer<</Root 1 0 R/Size %d>>\nstartxref\n%d\n%%%%EOF\n" % (
        size,
        table,
        size,
        len(data),
    )
