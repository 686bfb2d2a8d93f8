"""Stage ``pages``: documents -> page images and text layer, one shard per 16 pages of a document.

Text that OCR reads from pages without a text layer goes to separate shards. OCR can therefore be added later, and
everything that was made from the images stays.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mmrr.config import Render
from mmrr.context import Context
from mmrr.documents.discovery import Inspection, Source, source_at
from mmrr.documents.drawn import Job, RenderOptions
from mmrr.documents.limits import LEAST_MEMORY, Limits
from mmrr.documents.rendering import default_renderer
from mmrr.errors import MmrrError
from mmrr.stages._drawing import Task, draw
from mmrr.stages._ocr import read_pages, reading
from mmrr.stages._opening import Opener, read_passwords
from mmrr.stages._provisional import Conditions
from mmrr.stages._sources import Staying, content_hash, content_hashes, unreadable_hash
from mmrr.stages._sources import find_documents as find_documents  # "as": the pipeline imports these two from here
from mmrr.stages._sources import record_origins as record_origins
from mmrr.stages._tiles import TILING, cut_pages
from mmrr.workspace import manifests
from mmrr.workspace.files import digest
from mmrr.workspace.manifests import NOT_RENDERED, DocumentEntry, PagesProvenance
from mmrr.workspace.pages import RENDERED, commit_pages, complaint, list_pages, pages_spec
from mmrr.workspace.store import SHARD_PAGES, Manifest, Spec, Workspace

#: Why a document was not rendered, for people.
_CHANGED = "it changed or went away while it was read"


@dataclass(slots=True)
class _Plan:
    """The documents of the new listing, and the shards that they need."""

    entries: list[DocumentEntry] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)  # by shard
    opened: set[str] = field(default_factory=set)  # content hashes of the files that this command opened
    named: set[str] = field(default_factory=set)  # content hashes of the files that the command looks at
    lost: dict[str, str] = field(default_factory=dict)  # of those that could not be read: {content hash: reason}
    unfinished: set[str] = field(default_factory=set)  # content hashes of those that an earlier command left unfinished
    not_rendered: dict[str, str] = field(default_factory=dict)  # {shard: what stopped it}
    earlier: dict[str, str] = field(default_factory=dict)  # ``provisional`` of documents that stay, as listed before
    provisional: dict[str, str] = field(default_factory=dict)  # {shard: the one that stands for it, which is not whole}

    def add(self, entry: DocumentEntry, source: Source | None, drawn: Spec) -> None:
        """Add a document and, if it opens, its shards."""
        if entry["status"] == "ok":
            for first in range(1, entry["n_pages"] + 1, SHARD_PAGES):
                last = min(first + SHARD_PAGES - 1, entry["n_pages"])
                key = drawn.shard_key(entry["sha256"], f"{first}-{last}")
                self.tasks.setdefault(key, Task(key, source, entry["sha256"], first, last))
                entry["shards"].append(key)
        self.entries.append(entry)

    def drop_lost(self) -> None:
        """List files that could not be read, or that changed while they were read, as unreadable.

        Their pages are not stored under the old content, and the failure is not stored either: the same command reads
        the new content.
        """
        for entry in self.entries:
            if entry["sha256"] in self.lost:
                entry["detail"] = f"{self.lost[entry['sha256']]}; run the command again"
                entry["sha256"] = digest(["lost", entry["doc_id"]])
                entry["status"], entry["n_pages"], entry["shards"] = "unreadable", 0, []

    def drop_not_rendered(self) -> None:
        """List documents with missing shards as not rendered, with the shards that they have.

        What stopped a shard is a property of the machine. It is in this listing alone: the next command tries again.
        """
        tasks = {key: self.tasks[key] for key in self.not_rendered}
        for entry in self.entries:
            missing = [tasks[key] for key in entry["shards"] if key in tasks]
            if missing:
                ranges = ", ".join(f"{task.first}-{task.last}" for task in missing[:3])
                pages = f"pages {ranges}{', ...' if len(missing) > 3 else ''}"
                entry["detail"] = f"{pages}: {self.not_rendered[missing[0].key]}; run the command again"
                entry["status"] = NOT_RENDERED
                entry["shards"] = [key for key in entry["shards"] if key not in tasks]

    def use_provisional(self) -> None:
        """List the shards that stand for others."""
        for entry in self.entries:
            used = {key: self.provisional[key] for key in entry["shards"] if key in self.provisional}
            if used:
                entry["provisional"] = used
                entry["shards"] = [used.get(key, key) for key in entry["shards"]]


def check(context: Context, options: Render) -> None:
    """Raise the MmrrError that ``render`` raises for these options, before documents are looked for."""
    _drawing(context, options)
    read_passwords(options.password)


def changed_options(context: Context, before: Manifest, options: Render) -> str:
    """The options that make the pages of ``before`` be rendered again, with both values; "" if there are none."""
    old, new = manifests.config(before, "pages"), dataclasses.asdict(_drawing(context, options))
    changed = [f"{name} {new[name]}, was {was}" for name, was in old.items() if name in new and new[name] != was]
    return f"{'; '.join(changed)}: all pages are rendered again" if changed else ""


def render(context: Context, sources: list[Source], options: Render, staying: Sequence[Staying] = ()) -> Manifest:
    """Render the shards that are missing, read pages without text by OCR if asked, and list the pages.

    The listing holds ``sources`` and ``staying``. A document that does not open is listed with its status and skipped.
    Raises MmrrError if none opens, if the OCR package is missing, or if pages of a staying document are missing and its
    file is gone.
    """
    drawing = _drawing(context, options)
    opener = Opener(context, read_passwords(options.password), options.convert)
    opener.check_names(sources)
    hashes = content_hashes(context, sources)
    wanted = reading(options)
    drawn_config = dataclasses.asdict(drawing)
    config = {**drawn_config, "ocr": wanted.name} if wanted else drawn_config
    if options.tiles:
        config = {**config, "tiles": TILING}
    drawn = Spec("pages", RENDERED, drawn_config, {})
    contents = [(source.doc_id, hashes[source.doc_id]) for source in sources]
    contents += [(one.entry["doc_id"], one.entry["sha256"]) for one in staying]
    listed = [_entry(doc_id, sha256) for doc_id, sha256 in contents]  # the spec of the listing if all are rendered
    if done := context.workspace.done(pages_spec(config, listed)):
        return done

    plan = _plan(opener, sources, hashes, staying, drawn)
    if not plan.tasks:
        raise MmrrError("no document could be opened: " + "; ".join(complaint(entry) for entry in plan.entries[:5]))
    timing = _render_missing(opener, plan, drawing, drawn)
    plan.drop_lost()
    plan.drop_not_rendered()
    plan.use_provisional()
    if options.tiles:
        cut = Spec("pages", RENDERED, {**drawn_config, "tiles": TILING}, {})
        cut_pages(context, cut, plan.entries, partial(_file, opener, plan), drawing, _workers(context))
    if wanted:
        started = time.perf_counter()
        spec = Spec("pages", RENDERED, config, {})
        timing["pages_read"] = read_pages(context, wanted, spec, plan.entries, _workers(context))
        timing["ocr_seconds"] = round(time.perf_counter() - started, 3)
    spec = pages_spec(config, plan.entries)
    if done := context.workspace.done(spec):
        return _with_reasons(done, plan.entries)
    return list_pages(context.workspace, spec, plan.entries, provenance=timing)


def _with_reasons(done: Manifest, entries: Sequence[DocumentEntry]) -> Manifest:
    """The listing with why documents do not open now: with another password it is another reason."""
    details = {entry["doc_id"]: entry["detail"] for entry in entries if entry["status"] == "password_required"}
    listed = [{**entry, "detail": details.get(entry["doc_id"], entry["detail"])} for entry in manifests.documents(done)]
    return dataclasses.replace(done, content={**done.content, "documents": listed})


def _file(opener: Opener, plan: _Plan, entry: DocumentEntry) -> Source | None:
    """The file of a document, if it is there and as it was."""
    sha256 = entry["sha256"]
    source = next((task.source for task in plan.tasks.values() if task.sha256 == sha256), None)
    if source is None or content_hash(opener.context.workspace, source) != sha256:
        return None
    opened, found = opener.open(source, sha256)
    return opened if found.status == "ok" else None


def _drawing(context: Context, options: Render) -> RenderOptions:
    """The renderer's options. Raises MmrrError for an unknown renderer, and for a wrong number of workers or limit."""
    renderer = default_renderer() if options.renderer == "auto" else options.renderer
    if renderer not in ("poppler", "pdfium"):
        raise MmrrError(f"renderer '{renderer}' is not known; expected auto, poppler or pdfium")
    if context.machine.workers < 0:
        raise MmrrError(f"--workers {context.machine.workers}: expected 0 (one per core) or more")
    _limits(context)
    return RenderOptions(renderer, options.dpi, options.max_tokens)  # type: ignore[arg-type]


