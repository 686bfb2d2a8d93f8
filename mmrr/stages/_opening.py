"""Opens documents for the stage ``pages``: converts office files, and opens encrypted PDFs with their password."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from mmrr.context import Context
from mmrr.documents import office
from mmrr.documents.discovery import Inspection, Source, inspect, unlock
from mmrr.errors import MmrrError
from mmrr.workspace.files import move
from mmrr.workspace.store import Workspace

_WRONG_PASSWORD = "the PDF is encrypted, and the password that --password has for it does not open it"
_NOT_CONVERTED = "LibreOffice has to convert it; pass --convert"


@dataclass(slots=True)
class Passwords:
    """The passwords of encrypted PDFs. They are kept in memory only."""

    by_name: dict[str, list[tuple[int, str]]] = field(default_factory=dict, repr=False)  # {name: line, password}
    for_all: str | None = field(default=None, repr=False)
    lines: int = 0

    def of(self, source: Source) -> str | None:
        """The password of a document, by its id, its path or its file name."""
        for name in (source.doc_id, str(source.path), source.path.name):
            if name in self.by_name:
                return self.by_name[name][-1][1]
        return self.for_all

    def unused(self, sources: Iterable[Source]) -> list[int]:
        """The lines of the file that name none of these documents."""
        names = {name for one in sources for name in (one.doc_id, str(one.path), one.path.name)}
        used = {line for name in names & self.by_name.keys() for line, _ in self.by_name[name]}
        return sorted({line for found in self.by_name.values() for line, _ in found} - used)


def read_passwords(path: Path | None) -> Passwords:
    """Read a file of passwords.

    A file with one line that has no blank holds the password of all documents. Otherwise each line has a name, blanks
    or a tab, and the password; the name ``*`` stands for all others. A name is an id, a path or a file name.

    Raises MmrrError for a file that cannot be read and for a line without a password. No error shows what is in it.
    """
    if path is None:
        return Passwords()
    try:
        lines = path.expanduser().read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise MmrrError(f"--password {path}: found text that is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise MmrrError(f"--password {path} cannot be read: {error.strerror}; expected a text file") from None
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise MmrrError(f"--password {path}: found no password; expected NAME PASSWORD a line, or one password for all")
    if len(numbered) == 1 and not any(char.isspace() for char in numbered[0][1]):
        return Passwords(for_all=numbered[0][1], lines=1)
    found = Passwords(lines=len(numbered))
    for number, line in numbered:
        if len(line.split(None, 1)) < 2:
            raise MmrrError(f"--password {path}, line {number}: found no password; expected NAME PASSWORD")
        if line.split(None, 1)[0] == "*":
            found.for_all = line.split(None, 1)[1]
            continue
        splits = [line.index("\t")] if "\t" in line else [i for i, char in enumerate(line) if char == " "]
        for i in splits:  # a name may have blanks: every beginning of the line may be one
            if line[:i].strip() and line[i:].strip():
                found.by_name.setdefault(line[:i].strip(), []).append((number, line[i:].lstrip()))
    return found


@dataclass(slots=True)
class Opener:
    """Opens the documents of one command."""

    context: Context
    passwords: Passwords
    convert: bool
    _problems: dict[str, str] = field(default_factory=dict)  # {content hash: why it was not converted}

    def check_names(self, sources: Sequence[Source]) -> None:
        """Name the lines of the password file that belong to no document."""
        unused = self.passwords.unused(sources)
        if unused:
            numbers = ", ".join(map(str, unused[:5])) + (", ..." if len(unused) > 5 else "")
            self.context.notice(f"--password: no document is named by line {numbers}")

    def convert_all(self, sources: Sequence[Source], hashes: Mapping[str, str], workers: int) -> None:
        """Convert the office files that were not converted before, several at a time. ``open`` names those that fail.

        ``hashes``: {doc_id: content hash}.
        """
        workspace = self.context.workspace
        new = {hashes[source.doc_id]: source for source in sources if source.is_office}
        new = {sha256: source for sha256, source in new.items() if not workspace.converted(sha256).exists()}
        if not self.convert or not new:
            return
        with self.context.progress("convert", len(new)) as advance, ThreadPoolExecutor(min(workers, len(new))) as pool:
            problems = pool.map(lambda item: _converted(workspace, item[1], item[0]), new.items())
            for sha256, problem in zip(new, problems, strict=True):
                self._problems[sha256] = problem
                advance(1)

    def open(self, source: Source, sha256: str) -> tuple[Source, Inspection]:
        """The document with the file to draw, and whether it opens.

        An office file is converted if it was not before. Of an encrypted PDF with a known password, a copy without
        encryption is drawn, which the end of the command deletes.
        """
        workspace = self.context.workspace
        if source.is_office:
            if self.convert and sha256 not in self._problems and not workspace.converted(sha256).exists():
                self._problems[sha256] = _converted(workspace, source, sha256)
            if not workspace.converted(sha256).exists():
                return source, Inspection("unreadable", 0, self._problems.get(sha256) or _NOT_CONVERTED)
            source = dataclasses.replace(source, copy=workspace.converted(sha256))
        found = inspect(source)
        password = self.passwords.of(source)
        if found.status != "password_required" or password is None:
            return source, found
        copy = workspace.scratch() / "unlocked.pdf"
        if not unlock(source.file, password, copy):
            return source, Inspection("password_required", 0, _WRONG_PASSWORD)
        source = dataclasses.replace(source, copy=copy)
        return source, inspect(source)


def _converted(workspace: Workspace, source: Source, sha256: str) -> str:
    """Convert an office file and keep the PDF in the workspace. Returns why there is none, or ""."""
    scratch = workspace.scratch()
    try:
        if workspace.hashes.sha256(source.path) != sha256:
            return "it changed while it was read"
        made = office.convert(source.path, scratch)
        move(workspace.root, made, workspace.converted(sha256))
    except (office.ConversionError, OSError) as error:
        return str(error)
    finally:
        workspace.discard(scratch)
    return ""
