"""Times one query over many candidates: dense forwards, ordinary prefix caching, and miniReranker from page caches.

First it times the parts of reading a page once, compared with a dense forward.

Everything runs in one process, on the same pages and the same query. Each row has the time, the FLOPs, the bytes read
and the speed of a matrix product between the repeats; the speed of a copy is measured once. A few distinct pages
represent all candidates, because FLOPs and bytes do not depend on the content of a page. The cache of each candidate is
on disk under its own name.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image

from mmrr.contracts import Options, Scorer, ScorerFamily
from mmrr.evaluation._flops import Cost
from mmrr.evaluation._timing import Clock, Row, Task, copy_speed, evict, matrix_product
from mmrr.modeling import families, kv_codec
from mmrr.modeling.cache_streams import ahead, moved, portions
from mmrr.scorers import minireranker
from mmrr.scorers.minireranker import Prepare, Score
from mmrr.types import Grid, KeptTokens, PageCache, Progress, silent
from mmrr.workspace.store import Workspace
from mmrr.workspace.tensors import PageCacheReader, write_page_caches

T = TypeVar("T")
_PER_SHARD = 16
#: Page caches that are scored together from files: of a memory budget of 4 GiB, what rerank takes for one portion.
_PORTION_BYTES = (4 << 30) // 6


@dataclass(frozen=True, slots=True)
class Plan:
    """What is timed."""

    image_size: tuple[int, int] = (1024, 1280)  # width and height of a page in pixels
    smaller: tuple[tuple[int, int], ...] = ()  # other page sizes, timed in fewer ways
    candidates: tuple[int, ...] = (10, 20, 50, 100)
    queries: tuple[int, ...] = (8, 64)  # numbers of queries, one after the other, over the most candidates
    query: str = "What was the largest item of expenditure in the second quarter, and who approved it?"
    keep: float = 0.5  # share of the visual tokens that is kept
    codecs: tuple[str, ...] = kv_codec.CODECS
    repeats: int = 3
    dense_pages: int = 2  # pages of one timed dense run; over all candidates it might take an hour
    batch: int = 4  # pages in a batched dense forward
    distinct: int = 2  # distinct pages


@dataclass(frozen=True, slots=True)
class Other:
    """A scorer of another family, timed from its page caches."""

    name: str
    module: ScorerFamily
    options: Options  # ``Prepare`` of the family
    scorer: Scorer


@dataclass(frozen=True, slots=True)
class Limit:
    """The best speed of this machine, per second."""

    flops: float  # in a matrix product
    bytes: float  # in a copy


@dataclass(frozen=True, slots=True)
class Grown:
    """One query over the most candidates, for one page size."""

    tokens: int  # visual tokens per page
    kept: int
    page_bytes: int
    dense_ms: float  # one page per forward
    mini_ms: float  # caches in memory, first codec


@dataclass(frozen=True, slots=True)
class Bench:
    """All measurements."""

    limit: Limit
    tokens: int  # visual tokens per page
    kept: int
    query_tokens: int
    once: list[Row]  # one page, read without a query
    rows: list[Row]
    growth: list[Grown]  # over visual tokens per page


def bench(
    scorer: minireranker.Scorer, plan: Plan, folder: Path, others: Sequence[Other] = (), progress: Progress = silent
) -> Bench:
    """Run all measurements. Page caches are written to ``folder``, a new workspace."""
    ways = len(plan.codecs) + len(others)
    candidates = len(plan.candidates)
    total = 6 + 2 * len(plan.smaller) + candidates * (1 + 2 * ways) + len(plan.codecs) + len(plan.queries)
    with progress("bench", total) as advance, Workspace.open(folder, create=True) as workspace:
        device = scorer.backbone.device
        product = matrix_product(scorer.backbone.dtype, device)
        clock, reading = (Clock(plan.repeats, advance, product) for _ in range(2))
        limit = Limit(max(product() for _ in range(5)), copy_speed(device))
        growth = [_other_size(Clock(plan.repeats, advance, product), scorer, size, plan) for size in plan.smaller]
        run = _Run(scorer, plan, workspace, clock, _Pages.of_size(scorer, plan.image_size, plan))
        run.time_dense()
        run.time_parts(reading)
        run.time_whole_model_cache()
        growth.append(run.time_page_caches())
        run.time_others(others)
    grid, kept = run.pages.grid, run.pages.n_kept
    return Bench(limit, grid[0] * grid[1], kept, len(run.suffix), reading.rows, clock.rows, growth)


@dataclass(frozen=True, slots=True)
class _Pages:
    """The distinct pages of one size and their kept tokens, both random."""

    grid: Grid
    images: list[Image.Image]
    kept: list[KeptTokens]

    @classmethod
    def of_size(cls, scorer: minireranker.Scorer, size: tuple[int, int], plan: Plan) -> _Pages:
        grid = scorer.grid(*size)
        images = [_page(size, seed) for seed in range(plan.distinct)]
        return cls(grid, images, [_kept_tokens(grid, plan.keep, seed) for seed in range(plan.distinct)])

    @property
    def n_kept(self) -> int:
        return len(self.kept[0].indices)


class _Run:
    """The measurements on pages of the plan's size."""

    def __init__(
        self, scorer: minireranker.Scorer, plan: Plan, workspace: Workspace, clock: Clock, pages: _Pages
    ) -> None:
        self.scorer, self.plan, self.workspace, self.clock, self.pages = scorer, plan, workspace, clock, pages
        self.device = scorer.backbone.device
        self.most = max(plan.candidates)
        _, self.suffix = scorer.segments(plan.query)
        self.cost = Cost(scorer.backbone.config, len(self.suffix), len(scorer.before), scorer.band)
        #: FLOPs per extra candidate from its cache.
        self.cached_flops = self.cost.cached(pages.n_kept, scorer.band)

    def time_dense(self) -> None:
        """Dense forwards, one page each and batched."""
        scorer, query, images = self.scorer, self.plan.query, self.pages.images
        dense, batch = images[: self.plan.dense_pages], self._repeat(images, self.plan.batch)
        flops = self.cost.dense(self.pages.grid) * self.most
        one_by_one = partial(scorer.dense, query, dense, "vision-first")
        self.clock.time(Task("dense, one by one", self.most, one_by_one, flops, len(dense)))
        self.clock.time(Task("dense, batched", self.most, partial(scorer.dense_batch, query, batch), flops, len(batch)))

    def time_parts(self, clock: Clock) -> None:
        """The parts of a dense forward and of computing a page cache."""
        scorer, backbone, cost = self.scorer, self.scorer.backbone, self.cost
        image, kept = self.pages.images[0], self.pages.kept[0]
        (visual,) = backbone.vision([image])
        full = backbone.page_sequence(scorer.before, visual, [*scorer.after, *self.suffix])
        page = backbone.page_sequence(scorer.before, visual, scorer.after, kept.indices)
        tower, prefix, dense = cost.tower(kept.grid), cost.prefix(self.pages.n_kept), cost.dense(kept.grid)
        clock.time(Task("vision tower", 1, lambda: backbone.vision([image]), tower))
        clock.time(Task("language model, dense", 1, lambda: backbone.read_all(full), dense - tower))
        clock.time(Task("language model, precache", 1, lambda: backbone.prefix(page, scorer.band), prefix))
        clock.time(Task("precache", 1, lambda: scorer.prepare([image], [kept]), tower + prefix))

    def time_whole_model_cache(self) -> None:
        """Ordinary prefix caching: keys and values of all layers and all visual tokens, in memory."""
        n_layers, (rows, columns) = self.scorer.backbone.n_layers, self.pages.grid
        full = self.scorer.sharing(Prepare(band=f"0:{n_layers}"))
        states, shared = full.prepare(self.pages.images, [None] * self.plan.distinct), full.shared_state()
        flops = self.cost.cached(rows * columns, (0, n_layers))
        for n in self.plan.candidates:
            work = partial(_score, full, [self.plan.query], self._repeat(states, n), shared, Score())
            task = Task("page KV in memory, whole model", n, work, flops * n, page_bytes=_bytes(states[0]))
            self.clock.time(task)

    def time_page_caches(self) -> Grown:
        """miniReranker's page caches with each codec, from disk and in memory; the growth row of the first codec."""
        band = _band(self.scorer)
        family = families.load("scorers", "minireranker")
        computed = self.scorer.sharing(Prepare(band=band)).prepare(self.pages.images, self.pages.kept)
        for codec in self.plan.codecs:
            mini = self.scorer.sharing(Prepare(band=band, codec=kv_codec.check(codec)))
            caches = [
                kv_codec.encode(state["k"], state["v"], codec) | {"next_pos": state["next_pos"]} for state in computed
            ]
            places = self._write(kv_codec.CODECS.index(codec), caches)
            page_bytes = _bytes(caches[0])
            self._time_from_disk(
                Other(f"mini {codec}", family, mini.prepare_options, cast("Scorer", mini)),
                places,
                page_bytes,
                self.cached_flops,
            )
            self._time_in_memory(mini, codec, places, page_bytes)
            if codec == self.plan.codecs[0]:
                grid, dense = self.pages.grid, self.clock.rows[0]
                in_memory = next(row for row in self.clock.rows if row.what == f"mini {codec}, resident")
                first = Grown(grid[0] * grid[1], self.pages.n_kept, page_bytes, dense.ms, in_memory.ms)
        return first

    def _time_in_memory(
        self, mini: minireranker.Scorer, codec: str, places: Sequence[tuple[str, str]], page_bytes: int
    ) -> None:
        """One query over caches in memory; with the first codec also several queries."""
        reader, shared = PageCacheReader(self.workspace), self.scorer.shared_state()
        caches = [_moved(reader.read(*place), self.device) for place in places]
        flops, what = self.cached_flops * self.most, f"mini {codec}, resident"
        one = partial(_score, mini, [self.plan.query], caches, shared, Score())
        self.clock.time(Task(what, self.most, one, flops, page_bytes=page_bytes))
        for n in self.plan.queries if codec == self.plan.codecs[0] else ():
            texts = [f"{self.plan.query} {i}" for i in range(n)]
            several = partial(_score, mini, texts, caches, shared, Score())
            name = f"{what}, {n} queries"
            self.clock.time(Task(name, self.most, several, flops, page_bytes=page_bytes, queries=n))

    def time_others(self, others: Sequence[Other]) -> None:
        """Page caches of other scorers from disk. Their FLOPs are not counted."""
        texts = [_text(seed) for seed in range(self.plan.distinct)]
        for number, other in enumerate(others, len(kv_codec.CODECS)):
            reads_text = other.module.page_input(other.options) == "text"
            pages = texts if reads_text else self.pages.images
            states = other.scorer.prepare(pages, [None] * self.plan.distinct)
            self._time_from_disk(other, self._write(number, states), _bytes(states[0]))

    def _time_from_disk(
        self, one: Other, places: Sequence[tuple[str, str]], page_bytes: int, flops: float = 0.0
    ) -> None:
        """One query over each number of candidates, without and with the files in the system's page cache."""
        shared, options = one.scorer.shared_state(), one.module.Score()

        def answer(some: Sequence[tuple[str, str]]) -> None:
            reader = PageCacheReader(self.workspace)
            read = ((row, reader.read(*place)) for row, place in enumerate(some))
            # As mmrr rerank does: a listwise scorer has all pages at once, others have them in portions.
            most_bytes = sys.maxsize if one.module.SPEC.listwise else _PORTION_BYTES
            for portion in ahead(moved(portions(read, most_bytes), self.device)):
                _score(one.scorer, [self.plan.query], list(portion.values()), shared, options)

        for n in self.plan.candidates:
            work, drop = partial(answer, places[:n]), partial(evict, self.workspace, places[:n])
            cold = Task(f"{one.name}, cold disk", n, work, flops * n, before=drop, page_bytes=page_bytes)
            self.clock.time(cold)
            self.clock.time(Task(f"{one.name}, page cache", n, work, flops * n, page_bytes=page_bytes))

    def _repeat(self, items: Sequence[T], n: int) -> list[T]:
        return [items[i % self.plan.distinct] for i in range(n)]

    def _write(self, number: int, states: Sequence[PageCache]) -> list[tuple[str, str]]:
        """Write a page cache for each candidate as precache does; (key, page) of each. ``number`` tells sets apart."""
        places = []
        states = self._repeat(states, self.most)
        for first in range(0, len(states), _PER_SHARD):
            key = f"{number:04x}{first:020x}"
            # Copies, because safetensors refuses to store one tensor under two names.
            named = {f"{i:04d}": _copied(state) for i, state in enumerate(states[first : first + _PER_SHARD])}
            scratch = self.workspace.scratch()
            self.workspace.commit_shard("precache", key, scratch, write_page_caches(scratch, named))
            places += [(key, name) for name in named]
        return places