def _entry(doc_id: str, sha256: str, found: Inspection | None = None) -> DocumentEntry:
    status, n_pages, detail = (found.status, found.n_pages, found.detail) if found else ("", 0, "")
    return {"doc_id": doc_id, "sha256": sha256, "status": status, "n_pages": n_pages, "detail": detail, "shards": []}


def _plan(
    opener: Opener, sources: list[Source], hashes: Mapping[str, str], staying: Sequence[Staying], drawn: Spec
) -> _Plan:
    """Open the documents whose content is new, and list the shards of all."""
    context = opener.context
    known = _known_inspections(context.workspace)
    plan = _Plan(named=set(hashes.values()))
    new = [source for source in sources if hashes[source.doc_id] not in known]
    opener.convert_all(new, hashes, _workers(context))
    with context.progress("open", len(sources)) as advance:
        for source in sources:
            sha256 = hashes[source.doc_id]
            opened, found = source, known.get(sha256)
            if found is None:
                opened, found = opener.open(source, sha256)
                plan.opened.add(sha256)
            if found.status != "ok" and content_hash(context.workspace, source) != sha256:
                plan.lost[sha256] = _CHANGED
            elif found.status == "unreadable" and sha256 != unreadable_hash(source):
                plan.lost[sha256] = found.detail  # its content is known: another command may be able to read it
            plan.add(_entry(source.doc_id, sha256, found), opened, drawn)
            advance(1)
    for one in staying:
        # "partial" and "corrupt" say that pages failed, so they were opened
        is_whole = bool(one.entry["shards"]) or one.entry["status"] == NOT_RENDERED
        if one.entry["status"] == NOT_RENDERED:
            plan.unfinished.add(one.entry["sha256"])
        plan.earlier |= one.entry.get("provisional", {})
        found = Inspection("ok", one.entry["n_pages"], "") if is_whole else _inspection(one.entry)
        there = source_at(one.entry["doc_id"], one.path) if one.path else None
        plan.add(_entry(one.entry["doc_id"], one.entry["sha256"], found), there, drawn)
    if staying:  # the order in which one command would find them, after those of unknown origin
        paths = {one.entry["doc_id"]: one.path for one in staying if one.path}
        paths |= {source.doc_id: source.path for source in sources}
        plan.entries.sort(key=lambda entry: (entry["doc_id"] in paths, paths.get(entry["doc_id"], Path())))
    return plan


