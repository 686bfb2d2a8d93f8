"""Pairs from a first-stage run: relevant pages, hard negatives (found but not relevant) and random negatives.

Knows runs, judgements and page images, not models. The images are copied into the folder of the pairs, so that the
folder can be moved and the workspace removed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmrr.config import Mine
from mmrr.errors import MmrrError
from mmrr.types import Page, Progress, Qrels, Query, Run, silent
from mmrr.workspace.files import write_atomically
from mmrr.workspace.pages import Collection, read_image_file
from mmrr.workspace.store import Workspace

PAIRS, IMAGES = "pairs.jsonl", "images"


@dataclass(frozen=True, slots=True)
class MinedQuery:
    """One query with its relevant pages, hard negatives and random negatives."""

    query: Query
    relevant: list[Page]
    hard: list[Page]
    random: list[Page]


@dataclass(frozen=True, slots=True)
class MiningResult:
    """All queries, and what was left out."""

    queries: list[MinedQuery]
    unjudged: list[str] = field(default_factory=list)  # queries without a relevant page in the index
    unknown: list[str] = field(default_factory=list)  # relevant pages that are not in the index


def check(options: Mine) -> None:
    """Raise MmrrError if ``top_k`` leaves fewer candidates than hard negatives are asked for."""
    if options.top_k < options.skip + options.negatives:
        raise MmrrError(
            f"--top-k {options.top_k}: fewer than --skip {options.skip} plus --negatives {options.negatives}; "
            "use a larger --top-k"
        )


def mine(collection: Collection, queries: Sequence[Query], run: Run, qrels: Qrels, options: Mine) -> MiningResult:
    """Choose the pages of each query. The choice depends on the seed and the query, not on the other queries.

    Pages with the same image count as one: a copy of a relevant page in another document is no negative.

    Raises:
        MmrrError: No query has a relevant page in the index.
    """
    pages = {page.page_id: page for page in collection.pages}
    relevant: dict[str, dict[str, Page]] = {}  # by query text: several query ids may share one
    unknown = []
    for query in queries:
        known = relevant.setdefault(query.text, {})
        for page_id, grade in qrels.get(query.query_id, {}).items():
            if grade > 0 and page_id in pages:
                known.setdefault(pages[page_id].sha256, pages[page_id])
            elif grade > 0:
                unknown.append(page_id)
    found, unjudged = [], []
    for query in queries:
        answers = relevant[query.text]
        if not answers:
            unjudged.append(query.query_id)
            continue
        rng = random.Random(f"{options.seed}/{query.query_id}")
        candidates = {pages[hit.page_id].sha256: pages[hit.page_id] for hit in run.get(query.query_id, [])}
        wrong = [page for sha256, page in candidates.items() if sha256 not in answers]
        excluded = set(answers) | {page.sha256 for page in wrong[: options.skip]}
        wrong = wrong[options.skip : options.top_k]
        hard = rng.sample(wrong, min(options.negatives, len(wrong)))
        excluded |= {page.sha256 for page in hard}
        random_pages = _sample(collection.whole_pages(), excluded, options.random, rng)
        found.append(MinedQuery(query, list(answers.values()), hard, random_pages))
    if not found:
        judged = next((page_id for row in qrels.values() for page_id, grade in row.items() if grade > 0), "nothing")
        raise MmrrError(
            f"none of the {len(queries)} queries has a relevant page in the index "
            f"(judged relevant: {judged}; indexed: {collection.pages[0].page_id})"
        )
    return MiningResult(found, unjudged, sorted(set(unknown)))


def _sample(pages: Sequence[Page], excluded: set[str], n: int, rng: random.Random) -> list[Page]:
    """Up to ``n`` pages with other images than ``excluded`` and each other.

    Rejection sampling: it needs no list of the allowed pages for every query.
    """
    chosen: list[Page] = []
    for _ in range(20 * n):
        if len(chosen) == n:
            break
        page = rng.choice(pages)
        if page.sha256 not in excluded:
            excluded = excluded | {page.sha256}
            chosen.append(page)
    return chosen


def write(workspace: Workspace, mining: MiningResult, folder: Path, progress: Progress = silent) -> Path:
    """Write ``images/``, then ``pairs.jsonl``, and return the path of the latter. Existing images are kept."""
    lines: dict[str, None] = {}
    images: dict[str, Page] = {}
    for mined in mining.queries:
        for page in (*mined.relevant, *mined.hard, *mined.random):
            name = f"{IMAGES}/{page.sha256[:20]}.png"
            images[name] = page
            record = {
                "query": mined.query.text,
                "image": name,
                "relevant": page in mined.relevant,
                "query_id": mined.query.query_id,
                "page_id": page.page_id,
            }
            lines[json.dumps(record, ensure_ascii=False) + "\n"] = None
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    with progress("copy images", len(images)) as advance:
        for name, page in images.items():
            target = folder / name
            if not target.exists():
                write_atomically(target, read_image_file(workspace, page))
            advance(1)
    write_atomically(folder / PAIRS, "".join(lines))
    return folder / PAIRS
