"""Find the documents in files and folders, and check whether they open.

This module knows PDF and image files. It does not draw pages (:mod:`mmrr.documents.rendering`) and knows no workspace,
models or command line.

Every function may run in several processes at the same time, but not in two threads of one process, because PDFium is
not thread-safe.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import pypdfium2 as pdfium  # type: ignore[import-untyped]
import pypdfium2.raw as pdfium_c  # type: ignore[import-untyped]
from PIL import Image, UnidentifiedImageError

from mmrr.documents import poppler
from mmrr.documents.formats import (
    OFFICE_SUFFIXES,
    PAGED_FORMATS,
    PAGED_SUFFIXES,
    image_suffixes,
    looks_like_image,
    unsupported,
)
from mmrr.documents.formats import open_image as open_image  # "as": rendering imports it from here
from mmrr.errors import MmrrError

Kind = Literal["pdf", "image", "images"]

# Errors of a file system or of the process's limits that can pass.
_MACHINE_FAULTS = (
    errno.EAGAIN,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
)


@dataclass(frozen=True, slots=True)
class Source:
    """A document that was found but not opened."""

    doc_id: str
    path: Path  # absolute: a file, or a folder of page images if ``kind`` is ``images``
    kind: Kind
    copy: Path | None = None  # what is opened instead: an office file as PDF, or a PDF without its password

    @property
    def file(self) -> Path:
        """The file or folder that is opened and drawn."""
        return self.copy or self.path

    @property
    def is_office(self) -> bool:
        """Whether it must be converted before it can be opened."""
        return self.kind == "pdf" and self.path.suffix.lower() in OFFICE_SUFFIXES


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file below a given folder that is no document."""

    root: Path  # the folder that was given
    path: Path
    reason: str  # one line for people, such as ``unsupported: .txt``


@dataclass(frozen=True, slots=True)
class Found:
    """What files and folders hold."""

    sources: list[Source]
    skipped: list[Skipped]
    hidden: dict[Path, int]  # by given folder: its hidden files and folders, which are not looked into


@dataclass(frozen=True, slots=True)
class Inspection:
    """Whether a document opens."""

    #: ``ok``, ``password_required``, ``corrupt``, ``empty`` (0 bytes), ``no_pages``, ``not_a_document`` or
    #: ``unreadable`` (permission or input/output error)
    status: str
    n_pages: int
    detail: str  # one line for people, "" if ok


# Discovery


def find_sources(
    inputs: Sequence[Path], known: Mapping[str, str] | None = None, *, emptied: Set[str] = frozenset()
) -> list[Source]:
    """The documents of :func:`find`."""
    return find(inputs, known, emptied=emptied).sources


def find(
    inputs: Sequence[Path],
    known: Mapping[str, str] | None = None,
    *,
    emptied: Set[str] = frozenset(),
    office: bool = False,
) -> Found:
    """Find the documents in files and folders. Folders are searched recursively; hidden entries are counted.

    PDF and image files are documents, with ``office`` also the files that LibreOffice converts. A folder with images,
    no PDF and no subfolder is one document; its pages are the images in natural order. Other files in a
    folder are skipped, with the reason. Other files that are given themselves are kept, so that :func:`inspect` reports
    them. A file that is found twice counts once.

    ``doc_id`` is the path relative to the given folder, or the name of the given file, in NFC, with ``/`` between parts
    and ``_`` for each run of whitespace, control characters or undecodable bytes. Inputs are sorted by absolute path,
    so ids do not depend on the order of arguments. If two documents have the same id, the first one keeps it. A later
    one gets ``~`` and the first 6 hex digits of the SHA-256 of its absolute path (more digits if that is also taken).
    ``known`` maps the real path of each document that a collection already has to its id: that document keeps its id,
    no other document gets it, and an office file among them is a document without ``office``. ``emptied`` are the real
    paths of folders that may have no document.

    Raises:
        MmrrError: an input does not exist, is neither a file nor a folder, or is another folder without a document.
    """
    known = known or {}
    found = Found([], [], {})
    seen: dict[str, Path] = {}  # real path -> the path under which it was found
    taken: set[str] = set(known.values())  # doc ids
    for given in sorted({Path(os.path.abspath(path)) for path in inputs}):
        walk = _Walk(given, found, known, office)
        if os.path.isdir(given):
            items = list(walk.documents(given))
            found.hidden[given] = walk.hidden
            if not items and os.path.realpath(given) not in emptied:
                raise MmrrError(_no_document(given, found.skipped))
        elif os.path.isfile(given):
            items = [(_kind(given), given)]
        elif os.path.exists(given):
            raise MmrrError(f"{given} is neither a file nor a folder; give PDF files, images or folders of them")
        else:
            raise MmrrError(f"{given} does not exist or may not be read; give PDF files, images or folders of them")
        for kind, path in items:
            real = os.path.realpath(path)
            if real in seen:
                if seen[real] != path:
                    found.skipped.append(Skipped(given, path, f"the same file as {utf8(str(seen[real]))}"))
                continue
            seen[real] = path
            if kind == "images":
                with suppress(OSError):  # inspect() reports the error
                    seen.update((os.path.realpath(image), image) for image in images_in(path))
            named_alone = path == given
            if real in known:
                found.sources.append(Source(known[real], path, kind))
                continue
            doc_id = _unique(_doc_id(path.name if named_alone else path.relative_to(given).as_posix()), path, taken)
            taken.add(doc_id)
            found.sources.append(Source(doc_id, path, kind))
    return found


