"""Tuning: the reranker settings that keep the quality at the fewest bytes a page. Nothing becomes current.

Half of the judged queries chooses the setting, the other half reports it. Page caches are computed for the candidates
alone, once for each share of kept tokens, with every layer and unquantised: any band, exit layer and codec is a slice
of these, bit for bit (``SupportsNarrowing``). A share is no slice, so each share has caches of its own.

Settings are thinned by successive halving (Jamieson and Talwalkar 2016): every round has more queries and fewer
settings. What survives a round is best by Pareto fronts of quality, bytes and layers.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmrr import answering
from mmrr.config import Retrieve
from mmrr.context import Context
from mmrr.contracts import Options, SupportsNarrowing
from mmrr.errors import MmrrError
from mmrr.evaluation import ids, metrics
from mmrr.evaluation.comparison import document_of
from mmrr.modeling import families, kv_codec
from mmrr.modeling.contract_check import has_ability
from mmrr.modeling.devices import resolve_device, resolve_dtype
from mmrr.pipeline import Scoring, family_and_pruning
from mmrr.search.fusion import fuse
from mmrr.stages import precache, rerank
from mmrr.stages._visual import check_scorer, encode
from mmrr.stages.precache import Family
from mmrr.types import Hit, PageCache, Qrels, Query, Run, best_of_pages, rank
from mmrr.workspace import manifests
from mmrr.workspace.pages import Collection
from mmrr.workspace.store import Manifest
from mmrr.workspace.tensors import PageCacheReader, Resident, page_name

#: Shares of kept tokens that are tried where the index has an embedder's saliency.
SHARES = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1)
#: Numbers of candidates and weights of score fusion that are tried; None: the reranker's scores alone. They cost
#: nothing: the logits stay the same.
CANDIDATES = (5, 10, 20, 50, 100)
WEIGHTS = (None, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
#: Settings that a round leaves for the next one, and that are measured at the end.
_LEAVES = (16, 16, 8)
#: Queries that are timed for each setting.
_TIMED = 8


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked of a setting."""

    measure: str = "nDCG@5"
    most_bytes: int | None = None  # a page
    most_ms: float | None = None  # a query
    keep_quality: float = 0.98  # share of the default setting's quality


