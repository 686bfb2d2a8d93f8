"""Times one query over many candidates: dense forwards, ordinary prefix caching, and miniReranker from its caches.

Before that, what reading a page once costs beside a dense forward, in parts.

All in one process, on the same pages and the same query; beside the times the arithmetic and the bytes they took, and
what a plain matrix product and a plain copy reach on this machine. A few distinct pages stand for all candidates:
arithmetic and bytes do not depend on what is on a page, and every candidate's cache lies on disk under its own name.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrr.modeling import kv_codec
from mmrr.scorers import minireranker
from mmrr.scorers.minireranker import Prepare, Score
from mmrr.types import KeptTokens, PageCache, Progress, silent
from mmrr.workspace.store import Workspace
from mmrr.workspace.tensors import PageCacheReader, write_page_caches

_PER_SHARD = 16
_STATES_FILE = "states.safetensors"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is timed."""

    candidates: tuple[int, ...] = (10, 20, 50, 100)
    queries: tuple[int, ...] = (8, 64)  # at the largest number of candidates, one after the other
    query: str = "What was the largest item of expenditure in the second quarter, and who approved it?"
    keep: float = 0.5
    codecs: tuple[str, ...] = kv_codec.CODECS
    repeats: int = 3
    dense_pages: int = 2  # forwards timed: a dense one over every candidate may take an hour
    batch: int = 4  # pages of a batched dense forward
    distinct: int = 2  # pages that are really read


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    candidates: int
    ms: float  # median, of one query over all candidates
    timed: int  # candidates really run; fewer than ``candidates``: ms is in proportion
    flops: float  # of one query; 0: not counted
    limit_flops: float  # what a plain matrix product reached between the repeats, a second
    page_bytes: int = 0  # of one candidate's cache
    queries: int = 1
    peak_bytes: int | None = None  # largest resident memory meanwhile, everything included


@dataclass(frozen=True, slots=True)
class Other:
    """A scorer that is timed from its caches."""

    name: str
    module: Any  # its family
    scorer: Any


@dataclass(frozen=True, slots=True)
class Limit:
    """What this machine reaches at best, per second."""

    flops: float  # of a plain matrix product
    bytes: float  # of a plain copy


@dataclass(frozen=True, slots=True)
class Grown:
    """One query over the most candidates, for pages of so many tokens."""

    tokens: int  # visual tokens of a page
    kept: int
    page_bytes: int
    dense_ms: float  # one by one
    mini_ms: float  # resident, first codec


@dataclass(frozen=True, slots=True)
class Bench:
    limit: Limit
    tokens: int  # visual tokens of a page
    kept: int
    query_tokens: int
    once: list[Row]  # of one page, read without a query
    rows: list[Row]
    growth: list[Grown]  # over tokens a page


@dataclass(slots=True)
class _Clock:
    repeats: int
    advance: Callable[[int], None]
    product: Callable[[], float]  # what a plain matrix product reaches now
    rows: list[Row] = field(default_factory=list)

    def time(
        self,
        what: str,
        candidates: int,
        work: Callable[[], object],
        *,
        flops: float,
        timed: int = 0,
        before: Callable[[], object] | None = None,
        queries: int = 1,
        page_bytes: int = 0,
    ) -> None:
        """``before`` runs ahead of every repeat and is not timed; without one, a first run is left out as warm-up."""
        if before is None:
            work()
        _forget_peak()
        seconds, limits = [], []
        for _ in range(self.repeats):
            limits.append(self.product())
            if before:
                before()
            seconds.append(_seconds(work))
        timed = timed or candidates
        ms = 1000 * statistics.median(seconds) * candidates / timed / queries
        limit = statistics.median(limits)
        self.rows.append(Row(what, candidates, ms, timed, flops, limit, page_bytes, queries, _peak()))
        self.advance(1)


