"""Stage ``rerank``: the first stage's run and the page caches -> the reranked run, one shard per query."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmrr.config import DenseOrder, Rerank
from mmrr.context import Context
from mmrr.contracts import Options, Scorer, SupportsDense, SupportsUncached
from mmrr.errors import MmrrError
from mmrr.evaluation.trec import save_run
from mmrr.modeling import families
from mmrr.modeling.cache_streams import ahead, moved, portions
from mmrr.modeling.checkpoints import recorded
from mmrr.modeling.devices import resolve_device, resolve_dtype
from mmrr.modeling.finite import ADVICE
from mmrr.queries import identity
from mmrr.search.fusion import fuse
from mmrr.stages._visual import asked as given
from mmrr.stages._visual import check_scorer, encode, max_tokens
from mmrr.types import PageCache, Query, Run, best_of_pages, rank
from mmrr.workspace import manifests
from mmrr.workspace.manifests import RerankConfig, RerankContent, RerankShard
from mmrr.workspace.pages import Collection, read_content, read_image
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensors import PageCacheReader, PageCaches, Resident, page_name, read_kept_tokens

#: Divisor of the memory budget, on the CPU and on other devices: the live copies of a portion of page caches. They are
#: the portion that is scored, the next one, and what the family decodes; from int4 that is four times as large.
_COPIES, _COPIES_ON_DEVICE = 3, 6
#: The most queries that are scored together, so that a page that they share is read once.
BATCH_QUERIES = 32
#: A query and the rows of its candidates.
_Candidates = tuple[Query, list[int]]
#: Gives the scores (N,) of the candidates of each query.
_Score = Callable[[Sequence[_Candidates]], list[torch.Tensor]]


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
    how = {"dense": options.dense} if options.dense else {"score": families.stored_options(score_as)}
    inputs = {
        "pages": candidates.collection.manifest.fingerprint,
        "retrieve": candidates.retrieved.fingerprint,
        # The caches of candidates alone are no artifact, and an input with the name of a stage must be one.
        "precache" if cached.path.name else "caches": cached.fingerprint,
    }
    # The config of the caches holds every setting of the scorer. The dense forward uses only its prompt and image size.
    scored = Spec("rerank", 1, {**cached.config, **how}, inputs, cached.model)
    # Fusion reuses the scores: their shards do not depend on its weight.
    spec = scored if options.fuse is None else replace(scored, config={**scored.config, "blend": options.fuse})
    workspace = context.workspace
    if done := workspace.done(spec):
        return done
    keys = _shard_keys(candidates, cached, scored, listwise=module.SPEC.listwise)
    missing = [query for query in candidates.queries if not workspace.has_shard("rerank", keys[query.query_id])]
    load_ms = 0.0
    if missing:
        started = time.perf_counter()
        if options.dense:
            score = _score_dense(context, candidates.collection, cached, options.dense)
        else:
            score = _cached_scoring(context, candidates.collection, cached, score_as)
        load_ms = 1000 * (time.perf_counter() - started)
        alone = module.SPEC.listwise or options.dense is not None
        batches = _batches([(query, candidates.rows(query)) for query in missing], alone)
        with context.progress("rerank", len(missing)) as advance:
            for batch in batches:
                for query, record in _records(candidates.collection, cached, batch, score):
                    workspace.commit_shard("rerank", keys[query.query_id], workspace.scratch(), {**record})
                    advance(1)
    return _commit(workspace, spec, candidates, cached, keys, load_ms)


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
    asked: Sequence[_Candidates],
    options: Options | None = None,
) -> list[torch.Tensor]:
    """The scores (N,) of the pages at the given rows for each query, from their caches. Nothing is written.

    ``options``: the scorer family's ``Score``; None: its defaults. Raises MmrrError for scores that are not finite.
    """
    family = manifests.config(cached, "precache")["family"]
    module = families.load("scorers", family)
    check_scorer(family, (query for query, _ in asked))
    score = _cached_scoring(context, collection, cached, module.Score() if options is None else options)
    found: list[torch.Tensor] = []
    for batch in _batches(list(asked), module.SPEC.listwise):
        for (query, rows), logits in zip(batch, score(batch), strict=True):
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


def _shard_keys(candidates: Candidates, cached: Manifest, scored: Spec, *, listwise: bool) -> dict[str, str]:
    """The shard of each query: it depends on the query's text and image and on its candidates.

    The order of the candidates matters only to a listwise scorer, so others sort it away.
    """
    ordered = list if listwise else sorted
    collection = candidates.collection
    return {
        query.query_id: scored.shard_key(
            *identity(query, max_tokens(collection)),
            *ordered(_name(collection, cached, row) for row in candidates.rows(query)),
        )
        for query in candidates.queries
    }


def _commit(
    workspace: Workspace,
    spec: Spec,
    candidates: Candidates,
    cached: Manifest,
    keys: Mapping[str, str],
    load_ms: float,
) -> Manifest:
    """Order each query's candidates by the scores in its shard, and commit the run."""
    collection, timings = candidates.collection, []
    of_row: dict[str, dict[int, float]] = {}
    for query in candidates.queries:
        record = manifests.shard_record(workspace, "rerank", keys[query.query_id])
        rows = candidates.rows(query)
        of_row[query.query_id] = {row: record["logits"][_name(collection, cached, row)] for row in rows}
        timings.append({"query_id": query.query_id, "n_candidates": len(rows), "score_ms": record["score_ms"]})
    weight = spec.config.get("blend")
    reranked = _ordered(candidates, of_row, weight if isinstance(weight, float | int) else None)

    def write(folder: Path) -> None:
        save_run(reranked, folder)
        (folder / "timings.jsonl").write_text("".join(json.dumps(timing) + "\n" for timing in timings), "utf-8")

    content: RerankContent = {
        "queries": len(candidates.queries),
        "candidates": sum(map(len, reranked.values())),
        "shards": list(keys.values()),
    }
    if caches := _own_caches(cached):
        content["caches"] = caches
    return workspace.commit(spec, content, 0, {"load_ms": round(load_ms, 1)}, write)


