"""Drawing image documents: orientation, pixel formats, frames, damaged images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageChops

from mmrr.documents.canvas import target_size
from mmrr.documents.discovery import Inspection, find_sources, inspect
from tests.documents.files import picture, render, source, write

pytestmark = [pytest.mark.renderer, pytest.mark.usefixtures("own_temp")]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (200, 100), "white")
    image.paste("red", (0, 0, 100, 100))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    image.save(tmp_path / "a.jpg", exif=exif, quality=95, icc_profile=b"profile", comment=b"comment")
    (page,) = render(source(tmp_path / "a.jpg", "image"), tmp_path / "out")
    assert (page.width_px, page.height_px) == (96, 192)
    drawn = Image.open(tmp_path / "out" / page.file)
    assert (dict(drawn.getexif()), drawn.info) == ({}, {})  # only the pixels of the file are kept
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
        ("I;16", 32896, (128, 128, 128)),  # must not be clipped to white
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
    # The frames of a TIFF in a folder of images are pages too.
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
