"""Uploads and removals: one thread does them in order while searches go on with the collection as it was."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import unicodedata
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mmrr.api import Workspace
from mmrr.config import Render
from mmrr.documents.discovery import inspect, source_at
from mmrr.documents.formats import image_suffixes
from mmrr.errors import MmrrError
from mmrr.serve.errors import RefusedError, log
from mmrr.serve.metrics import Metrics
from mmrr.serve.settings import Limits
from mmrr.serve.turns import Turns
from mmrr.types import Progress

#: Stages that run a model: they take turns with the scoring thread.
_MODEL_STAGES = ("embed", "embed text", "prune", "precache")
#: Jobs whose state is kept.
_KEPT = 1000
#: Of a file's name in UTF-8, without its ending; most file systems allow 255.
_MOST_BYTES = 150
#: The folder of a workspace that holds uploaded files.
UPLOADS = "uploads"


@dataclass(frozen=True, slots=True)
class Job:
    """The state of an upload or a removal."""

    id: str
    kind: Literal["upload", "delete"]
    workspace: str
    document: str
    status: Literal["queued", "running", "done", "failed"] = "queued"
    stage: str = ""
    pages_done: int = 0
    pages: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Task:
    job: Job
    file: Path | None = None  # the uploaded file, still under another name


class Jobs:
    """The queue of uploads and removals, and the thread that does them. ``start`` and ``stop`` it."""

    def __init__(
        self,
        open_workspace: Callable[[str, Progress], Workspace],
        render: Render,
        limits: Limits,
        metrics: Metrics,
        turns: Turns,
    ) -> None:
        """``open_workspace(name, progress)`` opens a workspace for writing."""
        self._open, self._render = open_workspace, render
        self._limits, self._metrics, self._turns = limits, metrics, turns
        self._known: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()
        self._tasks: queue.Queue[_Task | None] = queue.Queue(limits.jobs)
        self._running = ""  # id of the running job
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="mmrr-documents", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the job at its next page, and the thread. The collection stays as it was before the job."""
        self._stopping = True
        with contextlib.suppress(queue.Full):
            self._tasks.put_nowait(None)
        if self._thread.ident is not None:
            self._thread.join(timeout=30)

    def get(self, job_id: str) -> Job:
        """Raises RefusedError for an unknown id."""
        with self._lock:
            if job_id not in self._known:
                raise RefusedError(
                    404, "no job of that id; the server keeps the state of the newest 1,000 since its start"
                )
            return self._known[job_id]

    def check_room(self) -> None:
        """Raise RefusedError if the queue of jobs is full."""
        if self._tasks.full():
            raise RefusedError(429, f"{self._limits.jobs} uploads wait; try again later", retry_after=30)

    def upload(self, workspace: str, name: str, file: Path) -> Job:
        """Index an uploaded file under this name. Raises RefusedError if the queue is full."""
        return self._add(_Task(Job(uuid.uuid4().hex, "upload", workspace, name), file))

    def delete(self, workspace: str, document: str) -> Job:
        """Remove a document. Raises RefusedError if the queue is full."""
        return self._add(_Task(Job(uuid.uuid4().hex, "delete", workspace, document)))

    def _add(self, task: _Task) -> Job:
        self._set(task.job)
        try:
            self._tasks.put_nowait(task)
        except queue.Full:
            with self._lock:
                del self._known[task.job.id]
            self.check_room()
            raise RefusedError(429, "too many uploads wait; try again later", retry_after=30) from None
        return task.job

    def _set(self, job: Job) -> None:
        with self._lock:
            self._known[job.id] = job
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)

    def _change(self, job_id: str, **values: object) -> None:
        with self._lock:
            if job_id in self._known:
                self._known[job_id] = replace(self._known[job_id], **values)  # type: ignore[arg-type]

    # In the documents thread

    def _run(self) -> None:
        opened: dict[str, Workspace] = {}
        try:
            while (task := self._tasks.get()) is not None and not self._stopping:
                self._running = task.job.id
                self._change(task.job.id, status="running")
                try:
                    name = task.job.workspace
                    if name not in opened:
                        opened[name] = self._open(name, self._progress)
                    document = self._do(task, opened[name])
                    self._end(task, "done", document, "")
                except MmrrError as error:
                    log.error("%s %s: %s", task.job.kind, task.job.document, error)
                    self._end(task, "failed", task.job.document, str(error).replace(str(opened_path(opened, name)), ""))
                except Exception as error:
                    log.error("a bug in mmrr: %s", type(error).__name__, exc_info=error)
                    self._end(task, "failed", task.job.document, "an error of the server; its log has the reason")
        finally:
            for workspace in opened.values():
                workspace.close()

    def _end(self, task: _Task, status: str, document: str, message: str) -> None:
        self._metrics.jobs.labels(status).inc()
        self._change(task.job.id, status=status, document=document, message=message, stage="")
        if task.file is not None:
            task.file.unlink(missing_ok=True)

    def _do(self, task: _Task, workspace: Workspace) -> str:
        """Returns the id of the document."""
        if task.file is None:
            uploaded = workspace.file_of(task.job.document)
            with self._turns.turn():  # no search reads what is removed
                workspace.remove(task.job.document)
            if uploaded and uploaded.parent == upload_folder(workspace) and uploaded.is_file():
                uploaded.unlink(missing_ok=True)
            return task.job.document
        self._check_pages(task.file)
        stored = upload_folder(workspace) / task.job.document
        os.replace(task.file, stored)
        indexed = workspace.add(stored, render=self._render)
        places = workspace.document_at(stored)
        entry = next((one for one in indexed.documents if one["doc_id"] == places), None)
        if entry is None:
            raise MmrrError("the document is not in the collection")
        if not entry["shards"]:
            raise MmrrError(f"{entry['status']}: {entry['detail']}")
        return entry["doc_id"]

    def _check_pages(self, file: Path) -> None:
        source = source_at("document", file)
        found = inspect(source) if source else None
        if found is None or found.status != "ok":
            raise MmrrError(f"{found.status}: {found.detail}" if found else "the file is gone")
        if found.n_pages > self._limits.pages:
            raise MmrrError(f"{found.n_pages} pages; expected at most {self._limits.pages}")

    @contextmanager
    def _progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        self._change(self._running, stage=description, pages_done=0, pages=total)
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            if self._stopping:
                raise MmrrError("the server stopped; upload the file again")
            done += n
            self._change(self._running, pages_done=done)

        if description not in _MODEL_STAGES:
            yield advance
            return

        def advance_and_let_others(n: int) -> None:
            advance(n)
            self._turns.let_others()

        with self._turns.turn():
            yield advance_and_let_others