def _own_caches(cached: Manifest) -> list[str]:
    """The shards of the caches of single candidates, and of what these share."""
    known = manifests.content(cached, "precache")
    return [known["shared"], *known["singles"].values()] if "singles" in known else []


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
    scorer, collection = _scorer(context, cached), candidates.collection
    family = manifests.config(cached, "precache")["family"]
    module = families.load("scorers", family)
    check_scorer(family, candidates.queries)
    if not isinstance(scorer, SupportsUncached):
        raise MmrrError(f"{family} has no forward without a cache: leave out --rescore")
    options = module.Score()
    config = manifests.config(cached, "precache")
    reads = module.page_input(families.make_options(module.Prepare, config["options"]))
    from_cache = _CachedScoring.load(context, collection, cached, scorer, options)
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
            found.append((query.query_id, page_id, float(from_cache([(query, [row])])[0]), uncached))
            advance(1)
    return Rescored(found)


def _name(collection: Collection, cached: Manifest, row: int) -> str:
    """A candidate's name in a query's shard. It names the content, so copies of a document share their scores."""
    shards = manifests.content(cached, "precache")["shards"]
    return f"{shards[collection.shards[row]]}/{collection.pages[row].number}"


def _batches(queries: list[_Candidates], alone: bool) -> Iterator[list[_Candidates]]:
    """Batches of queries in order: several together where that halves the pages to read, else one by one."""
    for first in range(0, len(queries), BATCH_QUERIES):
        some = queries[first : first + BATCH_QUERIES]
        one_by_one, pages = sum(len(rows) for _, rows in some), len({row for _, rows in some for row in rows})
        if one_by_one >= 2 * pages and not alone:
            yield some
        else:
            yield from ([one] for one in some)


def _records(
    collection: Collection, cached: Manifest, batch: list[_Candidates], score: _Score
) -> Iterator[tuple[Query, RerankShard]]:
    """The scores of each query, and its time: its candidates' share of the batch's time."""
    started = time.perf_counter()
    scores = score(batch)
    score_ms = 1000 * (time.perf_counter() - started) / max(1, sum(len(rows) for _, rows in batch))
    for (query, rows), logits in zip(batch, scores, strict=True):
        _expect_finite(collection, cached, query, rows, logits)
        names = [_name(collection, cached, row) for row in rows]
        logits_of: dict[str, float] = dict(zip(names, logits.tolist(), strict=True))
        yield query, {"logits": logits_of, "score_ms": round(score_ms * len(rows), 3)}


