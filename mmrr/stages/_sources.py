"""Finds the documents of a command and the hashes of their contents, for the stage ``pages``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrr.context import Context
from mmrr.documents import office
from mmrr.documents.discovery import Found, Source, find, images_in
from mmrr.errors import MmrrError
from mmrr.workspace import changes
from mmrr.workspace.files import digest
from mmrr.workspace.manifests import DocumentEntry
from mmrr.workspace.manifests import documents as listed
from mmrr.workspace.metadata import is_metadata
from mmrr.workspace.store import Manifest, Workspace


@dataclass(frozen=True, slots=True)
class Staying:
    """A document of the collection that the command does not look at.

    Its pages are in the workspace. The file at ``path`` is read only if some of them are missing.
    """

    entry: DocumentEntry
    path: Path | None  # None: not known


@dataclass(frozen=True, slots=True)
class Documents:
    """What a command finds in the files and folders that it names, and what it does not look at."""

    sources: list[Source]
    staying: list[Staying]
    found: Found  # with the files that are no documents


def find_documents(
    context: Context,
    inputs: Sequence[Path],
    collection: Manifest | None,
    *,
    replace: bool = False,
    convert: bool = False,
) -> Documents:
    """The documents that a command names, under the ids that they keep or get, and those of ``collection`` that stay.

    With ``replace`` none stays. With ``convert``, office files are documents where LibreOffice is installed.
    Raises MmrrError as ``find`` does.
    """
    if convert and office.program() is None:
        context.notice("--convert: LibreOffice (soffice) is not installed; office files are skipped")
        convert = False
    if replace:
        found = find(inputs, changes.named_ids(collection, inputs), office=convert)
        return Documents(found.sources, [], found)
    stay = changes.staying(collection, inputs)
    places = changes.places(collection)
    # A document whose file is gone or not known is found again by its id and its content: its folder was moved.
    lost = {entry["doc_id"]: entry["sha256"] for entry in stay if not changes.exists(places.get(entry["doc_id"]))}
    same = {}
    emptied = changes.emptied(collection, inputs)
    moved = find(inputs, emptied=emptied, office=convert).sources if lost else []
    hashes = content_hashes(context, moved)
    for source in moved:
        if hashes[source.doc_id] == lost.get(source.doc_id):
            same[os.path.realpath(source.path)] = source.doc_id
    again = set(same.values())
    stay = [entry for entry in stay if entry["doc_id"] not in again]
    found = find(inputs, changes.known_ids(collection, stay) | same, emptied=emptied, office=convert)
    if not found.sources and not stay:
        raise MmrrError(
            f"{', '.join(map(str, inputs))}: no document is left, and the collection would be empty; name documents to "
            f"keep, or delete the folder {context.workspace.root}"
        )
    # A named file may be a link to the file of a document that stays.
    stay_ids = {entry["doc_id"] for entry in stay}
    sources = [source for source in found.sources if source.doc_id not in stay_ids]
    staying = [Staying(entry, places[entry["doc_id"]].path if entry["doc_id"] in places else None) for entry in stay]
    return Documents(sources, staying, found)


def record_origins(
    context: Context, made: Manifest, base: Manifest | None, inputs: Sequence[Path], documents: Documents
) -> Manifest:
    """Record where the documents were found, and what else was there."""
    paths = [source.path for source in documents.sources]
    roots = changes.roots_of(paths, inputs)
    found = {one.doc_id: changes.Place(root, one.path) for one, root in zip(documents.sources, roots, strict=True)}
    places = changes.merge_places(changes.places(base), found, listed(made))
    skipped = [
        (changes.Place(one.root, one.path), one.reason)
        for one in documents.found.skipped
        if not is_metadata(one.root, one.path)
    ]
    others = changes.merge_skipped(base, inputs, skipped, documents.found.hidden)
    return context.workspace.annotate(made, sources=places, skipped=others)


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
            images = sorted(path for path in images_in(source.path) if path.is_file())
            return digest([[path.name, workspace.hashes.sha256(path)] for path in images])
        return workspace.hashes.sha256(source.path)
    except OSError:
        return unreadable_hash(source)


def unreadable_hash(source: Source) -> str:
    """What stands for the content of a document that cannot be read."""
    return digest(["unreadable", source.doc_id])
