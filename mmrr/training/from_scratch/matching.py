"""Teaches the language models to match: words to cells first, then queries to pages.

Three steps. *Spelling*: the first layers turn the bytes of a word into the same hashed n-grams that the vision tower
was taught to find in cells, so both sides speak one language where the band begins. *Contrast*: vectors of words and
of cells. *Judging*: yes or no, with the band, the exit and the pruning switched on, and a pointing loss: in the layer
after those that spell, half of the heads must attend from a word of the query to the cells in which it stands, or to
the instruction where it stands in none. A loss on the answer alone leaves chance much later.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrr.backbones.qwen3_vl import PageSequence
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.modeling.plain_forward import Layer, Watch, one_layer, pad, read_batch, read_page, score_states
from mmrr.modeling.saliency import Saliency, choose
from mmrr.training.data.cell_targets import N_HASHES, fold, word_hashes
from mmrr.training.data.queries import (
    LabelledQuery,
    contains_words,
    cross_queries,
    folded_ends,
    labelled_queries,
    own_queries,
    phrase,
    usable,
)
from mmrr.training.data.tower_features import Key, Keys, ReadPage, TowerFeatures
from mmrr.training.loop import Losses
from mmrr.types import Embedding

#: From queries and the page they are of to the pages easily taken for it, of each query.
Mine = Callable[[Sequence[str], Key], list[Keys]]
#: Rows of cells in a strip of a page.
STRIP_ROWS = 8
#: Tries to draw a batch; a page of a few words has no queries.
_DRAWS = 64
#: Letters of a word that learns to point: shorter ones stand nearly everywhere.
_POINTS = 3
#: Attention below this is none.
_LEAST = 1e-8
#: Forms of a layer that may be compiled.
_COMPILED = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """A few pages, each with its queries."""

    pages: list[ReadPage]
    queries: list[list[LabelledQuery]]


class BatchMaker:
    """Step number -> Batch, from pages whose features are on disk."""

    def __init__(
        self,
        features: TowerFeatures,
        keys: Sequence[Key],
        seed: str,
        *,
        pages: int,
        queries: int,
        answered_only: bool,
        crossed: bool = False,
        mine: Mine | None = None,
        strips: int = 0,
        rows: int = STRIP_ROWS,
    ) -> None:
        """``keys``: (report, page), ordered. ``answered_only``: no queries that their page does not answer.

        ``crossed``: ``queries`` is the number that a page is asked, its own and those of the other pages. ``mine``,
        with one of those two: finds the pages that a batch takes beside its first one, by the queries of that one,
        which are half of all where they are crossed. Default: pages of one report and any.

        The first ``strips`` steps are on strips of pages, ``rows`` rows of cells each: several times cheaper, and
        enough to learn matching on.
        """
        self.features, self.keys, self.seed, self.strips = features, list(keys), seed, strips
        self.pages, self.queries, self.answered_only, self.rows = pages, queries, answered_only, rows
        self.crossed, self.mine = crossed, mine

    def __call__(self, step: int) -> Batch:
        """Raises MmrrError where no page drawn has words enough for a query."""
        rng = random.Random(f"{self.seed}/batch/{step}")
        for _ in range(_DRAWS):
            pages, queries = self._drawn(rng, strips=step < self.strips)
            chosen = [(page, asked) for page, asked in zip(pages, queries, strict=True) if asked]
            if chosen:
                return Batch([page for page, _ in chosen], [asked for _, asked in chosen])
        raise MmrrError(f"found no words to ask for on any of {_DRAWS} pages drawn, expected longer texts")

    def _drawn(self, rng: random.Random, *, strips: bool) -> tuple[list[ReadPage], list[list[LabelledQuery]]]:
        first = rng.randrange(len(self.keys))
        if self.mine and not strips:
            return self._mined(self.mine, self.keys[first], rng)
        # Neighbours in the list are pages of one report, which resemble each other.
        near = [self.keys[(first + i) % len(self.keys)] for i in range(max(2, self.pages // 2))]
        far = [rng.choice(self.keys) for _ in range(self.pages - len(near))]
        pages = [self.features.load(*key) for key in dict.fromkeys(near + far)]
        if strips:
            pages = [page.part(self.rows, rng) for page in pages]
        return pages, self._asked(pages, rng)

    def _asked(self, pages: Sequence[ReadPage], rng: random.Random) -> list[list[LabelledQuery]]:
        if self.crossed:
            return cross_queries(pages, [own_queries(page, max(1, self.queries // len(pages)), rng) for page in pages])
        if self.answered_only:
            return [self._answered(page, rng) for page in pages]
        return [
            labelled_queries(page, [other for other in pages if other is not page], self.queries, rng) for page in pages
        ]

    def _mined(self, mine: Mine, key: Key, rng: random.Random) -> tuple[list[ReadPage], list[list[LabelledQuery]]]:
        """A page, and beside it pages found by its own queries, of each in turn."""
        page = self.features.load(*key)
        made = own_queries(page, self.queries // 2, rng) if self.crossed else []
        told = [] if self.crossed else self._answered(page, rng)
        texts = [query.text for query in made or told]
        found = mine(texts, key) if texts else []
        keys = [key]
        for of_query in itertools.cycle(found):
            if len(keys) == self.pages or not set().union(*found) - set(keys):
                break
            if left := [other for other in of_query if other not in keys]:
                keys.append(rng.choice(left))
        others = [self.features.load(*other) for other in keys[1:]]
        if not self.crossed:
            return [page, *others], [told, *(self._answered(other, rng) for other in others)]
        each = max(1, (self.queries - len(made)) // max(1, len(others)))
        return [page, *others], cross_queries(
            [page, *others], [made, *(own_queries(other, each, rng) for other in others)]
        )

    def _answered(self, page: ReadPage, rng: random.Random) -> list[LabelledQuery]:
        questions = [asked.text for asked in page.questions if usable(asked.text)]
        rng.shuffle(questions)
        texts = questions[: self.queries // 2]
        for _ in range(self.queries - len(texts)):
            text = phrase(page, rng, 2, 8)
            if text:
                texts.append(text.lower() if rng.random() < 0.5 else text)
        return [LabelledQuery(text, True) for text in texts]


def batch_seed(seed: int, begun: Checkpoint | None) -> str:
    """What batches are drawn by. ``begun``: the trained weights that a run goes on from.

    With the seed alone, every stage would see the first one's batches again and learn them by heart.
    """
    return f"{seed}/{begun.revision}" if begun else str(seed)


class Spelling(nn.Module):
    """The first layers of a language model, taught to spell, on pages and on queries."""

    def __init__(self, scorer: Any, head: nn.Linear, layers: int) -> None:
        """``head``: from states (D) to hashes, as the reader's vision tower was taught with it."""
        super().__init__()
        self.scorer, self.layers = scorer, layers
        backbone = scorer.backbone
        self.text = nn.ModuleList([backbone.text.embed_tokens, *backbone.text.layers[:layers]])
        self.head = head
        self.scale = nn.Parameter(torch.ones(2))

    def losses(self, batch: Batch) -> Losses:
        backbone = self.scorer.backbone
        texts = [query.text for asked in batch.queries for query in asked]
        ids, _ = pad([self.scorer.segments(text)[1] for text in texts])
        embeddings = backbone.text.embed_tokens(ids.to(backbone.device))
        hidden = read_batch(backbone, embeddings, self.layers)
        spelt = [(row, *found) for row, text in enumerate(texts) for found in folded_ends(text)]
        offset = query_offset(self.scorer)
        rows, columns = [row for row, _, _ in spelt], [offset + end for _, _, end in spelt]
        by_word = self._loss(hidden[rows, columns] * self.scale[0], [word_hashes(word) for _, word, _ in spelt])
        by_cell = torch.stack([self._page_loss(page) for page in batch.pages[:2]]).mean()
        return {"loss": by_word + by_cell, "words": by_word, "cells": by_cell}

    def _page_loss(self, page: ReadPage) -> Tensor:
        sequence = sequence_of(self.scorer, page, None)
        states = read_page(self.scorer.backbone, sequence, self.layers)[sequence.visual]
        found: dict[int, set[int]] = {}
        for word, cells in zip(page.folded, page.cells, strict=True):
            for cell in cells:
                found.setdefault(cell, set()).update(word_hashes(word))
        return self._loss(states * self.scale[1], [found.get(i, ()) for i in range(len(states))])

    def _loss(self, hidden: Tensor, targets: Sequence[Collection[int]]) -> Tensor:
        wanted = hashed(targets, hidden.device)
        return F.binary_cross_entropy_with_logits(self.head(hidden).float(), wanted) * N_HASHES


