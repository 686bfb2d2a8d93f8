"""Finding, inspecting and drawing documents: every status, every renderer, awkward names and shapes."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from mmrr.documents import rendering
from mmrr.documents.discovery import Inspection, Source, find_sources, inspect
from mmrr.documents.rendering import RenderedPage, RenderOptions, default_renderer, render_pages, target_size
from mmrr.errors import MmrrError
from tests.pdfs import join_objects, make_pdf

pytestmark = pytest.mark.renderer
STATUSES = {"ok", "password_required", "corrupt", "empty", "no_pages", "not_a_document", "unreadable"}
needs_poppler = pytest.mark.skipif(default_renderer() != "poppler", reason="poppler (pdftoppm, pdfinfo) not on PATH")
RENDERERS = ["pdfium", pytest.param("poppler", marks=needs_poppler)]
NO_PAGES = join_objects([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Count 0/Kids[]>>"])


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def picture(path: Path, size: tuple[int, int] = (64, 96), colour: object = "navy", mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path


def source(path: Path, kind: str = "pdf") -> Source:
    return Source(path.name, path, kind)  # type: ignore[arg-type]


def render(document: Source, out: Path, renderer: str = "pdfium", first: int = 1, last: int = 1) -> list[RenderedPage]:
    out.mkdir(exist_ok=True)
    return render_pages(document, first, last, out, RenderOptions(renderer))  # type: ignore[arg-type]


def ids(*inputs: Path) -> list[str]:
    return [found.doc_id for found in find_sources(inputs)]


@pytest.fixture(autouse=True)
def own_temp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> object:
    """Temporary files of every test go to a folder of its own, which must be empty at its end."""
    folder = tmp_path_factory.mktemp("temp")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


# Finding


def test_folder_is_searched_recursively_in_order(tmp_path: Path) -> None:
    for name in ["b.pdf", "a/2024.PDF", "a/.hidden.pdf", ".cache/c.pdf", "a/._2024.pdf"]:
        write(tmp_path / name, make_pdf(["x"]))
    write(tmp_path / "notes.txt", b"text")
    picture(tmp_path / "cover.JPG")
    found = find_sources([tmp_path])
    assert [(s.doc_id, s.kind) for s in found] == [("a/2024.PDF", "pdf"), ("b.pdf", "pdf"), ("cover.JPG", "image")]
    assert all(s.path.is_absolute() and s.path.is_file() for s in found)


def test_folder_of_images_is_one_document_in_natural_order(tmp_path: Path) -> None:
    scan = tmp_path / "in" / "my scan"
    colours = {"page10.png": "#0a0000", "page2.png": "#020000", "Page1.PNG": "#010000"}
    for name, colour in colours.items():
        picture(scan / name, colour=colour)
    write(scan / "read me.txt", b"")
    picture(scan / ".thumbnail.png")
    write(tmp_path / "in" / "z.pdf", make_pdf(["x"]))
    inside, given = find_sources([tmp_path / "in"]), find_sources([scan])
    assert [(s.doc_id, s.kind) for s in inside] == [("my_scan", "images"), ("z.pdf", "pdf")]
    assert given == [inside[0]]
    assert inspect(given[0]) == Inspection("ok", 3, "")
    pages = render(given[0], tmp_path / "out", last=3)
    reds = [Image.open(tmp_path / "out" / page.file).getpixel((5, 5)) for page in pages]
    assert reds == [(1, 0, 0), (2, 0, 0), (10, 0, 0)]


def test_images_beside_pdfs_or_folders_are_documents_of_one_page(tmp_path: Path) -> None:
    picture(tmp_path / "mixed/a.png")
    write(tmp_path / "mixed/b.pdf", make_pdf(["x"]))
    picture(tmp_path / "tree/c.png")
    picture(tmp_path / "tree/deep/d.png")
    assert ids(tmp_path) == ["mixed/a.png", "mixed/b.pdf", "tree/c.png", "tree/deep"]


@pytest.mark.parametrize(
    ("name", "doc_id"),
    [
        ("a b\t\n c.pdf", "a_b_c.pdf"),
        ("Cafe\u0301 \u6587\u66f8.pdf", "Caf\u00e9_\u6587\u66f8.pdf"),
        ("bell\x07\x85\u00a0\u2003x.pdf", "bell_x.pdf"),
        ("latin\udce9.pdf", "latin_.pdf"),  # a name that is not UTF-8
        ("..pdf", "pdf"),
        (" .pdf", "_.pdf"),
        ("C:\\-weird'\"$(x).pdf", "C:\\-weird'\"$(x).pdf"),
    ],
)
def test_doc_id_is_clean_and_the_file_still_opens(tmp_path: Path, name: str, doc_id: str) -> None:
    try:
        write(tmp_path / name, make_pdf(["x"]))
    except (OSError, UnicodeError):
        pytest.skip("this file system refuses the name")
    (found,) = find_sources([tmp_path / name])
    assert found.doc_id == doc_id
    found.doc_id.encode()  # UTF-8 holds it
    assert inspect(found).status == "ok"
    for renderer in {"pdfium", default_renderer()}:
        (page,) = render(found, tmp_path / "out", renderer)
        assert (page.status, page.detail, page.file) == ("ok", "", "0001.png")


def test_equal_names_stay_apart_whatever_the_order_of_arguments(tmp_path: Path) -> None:
    paths = [write(tmp_path / folder / "same.pdf", make_pdf(["x"])) for folder in "abc"]
    digests = [hashlib.sha256(os.fsencode(path)).hexdigest()[:6] for path in paths]
    expected = ["same.pdf", f"same.pdf~{digests[1]}", f"same.pdf~{digests[2]}"]
    assert ids(*paths) == ids(*reversed(paths)) == expected
    twins = [write(tmp_path / "twins" / name, make_pdf(["x"])) for name in ("x y.pdf", "x_y.pdf")]
    assert ids(tmp_path / "twins") == ["x_y.pdf", f"x_y.pdf~{hashlib.sha256(os.fsencode(twins[1])).hexdigest()[:6]}"]


def test_one_file_reached_twice_counts_once(tmp_path: Path) -> None:
    real = write(tmp_path / "docs/a.pdf", make_pdf(["x"]))
    image = picture(tmp_path / "docs/scan/1.png")
    (tmp_path / "docs/link.pdf").symlink_to(real)
    assert ids(tmp_path / "docs/scan", image, real, tmp_path / "docs", real) == ["a.pdf", "scan"]


def test_loops_and_broken_links_do_not_hang_or_vanish(tmp_path: Path) -> None:
    write(tmp_path / "docs/a.pdf", make_pdf(["x"]))
    for name in ("up", "up too"):  # two, as the ways through them double with every turn
        (tmp_path / "docs" / name).symlink_to(tmp_path)
    (tmp_path / "docs/self.pdf").symlink_to(tmp_path / "docs/self.pdf")
    (tmp_path / "docs/gone.pdf").symlink_to(tmp_path / "nowhere.pdf")
    os.mkfifo(tmp_path / "docs/pipe.pdf")
    found = {s.doc_id: inspect(s).status for s in find_sources([tmp_path / "docs"])}
    assert found == {"a.pdf": "ok", "gone.pdf": "unreadable", "self.pdf": "unreadable"}


def test_kind_follows_content_where_the_name_misleads(tmp_path: Path) -> None:
    files = {
        "pdf_without_suffix": make_pdf(["x"]),
        "pdf_as.png": make_pdf(["x"]),
        "text.txt": b"just text",
        "html.pdf": b"<html>404</html>",
        "nothing.txt": b"",
    }
    paths = [write(tmp_path / name, data) for name, data in files.items()]
    paths.append(picture(tmp_path / "scan.png").rename(tmp_path / "image_without_suffix"))
    found = {s.doc_id: (s.kind, inspect(s).status) for s in find_sources(paths)}
    assert found == {
        "pdf_without_suffix": ("pdf", "ok"),
        "pdf_as.png": ("pdf", "ok"),
        "text.txt": ("pdf", "not_a_document"),
        "html.pdf": ("pdf", "not_a_document"),
        "nothing.txt": ("pdf", "empty"),
        "image_without_suffix": ("image", "ok"),
    }


def test_inputs_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    write(tmp_path / "texts/a.txt", b"x")
    os.mkfifo(tmp_path / "pipe")
    for given in ("missing.pdf", "texts", "pipe"):
        with pytest.raises(MmrrError, match=str(tmp_path / given)):
            find_sources([tmp_path / given])


# Inspecting


def test_every_status_of_a_pdf(tmp_path: Path) -> None:
    good = make_pdf(["one", "two"])
    files = {
        "ok": good,
        "password_required": make_pdf(["x"], user_password="secret"),
        "corrupt": b"%PDF-1.7\n" + b"garbage " * 100,
        "empty": b"",
        "no_pages": NO_PAGES,
        "not_a_document": b"\x00\x01 no document",
        "unreadable": None,
    }
    for expected, data in files.items():
        path = tmp_path / f"{expected}.pdf"
        if data is not None:
            path.write_bytes(data)
        found = inspect(source(path))
        assert found.status == expected
        assert found.n_pages == (2 if expected == "ok" else 0)
        assert (found.detail == "") == (expected == "ok")
        assert "\n" not in found.detail
        (page,) = render(source(path), tmp_path / "out")
        assert page.status == ("ok" if expected == "ok" else "failed")
        assert bool(page.detail) == (expected != "ok")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["0001.png"]


def test_error_of_one_file_is_not_reported_for_the_next(tmp_path: Path) -> None:
    """PDFium kept its last error: a file of 0 pages used to be called whatever the file before it was."""
    locked = write(tmp_path / "locked.pdf", make_pdf(["x"], user_password="secret"))
    empty = write(tmp_path / "empty.pdf", NO_PAGES)
    assert [inspect(source(path)).status for path in (locked, empty)] == ["password_required", "no_pages"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads files without permission")
def test_file_and_folder_without_permission_are_unreadable(tmp_path: Path) -> None:
    locked = write(tmp_path / "in/a.pdf", make_pdf(["x"]))
    (tmp_path / "in/closed").mkdir(mode=0)
    locked.chmod(0)
    assert [inspect(s).status for s in find_sources([tmp_path / "in"])] == ["unreadable", "unreadable"]


@pytest.mark.parametrize("renderer", RENDERERS)
def test_owner_password_alone_opens(tmp_path: Path, renderer: str) -> None:
    path = write(tmp_path / "a.pdf", make_pdf(["visible words"], owner_password="owner"))
    assert inspect(source(path)) == Inspection("ok", 1, "")
    (page,) = render(source(path), tmp_path / "out", renderer)
    assert (page.status, page.detail, page.text.strip()) == ("ok", "", "visible words")
    assert Image.open(tmp_path / "out" / page.file).getextrema()[0] == (0, 255)


def test_every_status_of_an_image(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png").read_bytes()
    files = {
        "cut.png": (good[:20], "corrupt"),
        "html.jpg": (b"<html>", "not_a_document"),
        "void.gif": (b"", "empty"),
    }
    for name, (data, expected) in files.items():
        found = inspect(source(write(tmp_path / name, data), "image"))
        assert (found.status, found.n_pages, bool(found.detail)) == (expected, 0, True)
    assert inspect(source(tmp_path / "good.png", "image")) == Inspection("ok", 1, "")
    assert inspect(source(tmp_path / "none.png", "image")).status == "unreadable"
    assert inspect(source(tmp_path / "nowhere", "images")).status == "unreadable"
    (tmp_path / "bare").mkdir()
    assert inspect(source(tmp_path / "bare", "images")).status == "no_pages"


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
        (1_000_000, 10, 16, (512, 32)),  # the published rule would give 2,912 x 32, which is 91 tokens
    ],
)
def test_target_sizes(width: int, height: int, max_tokens: int, expected: tuple[int, int]) -> None:
    assert target_size(width, height, max_tokens) == expected
    assert target_size(height, width, max_tokens) == expected[::-1]


def test_target_size_keeps_its_promises() -> None:
    for max_tokens in (16, 100, 1280, 1800):
        for width in (0.3, 7, 31, 100, 999.5, 4096, 30000, 1e8):
            for height in (0.3, 15, 64, 1234.5, 30000, 1e8):
                w, h = target_size(width, height, max_tokens)
                assert w % 32 == h % 32 == 0
                assert min(w, h) >= 32
                assert 4 <= w * h / 1024 <= max_tokens
                assert target_size(w, h, max_tokens) == (w, h)  # an image drawn for the model is not resized again
    for side in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="cannot be drawn"):
            target_size(side, 10, 1280)
    with pytest.raises(ValueError, match="max_tokens"):
        target_size(10, 10, 3)
    for options in ({"dpi": 0}, {"max_tokens": 3}):
        with pytest.raises(MmrrError, match="at least"):
            RenderOptions("pdfium", **options)


# Drawing PDFs


def is_dark(image: Image.Image, x: float, y: float) -> bool:
    """Whether the page is black at these fractions of its width and height."""
    pixel = image.convert("L").getpixel((int(x * image.width), int(y * image.height)))
    assert isinstance(pixel, int)
    return pixel < 128


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_turned_pages_come_out_as_readers_show_them(tmp_path: Path, renderer: str, rotate: int) -> None:
    path = write(tmp_path / "a.pdf", make_pdf(["turned"], size=(600, 900), rotate=rotate))
    (page,) = render(source(path), tmp_path / "out", renderer)
    assert (page.status, page.detail, page.text.strip()) == ("ok", "", "turned")
    upright = target_size(1250, 1875, 1280)
    assert (page.width_px, page.height_px) == (upright if rotate % 180 == 0 else upright[::-1])
    image = Image.open(tmp_path / "out" / page.file)
    # The bar lies at x 40..190, y 20..60 from the top left of the page as written; /Rotate turns it clockwise.
    x, y = 115 / 600, 40 / 900
    places = {0: (x, y), 90: (1 - y, x), 180: (1 - x, 1 - y), 270: (y, 1 - x)}
    assert {turn: is_dark(image, *place) for turn, place in places.items()} == {t: t == rotate for t in places}


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_no_strip_of_a_page_is_cut_off(tmp_path: Path, renderer: str, rotate: int) -> None:
    """pdftoppm scales turned pages by the wrong side when both sides are given: it lost 2% of such pages."""
    frame = b"0 0 0 RG 10 w 5 5 440 990 re S 0 0 0 rg 195 495 60 10 re f"  # the page's edge; a bar in its middle
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
def test_the_crop_box_is_what_is_drawn(tmp_path: Path, renderer: str, rotate: int) -> None:
    data = make_pdf(["cropped"], size=(600, 900), rotate=rotate, cropbox=(30, 800, 230, 900))
    (page,) = render(source(write(tmp_path / "a.pdf", data)), tmp_path / "out", renderer)
    assert page.detail == ""
    assert {page.width_px, page.height_px} == set(target_size(200 / 72 * 150, 100 / 72 * 150, 1280))
    image = Image.open(tmp_path / "out" / page.file).rotate(rotate, expand=True)
    assert is_dark(image, 85 / 200, 40 / 100)
    assert not is_dark(image, 195 / 200, 40 / 100)


def peak_memory_mb() -> float:
    """Highest resident memory so far of this process and of its children, together."""
    kilobytes = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kilobytes / (1e6 if sys.platform == "darwin" else 1e3)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_giant_and_tiny_and_endless_pages_stay_in_the_budget(tmp_path: Path, renderer: str) -> None:
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
    """Neither has an appearance of its own here: the renderer makes one, PDFium through its form environment."""
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
    assert words.text == "caf\u00e9 (x)\nhyphenation ends"
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
        assert min(ImageStat.Stat(images[0]).mean) < 253  # and it is not two blank pages


def test_a_page_that_does_not_exist_fails_and_leaves_no_file(tmp_path: Path) -> None:
    """A page tree that promises more pages than it holds."""
    data = make_pdf(["one"]).replace(b"/Count 1", b"/Count 3")
    path = source(write(tmp_path / "a.pdf", data))
    assert inspect(path) == Inspection("ok", 3, "")
    for renderer in {"pdfium", default_renderer()}:
        pages = render(path, tmp_path / renderer, renderer, last=3)
        assert [page.status for page in pages] == ["ok", "failed", "failed"]
        assert all(page.detail for page in pages[1:])
        assert [file.name for file in (tmp_path / renderer).iterdir()] == ["0001.png"]


def fake_program(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a program before poppler's of the same name on PATH; ``$REAL`` is poppler's."""
    path = write(folder / name, f"#!/bin/sh\nREAL={shutil.which(name)}\n{script}\n".encode())
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@needs_poppler
@pytest.mark.parametrize(
    ("script", "word"),
    [
        # Dies on page 2 of whatever it is asked to draw, before or after page 1.
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
    if "sleep" in script:  # only pdftoppm may time out, also on a slow machine
        monkeypatch.setattr("mmrr.documents.rendering.POPPLER_TIMEOUT_S", 0.3)
        read_info = rendering.pdfinfo_from_path
        monkeypatch.setattr(
            rendering, "pdfinfo_from_path", lambda *args, **to: read_info(*args, **to | {"timeout": 60})
        )
    fake_program("pdftoppm", tmp_path / "bin", monkeypatch, f'if [ "$1" = -v ]; then exec $REAL -v; fi\n{script}')
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
    """Damaged files are repaired differently; poppler's image could be another page than PDFium's text."""
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


# Drawing images


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (200, 100), "white")
    image.paste("red", (0, 0, 100, 100))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "a.jpg", exif=exif, quality=95, icc_profile=b"profile", comment=b"comment")
    (page,) = render(source(tmp_path / "a.jpg", "image"), tmp_path / "out")
    assert (page.width_px, page.height_px) == (96, 192)
    drawn = Image.open(tmp_path / "out" / page.file)
    assert (dict(drawn.getexif()), drawn.info) == ({}, {})  # nothing of the file goes along but its pixels
    top, bottom = drawn.getpixel((48, 20)), drawn.getpixel((48, 170))
    assert (top[1] < 40, bottom[1] > 200) == (True, True)  # type: ignore[index]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("LA", (0, 127), (128, 128, 128)),
        ("P", 0, (0, 0, 0)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 32896, (128, 128, 128)),  # used to be cut to white
    ],
)
def test_every_kind_of_pixel_becomes_rgb_on_white(
    tmp_path: Path, mode: str, colour: object, expected: tuple[int, int, int]
) -> None:
    path = picture(tmp_path / "a.png", colour=colour, mode=mode)
    (page,) = render(source(path, "image"), tmp_path / "out")
    drawn = Image.open(tmp_path / "out" / page.file)
    assert (drawn.mode, drawn.size, drawn.getpixel((30, 30))) == ("RGB", (64, 96), expected)


