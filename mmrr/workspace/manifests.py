"""The stored records of each stage, typed: an artifact's config, content and provenance, and its shards' records.

The keys are the spelling on disk. They stay as they are when a name in the code changes. The functions at the end give
the record of a manifest or shard in its type; they check the stage, not the values, which the checksums cover.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict, cast, overload

from mmrr.workspace.store import Manifest, Workspace

#: The status of a document with pages that the machine could not draw: a process died, or memory ran out. Such a
#: document lists the shards that it has. It is never ``ok`` in a later listing without being rendered.
NOT_RENDERED = "not_rendered"
#: The status of a page past a limit, and of a document without an image because of them. Larger limits may draw it.
LIMITS = ("time_limit", "memory_limit")

#: {shard of pages: this stage's shard of the same pages}
PageShards = dict[str, str]


# Artifacts: config (hashed), content, provenance (not hashed)


class PagesConfig(TypedDict, total=False):
    """How pages were rendered; or, with ``file``, which published file or table they were read from."""

    renderer: str
    dpi: int
    max_tokens: int
    ocr: str  # the OCR engine
    tiles: str  # how pages with small print are cut
    file: str
    text: str
    documents: list[str]


class DocumentEntry(TypedDict):
    """One document of a collection."""

    doc_id: str
    sha256: str
    status: str  # "ok", or what is wrong with it
    n_pages: int
    detail: str
    shards: list[str]
    ocr: NotRequired[PageShards]  # {shard: the shard with the text that OCR read of it}
    failed_pages: NotRequired[dict[str, str]]  # {page number: why it has no image}
    tiles: NotRequired[PageShards]  # {shard: the shard with the tiles of its pages}
    notes: NotRequired[dict[str, list[int]]]  # {code of what is wrong with pages: their numbers}
    #: {shard: the one in ``shards`` that stands for it}: limits, fonts or a missing renderer kept pages from an image
    provisional: NotRequired[PageShards]


class PagesContent(TypedDict):
    pages: int
    tiles: NotRequired[int]  # images of parts of pages, besides ``pages``
    without_text: NotRequired[int]
    by_ocr: NotRequired[int]
    documents: list[DocumentEntry]


class Origin(TypedDict):
    """Where a document came from: the folder or file that was named, and the document itself. Absolute paths."""

    root: str
    path: str


class SkippedFile(TypedDict):
    """A file below a named folder that is no document, and why."""

    place: Origin
    reason: str


class SkippedFiles(TypedDict):
    """What the named folders hold besides documents. It is outside of the fingerprint: such a file changes nothing."""

    files: list[SkippedFile]
    hidden: dict[str, int]  # {named folder: its hidden files and folders}


class PagesProvenance(TypedDict, total=False):
    pages_computed: int
    seconds: float
    pages_read: int  # by OCR
    ocr_seconds: float
    sources: dict[str, Origin]  # by doc_id; absent in workspaces of mmrr 0.1
    skipped: SkippedFiles  # absent in workspaces of mmrr 0.3
    metadata: dict[str, dict[str, str | float]]  # {doc_id: {name: value}}; absent: none


class EmbedConfig(TypedDict):
    family: str
    options: dict[str, Any]  # the family's own
    pixel_limits: NotRequired[list[int]]  # of a page image, where the checkpoint's processor file decides


class EmbedContent(TypedDict):
    pages: int
    shards: PageShards


class EmbedTextContent(TypedDict):
    pages: int
    windows: int
    shards: PageShards


class Timing(TypedDict):
    pages_computed: int
    seconds: float


class IndexConfig(TypedDict):
    bm25: dict[str, Any]
    language: NotRequired[str]  # of the text; indexes of mmrr 0.1 have none
    faiss_factory: NotRequired[str]


class IndexContent(TypedDict):
    pages: int
    pages_with_text: int
    languages: NotRequired[dict[str, int]]  # pages by the language of their text


class RetrieveConfig(TypedDict):
    first_stage: str  # "run": a run of another system
    channels: NotRequired[dict[str, float]]  # the weights of a sum; absent: bm25 and dense with weight 1 each
    scope: str
    depth: int
    search: NotRequired[dict[str, Any]]  # the embedder family's own
    within: NotRequired[str]  # hash of the ids of the pages that may be found; absent: all


class RetrieveContent(TypedDict):
    queries: int
    candidates: int
    shards: list[str]  # one a query


class RetrieveProvenance(TypedDict):
    search_ms: float


class PruneConfig(TypedDict):
    keep: float
    by: Literal["attention", "random"]
    cell_px: int
    max_tokens: int | None


class PruneContent(TypedDict):
    pages: int
    shards: PageShards
    tokens: int
    kept: int
    resampled: int


class PrecacheConfig(TypedDict):
    family: str
    options: dict[str, Any]  # the family's own
    wording: dict[str, str]  # the prompt


class PrecacheContent(TypedDict):
    pages: int
    page_bytes: int
    keep: float
    shards: PageShards
    shared: str  # the shard of what all pages share
    without_text: NotRequired[int]
    #: {shard of pages/page number: the shard with the cache of this page alone}; only of caches for single candidates
    singles: NotRequired[dict[str, str]]


class RerankConfig(PrecacheConfig):
    dense: NotRequired[str]
    score: NotRequired[dict[str, Any]]  # the family's own
    blend: NotRequired[float]


class RerankContent(TypedDict):
    queries: int
    candidates: int
    shards: list[str]  # one a query
    caches: NotRequired[list[str]]  # shards of page caches that no ``precache`` artifact may list


class RerankProvenance(TypedDict):
    load_ms: float


class EvalConfig(TypedDict, total=False):
    measures: list[str]
    benchmark: str


class EvalContent(TypedDict):
    queries: int
    metrics: dict[str, Any]  # a table by run for judged runs; by pages and layouts for MMDocIR


# Shards


class PageRecord(TypedDict):
    """One rendered page in its shard's record. ``text`` is the number of characters of its text layer."""

    number: int
    status: str
    detail: str
    width_px: int
    height_px: int
    file: str
    sha256: str
    text: int
    notes: NotRequired[list[str]]  # codes of what is wrong with it
    label: NotRequired[str]  # the document's own number of the page, if it is another one