def _render_missing(opener: Opener, plan: _Plan, drawing: RenderOptions, drawn: Spec) -> PagesProvenance:
    """Render the shards that are missing, unless their file changed. Returns how many pages, and how long it took."""
    context = opener.context
    workspace = context.workspace
    limits = _limits(context)
    conditions = Conditions(drawn, limits)
    missing = [task for task in plan.tasks.values() if not _is_stored(workspace, plan, task, conditions.names(task))]
    earlier = [task for task in missing if task.sha256 not in plan.named]
    gone = {
        task.sha256 for task in earlier if task.source is None or content_hash(workspace, task.source) != task.sha256
    }
    missing = [task for task in missing if task.sha256 not in gone or not _is_stored(workspace, plan, task)]
    gone &= {task.sha256 for task in missing}
    # Nobody has seen the pages that an earlier command left unfinished: they are no reason to stop.
    names = [entry["doc_id"] for entry in plan.entries if entry["sha256"] in gone - plan.unfinished]
    if names:
        raise MmrrError(
            f"{len(names)} documents added earlier have to be rendered again and their files are gone or changed "
            f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); name their folders too, keep the earlier "
            "rendering options, or take them out with: mmrr rm --document NAME"
        )
    plan.not_rendered.update((task.key, "the file is gone or changed") for task in missing if task.sha256 in gone)
    missing = [task for task in missing if task.key not in plan.not_rendered]
    missing = _opened(opener, plan, missing)
    pages_computed = 0
    started = time.perf_counter()
    with context.progress("render", sum(task.n_pages for task in missing)) as advance:
        for task, folder, pages in draw(workspace, missing, Job((), drawing, limits), _workers(context)):
            if not task.source or content_hash(workspace, task.source) != task.sha256:
                plan.lost[task.sha256] = _CHANGED
            elif isinstance(pages, str):
                plan.not_rendered[task.key] = pages
            else:
                name = conditions.name(task, pages)
                if name:
                    plan.provisional[task.key] = name
                commit_pages(workspace, name or task.key, folder, pages)
                pages_computed += task.n_pages
            advance(task.n_pages)
    return {"pages_computed": pages_computed, "seconds": round(time.perf_counter() - started, 3)}


