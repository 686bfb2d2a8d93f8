"""Drawing PDF pages with both renderers: sizes, rotation, limits, and when PDFium draws instead of poppler."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import resource
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from mmrr.documents import poppler
from mmrr.documents.canvas import target_size
from mmrr.documents.discovery import Inspection, find_sources, inspect
from mmrr.documents.limits import Limits
from mmrr.documents.rendering import RenderOptions, default_renderer, render_pages
from mmrr.errors import MmrrError
from tests.documents.files import RENDERERS, STATUSES, fake_program, is_dark, needs_poppler, render, source, write
from tests.pdfs import join_objects, make_pdf

pytestmark = [pytest.mark.renderer, pytest.mark.usefixtures("own_temp")]


# Sizes


@pytest.mark.parametrize(
    ("width", "height", "max_tokens", "expected"),
    [
        (32, 64, 1280, (64, 96)),  # below 4 tokens: grown to 45.3 x 90.5, rounded up
        (64, 64, 1280, (64, 64)),
        (80, 112, 1280, (64, 128)),  # 2.5 and 3.5: halves to even
        (1000, 1000, 1280, (992, 992)),
        (1275, 1650, 1280, (992, 1280)),  # Letter at 150 dpi
        (1240, 1754, 1280, (960, 1344)),  # A4 at 150 dpi
        (3853, 3853, 64, (256, 256)),  # exactly 8 x 8 tokens: no token may be lost to rounding
        (30000, 30000, 1280, (1120, 1120)),
        (6400, 32, 1280, (6400, 32)),
        (2, 2000, 1280, (32, 1984)),  # padded to 200:1; 62.5 goes to the even 62
        (10, 10_000, 1280, (64, 9984)),  # padded from 10 to 50
        (1, 1, 1280, (64, 64)),
        (1_000_000, 10, 16, (512, 32)),  # the published rule gives 2,912 x 32, which is 91 tokens
    ],
)
def test_target_sizes(width: int, height: int, max_tokens: int, expected: tuple[int, int]) -> None:
    assert target_size(width, height, max_tokens) == expected
    assert target_size(height, width, max_tokens) == expected[::-1]


def test_target_size_holds_its_limits() -> None:
    for max_tokens in (16, 100, 1280, 1800):
        for width in (0.3, 7, 31, 100, 999.5, 4096, 30000, 1e8):
            for height in (0.3, 15, 64, 1234.5, 30000, 1e8):
                w, h = target_size(width, height, max_tokens)
                assert w % 32 == h % 32 == 0
                assert min(w, h) >= 32
                assert 4 <= w * h / 1024 <= max_tokens
                assert target_size(w, h, max_tokens) == (w, h)  # an image of the target size is not resized again
    for side in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="cannot be drawn"):
            target_size(side, 10, 1280)
    with pytest.raises(ValueError, match="max_tokens"):
        target_size(10, 10, 3)
    for options in ({"dpi": 0}, {"max_tokens": 3}):
        with pytest.raises(MmrrError, match="at least"):
            RenderOptions("pdfium", **options)


# Drawing PDFs


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_rotated_pages_are_upright(tmp_path: Path, renderer: str, rotate: int) -> None:
    path = write(tmp_path / "a.pdf", make_pdf(["turned"], size=(600, 900), rotate=rotate))
    (page,) = render(source(path), tmp_path / "out", renderer)
    assert (page.status, page.detail, page.text.strip()) == ("ok", "", "turned")
    upright = target_size(1250, 1875, 1280)
    assert (page.width_px, page.height_px) == (upright if rotate % 180 == 0 else upright[::-1])
    image = Image.open(tmp_path / "out" / page.file)
    # The bar is at x 40..190, y 20..60 from the top left of the unrotated page. /Rotate turns it clockwise.
    x, y = 115 / 600, 40 / 900
    places = {0: (x, y), 90: (1 - y, x), 180: (1 - x, 1 - y), 270: (y, 1 - x)}
    assert {turn: is_dark(image, *place) for turn, place in places.items()} == {t: t == rotate for t in places}


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_no_strip_of_a_page_is_cut_off(tmp_path: Path, renderer: str, rotate: int) -> None:
    """If both sides are given, pdftoppm scales rotated pages by the wrong side and cuts off 2 % of them."""
    frame = (
        b"0 0 0 RG 10 w 5 5 440 990 re S 0 0 0 rg 195 495 60 10 re f"  # the edge of the page, and a bar in its middle
    )
    path = source(write(tmp_path / "a.pdf", make_pdf([frame], size=(450, 1000), rotate=rotate)))
    (page,) = render(path, tmp_path / "out", renderer)
    assert page.detail == ""
    image = Image.open(tmp_path / "out" / page.file).convert("L").rotate(rotate, expand=True)
    dark = image.point(lambda value: 255 * (value < 128))
    left, top, right, bottom = dark.getbbox() or (0, 0, 0, 0)
    slack = 32 if renderer == "poppler" and rotate % 180 else 0
    assert max(left, top, image.width - right, image.height - bottom) <= slack
    per_point = ((right - left) / 450, (bottom - top) / 1000)
    middle = dark.crop((left + 30, top + 30, right - 30, bottom - 30)).getbbox()
    assert middle is not None
    assert (middle[2] - middle[0]) / 60 == pytest.approx(per_point[0], rel=0.05)
    assert 30 + (middle[0] + middle[2]) / 2 == pytest.approx((right - left) / 2, abs=2)
    assert 30 + (middle[1] + middle[3]) / 2 == pytest.approx((bottom - top) / 2, abs=2)
    row = [dark.getpixel((x, image.height // 3)) for x in range(image.width)]
    column = [dark.getpixel((image.width // 3, y)) for y in range(image.height)]
    for line, scale in ((row, per_point[0]), (column, per_point[1])):
        assert line.count(255) / scale == pytest.approx(20, abs=2)  # both lines of the frame, in points


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("rotate", [0, 90])
def test_pages_are_cut_to_the_crop_box(tmp_path: Path, renderer: str, rotate: int) -> None:
    data = make_pdf(["cropped"], size=(600, 900), rotate=rotate, cropbox=(30, 800, 230, 900))
    (page,) = render(source(write(tmp_path / "a.pdf", data)), tmp_path / "out", renderer)
    assert page.detail == ""
    assert {page.width_px, page.height_px} == set(target_size(200 / 72 * 150, 100 / 72 * 150, 1280))
    image = Image.open(tmp_path / "out" / page.file).rotate(rotate, expand=True)
    assert is_dark(image, 85 / 200, 40 / 100)
    assert not is_dark(image, 195 / 200, 40 / 100)


def peak_memory_mb() -> float:
    """Peak resident memory of this process and of its children, added up."""
    kilobytes = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kilobytes / (1e6 if sys.platform == "darwin" else 1e3)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_huge_tiny_and_very_long_pages_stay_in_the_budget(tmp_path: Path, renderer: str) -> None:
    black = b"0 0 0 rg 0 0 300000 300000 re f"
    for number, size in enumerate([(14400, 14400), (200_000, 150_000), (1, 1), (10, 10_000), (14400, 3)]):
        path = write(tmp_path / f"{number}.pdf", make_pdf([black], size=size))
        before = peak_memory_mb()
        (page,) = render(source(path), tmp_path / "out", renderer)
        assert peak_memory_mb() - before < 200  # the first page has 2,700 MB at 150 dpi
        assert (page.status, page.detail) == ("ok", "")
        assert page.width_px * page.height_px <= 1280 * 1024
        image = Image.open(tmp_path / "out" / page.file)
        assert is_dark(image, 0.5, 0.5)
        beyond = max(size) / min(size) > 200  # drawn in the middle of a white canvas
        assert is_dark(image, 0.01, 0.01) != beyond


@pytest.mark.parametrize("renderer", RENDERERS)
def test_few_pages_of_a_long_pdf(tmp_path: Path, renderer: str) -> None:
    path = write(tmp_path / "long.pdf", make_pdf([f"page {n}" for n in range(1, 2001)], size=(200, 100)))
    assert inspect(source(path)) == Inspection("ok", 2000, "")
    pages = render(source(path), tmp_path / "out", renderer, 1990, 1992)
    assert [(p.number, p.file, p.text.strip()) for p in pages] == [
        (n, f"{n}.png", f"page {n}") for n in (1990, 1991, 1992)
    ]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [p.file for p in pages]
    for page in pages:
        data = (tmp_path / "out" / page.file).read_bytes()
        assert page.sha256 == hashlib.sha256(data).hexdigest()
        with Image.open(tmp_path / "out" / page.file) as image:
            assert (image.mode, image.size, image.format) == ("RGB", (page.width_px, page.height_px), "PNG")
    beyond = render(source(path), tmp_path / "out", renderer, 2000, 2001)
    assert [(p.status, p.file) for p in beyond] == [("ok", "2000.png"), ("failed", "")]
    assert "2001 of 2000" in beyond[1].detail


@pytest.mark.parametrize("renderer", RENDERERS)
def test_annotations_and_form_fields_are_drawn(tmp_path: Path, renderer: str) -> None:
    """Neither has an appearance stream here: the renderer makes one, PDFium by its form environment."""
    data = join_objects(
        [
            b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[5 0 R]/NeedAppearances true/DR<</Font<</F1 6 0 R>>>>>>>>",
            b"<</Type/Pages/Count 1/Kids[3 0 R]>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 400 400]/Annots[4 0 R 5 0 R]>>",
            b"<</Type/Annot/Subtype/Square/Rect[50 250 150 350]/C[1 0 0]/IC[1 0 0]/F 4>>",
            b"<</Type/Annot/Subtype/Widget/FT/Tx/T(n)/V(W)/Rect[50 50 350 150]/DA(/F1 60 Tf 0 g)/MK<</BG[0 0 1]>>>>",
            b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        ]
    )
    (page,) = render(source(write(tmp_path / "a.pdf", data)), tmp_path / "out", renderer)
    image = Image.open(tmp_path / "out" / page.file)
    assert image.getpixel((image.width // 4, image.height // 4)) == (255, 0, 0)
    assert image.getpixel((image.width * 4 // 5, image.height * 7 // 10)) == (0, 0, 255)


def test_text_layer_is_cleaned(tmp_path: Path) -> None:
    rows = b"BT /F1 12 Tf 14 TL 10 80 Td (caf\\351 \\(x\\)) Tj T* (hyphen-) Tj T* (ation ends) Tj ET"
    data = make_pdf([rows, b"0 0 0 rg 5 5 50 50 re f", ""], size=(200, 100))
    words, drawing, blank = render(source(write(tmp_path / "a.pdf", data)), tmp_path / "out", last=3)
    assert words.text == "caf\u00e9 (x)\nhyphen\u00ad\nation ends"
    assert (drawing.text, drawing.status, drawing.detail) == ("", "ok", "")
    assert (blank.text, blank.status, blank.detail) == ("", "ok", "")
    assert Image.open(tmp_path / "out" / blank.file).getextrema() == ((255, 255),) * 3


@needs_poppler
def test_both_renderers_draw_the_same_page(tmp_path: Path) -> None:
    shapes = b"1 0 0 rg 50 50 200 100 re f 0 0 1 RG 8 w 60 300 m 400 700 l S 0 0.5 0 rg 300 100 m 500 100 l 400 300 l f"
    path = source(write(tmp_path / "a.pdf", make_pdf([shapes, "words", shapes], size=(500, 800))))
    both = {name: render(path, tmp_path / name, name, last=3) for name in ("poppler", "pdfium")}
    for a, b in zip(*both.values(), strict=True):
        assert (a.width_px, a.height_px, a.text) == (b.width_px, b.height_px, b.text)
        images = [Image.open(tmp_path / name / a.file) for name in both]
        difference = ImageStat.Stat(ImageChops.difference(*images)).mean
        assert max(difference) < 3  # of 255
        assert min(ImageStat.Stat(images[0]).mean) < 253  # the two pages are not blank


def test_a_page_that_does_not_exist_fails_and_leaves_no_file(tmp_path: Path) -> None:
    """The page tree says that it has more pages than it has."""
    data = make_pdf(["one"]).replace(b"/Count 1", b"/Count 3")
    path = source(write(tmp_path / "a.pdf", data))
    assert inspect(path) == Inspection("ok", 3, "")
    for renderer in {"pdfium", default_renderer()}:
        pages = render(path, tmp_path / renderer, renderer, last=3)
        assert [page.status for page in pages] == ["ok", "failed", "failed"]
        assert all(page.detail for page in pages[1:])
        assert [file.name for file in (tmp_path / renderer).iterdir()] == ["0001.png"]


@needs_poppler
@pytest.mark.parametrize(
    ("script", "word"),
    [
        # Fails on page 2 in every call, after it has drawn page 1.
        (
            'case "$*" in *"-f 1 -l 3"*) $REAL -f 1 -l 1 "$@" -l 1;; *"-f 2"*) exit 1;; *) exec $REAL "$@";; esac',
            "no image",
        ),
        ("exit 3", "no image"),
        ("exec sleep 20", "more than"),
    ],
)
def test_a_page_that_poppler_cannot_draw_is_drawn_with_pdfium(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, word: str
) -> None:
    if "sleep" in script:  # nothing else may time out, however slow the machine is
        draw = poppler.draw
        monkeypatch.setattr(poppler, "draw", lambda *args: draw(*args[:-1], Limits(0.3)))
    fake_program("pdftoppm", tmp_path / "bin", monkeypatch, script)
    path = source(write(tmp_path / "a.pdf", make_pdf(["one", "two", "three"])))
    pages = render(path, tmp_path / "out", "poppler", last=3)
    assert [page.status for page in pages] == ["ok"] * 3
    by_pdfium = [page.number for page in pages if page.detail]
    assert by_pdfium == ([2] if "-f 2" in script else [1, 2, 3])
    assert all(word in page.detail and "PDFium" in page.detail for page in pages if page.detail)


@needs_poppler
def test_a_page_that_poppler_draws_blank_is_drawn_with_pdfium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = source(write(tmp_path / "blank.pdf", make_pdf(["", ""])))
    fake_program(
        "pdftoppm", tmp_path / "bin", monkeypatch, f'exec $REAL $(echo "$@" | sed s,{tmp_path}/a.pdf,{blank.path},)'
    )
    pages = render(source(write(tmp_path / "a.pdf", make_pdf(["one", ""]))), tmp_path / "out", "poppler", last=2)
    assert [page.detail for page in pages] == ["poppler drew a blank page; drawn with PDFium", ""]
    assert Image.open(tmp_path / "out/0001.png").getextrema()[0] == (0, 255)


@needs_poppler
@pytest.mark.parametrize(
    ("script", "detail"),
    [
        ("s/^Pages:.*/Pages: 4/", ["poppler counts 4 pages where PDFium counts 2; drawn with PDFium"] * 2),
        (
            "s/^\\(Page .*2 size:\\) .*/\\1 500 x 792 pts/",
            ["", "poppler sees a page of another shape; drawn with PDFium"],
        ),
        ("s/^\\(Page .*1 rot:\\) .*/\\1 90/", ["poppler sees a page of another shape; drawn with PDFium", ""]),
    ],
)
def test_where_the_renderers_disagree_pdfium_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, detail: list[str]
) -> None:
    """The two repair damaged files differently. The image of poppler could be another page than the text of PDFium."""
    fake_program("pdfinfo", tmp_path / "bin", monkeypatch, f"$REAL \"$@\" | sed '{script}'")
    path = source(write(tmp_path / "a.pdf", make_pdf(["one", "two"])))
    pages = render(path, tmp_path / "out", "poppler", last=2)
    assert [(page.status, page.detail) for page in pages] == [("ok", line) for line in detail]


def test_a_blank_image_of_a_page_with_content_is_reported(tmp_path: Path) -> None:
    white = source(write(tmp_path / "a.pdf", make_pdf([b"1 1 1 rg 0 0 99 99 re f"])))
    for renderer in {"pdfium", default_renderer()}:
        (page,) = render(white, tmp_path / "out", renderer)
        assert (page.status, page.detail) == ("ok", "blank, though the page has 1 objects")


def test_without_poppler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert default_renderer() == "pdfium"
    path = source(write(tmp_path / "a.pdf", make_pdf(["one"])))
    assert render(path, tmp_path / "out", default_renderer())[0].status == "ok"
    with pytest.raises(MmrrError, match="poppler"):
        render(path, tmp_path / "out", "poppler")


def test_renders_in_several_processes(tmp_path: Path) -> None:
    path = source(write(tmp_path / "a.pdf", make_pdf([f"page {n}" for n in range(1, 9)], size=(200, 100))))
    (tmp_path / "out").mkdir()
    options = RenderOptions(default_renderer())
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = [(path, n, n + 1, tmp_path / "out", options) for n in (1, 3, 5, 7)]
        pages = [page for part in pool.starmap(render_pages, parts) for page in part]
    assert [(page.number, page.text.strip()) for page in pages] == [(n, f"page {n}") for n in range(1, 9)]
    assert pages == render(path, tmp_path / "again", options.renderer, last=8)


# Real files

REAL_PDFS = os.environ.get("MMRR_TEST_PDFS", "")


@pytest.mark.skipif(not REAL_PDFS, reason="MMRR_TEST_PDFS does not name a folder of PDF files")
@pytest.mark.parametrize("renderer", RENDERERS)
def test_real_pdfs_end_in_a_known_status(tmp_path: Path, renderer: str) -> None:
    found = find_sources([Path(REAL_PDFS)])
    counts: Counter[str] = Counter()
    for number, document in enumerate(found):
        inspection = inspect(document)
        assert inspection.status in STATUSES, document
        counts[inspection.status] += 1
        (page,) = render(document, tmp_path / str(number), renderer)
        assert (page.status == "ok") == (tmp_path / str(number) / "0001.png").is_file()
        assert page.status == "ok" or page.detail, document
        assert page.status == "failed" or inspection.status == "ok", document
    assert counts["ok"] > 0
