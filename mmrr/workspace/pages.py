"""Lists and reads a ``pages`` artifact: which pages there are, in the order that rows of every later file follow."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmrr.errors import MmrrError
from mmrr.types import Page
from mmrr.workspace.store import Manifest, Spec, Workspace

if TYPE_CHECKING:
    from mmrr.documents.rendering import RenderedPage


@dataclass(frozen=True)
class Collection:
    """The pages of one artifact. Row i here is row i of its vectors."""

    manifest: Manifest
    pages: list[Page]
    shards: list[str]  # the pages shard that each page lies in
    text_shards: list[str]  # the one that its text lies in: the same, unless OCR read it

    @cached_property
    def by_shard(self) -> dict[str, list[Page]]:
        """Each shard once, with its pages; two copies of one document share their shards."""
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
        """Rows of each document."""
        rows: dict[str, list[int]] = {}
        for i, page in enumerate(self.pages):
            rows.setdefault(page.doc_id, []).append(i)
        return rows

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {page.page_id: i for i, page in enumerate(self.pages)}


def load(workspace: Workspace, manifest: Manifest) -> Collection:
    """Raises MmrrError if the artifact's listing is damaged."""
    pages, shards, text_shards = [], [], []
    listing = workspace.own_file(manifest, "pages.jsonl")
    try:
        for line in listing.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            shard = record.pop("shard")
            text_shard = record.pop("ocr", shard)
            # The file name follows from the page number: no path is ever taken from a listing.
            image = workspace.shard("pages", shard) / f"{int(record['number']):04d}.png"
            pages.append(Page(**record, image=image))
            shards.append(shard)
            text_shards.append(text_shard)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MmrrError(f"{manifest.path / 'pages.jsonl'} is damaged ({error}); run mmrr index again") from error
    return Collection(manifest, pages, shards, text_shards)


def commit_pages(workspace: Workspace, key: str, folder: Path, pages: list[RenderedPage]) -> None:
    """Make a scratch folder with drawn pages a shard: their text beside the images, the rest in its record."""
    texts = [{"number": page.number, "text": page.text} for page in pages]
    (folder / "text.jsonl").write_text(_lines(texts), "utf-8")
    records = [{**dataclasses.asdict(page), "text": len(page.text.strip())} for page in pages]
    workspace.commit_shard("pages", key, folder, {"pages": records})


def commit_ocr(workspace: Workspace, key: str, engine: str, pages: list[tuple[int, str, str]]) -> None:
    """Make a shard of what OCR read of some pages of another shard: page number, text, and why there is none."""
    folder = workspace.scratch()
    texts = [{"number": number, "text": text, "ocr": engine} for number, text, _ in pages]
    (folder / "text.jsonl").write_text(_lines(texts), "utf-8")
    records = [{"number": number, "text": len(text), "detail": detail} for number, text, detail in pages]
    workspace.commit_shard("pages", key, folder, {"ocr": engine, "pages": records})


def list_pages(
    workspace: Workspace,
    spec: Spec,
    entries: list[dict[str, Any]],
    page_name: str = "{:04d}",
    provenance: dict[str, Any] | None = None,
) -> Manifest:
    """Commit the artifact: every page with an image, and each document's status and failed pages.

    ``entries``: doc_id, sha256, status, n_pages, detail, shards; perhaps ocr, {shard: shard of what OCR read of it}.
    """
    records = []
    n_without = n_by_ocr = 0
    for entry in entries:
        entry["failed_pages"] = {}
        ocr = entry.get("ocr", {})
        for key in entry["shards"]:
            read = workspace.shard_record("pages", ocr[key])["pages"] if key in ocr else []
            read_chars = {page["number"]: page["text"] for page in read}
            for page in workspace.shard_record("pages", key)["pages"]:
                if page["status"] != "ok":
                    entry["failed_pages"][str(page["number"])] = page["detail"]
                    continue
                page_id = f"{entry['doc_id']}/{page_name.format(page['number'])}"
                fields = {name: page[name] for name in ("number", "width_px", "height_px", "sha256")}
                record = {"page_id": page_id, "doc_id": entry["doc_id"], **fields, "shard": key}
                n_chars = page["text"]
                if page["number"] in read_chars:
                    record["ocr"] = ocr[key]
                    n_chars = read_chars[page["number"]]
                    n_by_ocr += n_chars > 0
                n_without += n_chars == 0
                records.append(record)
        if entry["failed_pages"]:
            entry["status"] = "partial" if len(entry["failed_pages"]) < entry["n_pages"] else "corrupt"
            entry["detail"] = f"{len(entry['failed_pages'])} of {entry['n_pages']} pages could not be drawn"
    if not records:
        raise MmrrError("no page could be drawn: " + "; ".join(complaint(entry) for entry in entries[:5]))
    content = {"pages": len(records), "without_text": n_without, "by_ocr": n_by_ocr, "documents": entries}
    size = workspace.shard_bytes(
        "pages", (key for entry in entries for key in (*entry["shards"], *entry.get("ocr", {}).values()))
    )
    return workspace.commit(
        spec, content, size, provenance, lambda folder: (folder / "pages.jsonl").write_text(_lines(records), "utf-8")
    )


def complaint(entry: dict[str, Any]) -> str:
    """One line on a document that is not whole."""
    return f"{entry['doc_id']}: {entry['status']}" + (f" ({entry['detail']})" if entry["detail"] else "")


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_texts(workspace: Workspace, collection: Collection, rows: list[int] | None = None) -> list[str]:
    """The text of the pages at ``rows`` (all by default), their layer's or OCR's; "" where a page has none."""
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
    """The page image (RGB), checked against its hash. Raises MmrrError if it is gone or damaged."""
    return Image.open(io.BytesIO(read_image_file(workspace, page))).convert("RGB")


def read_content(workspace: Workspace, collection: Collection, page: Page, what: str) -> Image.Image | str:
    """What a scorer reads of a page: its ``image``, or its ``text``."""
    if what == "text":
        (text,) = read_texts(workspace, collection, [collection.row_of[page.page_id]])
        return text
    return read_image(workspace, page)


def read_image_file(workspace: Workspace, page: Page) -> bytes:
    """The page image as it lies on disk, checked as in ``read_image``."""
    try:
        data = page.image.read_bytes()
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() != page.sha256:
        raise workspace.damaged("pages", page.image.parent.name, f"{page.image.name} does not match its hash")
    return data