def _opened(opener: Opener, plan: _Plan, missing: list[Task]) -> list[Task]:
    """The tasks with the file to draw. Those of a file that needs a password or a conversion now are not rendered."""
    opened: dict[str, tuple[Source, Inspection]] = {}
    tasks = []
    for task in missing:
        if task.source and task.source.kind == "pdf" and task.sha256 not in plan.opened:
            if task.sha256 not in opened:
                opened[task.sha256] = opener.open(task.source, task.sha256)
            source, found = opened[task.sha256]
            if found.status in ("password_required", "unreadable"):  # what else is wrong was known before
                plan.not_rendered[task.key] = found.detail
                continue
            task = dataclasses.replace(task, source=source)
        tasks.append(task)
    return tasks


def _is_stored(workspace: Workspace, plan: _Plan, task: Task, names: Sequence[str] | None = None) -> bool:
    """Whether a shard is there, or one that is not whole stands for it: of these names, or as listed before."""
    if workspace.has_shard("pages", task.key):
        return True
    if names is None:
        names = [plan.earlier[task.key]] if task.key in plan.earlier else []
    found = next((name for name in names if workspace.has_shard("pages", name)), None)
    if found:
        plan.provisional[task.key] = found
    return found is not None


def _limits(context: Context) -> Limits:
    """Raises MmrrError for a limit that no page can keep."""
    machine = context.machine
    if not machine.page_seconds > 0:
        raise MmrrError(f"--page-timeout {machine.page_seconds}: expected a number of seconds above 0")
    if machine.page_memory < LEAST_MEMORY:
        raise MmrrError(f"--page-memory {machine.page_memory}: expected at least {LEAST_MEMORY >> 20} MiB")
    return Limits(machine.page_seconds, machine.page_memory)


def _workers(context: Context) -> int:
    return context.machine.workers or os.cpu_count() or 1


def _known_inspections(workspace: Workspace) -> dict[str, Inspection]:
    """By content hash: a document that opened before is not opened again, so adding one to a thousand opens one."""
    current = workspace.current("pages")
    entries = manifests.documents(current) if current else []
    return {entry["sha256"]: _inspection(entry) for entry in entries if entry["status"] == "ok"}


def _inspection(entry: DocumentEntry) -> Inspection:
    return Inspection(entry["status"], entry["n_pages"], entry["detail"])
