"""Stage ``rerank``: the first stage's run and the page caches -> the reranked run, one shard per query."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmrr.config import DenseOrder, Machine, Rerank
from mmrr.contracts import Options, Scorer, SupportsDense, SupportsUncached
from mmrr.errors import MmrrError
from mmrr.evaluation.trec import write_run
from mmrr.modeling import families
from mmrr.modeling.checkpoints import recorded
from mmrr.modeling.devices import resolve_device, resolve_dtype
from mmrr.search.fusion import fuse
from mmrr.types import PageCache, Progress, Query, Run, rank, silent
from mmrr.workspace.pages import Collection, read_content, read_image
from mmrr.workspace.store import Manifest, Spec, Workspace
from mmrr.workspace.tensors import PageCacheReader, PageCaches, Resident, page_name, read_kept_tokens

T = TypeVar("T")
#: What scoring holds at once, at most, in portions as stored, on the CPU and elsewhere: this one, the next one, and
#: what a family makes of it meanwhile. Elsewhere that may be all of it decoded, of int4 four times as much.
_COPIES, _COPIES_ELSEWHERE = 3, 6
#: Queries scored together at most, so that a page which they share is read once for all of them.
TOGETHER = 32
#: A query's candidates' rows.
_Asked = tuple[Query, list[int]]
#: The scores of each query's candidates.
_Score = Callable[[Sequence[_Asked]], list[torch.Tensor]]


def rerank(
    workspace: Workspace,
    collection: Collection,
    cached: Manifest,
    retrieved: Manifest,
    run: Run,
    queries: list[Query],
    options: Rerank,
    score_options: dict[str, str],
    machine: Machine,
    progress: Progress = silent,
) -> Manifest:
    """Score each query's candidates in ``run`` and order them anew.

    ``score_options`` are the scorer family's ``Score`` by name. A query whose candidates were scored before is not
    scored again. Raises MmrrError for options that exclude each other, and for a negative weight.
    """
    assert cached.model
    module = families.load("scorers", cached.config["family"])
    dense, score_as = options.dense, families.parse_options(module.Score, score_options)
    if dense and score_options:
        raise MmrrError("--dense runs the whole model: it goes with no exit layer and no other option of scoring")
    if options.blend is not None and not 0 <= options.blend < math.inf:
        raise MmrrError(f"--blend {options.blend}: expected 0 or more")
    how = {"dense": dense} if dense else {"score": families.stored_options(score_as)}
    inputs = {
        "pages": collection.manifest.fingerprint,
        "retrieve": retrieved.fingerprint,
        "precache": cached.fingerprint,
    }
    # The caches hold all of the scorer's own settings; the dense forward depends on the wording and pixels alone.
    scored = Spec("rerank", 1, {**cached.config, **how}, inputs, cached.model)
    # What a page's own score is does not depend on what it is added to.
    spec = scored if options.blend is None else replace(scored, config={**scored.config, "blend": options.blend})
    if done := workspace.done(spec):
        return done

    candidates = {query.query_id: [collection.row_of[hit.page_id] for hit in run[query.query_id]] for query in queries}
    # Sorted: the score of a page does not depend on where the first stage put it, unless it is scored in a list.
    ordered = list if module.SPEC.listwise else sorted
    keys = {
        query.query_id: scored.shard_key(
            query.text, *ordered(_name(collection, cached, row) for row in candidates[query.query_id])
        )
        for query in queries
    }
    missing = [query for query in queries if not workspace.has_shard("rerank", keys[query.query_id])]
    load_ms = 0.0
    if missing:
        started = time.perf_counter()
        score = _dense(workspace, collection, cached, machine, dense) if dense else None
        score = score or _from_cache(
            workspace, collection, cached, _scorer(workspace, cached, machine), score_as, machine
        )
        load_ms = 1000 * (time.perf_counter() - started)
        alone = module.SPEC.listwise or dense is not None
        with progress("rerank", len(missing)) as advance:
            for asked in _together([(query, candidates[query.query_id]) for query in missing], alone):
                for query, record in _records(collection, cached, asked, score):
                    workspace.commit_shard("rerank", keys[query.query_id], workspace.scratch(), record)
                    advance(1)

    reranked: Run = {}
    timings = []
    for query in queries:
        record = workspace.shard_record("rerank", keys[query.query_id])
        rows = candidates[query.query_id]
        reranked[query.query_id] = rank(
            {collection.pages[row].page_id: record["logits"][_name(collection, cached, row)] for row in rows}
        )
        timings.append({"query_id": query.query_id, "n_candidates": len(rows), "score_ms": record["score_ms"]})
    if options.blend is not None:
        reranked = fuse({query_id: run[query_id] for query_id in reranked}, reranked, options.blend)

    def write(folder: Path) -> None:
        with (folder / "run.trec").open("w", encoding="utf-8", newline="\n") as file:
            write_run(reranked, file)
        (folder / "timings.jsonl").write_text("".join(json.dumps(timing) + "\n" for timing in timings), "utf-8")

    candidate_count = sum(map(len, reranked.values()))
    content = {"queries": len(queries), "candidates": candidate_count, "shards": list(keys.values())}
    return workspace.commit(spec, content, 0, {"load_ms": round(load_ms, 1)}, write)


@dataclass(frozen=True, slots=True)
class Rescored:
    """Scores from the caches beside those of plain forwards over the same tokens."""

    pairs: list[tuple[str, str, float, float]]  # query id, page id, cached, plain

    @property
    def largest(self) -> float:
        return max((abs(cached - plain) for _, _, cached, plain in self.pairs), default=0.0)


def rescore(
    workspace: Workspace,
    collection: Collection,
    cached: Manifest,
    pruned: Manifest | None,
    run: Run,
    queries: list[Query],
    n: int,
    machine: Machine,
    progress: Progress = silent,
) -> Rescored:
    """Score ``n`` pairs of a run, spread over it evenly, from the caches and without them."""
    pairs = [(query, hit.page_id) for query in queries for hit in run[query.query_id]]
    chosen = [pairs[i * len(pairs) // n] for i in range(n)] if n < len(pairs) else pairs
    scorer = _scorer(workspace, cached, machine)
    module = families.load("scorers", cached.config["family"])
    if not isinstance(scorer, SupportsUncached):
        raise MmrrError(f"{cached.config['family']} has no forward without a cache to compare a pair's score with")
    options = module.Score()
    reads = module.page_input(families.make_options(module.Prepare, cached.config["options"]))
    from_cache = _from_cache(workspace, collection, cached, scorer, options, machine)
    found = []
    with progress("rescore", len(chosen)) as advance:
        for query, page_id in chosen:
            row = collection.row_of[page_id]
            page = collection.pages[row]
            keep = None
            if pruned:
                keep = read_kept_tokens(workspace, pruned.content["shards"][collection.shards[row]])[page.number]
            plain = scorer.score_uncached(query.text, read_content(workspace, collection, page, reads), keep, options)
            found.append((query.query_id, page_id, float(from_cache([(query, [row])])[0]), plain))
            advance(1)
    return Rescored(found)


def _name(collection: Collection, cached: Manifest, row: int) -> str:
    """A candidate's name in a query's shard: by content, so that a copy of a document shares its scores."""
    return f"{cached.content['shards'][collection.shards[row]]}/{collection.pages[row].number}"


def _together(asked: list[_Asked], alone: bool) -> Iterator[list[_Asked]]:
    """Queries in turn: several at once where one by one they would read at least twice as many pages."""
    for first in range(0, len(asked), TOGETHER):
        some = asked[first : first + TOGETHER]
        one_by_one, pages = sum(len(rows) for _, rows in some), len({row for _, rows in some for row in rows})
        if one_by_one >= 2 * pages and not alone:
            yield some
        else:
            yield from ([one] for one in some)


def _records(
    collection: Collection, cached: Manifest, asked: list[_Asked], score: _Score
) -> Iterator[tuple[Query, dict[str, Any]]]:
    """Each query's logits by candidate, and its time: of queries scored together its candidates' share."""
    started = time.perf_counter()
    scores = score(asked)
    score_ms = 1000 * (time.perf_counter() - started) / max(1, sum(len(rows) for _, rows in asked))
    for (query, rows), logits in zip(asked, scores, strict=True):
        if not torch.isfinite(logits).all():
            raise MmrrError(f"query {query.query_id}: the model gave scores that are not numbers; try --dtype float32")
        names = [_name(collection, cached, row) for row in rows]
        logits_of = dict(zip(names, logits.tolist(), strict=True))
        yield query, {"logits": logits_of, "score_ms": round(score_ms * len(rows), 3)}


def _from_cache(
    workspace: Workspace, collection: Collection, cached: Manifest, scorer: Scorer, options: Options, machine: Machine
) -> _Score:
    files = PageCacheReader(workspace)
    shared = files.read(cached.content["shared"], "shared")
    device = resolve_device(machine.device)
    reader = Resident(files, device, machine.resident)
    listwise = families.load("scorers", cached.config["family"]).SPEC.listwise

    def states(rows: Sequence[int]) -> PageCaches:
        shards = [cached.content["shards"][collection.shards[row]] for row in rows]
        names = [page_name(collection.pages[row]) for row in rows]
        return PageCaches(reader, list(zip(shards, names, strict=True)))

    def score(asked: Sequence[_Asked]) -> list[torch.Tensor]:
        if listwise:
            return [
                scorer.score(scorer.encode_query(query.text), states(rows), shared, options) if rows else torch.zeros(0)
                for query, rows in asked
            ]
        queries = [scorer.encode_query(query.text) for query, _ in asked]
        pages = list(dict.fromkeys(row for _, rows in asked for row in rows))
        found: list[dict[int, float]] = [dict.fromkeys(rows, math.nan) for _, rows in asked]
        copies = _COPIES if device.type == "cpu" else _COPIES_ELSEWHERE
        portions = _portions(zip(pages, states(pages), strict=True), machine.memory // copies)
        for part in _ahead(_moved(portions, device)):
            for query, own in zip(queries, found, strict=True):
                mine = {row: state for row, state in part.items() if row in own}
                if mine:
                    logits = scorer.score(query, list(mine.values()), shared, options)
                    own.update(zip(mine, logits.tolist(), strict=True))
        return [torch.tensor([own[row] for row in rows]) for own, (_, rows) in zip(found, asked, strict=True)]

    return score


def _portions(states: Iterable[tuple[int, PageCache]], most_bytes: int) -> Iterator[dict[int, PageCache]]:
    """Page caches in turn, as many at a time as fit; at least one."""
    portion: dict[int, PageCache] = {}
    size = 0
    for row, state in states:
        own = sum(tensor.nbytes for tensor in state.values())
        if portion and size + own > most_bytes:
            yield portion
            portion, size = {}, 0
        portion[row] = state
        size += own
    if portion:
        yield portion


def _moved(portions: Iterator[dict[int, PageCache]], device: torch.device) -> Iterator[dict[int, PageCache]]:
    """Each portion on the device as it is stored: what is quantised travels small and is decoded there.

    To CUDA through pinned memory, in a stream of its own, so that a portion travels while the one before it is scored.
    """
    if device.type == "cpu":
        yield from portions
        return
    cuda = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def send(tensor: torch.Tensor) -> torch.Tensor:
        if cuda is None or tensor.device.type == "cuda":
            return tensor.to(device)
        return tensor.pin_memory().to(device, non_blocking=True)

    for portion in portions:
        with torch.cuda.stream(cuda) if cuda else nullcontext():
            moved = {row: {name: send(tensor) for name, tensor in state.items()} for row, state in portion.items()}
        if cuda:  # whoever scores it finds it there; its memory is free again only after its scores were read
            cuda.synchronize()
        yield moved


def _ahead(parts: Iterator[T]) -> Iterator[T]:
    """The same, each read while the one before it is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = pool.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = pool.submit(next, parts, None)
            yield part


