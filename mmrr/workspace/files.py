"""Files: atomic writes, hashes, and JSON sealed with a checksum. This module knows no workspace."""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import platform
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import xxhash

from mmrr import __version__


def environment() -> dict[str, str]:
    """The versions, the platform and the time, for an artifact's provenance."""
    return {
        "mmrr": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def canonical_json(value: object) -> str:
    """The same text for equal values: sorted keys, no spaces.

    Raises TypeError for a value that JSON does not have, and ValueError for NaN and infinity.
    """
    _refuse_other_keys(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


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


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError if the disk is full, as other writers do."""
    try:
        safetensors.torch.save_file(dict(tensors), path)
    except safetensors.SafetensorError as error:
        if "os error 28" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def checksum_tensor(tensor: torch.Tensor) -> str:
    """xxh3-64 of a tensor's type, shape and bytes, in hex. Type and shape count: they decide how bytes are read."""
    state = xxhash.xxh3_64(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    state.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


class HashCache:
    """SHA-256 of files, cached by path, size and modification time, so that a checkpoint's bytes are read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None  # losing the cache costs time and nothing else
        self._known: dict[str, str] = known if isinstance(known, dict) else {}

    def sha256(self, path: Path) -> str:
        """Raises OSError if the file cannot be read."""
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in self._known:
            with path.open("rb") as file:
                self._known[key] = hashlib.file_digest(file, "sha256").hexdigest()
            with contextlib.suppress(OSError):
                write_atomically(self._path, json.dumps(self._known))
        return self._known[key]


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
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    if values.pop("xxh3", None) != _checksum(values):
        raise ValueError("it does not match its checksum")
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
