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
from pathlib import Path

from mmrr.config import Render
from mmrr.context import Context
from mmrr.documents.discovery import Inspection, Source, find_sources, inspect, source_at
from mmrr.documents.drawn import Job, RenderOptions
from mmrr.documents.limits import LEAST_MEMORY, Limits
from mmrr.documents.rendering import default_renderer
from mmrr.errors import MmrrError
from mmrr.stages._drawing import Task, draw
from mmrr.stages._ocr import read_pages, reading
from mmrr.stages._provisional import Conditions
from mmrr.workspace import changes, manifests
from mmrr.workspace.files import digest
from mmrr.workspace.manifests import NOT_RENDERED, DocumentEntry, PagesProvenance
from mmrr.workspace.pages import RENDERED, commit_pages, complaint, list_pages, pages_spec
from mmrr.workspace.store import SHARD_PAGES, Manifest, Spec, Workspace

#: Why a document was not rendered, for people.
_CHANGED = "it changed or went away while it was read"


@dataclass(frozen=True, slots=True)
class Staying:
    """A document of the collection that the command does not look at.

    Its pages are in the workspace. The file at ``path`` is read only if some of them are missing.
    """

    entry: DocumentEntry
    path: Path | None  # None: not known


@dataclass(slots=True)
class _Plan:
    """The documents of the new listing, and the shards that they need."""

    entries: list[DocumentEntry] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)  # by shard
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


def find_documents(
    context: Context, inputs: Sequence[Path], collection: Manifest | None, *, replace: bool = False
) -> tuple[list[Source], list[Staying]]:
    """The documents that a command names, under the ids that they keep or get, and those of ``collection`` that stay.

    With ``replace`` none stays. Raises MmrrError as ``find_sources`` does.
    """
    if replace:
        return find_sources(inputs, changes.named_ids(collection, inputs)), []
    stay = changes.staying(collection, inputs)
    places = changes.places(collection)
    # A document whose file is gone or not known is found again by its id and its content: its folder was moved.
    lost = {entry["doc_id"]: entry["sha256"] for entry in stay if not changes.exists(places.get(entry["doc_id"]))}
    same = {}
    emptied = changes.emptied(collection, inputs)
    found = find_sources(inputs, emptied=emptied) if lost else []
    hashes = content_hashes(context, found)
    for source in found:
        if hashes[source.doc_id] == lost.get(source.doc_id):
            same[os.path.realpath(source.path)] = source.doc_id
    stay = [entry for entry in stay if entry["doc_id"] not in same.values()]
    sources = find_sources(inputs, changes.known_ids(collection, stay) | same, emptied=emptied)
    if not sources and not stay:
        raise MmrrError(
            f"{', '.join(map(str, inputs))}: no document is left, and the collection would be empty; name documents to "
            f"keep, or delete the folder {context.workspace.root}"
        )
    # A named file may be a link to the file of a document that stays.
    stay_ids = {entry["doc_id"] for entry in stay}
    sources = [source for source in sources if source.doc_id not in stay_ids]
    return sources, [
        Staying(entry, places[entry["doc_id"]].path if entry["doc_id"] in places else None) for entry in stay
    ]


