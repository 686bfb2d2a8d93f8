"""Small PDF files made in memory for tests: pages of text, rotated, cropped, encrypted, of any size and number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
_FILE_ID = b"mmrr test file 1"
_PERMISSIONS = (-4).to_bytes(4, "little", signed=True)


def make_pdf(
    pages: Sequence[str | bytes],
    *,
    size: tuple[float, float] = (612, 792),
    rotate: int = 0,
    cropbox: tuple[float, float, float, float] | None = None,
    page_entries: str = "",
    user_password: str | None = None,
    owner_password: str | None = None,
) -> bytes:
    """A PDF of these pages.

    A ``str`` page shows its lines in Helvetica below a black bar at the top left; the bar shows which side is up. An
    empty ``str`` is a blank page. ``bytes`` are a content stream (font ``/F1``). ``size`` is in points, ``rotate`` in
    degrees clockwise. ``page_entries`` is added to the dictionary of each page. A password encrypts the file (RC4, 40
    bits). A file with an owner password only opens without a password.

    Seven parameters, because each is one independent property of the file and all but the pages have defaults.
    """
    width, height = size
    boxes = f"/MediaBox[0 0 {width} {height}]/Rotate {rotate}{page_entries}"
    if cropbox is not None:
        boxes += "/CropBox[{} {} {} {}]".format(*cropbox)
    objects: dict[int, bytes] = {
        1: b"<</Type/Catalog/Pages 2 0 R>>",
        3: b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
    }
    key, encryption = b"", b""
    if user_password is not None or owner_password is not None:
        key, encryption = _encryption(user_password or "", owner_password or "")
    kids = []
    for content in pages:
        number = len(objects) + 2
        kids.append(f"{number} 0 R")
        data = content if isinstance(content, bytes) else _text_page(content, height)
        if key:
            data = _rc4(_object_key(key, number + 1), data)
        page = f"<</Type/Page/Parent 2 0 R{boxes}/Resources<</Font<</F1 3 0 R>>>>/Contents {number + 1} 0 R>>"
        objects[number] = page.encode()
        objects[number + 1] = b"<</Length %d>>stream\n%s\nendstream" % (len(data), data)
    objects[2] = f"<</Type/Pages/Count {len(kids)}/Kids[{' '.join(kids)}]>>".encode()
    return join_objects([objects[number] for number in sorted(objects)], encryption)


def join_objects(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    """A PDF of the objects 1, 2, ... with its cross-reference table. Object 1 is the catalog."""
    out = bytearray(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start, size = len(out), len(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % size
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF\n" % (size, trailer, start)
    return bytes(out)


def _text_page(text: str, height: float) -> bytes:
    if not text:
        return b""
    lines = [b"0 0 0 rg 40 %.1f 150 40 re f BT /F1 18 Tf 22 TL 40 %.1f Td" % (height - 60, height - 90)]
    for line in text.split("\n"):
        escaped = line.encode("cp1252").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
        lines.append(b"(%s) Tj T*" % escaped)
    return b"\n".join([*lines, b"ET"])


# Standard security handler, revision 2 (PDF 1.4 reference, 3.5.2)


def _encryption(user: str, owner: str) -> tuple[bytes, bytes]:
    """The key of the file and its trailer entries."""
    owner_key = hashlib.md5(_padded(owner or user)).digest()[:5]
    o = _rc4(owner_key, _padded(user))
    key = hashlib.md5(_padded(user) + o + _PERMISSIONS + _FILE_ID).digest()[:5]
    u = _rc4(key, _PADDING)
    entries = f"/ID[<{_FILE_ID.hex()}><{_FILE_ID.hex()}>]"
    entries += f"/Encrypt<</Filter/Standard/V 1/R 2/P -4/O<{o.hex()}>/U<{u.hex()}>>>"
    return key, entries.encode()


def _padded(password: str) -> bytes:
    return (password.encode("latin-1") + _PADDING)[:32]


def _object_key(key: bytes, number: int) -> bytes:
    return hashlib.md5(key + number.to_bytes(3, "little") + b"\0\0").digest()[: len(key) + 5]


def _rc4(key: bytes, data: bytes) -> bytes:
    box = list(range(256))
    j = 0
    for i in range(256):
        j = (j + box[i] + key[i % len(key)]) % 256
        box[i], box[j] = box[j], box[i]
    out = bytearray()
    i = j = 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + box[i]) % 256
        box[i], box[j] = box[j], box[i]
        out.append(byte ^ box[(box[i] + box[j]) % 256])
    return bytes(out)
