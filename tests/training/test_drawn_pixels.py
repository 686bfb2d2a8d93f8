"""Drawn pages keep the same pixels: their hashes are compared with recorded ones.

Pillow's built-in font is used, so that the fonts of the machine do not matter. The letters are drawn by FreeType and
scans are saved by libjpeg, so the hashes hold for one version of these libraries on one kind of processor. The tests
are skipped elsewhere.
"""

from __future__ import annotations

import hashlib
import platform
import random
from collections.abc import Iterator

import PIL
import pytest
from PIL import Image, features

from mmrr.training.data.passage_images import draw_passage, font_file
from mmrr.training.synthetic import fonts, snippets
from mmrr.training.synthetic.canvas import Word
from mmrr.training.synthetic.reports import make_report
from mmrr.training.synthetic.sources import Document, read_documents
from mmrr.training.synthetic.typesetting import draw_document
from tests.texts import write_texts

#: What the hashes were recorded with.
RECORDED = ("13.0.0", "2.14.3", "6.2", "Linux", "x86_64")
#: Report number -> hash of its first two pages and their words. Between them: scans, slides, tables, charts, columns.
REPORTS = {
    0: "f7ef79308f7d42ad/99bea8c6b9524522",
    1: "6dade1c9c3c17440/71f1de4180e53cb6",
    3: "fb51fd6706de4dda/72e00d174b7158ad",
    7: "dd0109735b3b167a/772a2c6f6f3d40ee",
    8: "323bf5ecbef3e589/2ff033fd14c00b34",
    9: "0173302341bae2ff/0afad6be487bc013",
    11: "06ce4f3ed8430c46/b5487bbc4f8acad3",
}
SNIPPETS = {0: "a8b29937b49312ec", 1: "2c80d5de45e04c1d"}
PASSAGES = {1: "1d462955665d8727", 12: "8fdd8d06909c0829", 80: "ba6fb004148a8647"}


def drawing_libraries() -> tuple[str, ...]:
    jpeg, freetype = features.version("jpg"), features.version("freetype2")
    return (PIL.__version__, str(freetype), str(jpeg), platform.system(), platform.machine())


@pytest.fixture(autouse=True)
def built_in_font(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only Pillow's own font; the caches of font files are emptied before and after."""
    if drawing_libraries() != RECORDED:
        pytest.skip(f"hashes were recorded with {RECORDED}, this machine draws with {drawing_libraries()}")
    caches = (fonts.families, fonts._fallback, fonts._any_font_has, snippets._common, font_file)
    monkeypatch.setattr(fonts, "_listing", list)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return read_documents(write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl"))


def digest(image: Image.Image, words: tuple[Word, ...] = ()) -> str:
    """Hash of the pixels and of the text, block and character centres of each word."""
    found = hashlib.sha256(repr(image.size).encode() + image.tobytes())
    for word in words:
        found.update(repr((word.text, word.block)).encode() + word.centres.tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("number", REPORTS)
def test_a_report_keeps_its_pixels(documents: list[Document], number: int) -> None:
    pages = list(draw_document(make_report(documents, number, 0), number, 2))
    assert "/".join(digest(page.image, page.words) for page in pages) == REPORTS[number]


@pytest.mark.parametrize("seed", SNIPPETS)
def test_a_snippet_keeps_its_pixels(seed: int) -> None:
    page = snippets.draw_snippet(["harbour", "boat", "list"], 256, 128, random.Random(seed))
    assert digest(page.image, page.words) == SNIPPETS[seed]


@pytest.mark.parametrize("repeated", PASSAGES)
def test_a_passage_keeps_its_pixels(repeated: int) -> None:
    assert digest(draw_passage("The ferry of Skarrow leaves at noon. " * repeated)) == PASSAGES[repeated]
