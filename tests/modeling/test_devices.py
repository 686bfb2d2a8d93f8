"""Several devices: how they are chosen, and how work is divided among them, with one process a device."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from mmrr.errors import MmrrError
from mmrr.modeling.devices import resolve_device, resolve_devices
from mmrr.workers import Work, on_devices
from tests.console import FP32, INDEX, files, mmrr, refused, run_lines, shards, write_documents
from tests.workspace.test_resume import assert_all_end, assert_stopped, started, wait_until

CPU = torch.device("cpu")


def note_down(folder: Path, device: torch.device) -> Work:
    """A stand-in for a model: a task is the name of a file, into which the process writes its device."""

    def write(task: str, advance: Callable[[int], None]) -> None:
        if task == "wrong":
            raise MmrrError("a page is damaged")
        if task == "dies":
            os._exit(9)
        while task == "waits" and not any(folder.iterdir()):
            time.sleep(0.01)
        (folder / task).write_text(f"{os.getpid()} {device} {torch.get_num_threads()}")
        advance(1)
        advance(2)

    return write


@pytest.mark.slow
def test_tasks_are_divided_and_their_pages_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"OMP_NUM_THREADS": "6", "MKL_NUM_THREADS": "6", "MKL_DYNAMIC": "FALSE"}.items():
        monkeypatch.setenv(name, value)
    counted: list[int] = []
    seconds = on_devices([CPU, CPU], partial(note_down, tmp_path), ["waits", *"abc"], nullcontext(counted.append))
    written = {path.name: path.read_text().split() for path in tmp_path.iterdir()}
    assert set(written) == {"waits", *"abc"}
    # "waits" ends only when another task is done, which another process must have taken.
    assert len({process for process, _, _ in written.values()}) == 2
    assert str(os.getpid()) not in {process for process, _, _ in written.values()}
    assert {(device, threads) for _, device, threads in written.values()} == {
        ("cpu", "3")
    }  # threads are divided among processes too
    assert counted == [3, 3, 3, 3]
    assert seconds > 0


@pytest.mark.parametrize("n_devices", [1, 2])
def test_one_task_needs_no_process(tmp_path: Path, n_devices: int) -> None:
    counted: list[int] = []
    on_devices([CPU] * n_devices, partial(note_down, tmp_path), ["a"], nullcontext(counted.append))
    assert (tmp_path / "a").read_text().split()[0] == str(os.getpid())
    assert counted == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tasks", "message"), [(["wrong", "waits"], "a page is damaged"), (["dies", "a"], r"\(cpu, cpu\) died")]
)
def test_errors_in_a_process_are_reported(tmp_path: Path, tasks: list[str], message: str) -> None:
    """An error is reported immediately; a killed process at the latest when another process finishes a task."""
    with pytest.raises(MmrrError, match=message):
        on_devices([CPU, CPU], partial(note_down, tmp_path), tasks, nullcontext(lambda n: None))


def test_auto_takes_every_cuda_device_and_a_list_those_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_devices("cpu,cpu") == [CPU, CPU]
    assert resolve_device("cpu,cuda:7") == CPU
    with pytest.raises(MmrrError, match="device 'cud' cannot be used on this machine"):
        resolve_devices("cpu,cud")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for n, devices in [(1, [torch.device("cuda")]), (3, [torch.device("cuda", i) for i in range(3)])]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=n: n)
        assert resolve_devices() == devices
        assert resolve_device() == torch.device("cuda")


@pytest.fixture
def commands(tmp_path: Path, tiny_path: Path, tiny_embedder_path: Path) -> list[tuple[object, ...]]:
    """The arguments of ``index`` and ``precache`` for four documents, without the workspace."""
    texts = {f"doc{i}": [f"page {n} of document {i} on tides and wind" for n in (1, 2)] for i in range(4)}
    docs = write_documents(tmp_path / "docs", **texts)
    return [
        ("index", docs, "--embedder", tiny_embedder_path, *INDEX, *FP32),
        ("precache", "--scorer-model", tiny_path, *FP32),
    ]


@pytest.mark.slow
def test_pages_embedded_and_cached_by_two_devices_are_those_of_one(
    commands: list[tuple[object, ...]], tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for command in commands:
        mmrr(*command, "--work", one)
        mmrr(*command, "--work", two, "--device", "cpu,cpu")
    for stage in ("embed", "precache"):
        assert shards(two, stage) == shards(one, stage)
        for path in sorted((one / "shards" / stage).rglob("*.safetensors")):
            assert (two / path.relative_to(one)).read_bytes() == path.read_bytes()
    assert len(shards(two, "precache")) == 5  # four documents and the instruction
    assert not [path for path in (two / "tmp").rglob("*") if path.is_file()]
    mmrr("verify", "--work", two)
    runs = []
    for work in (one, two):
        (found,) = mmrr("rerank", "tides", "--work", work, "--device", "cpu,cpu").stdout.splitlines()[-1:]
        runs.append(run_lines(Path(found) / "run.trec"))
    assert runs[0] == runs[1]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["started", "loading"])
def test_an_interrupt_ends_the_processes_of_all_devices(
    commands: list[tuple[object, ...]], tmp_path: Path, moment: str
) -> None:
    """Ctrl-C, which a terminal sends to all processes, when the first one starts and while they load torch."""
    index, precache = commands
    work = tmp_path / "work"
    mmrr(*index, "--work", work)
    with started(*precache, "--work", work, "--device", "cpu,cpu", alone=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.parent.exists():
            pytest.skip("no /proc to look for processes in")
        workers: list[str] = []

        def there() -> bool:
            workers[:] = [pid for pid in children.read_text().split() if moment == "started" or "libtorch" in maps(pid)]
            return len(workers) >= 2

        wait_until(there, process)
        os.killpg(process.pid, signal.SIGINT)
        assert_stopped(process)
    assert_all_end(workers)
    before = files(work)
    mmrr(*precache, "--work", work)
    assert before.items() <= files(work).items()


def maps(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def test_a_device_that_is_not_there_is_one_line(commands: list[tuple[object, ...]], tmp_path: Path) -> None:
    index, _ = commands
    message = refused(*index, "--work", tmp_path / "w", "--device", "cpu,cuda:9")
    assert "device 'cuda:9' cannot be used on this machine" in message
