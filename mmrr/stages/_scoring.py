"""What gives candidates their scores, on one device: page caches, or dense forwards. A part of the stage ``rerank``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from mmrr.config import DenseOrder
from mmrr.context import Context
from mmrr.contracts import Options, Scorer, SupportsDense, SupportsMemoryLimit
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.cache_streams import Mover, ahead, portions
from mmrr.modeling.checkpoints import recorded
from mmrr.modeling.devices import resolve_device, resolve_dtype
from mmrr.stages._visual import asked, encode
from mmrr.types import PageCache, Query
from mmrr.workspace import manifests
from mmrr.workspace.manifests import RerankConfig
from mmrr.workspace.pages import Collection, read_image
from mmrr.workspace.store import Manifest
from mmrr.workspace.tensors import PageCacheReader, PageCaches, Resident, page_name

#: Divisor of the memory budget, on the CPU and on other devices: the live copies of a portion of page caches. They are
#: the portion that is scored, the next one, and what the family decodes; from int4 that is four times as large.
_COPIES, _COPIES_ON_DEVICE = 3, 6
#: A query and the rows of its candidates.
Asked = tuple[Query, list[int]]
#: The scores (N,) of the candidates of each query.
Scores = list[torch.Tensor]


@dataclass(frozen=True)
class CachedScoring:
    """Scores candidates from their page caches."""

    scorer: Scorer
    options: Options
    listwise: bool
    collection: Collection
    cached: Manifest
    reader: Resident
    shared: PageCache
    device: torch.device
    most_bytes: int  # of a portion of page caches

    @classmethod
    def load(
        cls, context: Context, collection: Collection, cached: Manifest, scorer: Scorer, options: Options
    ) -> CachedScoring:
        """Open the page caches for a scorer that is on its device."""
        files = PageCacheReader(context.workspace)
        shared = files.read(manifests.content(cached, "precache")["shared"], "shared")
        device = resolve_device(context.machine.device)
        reader = Resident(files, device, context.machine.resident)
        listwise = families.load("scorers", manifests.config(cached, "precache")["family"]).SPEC.listwise
        copies = _COPIES if device.type == "cpu" else _COPIES_ON_DEVICE
        most_bytes = context.machine.memory // copies
        return cls(scorer, options, listwise, collection, cached, reader, shared, device, most_bytes)

    def batches(self, batches: Sequence[Sequence[Asked]]) -> Iterator[Scores]:
        """The scores of each batch, in order. The pages of the next batch are read while one is scored."""
        if self.listwise:
            yield from map(self._score_lists, batches)
            return
        coming = ahead(self._portions(batches))
        for batch in batches:
            yield self._score_pages(batch, coming)

    def _score_lists(self, batch: Sequence[Asked]) -> Scores:
        """A listwise scorer gets all candidates of a query; each page is read when the scorer asks for it."""

        def one(query: Query, rows: Sequence[int]) -> torch.Tensor:
            encoded = encode(self.scorer, query, self.collection)
            return self.scorer.score(encoded, self._caches(rows), self.shared, self.options)

        return [one(query, rows) if rows else torch.zeros(0) for query, rows in batch]

    def _portions(self, batches: Sequence[Sequence[Asked]]) -> Iterator[dict[int, PageCache]]:
        """The pages of each batch, each once, in portions that fit the memory. An empty portion ends a batch."""
        move = Mover(self.device)
        for batch in batches:
            # In one order, whatever the other queries are: the order of a product's rows changes its last bits.
            pages = sorted({row for _, rows in batch for row in rows})
            stored = portions(zip(pages, self._caches(pages), strict=True), self.most_bytes)
            yield from map(move, stored)
            yield {}

    def _score_pages(self, batch: Sequence[Asked], coming: Iterator[dict[int, PageCache]]) -> Scores:
        """Other scorers get the pages of the whole batch, portion by portion, for every query that has them."""
        queries = [encode(self.scorer, query, self.collection) for query, _ in batch]
        found: list[dict[int, float]] = [dict.fromkeys(rows, math.nan) for _, rows in batch]
        while portion := next(coming):
            for query, own in zip(queries, found, strict=True):
                mine = {row: cache for row, cache in portion.items() if row in own}
                if mine:
                    logits = self.scorer.score(query, list(mine.values()), self.shared, self.options)
                    own.update(zip(mine, logits.tolist(), strict=True))
        return [torch.tensor([own[row] for row in rows]) for own, (_, rows) in zip(found, batch, strict=True)]

    def _caches(self, rows: Sequence[int]) -> PageCaches:
        known, collection = manifests.content(self.cached, "precache"), self.collection
        singles = known.get("singles", {})
        places = [(collection.shards[row], collection.pages[row].number) for row in rows]
        keys = [singles.get(f"{shard}/{number}", known["shards"][shard]) for shard, number in places]
        names = [page_name(collection.pages[row]) for row in rows]
        return PageCaches(self.reader, list(zip(keys, names, strict=True)))


def cached_scoring(context: Context, collection: Collection, cached: Manifest, options: Options) -> CachedScoring:
    """What scores candidates from page caches; it stays in memory where models do, with its open files."""
    return context.kept(
        "page caches",
        cached,
        lambda: CachedScoring.load(context, collection, cached, load_scorer(context, cached), options),
        collection.manifest.fingerprint,
        repr(options),
        *own_caches(cached),
    )


def own_caches(cached: Manifest) -> list[str]:
    """The shards of the caches of single candidates, and of what these share."""
    known = manifests.content(cached, "precache")
    return [known["shared"], *known["singles"].values()] if "singles" in known else []


@dataclass(frozen=True)
class DenseScoring:
    """Scores candidates with the model's own full forward over the page images."""

    context: Context
    scorer: SupportsDense
    collection: Collection
    order: DenseOrder

    @classmethod
    def load(cls, context: Context, collection: Collection, named: Manifest, order: DenseOrder) -> DenseScoring:
        """Load the scorer that a manifest names. Raises MmrrError if its family has no dense forward."""
        scorer = load_scorer(context, named)
        if not isinstance(scorer, SupportsDense):
            family = manifests.config(named, "precache")["family"]
            raise MmrrError(f"{family} has no dense forward: leave out --dense")
        if isinstance(scorer, SupportsMemoryLimit):
            scorer.limit_memory(context.machine.memory)
        return cls(context, scorer, collection, order)

    def batches(self, batches: Sequence[Sequence[Asked]]) -> Iterator[Scores]:
        """The scores of each batch, in order. The images of the next batch are read while one is scored."""
        coming = ahead(self._images(batch) for batch in batches)
        for batch, images in zip(batches, coming, strict=True):
            scores = []
            for (query, _), own in zip(batch, images, strict=True):
                scores.append(
                    self.scorer.dense(asked(query, self.collection), own, self.order) if own else torch.zeros(0)
                )
            yield scores

    def _images(self, batch: Sequence[Asked]) -> list[list[Image.Image]]:
        pages, workspace = self.collection.pages, self.context.workspace
        return [[read_image(workspace, pages[row]) for row in rows] for _, rows in batch]


def load_scorer(context: Context, cached: Manifest) -> Scorer:
    """The scorer that made the caches: the same checkpoint, options and number format.

    Raises MmrrError if the family's prompt has changed since.
    """
    assert cached.model
    model = cached.model
    config: RerankConfig | Any = manifests.config(cached, "precache")
    module = families.load("scorers", config["family"])
    prepare = families.make_options(module.Prepare, config["options"])
    if module.prompt(prepare) != config["wording"]:
        raise MmrrError("the page caches were made with another prompt than this version's; run mmrr precache again")
    device = resolve_device(context.machine.device)
    dtype = resolve_dtype(model["dtype"], device)

    def load() -> Scorer:
        checkpoint = recorded(model, context.workspace.hashes, module.SPEC.model_types)
        return module.load(checkpoint, prepare, device, dtype)

    # A checkpoint in memory is not looked for again: that may ask the Hub.
    key = ("scorer", config["family"], model["revision"], prepare, str(device), dtype)
    return context.loaded.get(key, load)