def _unique(doc_id: str, path: Path, taken: Set[str]) -> str:
    unique, digits = doc_id, 6
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()
    while unique in taken:
        unique, digits = f"{doc_id}~{digest[:digits]}", digits + 1
    return unique


def _no_document(given: Path, skipped: Sequence[Skipped]) -> str:
    reasons = Counter(one.reason for one in skipped if one.root == given)
    held = ", ".join(f"{count} {reason.removeprefix('unsupported: ')}" for reason, count in reasons.most_common(5))
    suffixes = " ".join(sorted(image_suffixes()))
    return (
        f"no document in {given}{f' (found: {held})' if held else ''}; expected PDF files or images (.pdf {suffixes})"
    )


def source_at(doc_id: str, path: Path) -> Source | None:
    """The document that a collection has under this id, or None if its file or folder is gone."""
    if os.path.isdir(path):
        return Source(doc_id, path, "images")
    return Source(doc_id, path, _kind(path)) if os.path.isfile(path) else None


class _Walk:
    """The documents below one given folder, in the order of their names. Notes what else is there."""

    def __init__(self, given: Path, found: Found, known: Mapping[str, str], office: bool) -> None:
        self.hidden = 0
        self._given = given
        self._found = found
        self._known = known
        self._office = office
        self._visited: set[str] = set()  # real folders, each once: links may form loops

    def documents(self, folder: Path) -> Iterator[tuple[Kind, Path]]:
        real = os.path.realpath(folder)
        if real in self._visited:
            self._skip(folder, "a link to a folder that is read under another name")
            return
        self._visited.add(real)
        if os.path.isfile(folder / "mmrr.json"):
            self._skip(folder, "a workspace of mmrr")  # its page images are no documents
            return
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            yield "images", folder  # inspect() gets the same error and reports it
            return
        self.hidden += sum(entry.name.startswith(".") for entry in entries)
        entries = [entry for entry in entries if not entry.name.startswith(".")]
        folders = {entry for entry in entries if os.path.isdir(entry)}
        files = {entry for entry in entries if entry not in folders and self._is_document(entry)}
        others = {entry.suffix.lower() for entry in files} - OFFICE_SUFFIXES
        images = bool(others) and not folders and others <= image_suffixes()
        if images:
            yield "images", folder
        for entry in entries:
            if entry in folders:
                yield from self.documents(entry)
            elif entry not in files:
                self._skip(entry, "no regular file" if not os.path.isfile(entry) else unsupported(entry.suffix.lower()))
            elif not images or entry.suffix.lower() in OFFICE_SUFFIXES:
                yield _kind(entry), entry

    def _is_document(self, path: Path) -> bool:
        if path.suffix.lower() in OFFICE_SUFFIXES:
            return os.path.isfile(path) and (self._office or os.path.realpath(path) in self._known)
        return _is_candidate(path)

    def _skip(self, path: Path, reason: str) -> None:
        self._found.skipped.append(Skipped(self._given, path, reason))