def _expect_finite(
    collection: Collection, cached: Manifest, query: Query, rows: Sequence[int], logits: torch.Tensor
) -> None:
    if not torch.isfinite(logits).all():
        row = rows[int(torch.isfinite(logits).int().argmin())]
        raise MmrrError(
            f"query {query.query_id}: {cached.model and cached.model['id']} gave a score that is not finite for "
            f"page {collection.pages[row].page_id}; {ADVICE}"
        )


@dataclass(frozen=True)
class _CachedScoring:
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
    ) -> _CachedScoring:
        """Open the page caches for a scorer that is on its device."""
        files = PageCacheReader(context.workspace)
        shared = files.read(manifests.content(cached, "precache")["shared"], "shared")
        device = resolve_device(context.machine.device)
        reader = Resident(files, device, context.machine.resident)
        listwise = families.load("scorers", manifests.config(cached, "precache")["family"]).SPEC.listwise
        copies = _COPIES if device.type == "cpu" else _COPIES_ON_DEVICE
        most_bytes = context.machine.memory // copies
        return cls(scorer, options, listwise, collection, cached, reader, shared, device, most_bytes)

    def __call__(self, batch: Sequence[_Candidates]) -> list[torch.Tensor]:
        """The scores (N,) of the candidates of each query."""
        return self._score_lists(batch) if self.listwise else self._score_pages(batch)

    def _score_lists(self, batch: Sequence[_Candidates]) -> list[torch.Tensor]:
        """A listwise scorer gets all candidates of a query; each page is read when the scorer asks for it."""

        def one(query: Query, rows: Sequence[int]) -> torch.Tensor:
            encoded = encode(self.scorer, query, self.collection)
            return self.scorer.score(encoded, self._caches(rows), self.shared, self.options)

        return [one(query, rows) if rows else torch.zeros(0) for query, rows in batch]

    def _score_pages(self, batch: Sequence[_Candidates]) -> list[torch.Tensor]:
        """Other scorers get the pages of the whole batch in portions that fit the memory; each page is read once."""
        queries = [encode(self.scorer, query, self.collection) for query, _ in batch]
        # In one order, whatever the other queries are: the order of a product's rows changes its last bits.
        pages = sorted({row for _, rows in batch for row in rows})
        found: list[dict[int, float]] = [dict.fromkeys(rows, math.nan) for _, rows in batch]
        stored = portions(zip(pages, self._caches(pages), strict=True), self.most_bytes)
        for portion in ahead(moved(stored, self.device)):
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


def _cached_scoring(context: Context, collection: Collection, cached: Manifest, options: Options) -> _CachedScoring:
    """What scores candidates from page caches; it stays in memory where models do, with its open files."""
    return context.kept(
        "page caches",
        cached,
        lambda: _CachedScoring.load(context, collection, cached, _scorer(context, cached), options),
        collection.manifest.fingerprint,
        repr(options),
        *_own_caches(cached),
    )


def _score_dense(context: Context, collection: Collection, cached: Manifest, order: DenseOrder) -> _Score:
    """The model's own full forward for each page. Raises MmrrError if the family has none."""
    scorer = _scorer(context, cached)
    if not isinstance(scorer, SupportsDense):
        family = manifests.config(cached, "precache")["family"]
        raise MmrrError(f"{family} has no dense forward: leave out --dense")

    def one(query: Query, row: int) -> float:
        image = read_image(context.workspace, collection.pages[row])
        return float(scorer.dense(given(query, collection), [image], order)[0])

    return lambda batch: [torch.tensor([one(query, row) for row in rows]) for query, rows in batch]


def _scorer(context: Context, cached: Manifest) -> Scorer:
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


def open_scorer(context: Context, cached: Manifest) -> Scorer:
    """The scorer that made the caches. Raises MmrrError if its prompt has changed since."""
    return _scorer(context, cached)
