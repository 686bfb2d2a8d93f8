"""Page images at the size and in the format that a client asks for. Those that were made last stay in memory."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from typing import Literal

from PIL import Image

Format = Literal["png", "jpeg", "webp"]
Key = tuple[str, int | None, Format]  # SHA-256 of the page's PNG, width in pixels, format

#: Bytes of images that stay in memory: 5,000 thumbnails.
BUDGET = 64 << 20
#: A reduced image is made from one that is this many times as large: twice as fast as from all pixels, and as sharp.
_GAP = 3.0


class Thumbnails:
    """Makes page images in the threads that ask for them, as many at a time as there are processors.

    More at a time would finish all of them late instead of the first ones early.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget, self._bytes = budget, 0
        self._known: OrderedDict[Key, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._places = threading.Semaphore(os.cpu_count() or 1)

    def find(self, key: Key) -> bytes | None:
        """What is in memory."""
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def make(self, key: Key, png: bytes) -> bytes:
        """The page image ``png`` in the width and format of ``key``. Raises OSError if it cannot be decoded."""
        _, width, wanted = key
        with self._places:
            if (found := self.find(key)) is not None:  # another request made it meanwhile
                return found
            made = _convert(png, width, wanted)
        with self._lock:
            self._bytes += len(made) - len(self._known.pop(key, b""))
            self._known[key] = made
            while self._bytes > self._budget:
                self._bytes -= len(self._known.popitem(last=False)[1])
        return made


def _convert(png: bytes, width: int | None, wanted: Format) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
        image = opened.convert("RGB")
    if width is not None and width != image.width:
        size = width, max(1, round(image.height * width / image.width))
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=_GAP)
    if wanted == "png":
        image.save(buffer, "PNG", compress_level=1)
    elif wanted == "jpeg":
        image.save(buffer, "JPEG", quality=82)
    else:
        image.save(buffer, "WEBP", quality=80, method=1)
    return buffer.getvalue()
