"""Files: atomic writes, hashes, JSON sealed with a checksum, and changes that follow no symbolic link.

This module knows no workspace.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from mmrr import __version__
from mmrr.errors import MmrrError

_NO_LINK = "found a symbolic link, expected a file"
_SHA256 = re.compile("[0-9a-f]{64}")


def environment() -> dict[str, str]:
    """The versions, the platform and the time, for an artifact's provenance."""
    return {
        "mmrr": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def expand_user(path: Path) -> Path:
    """The path with ``~`` and ``~name`` replaced by a home folder. Raises MmrrError if there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise MmrrError(f"{path}: no home folder of the user {path.parts[0]}; expected another path") from error


def canonical_json(value: object) -> str:
    """The same text for equal values: sorted keys, no spaces.

    Raises TypeError for a value that JSON does not have, and ValueError for NaN and infinity.
    """
    _refuse_other_keys(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON, in hex. A file name that is not UTF-8 counts with its bytes."""
    return hashlib.sha256(canonical_json(value).encode(errors="surrogateescape")).hexdigest()


def _refuse_other_keys(value: object) -> None:
    """Raise TypeError for a key that is no string: json.dumps writes 1 as "1", so two values would share one text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is no string")
            _refuse_other_keys(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_other_keys(inner)


class HashCache:
    """SHA-256 of files, cached by path, size and modification time, so that a checkpoint's bytes are read once.

    The file is read at the first use. It is always written whole: by ``save``, and while hashes are computed at most
    once in ``WRITE_INTERVAL_S``. A crash loses the hashes since the last write; they are computed again.
    """

    WRITE_INTERVAL_S = 5.0

    def __init__(self, path: Path | None = None) -> None:
        """``path`` None: the hashes stay in the memory of this process."""
        self._path = path
        self._unsaved = False
        self._written = time.monotonic()

    @functools.cached_property
    def _known(self) -> dict[str, str]:
        if self._path is None:
            return {}
        try:
            known = parse_json(read_file(self._path))
        except (OSError, ValueError):
            return {}  # losing the cache costs time and nothing else
        return {key: value for key, value in known.items() if _SHA256.fullmatch(str(value))}

    def sha256(self, path: Path) -> str:
        """Raises OSError if the file cannot be read."""
        status = path.stat()
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        if key not in self._known:
            with path.open("rb") as file:
                self._known[key] = hashlib.file_digest(file, "sha256").hexdigest()
            self._unsaved = True
            if time.monotonic() - self._written >= self.WRITE_INTERVAL_S:
                self.save()
        return self._known[key]

    def save(self) -> None:
        """Write the hashes that are not in the file yet: at the end of a batch of files, and of a command."""
        if self._unsaved and self._path:
            with contextlib.suppress(OSError):
                write_atomically(self._path, json.dumps(self._known))
            self._unsaved = False
            self._written = time.monotonic()


def wrong_size(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What is wrong with the first file that has not its recorded number of ``bytes``; None if all have."""
    for name, entry in files.items():
        try:
            status = (folder / name).lstat()
        except FileNotFoundError:
            return f"{name} is missing"
        if stat.S_ISLNK(status.st_mode):
            return f"{name}: {_NO_LINK}"
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry["bytes"]:
            return f"{name}: expected {entry['bytes']} bytes, found {status.st_size}"
    return None


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))


def read_file(path: Path) -> bytes:
    """The bytes of a file of the workspace. Raises ValueError for a symbolic link: its target is somebody else's."""
    try:
        with open(path, "rb", opener=_open_no_link) as file:
            return file.read()
    except OSError:
        if path.is_symlink():
            raise ValueError(_NO_LINK) from None
        raise


def checksum_file(path: Path) -> str:
    """xxh3-64 of a file, in hex. It detects damage; it is not cryptographic."""
    state = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def seal(values: Mapping[str, object], indent: int | None = None) -> str:
    """An object as JSON with a checksum of itself, because a listing with a flipped digit is still valid JSON."""
    return json.dumps({**values, "xxh3": _checksum(values)}, indent=indent, ensure_ascii=False)


