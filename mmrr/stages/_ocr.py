"""OCR for the stage ``pages``: reads page images, and writes the text to shards of their own.

OCR can therefore be added later, and everything that was made from the images stays.
"""

from __future__ import annotations

import json
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import repeat

from mmrr.config import OcrMode, Render
from mmrr.context import Context
from mmrr.documents import ocr, ocr_models
from mmrr.documents.text_layer import GARBLED, LITTLE_TEXT
from mmrr.errors import MmrrError
from mmrr.workers import helpers
from mmrr.workspace import manifests
from mmrr.workspace.manifests import DocumentEntry, PageRecord
from mmrr.workspace.pages import commit_ocr
from mmrr.workspace.store import Spec, Workspace

#: Pages with one of these notes have a text layer that is not their text.
_WRONG_LAYER = {LITTLE_TEXT, GARBLED}


@dataclass(frozen=True, slots=True)
class Reading:
    """Which pages OCR reads, and with what."""

    mode: OcrMode
    recognition: ocr_models.Recognition

    @property
    def name(self) -> str:
        """For the record and the hash of the pages."""
        parts = [ocr.ENGINE, self.recognition.name, "every page" if self.mode == "force" else ""]
        return ", ".join(filter(None, parts))


def reading(options: Render) -> Reading | None:
    """What the options ask for; None if they ask for none.

    Raises MmrrError for an unknown mode or language, and if the package or the model is missing.
    """
    if options.ocr not in ("never", "auto", "force"):
        raise MmrrError(f"--ocr {options.ocr}: expected auto, force or never")
    if options.ocr == "never":
        return None
    ocr.require()
    return Reading(options.ocr, ocr_models.find(options.ocr_language))


def read_pages(context: Context, wanted: Reading, spec: Spec, entries: list[DocumentEntry], workers: int) -> int:
    """Read pages; each document's ``ocr`` says in which shard their text is. Returns how many were read.

    Raises MmrrError if OCR does not work on this machine.
    """
    workspace = context.workspace
    missing: dict[str, tuple[str, list[tuple[PageRecord, str]]]] = {}
    for entry in entries:
        shards = entry["ocr"] = {}
        for key in entry["shards"]:
            pages = _to_read(workspace, key, wanted.mode)
            if pages:
                shards[key] = spec.shard_key(key)
                if not workspace.has_shard("pages", shards[key]):
                    missing[shards[key]] = key, pages
    images = [(workspace.shard("pages", drawn), page) for drawn, pages in missing.values() for page, _ in pages]
    if not images:
        return 0
    try:
        with helpers(min(workers, len(images))) as pool, context.progress("ocr", len(images)) as advance:
            paths = (folder / page["file"] for folder, page in images)
            hashes = (page["sha256"] for _, page in images)
            answers = pool.map(ocr.read_page, paths, hashes, repeat(wanted.recognition))
            for key, (drawn, pages) in missing.items():
                read = []
                # Each shard takes the answers of its pages.
                for (page, layer), answer in zip(pages, answers, strict=False):
                    if answer is None:
                        raise workspace.damaged("pages", drawn, f"{page['file']} does not match its hash")
                    text, detail = answer
                    if text or not layer:  # else the text layer stays
                        is_part = LITTLE_TEXT in page.get("notes", [])
                        read.append((page["number"], f"{layer}\n{text}" if layer and is_part else text, detail))
                    advance(1)
                commit_ocr(workspace, key, ocr.ENGINE, read)
    except BrokenProcessPool:
        raise MmrrError(
            "a process that read pages by OCR died, perhaps because memory ran out; "
            "run the command again with --workers 1"
        ) from None
    return len(images)


def _to_read(workspace: Workspace, key: str, mode: OcrMode) -> list[tuple[PageRecord, str]]:
    """The pages of a shard that have an image and that OCR reads, each with its text layer."""
    lines = workspace.read_shard_file("pages", key, "text.jsonl").decode().split("\n")
    texts: dict[int, str] = {
        record["number"]: record["text"].strip() for record in map(json.loads, filter(None, lines))
    }
    pages = [
        (page, texts.get(page["number"], ""))
        for page in manifests.shard_record(workspace, "pages", key)["pages"]
        if page["status"] == "ok"
    ]
    if mode == "force":
        return pages
    return [(page, text) for page, text in pages if not text or _WRONG_LAYER.intersection(page.get("notes", []))]
