"""Chooses the default weights of the first stage's channels on drawn pages.

``BENCH`` is the output of ``mmrr draw TEXTS --held-out 0.1 --output BENCH`` with the default seed and 200 pages.
``WORK`` is a workspace that indexes it, or some of its PDFs, with ``--embedder reader-embedder``. Drawn pages have no
text layer: ``words`` and ``meaning`` get the true text, which the script draws again.

    python -m benchmarks.channel_weights TEXTS BENCH WORK [TEXT_EMBEDDER]

Feeds the section "First stage" of BENCHMARKS.md and docs/first-stage.md.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from mmrr.config import Retrieve
from mmrr.context import Context
from mmrr.evaluation.metrics import evaluate
from mmrr.evaluation.trec import read_qrels, read_queries
from mmrr.modeling import families, text_checkpoints
from mmrr.pipeline import search
from mmrr.search.fusion import fuse_all
from mmrr.search.indexes import TextIndex
from mmrr.training.synthetic.benchmark import draw_pages
from mmrr.training.synthetic.page_pool import PagePool
from mmrr.training.synthetic.reports import with_text
from mmrr.training.synthetic.sources import read_documents, split
from mmrr.types import Query, Run, rank
from mmrr.workspace.files import HashCache
from mmrr.workspace.store import Workspace

PAGES, SEED, HELD_OUT, DEPTH = 200, 0, 0.1, 100
MEASURES = ("R@1", "R@5", "nDCG@5")
WEIGHTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def true_texts(texts: Path) -> dict[str, str]:
    """{page id: text} of the drawn pages."""
    _, held_out = split(read_documents(texts), HELD_OUT)
    with tempfile.TemporaryDirectory() as folder:
        pool = PagePool(Path(folder) / "pool", with_text(held_out), SEED)
        pages, _ = draw_pages(pool, PAGES, Path(folder), lambda n: None)
    return {page.id: page.text for page in pages}


def by_words(pages: dict[str, str], queries: list[Query]) -> Run:
    """BM25, as the first stage lists it: the pages that share a word with the query."""
    index, names = TextIndex.build(list(pages.values())), list(pages)
    found = {query.query_id: zip(names, index.scores(query.text).tolist(), strict=True) for query in queries}
    return {name: rank({page: score for page, score in scores if score > 0}, DEPTH) for name, scores in found.items()}


def by_meaning(pages: dict[str, str], queries: list[Query], name: str) -> Run:
    """The best window of each page."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = text_checkpoints.resolve(name, None, HashCache(Path(folder) / "hashes.json"))
    family = families.load("text_embedders", families.text_embedder(checkpoint.model_type))
    embedder = family.load(checkpoint, family.Prepare(), torch.device("cpu"), torch.float32)
    windows = {page: embedder.windows(text) for page, text in pages.items()}
    vectors = embedder.embed_windows([pages[page][start:end] for page in pages for start, end in windows[page]])
    products = embedder.embed_queries([query.text for query in queries]) @ vectors.T
    owners = torch.tensor([row for row, page in enumerate(pages) for _ in windows[page]])
    best = torch.full((len(queries), len(pages)), -torch.inf)
    best.scatter_reduce_(1, owners.expand(len(queries), -1), products, "amax")
    found = zip(queries, best.tolist(), strict=True)
    return {query.query_id: rank(dict(zip(pages, row, strict=True)), DEPTH) for query, row in found}


def by_sight(work: Path, queries: list[Query]) -> tuple[Run, set[str]]:
    """The ranking by the page vectors of the workspace, and its pages."""
    with Workspace.open(work) as workspace:
        found = search(Context(workspace), queries, Retrieve("sight", depth=DEPTH), {})
        return found.first, set(found.collection.row_of)


def sums(names: Iterable[str]) -> Iterator[dict[str, float]]:
    """Each channel alone, and each sum of two and of three with a grid of weights; the first weight is 1."""
    for name in names:
        yield {name: 1.0}
    for first, second in itertools.combinations(names, 2):
        yield from ({first: 1.0, second: weight} for weight in WEIGHTS)
    for meaning, sight in itertools.product(WEIGHTS, WEIGHTS):
        yield {"words": 1.0, "meaning": meaning, "sight": sight}


def main(texts: Path, bench: Path, work: Path, model: str = "minilm") -> None:
    qrels = read_qrels(bench / "qrels.trec")
    every = read_queries(bench / "queries.jsonl")
    seen, indexed = by_sight(work, every)
    pages = {page: text for page, text in true_texts(texts).items() if page in indexed}
    queries = [query for query in every if qrels[query.query_id].keys() <= pages.keys()]
    print(f"{len(pages)} pages, {len(queries)} queries")
    runs = {"words": by_words(pages, queries), "meaning": by_meaning(pages, queries, model), "sight": seen}
    for weights in sums(runs):
        run = fuse_all([(runs[name], weight) for name, weight in weights.items()])
        cells = []
        for prefix in ("p", "q"):
            kind = {query.query_id for query in queries if query.query_id.startswith(prefix)}
            found = evaluate(run, {query_id: row for query_id, row in qrels.items() if query_id in kind}, MEASURES)
            cells.append(" / ".join(f"{value:.3f}" for value in found.mean.values()))
        print(", ".join(f"{name} {weight:g}" for name, weight in weights.items()), "|", " | ".join(cells))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *sys.argv[4:])