def _is_candidate(path: Path) -> bool:
    # A broken link is kept, so that it is reported. A pipe or a device is not, because opening it could block.
    known = path.suffix.lower() == ".pdf" or path.suffix.lower() in image_suffixes()
    return known and (os.path.isfile(path) or not os.path.exists(path))


def _kind(path: Path) -> Kind:
    suffix = path.suffix.lower()
    if suffix == ".pdf" or suffix in OFFICE_SUFFIXES:
        return "pdf"
    try:
        head = _head(path)
    except OSError:
        head = b""
    if suffix in image_suffixes():
        return "pdf" if head.lstrip().startswith(b"%PDF-") else "image"
    if b"%PDF-" in head:
        return "pdf"
    try:
        with open_image(path):
            return "image"
    except UnidentifiedImageError:
        return "pdf"  # inspect() finds no PDF header and reports not_a_document
    except Exception:
        return "image"


def _doc_id(name: str) -> str:
    name = re.sub(r"[\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+", "_", unicodedata.normalize("NFC", name))
    return name.lstrip("./") or "document"


def images_in(folder: Path) -> list[Path]:
    """The images of a folder in natural order (page2 before page10). Raises OSError."""
    images = [p for p in folder.iterdir() if not p.name.startswith(".") and _is_candidate(p)]

    def natural(path: Path) -> tuple[list[str | int], str]:
        parts = re.split(r"(\d+)", path.name.casefold())
        return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name

    return sorted((path for path in images if path.suffix.lower() in image_suffixes()), key=natural)


# Inspection


def inspect(source: Source) -> Inspection:
    """Open a document and count its pages without drawing them. A bad file raises nothing: the status says the reason.

    A PDF opens if PDFium or poppler, where it is installed, opens it. Whatever the renderer, the other one then draws
    the pages that it cannot.
    A PDF that opens although a part is damaged is ``ok``. Single pages may still fail when they are drawn.
    """
    try:
        if source.kind == "images":
            n_pages = len(page_frames(source))
            return Inspection("ok", n_pages, "") if n_pages else Inspection("no_pages", 0, "the folder has no image")
        head = _head(source.file)
    except (OSError, MemoryError) as error:
        return _unreadable(error)
    if not head:
        return Inspection("empty", 0, "the file has 0 bytes")
    if source.is_office and not source.copy:
        return Inspection("not_a_document", 0, unsupported(source.path.suffix.lower()))
    return _inspect_pdf(source.file, head) if source.kind == "pdf" else _inspect_image(source.path, head)


def _unreadable(error: OSError | MemoryError) -> Inspection:
    return Inspection("unreadable", 0, getattr(error, "strerror", None) or one_line(error))


def _inspect_pdf(path: Path, head: bytes) -> Inspection:
    found = _inspect_by_pdfium(path, head)
    if found.status not in ("ok", "unreadable") and poppler.installed():
        with suppress(poppler.PopplerError):
            n_pages = poppler.read_info(path).n_pages
            return Inspection("ok", n_pages, "") if n_pages > 0 else found
    return found


def _inspect_by_pdfium(path: Path, head: bytes) -> Inspection:
    try:
        with closing(open_pdf(path)) as pdf:
            n_pages = len(pdf)
    except pdfium.PdfiumError as error:
        if error.err_code == pdfium_c.FPDF_ERR_PASSWORD:
            return Inspection("password_required", 0, "the PDF is encrypted; pass --password FILE")
        if error.err_code == pdfium_c.FPDF_ERR_SECURITY:
            return Inspection("password_required", 0, "the PDF is encrypted in a way that PDFium does not support")
        if error.err_code == pdfium_c.FPDF_ERR_FILE:
            return Inspection("unreadable", 0, "PDFium could not read the file")
        if b"%PDF-" not in head:
            return Inspection("not_a_document", 0, "neither a PDF (no %PDF- in its first 1024 bytes) nor an image")
        return Inspection("corrupt", 0, f"PDFium cannot open it: {error}")
    return Inspection("ok", n_pages, "") if n_pages > 0 else Inspection("no_pages", 0, "the PDF has no pages")


