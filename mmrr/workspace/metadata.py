"""Metadata of documents: values such as a year or an author, from a file beside the documents or a named one.

They are stored with the listing of the pages, outside of its fingerprint: other values compute nothing again.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from mmrr.errors import MmrrError
from mmrr.workspace import changes, manifests
from mmrr.workspace.store import Manifest, Workspace

#: What a value is. Whole numbers are numbers too.
Value = str | float
#: {name: value}
Values = Mapping[str, Value]
#: The files of a folder of documents that are its metadata, in this order.
FILES = ("metadata.csv", "metadata.jsonl")
#: The columns that may name the document, in this order.
_DOCUMENT = ("document", "doc_id", "file", "filename")
#: Most names that are looked for one by one, as ``changes.find`` does.
_SEARCHED = 50


@dataclass(frozen=True)
class Given:
    """The metadata that a command brings."""

    folders: dict[Path, dict[str, dict[str, Value]]]  # of each named folder that has a file of metadata
    named: dict[str, dict[str, Value]]  # of the file that the user names


def given(inputs: Sequence[Path], file: Path | None) -> Given:
    """Read the metadata in the named folders, and that of ``file``. Raises MmrrError as ``read``."""
    folders = {}
    for folder in inputs:
        found = next((folder / name for name in FILES if (folder / name).is_file()), None)
        if found:
            folders[folder] = read(found)
    return Given(folders, read(file) if file else {})


def is_metadata(root: Path, path: Path) -> bool:
    """Whether a file is the metadata of a named folder."""
    return path.parent == root and path.name in FILES


def of(pages: Manifest) -> dict[str, dict[str, Value]]:
    """{doc_id: {name: value}} of a ``pages`` artifact; a document without values is left out."""
    return manifests.provenance(pages, "pages").get("metadata", {})


def record(workspace: Workspace, made: Manifest, base: Manifest | None, brought: Given) -> tuple[Manifest, list[str]]:
    """Store the metadata of the documents of ``made``; also the names in the files that are no documents.

    A folder with a file of metadata has the values of that file alone. The documents of other folders keep the values
    that they have in ``base``. The file that the user names comes last.
    """
    ids = {entry["doc_id"] for entry in manifests.documents(made)}
    before = of(base) if base else {}
    found = {doc_id: dict(values) for doc_id, values in before.items() if doc_id in ids}
    places = changes.places(made)
    unknown: list[str] = []
    for folder, values in brought.folders.items():
        real = os.path.realpath(folder)
        own = {doc_id for doc_id, place in places.items() if os.path.realpath(place.root) == real}
        for doc_id in own:
            found.pop(doc_id, None)
        of_folder, others = by_document(made, values, own)
        found |= of_folder
        unknown += others
    of_file, others = by_document(made, brought.named)
    if brought.named and not of_file:
        raise MmrrError(
            f"--metadata: none of its documents is in the collection (found: {', '.join(list(brought.named)[:3])})"
        )
    found |= of_file
    if not found and not of(made):
        return made, unknown + others
    return workspace.annotate(made, metadata=found), unknown + others


def by_document(
    pages: Manifest, values: Mapping[str, dict[str, Value]], among: set[str] | None = None
) -> tuple[dict[str, dict[str, Value]], list[str]]:
    """{doc_id: values} of the documents that a file names, and its names that are no documents.

    ``among``: the only documents that a name may mean; None: all.
    """
    places = changes.places(pages)
    short: dict[str, list[str]] = {}
    for entry in manifests.documents(pages):
        doc_id = entry["doc_id"]
        if among is not None and doc_id not in among:
            continue
        path = places[doc_id].path.name if doc_id in places else doc_id
        for name in {doc_id, PurePath(doc_id).name, path, PurePath(path).stem}:
            short.setdefault(name, []).append(doc_id)
    found, unknown = {}, list[str]()
    for name, of_document in values.items():
        meant = short.get(name, [])
        if name in meant:
            meant = [name]
        if len(meant) != 1 and len(unknown) < _SEARCHED:
            meant = _searched(pages, name, among)
        if len(meant) == 1:
            found[meant[0]] = of_document
        else:
            unknown.append(name)
    return found, unknown


def _searched(pages: Manifest, name: str, among: set[str] | None) -> list[str]:
    try:
        found = changes.find(pages, name)
    except MmrrError:
        return []
    return [found] if among is None or found in among else []


def shown(values: Values) -> dict[str, str | int | float]:
    """The values as JSON and Python users expect them: without the document's name, and a whole number is an int."""
    name = next((key for key in _DOCUMENT if key in values), None)
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in values.items()
        if key != name
    }


def read(path: Path) -> dict[str, dict[str, Value]]:
    """{document as the file names it: {name: value}}, from JSON Lines or CSV with a header.

    The document is in the column ``document``, ``doc_id``, ``file`` or ``filename``. A value that is a number in
    writing is one. Raises MmrrError for a file that cannot be read, and for a line without a document.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise MmrrError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise MmrrError(f"{path.name}: expected text in UTF-8 ({error})") from error
    records: list[tuple[int, Mapping[str, object]]] = []
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        for n, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise MmrrError(f"{path.name}, line {n}: found no valid JSON ({error})") from error
                if not isinstance(record, dict):
                    raise MmrrError(f"{path.name}, line {n}: expected an object with the key document")
                records.append((n, record))
    else:
        records += enumerate(csv.DictReader(io.StringIO(text, newline="")), 2)
    found: dict[str, dict[str, Value]] = {}
    for n, record in records:
        name = next((record[key] for key in _DOCUMENT if record.get(key)), None)
        if not isinstance(name, str):
            raise MmrrError(f"{path.name}, line {n}: found no document, expected its name under {', '.join(_DOCUMENT)}")
        found[name] = {key: value_of(value) for key, value in record.items() if key and value not in (None, "", [])}
    if not found:
        raise MmrrError(f"{path.name} has no document, expected a header and at least one line")
    return found


def value_of(value: object) -> Value:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return json.dumps(value, ensure_ascii=False)
    try:
        return float(value)
    except (ValueError, OverflowError):
        return str(value)