def _other_size(clock: Clock, scorer: minireranker.Scorer, size: tuple[int, int], plan: Plan) -> Grown:
    """Dense forwards and caches in memory, for pages of another size."""
    pages, most = _Pages.of_size(scorer, size, plan), max(plan.candidates)
    mini = scorer.sharing(Prepare(band=_band(scorer), codec=kv_codec.check(plan.codecs[0])))
    states = [_moved(state, scorer.backbone.device) for state in mini.prepare(pages.images, pages.kept)]
    dense, in_memory = pages.images[: plan.dense_pages], [states[i % plan.distinct] for i in range(most)]
    work = partial(_score, mini, [plan.query], in_memory, mini.shared_state(), Score())
    clock.time(Task("dense", most, lambda: scorer.dense(plan.query, dense, "vision-first"), timed=len(dense)))
    clock.time(Task("mini", most, work))
    tokens = pages.grid[0] * pages.grid[1]
    return Grown(tokens, pages.n_kept, _bytes(states[0]), *(row.ms for row in clock.rows))


# Any: a scorer of any family and its options.
def _score(scorer: Any, queries: Sequence[str], states: Sequence[PageCache], shared: PageCache, options: Any) -> None:
    for query in queries:
        scorer.score(query, states, shared, options)


def _page(size: tuple[int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def _text(seed: int) -> str:
    """400 random words, about one printed page."""
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice(list("aeinorstlcdmu"), rng.integers(2, 10))) for _ in range(400))


def _kept_tokens(grid: Grid, share: float, seed: int) -> KeptTokens:
    """A random share of the visual tokens."""
    n = grid[0] * grid[1]
    chosen = np.random.default_rng(seed).permutation(n)[: max(1, round(n * share))]
    return KeptTokens(torch.tensor(np.sort(chosen), dtype=torch.int32), grid)


def _band(scorer: minireranker.Scorer) -> str:
    return f"{scorer.band[0]}:{scorer.band[1]}"


def _bytes(state: PageCache) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def _copied(state: PageCache) -> PageCache:
    return {name: tensor.clone() for name, tensor in state.items()}


def _moved(state: PageCache, device: torch.device) -> PageCache:
    return {name: tensor.to(device) for name, tensor in state.items()}
