"""Calls poppler's programs: ``pdfinfo`` for pages and their sizes, ``pdftoppm`` for images, ``pdftotext`` for text.

Poppler is optional. This module knows paths and page numbers; :mod:`mmrr.documents.pdf_pages` decides what is drawn.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pdf2image import pdfinfo_from_path
from pdf2image.exceptions import PDFInfoNotInstalledError, PDFPageCountError, PDFPopplerTimeoutError

from mmrr.documents.limits import Limits, PastLimitError, past_memory, past_time

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

#: For programs that draw nothing.
TIMEOUT_S = 120
#: What pdf2image raises. These have no common base class; a report that it cannot read is a ValueError.
_INFO_ERRORS = (PDFInfoNotInstalledError, PDFPageCountError, PDFPopplerTimeoutError, OSError, ValueError)
#: Between two looks at the images that pdftoppm has written, in seconds.
_LOOK_S = 0.05
#: What poppler and the C++ library write when memory runs out.
_NO_MEMORY = re.compile(r"out of memory|bad_alloc|bogus memory allocation", re.IGNORECASE)


class PopplerError(Exception):
    """A program of poppler is missing, failed, or took more than ``TIMEOUT_S``."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a page in points before its rotation, and the rotation in degrees clockwise."""

    width: float
    height: float
    rotation: int


@dataclass(frozen=True, slots=True)
class Info:
    """What ``pdfinfo`` says of a file."""

    n_pages: int
    shapes: dict[int, Shape]  # by page number; a page that poppler cannot load has none


@dataclass(frozen=True, slots=True)
class Drawn:
    """The images of one call of ``pdftoppm``."""

    files: dict[int, Path]  # by page number; a file may be truncated
    reason: str  # why pages are missing, if some are
    past: PastLimitError | None = None  # the limit that the first missing page went past


def installed() -> bool:
    """Whether ``pdftoppm`` and ``pdfinfo`` are on PATH."""
    return bool(shutil.which("pdftoppm") and shutil.which("pdfinfo"))


def read_info(path: Path, first: int = 1, last: int = 1) -> Info:
    """The number of pages, and the shapes of pages ``first`` to ``last``. Raises PopplerError."""
    try:
        fields = pdfinfo_from_path(str(path), first_page=first, last_page=last, timeout=TIMEOUT_S)
        n_pages = int(fields["Pages"])
    except (*_INFO_ERRORS, KeyError) as error:
        raise PopplerError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    values = {" ".join(key.split()): value for key, value in fields.items()}
    shapes = {}
    for number in range(first, last + 1):
        size = re.match(r"(\S+) x (\S+) pts", values.get(f"Page {number} size", ""))
        with suppress(KeyError, ValueError):
            if size:
                shapes[number] = Shape(float(size[1]), float(size[2]), int(values[f"Page {number} rot"]))
    return Info(n_pages, shapes)


def read_text(path: Path, number: int, seconds: float = TIMEOUT_S) -> str:
    """The text layer of one page. Raises PopplerError, also if it takes longer than this."""
    text = _output("pdftotext", ["-f", str(number), "-l", str(number), "-enc", "UTF-8", str(path), "-"], seconds)
    return text.replace("\r\n", "\n").replace("\0", "").rstrip("\n\f")


def _output(name: str, arguments: Sequence[str], seconds: float = TIMEOUT_S) -> str:
    program = shutil.which(name)
    if program is None:
        raise PopplerError(f"{name} is not on PATH")
    try:
        done = subprocess.run([program, *arguments], capture_output=True, timeout=min(seconds, TIMEOUT_S), check=True)
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.decode("utf-8", "replace").split())[:200]
        raise PopplerError(said or str(error)) from error
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise PopplerError(str(error)) from error
    return done.stdout.decode("utf-8", "replace")


def draw(
    path: Path, first: int, last: int, size: tuple[int, int | None], folder: Path, limits: Limits | None = None
) -> Drawn:
    """Draw pages as PPM files of this width and height into a new folder below ``folder``.

    The height None keeps the aspect. The process is ended when it takes longer than the limit for one page. Where the
    system can limit the address space of another process (Linux), a larger one ends it too. pdf2image, which reads the
    pages' shapes, does not give access to the process of pdftoppm, so its limits cannot be set through it.
    """
    limits = limits or Limits()
    program = shutil.which("pdftoppm")
    if program is None:
        return Drawn({}, "pdftoppm is not on PATH")
    target = Path(tempfile.mkdtemp(dir=folder))
    width, height = size
    command = [program, "-cropbox", "-f", str(first), "-l", str(last)]
    command += ["-scale-to-x", str(width), "-scale-to-y", str(height or -1), str(path), str(target / "page")]
    try:
        with (target / "errors").open("wb") as errors:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
            in_time = _wait(process, target, limits, last - first + 1)
    except (OSError, ValueError) as error:
        return Drawn({}, f"poppler failed ({' '.join(str(error).split())[:200] or type(error).__name__})")
    said = (target / "errors").read_text("utf-8", "replace")
    files = {int(file.stem.rpartition("-")[2]): file for file in target.glob("*.ppm")}
    if not in_time:
        late = past_time(limits, "poppler")
        return Drawn(files, f"poppler took more than {limits.seconds:g} s", late)
    if _NO_MEMORY.search(said):
        return Drawn(files, f"poppler needs more than {limits.memory / 2**20:.0f} MiB", past_memory(limits, "poppler"))
    return Drawn(files, "poppler drew no image")


def _wait(process: subprocess.Popen[bytes], target: Path, limits: Limits, n_pages: int) -> bool:
    """Wait for pdftoppm. Returns False if it took longer than the limit for one page, and was ended."""
    _limit(process.pid, limits, n_pages)
    started, n_files = time.monotonic(), 0
    pause = 0.002  # most calls are short
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(pause)
                return True
            pause = min(2 * pause, _LOOK_S)
            found = sum(1 for _ in target.glob("*.ppm"))
            if found != n_files:  # pdftoppm begins a file when it has drawn the page
                started, n_files = time.monotonic(), found
            elif time.monotonic() - started > limits.seconds:
                return False
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _limit(pid: int, limits: Limits, n_pages: int) -> None:
    """Limit the address space, and the processor time in case that this process is killed before it ends poppler."""
    if not hasattr(resource, "prlimit"):
        return
    with suppress(OSError, ValueError, OverflowError):  # ended already, or the system allows less
        resource.prlimit(pid, resource.RLIMIT_AS, (limits.memory, limits.memory))
        if limits.whole_seconds:
            seconds = (limits.whole_seconds + 1) * n_pages
            resource.prlimit(pid, resource.RLIMIT_CPU, (seconds, seconds))
