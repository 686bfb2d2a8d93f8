"""Page caches on their way to a scorer: in portions that fit the memory, moved to the device, read ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TypeVar

import torch

from mmrr.types import PageCache

T = TypeVar("T")


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


def moved(stored: Iterator[dict[int, PageCache]], device: torch.device) -> Iterator[dict[int, PageCache]]:
    """Move each portion to the device in its stored format: quantised caches are decoded there.

    To CUDA they go through pinned memory and a separate stream, so that a portion is copied while the one before it is
    scored.
    """
    if device.type == "cpu":
        yield from stored
        return
    cuda = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def send(tensor: torch.Tensor) -> torch.Tensor:
        if cuda is None or tensor.device.type == "cuda":
            return tensor.to(device)
        return tensor.pin_memory().to(device, non_blocking=True)

    for portion in stored:
        with torch.cuda.stream(cuda) if cuda else nullcontext():
            on_device = {row: {name: send(tensor) for name, tensor in cache.items()} for row, cache in portion.items()}
        if cuda:  # the scorer must find the copy complete
            cuda.synchronize()
        yield on_device


def ahead(parts: Iterator[T]) -> Iterator[T]:
    """The same parts, each read in a thread while the one before it is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = pool.submit(next, parts, None)
            yield part
