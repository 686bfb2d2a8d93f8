"""Files to find and draw, and the two renderers, for the tests of documents."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mmrr.documents.discovery import Source
from mmrr.documents.rendering import RenderedPage, RenderOptions, default_renderer, render_pages
from tests.pdfs import join_objects

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


def is_dark(image: Image.Image, x: float, y: float) -> bool:
    """Whether the page is black at these fractions of its width and height."""
    pixel = image.convert("L").getpixel((int(x * image.width), int(y * image.height)))
    assert isinstance(pixel, int)
    return pixel < 128


def fake_program(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program on PATH before poppler's program of the same name; ``$REAL`` is poppler's."""
    path = write(folder / name, f"#!/bin/sh\nREAL={shutil.which(name)}\n{script}\n".encode())
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
