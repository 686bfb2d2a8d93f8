"""The tensors in shard files: embeddings, kept tokens, page caches. The formats are open and checked when read.

Pages have different token counts, so ragged data is flat with offsets (n+1,). A shard stores the numbers of its pages.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from mmrr.types import Embedding, KeptTokens, Page, PageCache
from mmrr.workspace import manifests
from mmrr.workspace.pages import Collection
from mmrr.workspace.store import Manifest, Workspace
from mmrr.workspace.tensor_files import checksum_tensor, save_tensors

_EMBEDDINGS, _KEPT, _CACHES = "embeddings.safetensors", "keep.safetensors", "states.safetensors"
_WINDOWS = "windows.safetensors"
_OPEN_FILES = 64


def write_embeddings(folder: Path, embeddings: Mapping[int, Embedding]) -> None:
    """vectors (sum V, D) f32 or f16, saliency (sum T,) f32, grids (n, 2); owners (sum T,) i32 of pooled vectors."""
    values = list(embeddings.values())
    tensors = {
        "numbers": torch.tensor(list(embeddings)),
        "vectors": torch.cat([embedding.vectors for embedding in values]),
        "vector_offsets": _offsets([len(embedding.vectors) for embedding in values]),
        "saliency": torch.cat([embedding.saliency for embedding in values]),
        "offsets": _offsets([embedding.saliency.numel() for embedding in values]),
        "grids": torch.tensor([embedding.grid for embedding in values]),
    }
    if any(embedding.owners is not None for embedding in values):
        tensors["owners"] = torch.cat([_owners(embedding) for embedding in values])
    save_tensors(tensors, folder / _EMBEDDINGS)


def _owners(embedding: Embedding) -> torch.Tensor:
    if embedding.owners is not None:
        return embedding.owners
    return torch.arange(embedding.saliency.numel(), dtype=torch.int32)


def read_embeddings(workspace: Workspace, key: str) -> dict[int, Embedding]:
    """{page number: value}. Raises MmrrError if the shard is damaged.

    ``owners`` is None in a shard of an earlier mmrr, also where tokens were pooled.
    """
    data = load(workspace.read_shard_file("embed", key, _EMBEDDINGS))
    owners = dict(_split(data, "owners")) if "owners" in data else {}
    return {
        number: Embedding(vectors, saliency, _grid(data["grids"][i]), owners.get(number))
        for i, ((number, saliency), (_, vectors)) in enumerate(
            zip(_split(data, "saliency"), _split(data, "vectors", "vector_offsets"), strict=True)
        )
    }


def read_vectors(
    workspace: Workspace, manifest: Manifest, collection: Collection, rows: Sequence[int]
) -> list[torch.Tensor]:
    """The vectors (V, D) float32 of each page at ``rows``, from an ``embed`` artifact."""
    shards = manifests.content(manifest, "embed")["shards"]
    known: dict[str, dict[int, Embedding]] = {}
    vectors = []
    for row in rows:
        key = shards[collection.shards[row]]
        if key not in known:
            known[key] = read_embeddings(workspace, key)
        vectors.append(known[key][collection.pages[row].number].vectors.float())
    return vectors


def write_windows(folder: Path, windows: Mapping[int, Sequence[tuple[int, int]]], vectors: torch.Tensor) -> None:
    """spans (sum W, 2) i32: start and end of each window in its page's text; vectors (sum W, D) f32; offsets (n+1,).

    ``windows``: those of each page by number; a page without text has none. ``vectors``: of all windows in this order.
    """
    spans = [span for of_page in windows.values() for span in of_page]
    tensors = {
        "numbers": torch.tensor(list(windows)),
        "spans": torch.tensor(spans, dtype=torch.int32).reshape(-1, 2),
        "vectors": vectors,
        "offsets": _offsets([len(of_page) for of_page in windows.values()]),
    }
    save_tensors(tensors, folder / _WINDOWS)


def read_windows(
    workspace: Workspace, manifest: Manifest, collection: Collection, rows: Sequence[int]
) -> list[torch.Tensor]:
    """The vectors (W, D) float32 of the windows of each page at ``rows``, from an ``embed_text`` artifact.

    A page without text has W = 0, and D = 0 if no page of its shard has text.
    """
    shards = manifests.content(manifest, "embed_text")["shards"]
    known: dict[str, dict[int, torch.Tensor]] = {}
    vectors = []
    for row in rows:
        key = shards[collection.shards[row]]
        if key not in known:
            known[key] = dict(_split(load(workspace.read_shard_file("embed_text", key, _WINDOWS)), "vectors"))
        vectors.append(known[key][collection.pages[row].number])
    return vectors


def write_kept_tokens(folder: Path, kept: Mapping[int, KeptTokens]) -> None:
    """indices (sum K,) i32, grids (n, 2)."""
    tensors = {
        "numbers": torch.tensor(list(kept)),
        "indices": torch.cat([of_page.indices for of_page in kept.values()]),
        "offsets": _offsets([len(of_page.indices) for of_page in kept.values()]),
        "grids": torch.tensor([of_page.grid for of_page in kept.values()]),
    }
    save_tensors(tensors, folder / _KEPT)


def read_kept_tokens(workspace: Workspace, key: str) -> dict[int, KeptTokens]:
    """{page number: value}. Raises MmrrError if the shard is damaged."""
    data = load(workspace.read_shard_file("prune", key, _KEPT))
    pages = enumerate(_split(data, "indices"))
    return {number: KeptTokens(indices, _grid(data["grids"][i])) for i, (number, indices) in pages}


def write_page_caches(folder: Path, caches: Mapping[str, PageCache]) -> dict[str, Any]:
    """Write page caches; the tensors are named ``<page>.<name>``. Returns the shard's record (JSON).

    The record has a checksum per tensor, so that a query reads and checks only the pages that it needs.
    """
    tensors = {f"{page}.{name}": tensor for page, cache in caches.items() for name, tensor in cache.items()}
    save_tensors(tensors, folder / _CACHES)
    size = (folder / _CACHES).stat().st_size
    return {
        "files": {_CACHES: {"bytes": size}},
        "tensors": {name: checksum_tensor(tensor) for name, tensor in tensors.items()},
    }


def page_name(page: Page) -> str:
    """The name of a page's tensors in its shard of page caches."""
    return f"{page.number:04d}"


