"""Safetensors files and checksums of tensors. Apart from :mod:`mmrr.workspace.files`, which imports no torch."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import xxhash


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
