"""Page caches on their way to a scorer: in portions that fit the memory, moved to the device, read ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

import torch

from mmrr.types import PageCache

T = TypeVar("T")
#: Bytes at which each tensor of a buffer begins: a multiple of every number's size.
_ALIGNED = 16


def portions(caches: Iterable[tuple[int, PageCache]], most_bytes: int) -> Iterator[dict[int, PageCache]]:
    """Group (row, page cache) pairs in order, each group at most ``most_bytes`` or one page."""
    portion: dict[int, PageCache] = {}
    size = 0
    for row, cache in caches:
        own = sum(tensor.nbytes for tensor in cache.values())
        if portion and size + own > most_bytes:
            yield portion
            portion, size = {}, 0
        portion[row] = cache
        size += own
    if portion:
        yield portion


class Mover:
    """Moves portions to a device in their stored format: quantised caches are decoded there.

    The tensors of a portion that are not on the device yet are joined in one buffer, pinned for CUDA, and go there in
    one copy. On CUDA the copy runs in a stream of its own, so that it takes place while another portion is scored.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, portion: dict[int, PageCache]) -> dict[int, PageCache]:
        """The same page caches on the device."""
        if self._device.type == "cpu":
            return portion
        places = [
            (row, name, tensor)
            for row, cache in portion.items()
            for name, tensor in cache.items()
            if tensor.device.type == "cpu"
        ]
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            sent = _sent([tensor for _, _, tensor in places], self._device)
        if self._stream:  # the scorer must find the copy complete
            self._stream.synchronize()
        there = {row: dict(cache) for row, cache in portion.items()}
        for (row, name, _), tensor in zip(places, sent, strict=True):
            there[row][name] = tensor
        return there


def _sent(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """The tensors on the device: views of one buffer, which goes there in one copy."""
    starts, size = [], 0
    for tensor in tensors:
        starts.append(size)
        size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for start, tensor in zip(starts, tensors, strict=True):
        if tensor.nbytes:
            own = tensor.contiguous().flatten().view(torch.uint8)
            buffer[start : start + tensor.nbytes] = own
    there = buffer.to(device, non_blocking=device.type == "cuda")
    return [
        there[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, tensors, strict=True)
    ]


def moved(stored: Iterator[dict[int, PageCache]], device: torch.device) -> Iterator[dict[int, PageCache]]:
    """Each portion, moved to the device by one ``Mover``."""
    yield from map(Mover(device), stored)


def ahead(parts: Iterator[T]) -> Iterator[T]:
    """The same parts, each read in a thread while the one before it is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = pool.submit(next, parts, None)
            yield part
