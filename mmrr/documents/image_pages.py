"""Draws pages of image files within a limit of memory."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from mmrr.documents.canvas import drawn_size, on_canvas, target_size, to_rgb
from mmrr.documents.discovery import Source, is_machine_fault, one_line, open_image, page_frames, utf8
from mmrr.documents.drawn import Drawn, Job
from mmrr.documents.limits import Limits, PastLimitError, past_memory
from mmrr.documents.page_notes import SMALL_PRINT
from mmrr.documents.print_size import is_small

#: The pixels of a strip of a large image that is converted at once.
_STRIP_PX = 1 << 22
#: The bytes of a pixel in Pillow, by mode; 4 for all others.
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2, "LA": 4, "PA": 4}
#: For a file without a resolution: 96 dpi, as on web pages. One point is 4/3 pixels.
_SCREEN_DPI = 96.0
#: A longer image without a resolution is a picture of a screen rather than a scan.
_SCAN_ASPECT = 3
_SCAN_DPI = 300.0


def draw_images(source: Source, job: Job) -> Generator[Drawn, None, None]:
    """The pages ``job.numbers`` of an image file or of a folder of images."""
    try:
        frames = page_frames(source)
    except OSError as error:
        if is_machine_fault(error):
            raise
        frames, problem = [], f"the folder cannot be read: {one_line(error)}"
    else:
        problem = f"the document has {len(frames)} pages"
    for number in job.numbers:
        job.begin(number, True)
        if not 1 <= number <= len(frames):
            yield Drawn(number, None, problem)
            continue
        path, frame = frames[number - 1]
        try:
            image, small = draw_image(path, frame, job.options.max_tokens, job.limits)
        except PastLimitError as error:
            yield Drawn(number, None, str(error), status=error.status)
        except Exception as error:
            if is_machine_fault(error):
                raise
            yield Drawn(number, None, f"{utf8(path.name)}: {one_line(error)}")
        else:
            yield Drawn(number, image, "", notes=(SMALL_PRINT,) * small)


def draw_image(path: Path, frame: int, max_tokens: int, limits: Limits) -> tuple[Image.Image, bool]:
    """One image at its target size, and whether its print is too small to read.

    Raises PastLimitError before it is decoded if it needs too much memory, and what Pillow raises.
    """
    with open_image(path) as opened:
        if frame:  # a HEIC file starts at its main image, which need not be the first
            opened.seek(frame)
        # Pillow checks the size of the first frame only.
        if Image.MAX_IMAGE_PIXELS and math.prod(opened.size) > 2 * Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{opened.width} x {opened.height} pixels are too many")
        if _needed(opened) > limits.memory:
            # JPEG alone is reduced while it is decoded: by 2, 4 or 8, to at least twice the drawn size.
            width, height = target_size(*opened.size, max_tokens)
            opened.draft("RGB", (2 * width, 2 * height))
            if _needed(opened) > limits.memory:
                raise past_memory(limits, f"an image of {opened.width} x {opened.height} pixels")
        per_point = _dpi(opened) / 72
        opened.load()
        with suppress(Exception):  # with a broken EXIF block only the orientation is lost
            ImageOps.exif_transpose(opened, in_place=True)  # otherwise it makes a copy
        image = _flat(opened)
    canvas = target_size(*image.size, max_tokens)
    drawn = drawn_size(*image.size, canvas)
    small = is_small(None, per_point * drawn[0] / image.width)
    image = image.resize(drawn, Image.Resampling.BICUBIC)
    return on_canvas(image.convert("RGB"), canvas), small


def _needed(image: Image.Image) -> int:
    """The bytes for the decoded image, a copy in RGB or grey, and the copy that turns it upright."""
    own = _PIXEL_BYTES.get(image.mode, 4)
    flat = {"L": 1, "RGB": 4}[_flat_mode(image)] if image.mode not in ("I", "F") else 8
    # Pillow decodes a whole PNG to find its EXIF block.
    turned = own if image.format in ("JPEG", "TIFF", "WEBP") and image.getexif().get(0x0112, 1) != 1 else 0
    return image.width * image.height * (own + max(flat, turned))


def _dpi(image: Image.Image) -> float:
    """The resolution that the file gives, else that of a scan or, for a long image, of a screen."""
    with suppress(KeyError, TypeError, ValueError, IndexError, ZeroDivisionError):
        dpi = float(image.info["dpi"][0])
        if 50 <= dpi <= 2400:
            return dpi
    width, height = image.size
    return _SCREEN_DPI if max(width, height) > _SCAN_ASPECT * min(width, height) else _SCAN_DPI


def _flat(image: Image.Image) -> Image.Image:
    """The image in RGB, or in grey, which is the same after a change of its size and takes a quarter of the memory.

    A large image is converted strip by strip. One of no fixed range is converted whole: it is scaled by its extremes.
    """
    mode = _flat_mode(image)
    if math.prod(image.size) <= _STRIP_PX or image.mode in ("I", "F"):
        return to_rgb(image).convert(mode)
    flat = Image.new(mode, image.size)
    rows = max(1, _STRIP_PX // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        flat.paste(to_rgb(strip).convert(mode), (0, top))
    return flat


def _flat_mode(image: Image.Image) -> Literal["L", "RGB"]:
    grey = image.mode in ("1", "L") or image.mode.startswith("I;16")
    return "L" if grey and not image.has_transparency_data else "RGB"
