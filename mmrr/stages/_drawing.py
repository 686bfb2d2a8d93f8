"""Draws the shards of the stage ``pages`` in helper processes. A document that kills its process fails alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mmrr.documents.discovery import Source, is_machine_fault
from mmrr.documents.rendering import RenderedPage, RenderOptions, render_pages
from mmrr.workers import Pool
from mmrr.workspace.store import Workspace

_DIED = "the process that draws them died"


@dataclass(frozen=True, slots=True)
class Task:
    """The pages of one shard."""

    key: str
    source: Source | None  # None: the document's file is not known
    sha256: str
    first: int
    last: int

    @property
    def n_pages(self) -> int:
        return self.last - self.first + 1


#: A shard: its task, the scratch folder with its files, and its pages, or what stopped the machine from drawing them.
Rendered = tuple[Task, Path, list[RenderedPage] | str]


def draw(workspace: Workspace, tasks: list[Task], options: RenderOptions, workers: int) -> Iterator[Rendered]:
    """Render in helper processes, a few tasks at a time. A document that kills its process fails alone."""
    left = {task.key: task for task in tasks}
    while left:
        started: list[Task] = []  # when a process dies, those of its pool that have no result
        try:
            for rendered in _pool(workspace, list(left.values()), options, min(workers, len(left)), started):
                del left[rendered[0].key]
                yield rendered
            return
        except BrokenProcessPool:
            pass
        for task in started or list(left.values())[:1]:  # one process each, to find the document that kills it
            del left[task.key]
            try:
                yield from _pool(workspace, [task], options, 1, [])
            except BrokenProcessPool:
                yield task, workspace.scratch(), _DIED
                if not _process_starts():  # then no other task can be done either
                    for other in left.values():
                        yield other, workspace.scratch(), "the processes that render do not start"
                    return


def _process_starts() -> bool:
    """Whether a helper process can do a task that needs no document."""
    with Pool(1) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool:
            return False
    return True


def _pool(
    workspace: Workspace, tasks: list[Task], options: RenderOptions, workers: int, started: list[Task]
) -> Iterator[Rendered]:
    """Render in ``workers`` processes. ``started`` always holds the tasks that were begun and have no result yet."""
    pool = Pool(workers)
    queue = iter(tasks)
    running: dict[Future[list[RenderedPage]], tuple[Task, Path]] = {}

    def submit(task: Task) -> None:
        folder = workspace.scratch()
        started.append(task)
        running[pool.submit(render_pages, task.source, task.first, task.last, folder, options)] = (task, folder)

    try:
        for task in islice(queue, 2 * workers):
            submit(task)
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                pages = _result(future)
                task, folder = running.pop(future)
                started.remove(task)
                yield task, folder, pages
                for following in islice(queue, 1):
                    submit(following)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for _, folder in running.values():
            workspace.discard(folder)


def _result(future: Future[list[RenderedPage]]) -> list[RenderedPage] | str:
    """The pages, or what stopped the machine from drawing them. Raises BrokenProcessPool if the process died."""
    try:
        return future.result()
    except (MemoryError, OSError) as error:
        if not is_machine_fault(error):
            raise
        return "memory ran out" if isinstance(error, MemoryError) else f"it could not be read ({error.strerror})"
