"""Drawn pages: seeded, complete, with the true position of every character."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mmrr.training.synthetic import fonts, snippets
from mmrr.training.synthetic.canvas import DrawnPage
from mmrr.training.synthetic.sources import Block, Document
from mmrr.training.synthetic.style import Scan, Style, choose_style
from mmrr.training.synthetic.typesetting import draw_document
from tests.training.drawing import DOCUMENT, TEXT, fix_style, letters

Restyle = Callable[..., None]


@pytest.fixture
def restyle(monkeypatch: pytest.MonkeyPatch) -> Restyle:
    """Replaces parts of every style that is chosen in a test."""
    return partial(fix_style, monkeypatch)


def style_of(document: Document, seed: int) -> Style:
    return choose_style(random.Random(f"{seed}/{document.id}"), document.title)


def test_the_seed_decides_pixels_and_style() -> None:
    def draw(seed: int) -> DrawnPage:
        return next(draw_document(DOCUMENT, seed))

    one, again, other = draw(1), draw(1), draw(2)
    assert one.image.tobytes() == again.image.tobytes()
    assert [(word.text, word.block) for word in one.words] == [(word.text, word.block) for word in again.words]
    assert all(np.array_equal(a.centres, b.centres) for a, b in zip(one.words, again.words, strict=True))
    assert style_of(DOCUMENT, 1) != style_of(DOCUMENT, 2)
    assert one.image.tobytes() != other.image.tobytes()


def test_all_text_is_drawn_in_order() -> None:
    for seed in range(3):
        words = [word for page in draw_document(DOCUMENT, seed) for word in page.words if word.block >= 0]
        for index, block in enumerate(DOCUMENT.blocks):
            drawn = [word.text for word in words if word.block == index]
            text = letters([block.text, *(cell for row in block.rows for cell in row)])
            in_capitals = block.kind == "heading" and style_of(DOCUMENT, seed).capitals
            assert letters(drawn) == (text.upper() if in_capitals else text), seed


def test_characters_of_an_unscanned_page_are_inside_the_page() -> None:
    seeds = [seed for seed in range(40) if style_of(DOCUMENT, seed).scan is None][:4]
    for seed in seeds:
        for page in draw_document(DOCUMENT, seed, max_pages=2):
            assert page.image.size == (style_of(DOCUMENT, seed).width_px, style_of(DOCUMENT, seed).height_px)
            for word in page.words:
                if word.block >= 0:
                    assert word.centres.shape == (len(word.text), 2)
                    assert (word.centres > 0).all(), (seed, word)
                    assert (word.centres < page.image.size).all(), (seed, word)


@pytest.mark.parametrize("angle", [0.0, 1.5, -1.5])
def test_character_centres_are_on_ink(restyle: Restyle, angle: float) -> None:
    restyle(scan=Scan(angle, blur_px=0.0, noise=3.0, contrast=0.9, jpeg=70), leading=2.0, columns=1)
    page = next(draw_document(DOCUMENT, 5))
    pixels = np.asarray(page.image.convert("L"))
    paper = float(np.median(pixels))

    def share(shift: Callable[[np.ndarray], np.ndarray]) -> float:
        """The share of letters and digits with a dark pixel within 4 pixels of the shifted centre."""
        found = []
        for word in page.words:
            for character, (x, y) in zip(word.text, shift(word.centres).round().astype(int), strict=True):
                if character.isalnum():
                    near = pixels[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5]
                    found.append(near.size > 0 and near.min() < paper - 60)
        assert len(found) > 200
        return sum(found) / len(found)

    assert share(lambda centres: centres) > 0.98
    # Counter-check: between the lines there is no ink, so a wrong rotation or offset would fail above.
    line_px = 2.0 * style_of(DOCUMENT, 5).body_px
    assert share(lambda centres: centres + np.array([0, line_px / 2])) < 0.5


def test_a_table_of_several_pages_has_every_cell_once() -> None:
    rows = (("Name", "Place", "Number"), *((f"Row {n}", f"shelf {n} by the east door", f"{n * 7}") for n in range(250)))
    table = Document("table", "made-up", "", (Block("table", rows=rows),), ())
    for seed in range(3):
        pages = list(draw_document(table, seed))
        assert len(pages) > 1
        drawn = [word.text for page in pages for word in page.words if word.block == 0]
        assert letters(drawn) == letters([cell for row in rows for cell in row])


def test_pages_are_drawn_without_installed_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # fc-list is not found
    fonts.families.cache_clear()
    try:
        assert [family.name for family in fonts.families()] == ["Pillow"]
        page = next(draw_document(DOCUMENT, 1))
        assert "harbour" in page.text()
        assert np.asarray(page.image).std() > 1
    finally:
        fonts.families.cache_clear()


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_a_wide_table_keeps_all_words_uncut(restyle: Restyle, columns: int) -> None:
    """Nine columns are too wide for a page. They are drawn in parts, one below the other."""
    restyle(scan=None, columns=columns)
    head = tuple(f"characterisation{n}" for n in range(9))
    rows = (head, *(tuple(f"responsibilities{n} of row{r}" for n in range(9)) for r in range(4)))
    for seed in range(4):
        pages = draw_document(Document("wide", "", "", (Block("table", rows=rows),), ()), seed)
        words = [word for page in pages for word in page.words if word.block == 0]
        assert sorted(word.text for word in words) == sorted(" ".join(map(" ".join, rows)).split()), seed
        assert all((word.centres > 0).all() for word in words)


def test_headings_and_paragraphs_have_their_coloured_band(restyle: Restyle) -> None:
    restyle(banners=True, boxes=1.0, accent=(200, 0, 0), scan=None, columns=1, capitals=True, supersample=1)
    blocks = (Block("heading", "Berths"), Block("text", TEXT))
    page = next(draw_document(Document("boxes", "", "", blocks, ()), 3))
    pixels = np.asarray(page.image).astype(int)
    assert page.text(0) == "BERTHS"
    for word in page.words:
        if word.block < 0:
            continue
        x, y = word.centres.mean(0).round().astype(int)
        around = pixels[y - 6 : y + 7, x - 6 : x + 7].reshape(-1, 3)
        reddish = (around[:, 0] - around[:, 1] > 15).mean()
        assert reddish > 0.3, word.text  # most pixels without ink are of the band


@pytest.mark.parametrize("rows", [(), ((),), (("a", "b"), (), ("x", "1"), ("y", "2"), ("z", "3"))])
def test_empty_rows_of_a_table_are_not_drawn(restyle: Restyle, rows: tuple[tuple[str, ...], ...]) -> None:
    restyle(figures=1.0, scan=None)  # a chart below every table
    document = Document("table", "", "", (Block("text", "Before."), Block("table", rows=rows)), ())
    drawn = [word.text for page in draw_document(document, 1) for word in page.words if word.block == 1]
    assert letters(drawn) == letters([cell for row in rows for cell in row])


def test_a_row_taller_than_a_page_is_cut(restyle: Restyle) -> None:
    restyle(scan=None)
    rows = (("Head", "Other"), ("huge " * 20_000, "short"), ("last", "row"))
    pages = list(draw_document(Document("table", "", "", (Block("table", rows=rows),), ()), 1))
    drawn = [word for page in pages for word in page.words if word.block == 0]
    texts = [word.text for word in drawn]
    assert 100 < texts.count("huge") < 20_000
    assert {"short", "last", "row"} <= set(texts)
    assert all((word.centres > 0).all() and (word.centres < pages[0].image.size).all() for word in drawn)


def test_a_blank_list_item_has_no_bullet(restyle: Restyle) -> None:
    restyle(header="", footer="", slide=False)
    (page,) = draw_document(Document("list", "", "", (Block("list", "one\n\n  \ntwo"),), ()), 1)
    assert [word.text for word in page.words] == ["•", "one", "•", "two"]


def test_missing_characters_are_drawn_in_another_font_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = fonts.Family("A", "a", "a", "a", False), fonts.Family("B", "b", "b", "b", False)
    has = {"a": "abc", "b": "abcxyz"}
    monkeypatch.setattr(fonts, "families", lambda: (first, second))
    monkeypatch.setattr(fonts, "_glyphs", lambda file: {c: c in has[file] for c in "abcxyz?"})
    fonts._fallback.cache_clear()
    try:
        assert [fonts.font_file_for(word, "a") for word in ("abc", "ax?", "?")] == ["a", "b", "a"]
        assert fonts.drawable_text("ab? ? ax?", "a") == "ab ax"
    finally:
        fonts._fallback.cache_clear()


def test_characters_that_no_font_has_are_not_recorded(restyle: Restyle) -> None:
    restyle(header="", footer="")
    blocks = (Block("text", "so\u00adft \ue0c7 \u200b wo\ue0c7rd"), Block("text", "\ue0c7"))
    (page,) = draw_document(Document("gaps", "", "", blocks, ()), 1)
    assert "".join(page.text().split()).replace("\u00ad", "") == "softword"
    assert "\ue0c7" not in page.text()
    assert "\ue0c7" not in snippets.draw_snippet(["\ue0c7"], 64, 64, random.Random(1)).text()


def test_font_listings_with_design_sizes_and_medium_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = [
        "/f/g08.otf|EB Garamond,EB Garamond 08|08 Regular,Regular|",
        "/f/g12.otf|EB Garamond,EB Garamond 12|12 Regular,Regular|",
        "/f/g12i.otf|EB Garamond,EB Garamond 12|12 Italic,Italic|",
        "/f/i.otf|Inconsolata|Medium|100",
        "/f/lm10.otf|Latin Modern Roman,LM Roman 10|10 Regular,Regular|",
        "/f/lm10b.otf|Latin Modern Roman,LM Roman 10|10 Bold,Bold|",
        "/f/lm5.otf|Latin Modern Roman,LM Roman 5|5 Regular,Regular|",
        "/f/r-medium.ttf|Roboto|Medium|",
        "/f/r.ttf|Roboto|Regular|",
    ]
    monkeypatch.setattr(fonts, "_listing", lambda: listing)
    monkeypatch.setattr(fonts, "_writes_english", lambda file: True)
    assert fonts.families.__wrapped__() == (
        fonts.Family("EB Garamond", "/f/g12.otf", "/f/g12.otf", "/f/g12i.otf", False),
        fonts.Family("Inconsolata", "/f/i.otf", "/f/i.otf", "/f/i.otf", True),
        fonts.Family("Latin Modern Roman", "/f/lm10.otf", "/f/lm10b.otf", "/f/lm10.otf", False),
        fonts.Family("Roboto", "/f/r.ttf", "/f/r.ttf", "/f/r.ttf", False),
    )
