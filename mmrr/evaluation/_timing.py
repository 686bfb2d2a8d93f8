"""Timing of one piece of work, and the limits of the machine that it is compared with."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mmrr.workspace.store import Workspace

_STATES_FILE = "states.safetensors"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    candidates: int
    ms: float  # median time of one query over all candidates
    timed: int  # candidates that were run; if fewer than ``candidates``, ms is scaled up in proportion
    flops: float  # per query; 0: not counted
    limit_flops: float  # FLOP/s of a matrix product, measured between the repeats
    page_bytes: int = 0  # size of one candidate's cache
    queries: int = 1
    peak_bytes: int | None = None  # peak during the runs: of the process, or with CUDA of the device


@dataclass(frozen=True, slots=True)
class Task:
    """One line to be timed."""

    what: str
    candidates: int
    work: Callable[[], object]
    flops: float = 0.0  # per query; 0: not counted
    timed: int = 0  # candidates that ``work`` runs; 0: all
    before: Callable[[], object] | None = None  # runs before each repeat and is not timed
    queries: int = 1
    page_bytes: int = 0


@dataclass(slots=True)
class Clock:
    """Times tasks and collects the rows of the table."""

    repeats: int
    advance: Callable[[int], None]
    product: Callable[[], float]  # measures the FLOP/s of a matrix product
    rows: list[Row] = field(default_factory=list)

    def time(self, task: Task) -> None:
        """Time a task. If it has no ``before``, the first run is a warm-up and does not count."""
        if task.before is None:
            task.work()
        _reset_peak()
        seconds, limits = [], []
        for _ in range(self.repeats):
            limits.append(self.product())
            if task.before:
                task.before()
            seconds.append(_seconds(task.work))
        timed = task.timed or task.candidates
        ms = 1000 * statistics.median(seconds) * task.candidates / timed / task.queries
        self.rows.append(
            Row(
                what=task.what,
                candidates=task.candidates,
                ms=ms,
                timed=timed,
                flops=task.flops,
                limit_flops=statistics.median(limits),
                page_bytes=task.page_bytes,
                queries=task.queries,
                peak_bytes=_peak(),
            )
        )
        self.advance(1)


def matrix_product(dtype: torch.dtype, device: torch.device) -> Callable[[], float]:
    """A function that multiplies two 2,048 x 2,048 matrices and returns the FLOP/s. It has run once as a warm-up."""
    a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))

    def product() -> float:
        return 2 * 2048**3 / _seconds(lambda: a @ b)

    product()
    return product


def copy_speed(device: torch.device) -> float:
    """Bytes per second of a copy of 256 MB: the fastest of five."""
    source, target = (torch.zeros(1 << 28, dtype=torch.uint8, device=device) for _ in range(2))
    return (1 << 28) / min(_seconds(lambda: target.copy_(source)) for _ in range(5))


def evict(workspace: Workspace, places: Sequence[tuple[str, str]]) -> None:
    """Ask the operating system to drop its cached pages of these shards, so that the next read comes from the disk."""
    if not hasattr(os, "posix_fadvise"):
        return
    for key in {key for key, _ in places}:
        descriptor = os.open(workspace.shard("precache", key) / _STATES_FILE, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _seconds(work: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    """The peak memory since ``_reset_peak``: of the CUDA device, else resident; None if the system does not say."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