def bench(
    scorer: Any,
    image_size: tuple[int, int],
    plan: Plan,
    folder: Path,
    others: Sequence[Other] = (),
    progress: Progress = silent,
    smaller: Sequence[tuple[int, int]] = (),
) -> Bench:
    """Run it all. ``scorer`` is a miniReranker; page caches are written below ``folder``, a new workspace.

    ``smaller``: more sizes of a page image, for how times grow with them.
    """
    grid = scorer.grid(*image_size)
    images = [_page(image_size, seed) for seed in range(plan.distinct)]
    keeps = [_keep(grid, plan.keep, seed) for seed in range(plan.distinct)]
    kept, most = len(keeps[0].indices), max(plan.candidates)
    _, suffix = scorer.segments(plan.query)
    cost = _Cost(scorer.backbone.config, len(suffix), len(scorer.before), scorer.band)
    ways = len(plan.codecs) + len(others)
    total = (
        6
        + 2 * len(smaller)
        + len(plan.candidates)
        + ways * 2 * len(plan.candidates)
        + len(plan.codecs)
        + len(plan.queries)
    )
    with progress("bench", total) as advance, Workspace.open(folder, create=True) as workspace:
        device = scorer.backbone.device
        product = plain_product(scorer.backbone.dtype, device)
        clock, reading = (_Clock(plan.repeats, advance, product) for _ in range(2))
        limit = Limit(max(product() for _ in range(5)), _copied(device))
        growth = [_grown(_Clock(plan.repeats, advance, product), scorer, size, plan) for size in smaller]
        dense = images[: plan.dense_pages]
        flops = cost.dense(grid) * most
        clock.time(
            "dense, one by one",
            most,
            lambda: scorer.dense(plan.query, dense, "vision-first"),
            flops=flops,
            timed=len(dense),
        )
        batch = [images[i % plan.distinct] for i in range(plan.batch)]
        clock.time("dense, batched", most, lambda: scorer.dense_batch(plan.query, batch), flops=flops, timed=len(batch))
        _once(reading, scorer, images[0], keeps[0], plan.query, cost)

        everything = scorer.sharing(Prepare(band=f"0:{scorer.backbone.n_layers}"))
        states, shared = everything.prepare(images, [None] * plan.distinct), everything.shared_state()
        for n in plan.candidates:
            page_bytes = _bytes(states[0])
            flops = cost.cached(grid[0] * grid[1], (0, scorer.backbone.n_layers)) * n
            some = [states[i % plan.distinct] for i in range(n)]
            clock.time(
                "page KV in memory, whole model",
                n,
                partial(_ask, everything, [plan.query], some, shared, Score()),
                flops=flops,
                page_bytes=page_bytes,
            )
        del states, some

        computed = scorer.sharing(Prepare(band=_band(scorer))).prepare(images, keeps)
        shared = scorer.shared_state()
        for codec in plan.codecs:
            mini = scorer.sharing(Prepare(band=_band(scorer), codec=codec))
            coded = [
                kv_codec.encode(state["k"], state["v"], codec) | {"next_pos": state["next_pos"]} for state in computed
            ]
            places = _write(workspace, kv_codec.CODECS.index(codec), [coded[i % plan.distinct] for i in range(most)])
            page_bytes = _bytes(coded[0])
            of_one = cost.cached(kept, scorer.band)
            _from_disk(
                clock, Other(f"mini {codec}", minireranker, mini), plan, workspace, places, page_bytes, device, of_one
            )
            reader = PageCacheReader(workspace)
            resident = [_moved(reader.read(*place), device) for place in places]
            flops = cost.cached(kept, scorer.band) * most
            clock.time(
                f"mini {codec}, resident",
                most,
                partial(_ask, mini, [plan.query], resident, shared, Score()),
                flops=flops,
                page_bytes=page_bytes,
            )
            if codec == plan.codecs[0]:
                growth.append(Grown(grid[0] * grid[1], kept, page_bytes, clock.rows[0].ms, clock.rows[-1].ms))
                for queries in plan.queries:
                    texts = [f"{plan.query} {i}" for i in range(queries)]
                    clock.time(
                        f"mini {codec}, resident, {queries} queries",
                        most,
                        partial(_ask, mini, texts, resident, shared, Score()),
                        flops=flops,
                        page_bytes=page_bytes,
                        queries=queries,
                    )
        texts = [_text(seed) for seed in range(plan.distinct)]
        for number, other in enumerate(others, len(kv_codec.CODECS)):
            pages = texts if other.module.page_input(other.scorer.prepare_options) == "text" else images
            states = other.scorer.prepare(pages, [None] * plan.distinct)
            places = _write(workspace, number, [states[i % plan.distinct] for i in range(most)])
            _from_disk(clock, other, plan, workspace, places, _bytes(states[0]), device)
    return Bench(limit, grid[0] * grid[1], kept, len(suffix), reading.rows, clock.rows, growth)


