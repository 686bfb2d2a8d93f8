"""Chooses the device and the number format of a model."""

from __future__ import annotations

import torch

from mmrr.errors import MmrrError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: On other devices a model gets a shard of pages, and reads as many at once as its limit of memory allows.
_PAGES_TOGETHER = 16


def resolve_devices(names: str = "auto") -> list[torch.device]:
    """All devices of a comma-separated list. ``auto``: all CUDA devices, else MPS, else the CPU.

    Raises MmrrError for a device that this machine does not have.
    """
    if names == "auto" and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [_device(name) for name in names.split(",")]


def pages_together(device: torch.device) -> int:
    """The most pages that a stage gives a model at once. On a CPU pages in one forward are not faster than one each."""
    return 1 if device.type == "cpu" else _PAGES_TOGETHER


def resolve_device(names: str = "auto") -> torch.device:
    """The first device of the list, for work on one device. Raises MmrrError if this machine does not have it."""
    return _device(names.split(",")[0])


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it has no memory")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise MmrrError(
            f"device '{name}' cannot be used on this machine ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return device


def cpu_has_bfloat16() -> bool:
    """Whether the processor has bfloat16 matrix products (AVX512-BF16 or AMX). Without them float32 is faster."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto``: bfloat16 on CUDA and on processors with bfloat16 matrix products, float32 elsewhere.

    MPS uses float32 because users of the published reranker report float16 scores on MPS that differ from those of
    other machines (embeddings-benchmark/mteb#5057). A wrong ranking is worse than a slow one. Raises MmrrError for an
    unknown name.
    """
    if name == "auto":
        fast = device.type == "cuda" or (device.type == "cpu" and cpu_has_bfloat16())
        return torch.bfloat16 if fast else torch.float32
    if name not in DTYPES:
        raise MmrrError(f"dtype '{name}' is not known; expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``bfloat16``, the name that manifests store."""
    return str(dtype).removeprefix("torch.")
