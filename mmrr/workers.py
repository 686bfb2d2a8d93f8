"""Helper processes: how they begin and end, and a stage's work shared out among several devices.

Those that draw pages begin here too, so torch is imported only where a model is run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from mmrr.errors import MmrrError

if TYPE_CHECKING:
    import torch

#: Does one task from beginning to end, telling of every page when it is done.
Work = Callable[[Any, Callable[[int], None]], None]
#: Loads a model on a device and says how a task is done with it.
Load = Callable[["torch.device"], Work]


def start_worker() -> None:
    """Make this process a helper of another: it ends when that one does, killed or not, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Pool(ProcessPoolExecutor):
    """Helper processes, which leave Ctrl-C to the one that started them from their first moment."""

    def __init__(self, n: int, begin: Callable[..., None] = start_worker, *args: Any) -> None:
        """Each is begun with ``begin(*args)``. Spawned: a forked one would inherit locks, and could not use CUDA."""
        super().__init__(n, multiprocessing.get_context("spawn"), begin, args)

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        with _interrupts_wait():
            return super().submit(*args, **kwargs)


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C counts when the block is over, and processes started in it never see one."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))  # another thread may take the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what a new process inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


@contextmanager
def helpers(n: int, begin: Callable[..., None] = start_worker, *args: Any) -> Iterator[Pool]:
    """A ``Pool`` that an error or Ctrl-C ends in the middle of what it does."""
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


def on_devices(
    devices: Sequence[torch.device],
    load: Load,
    tasks: Sequence[Any],
    progress: AbstractContextManager[Callable[[int], None]],
) -> float:
    """Do the tasks: with one device here, with several in a process each, which takes a task when it is free.

    For several devices ``load`` and the tasks are pickled, and ``progress`` hears of a task's pages when all of it is
    done. Returns the seconds it took; loading is not in it where there is one device. Raises MmrrError if a process
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
    free = multiprocessing.get_context("spawn").SimpleQueue()
    for device in devices:
        free.put(device)
    with progress as advance, helpers(len(devices), _begin, load, free, len(devices)) as pool:
        try:
            for done in as_completed([pool.submit(_do, task) for task in tasks]):
                advance(done.result())
        except BrokenProcessPool:
            raise MmrrError(
                f"the process of one of the devices ({', '.join(map(str, devices))}) died, perhaps for want of memory; "
                "the same command goes on from here: try it with fewer of them in --device"
            ) from None
    return time.perf_counter() - started


def _begin(*of_process: Any) -> None:
    start_worker()
    _OF_PROCESS.extend(of_process)


def _do(task: Any) -> int:
    """In a device's process: load the model for the first task, do it, and count its pages."""
    if len(_OF_PROCESS) > 1:
        import torch

        load, free, n_processes = _OF_PROCESS
        torch.set_num_threads(max(1, torch.get_num_threads() // n_processes))
        _OF_PROCESS[:] = [load(free.get())]
    (work,) = _OF_PROCESS
    pages: list[int] = []
    work(task, pages.append)
    return sum(pages)


#: What ``_begin`` left for ``_do``; then the work alone.
_OF_PROCESS: list[Any] = []
