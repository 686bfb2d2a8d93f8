"""What a command adds to a collection: where its documents came from, which of them stay, what changed.

A document belongs to the folder or file that was named on the command line, its root. A command that names a root
again synchronises it: the command sees new, changed, renamed and deleted files below that root, and leaves the
documents of other roots alone.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import unquote_to_bytes, urlsplit

from mmrr.errors import MmrrError
from mmrr.workspace.manifests import DocumentEntry, Origin, SkippedFile, SkippedFiles, documents, provenance
from mmrr.workspace.store import Manifest

#: Most ids in the error of an ambiguous name.
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Changes:
    """How many documents of a collection a command added, changed, renamed, removed and left as they were."""

    added: int = 0
    changed: int = 0
    renamed: int = 0
    removed: int = 0
    unchanged: int = 0

    def __str__(self) -> str:
        """For example ``3 added, 1 renamed, 18 unchanged``; counts of 0 are left out."""
        counts = {name: getattr(self, name) for name in ("added", "changed", "removed", "renamed", "unchanged")}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document was found: the folder or file that was named, and the document's own file or folder."""

    root: Path
    path: Path

    @property
    def real(self) -> str:
        """The path without symbolic links: one document has one, whichever way it is reached."""
        return os.path.realpath(self.path)

    def synchronised_by(self, named: Set[str], real: Callable[[Path], str] = os.path.realpath) -> list[str]:
        """Those of the named folders and files, as real paths, whose command synchronises this document.

        ``real`` resolves links. Callers with many documents pass one that remembers the folders.
        """
        # Only the folder is resolved: a link in a named folder belongs to that folder.
        own = Path(real(self.path.parent), self.path.name)
        # The ancestors are looked up: a command may name thousands of files.
        return [name for name in dict.fromkeys((real(self.root), str(own), *map(str, own.parents))) if name in named]

    def stored(self) -> Origin:
        return {"root": _stored(self.root), "path": _stored(self.path)}


def exists(place: Place | None) -> bool:
    """Whether a document's file or folder is known and still there."""
    return place is not None and place.path.exists()


def places(pages: Manifest | None) -> dict[str, Place]:
    """Where the documents of a ``pages`` artifact were found, by doc_id; those of unknown origin are left out."""
    sources = provenance(pages, "pages").get("sources", {}) if pages else {}
    return {name: _restored_place(origin) for name, origin in sources.items()}


def staying(pages: Manifest | None, named: Sequence[Path]) -> list[DocumentEntry]:
    """The documents of a collection that a command which names these folders and files does not look at."""
    looked_at = _looked_at(pages, named)
    entries = documents(pages) if pages else []
    return [entry for entry in entries if entry["doc_id"] not in looked_at]


def emptied(pages: Manifest | None, named: Sequence[Path]) -> set[str]:
    """The real paths of the named folders that documents of a collection were found in: they may be empty now."""
    return {real for names in _looked_at(pages, named).values() for real in names}


def _looked_at(pages: Manifest | None, named: Sequence[Path]) -> dict[str, list[str]]:
    """{doc_id: the named folders and files, as real paths, that synchronise it}."""
    real = functools.cache(os.path.realpath)
    reals = {os.path.realpath(path) for path in named}
    found = {doc_id: place.synchronised_by(reals, real) for doc_id, place in places(pages).items()}
    return {doc_id: names for doc_id, names in found.items() if names}


def merge_skipped(
    pages: Manifest | None, named: Sequence[Path], found: Sequence[tuple[Place, str]], hidden: Mapping[Path, int]
) -> SkippedFiles:
    """What to record of files that are no documents: as ``found`` now, with the reasons; else as known before.

    ``hidden``: how many hidden files and folders each named folder has.
    """
    before = skipped(pages)
    reals = {os.path.realpath(path) for path in named}
    real = functools.cache(os.path.realpath)
    files: list[SkippedFile] = [
        one for one in before["files"] if not _restored_place(one["place"]).synchronised_by(reals, real)
    ]
    files += [{"place": place.stored(), "reason": reason} for place, reason in found]
    counts = {root: count for root, count in before["hidden"].items() if real(_restored(root)) not in reals}
    counts |= {_stored(root): count for root, count in hidden.items() if count}
    return {"files": files, "hidden": counts}


def skipped(pages: Manifest | None) -> SkippedFiles:
    """The files below the named folders that are no documents of a ``pages`` artifact."""
    known = provenance(pages, "pages").get("skipped") if pages else None
    return known or {"files": [], "hidden": {}}


def skipped_names(pages: Manifest) -> list[tuple[str, str]]:
    """(path below the folder that was named, reason) of each file that is no document."""
    places = [(_restored_place(one["place"]), one["reason"]) for one in skipped(pages)["files"]]
    names = [
        place.path.name if place.path == place.root else place.path.relative_to(place.root).as_posix()
        for place, _ in places
    ]
    # A byte that is not UTF-8 becomes an escape.
    safe = (name.encode("utf-8", "backslashreplace").decode() for name in names)
    return [(name, reason) for name, (_, reason) in zip(safe, places, strict=True)]


