"""The documents of a rerank request: what they name, checked against the limits before a model sees them.

A string is text or a data URI. It is never a path, and nothing is fetched except from hosts that the server was told.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import io
import math
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from PIL import Image

from mmrr.documents.formats import image_formats
from mmrr.errors import MmrrError
from mmrr.queries import query_image
from mmrr.serve.errors import RefusedError
from mmrr.serve.schemas import Contents, Document, Part, QueryObject
from mmrr.serve.settings import Limits
from mmrr.types import Query

_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
#: Seconds to fetch an image.
_FETCH_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Given:
    """One document of a request."""

    kind: Literal["page", "text", "image"]
    value: str | bytes  # the page's id, the text, or the bytes of the image file


def read_query(query: str | QueryObject, limits: Limits, fetch_hosts: frozenset[str]) -> Query:
    """The query. A string is text. Raises RefusedError for one that is empty, too long or too large, or no image."""
    text, image = query if isinstance(query, str) else "", None
    try:
        if isinstance(query, QueryObject):
            text, image = _text_and_image(query, limits, fetch_hosts)
        if not text.strip() and image is None:
            raise RefusedError(422, "it is empty; expected a question, some words or an image")
        _expect_text(text)
        if len(text) > limits.query_chars:
            raise RefusedError(413, f"{len(text)} characters; expected at most {limits.query_chars}")
        return Query("query", text, image=None if image is None else query_image(image))
    except RefusedError as error:
        raise RefusedError(error.status, f"query: {error.message}") from error
    except MmrrError as error:  # an image whose header alone is right
        raise RefusedError(400, f"query: {error}") from error


def _text_and_image(query: QueryObject, limits: Limits, fetch_hosts: frozenset[str]) -> tuple[str, bytes | None]:
    if query.content is None:
        return query.text or "", None if query.image is None else _image(query.image, limits, fetch_hosts)
    if query.text is not None or query.image is not None:
        raise RefusedError(422, "found content and text or image; expected content alone")
    parts = [_part(part, limits, fetch_hosts) for part in query.content]
    texts = [one.value for one in parts if isinstance(one.value, str)]
    images = [one.value for one in parts if isinstance(one.value, bytes)]
    if len(texts) > 1 or len(images) > 1:
        raise RefusedError(422, "content has two parts of one type; expected at most one text and one image_url")
    return texts[0] if texts else "", images[0] if images else None


def read_documents(
    documents: Sequence[str | Document] | Contents, limits: Limits, fetch_hosts: frozenset[str]
) -> list[Given]:
    """The documents in order. Raises RefusedError, with the place of the document."""
    if isinstance(documents, Contents):
        documents = [Document(content=[part]) for part in documents.content]
    if not documents:
        raise RefusedError(422, "documents: the list is empty; expected 1 or more documents")
    if len(documents) > limits.documents:
        raise RefusedError(413, f"documents: {len(documents)} documents; expected at most {limits.documents}")
    found = []
    for i, document in enumerate(documents):
        try:
            found.append(_read(document, limits, fetch_hosts))
        except RefusedError as error:
            raise RefusedError(error.status, f"documents.{i}: {error.message}") from error
    return found


def _read(document: str | Document, limits: Limits, fetch_hosts: frozenset[str]) -> Given:
    if isinstance(document, str):
        if document[:5].lower() == "data:":
            return Given("image", _image(document, limits, fetch_hosts))
        return _text(document, limits)
    given = [name for name in ("page_id", "text", "image", "content") if getattr(document, name) is not None]
    if len(given) != 1:
        raise RefusedError(
            422, f"found {' and '.join(given) or 'nothing'}; expected one of page_id, text, image, content"
        )
    if document.page_id is not None:
        return Given("page", document.page_id)
    if document.image is not None:
        return Given("image", _image(document.image, limits, fetch_hosts))
    if document.content is not None:
        if len(document.content) != 1:
            raise RefusedError(422, f"content has {len(document.content)} parts; expected one image_url or one text")
        return _part(document.content[0], limits, fetch_hosts)
    assert document.text is not None
    return _text(document.text, limits)


def _part(part: Part, limits: Limits, fetch_hosts: frozenset[str]) -> Given:
    if part.type == "text":
        if part.text is None:
            raise RefusedError(422, "a content of type text has no text")
        return _text(part.text, limits)
    if part.image_url is None:
        raise RefusedError(422, "a content of type image_url has no image_url")
    url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
    return Given("image", _image(url, limits, fetch_hosts))


def _expect_text(text: str) -> None:
    """JSON can write half of a surrogate pair, which no encoding of text has."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise RefusedError(422, "found half of a surrogate pair, expected text")


def _text(text: str, limits: Limits) -> Given:
    _expect_text(text)
    if len(text) > limits.text_chars:
        raise RefusedError(413, f"a text of {len(text)} characters; expected at most {limits.text_chars}")
    return Given("text", text)


def _image(url: str, limits: Limits, fetch_hosts: frozenset[str]) -> bytes:
    """The bytes of an image file, whose size in pixels is in its header."""
    if header := _DATA_URI.match(url):
        try:
            data = base64.b64decode(url[header.end() :], validate=True)
        except (ValueError, binascii.Error):
            raise RefusedError(400, "the data URI is not base64") from None
    elif url[:5].lower() == "data:":
        raise RefusedError(400, "a data URI of another kind; expected data:image/...;base64,...")
    else:
        data = _fetch(url, limits, fetch_hosts)
    try:
        with Image.open(io.BytesIO(data), formats=image_formats()) as image:
            pixels = math.prod(image.size)
    except Image.DecompressionBombError:
        pixels = limits.image_pixels + 1
    except Exception:  # Pillow's decoders raise errors of many types for a damaged file
        raise RefusedError(400, f"{len(data)} bytes that are no image; expected {', '.join(image_formats())}") from None
    if pixels > limits.image_pixels:
        raise RefusedError(413, f"an image of more than {limits.image_pixels} pixels; send a smaller one")
    return data


def _fetch(url: str, limits: Limits, hosts: frozenset[str]) -> bytes:
    """An image of a host that the server may fetch from. Redirects are not followed."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise RefusedError(400, "found no data URI and no URL; expected data:image/...;base64,...") from None
    if parts.scheme not in ("http", "https") or not host:
        raise RefusedError(400, "found no data URI and no URL; expected data:image/...;base64,...")
    if host not in hosts:
        raise RefusedError(400, "a remote URL is not fetched; send the image as a data URI: data:image/...;base64,...")
    try:
        if parts.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=_FETCH_SECONDS, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_FETCH_SECONDS)
        try:
            connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
            answer = connection.getresponse()
            data = answer.read(limits.body_bytes + 1)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RefusedError(400, f"the image at {host} could not be fetched: {type(error).__name__}") from None
    if answer.status != 200:
        raise RefusedError(400, f"the image at {host} could not be fetched: status {answer.status}")
    if len(data) > limits.body_bytes:
        raise RefusedError(413, f"the image at {host} has more than {limits.body_bytes} bytes")
    return data


def content_key(given: Given) -> str:
    """A hash of a document's content."""
    data = given.value if isinstance(given.value, bytes) else given.value.encode()
    return hashlib.sha256(given.kind.encode() + b"\n" + data).hexdigest()
