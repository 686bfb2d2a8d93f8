"""A teacher's scores as training data: ranked lists for ZipRerank, pairs with a probability for a yes/no reranker.

Knows runs, queries and page images, not models. The images are copied into the folder of the lists, so that the folder
can be moved and the workspace removed.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrr.errors import MmrrError
from mmrr.types import Hit, Page, Progress, Query, Run, silent
from mmrr.workspace.files import write_atomically
from mmrr.workspace.pages import Collection, read_image_file
from mmrr.workspace.store import Workspace

LISTS, PAIRS, IMAGES = "lists.jsonl", "pairs.jsonl", "images"


@dataclass(frozen=True, slots=True)
class Distill:
    """What is kept of a teacher's ranking."""

    length: int = 20  # pages of a query, the teacher's best ones
    temperature: float = 1.0  # scores are divided by it
    softmax: bool = False  # a page's share of its list, the best page has 1; else the sigmoid of its score
    negatives: int = 0  # random pages a query that the teacher did not rank, with probability 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SoftList:
    """A query, its pages, best first, and the teacher's probability of each. Random pages are last."""

    query: Query
    pages: tuple[Page, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Distilled:
    """All lists, and the queries that gave none: fewer than two different pages."""

    lists: list[SoftList]
    short: list[str]


def distill(collection: Collection, queries: Sequence[Query], run: Run, options: Distill) -> Distilled:
    """Turn a teacher's run into soft lists. The random pages depend on the seed and the query alone.

    Pages with the same image count as one, with the better score.

    Raises:
        MmrrError: A page of the run is not in the index, a query is an image, or no query has two pages.
    """
    known = {page.page_id: page for page in collection.pages}
    lists, short = [], []
    for query in queries:
        if not query.text or query.image is not None:
            raise MmrrError(f"query {query.query_id} has an image; trainings take queries of text")
        best: dict[str, tuple[Page, float]] = {}
        for hit in run.get(query.query_id, []):
            if hit.page_id not in known:
                raise MmrrError(f"query {query.query_id}: page {hit.page_id} of the run is not in the index")
            best.setdefault(known[hit.page_id].sha256, (known[hit.page_id], hit.score))
        chosen = list(best.values())[: options.length]
        pages = [page for page, _ in chosen]
        values = probabilities([Hit(page.page_id, score) for page, score in chosen], options)
        rng = random.Random(f"{options.seed}/{query.query_id}")
        others = _random(collection.whole_pages(), set(best), options.negatives, rng)
        if not pages or len(pages) + len(others) < 2:
            short.append(query.query_id)
            continue
        lists.append(SoftList(query, (*pages, *others), (*values, *(0.0 for _ in others))))
    if not lists:
        raise MmrrError(f"none of the {len(queries)} queries has two pages in the run, expected at least one of them")
    return Distilled(lists, short)


def probabilities(hits: Sequence[Hit], options: Distill) -> list[float]:
    """The teacher's probability of each page, 0 to 1. ``hits``: best first.

    A yes/no score is a logit, and its sigmoid is a probability. Other scores (MaxSim, BM25) have no zero: with
    ``softmax``, a page has exp((score - best score) / temperature).
    """
    if options.softmax:
        return [math.exp((hit.score - hits[0].score) / options.temperature) for hit in hits]
    return [(1 + math.tanh(hit.score / options.temperature / 2)) / 2 for hit in hits]


def _random(pages: Sequence[Page], excluded: set[str], n: int, rng: random.Random) -> list[Page]:
    """Up to ``n`` pages with other images than ``excluded`` and each other."""
    chosen: dict[str, Page] = {}
    for _ in range(20 * n):
        if len(chosen) == n:
            break
        page = rng.choice(pages)
        if page.sha256 not in excluded:
            chosen.setdefault(page.sha256, page)
    return list(chosen.values())


def write(workspace: Workspace, found: Distilled, folder: Path, progress: Progress = silent) -> tuple[Path, Path]:
    """Write ``images/``, ``lists.jsonl`` and ``pairs.jsonl``; return the paths of the two files.

    A query text that occurs twice keeps its first list: a pair of query and page has one probability.
    """
    lists: list[dict[str, object]] = []
    pairs: list[dict[str, object]] = []
    images: dict[str, Page] = {}
    texts: set[str] = set()
    for one in found.lists:
        if one.query.text in texts:
            continue
        texts.add(one.query.text)
        names = [f"{IMAGES}/{page.sha256[:20]}.png" for page in one.pages]
        images.update(zip(names, one.pages, strict=True))
        values = list(one.probabilities)
        shared = {"query": one.query.text, "query_id": one.query.query_id}
        order = list(range(len(names)))
        lists.append({**shared, "images": names, "order": order, "relevant": [], "probabilities": values})
        for name, value in zip(names, values, strict=True):
            pairs.append({**shared, "image": name, "relevant": value >= 0.5, "probability": value})
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    with progress("copy images", len(images)) as advance:
        for name, page in images.items():
            if not (folder / name).exists():
                write_atomically(folder / name, read_image_file(workspace, page))
            advance(1)
    for file, records in ((LISTS, lists), (PAIRS, pairs)):
        write_atomically(folder / file, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records))
    return folder / LISTS, folder / PAIRS
