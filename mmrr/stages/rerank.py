"""Stage ``rerank``: the first stage's run and the page caches -> the reranked run, one shard per query.

With ``Rerank.dense`` no caches are read or needed: the manifest that names them then names the scorer alone.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from mmrr.config import Rerank
from mmrr.context import Context
from mmrr.contracts import Options, SupportsUncached
from mmrr.errors import MmrrError
from mmrr.evaluation.trec import save_run
from mmrr.modeling import families
from mmrr.modeling.devices import resolve_devices
from mmrr.modeling.finite import ADVICE
from mmrr.modeling.loaded import LoadsEachTime
from mmrr.queries import identity
from mmrr.search.fusion import fuse
from mmrr.stages._scoring import Asked, CachedScoring, DenseScoring, cached_scoring, load_scorer, own_caches
from mmrr.stages._visual import asked as given
from mmrr.stages._visual import check_scorer, max_tokens
from mmrr.types import Query, Run, best_of_pages, rank, silent
from mmrr.workers import Work, on_devices
from mmrr.workspace import manifests
from mmrr.workspace.manifests import RerankContent, RerankShard
from mmrr.workspace.pages import Collection, read_content
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensors import read_kept_tokens

#: The most queries that are scored together, so that a page that they share is read once.
BATCH_QUERIES = 32
#: Candidates of a query whose dense scores are stored together: an interruption loses no more.
DENSE_PAGES = 16
#: With ``--device auto``, the fewest queries for which a further device loads the model.
_QUERIES_PER_DEVICE = 16
#: Tasks of each device where there are several, so that all end at about the same time; and the batches of a task.
_TASKS_PER_DEVICE, _TASK_BATCHES = 8, 64


class _Unit(NamedTuple):
    """Candidates of a query whose scores are in one shard."""

    key: str
    query: Query
    rows: list[int]


@dataclass(frozen=True)
class Candidates:
    """The first stage's run with its queries and its pages."""

    collection: Collection
    queries: list[Query]
    retrieved: Manifest | None  # None: the run is in memory alone
    run: Run

    def rows(self, query: Query) -> list[int]:
        """The rows of a query's candidates and of their tiles, in the first stage's order."""
        return [row for hit in self.run[query.query_id] for row in self.collection.images[hit.page_id]]


def rerank(
    context: Context, candidates: Candidates, cached: Manifest, options: Rerank, score_options: Mapping[str, str]
) -> Manifest:
    """Score each query's candidates and order them by their scores.

    ``score_options`` are fields of the scorer family's ``Score``, as text. A query whose candidates were scored before
    is not scored again. Raises MmrrError for options that exclude each other, and for a negative weight.
    """
    assert candidates.retrieved
    family = manifests.config(cached, "precache")["family"]
    module = families.load("scorers", family)
    check_scorer(family, candidates.queries)
    score_as = families.parse_options(module.Score, dict(score_options))
    if options.dense and score_options:
        raise MmrrError("--dense runs the whole model: leave out --exit-layer and every --score-option")
    _check_fusion(options)
    inputs = {"pages": candidates.collection.manifest.fingerprint, "retrieve": candidates.retrieved.fingerprint}
    how: dict[str, object] = {"dense": options.dense}
    if not options.dense:
        how = {"score": families.stored_options(score_as)}
        # The caches of candidates alone are no artifact, and an input with the name of a stage must be one.
        inputs["precache" if cached.path.name else "caches"] = cached.fingerprint
    # The config of the caches holds every setting of the scorer. The dense forward uses only its prompt and image size.
    scored = Spec("rerank", 1, {**cached.config, **how}, inputs, cached.model)
    # Fusion reuses the scores: their shards do not depend on its weight.
    spec = scored if options.fuse is None else replace(scored, config={**scored.config, "blend": options.fuse})
    workspace = context.workspace
    if done := workspace.done(spec):
        return done
    names = _Names(candidates.collection, cached, options.dense is not None)
    units = _units(candidates, names, scored, listwise=module.SPEC.listwise)
    missing = [unit for unit in units if not workspace.has_shard("rerank", unit.key)]
    load_ms = 0.0
    if missing:
        work = _Load(context, names, options, score_as)
        started = time.perf_counter()
        seconds = _score_all(context, work, missing, alone=module.SPEC.listwise or options.dense is not None)
        load_ms = max(0.0, 1000 * (time.perf_counter() - started - seconds))
    return _commit(workspace, spec, candidates, names, units, load_ms)