def test_frames_are_pages(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    frames = [Image.new("RGB", (64 + 32 * n, 64), colour) for n, colour in enumerate(colours)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=[f.resize((64, 64)) for f in frames[1:]])
    for name, widths in [("a.tif", [64, 96, 128]), ("b.gif", [64, 64, 64])]:
        (found,) = find_sources([tmp_path / name])
        assert inspect(found) == Inspection("ok", 3, "")
        pages = render(found, tmp_path / "out", last=3)
        assert [page.width_px for page in pages] == widths
        assert [Image.open(tmp_path / "out" / page.file).getpixel((5, 5)) for page in pages] == colours
    # Frames of a TIFF in a folder of images are pages too: none is lost.
    scan = tmp_path / "scan"
    picture(scan / "2.png")
    (tmp_path / "a.tif").rename(scan / "1.tif")
    (found,) = find_sources([scan])
    assert inspect(found).n_pages == 4


def test_a_bad_image_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    scan = tmp_path / "scan"
    picture(scan / "1.png")
    picture(scan / "2.png", size=(200, 200))
    noise = Image.effect_noise((90, 90), 90).convert("RGB")
    noise.save(scan / "3.jpg")
    write(scan / "3.jpg", (scan / "3.jpg").read_bytes()[:1500])
    small, large = Image.new("L", (32, 32)), Image.new("L", (200, 200))
    small.save(scan / "4.tif", save_all=True, append_images=[large])
    (found,) = find_sources([scan])
    assert inspect(found) == Inspection("ok", 5, "")
    assert inspect(source(scan / "2.png", "image")) == Inspection("ok", 1, "")
    pages = render(found, tmp_path / "out", last=6)
    assert [page.status for page in pages] == ["ok", "failed", "failed", "ok", "failed", "failed"]
    for page, word in zip(pages[1:], ["2.png", "truncated", "", "200 x 200 pixels", "has 5 pages"], strict=True):
        assert word in page.detail
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["0001.png", "0004.png"]


def test_an_image_beyond_200_to_1_is_padded(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", size=(4, 4000), colour="black")
    (page,) = render(source(path, "image"), tmp_path / "out")
    assert (page.width_px, page.height_px) == target_size(4, 4000, 1280) == (32, 4000)
    dark = ImageChops.invert(Image.open(tmp_path / "out" / page.file).convert("L")).getbbox()
    assert dark == (14, 0, 18, 4000)


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
