"""Stage ``pages``: documents -> page images and text layer, one shard per 16 pages of a document.

What OCR reads of the pages without a text layer lies in shards of its own beside those of the images, so that it can be
had later without anything that was made of the images being made again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmrr.config import Machine, Render
from mmrr.documents import ocr
from mmrr.documents.discovery import Source, inspect
from mmrr.documents.rendering import RenderedPage, RenderOptions, default_renderer, render_pages
from mmrr.errors import MmrrError
from mmrr.types import Progress, silent
from mmrr.workers import Pool, helpers
from mmrr.workspace.files import digest
from mmrr.workspace.pages import commit_ocr, commit_pages, complaint, list_pages
from mmrr.workspace.store import SHARD_PAGES, Manifest, Spec, Workspace


@dataclass(frozen=True, slots=True)
class _Task:
    key: str
    source: Source
    sha256: str
    first: int
    last: int


def render(
    workspace: Workspace,
    sources: list[Source],
    options: Render,
    machine: Machine,
    progress: Progress = silent,
) -> Manifest:
    """Render what no shard has yet, read by OCR what has no text if it is to be, and list the pages.

    Makes the result the head. A document that does not open is listed with its status and skipped. Raises MmrrError if
    none opens, or if OCR is asked for and its package is missing.
    """
    renderer = default_renderer() if options.renderer == "auto" else options.renderer
    if renderer not in ("poppler", "pdfium"):
        raise MmrrError(f"renderer '{renderer}' is not known; expected auto, poppler or pdfium")
    drawing = RenderOptions(renderer, options.dpi, options.max_tokens)  # type: ignore[arg-type]
    if machine.workers < 0:
        raise MmrrError(f"--workers {machine.workers}: expected 0 (one per core) or more")
    hashes = {source.doc_id: _hash(workspace, source) for source in sources}
    documents = {"documents": digest(sorted(hashes.items()))}
    drawn = Spec("pages", 1, {**dataclasses.asdict(drawing)}, documents)
    spec = dataclasses.replace(drawn, config={**drawn.config, "ocr": ocr.ENGINE}) if options.ocr else drawn
    if done := workspace.done(spec):
        workspace.set_current(done)
        return done
    if options.ocr:
        ocr.require()

    known = _known_inspections(workspace)
    entries: list[dict[str, Any]] = []
    tasks: dict[str, _Task] = {}
    lost: set[str] = set()
    with progress("open", len(sources)) as advance:
        for source in sources:
            found = known.get(hashes[source.doc_id]) or dataclasses.asdict(inspect(source))
            if found["status"] != "ok" and _hash(workspace, source) != hashes[source.doc_id]:
                lost.add(hashes[source.doc_id])
            entry = {
                "doc_id": source.doc_id,
                "sha256": hashes[source.doc_id],
                **{name: found[name] for name in ("status", "n_pages", "detail")},
                "shards": [],
            }
            if entry["status"] == "ok":
                for first in range(1, entry["n_pages"] + 1, SHARD_PAGES):
                    last = min(first + SHARD_PAGES - 1, entry["n_pages"])
                    key = drawn.shard_key(entry["sha256"], f"{first}-{last}")
                    tasks[key] = _Task(key, source, entry["sha256"], first, last)
                    entry["shards"].append(key)
            entries.append(entry)
            advance(1)
    if not tasks:
        raise MmrrError("no document could be opened: " + "; ".join(complaint(entry) for entry in entries[:5]))

    missing = [task for task in tasks.values() if not workspace.has_shard("pages", task.key)]
    pages_computed = sum(task.last - task.first + 1 for task in missing)
    workers = machine.workers or os.cpu_count() or 1
    started = time.perf_counter()
    with progress("render", pages_computed) as advance:
        for task, folder, pages in _run(workspace, missing, drawing, workers):
            if _hash(workspace, task.source) == task.sha256:
                commit_pages(workspace, task.key, folder, pages)
            else:
                lost.add(task.sha256)
            advance(task.last - task.first + 1)

    # What was drawn of a file that changed meanwhile is not kept under its old content, nor is the failure: the same
    # command finds the file as it then is.
    for entry in entries:
        if entry["sha256"] in lost:
            detail = "it changed or went away while it was read; run the command again"
            entry |= {"sha256": digest(["lost", entry["doc_id"]]), "status": "unreadable", "detail": detail}
            entry |= {"n_pages": 0, "shards": []}
    if lost:
        documents = {"documents": digest(sorted((entry["doc_id"], entry["sha256"]) for entry in entries))}
        spec = dataclasses.replace(spec, inputs=documents)
    timing: dict[str, Any] = {"pages_computed": pages_computed, "seconds": round(time.perf_counter() - started, 3)}
    if options.ocr:
        started = time.perf_counter()
        timing["pages_read"] = _read_by_ocr(workspace, spec, entries, workers, progress)
        timing["ocr_seconds"] = round(time.perf_counter() - started, 3)
    manifest = list_pages(workspace, spec, entries, provenance=timing)
    workspace.set_current(manifest)
    return manifest


def _read_by_ocr(
    workspace: Workspace, spec: Spec, entries: list[dict[str, Any]], workers: int, progress: Progress
) -> int:
    """Read the pages without a text layer; each document's ``ocr`` says in which shard. Returns how many were read."""
    missing: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    for entry in entries:
        entry["ocr"] = {}
        for key in entry["shards"]:
            lines = workspace.read_shard_file("pages", key, "text.jsonl").decode().split("\n")
            texts = {record["number"]: record["text"] for record in map(json.loads, filter(None, lines))}
            pages = [
                page
                for page in workspace.shard_record("pages", key)["pages"]
                if page["status"] == "ok" and not texts.get(page["number"], "").strip()
            ]
            if pages:
                entry["ocr"][key] = spec.shard_key(key)
                if not workspace.has_shard("pages", entry["ocr"][key]):
                    missing[entry["ocr"][key]] = key, pages
    images = [(workspace.shard("pages", drawn), page) for drawn, pages in missing.values() for page in pages]
    if not images:
        return 0
    try:
        with helpers(min(workers, len(images))) as pool, progress("ocr", len(images)) as advance:
            paths = (folder / page["file"] for folder, page in images)
            answers = pool.map(ocr.read_page, paths, (page["sha256"] for _, page in images))
            for key, (drawn, pages) in missing.items():
                read = []
                for page, answer in zip(pages, answers, strict=False):  # each shard takes its pages' answers
                    if answer is None:
                        raise workspace.damaged("pages", drawn, f"{page['file']} does not match its hash")
                    read.append((page["number"], *answer))
                    advance(1)
                commit_ocr(workspace, key, ocr.ENGINE, read)
    except BrokenProcessPool:
        raise MmrrError(
            "a process that read pages by OCR died, perhaps for want of memory; run the command again with --workers 1"
        ) from None
    return len(images)


