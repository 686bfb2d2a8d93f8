"""HEIC, JPEG 2000 and AVIF are images where the libraries are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, features

from mmrr.documents import formats
from mmrr.documents.discovery import find, find_sources, inspect
from tests.documents.files import is_dark, picture, render, write


def check(path: Path) -> None:
    """The image is found, opens, and is drawn with its left half dark."""
    (found,) = find_sources([path.parent])
    assert (found.doc_id, inspect(found).status) == (path.name, "ok")
    (page,) = render(found, path.parent / "out")
    assert page.status == "ok"
    with Image.open(path.parent / "out" / page.file) as image:
        assert is_dark(image, 0.25, 0.5)
        assert not is_dark(image, 0.75, 0.5)


def halves() -> Image.Image:
    image = Image.new("RGB", (128, 96), "white")
    image.paste("black", (0, 0, 64, 96))
    return image


@pytest.mark.parametrize(("name", "feature"), [("a.jp2", "jpg_2000"), ("a.j2k", "jpg_2000"), ("a.avif", "avif")])
def test_images_that_pillow_reads_itself(tmp_path: Path, name: str, feature: str) -> None:
    if not features.check(feature):
        pytest.skip(f"this Pillow has no {feature}")
    halves().save(tmp_path / name)
    (tmp_path / "folder").mkdir()
    check(tmp_path / name)


def test_heic(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(halves()).save(tmp_path / "a.HEIC", quality=90)
    (tmp_path / "folder").mkdir()
    check(tmp_path / "a.HEIC")


def test_without_its_library_a_heic_file_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "b.heic", b"\0\0\0\x18ftypheic")
    monkeypatch.setattr(formats, "image_formats", lambda: ("PNG",))
    formats.image_suffixes.cache_clear()
    try:
        (skipped,) = find([tmp_path]).skipped
    finally:
        monkeypatch.undo()
        formats.image_suffixes.cache_clear()
    assert skipped.path.name == "b.heic"
    assert skipped.reason == "unsupported: .heic; pip install 'mmrr[heif]' makes it readable"