class PageCacheReader:
    """Reads the page caches of ``precache`` shards through memory maps, one page at a time."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._open: OrderedDict[str, tuple[Any, dict[str, dict[str, str]]]] = OrderedDict()

    def read(self, key: str, page: str) -> PageCache:
        """The cache of one page of one shard. Raises MmrrError if a byte changed."""
        file, checksums = self._file(key)
        cache: PageCache = {}
        for name, expected in checksums.get(page, {}).items():
            try:
                tensor: torch.Tensor = file.get_tensor(f"{page}.{name}")
            except (SafetensorError, RuntimeError) as error:
                raise self._damaged(key, f"{_CACHES}: {error}") from error
            if checksum_tensor(tensor) != expected:
                raise self._damaged(key, f"{_CACHES}: {page}.{name} does not match its checksum")
            cache[name] = tensor
        if not cache:
            raise self._damaged(key, f"{_CACHES} has no page {page}")
        return cache

    def _file(self, key: str) -> tuple[Any, dict[str, dict[str, str]]]:
        if key not in self._open:
            by_page: dict[str, dict[str, str]] = {}
            for tensor, checksum in manifests.shard_record(self._workspace, "precache", key)["tensors"].items():
                page, name = tensor.split(".", 1)
                by_page.setdefault(page, {})[name] = checksum
            path = self._workspace.shard("precache", key) / _CACHES
            if path.is_symlink():
                raise self._damaged(key, f"{_CACHES}: found a symbolic link, expected a file")
            try:
                self._open[key] = (safe_open(path, framework="pt"), by_page)
            except (SafetensorError, OSError) as error:
                raise self._damaged(key, f"{_CACHES}: {error}") from error
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]

    def _damaged(self, key: str, what: str) -> Exception:
        self._open.pop(key, None)
        return self._workspace.damaged("precache", key, what)


class Resident:
    """An LRU cache of page caches on the device, in their stored format, for queries that share candidates."""

    def __init__(self, reader: PageCacheReader, device: torch.device, most_bytes: int) -> None:
        """``most_bytes`` is the size of the LRU cache; 0 switches it off."""
        self._reader, self._device, self._most = reader, device, most_bytes
        self._kept: OrderedDict[tuple[str, str], PageCache] = OrderedDict()
        self._bytes = 0

    def read(self, key: str, page: str) -> PageCache:
        """As ``PageCacheReader.read``; a page on the device is not read from disk."""
        place = (key, page)
        if place in self._kept:
            self._kept.move_to_end(place)
            return self._kept[place]
        cache = self._reader.read(key, page)
        size = sum(tensor.nbytes for tensor in cache.values())
        if size > self._most:
            return cache
        # A copy, because a mapped page may leave memory and its file may be removed.
        self._kept[place] = cache = {name: tensor.to(self._device, copy=True) for name, tensor in cache.items()}
        self._bytes += size
        while self._bytes > self._most:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= sum(tensor.nbytes for tensor in oldest.values())
        return cache


class PageCaches(Sequence[PageCache]):
    """A sequence of page caches. Each is read when it is accessed, and not stored."""

    def __init__(self, reader: PageCacheReader | Resident, places: Sequence[tuple[str, str]]) -> None:
        """``places`` holds the (shard, page) of each cache."""
        self._reader, self._places = reader, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> PageCache: ...
    @overload
    def __getitem__(self, index: slice) -> list[PageCache]: ...
    def __getitem__(self, index: int | slice) -> PageCache | list[PageCache]:
        if isinstance(index, slice):
            return [self._reader.read(*place) for place in self._places[index]]
        return self._reader.read(*self._places[index])


def _offsets(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def _split(data: Mapping[str, torch.Tensor], name: str, offsets: str = "offsets") -> list[tuple[int, torch.Tensor]]:
    edges = data[offsets].tolist()
    numbers = data["numbers"].tolist()
    return [(number, data[name][edges[i] : edges[i + 1]]) for i, number in enumerate(numbers)]


def _grid(row: torch.Tensor) -> tuple[int, int]:
    height, width = row.tolist()
    return height, width