class Judge(nn.Module):
    """A reranker in training."""

    def __init__(
        self,
        scorer: Any,
        band: tuple[int, int],
        exit_layer: int,
        keep: float,
        pointing: float,
        pointer: int,
        ranking: float = 0.0,
    ) -> None:
        """``keep``: share of the visual tokens, by the page's saliency.

        ``pointing``: weight of the pointing loss; ``pointer``: the layer it is taken in, one of the band.
        ``ranking``: weight of the ranking loss, which needs queries that several pages are asked.
        """
        super().__init__()
        self.ranking = ranking
        self.scorer, self.band, self.exit_layer, self.keep = scorer, band, exit_layer, keep
        self.pointing, self.pointer = pointing, pointer
        self.text = scorer.backbone.text

    def forward(self, page: ReadPage, suffixes: Sequence[Sequence[int]], watch: Watch | None = None) -> Tensor:
        """z (Q,) of one page, for queries as the scorer's second segments."""
        sequence = sequence_of(self.scorer, page, kept_cells(page, self.keep))
        states = score_states(self.scorer.backbone, sequence, suffixes, self.band, self.exit_layer, watch)
        hidden = self.text.norm(states.float()).float()
        chat, weight = self.scorer.backbone.chat, self.text.embed_tokens.weight  # tied with the head
        return hidden @ (weight[chat.token_id("yes")] - weight[chat.token_id("no")]).float()

    def losses(self, batch: Batch) -> Losses:
        """Yes and no as in language modelling, of the two answers, the pointing loss and the ranking loss.

        Pages that answer and pages that do not count as much as one another.
        """
        scores, labels, points = [], [], []
        for page, asked in zip(batch.pages, batch.queries, strict=True):
            texts = [query.text for query in asked]
            suffixes = [self.scorer.segments(text)[1] for text in texts]
            pointer = _Pointer(self, page, texts, [len(suffix) for suffix in suffixes])
            scores.append(self(page, suffixes, pointer.watch))
            labels.append(torch.tensor([query.relevant for query in asked]))
            points.append(pointer.loss)
        z, y = torch.cat(scores), torch.cat(labels).to(scores[0].device)
        balance = (~y).sum() / y.sum().clamp(min=1) if self.ranking else None
        judged = F.binary_cross_entropy_with_logits(z, y.float(), pos_weight=balance)
        pointed = torch.stack(points).mean()
        right = ((z > 0) == y).float().mean()
        found = {"loss": judged + self.pointing * pointed, "judged": judged, "pointed": pointed, "right": right}
        if self.ranking:
            found["ranked"], found["first"] = ranked(z, y, batch)
            found["loss"] = found["loss"] + self.ranking * found["ranked"]
        return found