def _score_all(context: Context, load: _Load, missing: Sequence[_Unit], *, alone: bool) -> float:
    """Score the units on all devices. Returns the time in seconds."""
    devices = resolve_devices(context.machine.device)
    if context.machine.device == "auto":  # loading a model takes longer than a few queries
        devices = devices[: max(1, len(missing) // _QUERIES_PER_DEVICE)]
    in_order = iter(missing)
    asked = _batches([(unit.query, unit.rows) for unit in missing], alone)
    batches = [list(itertools.islice(in_order, len(batch))) for batch in asked]
    if len(devices) > 1:  # helper processes load their own models and report to this one
        silenced = Context(context.workspace, context.machine, silent, context.chosen, loaded=LoadsEachTime())
        load = replace(load, context=silenced)
        size = min(_TASK_BATCHES, max(1, -(-len(batches) // (len(devices) * _TASKS_PER_DEVICE))))
        tasks = [batches[first : first + size] for first in range(0, len(batches), size)]
    else:
        tasks = [batches]
    what, n = ("rerank", len(missing)) if not load.options.dense else ("dense", sum(len(unit.rows) for unit in missing))
    return on_devices(devices, load, tasks, context.progress(what, n))


def rerank_pages(
    context: Context, candidates: Candidates, cached: Manifest, options: Rerank, score_options: Mapping[str, str]
) -> Run:
    """The run of ``rerank``, computed in memory: nothing is written, and no earlier score is read.

    Raises MmrrError as ``rerank`` does.
    """
    module = families.load("scorers", manifests.config(cached, "precache")["family"])
    score_as = families.parse_options(module.Score, dict(score_options))
    _check_fusion(options)
    asked = [(query, candidates.rows(query)) for query in candidates.queries]
    found = score_pages(context, candidates.collection, cached, asked, score_as)
    of_row = {
        query.query_id: dict(zip(rows, logits.tolist(), strict=True))
        for (query, rows), logits in zip(asked, found, strict=True)
    }
    return _ordered(candidates, of_row, options.fuse)


def score_pages(
    context: Context,
    collection: Collection,
    cached: Manifest,
    asked: Sequence[Asked],
    options: Options | None = None,
) -> list[torch.Tensor]:
    """The scores (N,) of the pages at the given rows for each query, from their caches. Nothing is written.

    ``options``: the scorer family's ``Score``; None: its defaults. Raises MmrrError for scores that are not finite.
    """
    family = manifests.config(cached, "precache")["family"]
    module = families.load("scorers", family)
    check_scorer(family, (query for query, _ in asked))
    scoring = cached_scoring(context, collection, cached, module.Score() if options is None else options)
    batches = list(_batches(list(asked), module.SPEC.listwise))
    found: list[torch.Tensor] = []
    for batch, scores in zip(batches, scoring.batches(batches), strict=True):
        for (query, rows), logits in zip(batch, scores, strict=True):
            _expect_finite(collection, cached, query, rows, logits)
            found.append(logits)
    return found


def _check_fusion(options: Rerank) -> None:
    if options.fuse is not None and not 0 <= options.fuse < math.inf:
        raise MmrrError(f"--fuse {options.fuse}: expected 0 or more")


def _ordered(candidates: Candidates, of_row: Mapping[str, Mapping[int, float]], weight: float | None) -> Run:
    """The candidates of each query by their scores {query_id: {row: score}}, fused with the first stage if weighted."""
    pages = candidates.collection.pages
    run = {
        query_id: rank(best_of_pages((pages[row].page_id, score) for row, score in scores.items()))
        for query_id, scores in of_row.items()
    }
    return run if weight is None else fuse({query_id: candidates.run[query_id] for query_id in run}, run, weight)


@dataclass(frozen=True)
class _Names:
    """The names of candidates in shards. They name the content, so copies of a document share their scores."""

    collection: Collection
    cached: Manifest
    dense: bool  # the scores come from the images, whatever caches there are

    def of(self, row: int) -> str:
        """The shard of caches, or of images for a dense forward, and the number of the page in it."""
        pages = self.collection.shards[row]
        shard = pages if self.dense else manifests.content(self.cached, "precache")["shards"][pages]
        return f"{shard}/{self.collection.pages[row].number}"


def _units(candidates: Candidates, names: _Names, scored: Spec, *, listwise: bool) -> list[_Unit]:
    """The shards of every query: one, or with a dense forward one for every few pages.

    A shard depends on the query's text and image and on its candidates. Their order matters only to a listwise scorer,
    so others sort it away.
    """
    ordered = list if listwise else sorted
    units = []
    for query in candidates.queries:
        rows = candidates.rows(query)
        size = DENSE_PAGES if names.dense else max(1, len(rows))
        for first in range(0, max(1, len(rows)), size):
            part = rows[first : first + size]
            named = (*identity(query, max_tokens(candidates.collection)), *ordered(map(names.of, part)))
            units.append(_Unit(scored.shard_key(*named), query, part))
    return units


def _commit(
    workspace: Workspace,
    spec: Spec,
    candidates: Candidates,
    names: _Names,
    units: Sequence[_Unit],
    load_ms: float,
) -> Manifest:
    """Order each query's candidates by the scores in its shards, and commit the run."""
    of_row: dict[str, dict[int, float]] = {query.query_id: {} for query in candidates.queries}
    milliseconds = dict.fromkeys(of_row, 0.0)
    for unit in units:
        record = manifests.shard_record(workspace, "rerank", unit.key)
        of_row[unit.query.query_id] |= {row: record["logits"][names.of(row)] for row in unit.rows}
        milliseconds[unit.query.query_id] += record["score_ms"]
    timings = [
        {"query_id": query_id, "n_candidates": len(of_row[query_id]), "score_ms": round(score_ms, 3)}
        for query_id, score_ms in milliseconds.items()
    ]
    weight = spec.config.get("blend")
    reranked = _ordered(candidates, of_row, weight if isinstance(weight, float | int) else None)

    def write(folder: Path) -> None:
        save_run(reranked, folder)
        (folder / "timings.jsonl").write_text("".join(json.dumps(timing) + "\n" for timing in timings), "utf-8")

    content: RerankContent = {
        "queries": len(candidates.queries),
        "candidates": sum(map(len, reranked.values())),
        "shards": [unit.key for unit in units],
    }
    if not names.dense and (caches := own_caches(names.cached)):
        content["caches"] = caches
    return workspace.commit(spec, content, 0, {"load_ms": round(load_ms, 1)}, write)


@dataclass(frozen=True, slots=True)
class Rescored:
    """Scores from the caches and scores of forwards without a cache over the same tokens."""

    pairs: list[tuple[str, str, float, float]]  # query id, page id, score from the cache, score without it

    @property
    def largest(self) -> float:
        """The largest absolute difference."""
        return max((abs(cached - uncached) for _, _, cached, uncached in self.pairs), default=0.0)


def rescore(context: Context, candidates: Candidates, cached: Manifest, pruned: Manifest | None, n: int) -> Rescored:
    """Score ``n`` pairs of a run, spread over it evenly, from the caches and without them.

    Raises MmrrError if the family has no forward without a cache.
    """
    pairs = [(query, hit.page_id) for query in candidates.queries for hit in candidates.run[query.query_id]]
    chosen = [pairs[i * len(pairs) // n] for i in range(n)] if n < len(pairs) else pairs
    scorer, collection = load_scorer(context, cached), candidates.collection
    family = manifests.config(cached, "precache")["family"]
    module = families.load("scorers", family)
    check_scorer(family, candidates.queries)
    if not isinstance(scorer, SupportsUncached):
        raise MmrrError(f"{family} has no forward without a cache: leave out --rescore")
    options = module.Score()
    config = manifests.config(cached, "precache")
    reads = module.page_input(families.make_options(module.Prepare, config["options"]))
    from_cache = CachedScoring.load(context, collection, cached, scorer, options)
    kept_shards = manifests.content(pruned, "prune")["shards"] if pruned else {}
    found = []
    with context.progress("rescore", len(chosen)) as advance:
        for query, page_id in chosen:
            row = collection.row_of[page_id]
            page = collection.pages[row]
            kept = None
            if pruned:
                kept = read_kept_tokens(context.workspace, kept_shards[collection.shards[row]])[page.number]
            content = read_content(context.workspace, collection, page, reads)
            uncached = scorer.score_uncached(given(query, collection), content, kept, options)
            ((cached_score,),) = next(from_cache.batches([[(query, [row])]]))
            found.append((query.query_id, page_id, float(cached_score), uncached))
            advance(1)
    return Rescored(found)


def _batches(queries: list[Asked], alone: bool) -> Iterator[list[Asked]]:
    """Batches of queries in order: several together where that halves the pages to read, else one by one."""
    for first in range(0, len(queries), BATCH_QUERIES):
        some = queries[first : first + BATCH_QUERIES]
        one_by_one, pages = sum(len(rows) for _, rows in some), len({row for _, rows in some for row in rows})
        if one_by_one >= 2 * pages and not alone:
            yield some
        else:
            yield from ([one] for one in some)


@dataclass(frozen=True)
class _Load:
    """Loads the scorer on a device. It is sent to helper processes where there are several devices."""

    context: Context
    names: _Names
    options: Rerank
    score_as: Options

    def __call__(self, device: torch.device) -> Work:
        context = replace(self.context, machine=replace(self.context.machine, device=str(device)))
        collection, cached, workspace = self.names.collection, self.names.cached, context.workspace
        scoring: DenseScoring | CachedScoring
        if self.options.dense:
            scoring = DenseScoring.load(context, collection, cached, self.options.dense)
        else:
            scoring = cached_scoring(context, collection, cached, self.score_as)

        def score(task: Sequence[Sequence[_Unit]], advance: Callable[[int], None]) -> None:
            started = time.perf_counter()
            asked = [[(unit.query, unit.rows) for unit in batch] for batch in task]
            for batch, scores in zip(task, scoring.batches(asked), strict=True):
                # A query's time is its candidates' share of the batch's time.
                score_ms = 1000 * (time.perf_counter() - started) / max(1, sum(len(unit.rows) for unit in batch))
                for unit, logits in zip(batch, scores, strict=True):
                    record = self._record(unit, logits, score_ms)
                    workspace.commit_shard("rerank", unit.key, workspace.scratch(), {**record})
                    advance(len(unit.rows) if self.options.dense else 1)
                started = time.perf_counter()

        return score

    def _record(self, unit: _Unit, logits: torch.Tensor, page_ms: float) -> RerankShard:
        _expect_finite(self.names.collection, self.names.cached, unit.query, unit.rows, logits)
        logits_of: dict[str, float] = dict(zip(map(self.names.of, unit.rows), logits.tolist(), strict=True))
        return {"logits": logits_of, "score_ms": round(page_ms * len(unit.rows), 3)}


def _expect_finite(
    collection: Collection, cached: Manifest, query: Query, rows: Sequence[int], logits: torch.Tensor
) -> None:
    if not torch.isfinite(logits).all():
        row = rows[int(torch.isfinite(logits).int().argmin())]
        raise MmrrError(
            f"query {query.query_id}: {cached.model and cached.model['id']} gave a score that is not finite for "
            f"page {collection.pages[row].page_id}; {ADVICE}"
        )
