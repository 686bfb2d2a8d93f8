"""Page images that a caller hands over: a path, the bytes of a file, a data URI or a Pillow image.

Nothing is fetched from a network.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

from mmrr.documents.canvas import drawn_size, on_canvas, target_size, to_rgb
from mmrr.documents.discovery import one_line
from mmrr.documents.formats import image_formats
from mmrr.errors import MmrrError

#: A page image: a path or a data URI, the bytes of a file, or a Pillow image.
PageImage = str | Path | bytes | Image.Image

#: Most pixels of an image: the limit of Pillow, twice of what it warns of.
MAX_PIXELS = 178_956_970
_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def read_image(value: PageImage, max_tokens: int) -> Image.Image:
    """The image in RGB on its canvas, as ``mmrr index`` renders an image file with the same ``max_tokens``.

    Raises MmrrError if it is not an image, if it is too large, or if it is a URL other than a data URI.
    """
    if isinstance(value, Image.Image):
        return _fit(value, max_tokens)
    name, source = opened(value)
    try:
        with Image.open(source, formats=image_formats()) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise MmrrError(f"{name} has {image.width} x {image.height} pixels; expected at most {MAX_PIXELS}")
            image.load()
            return _fit(image, max_tokens)
    except MmrrError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many types for a damaged file
        raise MmrrError(f"{name} cannot be read as an image: {one_line(error)}") from error


def opened(value: str | Path | bytes) -> tuple[str, Path | BinaryIO]:
    """The image's name in messages, and what Pillow opens. Raises MmrrError for another data URI and for a URL."""
    if isinstance(value, bytes):
        return "the image", io.BytesIO(value)
    text = str(value)
    if header := _DATA_URI.match(text):
        try:
            return "the data URI", io.BytesIO(base64.b64decode(text[header.end() :], validate=True))
        except (ValueError, binascii.Error) as error:
            raise MmrrError(f"the data URI is not base64: {one_line(error)}") from error
    if text[:5].lower() == "data:":
        raise MmrrError(f"found a data URI that begins with {text[:40]!r}; expected data:image/...;base64,...")
    if _URL.match(text):
        raise MmrrError(f"{text[:80]} is a URL, and nothing is fetched; pass a path, bytes, a data URI or an image")
    return text, Path(value)


def _fit(image: Image.Image, max_tokens: int) -> Image.Image:
    with suppress(Exception):  # with a broken EXIF block only the orientation is lost
        image = ImageOps.exif_transpose(image)
    image = to_rgb(image)
    canvas = target_size(*image.size, max_tokens)
    return on_canvas(image.resize(drawn_size(*image.size, canvas), Image.Resampling.BICUBIC), canvas)