def _hash(workspace: Workspace, source: Source) -> str:
    """Content hash of a document; one that cannot be read gets the hash of its name, and a status later."""
    try:
        if source.kind == "images":
            return digest(
                [[path.name, workspace.hashes.sha256(path)] for path in sorted(source.path.iterdir()) if path.is_file()]
            )
        return workspace.hashes.sha256(source.path)
    except OSError:
        return digest(["unreadable", source.doc_id])


def _known_inspections(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """What the last listing found out about documents: adding one to a thousand opens one."""
    head = workspace.current("pages")
    entries = head.content["documents"] if head else []
    return {entry["sha256"]: entry for entry in entries if entry["status"] == "ok"}


def _run(
    workspace: Workspace, tasks: list[_Task], options: RenderOptions, workers: int
) -> Iterator[tuple[_Task, Path, list[RenderedPage]]]:
    """Render in processes, few tasks in flight at a time. A document that kills its process costs that document."""
    left = {task.key: task for task in tasks}
    try:
        for task, folder, pages in _pool(workspace, tasks, options, min(workers, len(tasks) or 1)):
            del left[task.key]
            yield task, folder, pages
    except BrokenProcessPool:
        for task in list(left.values()):  # one process each, to find which it was
            try:
                yield from _pool(workspace, [task], options, 1)
            except BrokenProcessPool:
                detail = f"the {options.renderer} process died while drawing pages {task.first} to {task.last}"
                numbers = range(task.first, task.last + 1)
                yield (
                    task,
                    workspace.scratch(),
                    [RenderedPage(number, "failed", detail, 0, 0, "", "", "") for number in numbers],
                )


def _pool(
    workspace: Workspace, tasks: list[_Task], options: RenderOptions, workers: int
) -> Iterator[tuple[_Task, Path, list[RenderedPage]]]:
    pool = Pool(workers)
    queue = iter(tasks)
    running: dict[Future[list[RenderedPage]], tuple[_Task, Path]] = {}

    def submit(task: _Task) -> None:
        folder = workspace.scratch()
        running[pool.submit(render_pages, task.source, task.first, task.last, folder, options)] = (task, folder)

    try:
        for task in islice(queue, 2 * workers):
            submit(task)
        while running:
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                task, folder = running.pop(future)
                yield task, folder, future.result()
                for following in islice(queue, 1):
                    submit(following)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for _, folder in running.values():
            shutil.rmtree(folder, ignore_errors=True)
