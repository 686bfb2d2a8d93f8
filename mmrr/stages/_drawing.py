"""Draws the shards of the stage ``pages`` in helper processes that are watched.

A page that takes too long or too much memory ends its process and has a status of its own; the rest of its shard goes
on in another process. A document that kills its process fails alone.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from mmrr.documents import poppler
from mmrr.documents.discovery import Source, is_machine_fault
from mmrr.documents.drawn import Job
from mmrr.documents.limits import PastLimitError, past_memory, past_time
from mmrr.documents.pdf_pages import OpenPdfs
from mmrr.documents.rendering import RenderedPage, draw_pages
from mmrr.errors import MmrrError
from mmrr.workers import Helper
from mmrr.workspace.store import Workspace

_DIED = "the process that draws them died"
_NO_START = "the processes that render do not start"
#: Between two looks at the processes, in seconds.
_LOOK_S = 0.1
#: A process that holds more than this share of the memory limit before a shard is replaced.
_USED_SHARE = 0.5


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


def draw(workspace: Workspace, tasks: list[Task], settings: Job, workers: int) -> Iterator[Rendered]:
    """Draw in up to ``workers`` processes, with the options and limits of ``settings``.

    The shards are given as they are finished.
    """
    with tempfile.TemporaryDirectory(prefix="mmrr-", ignore_cleanup_errors=True) as temporary:
        queue = deque(tasks)
        crew = [_Seat(workspace, settings, Path(temporary)) for _ in range(min(workers, len(tasks)))]
        try:
            while queue or any(seat.task for seat in crew):
                for seat in crew:
                    if queue and seat.task is None:
                        seat.begin(queue.popleft())
                _wait(crew)
                for seat in crew:
                    if finished := seat.look():
                        yield finished
                    if seat.silent_deaths > 1 and queue:  # then no other task can be done either
                        for task in queue:
                            yield task, workspace.scratch(), _NO_START
                        queue.clear()
        finally:
            for seat in crew:
                seat.close()


def _wait(crew: list[_Seat]) -> None:
    """Wait until a process says something or dies, or until it is time to look at the limits."""
    wait([seat.helper.connection for seat in crew if seat.task and seat.helper], _LOOK_S)


class _Seat:
    """One process at a time, and the shard that it draws."""

    def __init__(self, workspace: Workspace, settings: Job, temporary: Path) -> None:
        self.helper: Helper | None = None
        self.task: Task | None = None
        self.silent_deaths = 0  # in a row, of processes that said nothing
        self._workspace, self._settings, self._temporary = workspace, settings, temporary

    def begin(self, task: Task) -> None:
        """Draw a shard, in the process that is there or in a new one."""
        self.task, self._folder = task, self._workspace.scratch()
        self._pages: list[RenderedPage] = []
        self._past: dict[int, PastLimitError] = {}  # the pages on which PDFium went past a limit
        self._deaths = 0
        self._one_by_one = False  # one page at a time, to know which one needs the memory
        self._send()

    def look(self) -> Rendered | None:
        """Take what the process says, and end it if a page is past a limit. Returns the shard if it is finished."""
        if self.task is None or self.helper is None:
            return None
        try:
            while self.helper.connection.poll():
                said = self.helper.connection.recv()
                self.silent_deaths = 0
                if isinstance(said, Exception):
                    raise said
                if isinstance(said, RenderedPage):
                    self._pages.append(said)
                    self._page = 0
                elif isinstance(said, tuple):
                    (self._page, self._is_drawn), self._since = said, time.monotonic()
                elif said or len(self._pages) == self.task.n_pages:
                    return self._finish(said)
                else:
                    self._send()
        except (EOFError, ConnectionError):
            return self._died()
        return self._check_limits()

    def close(self) -> None:
        """End the process. A shard that is not finished is given up."""
        self._end_process()
        if self.task:
            self._workspace.discard(self._folder)

    def _send(self) -> None:
        """Ask for the pages that are missing."""
        assert self.task
        limits = self._settings.limits
        if self.helper and self.helper.memory() > _USED_SHARE * limits.memory:
            self._end_process()
        if self.helper is None:
            self.helper = Helper(_serve)
        # The page that is read or drawn; 0: its time is not counted.
        self._page, self._is_drawn, self._since = 0, False, time.monotonic()
        done = {page.number for page in self._pages}
        numbers = [number for number in range(self.task.first, self.task.last + 1) if number not in done]
        job = dataclasses.replace(
            self._settings, numbers=numbers[:1] if self._one_by_one else numbers, without_pdfium=dict(self._past)
        )
        with suppress(OSError):  # it died: look() finds out
            self.helper.connection.send((self.task.source, job, self._folder, self._temporary))

    def _finish(self, problem: str) -> Rendered:
        assert self.task
        task, self.task = self.task, None
        return task, self._folder, problem or sorted(self._pages, key=lambda page: page.number)

    def _died(self) -> Rendered | None:
        """Try a second time, in a new process."""
        self._end_process()
        self._deaths += 1
        self.silent_deaths += 1
        if self._deaths == 1:
            self._send()
            return None
        return self._finish(_DIED)

    def _check_limits(self) -> Rendered | None:
        """Kill the process of a page past a limit. Poppler draws the page if it has not tried yet, else nobody does."""
        assert self.helper
        assert self.task
        assert self.task.source
        limits, is_pdf = self._settings.limits, self.task.source.kind == "pdf"
        who = "PDFium" if is_pdf else "Pillow"
        if self._page and time.monotonic() - self._since > limits.seconds:
            error = past_time(limits, who)
        elif self.helper.memory() > limits.memory:
            error = past_memory(limits, who)
            if not self._one_by_one and self.task.n_pages > 1:
                self._end_process()
                self._one_by_one = True
                self._send()
                return None
        else:
            return None
        self._end_process()
        done = {page.number for page in self._pages}
        number = self._page or next(one for one in range(self.task.first, self.task.last + 1) if one not in done)
        tried = number in self._past or (self._settings.options.renderer == "poppler" and self._is_drawn)
        if tried or not is_pdf or not poppler.installed():
            self._pages.append(RenderedPage(number, error.status, str(error), 0, 0, "", "", ""))
            if len(self._pages) == self.task.n_pages:
                return self._finish("")
        self._past[number] = error
        self._send()
        return None

    def _end_process(self) -> None:
        if self.helper:
            self.helper.kill()
        self.helper = None


def _serve(connection: Connection) -> None:
    """Draw jobs in a helper process. It sends (page, drawing) when work on a page begins, each page, and how it ended.

    A job ends with "", with what stopped the machine, or with an exception.
    """
    connection.send((0, False))  # the process has started
    with closing(OpenPdfs()) as open_pdfs:
        while True:
            source, job, out, temporary = connection.recv()
            job = dataclasses.replace(job, begin=lambda *page: connection.send(page))
            try:
                for page in draw_pages(source, job, out, open_pdfs, temporary):
                    connection.send(page)
            except Exception as error:
                connection.send(_problem(error))
            else:
                connection.send("")


def _problem(error: Exception) -> str | Exception:
    """What stopped the machine, in words; any other error itself, as it can be pickled."""
    if is_machine_fault(error):
        return "memory ran out" if isinstance(error, MemoryError) else f"it could not be read ({error.strerror})"
    if isinstance(error, OSError | MmrrError):
        return error
    return RuntimeError(f"{type(error).__name__} while pages were drawn: {error}")