def known_ids(pages: Manifest | None, stay: Sequence[DocumentEntry]) -> dict[str, str]:
    """{real path: doc_id} of the documents that keep their id: those that stay, and those whose file is still there."""
    known = {f"\0{entry['doc_id']}": entry["doc_id"] for entry in stay}  # no path has a NUL: these only reserve the id
    kept = set(known.values())
    for doc_id, place in places(pages).items():
        if doc_id in kept or os.path.lexists(place.path):
            known[place.real] = doc_id
    return known


def named_ids(pages: Manifest | None, named: Sequence[Path]) -> dict[str, str]:
    """{real path: doc_id} of the documents of a collection that lie in the named folders and files."""
    reals = {os.path.realpath(path) for path in named}
    real = functools.cache(os.path.realpath)
    return {place.real: name for name, place in places(pages).items() if place.synchronised_by(reals, real)}


def compare(before: Sequence[DocumentEntry], after: Sequence[DocumentEntry]) -> Changes:
    """Count what changed between two listings of one collection.

    A document is known by its doc_id. A new doc_id with the content of one that is gone counts as renamed.
    """
    old, new = ({entry["doc_id"]: entry["sha256"] for entry in entries} for entries in (before, after))
    both = old.keys() & new.keys()
    unchanged = sum(old[doc_id] == new[doc_id] for doc_id in both)
    gone, come = (Counter(one[doc_id] for doc_id in one.keys() - both) for one in (old, new))
    renamed = (gone & come).total()
    return Changes(come.total() - renamed, len(both) - unchanged, renamed, gone.total() - renamed, unchanged)


def find(pages: Manifest, name: str) -> str:
    """The doc_id of the document that a user names: by its doc_id, its path, or its file's name as it is on disk.

    Folders and the ending may be left out. A name with other capitals is found if no other fits. Raises MmrrError if
    there is none (with the nearest names), and if several fit (with their ids).
    """
    ids = [entry["doc_id"] for entry in documents(pages)]
    if name in ids:
        return name
    known = places(pages)
    absolute = os.path.realpath(name)
    found = [doc_id for doc_id, place in known.items() if place.real == absolute]
    if not found:
        paths = {doc_id: [doc_id, *([str(known[doc_id].path)] if doc_id in known else [])] for doc_id in ids}
        found = _named(name, paths)
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(found[:_LISTED]) + (", ..." if len(found) > _LISTED else "")
        raise MmrrError(f"document '{name}': several have that name ({some}); give one of these ids")
    aliases = {_spelled(doc_id).casefold(): doc_id for doc_id in ids}
    for doc_id in ids:
        aliases.setdefault(PurePath(_spelled(doc_id).casefold()).stem, doc_id)
    near = difflib.get_close_matches(_spelled(name).casefold(), aliases, cutoff=0.4)
    nearest = list(dict.fromkeys(aliases[alias] for alias in near)) or sorted(ids)[:3]
    raise MmrrError(f"no document '{name}' in the collection; the nearest are {', '.join(nearest)}")


def _named(name: str, paths: Mapping[str, Sequence[str]]) -> list[str]:
    """The documents one of whose paths ends in this name: as it is, without its ending, or with other capitals."""
    wanted = _spelled(name).strip("/").split("/")
    for fold in (str, str.casefold):
        ends = [fold(part) for part in wanted]
        for cut in (False, True):
            found = []
            for doc_id, of_document in paths.items():
                for path in of_document:
                    *folders, file = [fold(part) for part in _spelled(path).split("/")]
                    tail = [*folders, PurePath(file).stem if cut else file][-len(ends) :]
                    if tail == ends and doc_id not in found:
                        found.append(doc_id)
            if found:
                return found
    return []


def _spelled(name: str) -> str:
    """A name as doc_ids are spelled: in Unicode's composed form, with ``_`` for white space and control characters."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+", "_", unicodedata.normalize("NFC", name)).replace(os.sep, "/")


def merge_places(
    before: Mapping[str, Place], found: Mapping[str, Place], entries: Sequence[DocumentEntry]
) -> dict[str, Origin]:
    """The origins to record for a listing: as found now, else as known before."""
    merged = {**before, **found}
    return {entry["doc_id"]: merged[entry["doc_id"]].stored() for entry in entries if entry["doc_id"] in merged}


def roots_of(paths: Sequence[Path], named: Sequence[Path]) -> list[Path]:
    """Of each document's path, the first of the named folders and files, in the order of their names, it lies in."""
    absolute = {Path(os.path.abspath(one)) for one in named}
    return [min((one for one in (path, *path.parents) if one in absolute), default=path) for path in paths]


def _stored(path: Path) -> str:
    """A path as text. A name that is not UTF-8 is written as a file URI, whose bytes are percent-encoded."""
    text = str(path)
    return path.as_uri() if any("\ud800" <= char <= "\udfff" for char in text) else text


def _restored_place(origin: Origin) -> Place:
    return Place(_restored(origin["root"]), _restored(origin["path"]))


def _restored(text: str) -> Path:
    return Path(os.fsdecode(unquote_to_bytes(urlsplit(text).path))) if text.startswith("file:") else Path(text)