def _grown(clock: _Clock, scorer: Any, size: tuple[int, int], plan: Plan) -> Grown:
    """Time dense forwards and resident caches of pages of another size."""
    grid, most = scorer.grid(*size), max(plan.candidates)
    images = [_page(size, seed) for seed in range(plan.distinct)]
    keeps = [_keep(grid, plan.keep, seed) for seed in range(plan.distinct)]
    mini = scorer.sharing(Prepare(band=_band(scorer), codec=plan.codecs[0]))
    states = [_moved(state, scorer.backbone.device) for state in mini.prepare(images, keeps)]
    dense, resident = images[: plan.dense_pages], [states[i % plan.distinct] for i in range(most)]
    ask = partial(_ask, mini, [plan.query], resident, mini.shared_state(), Score())
    clock.time("dense", most, lambda: scorer.dense(plan.query, dense, "vision-first"), flops=0, timed=len(dense))
    clock.time("mini", most, ask, flops=0)
    kept = len(keeps[0].indices)
    return Grown(grid[0] * grid[1], kept, _bytes(states[0]), *(row.ms for row in clock.rows))


def _once(clock: _Clock, scorer: Any, image: Image.Image, keep: KeptTokens, query: str, cost: _Cost) -> None:
    """Time the parts of a dense forward and of a page's cache; the language model's read what the tower has made."""
    backbone = scorer.backbone
    (visual,) = backbone.vision([image])
    everything = backbone.page_sequence(scorer.before, visual, [*scorer.after, *scorer.segments(query)[1]])
    page = backbone.page_sequence(scorer.before, visual, scorer.after, keep.indices)
    tower, prefix = cost.tower(keep.grid), cost.prefix(len(keep.indices))
    clock.time("vision tower", 1, lambda: backbone.vision([image]), flops=tower)
    clock.time("language model, dense", 1, lambda: backbone.read_all(everything), flops=cost.dense(keep.grid) - tower)
    clock.time("language model, precache", 1, lambda: backbone.prefix(page, scorer.band), flops=prefix)
    clock.time("precache", 1, lambda: scorer.prepare([image], [keep]), flops=tower + prefix)


def _from_disk(
    clock: _Clock,
    one: Other,
    plan: Plan,
    workspace: Workspace,
    places: Sequence[tuple[str, str]],
    page_bytes: int,
    device: torch.device,
    flops: float = 0.0,
) -> None:
    """Time one query over the first so many of ``places``, with the files forgotten by the system and not."""
    shared, options = one.scorer.shared_state(), one.module.Score()
    for n in plan.candidates:
        answer = partial(_answer, one.scorer, plan.query, workspace, places[:n], shared, options, device)
        evict = partial(_evict, workspace, places[:n])
        clock.time(f"{one.name}, cold disk", n, answer, flops=flops * n, page_bytes=page_bytes, before=evict)
        clock.time(f"{one.name}, page cache", n, answer, flops=flops * n, page_bytes=page_bytes)


def plain_product(dtype: torch.dtype, device: torch.device) -> Callable[[], float]:
    """Multiplies two matrices of 2,048 by 2,048 and says how many operations a second that was; begins warm."""
    a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))

    def product() -> float:
        return 2 * 2048**3 / _seconds(lambda: a @ b)

    product()
    return product


def _copied(device: torch.device) -> float:
    """Bytes a second, the best of five copies of 256 MB."""
    source, target = (torch.zeros(1 << 28, dtype=torch.uint8, device=device) for _ in range(2))
    return (1 << 28) / min(_seconds(lambda: target.copy_(source)) for _ in range(5))


def _seconds(work: Callable[[], object]) -> float:
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


