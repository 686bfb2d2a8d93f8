"""Hits in notebooks: thumbnails as data URIs, and names as text."""

from __future__ import annotations

import base64
import io
import re
from typing import Any, cast

from PIL import Image

import mmrr
from mmrr.hits import Hit, Hits


class Pages:
    """In place of a workspace: every page but the second has an image."""

    def image(self, page_id: str) -> Image.Image:
        if page_id.endswith("2"):
            raise mmrr.MmrrError("0002.png <is> gone")
        return Image.new("RGB", (700, 990), "white")


def hit(page: int, document: str = "a <b>.pdf") -> Hit:
    pages: Any = Pages()
    query = mmrr.Query("q", "<script>")
    return Hit(f"{document}/{page:04d}", document, page, "iv", 0.5, page, 7, query, pages)


def test_hits_are_a_list_with_thumbnails() -> None:
    hits = Hits([hit(1), hit(2)])
    assert isinstance(hits[:1], Hits)
    assert hits[0] == cast(list[Hit], hits)[0]
    assert len(hits) == 2
    shown = hits._repr_html_()
    assert "a &lt;b&gt;.pdf, page 1 (iv)" in shown
    assert "<b>.pdf" not in shown
    assert "0002.png &lt;is&gt; gone" in shown
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', shown)
    assert Image.open(io.BytesIO(base64.b64decode(data))).width == 200
    assert hits[0]._repr_html_().count("<img") == 1
    assert "http" not in shown
    assert Hits(hit(1) for _ in range(60))._repr_html_().count("<img") == 50
    assert "no pages" in Hits()._repr_html_()