@dataclass(frozen=True, slots=True)
class Setting:
    """The reranker settings that are tuned."""

    keep: float  # share of the visual tokens
    band: str
    exit_layer: int
    codec: str
    candidates: int = 0
    fuse: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A setting and what it costs and gives."""

    setting: Setting
    quality: float  # over the choosing half, a fraction
    reported: float  # over the other half
    page_bytes: int
    query_ms: float  # median of the choosing queries; the caches are in memory


@dataclass(frozen=True)
class Tuned:
    """The result of a tuning."""

    family: str
    made_for: dict[str, Any]  # family, revision and options of the chosen setting, as a manifest of rerank has them
    chosen: Point
    default: Point
    points: list[Point]  # the Pareto front of quality, bytes and milliseconds, by bytes
    first_stage: tuple[float, float]  # its quality over either half
    difference: tuple[float, float, float]  # chosen less default over the reporting half, and its 95 % interval
    queries: tuple[int, int]  # that chose, and that reported
    met: bool  # whether a setting within the limits keeps the quality
    #: For a calibration: (logit, relevant) of each candidate of the chosen setting, over either half.
    judged: tuple[list[tuple[float, bool]], list[tuple[float, bool]]] = field(repr=False)


def tune(
    context: Context,
    scoring: Scoring,
    queries: Sequence[Query],
    qrels: Qrels,
    options: Retrieve,
    goal: Goal | None = None,
    seed: int = 0,
) -> Tuned:
    """Choose a setting of ``scoring``'s model for the current index. The parameters ``options``: the first stage.

    A family without ``SupportsNarrowing`` keeps its cache settings; its candidates and its fusion are tuned. Raises
    MmrrError if fewer than four queries are judged, and if the index has none of the judged pages.
    """
    goal = goal or Goal()
    indexed = context.current("index")
    ids.unknown_pages(qrels, context.collection(indexed).row_of, "the judgements")
    asked = [query for query in queries if query.query_id in qrels]
    if len(asked) < 4:
        raise MmrrError(f"found {len(asked)} judged queries; expected at least 4: half of them choose, half report")
    random.Random(seed).shuffle(asked)
    halves = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    check_scorer(scoring.family, asked)
    first = answering.answer(context, asked, options, {}, None, {})
    candidates = rerank.Candidates(first.collection, asked, None, first.first)
    trial = _Trial(context, scoring, candidates, qrels, goal.measure)
    return _chosen(trial, goal, halves, _finalists(trial, halves[0]))


# Rounds


def _finalists(trial: _Trial, choosing: list[Query]) -> list[Setting]:
    """The settings of the caches that are left after the rounds, without candidates and fusion; the default is one."""
    default = trial.default()
    if not trial.narrows:
        return [default]
    n = len(choosing)
    rounds: list[tuple[list[Query], Callable[[Setting], Iterable[Setting]]]] = [
        (choosing[: max(2, n // 4)], lambda one: [one]),
        (choosing[: max(2, n // 2)], lambda one: [dataclasses.replace(one, keep=keep) for keep in trial.shares]),
        (choosing, lambda one: [dataclasses.replace(one, codec=codec) for codec in kv_codec.CODECS]),
    ]
    found = [dataclasses.replace(default, band=band, exit_layer=leave) for band, leave in _cuts(trial.depth)]
    for (some, widen), n_left in zip(rounds, _LEAVES, strict=True):
        settings = list(dict.fromkeys([default, *(wide for one in found for wide in widen(one))]))
        with trial.context.progress(f"tune, {len(some)} queries", len(settings)) as advance:
            scored = []
            for setting in sorted(settings, key=lambda one: one.keep):  # the caches of one share at a time
                quality = max(trial.quality(dataclasses.replace(setting, fuse=weight), some) for weight in (None, 0.3))
                scored.append((setting, (-quality, trial.page_bytes(setting), setting.exit_layer)))
                advance(1)
        found = list(dict.fromkeys([default, *_best_fronts(scored, n_left)]))
    return found


def _cuts(depth: int) -> Iterable[tuple[str, int]]:
    """Bands and exit layers to try: the first and last layers of bands lie on a grid of at most nine layers."""
    step = -(-depth // 8)
    for start in range(0, depth, step):
        for end in [*range(start + step, depth, step), depth]:
            for leave in [*range(end, depth, step), depth]:
                yield f"{start}:{end}", leave


def _best_fronts(scored: Sequence[tuple[Setting, tuple[float, ...]]], n: int) -> list[Setting]:
    """At most ``n`` settings: Pareto front by front; within the last front those of the best quality."""
    left, found = list(scored), list[Setting]()
    while left and len(found) < n:
        front = [one for one in left if not any(_dominates(other[1], one[1]) for other in left)]
        found += [setting for setting, _ in sorted(front, key=lambda one: one[1])]
        left = [one for one in left if one not in front]
    return found[:n]


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether costs ``a`` are nowhere above ``b`` and somewhere below."""
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


# The choice


