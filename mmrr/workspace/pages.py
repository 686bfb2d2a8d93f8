"""Lists and reads a ``pages`` artifact. The order of its pages is the order of the rows in every later file."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mmrr.errors import MmrrError
from mmrr.types import Page, page_of
from mmrr.workspace import changes, manifests, metadata
from mmrr.workspace.files import digest, read_file
from mmrr.workspace.manifests import DocumentEntry
from mmrr.workspace.store import Manifest, Spec, Workspace

if TYPE_CHECKING:
    from PIL import Image

    from mmrr.documents.rendering import RenderedPage


#: A soft hyphen, and the end of the line that it may stand at.
_SOFT_HYPHEN = re.compile("\u00ad\n?")
#: Raised when rendering the same file with the same options gives other text or other records. 2: hyphens at line ends.
RENDERED = 2
#: What is no longer wrong with a page that OCR has read.
_READ_BY_OCR = ("little_text", "garbled")


#: A tile is numbered this times the number of its page, plus the number of the tile.
_TILES = 1000


@dataclass(frozen=True)
class Collection:
    """The pages of one artifact. Page i is row i of its vectors."""

    manifest: Manifest
    pages: list[Page]
    shards: list[str]  # of each page, the shard with its image
    text_shards: list[str]  # of each page, the shard with its text: the same one, or the one that OCR wrote

    @cached_property
    def by_shard(self) -> dict[str, list[Page]]:
        """Each shard with its pages. Two copies of one document share their shards, so a shard appears once."""
        groups: dict[str, list[Page]] = {}
        numbers: dict[str, set[int]] = {}
        for page, shard in zip(self.pages, self.shards, strict=True):
            seen = numbers.setdefault(shard, set())
            if page.number not in seen:
                seen.add(page.number)
                groups.setdefault(shard, []).append(page)
        return groups

    @cached_property
    def rows(self) -> dict[str, list[int]]:
        """{doc_id: rows}."""
        rows: dict[str, list[int]] = {}
        for i, page in enumerate(self.pages):
            rows.setdefault(page.doc_id, []).append(i)
        return rows

    @cached_property
    def images(self) -> dict[str, list[int]]:
        """{page_id: rows} of each page: its own image, and those of its tiles."""
        images: dict[str, list[int]] = {}
        for i, page in enumerate(self.pages):
            images.setdefault(page_of(page.page_id), []).append(i)
        return images

    def whole_pages(self, doc_id: str | None = None) -> list[Page]:
        """The pages of the collection or of one document, without the tiles."""
        rows = range(len(self.pages)) if doc_id is None else self.rows.get(doc_id, [])
        return [self.pages[row] for row in rows if self.pages[row].page_id in self.images]

    @cached_property
    def most_images(self) -> int:
        """The most images of a page: 1 without tiles."""
        return max(map(len, self.images.values()), default=1)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """{page_id: row}."""
        return {page.page_id: i for i, page in enumerate(self.pages)}


def load(workspace: Workspace, manifest: Manifest) -> Collection:
    """Read the listing of a ``pages`` artifact. Raises MmrrError if it is damaged."""
    pages, shards, text_shards = [], [], []
    folder_of: dict[str, Path] = {}
    listing = workspace.own_file(manifest, "pages.jsonl")
    try:
        for line in listing.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            shard = record.pop("shard")
            text_shard = record.pop("ocr", shard)
            # The file name follows from the page number: a damaged listing cannot name another file.
            if shard not in folder_of:
                folder_of[shard] = workspace.shard("pages", shard)
            image = folder_of[shard] / f"{int(record['number']):04d}.png"
            pages.append(Page(**record, image=image))
            shards.append(shard)
            text_shards.append(text_shard)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MmrrError(f"{manifest.path / 'pages.jsonl'} is damaged ({error}); run mmrr index again") from error
    return Collection(manifest, pages, shards, text_shards)


def pages_spec(config: Mapping[str, object], entries: Sequence[DocumentEntry], schema: int = RENDERED) -> Spec:
    """The Spec of a rendered collection: how it was rendered, and the id and content hash of each document.

    A document that is not wholly rendered, that was not opened for want of its password, or that other conditions may
    draw better, counts as other content, so that the same command does not find this listing.
    """
    hashes = sorted((entry["doc_id"], _content(entry)) for entry in entries)
    return Spec("pages", schema, config, {"documents": digest(hashes)})


def _content(entry: DocumentEntry) -> str:
    if entry["status"] == manifests.NOT_RENDERED:
        return digest([manifests.NOT_RENDERED, entry["sha256"], entry["shards"]])
    if entry["status"] == "password_required":
        return digest([entry["status"], entry["sha256"]])
    if "provisional" in entry:
        return digest(["provisional", entry["sha256"], entry["shards"]])
    return entry["sha256"]


def commit_pages(workspace: Workspace, key: str, folder: Path, pages: list[RenderedPage]) -> None:
    """Turn a scratch folder of rendered pages into a shard: texts go to ``text.jsonl``, the rest to the record."""
    texts = [{"number": page.number, "text": page.text} for page in pages]
    (folder / "text.jsonl").write_text(_lines(texts), "utf-8")
    records: list[dict[str, object]] = []
    for page in pages:
        record = {**dataclasses.asdict(page), "text": len(page.text.strip())}
        records.append({key: value for key, value in record.items() if value or key not in ("notes", "label")})
    workspace.commit_shard("pages", key, folder, {"pages": records})


def commit_ocr(workspace: Workspace, key: str, engine: str, pages: list[tuple[int, str, str]]) -> None:
    """Commit a shard of the text that OCR read: for each page its number, its text, and why there is none."""
    folder = workspace.scratch()
    texts = [{"number": number, "text": text, "ocr": engine} for number, text, _ in pages]
    (folder / "text.jsonl").write_text(_lines(texts), "utf-8")
    records = [{"number": number, "text": len(text), "detail": detail} for number, text, detail in pages]
    workspace.commit_shard("pages", key, folder, {"ocr": engine, "pages": records})


@dataclass(slots=True)
class _Listing:
    """The lines of ``pages.jsonl`` and the counts over them."""

    records: list[dict[str, object]]
    without_text: int = 0
    by_ocr: int = 0
    tiles: int = 0

    def add(self, workspace: Workspace, entry: DocumentEntry, page_name: str) -> None:
        """Add the pages of a document that have an image, and write the others to its ``failed_pages``."""
        failed = entry["failed_pages"] = {}
        notes: dict[str, list[int]] = {}
        ocr = entry.get("ocr", {})
        for key in entry["shards"]:
            read = manifests.shard_record(workspace, "ocr", ocr[key])["pages"] if key in ocr else []
            read_chars = {page["number"]: page["text"] for page in read}
            for page in manifests.shard_record(workspace, "pages", key)["pages"]:
                number = page["number"]
                mended = _READ_BY_OCR if number in read_chars else ()
                codes = [code for code in page.get("notes", []) if code not in mended]
                for code in (*codes, *([page["status"]] if page["status"] in manifests.LIMITS else [])):
                    notes.setdefault(code, []).append(number)
                if page["status"] != "ok":
                    failed[str(number)] = page["detail"]
                    continue
                record = {
                    "page_id": f"{entry['doc_id']}/{page_name.format(number)}",
                    "doc_id": entry["doc_id"],
                    "number": number,
                    "width_px": page["width_px"],
                    "height_px": page["height_px"],
                    "sha256": page["sha256"],
                    "shard": key,
                }
                if "label" in page:
                    record["label"] = page["label"]
                n_chars = page["text"]
                if number in read_chars:
                    record["ocr"] = ocr[key]
                    n_chars = read_chars[number]
                    self.by_ocr += n_chars > 0
                if n_chars == 0:
                    self.without_text += 1
                    notes.setdefault("no_text", []).append(number)
                self.records.append(record)
        for key in entry.get("tiles", {}).values():
            for tile in manifests.shard_record(workspace, "pages", key)["pages"]:
                number, part = divmod(tile["number"], _TILES)
                page_id = f"{entry['doc_id']}/{page_name.format(number)}#{part}"
                copied = {name: tile[name] for name in ("number", "width_px", "height_px", "sha256")}  # type: ignore[literal-required]
                self.records.append({"page_id": page_id, "doc_id": entry["doc_id"], **copied, "shard": key})
                self.tiles += 1
                if number not in notes.setdefault("tiled", []):
                    notes["tiled"].append(number)
        whole = [number for number in notes.pop("small_print", []) if number not in notes.get("tiled", [])]
        if whole:
            notes["small_print"] = whole
        if notes:
            entry["notes"] = notes


def list_pages(
    workspace: Workspace,
    spec: Spec,
    entries: list[DocumentEntry],
    page_name: str = "{:04d}",
    provenance: Mapping[str, object] | None = None,
) -> Manifest:
    """Commit the artifact: the pages that have an image, and of each document the status and the failed pages.

    Raises MmrrError if no page has an image.
    """
    listing = _Listing([])
    for entry in entries:
        listing.add(workspace, entry, page_name)
        n_failed = len(entry["failed_pages"])
        if n_failed and entry["status"] != manifests.NOT_RENDERED:
            entry["status"] = "partial" if n_failed < entry["n_pages"] else _status(entry)
            entry["detail"] = f"{n_failed} of {entry['n_pages']} pages could not be drawn"
            if limited := _limited(entry):
                entry["detail"] += f"; page {limited}: {entry['failed_pages'][limited]}"
    if not listing.records:
        raise MmrrError("no page could be drawn: " + "; ".join(complaint(entry) for entry in entries[:5]))
    content = {
        "pages": len(listing.records) - listing.tiles,
        **({"tiles": listing.tiles} if listing.tiles else {}),
        "without_text": listing.without_text,
        "by_ocr": listing.by_ocr,
        "documents": entries,
    }
    size = workspace.shard_bytes(
        "pages",
        (
            key
            for entry in entries
            for key in (*entry["shards"], *entry.get("ocr", {}).values(), *entry.get("tiles", {}).values())
        ),
    )
    return workspace.commit(
        spec,
        content,
        size,
        provenance,
        lambda folder: (folder / "pages.jsonl").write_text(_lines(listing.records), "utf-8"),
    )


def _limited(entry: DocumentEntry) -> str | None:
    """The first page past a limit, if there is one."""
    numbers = [number for code in manifests.LIMITS for number in entry.get("notes", {}).get(code, [])]
    return str(min(numbers)) if numbers else None


def _status(entry: DocumentEntry) -> str:
    """The status of a document without an image."""
    return next((code for code in manifests.LIMITS if entry.get("notes", {}).get(code)), "corrupt")


def complaint(entry: DocumentEntry) -> str:
    """One line on a document that is not whole."""
    return f"{entry['doc_id']}: {entry['status']}" + (f" ({entry['detail']})" if entry["detail"] else "")


def _lines(records: Sequence[Mapping[str, object]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_texts(workspace: Workspace, collection: Collection, rows: list[int] | None = None) -> list[str]:
    """The text of the pages at ``rows`` (default: all), from the text layer or OCR; "" for a page without text.

    Words that a soft hyphen or a hyphen at the end of a line cuts are whole.
    """
    return [_SOFT_HYPHEN.sub("", text) for text in read_stored_texts(workspace, collection, rows)]


def read_stored_texts(workspace: Workspace, collection: Collection, rows: list[int] | None = None) -> list[str]:
    """As ``read_texts``, with the soft hyphens: U+00AD, and U+00AD with a newline for a hyphen at the end of a line.

    Such a hyphen may belong to the word or not.
    """
    wanted = range(len(collection.pages)) if rows is None else rows
    known: dict[str, dict[int, str]] = {}
    texts = []
    for row in wanted:
        shard = collection.text_shards[row]
        if shard not in known:
            lines = workspace.read_shard_file("pages", shard, "text.jsonl").decode().split("\n")
            records = [json.loads(line) for line in lines if line]
            known[shard] = {int(record["number"]): record["text"] for record in records}
        texts.append(known[shard].get(collection.pages[row].number, ""))
    return texts


def read_image(workspace: Workspace, page: Page) -> Image.Image:
    """The page image in RGB, checked against its hash. Raises MmrrError if it is gone or damaged."""
    from PIL import Image  # `mmrr ls` opens no image

    return Image.open(io.BytesIO(read_image_file(workspace, page))).convert("RGB")


def read_content(workspace: Workspace, collection: Collection, page: Page, what: str) -> Image.Image | str:
    """The input of a scorer: the ``image`` or the ``text`` of a page."""
    if what == "text":
        (text,) = read_texts(workspace, collection, [collection.row_of[page.page_id]])
        return text
    return read_image(workspace, page)


def read_image_file(workspace: Workspace, page: Page) -> bytes:
    """The bytes of the page image's file, checked as in ``read_image``."""
    if not page.width_px:
        raise MmrrError(
            f"{page.page_id} is a text without an image: use --first-stage words or meaning, and a scorer of texts"
        )
    try:
        data = read_file(page.image)
    except (FileNotFoundError, IsADirectoryError, ValueError):  # a symbolic link is not read
        data = b""
    if hashlib.sha256(data).hexdigest() != page.sha256:
        raise workspace.damaged("pages", page.image.parent.name, f"{page.image.name} does not match its hash")
    return data