def _dense(
    workspace: Workspace, collection: Collection, cached: Manifest, machine: Machine, order: DenseOrder
) -> _Score:
    scorer = _scorer(workspace, cached, machine)
    if not isinstance(scorer, SupportsDense):
        raise MmrrError(f"{cached.config['family']} has no dense forward: leave out --dense")

    def score(asked: Sequence[_Asked]) -> list[torch.Tensor]:
        def of(query: Query, row: int) -> torch.Tensor:
            scores: torch.Tensor = scorer.dense(query.text, [read_image(workspace, collection.pages[row])], order)
            return scores[0]

        return [torch.tensor([float(of(query, row)) for row in rows]) for query, rows in asked]

    return score


def _scorer(workspace: Workspace, cached: Manifest, machine: Machine) -> Scorer:
    """The scorer that made the caches: same checkpoint, same options, same number format."""
    assert cached.model
    module = families.load("scorers", cached.config["family"])
    prepare = families.make_options(module.Prepare, cached.config["options"])
    if module.prompt(prepare) != cached.config["wording"]:
        raise MmrrError("the page caches were made with another prompt than this version's; run mmrr precache again")
    device = resolve_device(machine.device)
    dtype = resolve_dtype(cached.model["dtype"], device)
    return module.load(recorded(cached.model, workspace.hashes, module.SPEC.model_types), prepare, device, dtype)
