"""Measures whether evidence points at the words of a query: the share of the heat that falls on them, on drawn pages.

A query is four consecutive words of a page, drawn from texts that no training saw: the position of every character is
known. ``TEXTS`` is a file of documents (docs/training.md), a tenth of them is held out, and ``PAGES`` is the number of
pages. The reranker has half of the tokens. Chance is the share of the page that the words cover, in visual tokens.

    python -m benchmarks.evidence TEXTS PAGES [EMBEDDER RERANKER]

Feeds the section "Where a score comes from" of BENCHMARKS.md.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.word_localization import cell, normalized
from mmrr.embedders import colqwen3
from mmrr.evidence import attention_heat, product_heat
from mmrr.modeling import checkpoints
from mmrr.modeling.saliency import choose
from mmrr.scorers import minireranker
from mmrr.search.late_interaction import vector_idf
from mmrr.training.synthetic.canvas import DrawnPage
from mmrr.training.synthetic.page_pool import PagePool
from mmrr.training.synthetic.sources import Document, read_documents, split
from mmrr.types import Embedding, Grid, KeptTokens, PageCache
from mmrr.workspace.files import HashCache

WORDS, MIN_LETTERS, MIN_WORDS, PAGES_PER_REPORT = 4, 4, 40, 2
KEEP, SEED = 0.5, 7
Mask = NDArray[np.bool_]
#: {whose heat: shares of the heat of each query on the phrase, of each query on its words anywhere, of each word}
Shares = dict[str, tuple[list[float], list[float], list[float]]]


@dataclass(frozen=True, slots=True)
class Case:
    """A page and its query, with what the models have of the page."""

    text: str
    grid: Grid
    phrase: Mask  # (T,) tokens with the query's words, where the query was taken from
    places: dict[str, Mask]  # (T,) tokens with a word of the query, anywhere on the page
    embedding: Embedding
    kept: KeptTokens
    cache: PageCache


class Models:
    """The embedder and the reranker."""

    def __init__(self, embedder: str, reranker: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            hashes = HashCache(Path(scratch) / "hashes.json")
            found = checkpoints.resolve(embedder, None, hashes)
            scoring = checkpoints.resolve(reranker, None, hashes, minireranker.SPEC.model_types)
        cpu, options = torch.device("cpu"), minireranker.resolve(minireranker.Prepare(), scoring.config())
        self.embedder = colqwen3.Embedder(found, colqwen3.Prepare(), cpu, torch.float32)
        self.scorer = minireranker.Scorer(scoring, options, cpu, torch.float32)
        self.shared = self.scorer.shared_state()

    def read(self, page: DrawnPage, rng: random.Random) -> Case | None:
        """A query on a page, and the page as both models see it; None if the page has no four words in a row."""
        starts = [at for at in range(len(page.words) - WORDS + 1) if _usable(page, at)]
        if not starts:
            return None
        (embedding,) = self.embedder.embed_pages([page.image])
        kept = choose(embedding, self.scorer.grid(*page.image.size), KEEP)
        (cache,) = self.scorer.prepare([page.image], [kept])
        start, grid = rng.choice(starts), embedding.grid
        chosen = page.words[start : start + WORDS]
        phrase, places = np.zeros(grid[0] * grid[1], dtype=np.bool_), dict[str, Mask]()
        for word in chosen:
            phrase[[cell(centre, page.image.size, grid) for centre in word.centres]] = True
            places[normalized(word.text)] = np.zeros_like(phrase)
        for word in page.words:
            if (mask := places.get(normalized(word.text))) is not None:
                mask[[cell(centre, page.image.size, grid) for centre in word.centres]] = True
        return Case(" ".join(word.text for word in chosen), grid, phrase, places, embedding, kept, cache)


def _usable(page: DrawnPage, start: int) -> bool:
    """Whether four words from here are of one block of text, and two of them are long enough to be looked for."""
    words = page.words[start : start + WORDS]
    long = sum(len(normalized(word.text)) >= MIN_LETTERS for word in words)
    return words[0].block >= 0 and len({word.block for word in words}) == 1 and long >= 2


def draw(documents: Sequence[Document], n: int, folder: Path, seed: int = SEED) -> Iterator[DrawnPage]:
    """``n`` drawn pages with at least 40 words, two of a report."""
    pool, report = PagePool(folder, documents, seed), 0
    while n > 0:
        for number in range(min(PAGES_PER_REPORT, pool.page_count(report), n)):
            page = pool.page(report, number)
            if len(page.words) >= MIN_WORDS:
                n -= 1
                yield page
        report += 1


def heats(models: Models, case: Case, cases: Sequence[Case], word: int | None) -> dict[str, NDArray[np.float32]]:
    """The heat (T,) of every source, for a word of the query or for the whole of it. ``cases``: the collection."""
    search = colqwen3.Search()
    (query,) = (one.numpy() for one in models.embedder.embed_queries([case.text], search))
    pages = [one.embedding.vectors.float().numpy() for one in cases]
    temperature = models.embedder.temperature(search)
    idf = vector_idf(query, np.concatenate(pages), np.array([len(page) for page in pages]), temperature)
    rows = list(range(len(query)) if word is None else models.embedder.word_vectors(case.text, search)[word].places)
    by_vector = product_heat(query[rows], case.embedding.vectors.float().numpy(), idf[rows], temperature)
    owners = case.embedding.owners
    found = {"embedder": by_vector[: case.phrase.size] if owners is None else by_vector[owners.numpy()]}
    tokens = [-1] if word is None else models.scorer.word_tokens(case.text)[word].places
    weights = models.scorer.attention(case.text, case.cache, models.shared, tokens).numpy()
    for layer in (None, *range(len(weights))):
        name = "all layers" if layer is None else f"layer {models.scorer.band[0] + layer}"
        heat = np.zeros(case.phrase.size, dtype=np.float32)
        heat[case.kept.indices.numpy()] = attention_heat(weights, layer)
        found[f"reranker, {name}"] = heat
    area = np.ones(case.phrase.size, dtype=np.float32)
    return {"chance (area)": area, "saliency map": case.embedding.saliency.numpy(), **found}


def measure(models: Models, cases: Sequence[Case]) -> Shares:
    """The shares of the heat of every source."""
    shares: Shares = {}
    for case in cases:
        anywhere = np.any(list(case.places.values()), axis=0)
        for name, heat in heats(models, case, cases, None).items():
            of_source = shares.setdefault(name, ([], [], []))
            of_source[0].append(_share(heat, case.phrase))
            of_source[1].append(_share(heat, anywhere))
        for index, word in enumerate(models.scorer.word_tokens(case.text)):
            text = normalized(word.text)
            if len(text) >= MIN_LETTERS and text in case.places:
                for name, heat in heats(models, case, cases, index).items():
                    shares[name][2].append(_share(heat, case.places[text]))
    return shares


def _share(heat: NDArray[np.float32], mask: Mask) -> float:
    return float(heat[mask].sum() / heat.sum())


def main(texts: Path, n_pages: int, embedder: str = "reader-embedder", reranker: str = "reader-reranker") -> None:
    torch.set_num_threads(2)
    models, rng = Models(embedder, reranker), random.Random(3)
    _, held_out = split(read_documents(texts), 0.1)
    with tempfile.TemporaryDirectory() as folder:
        pages = draw(held_out, n_pages, Path(folder) / "pool")
        cases = [case for page in pages if (case := models.read(page, rng)) is not None]
    shares = measure(models, cases)
    n_words = len(shares["embedder"][2])
    print(f"{len(cases)} pages and queries, {n_words} words; shares of the heat in per cent, mean")
    print("| heat | of the query, on the phrase | of the query, on its words anywhere | of a word, on the word |")
    print("|---|---|---|---|")
    for name, values in shares.items():
        print(f"| {name} | " + " | ".join(f"{100 * np.mean(column):.1f}" for column in values) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