def without(workspace: Workspace, pages: Manifest, gone: Set[str]) -> Manifest:
    """The collection without the documents of these ids. Raises MmrrError if no document that opens would be left."""
    entries = [copy.deepcopy(entry) for entry in manifests.documents(pages) if entry["doc_id"] not in gone]
    if not any(entry["shards"] for entry in entries):
        raise MmrrError(
            "no document that opens would be left; name others with mmrr index --replace, "
            f"or delete the folder {workspace.root}"
        )
    spec = pages_spec(pages.config, entries, pages.schema)
    sources = changes.merge_places(changes.places(pages), {}, entries)
    made = workspace.done(spec) or list_pages(
        workspace, spec, entries, provenance={"pages_computed": 0, "seconds": 0.0}
    )
    made = workspace.annotate(made, sources=sources, skipped=changes.skipped(pages))
    described = {doc_id: values for doc_id, values in metadata.of(pages).items() if doc_id not in gone}
    return workspace.annotate(made, metadata=described) if described else made


def page_row(collection: Collection, page_id: str) -> int:
    """The row of a page, whose document may be named as ``changes.find`` takes it, and its number without zeros.

    Instead of the number, the document's own label of one page alone, such as ``iv``, is taken too.
    Raises MmrrError if there is none: with the pages of its document, or with the nearest documents.
    """
    if page_id in collection.row_of:
        return collection.row_of[page_id]
    entries = {entry["doc_id"]: entry for entry in manifests.documents(collection.manifest)}
    head, _, number = page_id.rpartition("/")
    is_number = number.isascii() and number.isdecimal() and len(number) < 10
    name = page_id if page_id in entries or not is_number else head
    if name == page_id and (labelled := _labelled(collection, head, number)) is not None:
        return labelled
    doc_id = changes.find(collection.manifest, name)
    rows = collection.rows.get(doc_id, [])
    if name == head and (found := [row for row in rows if collection.pages[row].number == int(number)]):
        return found[0]
    n_pages = entries[doc_id]["n_pages"]
    count = f"{n_pages} page" if n_pages == 1 else f"{n_pages} pages"
    whole = [page.page_id for page in collection.whole_pages(doc_id)]
    ends = list(dict.fromkeys((*whole[:1], *whole[-1:])))
    if not ends:
        raise MmrrError(f"no page {page_id} in the index; no page of {doc_id} could be drawn")
    raise MmrrError(f"no page {page_id} in the index; {doc_id} has {count}: {' to '.join(ends)}")


def _labelled(collection: Collection, document: str, label: str) -> int | None:
    """The row of the only page of a document that has this label."""
    try:
        rows = collection.rows.get(changes.find(collection.manifest, document), []) if document and label else []
    except MmrrError:
        return None
    found = [row for row in rows if collection.pages[row].label == label]
    return found[0] if len({collection.pages[row].number for row in found}) == 1 else None