class PagesShard(TypedDict):
    pages: list[PageRecord]


class OcrPageRecord(TypedDict):
    number: int
    text: int  # characters read
    detail: str  # why there are none


class OcrShard(TypedDict):
    ocr: str  # the engine
    pages: list[OcrPageRecord]


class EmbedTextShard(TypedDict):
    windows: int


class PruneShard(TypedDict):
    resampled: int
    kept: int
    tokens: int


class FileRecord(TypedDict):
    bytes: int
    xxh3: NotRequired[str]


class PrecacheShard(TypedDict):
    files: dict[str, FileRecord]
    tensors: dict[str, str]  # {name: checksum}


class RerankShard(TypedDict):
    logits: dict[str, float]  # by candidate: <shard of page caches>/<page number>
    score_ms: float


@overload
def config(manifest: Manifest, stage: Literal["pages"]) -> PagesConfig: ...
@overload
def config(manifest: Manifest, stage: Literal["embed", "embed_text"]) -> EmbedConfig: ...
@overload
def config(manifest: Manifest, stage: Literal["index"]) -> IndexConfig: ...
@overload
def config(manifest: Manifest, stage: Literal["retrieve"]) -> RetrieveConfig: ...
@overload
def config(manifest: Manifest, stage: Literal["prune"]) -> PruneConfig: ...
@overload
def config(manifest: Manifest, stage: Literal["precache"]) -> PrecacheConfig: ...
@overload
def config(manifest: Manifest, stage: Literal["rerank"]) -> RerankConfig: ...
@overload
def config(manifest: Manifest, stage: Literal["eval"]) -> EvalConfig: ...
def config(manifest: Manifest, stage: str) -> object:
    """The config of an artifact of this stage."""
    _check(manifest, stage)
    return manifest.config