def ranked(z: Tensor, y: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each query over the pages that were asked it, and the share that a page which answers is first.

    ``z`` and ``y``: scores and labels, page by page.
    """
    asked = [(query.text, page) for page, queries in enumerate(batch.queries) for query in queries]
    rows = {text: row for row, text in enumerate(dict.fromkeys(text for text, _ in asked))}
    at = [rows[text] for text, _ in asked], [page for _, page in asked]
    scores = torch.full((len(rows), len(batch.pages)), -torch.inf, device=z.device)
    answers = torch.zeros_like(scores, dtype=torch.bool)
    scores[at], answers[at] = z.float(), y
    told = answers.any(1) & (~answers & scores.isfinite()).any(1)
    scores, answers = scores[told], answers[told]
    if not len(scores):
        return z.sum() * 0, z.new_ones(())
    loss = (scores.logsumexp(1) - scores.masked_fill(~answers, -torch.inf).logsumexp(1)).mean()
    return loss, answers.gather(1, scores.argmax(1, keepdim=True)).float().mean()


class _Pointer:
    """Where half of the heads of one layer look from the last letter of each word."""

    def __init__(self, judge: Judge, page: ReadPage, texts: Sequence[str], lengths: Sequence[int]) -> None:
        """``lengths``: of the texts' segments, in tokens."""
        self.loss = torch.zeros((), device=judge.scorer.backbone.device)
        self.layer = judge.pointer
        kept = kept_cells(page, judge.keep)
        before = len(judge.scorer.before)
        on_page = range(len(page.tokens)) if kept is None else kept.tolist()
        place = {cell: before + i for i, cell in enumerate(on_page)}
        cells: dict[str, set[int]] = {}
        for word, of_word in zip(page.folded, page.cells, strict=True):
            cells.setdefault(word, set()).update(place[cell] for cell in of_word if cell in place)
        starts = itertools.accumulate(lengths[:-1], initial=query_offset(judge.scorer))
        found = [(at, *end) for at, text in zip(starts, texts, strict=True) for end in folded_ends(text)]
        found = [one for one in found if len(one[1]) >= _POINTS]
        self.words = [at + end for at, _, end in found]  # where each ends, among the tokens of all queries
        self.targets = [sorted(cells.get(word) or range(before)) for _, word, _ in found]

    def watch(self, layer: int, queries: Tensor, keys: Tensor) -> None:
        if layer != self.layer or not self.words:
            return
        heads = max(1, len(queries) // 2)
        group = len(queries) // len(keys)  # query heads that share a key head
        shared = keys.repeat_interleave(group, dim=0)[:heads].float()
        chosen = queries[:heads, self.words].float()  # (h, W, d)
        logits = torch.einsum("hwd,hpd->whp", chosen, shared) * queries.shape[-1] ** -0.5
        target = torch.zeros(len(self.words), logits.shape[-1], dtype=torch.bool, device=logits.device)
        for row, places in enumerate(self.targets):
            target[row, places] = True
        wanted = logits.masked_fill(~target[:, None], -torch.inf).logsumexp(-1)
        self.loss = (logits.logsumexp(-1) - wanted).mean()


class Contrast(nn.Module):
    """An embedder with late interaction in training: queries find their page among the batch's.

    Two losses beside that one. *Pointing*: each longer word must find the cells it stands in among those of all pages,
    which is learnt in a tenth of the steps. *Whole*: the last tokens' states, as one vector of a page and of a query,
    find each other as well; nothing is searched by them, but the last token's attention says what a page is about.
    *Held*, where a weight says so: that attention, which prunes, stays what it was in the embedder that the pages'
    saliency is of, while search goes on learning.

    Pages of earlier batches are no negatives here: the encoder moves so fast that telling old vectors from new ones is
    the first thing it learns, and the last.
    """

    def __init__(
        self,
        embedder: Any,
        search: Any,
        pointing: float = 1.0,
        whole: float = 0.3,
        held: float = 0.0,
        fused: bool = False,
    ) -> None:
        """``pointing``, ``whole``, ``held``: weights of these losses; the last needs pages with a saliency.

        ``fused``: a layer's small steps are compiled into few, which needs a C++ compiler and half a minute.
        """
        super().__init__()
        if fused:  # each layer once for pages, once for queries: past torch's own limit of 8 the rest runs as it is
            torch._dynamo.config.recompile_limit = _COMPILED
        self.layer: Layer = torch.compile(one_layer, dynamic=True) if fused else one_layer
        self.embedder, self.search, self.pointing, self.whole = embedder, search, pointing, whole
        self.held = held
        self.text, self.projection = embedder.backbone.text, embedder.projection
        self.temperature = nn.Parameter(torch.tensor(2.0))  # logs of the scales
        self.whole_temperature = nn.Parameter(torch.tensor(3.0))

    def page_vectors(self, page: ReadPage) -> tuple[Tensor, Tensor, Tensor]:
        """The page's vectors (V, dim), that of the whole (D,), and the last token's attention (T,), if it is held."""
        backbone = self.embedder.backbone
        sequence = _sequence(backbone, self.embedder.before, page, self.embedder.after, None)
        assert isinstance(sequence.visual, slice)  # one page
        saliency = Saliency(sequence.visual)
        observe = saliency.observe if self.held else None
        states = self._normed(read_page(backbone, sequence, backbone.n_layers, self.layer, observe))
        return self.embedder.page_vectors(states, sequence.visual), F.normalize(states[-1], dim=-1), saliency.total

    def query_vectors(self, texts: Sequence[str]) -> tuple[Tensor, list[int], list[str], Tensor]:
        """Vectors (M, dim) of all queries, whose each is, and the word it is of; vectors (Q, D) of the whole ones."""
        backbone = self.embedder.backbone
        asked = [self.embedder.query(text, self.search) for text in texts]
        ids, lengths = pad([ids for ids, _ in asked])
        embeddings = backbone.text.embed_tokens(ids.to(backbone.device))
        states = self._normed(read_batch(backbone, embeddings, backbone.n_layers, self.layer))
        owners = [row for row, (_, words) in enumerate(asked) for _ in words]
        places = [place for _, words in asked for place in words]
        wholes = F.normalize(states[torch.arange(len(texts)), lengths - 1], dim=-1)
        names = [word for _, words in asked for word in words.values()]
        return self.embedder.query_vectors(states[owners, places]), owners, names, wholes

    def _normed(self, states: Tensor) -> Tensor:
        normed: Tensor = self.text.norm(states.float()).float()
        return normed

    def losses(self, batch: Batch) -> Losses:
        """Cross-entropy of each query over the pages, of each longer word over their cells, and of the whole vectors.

        Another page that holds all longer words of a query is left out: whether it answers is not known.
        """
        asked = [
            (query.text, page) for page, queries in zip(batch.pages, batch.queries, strict=True) for query in queries
        ]
        vectors, wholes, saliencies = zip(*map(self.page_vectors, batch.pages), strict=True)
        words, owners, names, queries = self.query_vectors([text for text, _ in asked])
        sizes = [len(of_page) for of_page in vectors]
        products = (words @ torch.cat(vectors).T).float()
        best = torch.stack([of_page.amax(1) for of_page in torch.split(products, sizes, dim=1)], dim=1)
        scores = best.new_zeros(len(asked), len(sizes)).index_add(0, torch.tensor(owners, device=best.device), best)
        answers = torch.tensor([[answered(page, *one) for page in batch.pages] for one in asked], device=best.device)
        unknown = torch.tensor(
            [[contains_words(page, text) for page in batch.pages] for text, _ in asked], device=best.device
        )
        found, right = _found(scores * self.temperature.exp(), answers, unknown)
        pooled = queries @ torch.stack(wholes).T
        whole, _ = _found(pooled.float() * self.whole_temperature.exp(), answers, unknown)
        pointed = self._pointed(products * self.temperature.exp(), names, batch.pages, sizes)
        loss = found + self.pointing * pointed + self.whole * whole
        losses = {"loss": loss, "found": found, "pointed": pointed, "whole": whole, "right": right}
        if self.held:
            losses["held"] = torch.stack(
                [_moved(now, page.saliency) for now, page in zip(saliencies, batch.pages, strict=True)]
            ).mean()
            losses["loss"] = loss + self.held * losses["held"]
        return losses

    def _pointed(self, logits: Tensor, names: Sequence[str], pages: Sequence[ReadPage], sizes: Sequence[int]) -> Tensor:
        """Cross-entropy of words (M) over the cells of all pages (cells), those that the batch writes somewhere."""
        standing: dict[str, list[int]] = {}
        for page, first in zip(pages, itertools.accumulate(sizes[:-1], initial=0), strict=True):
            for word, cells in zip(page.folded, page.cells, strict=True):
                standing.setdefault(word, []).extend(first + cell for cell in cells)
        wanted = [standing.get(word, []) if len(word) >= _POINTS else [] for word in map(fold, names)]
        rows = [row for row, found in enumerate(wanted) if found]
        if not rows:
            return logits.sum() * 0
        target = torch.zeros(len(rows), logits.shape[1], dtype=torch.bool, device=logits.device)
        for at, row in enumerate(rows):
            target[at, wanted[row]] = True
        chosen = logits[rows]
        return (chosen.logsumexp(1) - chosen.masked_fill(~target, -torch.inf).logsumexp(1)).mean()


def _found(logits: Tensor, answers: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of queries (Q) over pages (P), but those of which it is unknown, and the share found first."""
    logits = logits.masked_fill(unknown & ~answers, -torch.inf)
    loss = (logits.logsumexp(1) - logits.masked_fill(~answers, -torch.inf).logsumexp(1)).mean()
    return loss, answers.gather(1, logits.argmax(1, keepdim=True)).float().mean()


def _moved(now: Tensor, then: Tensor | None) -> Tensor:
    """Variance, over a page's cells, of the log of its saliency (T,) beside what it was: 0 where they are proportional.

    Of logs, because the half that pruning keeps is decided among cells that all have little.
    """
    assert then is not None  # with weight on it, the pages' features come with an embedder's saliency
    now, then = (one.float().clamp(min=_LEAST).log() for one in (now, then.to(now.device)))
    return (now - then).var()


def answered(page: ReadPage, text: str, owner: ReadPage) -> bool:
    """Whether a page is known to answer a query that was made for ``owner``."""
    return page is owner or any(text == question.text for question in page.questions)


def hashed(targets: Sequence[Collection[int]], device: torch.device) -> Tensor:
    """Buckets as rows of zeros and ones, (n, N_HASHES)."""
    rows = torch.zeros(len(targets), N_HASHES)
    for row, buckets in enumerate(targets):
        rows[row, list(buckets)] = 1.0
    return rows.to(device)


def query_offset(scorer: Any) -> int:
    """Tokens before the query in the scorer's second segment."""
    one, other = (scorer.segments(text)[1] for text in "ab")
    return next(i for i, (this, that) in enumerate(zip(one, other, strict=True)) if this != that)


def kept_cells(page: ReadPage, share: float) -> Tensor | None:
    """Raster indices of the most salient cells, ascending; None: all."""
    if share >= 1 or page.saliency is None:
        return None
    return choose(Embedding(page.tokens[:1], page.saliency, page.grid), page.grid, share).indices.long()


def sequence_of(scorer: Any, page: ReadPage, kept: Tensor | None) -> PageSequence:
    """The scorer's first segment over this page."""
    return _sequence(scorer.backbone, scorer.before, page, scorer.after, kept)


def _sequence(
    backbone: Any, before: Sequence[int], page: ReadPage, after: Sequence[int], kept: Tensor | None
) -> PageSequence:
    sequence: PageSequence = backbone.page_sequence(before, page.visual(backbone), after, kept)
    return sequence
