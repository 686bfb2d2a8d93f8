"""Queries with images: from what a caller hands over, to pixels for a model, and as artifacts store and hash them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from mmrr.documents.canvas import to_rgb
from mmrr.documents.discovery import one_line
from mmrr.documents.image_input import MAX_PIXELS, PageImage, opened, read_image
from mmrr.errors import MmrrError
from mmrr.types import Query, QueryImage

#: A query: a text; an image as a path, the bytes of a file or a Pillow image; or ``{"text": ..., "image": ...}``, where
#: the image may also be the text of a path or a data URI. Any: its values are checked.
QueryLike = str | Path | bytes | Image.Image | Mapping[str, Any] | Query
#: The file of the queries in an artifact, and the folder of their images.
QUERIES, IMAGES = "queries.jsonl", "query-images"
_EMPTY = "the query is empty; expected a question, some words or an image"
#: Visual tokens of an image that is only read to see whether it is one.
_FEW_TOKENS = 16


def query_image(value: PageImage | QueryImage) -> QueryImage:
    """An image for ``Query``: a path, a data URI, the bytes of an image file or a Pillow image.

    A file is read now, and again when a model needs it. Raises MmrrError for what is no image, and for one with more
    pixels than a page image may have.
    """
    if isinstance(value, QueryImage):
        return value
    if isinstance(value, Image.Image):
        data = _png(value)
        return QueryImage(hashlib.sha256(data).hexdigest(), data)
    name, source = opened(value)
    if isinstance(source, Path):
        if not source.is_file():
            raise MmrrError(f"{name}: found no such file; expected an image")
        read_image(source, _FEW_TOKENS)
        return QueryImage(_file_digest(source), source, name)
    data = source.read()
    read_image(data, _FEW_TOKENS)
    return QueryImage(hashlib.sha256(data).hexdigest(), data)


def pixels(image: QueryImage, max_tokens: int) -> Image.Image:
    """The image in RGB on its canvas, as ``mmrr index`` renders an image file with the same ``max_tokens``.

    Raises MmrrError if the file changed or is gone.
    """
    if isinstance(image.source, Path) and _file_digest(image.source) != image.sha256:
        raise MmrrError(f"{image.name} changed while it was used as a query; ask again")
    return read_image(image.source, max_tokens)


def as_query(value: QueryLike, query_id: str = "query") -> Query:
    """The query that a caller means. Raises MmrrError for an empty one and for what is none."""
    if isinstance(value, Query):
        found = value if value.image is None else dataclasses.replace(value, image=query_image(value.image))
    elif isinstance(value, str):
        found = Query(query_id, value)
    elif isinstance(value, Mapping):
        found = _of_mapping(value, query_id)
    elif isinstance(value, Path | bytes | Image.Image):
        found = Query(query_id, "", image=query_image(value))
    else:
        raise MmrrError(f"found {type(value).__name__} as a query; expected a text, an image, or both in a dictionary")
    if not found.text.strip() and found.image is None:
        raise MmrrError(_EMPTY)
    return found


def _of_mapping(value: Mapping[str, Any], query_id: str) -> Query:
    unknown = sorted(map(str, value.keys() - {"text", "image"}))
    text, image = value.get("text"), value.get("image")
    if unknown or not isinstance(text, str | None):
        what = f"the keys {', '.join(unknown)}" if unknown else f"a text of type {type(text).__name__}"
        raise MmrrError(f"found a query with {what}; expected text, image, or both")
    return Query(query_id, text or "", image=None if image is None else query_image(image))


# As artifacts hash and store them


def identity(query: Query, max_tokens: int) -> tuple[str, ...]:
    """What the results of models for a query depend on, for the key of a shard. A text alone is its own identity."""
    if query.image is None:
        return (query.text,)
    return query.text, "image", query.image.sha256, str(max_tokens)


def fingerprinted(queries: Iterable[Query]) -> list[tuple[str | None, ...]]:
    """The queries as fingerprints contain them: the content of an image, not its name."""
    return [
        (query.query_id, query.text, query.doc_id, *([query.image.sha256] if query.image else [])) for query in queries
    ]


def write_queries(queries: Iterable[Query], folder: Path) -> None:
    """Write ``QUERIES`` and the images of the queries into an artifact's folder. ``trec.read_queries`` reads them.

    Raises MmrrError if the file of an image changed or is gone.
    """
    lines = []
    for query in queries:
        record: dict[str, object] = {"query_id": query.query_id, "text": query.text, "doc_id": query.doc_id}
        if query.image:
            record["image"] = f"{IMAGES}/{query.image.sha256}"
            _write_image(query.image, folder / IMAGES / query.image.sha256)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    (folder / QUERIES).write_text("".join(lines), "utf-8")


def _write_image(image: QueryImage, path: Path) -> None:
    try:
        data = image.source.read_bytes() if isinstance(image.source, Path) else image.source
    except OSError as error:
        raise MmrrError(f"{image.name} cannot be read: {one_line(error)}") from error
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise MmrrError(f"{image.name} changed while it was used as a query; ask again")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MmrrError(f"{path} cannot be read: {one_line(error)}; expected an image") from error


def _png(image: Image.Image) -> bytes:
    """The same image as a file. Equal images give equal files."""
    if not 0 < math.prod(image.size) <= MAX_PIXELS:
        raise MmrrError(f"found an image of {image.width} x {image.height} pixels; expected 1 to {MAX_PIXELS} pixels")
    buffer = io.BytesIO()
    to_rgb(ImageOps.exif_transpose(image)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