def check(context: Context, options: Render) -> None:
    """Raise the MmrrError that ``render`` raises for these options, before documents are looked for."""
    _drawing(context, options)


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
    hashes = content_hashes(context, sources)
    wanted = reading(options)
    drawn_config = dataclasses.asdict(drawing)
    config = {**drawn_config, "ocr": wanted.name} if wanted else drawn_config
    drawn = Spec("pages", RENDERED, drawn_config, {})
    contents = [(source.doc_id, hashes[source.doc_id]) for source in sources]
    contents += [(one.entry["doc_id"], one.entry["sha256"]) for one in staying]
    listed = [_entry(doc_id, sha256) for doc_id, sha256 in contents]  # the spec of the listing if all are rendered
    if done := context.workspace.done(pages_spec(config, listed)):
        return done

    plan = _plan(context, sources, hashes, staying, drawn)
    if not plan.tasks:
        raise MmrrError("no document could be opened: " + "; ".join(complaint(entry) for entry in plan.entries[:5]))
    timing = _render_missing(context, plan, drawing, drawn)
    plan.drop_lost()
    plan.drop_not_rendered()
    plan.use_provisional()
    if wanted:
        started = time.perf_counter()
        spec = Spec("pages", RENDERED, config, {})
        timing["pages_read"] = read_pages(context, wanted, spec, plan.entries, _workers(context))
        timing["ocr_seconds"] = round(time.perf_counter() - started, 3)
    return list_pages(context.workspace, pages_spec(config, plan.entries), plan.entries, provenance=timing)


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
    context: Context, sources: list[Source], hashes: Mapping[str, str], staying: Sequence[Staying], drawn: Spec
) -> _Plan:
    """Open the documents whose content is new, and list the shards of all."""
    known = _known_inspections(context.workspace)
    plan = _Plan(named=set(hashes.values()))
    with context.progress("open", len(sources)) as advance:
        for source in sources:
            sha256 = hashes[source.doc_id]
            found = known.get(sha256) or inspect(source)
            if found.status != "ok" and content_hash(context.workspace, source) != sha256:
                plan.lost[sha256] = _CHANGED
            elif found.status == "unreadable" and sha256 != _unreadable(source):
                plan.lost[sha256] = found.detail  # its content is known: another command may be able to read it
            plan.add(_entry(source.doc_id, sha256, found), source, drawn)
            advance(1)
    for one in staying:
        # "partial" and "corrupt" say that pages failed, so they were opened
        opened = bool(one.entry["shards"]) or one.entry["status"] == NOT_RENDERED
        if one.entry["status"] == NOT_RENDERED:
            plan.unfinished.add(one.entry["sha256"])
        plan.earlier |= one.entry.get("provisional", {})
        found = Inspection("ok", one.entry["n_pages"], "") if opened else _inspection(one.entry)
        there = source_at(one.entry["doc_id"], one.path) if one.path else None
        plan.add(_entry(one.entry["doc_id"], one.entry["sha256"], found), there, drawn)
    if staying:  # the order in which one command would find them, after those of unknown origin
        paths = {one.entry["doc_id"]: one.path for one in staying if one.path}
        paths |= {source.doc_id: source.path for source in sources}
        plan.entries.sort(key=lambda entry: (entry["doc_id"] in paths, paths.get(entry["doc_id"], Path())))
    return plan


def _render_missing(context: Context, plan: _Plan, drawing: RenderOptions, drawn: Spec) -> PagesProvenance:
    """Render the shards that are missing, unless their file changed. Returns how many pages, and how long it took."""
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


def content_hashes(context: Context, sources: Sequence[Source]) -> dict[str, str]:
    """{doc_id: content hash}. Files that were not read before are read whole."""
    hashes = {}
    with context.progress("hash", len(sources)) as advance:
        for source in sources:
            hashes[source.doc_id] = content_hash(context.workspace, source)
            advance(1)
    context.workspace.hashes.save()
    return hashes


def content_hash(workspace: Workspace, source: Source) -> str:
    """The content hash of a document. One that cannot be read gets a hash of its id; ``inspect`` reports it."""
    try:
        if source.kind == "images":
            return digest(
                [[path.name, workspace.hashes.sha256(path)] for path in sorted(source.path.iterdir()) if path.is_file()]
            )
        return workspace.hashes.sha256(source.path)
    except OSError:
        return _unreadable(source)


def _unreadable(source: Source) -> str:
    return digest(["unreadable", source.doc_id])


def _known_inspections(workspace: Workspace) -> dict[str, Inspection]:
    """By content hash: a document that opened before is not opened again, so adding one to a thousand opens one."""
    current = workspace.current("pages")
    entries = manifests.documents(current) if current else []
    return {entry["sha256"]: _inspection(entry) for entry in entries if entry["status"] == "ok"}


def _inspection(entry: DocumentEntry) -> Inspection:
    return Inspection(entry["status"], entry["n_pages"], entry["detail"])
