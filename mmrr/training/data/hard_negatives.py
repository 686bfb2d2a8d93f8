"""Pairs out of a first-stage run: what is relevant, what was found and is not, and some of all the rest.

Knows runs, judgements and page images, not models. The images are copied beside the pairs, so that the folder can be
moved and the workspace removed.
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
class Mined:
    """One query with its pages: those that answer it, those that look as if, and any others."""

    query: Query
    relevant: list[Page]
    hard: list[Page]
    random: list[Page]


@dataclass(frozen=True, slots=True)
class Mining:
    """All queries, and what was left out."""

    queries: list[Mined]
    unjudged: list[str] = field(default_factory=list)  # queries without a relevant page in the index
    unknown: list[str] = field(default_factory=list)  # relevant pages that the index does not have


def check(options: Mine) -> None:
    """Raises MmrrError for numbers that cannot be met."""
    if options.top_k < options.skip + options.negatives:
        raise MmrrError(
            f"--top-k {options.top_k}: fewer than --skip {options.skip} plus --negatives {options.negatives} candidates"
        )


def mine(collection: Collection, queries: Sequence[Query], run: Run, qrels: Qrels, options: Mine) -> Mining:
    """Choose pages for each query; the same seed chooses the same, whatever other queries there are.

    Pages are told apart by their image: a copy of a relevant page in another document is no wrong page. Raises
    MmrrError if no query has a relevant page in the index.
    """
    pages = {page.page_id: page for page in collection.pages}
    relevant: dict[str, dict[str, Page]] = {}  # by text: the same question may have been judged twice
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
        right = relevant[query.text]
        if not right:
            unjudged.append(query.query_id)
            continue
        rng = random.Random(f"{options.seed}/{query.query_id}")
        candidates = {pages[hit.page_id].sha256: pages[hit.page_id] for hit in run.get(query.query_id, [])}
        wrong = [page for sha256, page in candidates.items() if sha256 not in right]
        taken = set(right) | {page.sha256 for page in wrong[: options.skip]}
        wrong = wrong[options.skip : options.top_k]
        hard = rng.sample(wrong, min(options.negatives, len(wrong)))
        taken |= {page.sha256 for page in hard}
        found.append(Mined(query, list(right.values()), hard, _others(collection.pages, taken, options.random, rng)))
    if not found:
        judged = next((page_id for row in qrels.values() for page_id, grade in row.items() if grade > 0), "nothing")
        raise MmrrError(
            f"none of the {len(queries)} queries has a relevant page in the index "
            f"(judged relevant: {judged}; indexed: {collection.pages[0].page_id})"
        )
    return Mining(found, unjudged, sorted(set(unknown)))


def _others(pages: Sequence[Page], taken: set[str], n: int, rng: random.Random) -> list[Page]:
    """``n`` pages of other images, fewer where there are no more: drawn blindly, a list a query would be long."""
    chosen: list[Page] = []
    for _ in range(20 * n):
        if len(chosen) == n:
            break
        page = rng.choice(pages)
        if page.sha256 not in taken:
            taken = taken | {page.sha256}
            chosen.append(page)
    return chosen


def write(workspace: Workspace, mining: Mining, folder: Path, progress: Progress = silent) -> Path:
    """Write ``images/`` and then ``pairs.jsonl``; its path. Images that are there already are not copied again."""
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
                aside = target.with_suffix(".new")
                aside.write_bytes(read_image_file(workspace, page))
                aside.replace(target)
            advance(1)
    write_atomically(folder / PAIRS, "".join(lines))
    return folder / PAIRS
