"""Files: written whole or not at all, hashed, sealed with checksums. Knows no workspace."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import xxhash


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces.

    Raises TypeError for anything that is not plain JSON, and ValueError for a number that is none.
    """
    _refuse_other_keys(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _refuse_other_keys(value: Any) -> None:
    """json.dumps turns a key 1 into "1", so that two values would have one text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is no string")
            _refuse_other_keys(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_other_keys(inner)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError, as other writers do, if the disk is full."""
    try:
        safetensors.torch.save_file(dict(tensors), path)
    except safetensors.SafetensorError as error:
        if "os error 28" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def checksum_tensor(tensor: torch.Tensor) -> str:
    """xxh3-64 of a tensor's type, shape and bytes, in hex: the same bytes read as another type are other numbers."""
    state = xxhash.xxh3_64(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    state.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


class HashCache:
    """SHA-256 of files, remembered by path, size and modification time: a workspace reads a checkpoint's bytes once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None  # only a memory: losing it costs time, nothing else
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
    """xxh3-64 of a file, in hex: finds damage, proves no authorship."""
    state = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def seal(values: dict[str, Any], indent: int | None = None) -> str:
    """An object as JSON with a checksum of itself: a flipped digit in a listing is still JSON."""
    return json.dumps({**values, "xxh3": _checksum(values)}, indent=indent, ensure_ascii=False)


def unseal(data: bytes) -> dict[str, Any]:
    """Raises ValueError if anything in it changed."""
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    if values.pop("xxh3", None) != _checksum(values):
        raise ValueError("it does not match its checksum")
    return values


def _checksum(values: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(values, ensure_ascii=False).encode())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a small file so that a reader, or a crash, sees the old content or the new one."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        flush(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES):  # file systems without directory flushes
            raise
    finally:
        os.close(descriptor)