class _Cost:
    """Multiplications and additions, two a pair, of products and attention; what is linear in the width is left out."""

    def __init__(self, config: Any, query: int, instruction: int, band: tuple[int, int]) -> None:
        self.text, self.vision = config.text_config, config.vision_config
        self.query, self.instruction, self.band = query, instruction, band
        heads, width = self.text.num_attention_heads, self.text.head_dim
        self.keys = 2 * 2 * self.text.hidden_size * self.text.num_key_value_heads * width  # keys and values, a token
        self.ask = 2 * self.text.hidden_size * heads * width  # a query, a token
        self.rest = 2 * self.text.hidden_size * (heads * width + 3 * self.text.intermediate_size)
        self.attend = 4 * heads * width  # a token for each it sees

    def cached(self, kept: int, band: tuple[int, int]) -> float:
        """One more candidate from its cache: the band's layers, of the last only the last token.

        What the first of them projects, all candidates share.
        """
        seen = self.instruction + kept + 2 + self.query  # its own segment in full: a mask saves nothing
        layers = band[1] - band[0]
        layer = self.query * (self.keys + self.ask + self.rest + self.attend * seen)
        last = self.query * self.keys + self.ask + self.rest + self.attend * seen
        shared = self.query * self.keys + (self.query if layers > 1 else 1) * self.ask
        return (layers - 1) * layer + last - shared

    def prefix(self, kept: int) -> float:
        """The language model over a page without a query, up to the band's end; of the last layer keys and values."""
        tokens = self.instruction + kept + 2
        layer = self.keys + self.ask + self.rest + self.attend * tokens / 2
        return float(tokens * ((self.band[1] - 1) * layer + self.keys))

    def dense(self, grid: tuple[int, int]) -> float:
        """One page and query, vision tower included."""
        tokens = self.instruction + grid[0] * grid[1] + 2 + self.query
        layer = self.keys + self.ask + self.rest + self.attend * tokens / 2
        return self.tower(grid) + self.text.num_hidden_layers * tokens * layer

    def tower(self, grid: tuple[int, int]) -> float:
        """The vision tower and its mergers over one page."""
        merge, vision = self.vision.spatial_merge_size, self.vision
        patches = grid[0] * grid[1] * merge**2
        block = 2 * vision.hidden_size * (4 * vision.hidden_size + 2 * vision.intermediate_size)
        tower = vision.depth * patches * (block + 4 * vision.hidden_size * patches)
        tower += (
            patches * 2 * vision.hidden_size * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        )
        merged = vision.hidden_size * merge**2
        mergers = 1 + len(vision.deepstack_visual_indexes)
        return float(tower + mergers * patches // merge**2 * 2 * merged * (merged + vision.out_hidden_size))


def _page(size: tuple[int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def _text(seed: int) -> str:
    """400 words of letters, about a page of print."""
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice(list("aeinorstlcdmu"), rng.integers(2, 10))) for _ in range(400))


def _keep(grid: tuple[int, int], share: float, seed: int) -> KeptTokens:
    n = grid[0] * grid[1]
    chosen = np.random.default_rng(seed).permutation(n)[: max(1, round(n * share))]
    return KeptTokens(torch.tensor(np.sort(chosen), dtype=torch.int32), grid)


def _band(scorer: Any) -> str:
    return f"{scorer.band[0]}:{scorer.band[1]}"


def _bytes(state: PageCache) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def _write(workspace: Workspace, number: int, states: Sequence[PageCache]) -> list[tuple[str, str]]:
    """Shards of page caches as precache writes them, the ``number``-th set of them; (key, page) of each."""
    places = []
    for first in range(0, len(states), _PER_SHARD):
        key = f"{number:04x}{first:020x}"
        named = {f"{i:04d}": state for i, state in enumerate(states[first : first + _PER_SHARD])}
        scratch = workspace.scratch()
        workspace.commit_shard("precache", key, scratch, write_page_caches(scratch, _apart(named)))
        places += [(key, name) for name in named]
    return places


def _apart(states: dict[str, PageCache]) -> dict[str, PageCache]:
    """Copies: safetensors keeps no tensor twice under two names."""
    return {page: {name: tensor.clone() for name, tensor in state.items()} for page, state in states.items()}


def _moved(state: PageCache, device: torch.device) -> PageCache:
    return {name: tensor.to(device) for name, tensor in state.items()}


def _ask(scorer: Any, queries: Sequence[str], states: Sequence[PageCache], shared: PageCache, options: Any) -> None:
    for query in queries:
        scorer.score(query, states, shared, options)


def _answer(
    scorer: Any,
    query: str,
    workspace: Workspace,
    places: Sequence[tuple[str, str]],
    shared: PageCache,
    options: Any,
    device: torch.device,
) -> None:
    reader = PageCacheReader(workspace)
    _ask(scorer, [query], [_moved(reader.read(*place), device) for place in places], shared, options)


def _evict(workspace: Workspace, places: Sequence[tuple[str, str]]) -> None:
    """Ask the system to forget what it holds of the files, so that the next read is the disk's."""
    if not hasattr(os, "posix_fadvise"):
        return
    for key in {key for key, _ in places}:
        descriptor = os.open(workspace.shard("precache", key) / _STATES_FILE, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    """The largest resident memory since ``_forget_peak``; None where the system does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