@overload
def content(manifest: Manifest, stage: Literal["pages"]) -> PagesContent: ...
@overload
def content(manifest: Manifest, stage: Literal["embed"]) -> EmbedContent: ...
@overload
def content(manifest: Manifest, stage: Literal["embed_text"]) -> EmbedTextContent: ...
@overload
def content(manifest: Manifest, stage: Literal["index"]) -> IndexContent: ...
@overload
def content(manifest: Manifest, stage: Literal["retrieve"]) -> RetrieveContent: ...
@overload
def content(manifest: Manifest, stage: Literal["prune"]) -> PruneContent: ...
@overload
def content(manifest: Manifest, stage: Literal["precache"]) -> PrecacheContent: ...
@overload
def content(manifest: Manifest, stage: Literal["rerank"]) -> RerankContent: ...
@overload
def content(manifest: Manifest, stage: Literal["eval"]) -> EvalContent: ...
def content(manifest: Manifest, stage: str) -> object:
    """The content of an artifact of this stage."""
    _check(manifest, stage)
    return manifest.content


@overload
def provenance(manifest: Manifest, stage: Literal["pages"]) -> PagesProvenance: ...
@overload
def provenance(manifest: Manifest, stage: Literal["embed", "embed_text", "precache"]) -> Timing: ...
@overload
def provenance(manifest: Manifest, stage: Literal["retrieve"]) -> RetrieveProvenance: ...
@overload
def provenance(manifest: Manifest, stage: Literal["rerank"]) -> RerankProvenance: ...
def provenance(manifest: Manifest, stage: str) -> object:
    """The provenance of an artifact of this stage, without the fields that ``Workspace.commit`` adds."""
    _check(manifest, stage)
    return manifest.provenance


def n_candidates(manifest: Manifest) -> int:
    """The number of hits in the run of a ``retrieve`` or ``rerank`` artifact."""
    if manifest.stage == "retrieve":
        return content(manifest, "retrieve")["candidates"]
    return content(manifest, "rerank")["candidates"]


@overload
def shard_record(workspace: Workspace, stage: Literal["pages"], key: str) -> PagesShard: ...
@overload
def shard_record(workspace: Workspace, stage: Literal["ocr"], key: str) -> OcrShard: ...
@overload
def shard_record(workspace: Workspace, stage: Literal["embed_text"], key: str) -> EmbedTextShard: ...
@overload
def shard_record(workspace: Workspace, stage: Literal["prune"], key: str) -> PruneShard: ...
@overload
def shard_record(workspace: Workspace, stage: Literal["precache"], key: str) -> PrecacheShard: ...
@overload
def shard_record(workspace: Workspace, stage: Literal["rerank"], key: str) -> RerankShard: ...
def shard_record(workspace: Workspace, stage: str, key: str) -> object:
    """The record of a shard; ``ocr`` for the shards of text that OCR read, which lie among those of ``pages``.

    Raises MmrrError if the shard is gone or damaged.
    """
    return workspace.shard_record("pages" if stage == "ocr" else stage, key)


def documents(manifest: Manifest) -> list[DocumentEntry]:
    """The documents of a ``pages`` artifact."""
    return content(manifest, "pages")["documents"]


def _check(manifest: Manifest, stage: str) -> None:
    if manifest.stage != stage:
        raise TypeError(f"{manifest.stage}/{manifest.fingerprint} is not a {stage} artifact")


def as_json(record: object) -> dict[str, Any]:
    """A TypedDict as the plain JSON object that ``Workspace.commit`` stores. Any: JSON."""
    return cast("dict[str, Any]", record)
