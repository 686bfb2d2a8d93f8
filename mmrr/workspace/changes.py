"""What a command adds to a collection: where its documents came from, which of them stay, what changed.

A document belongs to the folder or file that was named on the command line, its root. A command that names a root
again synchronises it: the command sees new, changed, renamed and deleted files below that root, and leaves the
documents of other roots alone.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from mmrr.errors import MmrrError
from mmrr.workspace.manifests import DocumentEntry, Origin, SkippedFile, SkippedFiles, documents, provenance
from mmrr.workspace.store import Manifest


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
    """The doc_id of the document with this doc_id, path or file name.

    Raises MmrrError if there is none (with the nearest names), or if the file name is that of several documents.
    """
    ids = [entry["doc_id"] for entry in documents(pages)]
    if name in ids:
        return name
    known = places(pages)
    absolute = os.path.realpath(name)
    found = [doc_id for doc_id, place in known.items() if place.real == absolute]
    found = found or [doc_id for doc_id, place in known.items() if place.path.name == name]
    found = found or [doc_id for doc_id in ids if doc_id.rsplit("/", 1)[-1] == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise MmrrError(f"document '{name}': several have that name ({', '.join(found)}); give one of these ids")
    nearest = difflib.get_close_matches(name, ids, cutoff=0.4) or sorted(ids)[:3]
    raise MmrrError(f"no document '{name}' in the collection; the nearest are {', '.join(nearest)}")


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
