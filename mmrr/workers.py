"""Helper processes: their start and end, and the distribution of a stage's tasks over devices.

Processes that render pages also start here, so torch is imported only where a model runs.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from mmrr.errors import MmrrError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.queues import SimpleQueue

    import torch

#: Does one task (Any: each stage has its own type) and reports the number of pages done.
Work = Callable[[Any, Callable[[int], None]], None]
#: Loads a model on a device and returns the function that does a task with it.
Load = Callable[["torch.device"], Work]


def start_worker() -> None:
    """Make this process a helper: it ends when its parent ends or is killed, and it ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Process(multiprocessing.context.SpawnProcess):
    """A spawned process that does not import the caller's script."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802  # the name that multiprocessing calls; Any: its types are private
        # A script without a __main__ guard would otherwise run again in each process. Tasks are functions of modules.
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            return multiprocessing.context.SpawnProcess._Popen(process_obj)  # type: ignore[attr-defined]
        finally:
            sys.modules["__main__"] = main


class _Spawn(multiprocessing.context.SpawnContext):
    """The context of processes that do not import the caller's script."""

    Process = _Process


class Pool(ProcessPoolExecutor):
    """Helper processes that ignore Ctrl-C from their start on. The parent handles it."""

    def __init__(self, n: int, begin: Callable[..., None] = start_worker, *args: Any) -> None:
        """``begin(*args)`` runs first in each process. Processes are spawned, because a forked process would inherit
        locks and could not use CUDA.
        """
        super().__init__(n, _Spawn(), begin, args)

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        with _deferred_interrupts():
            return super().submit(*args, **kwargs)


@contextmanager
def _deferred_interrupts() -> Iterator[None]:
    """Delay Ctrl-C until the block ends. Processes that start in the block inherit a mask and never get it."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    received: list[int] = []
    handler = signal.signal(
        signal.SIGINT, lambda number, _: received.append(number)
    )  # another thread may get the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # new processes inherit the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if received:
        raise KeyboardInterrupt


@contextmanager
def helpers(n: int, begin: Callable[..., None] = start_worker, *args: Any) -> Iterator[Pool]:
    """A ``Pool`` whose processes are terminated on an error or Ctrl-C, even in the middle of a task."""
    others = set(multiprocessing.active_children())
    pool = Pool(n, begin, *args)
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Helper:
    """One process that answers over a pipe, and that this process watches and may kill.

    Unlike a process of ``Pool``, its death or its end by ``kill`` concerns no other process.
    """

    def __init__(self, serve: Callable[[Connection], None]) -> None:
        """``serve(connection)`` runs in the process; it is a function of a module."""
        context = _Spawn()
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(serve, theirs), daemon=True)
        with _deferred_interrupts():
            self._process.start()
        theirs.close()  # so that the end of the process closes the pipe

    def memory(self) -> int:
        """The bytes of memory that the process holds; 0 where the system does not tell (only Linux does)."""
        try:
            with open(f"/proc/{self._process.pid}/statm", encoding="ascii") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0

    def kill(self) -> None:
        """End the process in the middle of whatever it does, and wait for its end."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(serve: Callable[[Connection], None], connection: Connection) -> None:
    start_worker()
    with suppress(EOFError, BrokenPipeError):  # the parent is gone or needs no more
        serve(connection)


def on_devices(
    devices: Sequence[torch.device],
    load: Load,
    tasks: Sequence[Any],
    progress: AbstractContextManager[Callable[[int], None]],
) -> float:
    """Do the tasks. One device: in this process. Several: in one process for each, which takes a task when it is free.

    With several devices, ``load`` and the tasks are pickled, and ``progress`` gets the pages of a task when the whole
    task is done. Returns the time in seconds, without loading if there is one device. Raises MmrrError if a process
    dies.
    """
    devices = devices[: len(tasks)]
    if len(devices) == 1:
        work = load(devices[0])
        started = time.perf_counter()
        with progress as advance:
            for task in tasks:
                work(task, advance)
        return time.perf_counter() - started
    started = time.perf_counter()
    free_devices = multiprocessing.get_context("spawn").SimpleQueue()
    for device in devices:
        free_devices.put(device)
    with progress as advance, helpers(len(devices), _start_device_process, load, free_devices, len(devices)) as pool:
        try:
            for done in as_completed([pool.submit(_run_task, task) for task in tasks]):
                advance(done.result())
        except BrokenProcessPool:
            raise MmrrError(
                f"the process of one of the devices ({', '.join(map(str, devices))}) died, perhaps because memory ran "
                "out; run the same command again, with fewer devices in --device: finished work is kept"
            ) from None
    return time.perf_counter() - started


class _DeviceProcess:
    """The state of one device's process: the model, loaded for the first task."""

    def __init__(self, load: Load, free_devices: SimpleQueue[torch.device], n_processes: int) -> None:
        self._load, self._free_devices, self._n_processes = load, free_devices, n_processes
        self._work: Work | None = None

    def run(self, task: Any) -> int:
        """Do a task. Returns its number of pages."""
        if self._work is None:
            import torch

            torch.set_num_threads(max(1, torch.get_num_threads() // self._n_processes))
            self._work = self._load(self._free_devices.get())
        pages: list[int] = []
        self._work(task, pages.append)
        return sum(pages)


#: Set by ``_start_device_process`` in a device's process only: tasks arrive as calls of a module function.
_device_process: _DeviceProcess | None = None


def _start_device_process(load: Load, free_devices: SimpleQueue[torch.device], n_processes: int) -> None:
    global _device_process
    start_worker()
    _device_process = _DeviceProcess(load, free_devices, n_processes)


def _run_task(task: Any) -> int:
    assert _device_process is not None
    return _device_process.run(task)
