"""Which files are documents, by the ending of their name and by their first bytes.

Some formats need a library that is not always there: JPEG 2000 and AVIF a Pillow that was built with them, HEIC the
package pillow-heif. Office files are converted to PDF by LibreOffice (:mod:`mmrr.documents.office`).
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

from PIL import Image, features

_HEIF = frozenset({".heic", ".heif", ".hif"})
_JPEG_2000 = frozenset({".jp2", ".j2k", ".j2c", ".jpf", ".jpx"})
_AVIF = frozenset({".avif"})
_ALWAYS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"})
#: What LibreOffice opens as it was meant. HTML, CSV and text are not here: they have no pages of their own, and
#: LibreOffice loads from the network what an HTML file names.
OFFICE_SUFFIXES = frozenset({".doc", ".docx", ".odt", ".rtf", ".ppt", ".pptx", ".odp", ".xls", ".xlsx", ".ods"})
# Only in these formats are further images pages. In a phone's JPEG or HEIC they are previews, in WebP and PNG
# animations.
PAGED_SUFFIXES = frozenset({".tif", ".tiff", ".gif"})
PAGED_FORMATS = frozenset({"TIFF", "GIF"})

_MAGIC = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"RIFF",
    b"II*\0",
    b"MM\0*",
    b"BM",
    b"GIF8",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
)


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that it opens here. For a PostScript file, it would run Ghostscript."""
    formats = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a Pillow that does not know the name of a feature warns
        formats += [name for name, feature in (("JPEG2000", "jpg_2000"), ("AVIF", "avif")) if features.check(feature)]
    try:
        import pillow_heif  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return tuple(formats)
    pillow_heif.register_heif_opener(thumbnails=False)
    return (*formats, "HEIF")


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The endings of image files that are read here."""
    optional = {"HEIF": _HEIF, "JPEG2000": _JPEG_2000, "AVIF": _AVIF}
    return _ALWAYS.union(*(optional.get(name, frozenset()) for name in image_formats()))


def open_image(path: Path) -> Image.Image:
    """An open image in one of ``image_formats()``. Raises what Pillow raises."""
    with warnings.catch_warnings():
        # Pillow warns from 89 Mpx and refuses from twice that. Only the refusal matters here.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=image_formats())


def looks_like_image(head: bytes) -> bool:
    """Whether the first bytes of a file are those of an image in a format that may be read."""
    return head.startswith(_MAGIC) or (head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"avif"))


def unsupported(suffix: str) -> str:
    """Why a file with this ending is no document here, and what helps: ``unsupported: .txt``."""
    remedy = ""
    if suffix in OFFICE_SUFFIXES:
        remedy = "; with --convert, LibreOffice reads it"
    elif suffix in _HEIF:
        remedy = "; pip install 'mmrr[heif]' makes it readable"
    elif suffix in _JPEG_2000 | _AVIF:
        remedy = "; a newer Pillow (pip install --upgrade pillow) reads it"
    return f"unsupported: {suffix or 'no ending'}{remedy}"