def opened_path(opened: dict[str, Workspace], name: str) -> Path:
    """The folder of a workspace, to leave it out of messages."""
    return opened[name].path if name in opened else Path("/nowhere")


def upload_folder(workspace: Workspace) -> Path:
    """The folder of uploaded files. Raises MmrrError if it is a symbolic link or cannot be made."""
    folder = workspace.path / UPLOADS
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MmrrError(f"{folder} cannot be made: {error.strerror}") from error
    if folder.is_symlink():
        raise MmrrError(f"{folder} is a symbolic link; expected a folder")
    return folder


def safe_name(name: str) -> str:
    """A file name for an uploaded document: letters, digits, ``.``, ``-`` and ``_``, at most 150 bytes and an ending.

    Raises RefusedError for a name without an ending of a document.
    """
    name = unicodedata.normalize("NFC", name).replace("\\", "/").rsplit("/", 1)[-1]
    name = re.sub(r"[^\w.-]+", "_", name).lstrip("._-")
    stem, dot, suffix = name.rpartition(".")
    if not dot or not stem or f".{suffix.lower()}" not in {".pdf", *image_suffixes()}:
        raise RefusedError(
            415, f"the file's name has no ending of a document; expected .pdf {' '.join(sorted(image_suffixes()))}"
        )
    return f"{stem.encode()[:_MOST_BYTES].decode(errors='ignore')}.{suffix}"