def _chosen(trial: _Trial, goal: Goal, halves: tuple[list[Query], list[Query]], finalists: list[Setting]) -> Tuned:
    choosing, reporting = halves
    default_setting = dataclasses.replace(trial.default(), candidates=trial.most)
    points: list[Point] = []
    for cut in sorted(finalists, key=lambda one: one.keep):  # the caches of one share at a time
        counts = [n for n in CANDIDATES if n < trial.most] + [trial.most]
        grid = [dataclasses.replace(cut, candidates=n, fuse=weight) for n in counts for weight in WEIGHTS]
        quality = {setting: trial.quality(setting, choosing) for setting in grid}
        # Of one number of candidates the weight changes the quality alone.
        best = {n: max((s for s in grid if s.candidates == n), key=quality.__getitem__) for n in counts}
        for setting in dict.fromkeys([*best.values(), *([default_setting] if default_setting in quality else [])]):
            ms = trial.query_ms(setting, choosing)
            reported = trial.quality(setting, reporting)
            points.append(Point(setting, quality[setting], reported, trial.page_bytes(setting), ms))
    default = next(point for point in points if point.setting == default_setting)
    costs = {point.setting: (-point.quality, point.page_bytes, point.query_ms) for point in points}
    front = [
        point for point in points
        if not any(_dominates(costs[other.setting], costs[point.setting]) for other in points)
    ]  # fmt: skip
    within = [
        point
        for point in front
        if (goal.most_bytes is None or point.page_bytes <= goal.most_bytes)
        and (goal.most_ms is None or point.query_ms <= goal.most_ms)
    ]
    if not within:
        least = min(front, key=lambda point: (point.page_bytes, point.query_ms))
        raise MmrrError(
            f"no setting is within the limits: the smallest takes {least.page_bytes} bytes a page and "
            f"{least.query_ms:.0f} ms a query; raise --bytes or --ms"
        )
    good = [point for point in within if point.quality >= goal.keep_quality * default.quality]
    chosen = (
        min(good, key=lambda point: (point.page_bytes, -point.quality, point.query_ms))
        if good
        else max(within, key=lambda point: point.quality)
    )
    return _report(trial, halves, (chosen, default, front), bool(good))


def _report(
    trial: _Trial, halves: tuple[list[Query], list[Query]], found: tuple[Point, Point, list[Point]], met: bool
) -> Tuned:
    (choosing, reporting), (chosen, default, front) = halves, found
    base, new = (trial.evaluated(point.setting, reporting) for point in (default, chosen))
    group_of = {query.query_id: document_of(trial.qrels[query.query_id]) for query in reporting}
    change = metrics.bootstrap(base, new, group_of)[trial.measure]
    return Tuned(
        trial.family.name,
        trial.made_for(chosen.setting),
        chosen,
        default,
        sorted(front, key=lambda point: (point.page_bytes, point.query_ms)),
        (trial.first_quality(choosing), trial.first_quality(reporting)),
        (change.difference, *change.difference_interval),
        (len(choosing), len(reporting)),
        met,
        (trial.judged(chosen.setting, choosing), trial.judged(chosen.setting, reporting)),
    )


# Scores


@dataclass(frozen=True)
class _Wide:
    """The caches of the candidates with one share of kept tokens, every layer and no codec, and their scorer."""

    scorer: Any  # of the family, which chooses its types
    reader: Resident
    shared: PageCache
    places: dict[int, tuple[str, str]]  # (shard, page) by row

    def caches(self, rows: Iterable[int]) -> list[PageCache]:
        return [self.reader.read(*self.places[row]) for row in rows]