def unseal(data: bytes) -> dict[str, Any]:
    """The object that ``seal`` wrote. Raises ValueError if a byte changed. Any: JSON."""
    values = parse_json(data)
    if values.pop("xxh3", None) != _checksum(values):
        raise ValueError("it does not match its checksum")
    return values


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises ValueError if the bytes are no JSON object. Any: JSON."""
    try:
        values = json.loads(data)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    return values


def _checksum(values: Mapping[str, object]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(values, ensure_ascii=False).encode())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file so that a reader sees the old content or the new one, even after a crash."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        flush(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES):  # file systems without directory flushes
            raise
    finally:
        os.close(descriptor)


# Changes below a root folder, for which no symbolic link is followed


def check_folder(path: Path) -> None:
    """Raise MmrrError if something else than a folder is at ``path``. A symbolic link to a folder is something else."""
    _check(path, stat.S_ISDIR, "folder")


def check_file(path: Path) -> None:
    """Raise MmrrError if something else than a regular file is at ``path``, for example a symbolic link."""
    _check(path, stat.S_ISREG, "file")


def make_folder(root: Path, folder: Path) -> None:
    """Make a folder below ``root`` and the folders above it. A folder that exists is no error."""
    with _reach(root, folder / "inside"):
        pass


def remove_file(root: Path, path: Path) -> None:
    """Delete a file below ``root``; a symbolic link is deleted itself. A file that is gone is no error."""
    with contextlib.suppress(FileNotFoundError), _reach(root, path, make=False) as (name, folder):
        os.unlink(name, dir_fd=folder)


def remove_tree(root: Path, folder: Path, *, ignore_errors: bool = False) -> None:
    """Delete a folder below ``root`` with everything in it. A folder that is gone is no error.

    Links in the folder are deleted themselves. Raises MmrrError if the folder, or one between it and ``root``, is a
    symbolic link. ``ignore_errors`` is that of ``shutil.rmtree``.
    """
    with contextlib.suppress(FileNotFoundError), _reach(root, folder, make=False) as (name, parent):
        check_folder(folder)
        shutil.rmtree(name, ignore_errors, dir_fd=parent)  # deletes nothing if the name became a link meanwhile


def move(root: Path, source: Path, target: Path) -> None:
    """Rename a file or folder to another place below ``root``. Makes the folders above ``target``."""
    with (
        _reach(root, source, make=False) as (source_name, source_folder),
        _reach(root, target) as (target_name, target_folder),
    ):
        os.rename(source_name, target_name, src_dir_fd=source_folder, dst_dir_fd=target_folder)


@contextlib.contextmanager
def _reach(root: Path, path: Path, *, make: bool = True) -> Iterator[tuple[str, int | None]]:
    """The name of ``path`` and a handle of its folder, as the functions of ``os`` take them.

    Each folder below ``root`` is opened from the one above it, so that a link that appears meanwhile is not followed.
    With ``make`` the folders are made. Raises MmrrError that names the link, or the file, where a folder is expected.
    """
    if ".." in path.relative_to(root).parts:
        raise ValueError(f"{path} leaves {root}")
    folders = [root / parent for parent in reversed(path.relative_to(root).parents)][1:]
    if os.open not in os.supports_dir_fd:  # Windows has no handles of folders
        for folder in folders:
            if make:
                folder.mkdir(exist_ok=True)
            check_folder(folder)
        yield str(path), None
        return
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            inner = _open_folder(folder, handle, make=make)
            os.close(handle)
            handle = inner
        yield path.name, handle
    finally:
        os.close(handle)


def _open_folder(folder: Path, parent: int, *, make: bool) -> int:
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder.name, dir_fd=parent)
    try:
        return os.open(folder.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError:
        check_folder(folder)
        raise


def _check(path: Path, fits: Callable[[int], bool], expected: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise MmrrError(f"{path}: found a symbolic link, expected a {expected}; remove the link")
    if not fits(mode):
        found = "folder" if stat.S_ISDIR(mode) else "file"
        raise MmrrError(f"{path}: found a {found}, expected a {expected}; move it out of the workspace")
