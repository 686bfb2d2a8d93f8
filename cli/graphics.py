"""Pictures in terminals: the protocols of kitty and iTerm2, and sixel. Other terminals are given the path.

PyPI has no kept library for this that leaves the terminal alone while it is imported: ``textual-image`` asks the
terminal at import, ``term-image`` needs an old Pillow, and ``libsixel-python`` needs a C library.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import select
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image

Protocol = Literal["kitty", "iterm2", "sixel"]
#: Base64 bytes of a chunk, the most that kitty's protocol allows.
_CHUNK = 4096
#: The most pixels on the longer side of a picture that is sent.
_LONGEST = 1400
#: Seconds to wait for the answer of a terminal, which all of them give at once.
_PATIENCE = 0.3
#: The question what a terminal is (DA1), and its answer: attribute 4 is sixel.
_ASK, _ANSWER = b"\x1b[c", re.compile(rb"\x1b\[\?([\d;]*)c")
_COLOURS = 256


def show(image: Image.Image) -> bool:
    """Draw a picture in the terminal; False where it cannot show one."""
    protocol = terminal_protocol()
    if protocol is None:
        return False
    small = image.convert("RGB")
    small.thumbnail((_LONGEST, _LONGEST))
    encode = {"kitty": kitty, "iterm2": iterm2, "sixel": sixel}[protocol]
    sys.stdout.flush()
    _write(sys.stdout.fileno(), encode(small) + b"\n")
    return True


def terminal_protocol() -> Protocol | None:
    """How the terminal shows pictures; None if stdin or stdout is no terminal, or if it has no protocol.

    tmux and screen pass no pictures on, unless they say that they know sixel.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    inside = bool(os.environ.get("TMUX") or os.environ.get("STY"))
    program = os.environ.get("TERM_PROGRAM", "").casefold()
    if not inside:
        if os.environ.get("KITTY_WINDOW_ID") or os.environ.get("TERM") in ("xterm-kitty", "xterm-ghostty"):
            return "kitty"
        if program in ("ghostty", "wezterm"):
            return "kitty"
        if program == "iterm.app":
            return "iterm2"
    return "sixel" if _knows_sixel(sys.stdin.fileno(), sys.stdout.fileno()) else None


def kitty(image: Image.Image) -> bytes:
    """A picture in kitty's graphics protocol: PNG (f=100), sent and shown at once (a=T), without an answer (q=2)."""
    data = base64.standard_b64encode(_png(image))
    parts = [data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK)]
    out = bytearray()
    for place, part in enumerate(parts):
        first = b"a=T,f=100,q=2," if place == 0 else b""
        more = b"m=1" if place < len(parts) - 1 else b"m=0"
        out += b"\x1b_G" + first + more + b";" + part + b"\x1b\\"
    return bytes(out)


def iterm2(image: Image.Image) -> bytes:
    """A picture in iTerm2's inline protocol."""
    data = _png(image)
    head = f"\x1b]1337;File=inline=1;size={len(data)};width={image.width}px:".encode()
    return head + base64.standard_b64encode(data) + b"\x07"


def sixel(image: Image.Image) -> bytes:
    """A picture as sixels, in at most 256 colours: bands of six rows, one run of characters for each colour of a band.

    A character is 63 plus a bit for each of the six rows, the topmost lowest. ``!n`` repeats a character, ``$`` goes
    back to the start of the band, ``-`` to the next band.
    """
    import numpy as np
    from PIL import Image as Pillow

    flat = image.convert("RGB").quantize(_COLOURS, dither=Pillow.Dither.NONE)
    pixels = np.asarray(flat)
    height, width = pixels.shape
    palette = flat.getpalette() or []
    out = [f'\x1bPq"1;1;{width};{height}']
    for colour in np.unique(pixels).tolist():
        red, green, blue = (round(value * 100 / 255) for value in palette[3 * colour : 3 * colour + 3])
        out.append(f"#{colour};2;{red};{green};{blue}")
    bits = 1 << np.arange(6)[:, None]
    for top in range(0, height, 6):
        band = pixels[top : top + 6]
        runs = []
        for colour in np.unique(band).tolist():
            columns = ((band == colour) * bits[: len(band)]).sum(axis=0) + 63
            runs.append(f"#{colour}" + _repeated(columns.astype(np.uint8).tobytes().decode("ascii")))
        out.append("$".join(runs))
        out.append("-")
    return "".join([*out, "\x1b\\"]).encode("ascii")


def _repeated(row: str) -> str:
    """Runs of four equal characters and more as ``!n``. Empty columns at the end are left out."""
    return re.sub(r"(.)\1{3,}", lambda run: f"!{len(run[0])}{run[1]}", row.rstrip("?"), flags=re.DOTALL)


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _write(file: int, data: bytes) -> None:
    """All of the data: a terminal takes some at a time."""
    while data:
        data = data[os.write(file, data) :]


def _knows_sixel(read: int, write: int) -> bool:
    """Ask the terminal. What a user typed meanwhile is lost."""
    with contextlib.suppress(ImportError, OSError, ValueError), _raw(read):
        _write(write, _ASK)
        answer, deadline = b"", time.monotonic() + _PATIENCE
        while (left := deadline - time.monotonic()) > 0 and select.select([read], [], [], left)[0]:
            got = os.read(read, 64)
            answer += got
            found = _ANSWER.search(answer)
            if found or not got:
                return found is not None and b"4" in found[1].split(b";")[1:]
    return False


@contextlib.contextmanager
def _raw(file: int) -> Iterator[None]:
    """Read a terminal's answer as it comes, and do not show it. Raises ImportError where there is no termios."""
    import termios
    import tty

    try:
        before = termios.tcgetattr(file)
    except termios.error as error:
        raise OSError(*error.args) from error
    try:
        tty.setcbreak(file, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(file, termios.TCSANOW, before)