class _Trial:
    """Scores the candidates of queries with any setting. Logits stay in memory; page caches stay on disk."""

    def __init__(
        self, context: Context, scoring: Scoring, candidates: rerank.Candidates, qrels: Qrels, measure: str
    ) -> None:
        self.context, self.candidates, self.qrels, self.measure = context, candidates, qrels, measure
        self._scoring, self._indexed = scoring, context.current("index")
        self.family, pruned = family_and_pruning(context, scoring, self._indexed, None)
        self.most = max(map(len, candidates.run.values()), default=0)
        self._options = families.stored_options(self.family.prepare)
        self._rows = {query.query_id: candidates.rows(query) for query in candidates.queries}
        self._caches: dict[float, _Wide] = {}
        self._logits: dict[tuple[Setting, str], dict[int, float]] = {}
        self._sizes: dict[Setting, int] = {}
        self._share = float(manifests.config(pruned, "prune")["keep"]) if pruned else 1.0
        prunes = self.family.module.SPEC.accepts_pruning and "embed" in self._indexed.inputs
        self.shares = SHARES if prunes else (1.0,)

    @property
    def narrows(self) -> bool:
        """Whether one cache contains those of other bands and codecs."""
        return has_ability(self.family.module, SupportsNarrowing)

    @property
    def depth(self) -> int:
        """Layers of the model."""
        return int(self.family.config["text_config"]["num_hidden_layers"])

    def made_for(self, setting: Setting) -> dict[str, Any]:
        """What logits with this setting depend on, as a manifest of ``rerank`` has it."""
        options = {**self._options} | ({"band": setting.band, "codec": setting.codec} if self.narrows else {})
        score = families.stored_options(self._score_options(setting))
        return {
            "family": self.family.name,
            "revision": self.family.checkpoint.revision,
            "options": options,
            "score": score,
        }

    def default(self) -> Setting:
        """What the commands do with the options that the user named, without the number of candidates."""
        if not self.narrows:
            return Setting(self._share, "", 0, "")
        band = str(self._options["band"])
        return Setting(self._share, band, int(band.partition(":")[2]), str(self._options["codec"]))

    def quality(self, setting: Setting, queries: Sequence[Query]) -> float:
        """The measure's mean over these queries."""
        return self.evaluated(setting, queries).mean[self.measure]

    def evaluated(self, setting: Setting, queries: Sequence[Query]) -> metrics.Evaluation:
        """The measure of each query."""
        return self._evaluated({query.query_id: self._hits(setting, query) for query in queries}, queries)

    def first_quality(self, queries: Sequence[Query]) -> float:
        """The measure's mean over the first stage's ranking."""
        return self._evaluated(self.candidates.run, queries).mean[self.measure]

    def judged(self, setting: Setting, queries: Sequence[Query]) -> list[tuple[float, bool]]:
        """The logit of each candidate, and whether it is relevant."""
        alone = dataclasses.replace(setting, fuse=None)
        return [
            (hit.score, self.qrels[query.query_id].get(hit.page_id, 0) > 0)
            for query in queries
            for hit in self._hits(alone, query)
        ]

    def page_bytes(self, setting: Setting) -> int:
        """The mean size of a candidate's cache."""
        cut = _cut(setting, leave=0)
        if cut not in self._sizes:
            wide, rows = self._wide(cut.keep), sorted({row for rows in self._rows.values() for row in rows})
            # A cache's size follows from its number of tokens: some pages of each collection are enough.
            some = rows[:: max(1, len(rows) // 8)]
            _, caches, _ = self._narrowed(wide, cut, some)
            self._sizes[cut] = round(sum(t.nbytes for one in caches for t in one.values()) / max(1, len(some)))
        return self._sizes[cut]

    def query_ms(self, setting: Setting, queries: Sequence[Query]) -> float:
        """The median time to encode a query and score its candidates. Their caches are in memory, the first is cold."""
        wide, times = self._wide(setting.keep), []
        for query in [queries[0], *queries[:_TIMED]]:
            rows = self._candidate_rows(setting, query)
            scorer, caches, shared = self._narrowed(wide, setting, rows)
            started = time.perf_counter()
            scorer.score(
                encode(scorer, query, self.candidates.collection), caches, shared, self._score_options(setting)
            )
            times.append(1000 * (time.perf_counter() - started))
        return statistics.median(times[1:])

    def _evaluated(self, run: Run, queries: Sequence[Query]) -> metrics.Evaluation:
        ids = [query.query_id for query in queries]
        judged = {query_id: self.qrels[query_id] for query_id in ids}
        return metrics.evaluate({query_id: run.get(query_id, []) for query_id in ids}, judged, [self.measure])

    def _hits(self, setting: Setting, query: Query) -> list[Hit]:
        first = self.candidates.run[query.query_id][: setting.candidates or None]
        logits, pages = self._scores(setting, query), self.candidates.collection.pages
        rows = self._candidate_rows(setting, query)
        hits = rank(best_of_pages((pages[row].page_id, logits[row]) for row in rows))
        if setting.fuse is None:
            return hits
        return fuse({query.query_id: first}, {query.query_id: hits}, setting.fuse)[query.query_id]

    def _candidate_rows(self, setting: Setting, query: Query) -> list[int]:
        first = self.candidates.run[query.query_id][: setting.candidates or None]
        return [row for hit in first for row in self.candidates.collection.images[hit.page_id]]

    def _scores(self, setting: Setting, query: Query) -> dict[int, float]:
        """The logits of all candidates by row, whatever their number in the setting."""
        place = (_cut(setting, setting.exit_layer), query.query_id)
        if place not in self._logits:
            rows = self._rows[query.query_id]
            scorer, caches, shared = self._narrowed(self._wide(setting.keep), setting, rows)
            found = scorer.score(
                encode(scorer, query, self.candidates.collection), caches, shared, self._score_options(setting)
            )
            self._logits[place] = dict(zip(rows, found.tolist(), strict=True))
        return self._logits[place]

    def _narrowed(self, wide: _Wide, setting: Setting, rows: Sequence[int]) -> tuple[Any, list[PageCache], PageCache]:
        if not self.narrows:
            return wide.scorer, wide.caches(rows), wide.shared
        values = {**self._options, "band": setting.band, "codec": setting.codec}
        options = families.make_options(self.family.module.Prepare, values)
        found: tuple[Any, list[PageCache], PageCache] = wide.scorer.narrowed(options, wide.caches(rows), wide.shared)
        return found

    def _score_options(self, setting: Setting) -> Options:
        named = {"exit_layer": str(setting.exit_layer)} if self.narrows else {}
        return families.parse_options(self.family.module.Score, named)

    def _wide(self, keep: float) -> _Wide:
        """The caches of all candidates with this share; computed where they are missing."""
        if keep not in self._caches:
            self._caches.clear()  # one share stays open
            context, collection = self.context, self.candidates.collection
            options = dict(self._scoring.options)
            if self.narrows:
                options |= {"band": f"0:{self.depth}", "codec": "none"}
            # Families that cache whole pages take no share.
            share = keep if self.family.module.SPEC.accepts_pruning else None
            scoring = dataclasses.replace(self._scoring, options=options, keep=share)
            family, pruned = family_and_pruning(context, scoring, self._indexed, None)
            rows = sorted({row for rows in self._rows.values() for row in rows})
            made = precache.prepare_pages(context, collection, pruned, family, rows)
            self._caches[keep] = _opened(context, collection, made, family, rows)
        return self._caches[keep]


def _cut(setting: Setting, leave: int) -> Setting:
    """The part of a setting that a cache and, with an exit layer, its logits depend on."""
    return Setting(setting.keep, setting.band, leave, setting.codec)


def _opened(context: Context, collection: Collection, made: Manifest, family: Family, rows: Sequence[int]) -> _Wide:
    assert made.model
    device = resolve_device(context.machine.device)
    dtype = resolve_dtype(made.model["dtype"], device)
    key = ("scorer", family.name, family.checkpoint.revision, family.prepare, str(device), dtype)
    scorer = context.loaded.get(key, lambda: family.module.load(family.checkpoint, family.prepare, device, dtype))
    content, files = manifests.content(made, "precache"), PageCacheReader(context.workspace)
    singles, places = content.get("singles", {}), {}
    for row in rows:
        shard, page = collection.shards[row], collection.pages[row]
        places[row] = (singles.get(f"{shard}/{page.number}", content["shards"][shard]), page_name(page))
    reader = Resident(files, device, context.machine.memory)
    shared = {name: tensor.to(device) for name, tensor in files.read(content["shared"], "shared").items()}
    return _Wide(scorer, reader, shared, places)