def _inspect_image(path: Path, head: bytes) -> Inspection:
    try:
        return Inspection("ok", _n_frames(path), "")
    except Image.DecompressionBombError:
        return Inspection("ok", 1, "")  # it is an image; rendering reports why it cannot be drawn
    except UnidentifiedImageError:
        if looks_like_image(head):
            return Inspection("corrupt", 0, "starts like an image but cannot be opened")
        return Inspection("not_a_document", 0, "not an image in a known format")
    except Exception as error:
        if is_machine_fault(error):
            return _unreadable(error)
        return Inspection("corrupt", 0, one_line(error))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1024)


def open_pdf(path: Path) -> Any:
    """An open ``PdfDocument``, which the caller closes. It may have 0 pages. Raises PdfiumError with an ``err_code``.

    Any: pypdfium2 has no types.
    """
    return _open(path, None)


def _open(path: Path, password: bytes | None) -> Any:
    # PdfDocument(path) refuses a file of 0 pages with the error code of the file that failed before it.
    raw = pdfium_c.FPDF_LoadDocument(os.fsencode(path) + b"\0", None if password is None else password + b"\0")
    if not raw:
        code = pdfium_c.FPDF_GetLastError()
        raise pdfium.PdfiumError(pdfium.internal.ErrorToStr.get(code).lower(), err_code=code)
    return pdfium.PdfDocument(raw)


def unlock(path: Path, password: str, copy: Path) -> bool:
    """Write a PDF to ``copy`` without its encryption. Returns False if the password does not open it.

    Programs that cannot read a password from a file, such as poppler's, then need none on their command line, where
    other users of the machine can see it.

    Raises:
        OSError: ``copy`` cannot be written.
    """
    for encoding in ("utf-8", "latin-1"):  # older encryption uses Latin-1
        with suppress(pdfium.PdfiumError, UnicodeEncodeError), closing(_open(path, password.encode(encoding))) as pdf:
            with open(copy, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                pdf.save(file, flags=pdfium_c.FPDF_REMOVE_SECURITY)
            return True
    return False


def _n_frames(path: Path) -> int:
    with open_image(path) as image:
        return getattr(image, "n_frames", 1) if image.format in PAGED_FORMATS else 1


def page_frames(source: Source) -> list[tuple[Path, int]]:
    """(file, frame from 0) of each page of an image document.

    Raises OSError if a folder cannot be listed, and the errors of ``is_machine_fault``.
    """
    frames: list[tuple[Path, int]] = []
    for path in images_in(source.path) if source.kind == "images" else [source.path]:
        n_frames = 1
        if source.kind == "image" or path.suffix.lower() in PAGED_SUFFIXES:
            try:
                n_frames = _n_frames(path)
            except Exception as error:
                if is_machine_fault(error):
                    raise
                # otherwise one page, which fails when it is drawn
        frames += [(path, frame) for frame in range(n_frames)]
    return frames


def is_machine_fault(error: BaseException) -> TypeGuard[OSError | MemoryError]:
    """Whether an error says something of the machine at this moment and nothing of the file.

    Such an error is not stored with a file's content: the next command may succeed.
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _MACHINE_FAULTS)


def check_readable(path: Path) -> None:
    """Raise the error that stops this machine from reading the file at this moment, if there is one."""
    try:
        path.open("rb").close()
    except OSError as error:
        if is_machine_fault(error):
            raise


def one_line(error: BaseException) -> str:
    """The message of an error in one line of at most 200 characters, which can be written as UTF-8."""
    return " ".join(utf8(str(error)).split())[:200] or type(error).__name__


def utf8(name: str) -> str:
    """A file name as text that can be written: each byte that is not UTF-8 becomes an escape such as ``\\udce9``."""
    return name.encode("utf-8", "backslashreplace").decode()
